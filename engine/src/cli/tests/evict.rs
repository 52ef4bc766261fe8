//! What was evicted is known to be right, and made again for those who read it.

use super::{World, stage};

fn chain(last: &str) -> String {
    [
        stage("a", "text = \"x\"", ""),
        stage("b", "text = \"y\"", "i = \"a\""),
        stage("c", &format!("text = \"{last}\""), "i = \"b\""),
    ]
    .concat()
}

fn blobs(world: &World) -> usize {
    let folders = std::fs::read_dir(world.path(".pipe/cas")).unwrap();
    folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
}

fn text(world: &World, node: &str) -> String {
    std::fs::read_to_string(world.path(&format!("results/w/{node}/out/text.txt"))).unwrap()
}

#[test]
fn evicted_results_are_hits_until_somebody_reads_them() {
    let world = World::new(&chain("z"));
    assert_eq!(world.pipe("run", &[]), 0);
    // Without `--apply` it is only listed.
    let listed = world.answer("gc", &["--evict", "a", "--evict", "b", "--json"]);
    assert_eq!((listed["blobs"].as_u64(), listed["bytes"].as_u64()), (Some(2), Some(3)));
    assert_eq!(blobs(&world), 3);
    let gone = world.answer("gc", &["--evict", "a", "--evict", "b", "--apply", "--now", "--json"]);
    assert_eq!(gone["removed"]["blobs"], 2);
    assert_eq!(blobs(&world), 1);
    assert_eq!(world.pipe("verify", &[]), 0);
    assert_eq!(world.answer("gc", &["--evict", "*", "--json"])["evicted"].as_array().unwrap().len(), 1);
    // Nothing runs for it, and what was published stays.
    assert_eq!(world.pipe("plan", &["--check"]), 0);
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!((world.started(), text(&world, "b")), (vec![], "yx".to_owned()));
    // An edit below them needs them: the plan says so, and so does each action.
    world.write(&chain("new"));
    let plan = world.answer("plan", &["--json"]);
    assert_eq!((plan["run"].as_u64(), plan["maybe"].as_u64()), (Some(3), Some(0)));
    assert_eq!(plan["nodes"][0]["reasons"][0]["text"], "its files were evicted, and `b` reads them");
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(
        (world.started(), world.of("corruption").len()),
        (vec!["a".into(), "b".into(), "c".into()], 0)
    );
    assert_eq!(
        (text(&world, "c"), world.of("run_finished")[0]["repaired"].as_u64()),
        ("newyx".into(), Some(0))
    );
    // They are there again, as if nothing had been.
    assert_eq!(world.pipe("run", &["--force", "c"]), 0);
    assert_eq!(world.started(), ["c"]);
}

/// A node that only may run finds out when it does.
#[test]
fn what_may_run_asks_for_evicted_results_when_it_runs() {
    let study = |first: &str, second: &str| {
        [
            stage("a", "text = \"x\"", ""),
            stage("b", &format!("text = \"{first}\""), ""),
            stage("c", "text = \"z\"", "i = \"a\", j = \"b\""),
            stage("d", &format!("text = \"{second}\""), "i = \"c\""),
        ]
        .concat()
    };
    let world = World::new(&study("y", "d"));
    assert_eq!(world.pipe("run", &[]), 0);
    world.write(&study("v", "d"));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.pipe("gc", &["--evict", "a", "--evict", "c", "--apply"]), 0);
    world.write(&study("w", "d"));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(
        (world.started(), text(&world, "d")),
        (vec!["a".into(), "b".into(), "c".into(), "d".into()], "dzxw".into())
    );
    // Back to where it was evicted: a hit, and nobody reads it.
    world.write(&study("v", "d"));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!((world.started(), text(&world, "d")), (vec![], "dzxv".to_owned()));
    // What was published of it meanwhile is not its result.
    assert!(!world.path("results/w/c/out/text.txt").exists());
    // And once more, with a reader that is new.
    world.write(&study("v", "e"));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!((world.started(), text(&world, "d")), (vec!["c".into(), "d".into()], "ezxv".to_owned()));
    assert_eq!(text(&world, "c"), "zxv");
}

#[test]
fn parts_are_evicted_with_their_table() {
    let study = |what: &str| {
        format!(
            "[stage.rows]\nkind = \"lines\"\ninputs = {{ source = \"file:rows.txt\" }}\n\
             [stage.long]\nkind = \"append\"\ninputs = {{ rows = \"rows\" }}\nparams = {{ text = \"!\" }}\n\
             [stage.longer]\nkind = \"append\"\ninputs = {{ rows = \"long\" }}\nparams = {{ text = \"{what}\" }}\n"
        )
    };
    let world = World::new(&study("?"));
    let rows: String = (0..200).map(|row| format!("row {row}\n")).collect();
    std::fs::write(world.path("rows.txt"), rows).unwrap();
    assert_eq!(world.pipe("run", &[]), 0);
    let before = blobs(&world);
    assert_eq!(world.pipe("gc", &["--evict", "long", "--apply", "--now"]), 0);
    assert!(blobs(&world) < before - 10);
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.started(), [] as [&str; 0]);
    world.write(&study("."));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.started(), ["long", "longer"]);
    assert_eq!(world.pipe("verify", &[]), 0);
}
