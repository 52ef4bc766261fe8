//! Several processes on one store.

use std::collections::BTreeMap;
use std::process::Stdio;

use crate::study::{Answer, SMALL, SMALL_NODES, Study};

/// Starts runs at the same time and counts how often each node was executed.
fn executed(study: &Study, runs: &[&[&str]]) -> BTreeMap<String, usize> {
    let children: Vec<_> = runs
        .iter()
        .map(|arguments| {
            study
                .command(&[&["run", "study.toml", "--json"], *arguments].concat())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the program starts")
        })
        .collect();
    let mut counts = BTreeMap::new();
    for child in children {
        let answer = Answer::of(&child.wait_with_output().expect("a child ends")).expect(0);
        for node in answer.started() {
            *counts.entry(node).or_default() += 1;
        }
    }
    counts
}

#[test]
fn two_runs_execute_each_action_once() {
    for _ in 0..5 {
        let study = Study::new(SMALL);
        let counts = executed(&study, &[&[], &[]]);
        assert_eq!(counts.len(), SMALL_NODES);
        assert!(counts.values().all(|count| *count == 1), "{counts:?}");
        study.assert_clean();
    }
}

#[test]
fn eight_runs_with_overlapping_targets_execute_each_action_once() {
    let study = Study::new(SMALL);
    let targets: [&[&str]; 8] = [
        &["trained"],
        &["embedded"],
        &["initial"],
        &["retrieved[model=initial]"],
        &["shapes"],
        &["shapes", "vocabulary"],
        &[],
        &["pairs"],
    ];
    let counts = executed(&study, &targets);
    assert_eq!(counts.len(), SMALL_NODES);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    study.assert_clean();
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
}

/// One of two is killed: the other, which waited for it, goes on by itself.
#[test]
fn a_killed_neighbour_is_replaced() {
    let slow = SMALL.replace("epochs = 2", "epochs = 150");
    let study = Study::new(&slow);
    let first = study.start(&["trained"], |event| crate::study::is(event, "progress", "trained"));
    let second = study.start(&["trained"], |event| crate::study::is(event, "waiting", "trained"));
    first.signal("KILL");
    first.wait();
    let second = second.wait().expect(0);
    assert_eq!(second.started(), ["trained"]);
    // What the dead one left is swept by the next start.
    study.run(&[]).expect(0);
    study.assert_clean();
}
