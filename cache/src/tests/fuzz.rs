//! Damaged files of a store: whatever they hold, they are read as what they are or as nothing.

use pipe_fuzz::fuzz;

use super::*;
use crate::owner::Owner;
use crate::{Digest, LeaseInfo, Record};

/// Records of a real store, as texts.
fn records() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with_cache(folder.path(), Durability::Rename, None).unwrap();
    ["one", "two"]
        .iter()
        .map(|name| {
            let staging = store.stage().unwrap();
            std::fs::write(staging.output_folder("out").unwrap().join(format!("{name}.txt")), name).unwrap();
            let output =
                StagedOutput { port: "out".to_owned(), artifact_type: "tree".to_owned(), parts: None };
            let key = ActionKey {
                kind: (*name).to_owned(),
                implementation: 1,
                schema_version: 1,
                params: crate::Value::string(*name),
                inputs: Vec::new(),
                shard: Some(Digest::of(b"rows")),
                numerics: "none".to_owned(),
            };
            let committed = staging.commit(&key, &[output], RecordMeta::default()).unwrap();
            committed.record.to_text().into_bytes()
        })
        .collect()
}

#[test]
fn fuzz_records() {
    let seeds = records();
    let words: [&[u8]; 6] = [b"\"files\":[[", b"\"parts\":", b"../", b"\"shards\": ", b",\n", b"null"];
    fuzz("records", &seeds, &words, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        for record in
            [Record::from_text(text), Record::from_text(&crate::record::reseal(text))].into_iter().flatten()
        {
            // What is read is whole: it names no place outside its folder, and writes back to the same facts.
            for file in record.outputs.values().flat_map(|output| &output.files) {
                assert!(crate::fs::is_plain_relative(&file.path), "{}", file.path);
            }
            let again = Record::from_text(&record.to_text()).expect("what was read can be written");
            assert_eq!(again.outputs, record.outputs);
            let _ = record.components();
        }
    });
}

#[test]
fn fuzz_leases() {
    let info = LeaseInfo {
        nonce: "n".to_owned(),
        run: "r".to_owned(),
        owner: Owner::current(),
        since: "2026-01-01T00:00:00Z".to_owned(),
        heartbeat_seconds: 20,
    };
    let seeds = [serde_json::to_vec(&info).unwrap()];
    let me = Owner::current();
    fuzz("leases", &seeds, &[b"null", b"\"pid\":"], |bytes| {
        if let Ok(info) = serde_json::from_slice::<LeaseInfo>(bytes) {
            let _ = info.owner.is_dead(&me, std::time::Duration::from_secs(1));
        }
    });
}
