//! Bytes that are remembered for the end of a long ingest: in memory up to a limit, beyond it in a file.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use pipe_engine::StageError;

/// What waits in memory.
pub(crate) const LIMIT: usize = 16 << 20;

/// Bytes that are only ever appended.
#[derive(Debug)]
pub(crate) struct Spill {
    folder: PathBuf,
    limit: usize,
    /// A file without a name: it is gone with this.
    file: Option<File>,
    /// How many bytes are in it.
    written: u64,
    waiting: Vec<u8>,
}

fn failed(error: std::io::Error) -> StageError {
    StageError::environment("remembering rows in the scratch folder".to_owned(), error)
}

impl Spill {
    /// Nothing yet; a file will lie in `folder`.
    pub(crate) fn new(folder: &Path, limit: usize) -> Self {
        Self { folder: folder.to_owned(), limit, file: None, written: 0, waiting: Vec::new() }
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> u64 {
        self.written + self.waiting.len() as u64
    }

    /// Appends bytes, which stay together.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        if self.waiting.len() + bytes.len() > self.limit && !self.waiting.is_empty() {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(unnamed(&self.folder).map_err(failed)?),
            };
            file.write_all(&self.waiting).map_err(failed)?;
            self.written += self.waiting.len() as u64;
            self.waiting.clear();
        }
        self.waiting.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads `length` bytes from `start` on.
    pub(crate) fn read(&self, start: u64, length: usize) -> Result<Vec<u8>, StageError> {
        let mut bytes = vec![0; length];
        let in_file = self.written.saturating_sub(start).min(length as u64) as usize;
        if let Some(file) = self.file.as_ref().filter(|_| in_file > 0) {
            file.read_exact_at(&mut bytes[..in_file], start).map_err(failed)?;
        }
        if in_file < length {
            let first = (start + in_file as u64 - self.written) as usize;
            bytes[in_file..].copy_from_slice(&self.waiting[first..first + length - in_file]);
        }
        Ok(bytes)
    }
}

/// A new file whose name is taken away at once.
fn unnamed(folder: &Path) -> std::io::Result<File> {
    for number in 0u32.. {
        let path = folder.join(format!("rows-{number}.tmp"));
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_was_appended_is_read(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 1..30),
            limit in 1usize..40,
            at in any::<prop::sample::Index>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut spill = Spill::new(folder.path(), limit);
            for piece in &pieces {
                spill.append(piece).unwrap();
            }
            let all = pieces.concat();
            prop_assert_eq!(spill.len(), all.len() as u64);
            prop_assert!(spill.waiting.len() <= limit.max(8), "no more waits in memory than that");
            let start = at.index(all.len() + 1);
            prop_assert_eq!(&spill.read(start as u64, all.len() - start).unwrap(), &all[start..]);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
