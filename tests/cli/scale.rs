//! How long nothing takes: start-up, and runs of large studies that are up to date. The ceilings are
//! generous, so that only a quadratic step or a forgotten sleep reaches them on a busy machine.

use std::time::{Duration, Instant};

use crate::study::{Study, text};

/// The least of several times: what a busy machine adds is left out.
fn least(times: usize, mut work: impl FnMut()) -> Duration {
    let durations = (0..times).map(|_| {
        let started = Instant::now();
        work();
        started.elapsed()
    });
    durations.min().expect("there is at least one")
}

#[test]
fn starting_takes_milliseconds() {
    let study = Study::new("");
    let version = least(10, || {
        study.pipe(&["--version"]).expect(0);
    });
    println!("start-up: {:.1} ms", version.as_secs_f64() * 1e3);
    assert!(version < Duration::from_millis(100), "{version:?}");
}

/// A thousand nodes: half of them draw one picture, half read one drawing.
#[test]
fn a_thousand_nodes_that_are_up_to_date_take_milliseconds() {
    let seeds: Vec<String> = (0..500).map(|seed| seed.to_string()).collect();
    let study = Study::new(&format!(
        r#"[pipeline]
name = "large"
format = 1

[stage.drawn]
kind = "ingest.phantom"
matrix = {{ seed = [{}] }}
params = {{ seed = "${{seed}}", size = 28, train = 1, test = 0 }}
resources = {{ cpu = 1 }}

[stage.words]
kind = "tokenizer"
matrix = {{ seed = "@drawn" }}
inputs = {{ text = "drawn.captions" }}
params = {{ vocab_size = 512 }}
"#,
        seeds.join(", ")
    ));
    let started = Instant::now();
    study.pipe(&["run", "study.toml", "--quiet"]).expect(0);
    println!("full run of 1000 nodes: {:.2} s", started.elapsed().as_secs_f64());
    let mut times = Vec::new();
    for (name, arguments) in [
        ("run", &["run", "study.toml", "--quiet"][..]),
        ("plan", &["plan", "study.toml"]),
        ("status", &["status", "study.toml"]),
    ] {
        let time = least(5, || {
            study.pipe(arguments).expect(0);
        });
        println!("{name} of 1000 nodes with nothing to do: {:.1} ms", time.as_secs_f64() * 1e3);
        times.push(time);
    }
    assert!(times.iter().all(|time| *time < Duration::from_millis(600)), "{times:?}");
    let second =
        study.pipe(&["run", "study.toml", "--json", "--store", text(&study.path(".pipe"))]).expect(0);
    assert_eq!(second.events_of("planned")[0]["counts"]["hit"], 1000);
    // One drawing is another: it and its reader run.
    let third =
        study.pipe(&["run", "study.toml", "--json", "--set", "stage.drawn[seed=7].params.train=2"]).expect(0);
    assert_eq!(third.started(), ["drawn[seed=7]", "words[seed=7]"]);
}

/// Plans of the three shapes that grow otherwise: a fan of ten thousand, a chain of a thousand, and a grid of a hundred that
/// read a hundred each. Nothing has run, so all of them are planned in full.
#[test]
fn plans_of_any_shape_take_no_longer_than_they_are_large() {
    let source = "[stage.drawn]\nkind = \"ingest.phantom\"\nparams = { size = 28, train = 1, test = 0 }\n";
    let words = |name: &str, matrix: &str, text: &str| {
        format!(
            "[stage.{name}]\nkind = \"tokenizer\"\n{matrix}inputs = {{ text = {text} }}\nparams = {{ vocab_size = 512 }}\n"
        )
    };
    let program = |name: &str, count: usize, inputs: &str| {
        let values: Vec<String> = (0..count).map(|value| format!("\"{value}\"")).collect();
        format!(
            "[stage.{name}]\nkind = \"command\"\nmatrix = {{ {name}_at = [{}] }}\ninputs = {{ x = {inputs} }}\n\
             params = {{ argv = [\"cat\", \"${{{name}_at}}\"], outputs = [\"o\"] }}\n",
            values.join(", ")
        )
    };
    let fan = [source.to_owned(), program("wide", 10_000, "\"drawn.captions\"")].concat();
    let chain: String = (0..1000)
        .map(|place| match place {
            0 => source.to_owned() + &words("s0", "", "\"drawn.captions\""),
            _ => format!(
                "[stage.s{place}]\nkind = \"command\"\ninputs = {{ x = \"s{}\" }}\nparams = {{ argv = [\"cat\"], outputs = [\"o\"] }}\n",
                place - 1
            ),
        })
        .collect();
    let left = program("left", 100, "\"drawn.captions\"");
    let grid = [source.to_owned(), left, program("right", 100, "[\"left[left_at=*]\"]")].concat();
    for (name, text, nodes) in [("fan", fan, 10_001), ("chain", chain, 1_001), ("grid", grid, 201)] {
        let study = Study::new(&format!("[pipeline]\nname = \"large\"\nformat = 1\n{text}"));
        let time = least(2, || {
            let plan = study.json("plan", &[]);
            let counted = ["hit", "run", "maybe"].map(|word| plan[word].as_u64().expect("a count"));
            assert_eq!(counted.iter().sum::<u64>(), nodes, "{name}");
        });
        println!("plan of the {name} of {nodes} nodes: {:.0} ms", time.as_secs_f64() * 1e3);
        assert!(time < Duration::from_secs(6), "{name}: {time:?}");
    }
}
