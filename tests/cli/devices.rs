//! Where a study computes: what is spelled otherwise is not done again, what gives other digits is, and a
//! device that is not there is told with those that are.

use crate::study::{SMALL_NODES, Study};

/// What computes the embeddings of both models.
const EMBEDDED: [&str; 2] = ["embedded[model=initial]", "embedded[model=trained]"];

fn on(parameter: &str) -> Study {
    let study = Study::finished();
    study.edit(
        r#"params = { splits = ["test"] }"#,
        &format!(r#"params = {{ splits = ["test"], {parameter} }}"#),
    );
    study
}

#[test]
fn a_device_that_is_meant_anyway_changes_nothing() {
    // Without a GPU `auto` means the CPU.
    let doctor = Study::finished().pipe(&["doctor", "study.toml"]).stdout;
    if !doctor.contains("cpu:") {
        println!("SKIPPED the numerics class of this machine is not a CPU's");
        return;
    }
    let study = on(r#"device = "cpu", precision = "f32""#);
    let answer = study.run(&[]).expect(0);
    assert!(answer.started().is_empty(), "{:?}", answer.started());
    assert_eq!(answer.events_of("planned")[0]["counts"]["hit"], SMALL_NODES);
}

#[test]
fn another_precision_computes_anew_and_why_says_so() {
    let study = on(r#"precision = "bf16""#);
    let why = study.pipe(&["why", "study.toml", EMBEDDED[0]]).expect(0);
    assert!(why.stdout.contains("numerics class") && why.stdout.contains(";bf16;"), "{}", why.stdout);
    let started = study.run(&[]).expect(0).started();
    assert!(EMBEDDED.iter().all(|node| started.contains(&(*node).to_owned())), "{started:?}");
    assert!(!started.contains(&"trained".to_owned()), "{started:?}");
    // Back again: both results are there.
    study.edit("bf16", "f32");
    assert!(study.run(&[]).expect(0).started().is_empty());
}

#[test]
fn a_missing_device_is_told_with_what_is_there() {
    let study = on(r#"device = "cuda:4096""#);
    let answer = study.run(&[]).expect(3);
    for part in ["opening the device `cuda:4096`", "`cuda:4096` is not there", "found: cpu"] {
        assert!(answer.stderr.contains(part), "{part} in {}", answer.stderr);
    }
    study.assert_clean();
}

/// Another attempt, or the same study elsewhere, may find it: nothing of the failure is kept.
#[test]
fn what_lacks_a_device_is_tried_again() {
    if Study::finished().pipe(&["doctor", "study.toml"]).stdout.contains("cuda:0") {
        println!("SKIPPED there is a GPU");
        return;
    }
    let study = on(r#"device = "cuda:0""#);
    study.edit(r#"device = "cuda:0" }"#, "device = \"cuda:0\" }\nretry = { max = 1, backoff = \"0s\" }");
    let failed = study.run(&[]).expect(3);
    let retries = failed.events_of("retry");
    assert!(!retries.is_empty() && retries.iter().all(|event| event["class"] == "io"), "{retries:?}");
    let started = study.run(&[]).expect(3).started();
    assert!(started.iter().any(|node| EMBEDDED.contains(&node.as_str())), "{started:?}");
    study.edit("cuda:0", "cpu");
    assert!(study.run(&[]).expect(0).started().is_empty(), "results of the CPU stand");
}

#[test]
fn a_name_of_no_device_is_a_mistake_in_the_file() {
    let study = on(r#"device = "gpu""#);
    let answer = study.pipe(&["check", "study.toml"]).expect(2);
    assert!(
        answer.stderr.contains("`gpu` is no device") && answer.stderr.contains("cuda:0"),
        "{}",
        answer.stderr
    );
}
