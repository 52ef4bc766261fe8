//! Results are published while a run goes on.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;

use super::{World, registry, stage};
use crate::cli::arguments::Arguments;
use crate::cli::study::Study;
use crate::interim::Interim;
use crate::pipeline::NodeId;
use crate::plan::Wanted;

fn appears(path: &Path) -> bool {
    let since = Instant::now();
    while !path.exists() {
        if since.elapsed() > Duration::from_secs(20) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// What was there when the run began is published, and what it makes as it comes; a person's file stays.
#[test]
fn results_are_published_before_the_run_ends() {
    let stages =
        [stage("a", "text = \"x\"", ""), stage("b", "text = \"y\"", ""), stage("c", "text = \"z\"", "")];
    let world = World::new(&stages.concat());
    assert_eq!(world.pipe("run", &[]), 0);
    let file = |node: &str| world.path(&format!("results/w/{node}/out/text.txt"));
    for node in ["a", "b"] {
        std::fs::remove_file(file(node)).unwrap();
    }
    std::fs::write(file("c"), "a person's").unwrap();

    let path = world.path("w.toml");
    let arguments = Arguments::try_parse_from(["pipe", "plan", path.to_str().unwrap()]).unwrap();
    let registry = registry();
    let study = Study::load_for(&arguments, &path, None, &registry).unwrap();
    let store = study.open_existing().unwrap().unwrap();
    let (plan, ..) = study.plan(Some(&store), &Wanted::default(), registry.numerics()).unwrap();
    let id = |name: &str| study.pipeline.nodes.iter().position(|node| node.name == name).map(NodeId).unwrap();
    let record = |name: &str| plan.records[id(name).0].clone().unwrap();
    let interim = Interim {
        store: &store,
        results: &study.results,
        pipeline: &study.pipeline,
        hard_links: false,
        every: Duration::from_millis(10),
    };
    let (done, results) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| interim.publish(vec![(id("a"), record("a").key)], results));
        assert!(appears(&file("a")), "what was known");
        assert!(!file("b").exists());
        done.send((id("b"), record("b"))).unwrap();
        done.send((id("c"), record("c"))).unwrap();
        assert!(appears(&file("b")), "what was made");
        drop(done);
    });
    assert_eq!(std::fs::read_to_string(file("c")).unwrap(), "a person's");
    // The end of the run finds everything as it left it.
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(std::fs::read_to_string(file("b")).unwrap(), "y");
    assert!(!world.path("results/w/.publishing").exists());
}
