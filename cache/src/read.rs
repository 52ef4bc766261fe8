//! Reading: looking up records, verifying blobs, and what happens to damaged ones.
//!
//! A damaged blob is moved to `quarantine/`; every record that names it is then a miss, because one of
//! its blobs is not there, and the action simply runs again.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Digest;
use crate::fs::{FsError, nonce, read_bounded, read_with_metadata};
use crate::owner::boot_id;
use crate::record::{OutputRecord, Record};
use crate::staging::{SHORT, hash_file};
use crate::store::{Store, StoreError};

/// Blobs from this length on are hashed once per boot; shorter ones at each reading.
const LARGE: u64 = 64 << 20;

const MISSING: &str = "it is missing";

/// A record lists files; ten thousand of them take about a megabyte.
const RECORD_LIMIT: u64 = 256 << 20;

/// How far a blob is checked before it is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// By length, and by digest unless it is large and was verified in this boot.
    #[default]
    Once,
    /// By length and digest.
    Always,
    /// By length only.
    Size,
    /// Not at all.
    Never,
}

/// How often a store was asked for records: what a plan costs, whatever the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Looked {
    /// Records that were looked for.
    pub records: u64,
    /// Bytes of those that were there.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct LookedCounter {
    records: AtomicU64,
    bytes: AtomicU64,
}

/// A file of an artifact, where it can be read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// The path inside the artifact.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The blob. Never written to.
    pub location: PathBuf,
}

/// What is wrong with a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The blob.
    pub blob: Digest,
    /// What is wrong: for an event and the run's summary.
    pub reason: String,
    /// Where the damaged bytes are now; none if the blob was not there.
    pub quarantined: Option<PathBuf>,
}

/// The outcome of reading an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All files are there and sound, sorted by path.
    Files(Vec<StoredFile>),
    /// Some are not: every record that names them is now a miss.
    Damaged(Vec<Damage>),
}

impl Store {
    /// The record of a key, if there is a sound one and all its blobs are there with their lengths.
    ///
    /// A blob that was written to after its record is hashed too: by us this happens only when another
    /// action makes the same bytes again, and then once.
    ///
    /// # Errors
    /// If the store cannot be read. A damaged record is none, not an error.
    pub fn lookup(&self, key: &Digest) -> Result<Option<Record>, StoreError> {
        if let Some(record) = self.shared.batch.record(key) {
            return Ok(Some(record));
        }
        self.stored(key)
    }

    /// The record of a key whose commit this process has made and which waits for the next flush.
    pub fn pending(&self, key: &Digest) -> Option<Record> {
        self.shared.batch.record(key)
    }

    /// As [`Store::lookup`], of what other processes see too.
    pub(crate) fn stored(&self, key: &Digest) -> Result<Option<Record>, StoreError> {
        let Some((record, written)) = self.stored_record(key)? else { return Ok(None) };
        let mut verified = false;
        for file in record.outputs.values().flat_map(|output| &output.files) {
            let path = self.blob_path(&file.blob);
            match blob_metadata(&path)? {
                Some(metadata) if metadata.len() == file.bytes => {
                    if Stamp::of(&metadata).modified > written {
                        if !hash_file(&path).is_ok_and(|(_, found)| found == file.blob) {
                            return Ok(None);
                        }
                        verified = true;
                    }
                }
                _ => return Ok(None),
            }
        }
        if verified {
            // Remembers the hashing; a store that is only read hashes again.
            let _ = self.shared.disk.touch(&self.record_path(key));
        }
        Ok(Some(record))
    }

    /// The record of a key, if there is a sound one, whether its blobs are there or not: what a lazy
    /// plan and `why` need.
    ///
    /// # Errors
    /// If the store cannot be read. A damaged record is none, not an error.
    pub fn record(&self, key: &Digest) -> Result<Option<Record>, StoreError> {
        if let Some(record) = self.shared.batch.record(key) {
            return Ok(Some(record));
        }
        Ok(self.stored_record(key)?.map(|(record, _)| record))
    }

    /// Whether there is a record of a key, sound or not: one look at the file system, for plans of many
    /// actions.
    pub fn has_record(&self, key: &Digest) -> bool {
        self.shared.batch.record(key).is_some() || self.record_path(key).exists()
    }

    /// How often this process asked for records so far.
    pub fn looked(&self) -> Looked {
        let counter = &self.shared.looked;
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Looked { records: read(&counter.records), bytes: read(&counter.bytes) }
    }

    /// Counts what another handle of the same store was asked for.
    pub fn also_looked(&self, looked: Looked) {
        self.shared.looked.records.fetch_add(looked.records, Ordering::Relaxed);
        self.shared.looked.bytes.fetch_add(looked.bytes, Ordering::Relaxed);
    }

    /// A sound record and when its file was last written, in ns of the file server's clock.
    fn stored_record(&self, key: &Digest) -> Result<Option<(Record, i128)>, StoreError> {
        let path = self.record_path(key);
        self.shared.looked.records.fetch_add(1, Ordering::Relaxed);
        let (bytes, metadata) = match read_with_metadata(&path, RECORD_LIMIT) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(None),
            Err(error) if error.source.kind() == ErrorKind::InvalidData => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.shared.looked.bytes.fetch_add(metadata.len(), Ordering::Relaxed);
        let record = String::from_utf8(bytes).ok().and_then(|text| Record::from_text(&text));
        let written = Stamp::of(&metadata).modified;
        Ok(record.filter(|record| record.key == *key).map(|record| (record, written)))
    }

