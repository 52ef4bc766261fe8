//! Opening Arrow files of which nothing is believed that the file is too short for: a damaged one may say that its rows
//! take more memory than there is, and the library takes it before it reads.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, read_footer_length};
use arrow_ipc::{Block, root_as_footer};
use arrow_schema::{ArrowError, Schema};
use pipe_engine::StageError;

use crate::guard::{guarded, next_batch};

/// The length of the footer and the name of the format, at the end of a file.
const TRAILER: u64 = 10;

/// The rows of an Arrow file, batch by batch.
pub(crate) struct ArrowFile<'p> {
    path: &'p Path,
    reader: FileReader<File>,
}

impl<'p> ArrowFile<'p> {
    /// Opens the file.
    ///
    /// # Errors
    /// If it is no Arrow file, or claims more bytes than it has.
    pub(crate) fn open(path: &'p Path) -> Result<Self, StageError> {
        let unreadable = |error: io::Error| StageError::input(path, error.to_string());
        let mut file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let reader = guarded(path, || {
            check_lengths(path, &mut file, length)?;
            file.rewind().map_err(unreadable)?;
            FileReader::try_new(file, None).map_err(|error| StageError::input(path, error.to_string()))
        })?;
        Ok(Self { path, reader })
    }

    /// The columns.
    pub(crate) fn schema(&self) -> std::sync::Arc<Schema> {
        self.reader.schema()
    }

    /// The next rows; nothing behind the last.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(crate) fn next(&mut self) -> Result<Option<RecordBatch>, StageError> {
        next_batch(self.path, &mut self.reader)
    }

    /// All rows as one batch.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(crate) fn all(self) -> Result<RecordBatch, StageError> {
        let (path, schema) = (self.path, self.schema());
        let damaged = |error: ArrowError| StageError::input(path, error.to_string());
        guarded(path, || {
            let batches = self.reader.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
            arrow_select::concat::concat_batches(&schema, &batches).map_err(damaged)
        })
    }
}

/// Holds the footer and every block that it names against the length of the file.
fn check_lengths(path: &Path, file: &mut File, length: u64) -> Result<(), StageError> {
    let damaged = |reason: String| StageError::input(path, reason);
    let unreadable = |error: io::Error| damaged(error.to_string());
    let start = length.checked_sub(TRAILER);
    let start =
        start.ok_or_else(|| damaged(format!("it has {length} bytes, which no Arrow file fits in")))?;
    let mut trailer = [0; TRAILER as usize];
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut trailer)).map_err(unreadable)?;
    let footer = read_footer_length(trailer).map_err(|error| damaged(error.to_string()))? as u64;
    let start = start.checked_sub(footer);
    let start = start.ok_or_else(|| {
        damaged(format!("it says that its footer has {footer} bytes, and has {length} bytes itself"))
    })?;
    let mut bytes = vec![0; footer as usize];
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes)).map_err(unreadable)?;
    let footer =
        root_as_footer(&bytes).map_err(|error| damaged(format!("its footer is damaged: {error}")))?;
    let blocks = footer.dictionaries().into_iter().chain(footer.recordBatches()).flatten();
    match blocks.map(end).find(|end| end.is_none_or(|end| end > length)) {
        None => Ok(()),
        Some(Some(end)) => {
            Err(damaged(format!("it says that rows end at byte {end}, and has {length} bytes")))
        }
        Some(None) => Err(damaged("it says that rows begin or end before the file does".to_owned())),
    }
}

/// The byte behind a block; none if it is no place in a file.
fn end(block: &Block) -> Option<u64> {
    let parts = [block.offset(), i64::from(block.metaDataLength()), block.bodyLength()];
    parts.iter().try_fold(0u64, |sum, part| sum.checked_add(u64::try_from(*part).ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Float32Array};
    use arrow_ipc::writer::FileWriter;

    use super::*;

    /// A file of one batch whose footer says another length of its rows.
    fn file(body: impl Fn(i64) -> i64) -> Vec<u8> {
        let column: ArrayRef = Arc::new(Float32Array::from(vec![1.5f32; 1000]));
        let rows = RecordBatch::try_from_iter([("x", column)]).unwrap();
        let mut writer = FileWriter::try_new(Vec::new(), &rows.schema()).unwrap();
        writer.write(&rows).unwrap();
        writer.finish().unwrap();
        let mut bytes = writer.into_inner().unwrap();
        let trailer = bytes[bytes.len() - 10..].try_into().unwrap();
        let start = bytes.len() - 10 - read_footer_length(trailer).unwrap();
        let footer = root_as_footer(&bytes[start..bytes.len() - 10]).unwrap();
        let old = footer.recordBatches().unwrap().get(0).bodyLength();
        let place =
            bytes[start..].windows(8).rposition(|window| window == old.to_le_bytes()).unwrap() + start;
        bytes[place..place + 8].copy_from_slice(&body(old).to_le_bytes());
        bytes
    }

    #[test]
    fn lengths_are_believed_only_as_far_as_the_file_is_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.arrow");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            ArrowFile::open(&path).and_then(ArrowFile::all)
        };
        assert_eq!(read(&file(|length| length)).unwrap().num_rows(), 1000);
        // As much as a machine may have, so that memory for it would be given.
        for claim in [1i64 << 32, 1 << 45, i64::MAX] {
            let error = read(&file(|_| claim)).unwrap_err().to_string();
            assert!(
                error.contains("it says that rows end at byte") && error.contains("rows.arrow"),
                "{error}"
            );
        }
        let error = read(&file(|length| -length)).unwrap_err().to_string();
        assert!(error.contains("before the file does"), "{error}");
        let sound = file(|length| length);
        let mut long_footer = sound.clone();
        let place = sound.len() - 10;
        long_footer[place..place + 4].copy_from_slice(&i32::MAX.to_le_bytes());
        let error = read(&long_footer).unwrap_err().to_string();
        assert!(error.contains("its footer has 2147483647 bytes"), "{error}");
        for cut in [0, 5, 9, 10, 11, sound.len() / 2, sound.len() - 1] {
            assert!(read(&sound[..cut]).is_err(), "{cut} bytes");
        }
    }
}
