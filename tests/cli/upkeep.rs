//! Looking after a store: `verify`, `gc`, `pin`, and `diff` between runs.

use serde_json::Value as Json;

use crate::study::{SMALL_NODES, Study};

/// The nodes of the study, and the two parts of each `embedded`.
const RESULTS: &str = "13 results";

/// The ids of the runs, oldest first.
fn runs(study: &Study) -> Vec<String> {
    let log = study.json("log", &[]);
    let runs = log["runs"].as_array().expect("a list of runs");
    runs.iter().map(|run| run["run"].as_str().expect("an id").to_owned()).collect()
}

fn list(value: &Json) -> Vec<String> {
    value.as_array().expect("a list").iter().map(|one| one.as_str().expect("a string").to_owned()).collect()
}

/// Changes one byte of a stored file.
fn damage(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut bytes = std::fs::read(path).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("the mode can be set");
    std::fs::write(path, bytes).expect("it can be written");
}

#[test]
fn verify_tells_damage_and_repair_lets_the_next_run_mend_it() {
    let study = Study::finished();
    let sound = study.pipe(&["verify", "study.toml"]).expect(0);
    assert!(sound.stdout.contains(RESULTS) && sound.stdout.ends_with("all are sound\n"), "{}", sound.stdout);
    // The record of a part alone would not be made again, since its node has one. Both are asked for while all is
    // sound: what stands behind damage has no key.
    let key = study.json("show", &["initial"])["nodes"][0]["key"].as_str().expect("a key").to_owned();
    let shown = study.json("show", &["vocabulary"]);
    let blob =
        shown["nodes"][0]["outputs"]["tokenizer"]["files"][0]["blob"].as_str().expect("a digest").to_owned();
    damage(&study.path(".pipe/cas").join(&blob[..2]).join(&blob[2..]));
    let is_of = |name: &String| name.replace('/', "").starts_with(&key);
    let record = study.records().into_iter().find(is_of).expect("it has a record");
    damage(&study.path(".pipe/ac").join(record));
    let told = study.pipe(&["verify", "study.toml"]).expect(3);
    assert!(
        told.stdout.contains(&format!("damaged  blob {blob}: its content has the digest")),
        "{}",
        told.stdout
    );
    assert!(told.stdout.contains("its record cannot be read"), "{}", told.stdout);
    let told = study.json("verify", &[]);
    assert_eq!((list(&told["damaged_records"]).len(), &told["damaged_blobs"][0]["blob"]), (1, &blob.into()));
    assert_eq!(study.files(".pipe/quarantine").len(), 0, "looking changes nothing");
    // A part of it.
    study.pipe(&["verify", "study.toml", "vocabulary"]).expect(3);
    study.pipe(&["verify", "study.toml", "--repair"]).expect(0);
    study.pipe(&["verify", "study.toml"]).expect(0);
    assert!(!study.planned(&[]).is_empty());
    study.run(&[]).expect(0);
    assert!(study.pipe(&["verify", "study.toml"]).expect(0).stdout.contains(RESULTS));
    assert_eq!(study.planned(&[]), []);
}

#[test]
fn gc_says_what_goes_and_why_and_removes_it_only_when_asked() {
    let study = Study::finished();
    study.run(&["--set", "stage.trained.params.lr=2e-3"]).expect(0);
    // Both plans are roots; runs with nothing to do push neither out.
    for _ in 0..3 {
        study.run(&[]).expect(0);
    }
    let all = ["gc", "study.toml", "--grace", "0s", "--keep-runs", "2"];
    assert!(study.pipe(&all).expect(0).stdout.ends_with("nothing to remove\n"));
    // Young results stay in any case.
    let arguments = ["--keep-runs", "1"];
    let young = study.json("gc", &arguments);
    assert_eq!((&young["records"], &young["bytes"]), (&Json::Array(Vec::new()), &0.into()));
    let arguments = ["--keep-runs", "1", "--grace", "0s"];
    let dry = study.json("gc", &arguments);
    let nodes: Vec<&str> =
        dry["records"].as_array().expect("a list").iter().filter_map(|one| one["node"].as_str()).collect();
    // Parts have no name.
    assert_eq!(nodes.iter().filter(|node| !node.is_empty()).count(), 3, "{dry}");
    assert!(nodes.contains(&"small: trained"), "{nodes:?}");
    let before = study.files(".pipe/cas").len();
    let text = study.pipe(&[&["gc", "study.toml"], &arguments[..]].concat()).expect(0).stdout;
    assert!(text.contains("small: trained ") && text.contains("`--apply` does it"), "{text}");
    assert_eq!(study.files(".pipe/cas").len(), before, "a dry run removes nothing");
    let done = study.json("gc", &[&arguments[..], &["--apply"]].concat());
    // The three nodes, and the two parts of `embedded`.
    assert_eq!(done["removed"]["records"], 5);
    assert!(study.files(".pipe/cas").len() < before && !study.files(".pipe/trash").is_empty());
    // What is planned is there, what went can be made again.
    assert_eq!(study.planned(&[]), []);
    assert_eq!(study.run(&["--set", "stage.trained.params.lr=2e-3"]).expect(0).started().len(), 3);
    study.pipe(&["verify", "study.toml"]).expect(0);
    study.pipe(&["gc", "study.toml", "--grace", "1 week"]).expect(2);
    study.pipe(&["gc", "study.toml", "--max-size", "lots"]).expect(2);
    study.pipe(&["gc", "study.toml", "--now"]).expect(2);
}

