//! The garbage collector: what no root keeps, and how it is removed.
//!
//! Records go first and blobs after them, so a record never outlives its blobs by our hand. What is
//! removed lies in `trash/` for one grace period. Runs may go on meanwhile: only what a survey listed is
//! removed, a blob that was touched since stays, and a commit that loses a race makes its blob again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::Digest;
use crate::fs::{list, nonce};
use crate::store::{Store, StoreError};
use crate::survey::Survey;

/// The limits of a collection.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// Nothing younger is removed.
    pub grace: Duration,
    /// Remove only until the blobs take no more than this, the least recently used first.
    pub max_bytes: Option<u64>,
    /// When keys were last used, as far as it is known; others count as used when they were written.
    pub used: BTreeMap<Digest, SystemTime>,
    /// Blobs that stay though no record names them: files of remote sources.
    pub kept: BTreeSet<Digest>,
}

/// What would be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Keys of records, least recently used first.
    pub records: Vec<Digest>,
    /// Blobs that no other record needs, with the record that is removed for them; none for orphans.
    pub blobs: BTreeMap<Digest, Option<Digest>>,
    /// Keys whose training checkpoints no action will resume.
    pub checkpoints: Vec<Digest>,
    /// The bytes of the blobs.
    pub bytes: u64,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Records.
    pub records: usize,
    /// Blobs.
    pub blobs: usize,
    /// Bytes of blobs.
    pub bytes: u64,
}

impl Survey {
    /// What no root keeps and is older than the grace period.
    pub fn garbage(&self, options: &CollectOptions) -> Garbage {
        let rooted = self.rooted();
        let mut candidates: Vec<(SystemTime, Digest)> = self
            .records
            .iter()
            .filter(|(key, one)| !rooted.contains(key) && !self.is_young(one.written, options.grace))
            .map(|(key, one)| (options.used.get(key).copied().unwrap_or(one.written), *key))
            .collect();
        candidates.sort_unstable();
        let old = |blob: &Digest| {
            self.blobs.get(blob).is_some_and(|blob| !self.is_young(blob.modified, options.grace))
        };
        // How many records need each blob.
        let mut needed: BTreeMap<Digest, usize> = BTreeMap::new();
        for key in self.records.keys() {
            for blob in self.blobs_of([*key]) {
                *needed.entry(blob).or_default() += 1;
            }
        }
        let mut garbage = Garbage::default();
        let total: u64 = self.blobs.values().map(|blob| blob.bytes).sum();
        // Orphans are of no use to anyone, whatever the limit.
        for (blob, state) in &self.blobs {
            if !needed.contains_key(blob) && !options.kept.contains(blob) && old(blob) {
                garbage.bytes += state.bytes;
                garbage.blobs.insert(*blob, None);
            }
        }
        for (_, key) in candidates {
            if options.max_bytes.is_some_and(|most| total - garbage.bytes <= most) {
                break;
            }
            garbage.records.push(key);
            for blob in self.blobs_of([key]) {
                let Some(count) = needed.get_mut(&blob) else { continue };
                *count -= 1;
                if *count == 0 && !options.kept.contains(&blob) && old(&blob) {
                    garbage.bytes += self.blobs[&blob].bytes;
                    garbage.blobs.insert(blob, Some(key));
                }
            }
        }
        let done: BTreeSet<&Digest> =
            self.records.iter().filter(|(_, one)| one.record.is_some()).map(|(key, _)| key).collect();
        garbage.checkpoints = self
            .checkpoints
            .iter()
            .filter(|(key, time)| {
                let is_of_use = !done.contains(key) || self.retained.contains(key);
                let wanted = rooted.contains(key) && is_of_use;
                !wanted && !self.is_young(**time, options.grace)
            })
            .map(|(key, _)| *key)
            .collect();
        garbage
    }
}

impl Store {
    /// Removes garbage that `survey` found. What is removed stays in `trash/` for a grace period, unless
    /// `at_once`; older trash and quarantine are emptied.
    ///
    /// # Errors
    /// If the file system refuses. What was removed until then is removed.
    pub fn collect(
        &self,
        survey: &Survey,
        garbage: &Garbage,
        grace: Duration,
        at_once: bool,
    ) -> Result<Collected, StoreError> {
        let _lock = crate::lease::kernel_lock(self, "gc.lock")?;
        let disk = &self.shared.disk;
        let bin = self.trash()?;
        let mut collected = Collected::default();
        for key in &garbage.records {
            if disk.move_away(&self.record_path(key), &bin.join(format!("{key}.json")))? {
                collected.records += 1;
            }
            disk.remove_file(&self.eviction_mark(key))?;
        }
        for blob in garbage.blobs.keys() {
            if let Some(bytes) = self.throw_away(blob, survey, &bin)? {
                collected.blobs += 1;
                collected.bytes += bytes;
            }
        }
        for key in &garbage.checkpoints {
            disk.remove_tree(&self.checkpoint_folder(key))?;
        }
        self.collect_arrays(survey, grace)?;
        if at_once {
            disk.remove_tree(&bin)?;
        }
        for (folder, is_tree) in [(self.folder("trash"), true), (self.folder("quarantine"), false)] {
            for name in list(&folder)? {
                let path = folder.join(name);
                // When it was moved here: a file keeps the time of its content, not of its name.
                let moved = std::fs::symlink_metadata(&path).ok().and_then(|metadata| {
                    let seconds = u64::try_from(metadata.ctime()).ok()?;
                    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, metadata.ctime_nsec() as u32))
                });
                if moved.is_some_and(|moved| !survey.is_young(moved, grace)) {
                    if is_tree { disk.remove_tree(&path)? } else { disk.remove_file(&path)? }
                }
            }
        }
        Ok(collected)
    }

    /// A new folder in `trash/`.
    pub(crate) fn trash(&self) -> Result<PathBuf, StoreError> {
        let trash = self.folder("trash");
        self.shared.disk.make_subfolder(&trash)?;
        let bin = trash.join(nonce());
        self.shared.disk.make_subfolder(&bin)?;
        Ok(bin)
    }

    /// Moves a blob into a folder of the trash, and tells its bytes; none if it is gone, or was touched since the
    /// survey.
    pub(crate) fn throw_away(
        &self,
        blob: &Digest,
        survey: &Survey,
        bin: &Path,
    ) -> Result<Option<u64>, StoreError> {
        let disk = &self.shared.disk;
        let path = self.blob_path(blob);
        let surveyed = survey.blobs[blob];
        let unchanged = |path: &Path| {
            let metadata = std::fs::symlink_metadata(path);
            metadata.and_then(|metadata| metadata.modified()).is_ok_and(|time| time == surveyed.modified)
        };
        if !unchanged(&path) {
            return Ok(None);
        }
        let target = bin.join(blob.to_hex());
        if !disk.move_away(&path, &target)? {
            return Ok(None);
        }
        // Touched between the look and the move: a commit counts on it.
        if !unchanged(&target) {
            disk.link_new(&target, &path)?;
            return Ok(None);
        }
        Ok(Some(surveyed.bytes))
    }
}
