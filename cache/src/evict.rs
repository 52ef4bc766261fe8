//! Eviction: the files of a result go and its record stays, so that what was made of it is still known to be right.
//! They are made again when somebody reads them.

use std::collections::BTreeSet;

use crate::collect::Collected;
use crate::store::{Store, StoreError};
use crate::survey::Survey;
use crate::{Digest, Record};

/// What an eviction would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evictable {
    /// The keys of the results, with those of the parts of row-wise ones.
    pub keys: BTreeSet<Digest>,
    /// Blobs that no other result needs.
    pub blobs: BTreeSet<Digest>,
    /// Their bytes.
    pub bytes: u64,
}

impl Survey {
    /// What can go with the results of `keys`: not what others have too, and no blob of `kept`.
    pub fn evictable(&self, keys: impl IntoIterator<Item = Digest>, kept: &BTreeSet<Digest>) -> Evictable {
        let mut all: BTreeSet<Digest> = keys.into_iter().collect();
        let parts: Vec<Digest> = all.iter().flat_map(|key| self.shards_of(key)).copied().collect();
        all.extend(parts);
        all.retain(|key| self.records.get(key).is_some_and(|one| one.record.is_some()));
        let needed = self.blobs_of(self.records.keys().filter(|key| !all.contains(key)).copied());
        let mut blobs = self.files_of(all.iter().copied());
        blobs.retain(|blob| self.blobs.contains_key(blob) && !needed.contains(blob) && !kept.contains(blob));
        let bytes = blobs.iter().map(|blob| self.blobs[blob].bytes).sum();
        Evictable { keys: all, blobs, bytes }
    }
}

impl Store {
    /// Removes files of results and keeps their records. They stay in `trash/` until the next collection after the
    /// grace period, unless `at_once`.
    ///
    /// # Errors
    /// If the file system refuses. What was removed until then is removed.
    pub fn evict(
        &self,
        survey: &Survey,
        evictable: &Evictable,
        at_once: bool,
    ) -> Result<Collected, StoreError> {
        let _lock = crate::lease::kernel_lock(self, "gc.lock")?;
        let disk = &self.shared.disk;
        // Marked first: a blob that is missing without a mark is damage.
        for key in &evictable.keys {
            disk.write_atomic(&self.eviction_mark(key), b"")?;
        }
        let bin = self.trash()?;
        let mut evicted = Collected { records: evictable.keys.len(), ..Collected::default() };
        for blob in &evictable.blobs {
            if let Some(bytes) = self.throw_away(blob, survey, &bin)? {
                evicted.blobs += 1;
                evicted.bytes += bytes;
            }
        }
        if at_once {
            disk.remove_tree(&bin)?;
        }
        Ok(evicted)
    }

    /// The record of a key whose files were evicted, whether or not some of them are still there.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn evicted(&self, key: &Digest) -> Result<Option<Record>, StoreError> {
        if self.is_evicted(key) { self.record(key) } else { Ok(None) }
    }

    pub(crate) fn is_evicted(&self, key: &Digest) -> bool {
        self.eviction_mark(key).exists()
    }

    pub(crate) fn eviction_mark(&self, key: &Digest) -> std::path::PathBuf {
        self.folder("evicted").join(key.to_hex())
    }
}