#[test]
fn gc_keeps_what_is_pinned_and_explains_it() {
    let study = Study::finished();
    study.pipe(&["pin", "study.toml", "trained", "--name", "paper"]).expect(0);
    study.run(&["--set", "stage.trained.params.lr=2e-3"]).expect(0);
    let key = study.json("show", &["trained"])["nodes"][0]["key"].as_str().expect("a key").to_owned();
    let explained = study.pipe(&["gc", "study.toml", "--keep-runs", "1", "--explain", &key]).expect(0).stdout;
    assert_eq!(explained, "pin paper -> small: trained\n");
    let arguments = ["gc", "study.toml", "--grace", "0s", "--keep-runs", "1", "--apply", "--now"];
    study.pipe(&arguments).expect(0);
    let mut left: Vec<String> = study.planned(&[]).into_iter().map(|(node, _)| node).collect();
    left.sort();
    assert_eq!(left, ["embedded[model=trained]", "retrieved[model=trained]"], "the pinned one is kept");
    study.pipe(&["unpin", "study.toml", "paper"]).expect(0);
    let unknown = study.pipe(&["unpin", "study.toml", "paper"]).expect(2);
    assert!(unknown.stderr.contains("there is no pin `paper`"), "{}", unknown.stderr);
    let nothing = study.pipe(&["gc", "study.toml", "--keep-runs", "1", "--explain", &key]).expect(0).stdout;
    assert!(nothing.starts_with("no root keeps"), "{nothing}");
    // What has no result cannot be pinned, and a name is a plain name.
    let unmade = study.pipe(&["pin", "study.toml", "--set", "stage.trained.params.lr=9e-3"]).expect(2);
    assert!(unmade.stderr.contains("no result yet of trained"), "{}", unmade.stderr);
    study.pipe(&["pin", "study.toml", "pairs", "--name", "../x"]).expect(2);
}

#[test]
fn diff_tells_what_differs_between_two_runs() {
    let study = Study::finished();
    study.run(&["--set", "stage.trained.params.lr=2e-3"]).expect(0);
    let runs = runs(&study);
    assert_eq!(runs.len(), 2);
    let text = study.pipe(&["diff", "study.toml", &runs[0], "last"]).expect(0).stdout;
    assert!(text.contains(" changed  trained\n          param `lr` 0.001 -> 0.002\n"), "{text}");
    assert!(text.contains("          input `checkpoint` changed\n"), "{text}");
    assert!(text.contains("          output `checkpoint` differs\n"), "{text}");
    assert!(text.ends_with(&format!("3 nodes differ, {} are equal\n", SMALL_NODES - 3)), "{text}");
    study.pipe(&["diff", "study.toml", &runs[0], &runs[1], "--exit-code"]).expect(6);
    study.pipe(&["diff", "study.toml", &runs[0], &runs[0], "--exit-code"]).expect(0);
    let json = study.json("diff", &[&runs[0], &runs[1]]);
    assert_eq!((&json["version"], &json["nodes"][0]["change"]), (&1.into(), &"changed".into()));
    // The figures of what was measured, old and new.
    study.run(&["--set", "stage.trained.params.lr=0.5"]).expect(0);
    let json = study.json("diff", &[&runs[0], "last"]);
    let nodes = json["nodes"].as_array().expect("a list");
    let retrieved = nodes.iter().find(|node| node["node"] == "retrieved[model=trained]").expect("it differs");
    let figures = retrieved["figures"].as_array().expect("a list");
    let one = figures.iter().find(|one| one["old"].is_number() && one["new"].is_number()).expect("a figure");
    assert!(one["old"] != one["new"] && one["output"] == "metrics", "{one}");
    let name = one["figure"].as_str().expect("a name");
    assert!(name.contains("[split=test"), "{name}");
    let text = study.pipe(&["diff", "study.toml", &runs[0], "last"]).expect(0).stdout;
    let (old, new) = (one["old"].as_f64().expect("a number"), one["new"].as_f64().expect("a number"));
    assert!(text.contains(&format!("            {name}: {old:.4} -> {new:.4} (")), "{text}");
    let unknown = study.pipe(&["diff", "study.toml", "nothing", "last"]).expect(2);
    assert!(unknown.stderr.contains("`nothing` is no run"), "{}", unknown.stderr);
}
