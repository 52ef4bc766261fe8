//! Records that a plan will most likely ask for, read by several threads before it asks: a key depends on the
//! results before it, so the plan itself can only ask for one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;

use pipe_cache::{Digest, Record, Store};

/// Fewer records are read sooner than threads are started.
const LEAST: usize = 128;

/// More threads than this wait for the file system alone.
const MOST_THREADS: usize = 8;

/// Records by key. What is not in it has to be asked of the store.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    records: BTreeMap<Digest, Record>,
}

impl ReadAhead {
    /// Looks `keys` up. A key without a record, or one that cannot be read, is left out.
    pub(crate) fn of(store: &Store, keys: impl Iterator<Item = Digest>) -> Self {
        let keys: Vec<Digest> = keys.collect::<BTreeSet<_>>().into_iter().collect();
        if keys.len() < LEAST {
            return Self::default();
        }
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
        let records = std::thread::scope(|scope| {
            let look = |keys: &[Digest]| -> Vec<(Digest, Record)> {
                keys.iter().filter_map(|key| Some((*key, store.lookup(key).ok()??))).collect()
            };
            let (own, others) = keys.split_at(keys.len() / threads);
            let others: Vec<_> = others
                .chunks(keys.len().div_ceil(threads))
                .map(|keys| scope.spawn(move || look(keys)))
                .collect();
            let mut records: BTreeMap<Digest, Record> = look(own).into_iter().collect();
            for thread in others {
                // A thread that panicked found nothing: the store is asked again.
                records.extend(thread.join().unwrap_or_default());
            }
            records
        });
        Self { records }
    }

    /// The record of a key, if it was found; the next time there is none.
    pub(crate) fn take(&mut self, key: &Digest) -> Option<Record> {
        self.records.remove(key)
    }
}
