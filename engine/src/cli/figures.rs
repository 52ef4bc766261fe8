//! The figures of stored results, for commands that tell them.

use pipe_cache::{OutputRecord, Reading, Store, Verify};

use super::CliError;
use crate::kind::{Figures, Registry};
use crate::shards;

/// The figures of a result; none if it has none, or is not in the store any more.
pub(crate) fn figures_of(
    store: &Store,
    registry: &Registry,
    output: &OutputRecord,
) -> Result<Option<Figures>, CliError> {
    let Some(reader) = registry.figures(&output.artifact_type) else { return Ok(None) };
    // A command that only looks changes nothing: what is damaged is `verify`'s to find.
    let is_there = |file: &pipe_cache::FileRecord| store.blob_path(&file.blob).is_file();
    if !output.files.iter().all(is_there) {
        return Ok(None);
    }
    match store.read(output, Verify::Never)? {
        Reading::Files(files) => Ok(reader(&shards::result(output, files)).ok()),
        Reading::Damaged(_) => Ok(None),
    }
}
