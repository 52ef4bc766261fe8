//! Frozen sources: data that are known not to change, and so large that looking at them takes long.
//!
//! Their digest is recorded when they are first hashed, and taken from there ever after, without as much as
//! listing their folder. The record is one file in the user's cache folder, named by the absolute pattern; when it
//! is lost, the source is hashed once more. [`Sources::refreeze`] looks and records anew.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::content::TreeHasher;
use crate::fs::{Disk, nonce};
use crate::locate::locate;
use crate::source_files::{Place, SourceFiles};
use crate::sources::{Source, SourceError, Sources};

const VERSION: u32 = 2;

/// The first line of a record. Behind it a line `[path, bytes, modified, digest]` a file, and the digest of all.
#[derive(Serialize, Deserialize)]
struct Header<'a> {
    version: u32,
    /// The absolute pattern.
    pattern: Cow<'a, Path>,
    place: Place,
    files: usize,
}

type Line<'a> = (Cow<'a, str>, u64, i64, Digest);

/// The modification time of a file, in nanoseconds; none if it is not there.
pub fn modified(path: &Path) -> Option<i64> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata.mtime().checked_mul(1_000_000_000)?.checked_add(metadata.mtime_nsec())
}

impl Sources {
    /// As [`Sources::hash`], but what was recorded of the source is taken as it is.
    ///
    /// # Errors
    /// As [`Sources::hash`], if nothing was recorded yet.
    pub fn hash_frozen(&self, base: &Path, pattern: &str) -> Result<Source, SourceError> {
        match self.recorded(&base.join(pattern), |_, _| {}) {
            Some(source) => Ok(source),
            None => self.refreeze(base, pattern),
        }
    }

    /// Hashes a frozen source as [`Sources::hash`] does and records what it is now; from here on it is this.
    ///
    /// # Errors
    /// As [`Sources::hash`]. That the record cannot be written is none: it costs hashing again.
    pub fn refreeze(&self, base: &Path, pattern: &str) -> Result<Source, SourceError> {
        let path = base.join(pattern);
        let found = locate(base, pattern)?;
        let Some(mut record) = self.record_of(&path).and_then(|record| Recording::new(&self.disk, record))
        else {
            return self.hash_each(&found, true, |_, _| {});
        };
        let (place, files) = (found.place().clone(), found.len());
        record.line(&Header { version: VERSION, pattern: path.as_path().into(), place, files });
        let source = self.hash_each(&found, true, |path, entry| {
            record.line(&(path, entry.size, entry.modified, entry.digest));
        })?;
        record.line(&source.digest);
        record.finish();
        // With the times that it is held to from here on.
        Ok(self.recorded(&path, |_, _| {}).unwrap_or(source))
    }

    /// What was recorded of a frozen source, by its absolute pattern; `each` is given path and digest of every
    /// file, in the order of paths.
    pub fn recorded(&self, pattern: &Path, mut each: impl FnMut(&str, Digest)) -> Option<Source> {
        let mut lines = BufReader::new(File::open(self.record_of(pattern)?).ok()?);
        let mut text = String::new();
        lines.read_line(&mut text).ok()?;
        let header: Header<'_> = serde_json::from_str(&text).ok()?;
        if header.version != VERSION || header.pattern != pattern || header.files == 0 {
            return None;
        }
        let mut files = SourceFiles::builder(header.place, true);
        let mut tree = TreeHasher::new(header.files);
        for _ in 0..header.files {
            text.clear();
            lines.read_line(&mut text).ok()?;
            let (path, bytes, modified, digest): Line<'_> = serde_json::from_str(&text).ok()?;
            if !files.push(&path, bytes, modified).ok()? {
                return None;
            }
            tree.add(&path, bytes, digest);
            each(&path, digest);
        }
        text.clear();
        lines.read_line(&mut text).ok()?;
        let digest = tree.finish();
        (serde_json::from_str::<Digest>(&text).ok()? == digest)
            .then(|| Source { files: files.finish(), digest })
    }

    fn record_of(&self, pattern: &Path) -> Option<PathBuf> {
        let name = Digest::of(pattern.as_os_str().as_encoded_bytes()).to_hex();
        Some(self.frozen.as_ref()?.join(format!("{name}.json")))
    }
}

/// A record that is written, line by line, aside. A failure is not reported: it costs hashing again.
struct Recording<'a> {
    disk: &'a Disk,
    record: PathBuf,
    aside: PathBuf,
    target: io::Result<BufWriter<File>>,
}

impl<'a> Recording<'a> {
    fn new(disk: &'a Disk, record: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(record.parent()?).ok()?;
        let aside = record.with_extension(nonce());
        let target = BufWriter::new(disk.write_passing(&aside, b"").ok()?);
        Some(Self { disk, record, aside, target: Ok(target) })
    }

    fn line(&mut self, line: &impl Serialize) {
        let Ok(target) = &mut self.target else { return };
        let written = serde_json::to_writer(&mut *target, line).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| target.write_all(b"\n")) {
            self.target = Err(error);
        }
    }

    fn finish(mut self) {
        if self.target.as_mut().is_ok_and(|target| target.flush().is_ok()) {
            let _ = self.disk.rename(&self.aside, &self.record);
        }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        // There only if it has not become the record.
        let _ = std::fs::remove_file(&self.aside);
    }
}
