//! External sources: files that a study reads but did not make, named by `file:` in TOML.
//!
//! A source is a file, a folder, or a glob (see [`crate::glob`]). Only content
//! and paths *inside* the source enter its digest, never where it lies: one single file is called
//! `source.<extension>` whatever its name is.
//!
//! Hashes are remembered by (device, inode, size, modification time, change time). An entry is not
//! stored when one of the times is younger than two seconds at the moment of hashing: the file could
//! change again within the resolution of the clock and keep its times (the "racy" rule).

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::fs::{Disk, read_bounded};
use crate::glob::{self, Glob};
use crate::staging::hash_file;
use crate::{Digest, tree_digest};

const RACY: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 3;
const CACHE_FILE: &str = "sources";
const CACHE_LIMIT: u64 = 512 << 20;

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
    fn new(path: &Path, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }

    fn io(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(path, "there is no such file or folder"),
            _ => Self::new(path, error.to_string()),
        }
    }
}

/// A file of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The path inside the source, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Where it lies.
    pub location: PathBuf,
    /// Of a frozen source: its modification time when its digest was recorded, in nanoseconds.
    pub recorded: Option<i64>,
}

/// A hashed source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its files, sorted by path.
    pub files: Vec<SourceFile>,
    /// The digest of paths and contents.
    pub digest: Digest,
}

/// What was known of a file when it was hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    size: u64,
    modified: i128,
    changed: i128,
    digest: Digest,
}

/// Hashes external sources and remembers files that did not change. Dropping it saves the memory.
#[derive(Debug)]
pub struct Sources {
    pub(crate) disk: Disk,
    file: Option<PathBuf>,
    /// Where frozen sources are recorded.
    pub(crate) frozen: Option<PathBuf>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// By device and inode.
    entries: BTreeMap<(u64, u64), Entry>,
    changed: bool,
    hashed: u64,
}

impl Sources {
    pub(crate) fn open(disk: Disk, cache: Option<&Path>) -> Self {
        let file = cache.map(|folder| folder.join(CACHE_FILE));
        let text = file.as_deref().and_then(|file| read_bounded(file, CACHE_LIMIT).ok().flatten());
        let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
        let entries = text.lines().filter_map(parse_entry).collect();
        let frozen = cache.map(|folder| folder.join("frozen"));
        Self { disk, file, frozen, memory: Mutex::new(Memory { entries, ..Memory::default() }) }
    }

    /// Hashes without remembering anything: for commands that make no store.
    pub fn without_memory() -> Self {
        Self { disk: Disk::default(), file: None, frozen: None, memory: Mutex::new(Memory::default()) }
    }

    /// Hashes the source that `pattern` names, relative to the folder `base`.
    ///
    /// # Errors
    /// If nothing is there, something is unreadable or keeps changing, or a symbolic link leaves the
    /// source.
    pub fn hash(&self, base: &Path, pattern: &str) -> Result<Source, SourceError> {
        let mut files = Vec::new();
        for (path, location) in locate(base, pattern)? {
            let (bytes, digest) = self.hash_file(&location)?;
            files.push(SourceFile { path, bytes, digest, location, recorded: None });
        }
        let digest = tree_digest(files.iter().map(|file| (file.path.as_str(), file.bytes, file.digest)));
        Ok(Source { files, digest })
    }

    /// As [`Sources::hash`], reading every file whatever is remembered of it.
    ///
    /// # Errors
    /// As [`Sources::hash`].
    pub fn hash_again(&self, base: &Path, pattern: &str) -> Result<Source, SourceError> {
        for (_, location) in locate(base, pattern)? {
            let metadata = state(&location)?;
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.entries.remove(&(metadata.dev(), metadata.ino()));
        }
        self.hash(base, pattern)
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
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = self.file.as_deref().filter(|_| memory.changed) else { return };
        let text: String = memory
            .entries
            .iter()
            .map(|((device, inode), entry)| {
                let Entry { size, modified, changed, digest } = entry;
                format!("{device} {inode} {size} {modified} {changed} {digest}\n")
            })
            .collect();
        let _ = file.parent().map(std::fs::create_dir_all);
        memory.changed = self.disk.write_atomic_passing(file, text.as_bytes()).is_err();
    }

