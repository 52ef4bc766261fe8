//! Tests of the store as a whole. Each name is a sentence of the specification.

mod batch;
mod collect;
mod commit;
mod crash;
mod downloads;
mod fuzz;
mod lease;
mod read;
mod sources;
mod verify;

use std::path::Path;

use tempfile::TempDir;

use crate::{ActionKey, Committed, Durability, PartRecord, RecordMeta, StagedOutput, Staging, Store, Value};

/// A store in a folder of its own, without the user's cache.
fn store() -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    (folder, store)
}

fn open(folder: &Path) -> Store {
    Store::open_with_cache(&folder.join("store"), Durability::Rename, None).unwrap()
}

/// The key of the action number `n`.
fn action(n: i64) -> ActionKey {
    ActionKey {
        kind: "test".to_owned(),
        implementation: 1,
        schema_version: 1,
        params: Value::Table(
            [("n".to_owned(), Value::Integer(n)), ("f".to_owned(), Value::Float(1.0))].into(),
        ),
        inputs: vec![],
        shard: None,
        numerics: "none".to_owned(),
    }
}

/// Commits an artifact of these files under `key`, on port `out`.
fn try_commit(
    store: &Store,
    key: &ActionKey,
    files: &[(&str, &str)],
) -> Result<Committed, crate::StoreError> {
    staged(store, files)?.commit(key, &[tree()], RecordMeta::default())
}

/// Writes these files for port `out`.
fn staged(store: &Store, files: &[(&str, &str)]) -> Result<Staging, crate::StoreError> {
    let staging = store.stage()?;
    let folder = staging.output_folder("out")?;
    for (path, text) in files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Ok(staging)
}

fn commit(store: &Store, key: &ActionKey, files: &[(&str, &str)]) -> Committed {
    try_commit(store, key, files).unwrap()
}

fn tree() -> StagedOutput {
    StagedOutput { port: "out".to_owned(), artifact_type: "tree".to_owned(), parts: None }
}

fn table(parts: Vec<PartRecord>) -> StagedOutput {
    StagedOutput { port: "out".to_owned(), artifact_type: "table<x>".to_owned(), parts: Some(parts) }
}

/// Overwrites a read-only file.
fn damage(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Changes bytes behind the file system's back: its times stay.
fn rot(path: &Path, bytes: &[u8]) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    damage(path, bytes);
    std::fs::File::options().append(true).open(path).unwrap().set_modified(modified).unwrap();
}

/// The number of entries in a folder of the store.
fn count(store: &Store, folder: &str) -> usize {
    std::fs::read_dir(store.root().join(folder)).unwrap().count()
}
