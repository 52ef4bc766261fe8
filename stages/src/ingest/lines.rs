//! Text files line by line, in bounded memory.

use std::io::{BufRead, BufReader, Read};

use pipe_engine::StageError;

use super::source::SourceFile;

/// A longer line is none of a data set.
const LINE_LIMIT: u64 = 64 << 20;

/// The lines of a file that are not empty.
pub(crate) struct Lines<'a> {
    file: &'a SourceFile,
    bytes: BufReader<Box<dyn Read + Send>>,
    number: usize,
    read: u64,
}

impl<'a> Lines<'a> {
    /// Opens a file; one whose name ends in `.gz` is unpacked.
    pub(crate) fn open(file: &'a SourceFile) -> Result<Self, StageError> {
        let bytes = file.open_gzip().map_err(|reason| file.error(reason))?;
        Ok(Self { file, bytes: BufReader::new(bytes), number: 0, read: 0 })
    }

    /// The next line without its end, and its number, from 1; `None` behind the last. A mark of the byte
    /// order is none of the first line.
    ///
    /// # Errors
    /// If the file cannot be read, or the line is longer than any data set's.
    pub(crate) fn next(&mut self) -> Result<Option<(usize, Vec<u8>)>, StageError> {
        loop {
            let mut line = Vec::new();
            (&mut self.bytes)
                .take(LINE_LIMIT + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| self.file.error(error.to_string()))?;
            if line.is_empty() {
                return Ok(None);
            }
            self.number += 1;
            self.read += line.len() as u64;
            if line.len() as u64 > LINE_LIMIT {
                let reason = format!("line {} has more than {LINE_LIMIT} bytes", self.number);
                return Err(self.file.error(reason));
            }
            if self.number == 1 && line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
            while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                line.pop();
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some((self.number, line)));
            }
        }
    }

    /// As [`Self::next`], as text; the reason if it is none.
    pub(crate) fn next_text(&mut self) -> Result<Option<(usize, Result<String, String>)>, StageError> {
        let text = |line| String::from_utf8(line).map_err(|_| "it is no UTF-8 text".to_owned());
        Ok(self.next()?.map(|(number, line)| (number, text(line))))
    }

    /// How many bytes were read.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read
    }
}
