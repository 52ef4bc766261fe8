//! Readers of files that a library makes sense of: on some damaged ones the library gives up with a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use pipe_engine::StageError;

/// What `read` makes of the file at `path`.
///
/// # Errors
/// Those of `read`; and if it panics, that the file is damaged.
pub(crate) fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, StageError>) -> Result<T, StageError> {
    // What was half read is dropped with the reader: nothing goes on with it.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(StageError::input(path, "it is damaged: it names places that it does not have"))
    })
}

/// The next rows of a file; nothing behind the last.
///
/// # Errors
/// If the file is damaged.
pub(crate) fn next_batch(
    path: &Path,
    rows: &mut impl Iterator<Item = Result<RecordBatch, ArrowError>>,
) -> Result<Option<RecordBatch>, StageError> {
    guarded(path, || rows.next().transpose().map_err(|error| StageError::input(path, error.to_string())))
}
