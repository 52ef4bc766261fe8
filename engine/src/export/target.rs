//! Where an export goes: a folder or an archive, written beside its place and moved there when it is whole.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use pipe_cache::Digest;
use sha2::{Digest as _, Sha256};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::{ExportError, Written};

/// Read in one go.
const BUFFER_BYTES: usize = 1 << 20;
/// These are compressed already, or do not become smaller.
const STORED: [&str; 7] = ["parquet", "arrow", "png", "jpg", "jpeg", "safetensors", "zip"];

/// An export that is being written. One that is dropped before it is finished leaves nothing.
pub(super) struct Target {
    to: PathBuf,
    temporary: PathBuf,
    archive: Option<ZipWriter<File>>,
    files: usize,
    bytes: u64,
}

impl Target {
    pub(super) fn create(to: &Path) -> Result<Self, ExportError> {
        let error = |source| ExportError::Write { path: to.display().to_string(), source };
        let name = to.file_name().map_or_else(|| "export".into(), |name| name.to_string_lossy());
        let parent = to.parent().unwrap_or(Path::new(""));
        let temporary = parent.join(format!(".{name}.{}", uuid::Uuid::now_v7()));
        std::fs::create_dir_all(parent)
            .or_else(|failure| if parent.as_os_str().is_empty() { Ok(()) } else { Err(failure) })
            .map_err(error)?;
        let is_archive = to.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("zip"));
        let archive = if is_archive {
            Some(ZipWriter::new(File::create_new(&temporary).map_err(error)?))
        } else {
            std::fs::create_dir(&temporary).map_err(error)?;
            None
        };
        Ok(Self { to: to.to_owned(), temporary, archive, files: 0, bytes: 0 })
    }

    /// Writes a file of this content.
    pub(super) fn write(&mut self, path: &str, content: &[u8]) -> Result<Written, ExportError> {
        let (written, _) = self.take(path, content)?;
        Ok(written)
    }

    /// Copies a file; `expected` is what its content has to be.
    pub(super) fn copy(
        &mut self,
        path: &str,
        from: &Path,
        expected: Option<&Digest>,
    ) -> Result<Written, ExportError> {
        let error = |source| ExportError::Write { path: path.to_owned(), source };
        let damaged = || ExportError::Damaged { node: String::new(), path: path.to_owned() };
        let file = match File::open(from) {
            Err(failure) if expected.is_some() && failure.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged());
            }
            other => other.map_err(error)?,
        };
        let (written, digest) = self.take(path, file)?;
        if expected.is_some_and(|expected| *expected != digest) {
            return Err(damaged());
        }
        Ok(written)
    }

    fn take(&mut self, path: &str, mut from: impl Read) -> Result<(Written, Digest), ExportError> {
        let error = |source| ExportError::Write { path: path.to_owned(), source };
        let mut file = None;
        let out: &mut dyn Write = match &mut self.archive {
            Some(archive) => {
                let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
                let method = if STORED.contains(&extension) {
                    CompressionMethod::Stored
                } else {
                    CompressionMethod::Deflated
                };
                let options = SimpleFileOptions::default().compression_method(method).large_file(true);
                archive.start_file(path, options).map_err(|failure| error(failure.into()))?;
                archive
            }
            None => {
                let place = self.temporary.join(path);
                std::fs::create_dir_all(place.parent().unwrap_or(&self.temporary)).map_err(error)?;
                file.insert(File::create_new(&place).map_err(error)?)
            }
        };
        let (mut sha256, mut blake3) = (Sha256::new(), blake3::Hasher::new());
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut bytes = 0;
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(failure) if failure.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(failure) => return Err(error(failure)),
            };
            out.write_all(&buffer[..count]).map_err(error)?;
            sha256.update(&buffer[..count]);
            blake3.update(&buffer[..count]);
            bytes += count as u64;
        }
        self.files += 1;
        self.bytes += bytes;
        let sha256 = sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((Written { path: path.to_owned(), bytes, sha256 }, blake3.finalize().into()))
    }

    /// Moves it to its place; returns how many files and bytes it has.
    pub(super) fn finish(mut self) -> Result<(usize, u64), ExportError> {
        let error = |source| ExportError::Write { path: self.to.display().to_string(), source };
        if let Some(archive) = self.archive.take() {
            archive.finish().map_err(|failure| error(failure.into()))?.sync_all().map_err(error)?;
        }
        // A folder cannot be renamed onto one with content, so what came into being meanwhile stays.
        if self.to.symlink_metadata().is_ok() {
            return Err(ExportError::Exists(self.to.clone()));
        }
        std::fs::rename(&self.temporary, &self.to).map_err(error)?;
        Ok((self.files, self.bytes))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After `finish` there is nothing.
        if self.archive.take().is_some() {
            let _ = std::fs::remove_file(&self.temporary);
        } else {
            let _ = std::fs::remove_dir_all(&self.temporary);
        }
    }
}
