//! Commits that go to the disk together: one flush for all actions that finish within a tenth of a second.
//!
//! Flushing file by file costs an action about ten waits for the disk, which is nothing after an hour of
//! training and everything after a millisecond of joining tables. A commit that may wait is visible to its
//! own process at once. A thread then flushes the whole file system and only after that links the records,
//! so after a power loss no record stands without its blobs, and a kill costs the last moments of work.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Digest;
use crate::lease::Lease;
use crate::record::Record;
use crate::staging::{CommitOutcome, Staging};
use crate::store::{Store, StoreError};

/// How long a commit waits for others.
const PERIOD: Duration = Duration::from_millis(100);

/// The commits of one process that wait.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    state: Mutex<State>,
    /// Something was asked for, or a thread has ended.
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What waits: its staging holds the record, its blobs are linked.
    queue: Vec<(Staging, Record)>,
    /// Records that this process counts on and that are not linked yet.
    records: BTreeMap<Digest, Record>,
    /// Leases that are released when the record of their key is linked.
    leases: BTreeMap<Digest, Lease>,
    /// Whether a thread writes batches.
    active: bool,
    /// The thread that does, or the last that did.
    thread: Option<JoinHandle<()>>,
    /// Whether someone waits for the end.
    hurry: bool,
    /// Whether records were linked since the last flush.
    unflushed: bool,
    /// Commits that ended otherwise than they promised.
    late: Vec<(Digest, Result<CommitOutcome, StoreError>)>,
}

impl Batch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record that waits.
    pub(crate) fn record(&self, key: &Digest) -> Option<Record> {
        self.state().records.get(key).cloned()
    }
}

impl Store {
    /// Lets a commit wait for the next flush.
    pub(crate) fn enqueue(&self, staging: Staging, record: Record) {
        let mut state = self.shared.batch.state();
        state.records.insert(record.key, record.clone());
        state.queue.push((staging, record));
        if state.active {
            return;
        }
        state.active = true;
        drop(state);
        let store = self.clone();
        let thread = std::thread::Builder::new().name("commits".to_owned());
        match thread.spawn(move || store.write_batches()) {
            Ok(thread) => self.shared.batch.state().thread = Some(thread),
            Err(_) => self.write_batches(),
        }
    }

    /// Releases a lease, once the commit of its key that may still wait is done: until then other
    /// processes have to see that someone works on it.
    pub fn release(&self, lease: Lease) {
        let mut state = self.shared.batch.state();
        if state.records.contains_key(&lease.key()) {
            state.leases.insert(lease.key(), lease);
        }
        // Otherwise it is dropped here, after the lock.
    }

    /// Waits until every commit is on the disk. Returns those that did not end as they promised: with an
    /// error, or because another process was first and its record stands.
    pub fn flush(&self) -> Vec<(Digest, Result<CommitOutcome, StoreError>)> {
        let batch = &self.shared.batch;
        let mut state = batch.state();
        state.hurry = true;
        batch.wake.notify_all();
        while state.active {
            state = batch.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.hurry = false;
        let mut late = std::mem::take(&mut state.late);
        let unflushed = std::mem::take(&mut state.unflushed);
        let thread = state.thread.take();
        drop(state);
        // It holds a handle of this store, which the last to go tidies up.
        let _ = thread.map(JoinHandle::join);
        if unflushed && let Err(error) = self.shared.disk.sync_all(self.root()) {
            // The names of the last records may be lost with the power; nobody else can tell which.
            late.push((Digest::of(b""), Err(error.into())));
        }
        late
    }

    fn write_batches(&self) {
        let batch = &self.shared.batch;
        loop {
            let waited = batch.wake.wait_timeout_while(batch.state(), PERIOD, |state| !state.hurry);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let queue = std::mem::take(&mut state.queue);
            if queue.is_empty() {
                state.active = false;
                batch.wake.notify_all();
                return;
            }
            drop(state);
            let flushed = self.shared.disk.sync_all(self.root()).map_err(|error| error.to_string());
            for (mut staging, record) in queue {
                let key = record.key;
                let outcome = match &flushed {
                    Ok(()) => staging.link_record(record).map(|committed| committed.outcome),
                    Err(reason) => Err(StoreError::Flush(reason.clone())),
                };
                let mut state = batch.state();
                state.records.remove(&key);
                let lease = state.leases.remove(&key);
                state.unflushed = true;
                if !matches!(outcome, Ok(CommitOutcome::Created | CommitOutcome::Equal)) {
                    state.late.push((key, outcome));
                }
                drop(state);
                drop(lease);
            }
        }
    }
}
