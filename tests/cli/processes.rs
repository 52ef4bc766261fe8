//! Several processes on one store.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

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

/// Some of eight are killed at moments of no particular meaning: the others do all of the work, and what is there in
/// the end is what one undisturbed run gives.
#[test]
fn eight_runs_of_which_some_are_killed_give_what_one_gives() {
    let slow = SMALL.replace("epochs = 2", "epochs = 40");
    let undisturbed = Study::new(&slow);
    undisturbed.run(&[]).expect(0);
    let study = Study::new(&slow);
    let start = |_| {
        let mut command = study.command(&["run", "study.toml", "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    };
    let mut children: Vec<_> = (0..8).map(start).collect();
    for (victim, pause) in [(5, 20), (0, 50), (3, 90), (6, 170), (2, 60)] {
        std::thread::sleep(Duration::from_millis(pause));
        children[victim].kill().expect("a child can be killed");
    }
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().expect("a child ends");
        if ![5, 0, 3, 6, 2].contains(&number) {
            Answer::of(&output).expect(0);
        }
    }
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    study.assert_clean();
    assert_eq!(study.records(), undisturbed.records());
    let published = |study: &Study| -> Vec<(String, Vec<u8>)> {
        study.files("results").into_iter().filter(|(name, _)| !name.ends_with(".published.json")).collect()
    };
    assert!(published(&study) == published(&undisturbed), "the results are those of an undisturbed run");
}

/// Neither the number of threads nor what runs beside an action changes a bit of it.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let digests = |jobs: &str| Study::new(SMALL).run(&["--jobs", jobs]).expect(0).digests();
    let one = digests("1");
    assert!(one.len() > SMALL_NODES);
    for jobs in ["2", "8"] {
        assert_eq!(digests(jobs), one, "{jobs} jobs");
    }
}

/// The order in which actions run changes no bit either: what is written first runs first, all else being equal.
#[test]
fn results_do_not_depend_on_the_order_of_actions() {
    let mut stages: Vec<&str> = SMALL.split("\n[stage.").collect();
    let started = |stages: &[&str]| Study::new(&stages.join("\n[stage.")).run(&["--jobs", "1"]).expect(0);
    let written = started(&stages);
    stages[1..].reverse();
    let reversed = started(&stages);
    let order = |answer: &Answer| -> Vec<String> {
        answer.events_of("action_started").iter().map(|event| event["node"].to_string()).collect()
    };
    assert_ne!(order(&reversed), order(&written));
    assert_eq!(reversed.digests(), written.digests());
}
