//! The results of a store, kept on object storage too: what one machine has made, others need not make again.
//!
//! | object | holds |
//! |---|---|
//! | `v1/cas/ab/<digest>` | a blob, under its digest |
//! | `v1/ac/ab/<key>` | a record, under the key of its action: the same text as in the store |
//! | `v1/alt/<key>/<digest>` | a record that came too late with other outputs |
//! | `v1/uploads/<digest>/...` | that a blob is being sent in parts, and the id of that upload |
//! | `v1/probe/...` | what shows how the server keeps its promises; removed at once |
//!
//! A record is written after its blobs, and every blob is verified when it comes down, so what stands there can be
//! cut off, damaged or emptied at any time: that costs time, never a result. And nothing here fails a run: a
//! [`Mirror`] that does not answer is off from then on, and says so once.
//!
//! The crate is synchronous to its callers. The requests run on threads of its own.

#![forbid(unsafe_code)]

mod collect;
mod credentials;
mod download;
mod objects;
mod parts;
mod place;
mod probe;
#[cfg(test)]
mod tests;
mod upload;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pipe_cache::{Digest, Record, Store};

pub use collect::{RemoteGarbage, RemoteLimits};
pub use place::{Place, PlaceError};
pub use upload::{Blobs, Uploaded};

use objects::Objects;
use upload::Uploads;

/// What a mirror is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// What stands there is used.
    #[default]
    Read,
    /// What is made here is put there too.
    ReadWrite,
}

/// A mirror that is open. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    objects: Objects,
    mode: Mode,
    /// Where the requests run, and what ends with the last handle.
    threads: tokio::runtime::Handle,
    runtime: Option<tokio::runtime::Runtime>,
    is_off: AtomicBool,
    /// Why it is off, until somebody has asked for it.
    reason: Mutex<Option<String>>,
    /// Blobs that were found damaged or missing, and the keys whose records named them: what is sent of them replaces
    /// what stands there.
    damaged: Mutex<BTreeSet<Digest>>,
    broken: Mutex<BTreeSet<Digest>>,
    uploads: Mutex<Option<Uploads>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The last handle may be that of a task of its own, which must not wait for the others.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Mirror {
    /// Opens the mirror at `place`. Whether it answers shows with the first question.
    ///
    /// # Errors
    /// If the address or the credentials cannot be read, or no thread can be started.
    pub fn open(place: &Place, mode: Mode) -> Result<Self, PlaceError> {
        let objects = place.objects()?;
        Self::with_objects(objects, mode)
    }

    fn with_objects(objects: Objects, mode: Mode) -> Result<Self, PlaceError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("mirror")
            .enable_all()
            .build()
            .map_err(PlaceError::Threads)?;
        let shared = Shared {
            objects,
            mode,
            threads: runtime.handle().clone(),
            runtime: Some(runtime),
            is_off: AtomicBool::new(false),
            reason: Mutex::default(),
            damaged: Mutex::default(),
            broken: Mutex::default(),
            uploads: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether what is made here is put there.
    pub fn is_writable(&self) -> bool {
        self.shared.mode == Mode::ReadWrite
    }

    /// Why the mirror is not used any more; told once.
    pub fn why_off(&self) -> Option<String> {
        self.shared.reason.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it is used.
    pub fn is_on(&self) -> bool {
        !self.shared.is_off.load(Ordering::Relaxed)
    }

    /// Brings the result of `key` into the store, with all its files, if it is there and whole, and gives its record. What
    /// is in the store already is not fetched again, and a record that stands there stays.
    pub fn bring(&self, key: &Digest, store: &Store) -> Option<Record> {
        let shared = &self.shared;
        if !self.is_on() {
            return None;
        }
        let record = shared.threads.block_on(async {
            let record = download::record(shared, key).await?;
            download::files(shared, &record, store).await.then_some(record)
        })?;
        match store.adopt(&record) {
            Ok(committed) => Some(committed.record),
            Err(error) => {
                shared.turn_off(download::not_stored(&error));
                None
            }
        }
    }

    /// Brings the record of `key` alone: its files come when somebody reads them, by [`Mirror::bring`]. Where they are in the
    /// store already it is as if they had come.
    pub fn bring_record(&self, key: &Digest, store: &Store) -> Option<Record> {
        let shared = &self.shared;
        if !self.is_on() {
            return None;
        }
        let record = shared.threads.block_on(download::record(shared, key))?;
        let mut files = record.outputs.values().flat_map(|output| &output.files);
        let taken = if files.all(|file| store.has_blob(&file.blob, file.bytes)) {
            store.adopt(&record).map(|committed| committed.record)
        } else {
            store.adopt_without_files(&record)
        };
        taken.map_err(|error| shared.turn_off(download::not_stored(&error))).ok()
    }

    /// Puts a record and what `blobs` says of its files there, in the background.
    pub fn send(&self, record: Record, blobs: Blobs, store: &Store) {
        if self.is_on() && self.is_writable() {
            let mut uploads = self.shared.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            let uploads = uploads.get_or_insert_with(|| Uploads::start(&self.shared));
            uploads.send(record, blobs, store.clone());
        }
    }

    /// Waits until everything is there that was sent, or `is_cancelled` says that nobody waits; `progress` is told
    /// how much of it is.
    pub fn finish(&self, is_cancelled: impl Fn() -> bool, progress: impl FnMut(u64, u64)) -> Uploaded {
        let uploads = self.shared.uploads.lock().unwrap_or_else(PoisonError::into_inner).take();
        match uploads {
            Some(uploads) => uploads.finish(&self.shared, is_cancelled, progress),
            None => Uploaded::default(),
        }
    }

    /// What nothing needs there, by the records that stand there.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn garbage(&self, limits: &RemoteLimits) -> Result<RemoteGarbage, String> {
        self.shared.threads.block_on(collect::garbage(&self.shared.objects, limits))
    }

    /// Removes it: records first.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn collect(&self, garbage: &RemoteGarbage) -> Result<(), String> {
        self.shared.threads.block_on(collect::remove(&self.shared.objects, garbage))
    }
}

impl Shared {
    fn turn_off(&self, reason: String) {
        if !self.is_off.swap(true, Ordering::Relaxed) {
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        }
    }

    /// What an answer says; no answer turns the mirror off.
    fn answered<T>(&self, answer: Result<T, objects::Refusal>) -> Option<T> {
        match answer {
            Ok(value) => Some(value),
            Err(objects::Refusal::Missing | objects::Refusal::Exists | objects::Refusal::Changed) => None,
            Err(objects::Refusal::Failed(reason)) => {
                self.turn_off(reason);
                None
            }
        }
    }

    fn note_damaged(&self, blob: Digest, key: Digest) {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(blob);
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
    }

    fn is_damaged(&self, blob: &Digest) -> bool {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).contains(blob)
    }

    fn is_broken(&self, key: &Digest) -> bool {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}
