//! External sources: files that a study reads but did not make, named by `file:` in TOML.
//!
//! A source is a file, a folder, or a glob (see [`crate::glob`]). Only content
//! and paths *inside* the source enter its digest, never where it lies: one single file is called
//! `source.<extension>` whatever its name is.
//!
//! Hashes are remembered by (device, inode, size, modification time, change time), see [`crate::remembered`]. An
//! entry is not stored when one of the times is younger than two seconds at the moment of hashing: the file could
//! change again within the resolution of the clock and keep its times (the "racy" rule).

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::Digest;
use crate::content::TreeHasher;
use crate::fs::Disk;
use crate::locate::locate;
use crate::remembered::{Entry, Remembered};
use crate::source_files::SourceFiles;
use crate::spill::SpillError;
use crate::staging::hash_file;

const RACY: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 3;
const CACHE_FILE: &str = "sources";

/// A source that cannot be used: missing, unreadable, or changing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{}`: {reason}", path.display())]
pub struct SourceError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl SourceError {
    pub(crate) fn new(path: &Path, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(path, "there is no such file or folder"),
            _ => Self::new(path, error.to_string()),
        }
    }
}

impl From<SpillError> for SourceError {
    fn from(error: SpillError) -> Self {
        Self { reason: format!("its files are very many: {}", error.source), path: error.folder }
    }
}

/// A hashed source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its files.
    pub files: SourceFiles,
    /// The digest of paths and contents.
    pub digest: Digest,
}

/// Hashes external sources and remembers files that did not change. Dropping it saves the memory.
#[derive(Debug)]
pub struct Sources {
    pub(crate) disk: Disk,
    /// Where frozen sources are recorded.
    pub(crate) frozen: Option<PathBuf>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    remembered: Remembered,
    hashed: u64,
}

impl Sources {
    pub(crate) fn open(disk: Disk, cache: Option<&Path>) -> Self {
        let remembered = Remembered::open(disk.clone(), cache.map(|folder| folder.join(CACHE_FILE)));
        let frozen = cache.map(|folder| folder.join("frozen"));
        Self { disk, frozen, memory: Mutex::new(Memory { remembered, hashed: 0 }) }
    }

    /// Hashes without remembering anything: for commands that make no store.
    pub fn without_memory() -> Self {
        Self { disk: Disk::default(), frozen: None, memory: Mutex::default() }
    }

    /// Hashes the source that `pattern` names, relative to the folder `base`.
    ///
    /// # Errors
    /// If nothing is there, something is unreadable or keeps changing, or a symbolic link leaves the
    /// source.
    pub fn hash(&self, base: &Path, pattern: &str) -> Result<Source, SourceError> {
        self.hash_each(&locate(base, pattern)?, true, |_, _| {})
    }

    /// As [`Sources::hash`], reading every file whatever is remembered of it; `each` is given path and digest of
    /// every file, in the order of paths.
    ///
    /// # Errors
    /// As [`Sources::hash`].
    pub fn hash_again(
        &self,
        base: &Path,
        pattern: &str,
        mut each: impl FnMut(&str, Digest),
    ) -> Result<Source, SourceError> {
        self.hash_each(&locate(base, pattern)?, false, |path, entry| each(path, entry.digest))
    }

    /// Hashes the files that were found and tells of each what it is.
    pub(crate) fn hash_each(
        &self,
        found: &SourceFiles,
        trusts: bool,
        mut each: impl FnMut(&str, &Entry),
    ) -> Result<Source, SourceError> {
        let mut files = SourceFiles::builder(found.place().clone(), false);
        let mut tree = TreeHasher::new(found.len());
        for file in found.iter() {
            let entry = self.hash_file(&file.location, trusts)?;
            files.push(&file.path, entry.size, entry.modified)?;
            tree.add(&file.path, entry.size, entry.digest);
            each(&file.path, &entry);
        }
        Ok(Source { files: files.finish(), digest: tree.finish() })
    }

    /// Whether something is there under `pattern`, without hashing it.
    ///
    /// # Errors
    /// As [`Sources::hash`], as far as it shows without reading files.
    pub fn check(&self, base: &Path, pattern: &str) -> Result<(), SourceError> {
        locate(base, pattern).map(|_| ())
    }

    /// The bytes that were hashed so far because they were not remembered.
    pub fn hashed_bytes(&self) -> u64 {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).hashed
    }

    /// Saves the memory. A failure is not reported: it costs hashing again.
    pub fn save(&self) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remembered.save();
    }

    fn hash_file(&self, path: &Path, trusts: bool) -> Result<Entry, SourceError> {
        for _ in 0..ATTEMPTS {
            let started = SystemTime::now();
            let before = state(path)?;
            let identity = (before.dev(), before.ino());
            if trusts {
                let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
                let known = memory.remembered.get(identity);
                if let Some(known) = known.filter(|known| *known == Entry::new(&before, known.digest)) {
                    return Ok(known);
                }
            }
            let (bytes, digest) = match hash_file(path) {
                Ok(hashed) => hashed,
                // The length changed meanwhile.
                Err(error) if error.source.kind() == io::ErrorKind::Other => continue,
                Err(error) => return Err(SourceError::io(path, &error.source)),
            };
            let now = Entry::new(&before, digest);
            if Entry::new(&state(path)?, digest) != now || bytes != now.size {
                continue;
            }
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.hashed += bytes;
            if is_settled(&now, started) {
                memory.remembered.insert(identity, now);
            }
            return Ok(now);
        }
        Err(SourceError::new(path, format!("it changed while it was read, {ATTEMPTS} times")))
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.save();
    }
}

fn is_settled(entry: &Entry, moment: SystemTime) -> bool {
    let moment = moment.duration_since(SystemTime::UNIX_EPOCH);
    let Ok(Ok(moment)) = moment.map(|moment| i64::try_from(moment.as_nanos())) else { return false };
    let limit = moment - RACY.as_nanos() as i64;
    entry.modified < limit && entry.changed < limit
}

fn state(path: &Path) -> Result<Metadata, SourceError> {
    let metadata = std::fs::metadata(path).map_err(|error| SourceError::io(path, &error))?;
    if metadata.is_file() {
        Ok(metadata)
    } else {
        Err(SourceError::new(path, "it is neither a file nor a folder"))
    }
}
