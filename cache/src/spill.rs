//! Bytes that are remembered for a while: in memory up to a limit, beyond it in a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// What was to be remembered cannot be written to a temporary file, or read from it.
#[derive(Debug, thiserror::Error)]
#[error("keeping what is too long for memory in `{}`: {source}", folder.display())]
pub struct SpillError {
    /// Where the file lies.
    pub folder: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// Bytes that are only ever appended.
#[derive(Debug)]
pub struct Spill {
    folder: PathBuf,
    limit: usize,
    /// A file without a name: it is gone with this.
    file: Option<File>,
    /// How many bytes are in it.
    written: u64,
    waiting: Vec<u8>,
}

impl Spill {
    /// Bytes that wait in memory, where nothing else is said.
    pub const LIMIT: usize = 16 << 20;

    /// Nothing yet; a file will lie in `folder` once there are more than `limit` bytes.
    pub fn new(folder: &Path, limit: usize) -> Self {
        Self { folder: folder.to_owned(), limit, file: None, written: 0, waiting: Vec::new() }
    }

    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        self.written + self.waiting.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes, which stay together.
    ///
    /// # Errors
    /// If the file cannot be made or written. Nothing is lost then: what waits stays in memory.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SpillError> {
        if self.waiting.len() + bytes.len() > self.limit && !self.waiting.is_empty() {
            self.write().map_err(|error| self.failed(error))?;
        }
        self.waiting.extend_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile_in(&self.folder)?),
        };
        // At its place, whatever a failed attempt has left.
        file.write_all_at(&self.waiting, self.written)?;
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    fn failed(&self, source: io::Error) -> SpillError {
        SpillError { folder: self.folder.clone(), source }
    }

    /// Reads `length` bytes from `start` on.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self, start: u64, length: usize) -> Result<Vec<u8>, SpillError> {
        let mut bytes = vec![0; length];
        let in_file = self.written.saturating_sub(start).min(length as u64) as usize;
        if let Some(file) = self.file.as_ref().filter(|_| in_file > 0) {
            file.read_exact_at(&mut bytes[..in_file], start).map_err(|error| self.failed(error))?;
        }
        if in_file < length {
            let first = (start + in_file as u64 - self.written) as usize;
            bytes[in_file..].copy_from_slice(&self.waiting[first..first + length - in_file]);
        }
        Ok(bytes)
    }

    /// Gives back memory that nothing waits in.
    pub(crate) fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
    }

    /// Reads the bytes of a range in their order.
    pub(crate) fn reader(&self, range: Range<u64>) -> SpillReader<'_> {
        SpillReader { spill: self, left: range, block: Vec::new(), given: 0 }
    }
}

/// Reads bytes one after the other, a block at a time.
pub(crate) struct SpillReader<'a> {
    spill: &'a Spill,
    /// What is not read yet.
    left: Range<u64>,
    /// Bytes that were read, and how many of them were given out.
    block: Vec<u8>,
    given: usize,
}

impl SpillReader<'_> {
    /// Bytes that are read at once.
    const BLOCK: usize = 8 << 10;

    /// The next bytes, which stay the next: `count` of them or more, fewer only at the end.
    pub(crate) fn peek(&mut self, count: usize) -> Result<&[u8], SpillError> {
        if self.block.len() - self.given < count {
            self.block.drain(..self.given);
            self.given = 0;
            let wanted = (count.max(Self::BLOCK) - self.block.len()) as u64;
            let read =
                self.spill.read(self.left.start, wanted.min(self.left.end - self.left.start) as usize)?;
            self.left.start += read.len() as u64;
            self.block.extend(read);
        }
        Ok(&self.block[self.given..])
    }

    /// Passes over bytes that were looked at.
    pub(crate) fn skip(&mut self, count: usize) {
        self.given += count;
    }
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
            let mut reader = spill.reader(start as u64..spill.len());
            for (place, byte) in all.iter().enumerate().skip(start) {
                prop_assert_eq!(&reader.peek(1 + place % 5).unwrap()[0], byte);
                reader.skip(1);
            }
            prop_assert!(reader.peek(1).unwrap().is_empty());
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn nothing_is_lost_where_no_file_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::new(&folder.path().join("missing"), 4);
        spill.append(b"abc").unwrap();
        let error = spill.append(b"def").unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert_eq!(spill.read(0, 3).unwrap(), b"abc");
    }
}