    /// Verifies the blobs of an artifact and tells where to read them.
    ///
    /// # Errors
    /// If the store cannot be read. Damage is an outcome, not an error.
    pub fn read(&self, output: &OutputRecord, verify: Verify) -> Result<Reading, StoreError> {
        let mut files = Vec::with_capacity(output.files.len());
        let mut damages = Vec::new();
        for file in &output.files {
            match self.verify_blob(&file.blob, file.bytes, verify)? {
                Some(damage) => damages.push(damage),
                None => files.push(StoredFile {
                    path: file.path.clone(),
                    bytes: file.bytes,
                    location: self.blob_path(&file.blob),
                }),
            }
        }
        Ok(if damages.is_empty() { Reading::Files(files) } else { Reading::Damaged(damages) })
    }

    /// The bytes of a blob that is short and sound; none for what is longer, missing or damaged.
    pub fn short_blob(&self, blob: &Digest) -> Option<Vec<u8>> {
        let bytes = read_bounded(&self.blob_path(blob), SHORT).ok().flatten()?;
        (Digest::of(&bytes) == *blob).then_some(bytes)
    }

    /// Checks one blob; a damaged one is moved to quarantine. None if it is sound.
    ///
    /// # Errors
    /// If the store cannot be read, or quarantine not be written.
    pub fn verify_blob(
        &self,
        blob: &Digest,
        bytes: u64,
        verify: Verify,
    ) -> Result<Option<Damage>, StoreError> {
        let Some(reason) = self.fault(blob, bytes, verify)? else { return Ok(None) };
        let target = self.folder("quarantine").join(format!("{blob}-{}", nonce()));
        let moved = self.shared.disk.move_away(&self.blob_path(blob), &target)?;
        Ok(Some(Damage { blob: *blob, reason, quarantined: moved.then_some(target) }))
    }

    /// What is wrong with a blob, as far as `verify` looks; nothing is changed.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) fn fault(
        &self,
        blob: &Digest,
        bytes: u64,
        verify: Verify,
    ) -> Result<Option<String>, StoreError> {
        if verify == Verify::Never {
            return Ok(None);
        }
        let path = self.blob_path(blob);
        let length = |found: u64| format!("it has {found} bytes instead of {bytes}");
        // What is hashed anyway is opened at once.
        let mut stamp = None;
        if bytes >= LARGE || verify == Verify::Size {
            let Some(metadata) = blob_metadata(&path)? else { return Ok(Some(MISSING.to_owned())) };
            if metadata.len() != bytes {
                return Ok(Some(length(metadata.len())));
            }
            let seen = Stamp::of(&metadata);
            if verify == Verify::Size
                || (verify == Verify::Once && self.shared.verified.contains(blob, &seen))
            {
                return Ok(None);
            }
            stamp = Some(seen);
        }
        let (found_bytes, found) = match hash_file(&path) {
            Err(error) if matches!(error.source.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
                return Ok(Some(MISSING.to_owned()));
            }
            hashed => hashed?,
        };
        if found_bytes != bytes {
            return Ok(Some(length(found_bytes)));
        }
        if found != *blob {
            return Ok(Some(format!("its content has the digest {}", found.to_short())));
        }
        if let Some(stamp) = stamp {
            self.shared.verified.remember(&self.shared.disk, blob, stamp);
        }
        Ok(None)
    }
}

/// The state of a blob's file; none if it is missing or no file.
fn blob_metadata(path: &Path) -> Result<Option<Metadata>, FsError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FsError::new("reading the state of", path, error)),
    }
}

/// What tells that a file was not changed: inode, modification time in ns, size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    inode: u64,
    modified: i128,
    size: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { inode: metadata.ino(), modified, size: metadata.len() }
    }
}

/// The large blobs that were verified in this boot; kept in the user's cache folder, because a boot is
/// longer than a run.
#[derive(Debug)]
pub(crate) struct Verified {
    file: Option<PathBuf>,
    known: Mutex<BTreeMap<Digest, Stamp>>,
}

impl Verified {
    pub(crate) fn new(cache: Option<&Path>) -> Self {
        let boot = boot_id();
        let plain = !boot.is_empty() && boot.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let file = cache.filter(|_| plain).map(|folder| folder.join(format!("verified-{boot}")));
        let text = file.as_deref().and_then(|file| read_bounded(file, 64 << 20).ok().flatten());
        let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
        Self { file, known: Mutex::new(text.lines().filter_map(parse_verified).collect()) }
    }

    fn contains(&self, blob: &Digest, stamp: &Stamp) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(blob) == Some(stamp)
    }

    fn remember(&self, disk: &crate::fs::Disk, blob: &Digest, stamp: Stamp) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(*blob, stamp);
        let Some(file) = &self.file else { return };
        let text: String = known
            .iter()
            .map(|(blob, stamp)| format!("{blob} {} {} {}\n", stamp.inode, stamp.modified, stamp.size))
            .collect();
        // Forgetting costs one more hash.
        let _ = file.parent().map(std::fs::create_dir_all);
        let _ = disk.write_atomic_passing(file, text.as_bytes());
    }
}

fn parse_verified(line: &str) -> Option<(Digest, Stamp)> {
    let mut fields = line.split(' ');
    let blob = fields.next()?.parse().ok()?;
    let inode = fields.next()?.parse().ok()?;
    let modified = fields.next()?.parse().ok()?;
    let size = fields.next()?.parse().ok()?;
    Some((blob, Stamp { inode, modified, size }))
}
