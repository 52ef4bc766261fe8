//! Publishes results while a run goes on: who waits for days for the last of them reads the first meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use pipe_cache::{Digest, Record, Store};

use crate::pipeline::{NodeId, Pipeline};
use crate::publish::{self, Publishing};

/// How often results are published. Most runs end sooner, and publish then.
pub(crate) const EVERY: Duration = Duration::from_secs(30);

/// So many times as long as publishing took is waited for before the next time.
const PAUSES: u32 = 20;

/// Where results go, and how often.
pub(crate) struct Interim<'a> {
    pub(crate) store: &'a Store,
    pub(crate) results: &'a Path,
    pub(crate) pipeline: &'a Pipeline,
    /// Whether files may be second names of the store's.
    pub(crate) hard_links: bool,
    pub(crate) every: Duration,
}

impl Interim<'_> {
    /// Publishes what is `known` by its key from the beginning, and what is `done` as it comes, until nothing more can.
    /// The end of a run publishes everything once more, so what cannot be published now is told then.
    pub(crate) fn publish(&self, known: Vec<(NodeId, Digest)>, done: Receiver<(NodeId, Record)>) {
        let mut known = Some(known);
        let mut waiting: BTreeMap<NodeId, Record> = BTreeMap::new();
        let mut due = Instant::now() + self.every;
        loop {
            match done.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok((id, record)) => _ = waiting.insert(id, record),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let began = Instant::now();
            if began < due {
                continue;
            }
            for (id, key) in known.take().into_iter().flatten() {
                if let Ok(Some(record)) = self.store.lookup(&key) {
                    waiting.entry(id).or_insert(record);
                }
            }
            if !waiting.is_empty() {
                let records = (0..self.pipeline.nodes.len()).map(|index| waiting.get(&NodeId(index)));
                let how = Publishing { complete: false, hard_links: self.hard_links };
                // Files that are not there are no damage here.
                let evicted = waiting.keys().copied().collect();
                let _ = publish::publish(self.store, self.results, self.pipeline, records, &evicted, how);
                waiting.clear();
            }
            due = Instant::now() + self.every.max(began.elapsed() * PAUSES);
        }
    }
}
