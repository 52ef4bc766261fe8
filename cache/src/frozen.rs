//! Frozen sources: data that are known not to change, and so large that looking at them takes long.
//!
//! Their digest is recorded when they are first hashed, and taken from there ever after, without as much as
//! listing their folder. The record is one file in the user's cache folder, named by the absolute pattern; when it
//! is lost, the source is hashed once more. [`Sources::refreeze`] looks and records anew.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fs::read_bounded;
use crate::sources::{Source, SourceError, SourceFile, Sources};
use crate::{Digest, tree_digest};

/// A record lists files; a source of more than some million files is refused its record.
const RECORD_LIMIT: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
struct Frozen {
    version: u32,
    /// The absolute pattern.
    pattern: PathBuf,
    files: Vec<FrozenFile>,
}

#[derive(Serialize, Deserialize)]
struct FrozenFile {
    path: String,
    bytes: u64,
    digest: Digest,
    location: PathBuf,
    modified: i64,
}

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
        if let Some(source) = self.recorded(&base.join(pattern)) {
            return Ok(source);
        }
        let source = self.hash(base, pattern)?;
        Ok(self.freeze(&base.join(pattern), source))
    }

    /// Records what a frozen source is now; from here on it is this.
    pub fn refreeze(&self, base: &Path, pattern: &str, source: Source) {
        self.freeze(&base.join(pattern), source);
    }

    /// What was recorded of a frozen source, by its absolute pattern.
    pub fn recorded(&self, pattern: &Path) -> Option<Source> {
        let bytes = read_bounded(&self.record_of(pattern)?, RECORD_LIMIT).ok()??;
        let frozen: Frozen = serde_json::from_slice(&bytes).ok()?;
        if frozen.version != 1 || frozen.pattern != pattern || frozen.files.is_empty() {
            return None;
        }
        let file = |file: FrozenFile| {
            let FrozenFile { path, bytes, digest, location, modified } = file;
            SourceFile { path, bytes, digest, location, recorded: Some(modified) }
        };
        let files: Vec<SourceFile> = frozen.files.into_iter().map(file).collect();
        let digest = tree_digest(files.iter().map(|file| (file.path.as_str(), file.bytes, file.digest)));
        Some(Source { files, digest })
    }

    fn record_of(&self, pattern: &Path) -> Option<PathBuf> {
        let name = Digest::of(pattern.as_os_str().as_encoded_bytes()).to_hex();
        Some(self.frozen.as_ref()?.join(format!("{name}.json")))
    }

    /// Writes the record. A failure is not reported: it costs hashing again.
    fn freeze(&self, pattern: &Path, mut source: Source) -> Source {
        let mut files = Vec::with_capacity(source.files.len());
        for file in &mut source.files {
            // What vanished since it was hashed is found when it is read.
            let time = modified(&file.location).unwrap_or_default();
            file.recorded = Some(time);
            files.push(FrozenFile {
                path: file.path.clone(),
                bytes: file.bytes,
                digest: file.digest,
                location: file.location.clone(),
                modified: time,
            });
        }
        let frozen = Frozen { version: 1, pattern: pattern.to_owned(), files };
        if let (Some(record), Ok(bytes)) = (self.record_of(pattern), serde_json::to_vec(&frozen)) {
            let _ = record.parent().map(std::fs::create_dir_all);
            let _ = self.disk.write_atomic_passing(&record, &bytes);
        }
        source
    }
}
