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
