//! Sources that never change: looked at once, and then when a person asks.

use crate::study::Study;

const TEXT: &str = r#"[pipeline]
name = "frozen"
format = 1

[stage.copy]
kind = "command"
inputs = { data = "file:data" }
frozen = ["file:data"]
params = { argv = ["sh", "-c", "cat in/data/* > all.txt"], outputs = ["all.txt"] }
"#;

fn study() -> Study {
    let study = Study::new(TEXT);
    study.write_file("data/a.txt", "one\n");
    study.write_file("data/b.txt", "two\n");
    study
}

fn all(study: &Study) -> String {
    std::fs::read_to_string(study.path("results/frozen/copy/out/all.txt")).expect("it was published")
}

#[test]
fn a_frozen_source_is_trusted_until_it_is_verified() {
    let study = study();
    study.run(&[]).expect(0);
    assert_eq!(all(&study), "one\ntwo\n");
    study.pipe(&["verify", "study.toml", "--sources"]).expect(0);
    // Nobody looks, even at a file that is not there any more.
    study.write_file("data/a.txt", "other\n");
    std::fs::remove_file(study.path("data/b.txt")).expect("it is there");
    study.write_file("data/c.txt", "three\n");
    assert_eq!(study.planned(&[]), []);
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    // An action that reads it after all fails instead of storing something else under this key.
    let forced = study.pipe(&["run", "study.toml", "--force", "copy"]).expect(4);
    assert!(forced.stderr.contains("`file:data` is frozen"), "{}", forced.stderr);
    assert!(forced.stderr.contains("pipe verify --sources --repair"), "{}", forced.stderr);
    // Verification tells what is different.
    let told = study.pipe(&["verify", "study.toml", "--sources"]).expect(4);
    for line in [
        "changed  file:data: `a.txt` has another content",
        "changed  file:data: `b.txt` is gone",
        "changed  file:data: `c.txt` is new",
    ] {
        assert!(told.stdout.contains(line), "{line}: {}", told.stdout);
    }
    let told = study.json("verify", &["--sources"]);
    let source = &told["sources"][0];
    assert_eq!((&source["source"], &source["frozen"]), (&"file:data".into(), &true.into()));
    assert_eq!(source["changes"][2], serde_json::json!({ "path": "c.txt", "change": "is new" }));
    assert_eq!(study.planned(&[]), [], "looking changes nothing");
    study.pipe(&["verify", "study.toml", "--sources", "--repair"]).expect(0);
    assert_eq!(study.run(&[]).expect(0).started(), ["copy"]);
    assert_eq!(all(&study), "other\nthree\n");
    study.pipe(&["verify", "study.toml", "--sources"]).expect(0);
}

#[test]
fn a_source_that_is_not_frozen_everywhere_is_looked_at() {
    let study = study();
    study.write(&format!(
        "{TEXT}\n[stage.other]\nkind = \"command\"\ninputs = {{ data = \"file:data\" }}\n\
         params = {{ argv = [\"sh\", \"-c\", \"cat in/data/* > out.txt\"], outputs = [\"out.txt\"] }}\n"
    ));
    study.run(&[]).expect(0);
    study.write_file("data/a.txt", "other\n");
    assert_eq!(study.run(&[]).expect(0).started(), ["copy", "other"]);
}

#[test]
fn a_source_that_is_gone_is_told() {
    let study = study();
    study.run(&[]).expect(0);
    std::fs::remove_dir_all(study.path("data")).expect("it is there");
    assert_eq!(study.planned(&[]), []);
    let told = study.pipe(&["verify", "study.toml", "--sources"]).expect(4);
    assert!(told.stdout.contains("missing  file:data: there is no such file or folder"), "{}", told.stdout);
    study.pipe(&["verify", "study.toml", "--sources", "--repair"]).expect(4);
    study.pipe(&["verify", "--sources"]).expect(2);
}

/// The records of frozen sources, of which there is one here.
fn record(study: &Study) -> std::path::PathBuf {
    let mut folders = vec![study.path("cache")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("it is a folder") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if folder.ends_with("frozen") {
                return path;
            }
        }
    }
    panic!("no source is recorded")
}

/// What was read before the tear is no record: nothing of it is gone or new.
#[test]
fn a_torn_record_is_none() {
    let study = study();
    study.run(&[]).expect(0);
    let path = record(&study);
    let whole = std::fs::read(&path).expect("it can be read");
    let lines = whole.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::len);
    let starts: Vec<usize> =
        lines.scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect();
    assert_eq!(starts.len(), 4, "a header, two files, a digest");
    // Before and within each line, and with files that are not the recorded ones.
    let tears = starts.iter().flat_map(|start| [*start, start + 5]).chain([whole.len() - 2]);
    for tear in tears {
        for text in ["one\n", "other\n"] {
            study.write_file("data/a.txt", text);
            std::fs::write(&path, &whole[..tear]).expect("it can be written");
            let told = study.json("verify", &["--sources"]);
            let source = &told["sources"][0];
            assert_eq!(source["changes"], serde_json::json!([]), "{tear} of {} bytes: {told}", whole.len());
            assert!(source["missing"].is_null(), "{told}");
        }
    }
    // The whole one is held against what is there.
    std::fs::write(&path, &whole).expect("it can be written");
    let told = study.pipe(&["verify", "study.toml", "--sources"]).expect(4);
    assert!(told.stdout.contains("changed  file:data: `a.txt` has another content"), "{}", told.stdout);
}
