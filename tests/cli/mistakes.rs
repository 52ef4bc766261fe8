//! Mistakes in the pipeline file: all of them at once, each with its place, and nothing runs.

use crate::study::{SMALL, Study};

/// Five mistakes: (code, line, column, marked text, help).
const MISTAKES: [(&str, u64, u64, &str, &str); 5] = [
    ("E002", 10, 8, "\"ingest.phantm\"", "did you mean `ingest.phantom`?"),
    ("E002", 15, 25, "vocab_sise", "did you mean `vocab_size`?"),
    ("E003", 20, 29, "\"random \"", "did you mean `random`?"),
    ("E004", 24, 48, "\"pears.captions\"", "did you mean `pairs`?"),
    ("E003", 25, 39, "true", "default is 0.001"),
];

const WRONG: &str = r#"[pipeline]
name = "wrong"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = { seed = 3, train = 24 }

[stage.more]
kind = "ingest.phantm"

[stage.vocabulary]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { splits = [], vocab_sise = 512 }

[stage.initial]
kind = "checkpoint"
inputs = { tokenizer = "vocabulary" }
params = { seed = 1, init = "random ", patch = 7, image_size = 28 }

[stage.trained]
kind = "finetune.contrastive"
inputs = { images = "pairs.images", captions = "pears.captions", checkpoint = "initial" }
params = { epochs = 2, seed = 1, lr = true }
"#;

#[test]
fn five_mistakes_have_five_places() {
    let study = Study::new(WRONG);
    let lines: Vec<&str> = WRONG.lines().collect();
    for command in [&["check", "study.toml"][..], &["run", "study.toml"], &["plan", "study.toml"]] {
        let answer = study.pipe(command).expect(2);
        assert_eq!(answer.stdout, "", "{command:?}");
        for (code, line, column, marked, help) in MISTAKES {
            let (line, column) = (line as usize, column as usize);
            assert!(lines[line - 1][column - 1..].starts_with(marked), "{marked} is at {line}:{column}");
            let title = format!("error[{code}]");
            let place = format!("study.toml:{line}:{column}\n");
            assert!(answer.stderr.contains(&title), "{title}:\n{}", answer.stderr);
            assert!(answer.stderr.contains(&place), "{place}:\n{}", answer.stderr);
            assert!(answer.stderr.contains(help), "{help}:\n{}", answer.stderr);
            assert!(answer.stderr.contains(lines[line - 1]), "the line is shown:\n{}", answer.stderr);
        }
        assert!(answer.stderr.ends_with("5 errors, 0 warnings\n"), "{}", answer.stderr);
    }
    assert!(!study.path(".pipe").exists() && !study.path("results").exists(), "nothing was made");
}

#[test]
fn machines_read_the_same_five() {
    let study = Study::new(WRONG);
    study.pipe(&["check", "study.toml", "--json"]).expect(2);
    let check = study.json("check", &[]);
    assert_eq!(check["version"], 1);
    let found = check["diagnostics"].as_array().expect("a list");
    assert_eq!(found.len(), MISTAKES.len());
    for (one, (code, line, column, marked, help)) in found.iter().zip(MISTAKES) {
        assert_eq!((&one["code"], &one["severity"]), (&code.into(), &"error".into()));
        assert_eq!(one["file"], "study.toml");
        assert_eq!(one["start"], serde_json::json!({ "line": line, "column": column }));
        let end = column + marked.chars().count() as u64;
        assert_eq!(one["end"], serde_json::json!({ "line": line, "column": end }));
        let helps = one["help"].as_array().expect("a list").iter();
        assert!(helps.filter_map(|text| text.as_str()).any(|text| text.contains(help)), "{one}");
    }
    // The other commands print the same object.
    assert_eq!(study.json("plan", &[]), check);
    assert_eq!(study.json("run", &[]), check);
}

#[test]
fn check_reads_no_source_and_counts() {
    let study = Study::new(SMALL);
    let answer = study.pipe(&["check", "study.toml"]).expect(0);
    assert_eq!(answer.stdout, "study.toml: 7 stages, 9 nodes, no mistakes\n");
    assert_eq!(answer.stderr, "");
    study.edit("params = { vocab_size", "inputs.extra = \"file:nowhere\"\nparams = { vocab_size");
    study.pipe(&["check", "study.toml"]).expect(2);
    let study = Study::new(
        "[pipeline]\nname = \"t\"\nformat = 1\n[stage.m]\nkind = \"checkpoint\"\ninputs = { source = \"file:nowhere\" }\n",
    );
    study.pipe(&["check", "study.toml"]).expect(0);
}

#[test]
fn warnings_do_not_stop_a_run() {
    let study = Study::new(&format!("{SMALL}\n[profile.unused]\nvars = {{ nothing = 1 }}\n"));
    let answer = study.pipe(&["run", "study.toml", "shapes"]).expect(0);
    assert!(answer.stderr.contains("warning[W101]"), "{}", answer.stderr);
    assert_eq!(study.json("check", &[])["diagnostics"][0]["severity"], "warning");
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_a_mistake() {
    let study = Study::new(SMALL);
    let missing = study.pipe(&["run", "studi.toml"]).expect(2);
    assert!(missing.stderr.contains("cannot read `studi.toml`"), "{}", missing.stderr);
    study.write_file("study.toml", [0xff, 0xfe, 0x00]);
    let binary = study.pipe(&["run", "study.toml"]).expect(2);
    assert!(binary.stderr.contains("it is not UTF-8 text"), "{}", binary.stderr);
}

#[test]
fn wrong_usage_is_explained() {
    let study = Study::new(SMALL);
    for arguments in
        [&["rum", "study.toml"][..], &["run"], &["run", "study.toml", "--job", "3"], &["why", "study.toml"]]
    {
        let answer = study.pipe(arguments).expect(2);
        assert!(answer.stderr.contains("Usage:") || answer.stderr.contains("tip:"), "{}", answer.stderr);
        assert_eq!(answer.stdout, "");
    }
    let help = study.pipe(&["--help"]).expect(0);
    for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "75 ", "130 "] {
        assert!(help.stdout.contains(&format!("\n  {code}")), "{code}: {}", help.stdout);
    }
}
