//! Records that a plan will most likely ask for, read while the study is still being parsed: a key depends on the
//! results before it, so the plan itself can only ask for one after the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use pipe_cache::{Digest, Durability, Looked, Record, Store};

use crate::history::StoredPlan;

/// Fewer records are read as soon as they are asked for.
const LEAST: usize = 128;

/// How many runs are looked through for the last one of the study.
const RUNS: usize = 16;

/// Records by key. What is not in it has to be asked of the store.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    records: BTreeMap<Digest, Record>,
    looked: Looked,
}

/// Records that are being read.
#[derive(Debug)]
pub(crate) struct Reading(Option<JoinHandle<ReadAhead>>);

impl Reading {
    /// Begins to read what the last run of the study at `pipeline` with these profiles had.
    pub(crate) fn begin(store: &Path, pipeline: &Path, profiles: &[String]) -> Self {
        let (store, profiles) = (store.to_owned(), profiles.to_owned());
        let file = pipeline.file_name().map(PathBuf::from).unwrap_or_default();
        let thread = std::thread::Builder::new().name("read ahead".to_owned());
        Self(thread.spawn(move || read(&store, &file, &profiles).unwrap_or_default()).ok())
    }

    /// Waits for what is being read. A thread that panicked found nothing: the store is asked.
    pub(crate) fn finish(self) -> ReadAhead {
        self.0.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

fn read(store: &Path, file: &Path, profiles: &[String]) -> Option<ReadAhead> {
    let store = Store::open_existing(store, Durability::Full).ok()??;
    let runs = store.runs().ok()?;
    let plan = runs.iter().rev().take(RUNS).find_map(|run| {
        let plan = StoredPlan::read(&store, run)?;
        let is_same = plan.files.first().is_some_and(|(name, _)| Path::new(name) == file);
        (is_same && plan.profiles == profiles).then_some(plan)
    })?;
    if plan.nodes.len() < LEAST {
        return None;
    }
    let look = |key: &Digest| Some((*key, store.lookup(key).ok()??));
    let records = plan.nodes.values().filter_map(look).collect();
    Some(ReadAhead { records, looked: store.looked() })
}

impl ReadAhead {
    /// The record of a key, if it was found; the next time there is none.
    pub(crate) fn take(&mut self, key: &Digest) -> Option<Record> {
        self.records.remove(key)
    }

    /// How often the store was asked.
    pub(crate) fn looked(&self) -> Looked {
        self.looked
    }
}
