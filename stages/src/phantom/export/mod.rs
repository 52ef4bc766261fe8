//! Phantoms in the files of published data sets: readers of these can be tried on any number of rows.

mod ct_rate;
mod medmnist;

pub(super) use ct_rate::{CtRateFolder, Published};
pub(super) use medmnist::{NpzFile, grey_of, with_channels};

use std::path::Path;

use pipe_engine::StageError;

/// A file of the export could not be written.
fn failed(path: &Path) -> impl Fn(std::io::Error) -> StageError {
    let what = format!("writing `{}`", path.display());
    move |error| StageError::environment(what.clone(), error)
}
