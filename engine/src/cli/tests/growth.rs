//! What a run looks at, counted, as studies grow.

use super::{World, stage};

/// A source, readers of it, and a sink that reads them all.
fn fan(count: usize) -> String {
    let mut stages = stage("source", "text = \"x\"", "");
    let middle: Vec<String> = (0..count - 2).map(|index| format!("m{index}")).collect();
    for name in &middle {
        stages.push_str(&stage(name, &format!("text = \"{name}\""), "i = \"source\""));
    }
    let all: Vec<String> = middle.iter().map(|name| format!("\"{name}\"")).collect();
    stages + &stage("sink", "", &format!("i = [{}]", all.join(", ")))
}

/// Half of the nodes are read by all of the other half.
fn grid(count: usize) -> String {
    let names: Vec<String> = (0..count / 2).map(|index| format!("a{index}")).collect();
    let sources = names.iter().map(|name| stage(name, &format!("text = \"{name}\""), ""));
    let all: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let inputs = format!("i = [{}]", all.join(", "));
    let readers = (0..count - count / 2)
        .map(|index| stage(&format!("b{index}"), &format!("text = \"b{index}\""), &inputs));
    sources.chain(readers).collect()
}

/// Counted, so that the machine does not matter: what a run looks at grows as the study does.
#[test]
fn keys_records_and_bytes_grow_with_the_number_of_nodes() {
    let chain = |count: usize| -> String {
        let one = |index: usize| {
            let input = if index > 0 { format!("i = \"n{}\"", index - 1) } else { String::new() };
            stage(&format!("n{index}"), &format!("text = \"{index}\""), &input)
        };
        (0..count).map(one).collect()
    };
    for (name, shape) in [("chain", chain as fn(usize) -> String), ("fan", fan), ("grid", grid)] {
        for count in [20, 40, 80] {
            let world = World::new(&shape(count));
            for (run, records) in [("full", 3 * count), ("no-op", count)] {
                assert_eq!(world.pipe("run", &["--durability", "rename"]), 0);
                let looked = world.of("run_finished")[0]["looked"].clone();
                assert_eq!(looked["keys"], count, "{run} run of a {name} of {count}: {looked}");
                assert!(
                    looked["records"].as_u64().unwrap() <= records as u64,
                    "{run} {name} {count}: {looked}"
                );
            }
            // The records of a no-op: about a kilobyte for a node and 70 bytes for each edge.
            let bytes = world.of("run_finished")[0]["looked"]["bytes"].as_u64().unwrap();
            let edges = if name == "grid" { count * count / 4 } else { 2 * count };
            assert!(bytes < (1900 * count + 100 * edges) as u64, "{name} {count}: {bytes}");
        }
    }
}

#[test]
fn a_chain_of_a_hundred_thousand_is_planned() {
    let mut stages = stage("n0", "text = \"x\"", "");
    for index in 1..100_000 {
        stages
            .push_str(&format!("[stage.n{index}]\nkind = \"note\"\ninputs = {{ i = \"n{}\" }}\n", index - 1));
    }
    assert_eq!(World::new(&stages).pipe("plan", &["--check"]), 6);
}
