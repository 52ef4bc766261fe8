//! Verification of a whole store: every record agrees with itself, every blob with its name.

use std::collections::BTreeMap;

use crate::Digest;
use crate::fs::nonce;
use crate::read::Verify;
use crate::store::{Store, StoreError};

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Records that were read.
    pub records: usize,
    /// Blobs that were hashed.
    pub blobs: usize,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Keys of records that cannot be read or do not agree with themselves.
    pub damaged_records: Vec<Digest>,
    /// Blobs that are missing or damaged, with what is wrong.
    pub damaged_blobs: BTreeMap<Digest, String>,
    /// Keys of sound records that name such a blob: each is a miss.
    pub affected: Vec<Digest>,
}

impl Verification {
    /// Whether everything is as it should be.
    pub fn is_sound(&self) -> bool {
        self.damaged_records.is_empty() && self.damaged_blobs.is_empty()
    }
}

impl Store {
    /// Reads every record and hashes every blob; or only the records of `keys` and their blobs. With
    /// `repair`, what is damaged is moved to `quarantine/` with the records that need it: the store is
    /// sound then, and the actions run again.
    ///
    /// `progress` is told the blobs and bytes done so far.
    ///
    /// # Errors
    /// If the store cannot be read, or not be repaired.
    pub fn verify(
        &self,
        keys: Option<&[Digest]>,
        repair: bool,
        mut progress: impl FnMut(usize, u64),
    ) -> Result<Verification, StoreError> {
        let mut found = Verification::default();
        let records = match keys {
            Some(keys) => keys.iter().map(|key| (*key, self.record_path(key))).collect(),
            None => self.record_files()?,
        };
        // Each blob once, with the keys that need it.
        let mut blobs: BTreeMap<Digest, (u64, Vec<Digest>)> = BTreeMap::new();
        for (key, path) in records {
            if !path.exists() {
                continue;
            }
            found.records += 1;
            let Some(record) = self.record(&key)? else {
                found.damaged_records.push(key);
                continue;
            };
            let evicted = self.is_evicted(&key);
            for file in record.outputs.values().flat_map(|output| &output.files) {
                // Nobody misses what was evicted.
                if evicted && !self.blob_path(&file.blob).exists() {
                    continue;
                }
                blobs.entry(file.blob).or_insert_with(|| (file.bytes, Vec::new())).1.push(key);
            }
        }
        if keys.is_none() {
            for (blob, _, metadata) in self.blobs()? {
                blobs.entry(blob).or_insert_with(|| (metadata.len(), Vec::new()));
            }
        }
        for (blob, (bytes, needed_by)) in blobs {
            let reason = if repair {
                self.verify_blob(&blob, bytes, Verify::Always)?.map(|damage| damage.reason)
            } else {
                self.fault(&blob, bytes, Verify::Always)?
            };
            found.blobs += 1;
            found.bytes += bytes;
            progress(found.blobs, found.bytes);
            if let Some(reason) = reason {
                found.damaged_blobs.insert(blob, reason);
                found.affected.extend(needed_by);
            }
        }
        found.affected.sort_unstable();
        found.affected.dedup();
        if repair {
            for key in found.damaged_records.iter().chain(&found.affected) {
                let target = self.folder("quarantine").join(format!("{key}.json-{}", nonce()));
                self.shared.disk.move_away(&self.record_path(key), &target)?;
            }
        }
        Ok(found)
    }
}
