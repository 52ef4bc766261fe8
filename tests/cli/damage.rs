//! Damaged blobs and records: found when they are read, made again, and the run succeeds.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value as Json;

use crate::study::Study;

/// Changes a file of the store as no program would.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("it is there");
    change(&mut bytes);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("the mode can be set");
    std::fs::write(path, bytes).expect("it can be written");
}

/// The blob of the only file of a port.
fn blob(study: &Study, node: &str, port: &str) -> std::path::PathBuf {
    let shown = study.json("show", &[node]);
    let digest =
        shown["nodes"][0]["outputs"][port]["files"][0]["blob"].as_str().expect("a digest").to_owned();
    study.path(".pipe/cas").join(&digest[..2]).join(&digest[2..])
}

#[test]
fn a_flipped_bit_in_a_blob_is_repaired_when_it_is_read() {
    let study = Study::finished();
    let path = blob(&study, "vocabulary", "tokenizer");
    let sound = std::fs::read(&path).expect("it is there");
    let written = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("it has a time");
    damage(&path, |bytes| bytes[100] ^= 4);
    // As the disk does it: nothing shows the change.
    let file = std::fs::File::options().append(true).open(&path).expect("it can be opened");
    file.set_modified(written).expect("the time can be set");
    assert_eq!(study.planned(&[]), []);
    // Reads the tokeniser.
    let answer = study.run(&["--set", "stage.initial.params.seed=5", "initial"]).expect(0);
    assert_eq!(answer.started(), ["initial", "vocabulary"]);
    let corruption = &answer.events_of("corruption")[0];
    assert_eq!(corruption["subject"], "vocabulary");
    assert!(std::fs::read(&path).expect("it is back") == sound);
    assert_eq!(study.files(".pipe/quarantine").len(), 1, "the damaged bytes are kept aside");
    let answer = study.pipe(&["run", "study.toml"]).expect(0);
    assert!(!answer.stderr.contains("corruption"), "{}", answer.stderr);
}

/// Damage that shows in the state of the file is found without a reader.
#[test]
fn a_missing_or_shortened_blob_is_made_again() {
    let study = Study::finished();
    let (missing, short) =
        (blob(&study, "vocabulary", "tokenizer"), blob(&study, "retrieved[model=initial]", "metrics"));
    std::fs::remove_file(missing).expect("it is there");
    damage(&short, |bytes| bytes.truncate(10));
    let why = study.pipe(&["why", "study.toml", "vocabulary"]).expect(0);
    assert!(why.stdout.contains("its outputs are missing or damaged"), "{}", why.stdout);
    let answer = study.run(&[]).expect(0);
    assert_eq!(answer.started(), ["retrieved[model=initial]", "vocabulary"]);
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
}

/// A published copy is never made of damaged bytes.
#[test]
fn a_damaged_result_is_not_published() {
    let study = Study::finished();
    let published = "results/small/retrieved/metrics/model=initial/part-00000.parquet";
    let sound = std::fs::read(study.path(published)).expect("it is there");
    damage(&blob(&study, "retrieved[model=initial]", "metrics"), |bytes| bytes[20] ^= 1);
    std::fs::remove_file(study.path(published)).expect("it is there");
    let answer = study.run(&[]).expect(0);
    assert_eq!(answer.started(), ["retrieved[model=initial]"]);
    assert!(std::fs::read(study.path(published)).expect("it is back") == sound);
}

#[test]
fn damaged_records_are_misses() {
    let study = Study::finished();
    let before = study.records();
    for (index, name) in before.iter().enumerate() {
        let path = study.path(".pipe/ac").join(name);
        match index % 4 {
            0 => damage(&path, |bytes| bytes[40] ^= 1),
            1 => damage(&path, |bytes| bytes.truncate(50)),
            2 => damage(&path, Vec::clear),
            _ => damage(&path, |bytes| *bytes = b"{\"format\":1}".to_vec()),
        }
    }
    let answer = study.run(&[]).expect(0);
    // Nodes, and parts of row-wise nodes.
    assert_eq!(answer.events_of("action_started").len(), before.len());
    assert_eq!(study.records(), before);
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
}

/// Random flips anywhere in blobs and records; afterwards every result is what it was.
#[test]
fn random_bit_flips_are_repaired() {
    let study = Study::finished();
    let digests = |study: &Study| -> Vec<Json> {
        let shown = study.json("show", &[]);
        shown["nodes"].as_array().expect("nodes").iter().map(|node| node["outputs"].clone()).collect()
    };
    let before = digests(&study);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for folder in [".pipe/cas", ".pipe/ac"] {
        for (name, content) in study.files(folder) {
            if next() % 3 == 0 && !content.is_empty() {
                let (byte, bit) = (next() % content.len(), next() % 8);
                damage(&study.path(folder).join(name), |bytes| bytes[byte] ^= 1 << bit);
            }
        }
    }
    // Writing changed the times of the files, so a plan finds them all.
    study.run(&[]).expect(0);
    assert_eq!(digests(&study), before);
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    for (name, content) in study.files(".pipe/cas") {
        assert_eq!(
            pipe_cache::Digest::of(&content).to_hex(),
            name.replace('/', ""),
            "every blob is sound again"
        );
    }
}