    fn hash_file(&self, path: &Path) -> Result<(u64, Digest), SourceError> {
        for _ in 0..ATTEMPTS {
            let started = SystemTime::now();
            let before = state(path)?;
            let identity = (before.dev(), before.ino());
            let known = {
                let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.entries.get(&identity).copied()
            };
            if let Some(known) = known.filter(|known| *known == entry(&before, known.digest)) {
                return Ok((known.size, known.digest));
            }
            let hashed = match hash_file(path) {
                Ok(hashed) => hashed,
                // The length changed meanwhile.
                Err(error) if error.source.kind() == io::ErrorKind::Other => continue,
                Err(error) => return Err(SourceError::io(path, &error.source)),
            };
            let now = entry(&before, hashed.1);
            if entry(&state(path)?, hashed.1) != now || hashed.0 != now.size {
                continue;
            }
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.hashed += hashed.0;
            if is_settled(&now, started) {
                memory.entries.insert(identity, now);
                memory.changed = true;
            }
            return Ok(hashed);
        }
        Err(SourceError::new(path, format!("it changed while it was read, {ATTEMPTS} times")))
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.save();
    }
}

fn entry(metadata: &Metadata, digest: Digest) -> Entry {
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Entry {
        size: metadata.len(),
        modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        digest,
    }
}

fn is_settled(entry: &Entry, moment: SystemTime) -> bool {
    let Ok(moment) = moment.duration_since(SystemTime::UNIX_EPOCH) else { return false };
    let limit = moment.as_nanos() as i128 - RACY.as_nanos() as i128;
    entry.modified < limit && entry.changed < limit
}

fn parse_entry(line: &str) -> Option<((u64, u64), Entry)> {
    let mut fields = line.split(' ');
    let identity = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let size = fields.next()?.parse().ok()?;
    let modified = fields.next()?.parse().ok()?;
    let changed = fields.next()?.parse().ok()?;
    let digest = fields.next()?.parse().ok()?;
    Some((identity, Entry { size, modified, changed, digest }))
}

fn state(path: &Path) -> Result<Metadata, SourceError> {
    let metadata = std::fs::metadata(path).map_err(|error| SourceError::io(path, &error))?;
    if metadata.is_file() {
        Ok(metadata)
    } else {
        Err(SourceError::new(path, "it is neither a file nor a folder"))
    }
}

/// The files of a source as (path inside, location), sorted by path.
fn locate(base: &Path, pattern: &str) -> Result<Vec<(String, PathBuf)>, SourceError> {
    if pattern.is_empty() || pattern.contains('\0') {
        return Err(SourceError::new(base, "the source has no path"));
    }
    if glob::is_glob(pattern) {
        return locate_glob(base, pattern);
    }
    let root = base.join(pattern);
    let metadata = std::fs::metadata(&root).map_err(|error| SourceError::io(&root, &error))?;
    if metadata.is_dir() {
        let files = walk(&root)?;
        if files.is_empty() {
            return Err(SourceError::new(&root, "the folder holds no files"));
        }
        return Ok(files);
    }
    state(&root)?;
    Ok(vec![(glob::single(pattern), root)])
}

fn locate_glob(base: &Path, pattern: &str) -> Result<Vec<(String, PathBuf)>, SourceError> {
    let (root, rest) = glob::split(pattern);
    let glob = Glob::parse(rest).map_err(|reason| SourceError::new(Path::new(pattern), reason))?;
    let matching: Vec<_> =
        walk(&base.join(root))?.into_iter().filter(|(path, _)| glob.matches(path)).collect();
    if matching.is_empty() {
        return Err(SourceError::new(&base.join(pattern), "no file matches"));
    }
    Ok(matching)
}

/// All files below a folder, sorted by path. Symbolic links are followed where they stay inside.
fn walk(root: &Path) -> Result<Vec<(String, PathBuf)>, SourceError> {
    let real_root = root.canonicalize().map_err(|error| SourceError::io(root, &error))?;
    let mut files = Vec::new();
    let mut folders = vec![(String::new(), root.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| SourceError::io(&folder, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| SourceError::io(&folder, &error))?;
            let location = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(SourceError::new(&location, "the name is not UTF-8"));
            };
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let kind = entry.file_type().map_err(|error| SourceError::io(&location, &error))?;
            let is_folder = if kind.is_symlink() {
                follow(&real_root, &folder, &location)?
            } else if kind.is_dir() || kind.is_file() {
                kind.is_dir()
            } else {
                return Err(SourceError::new(&location, "it is neither a file nor a folder"));
            };
            if is_folder {
                folders.push((path, location));
            } else {
                files.push((path, location));
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Whether a link leads to a folder; an error where it leaves the source or leads around in a circle.
fn follow(real_root: &Path, folder: &Path, link: &Path) -> Result<bool, SourceError> {
    let target = link.canonicalize().map_err(|error| SourceError::io(link, &error))?;
    if !target.starts_with(real_root) {
        return Err(SourceError::new(link, format!("the link leaves the source, to `{}`", target.display())));
    }
    let is_folder = target.is_dir();
    let here = folder.canonicalize().map_err(|error| SourceError::io(folder, &error))?;
    if is_folder && here.starts_with(&target) {
        return Err(SourceError::new(link, "the link leads to a folder that it lies in"));
    }
    Ok(is_folder)
}
