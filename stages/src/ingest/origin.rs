//! Which files a data set was read from, for the metadata of its tables.

use pipe_engine::{StageContext, StageError};
use rayon::prelude::*;

use super::checksum::md5_of;
use super::source::SourceFiles;

/// Endings of files that describe a data set or hold many of its files: what publishers give checksums of.
const ENDINGS: [&str; 8] = ["zip", "json", "jsonl", "csv", "tsv", "txt", "parquet", "npz"];

/// Whether a file is a table or an archive, by its name.
pub(crate) fn is_table(path: &str) -> bool {
    let path = path.to_lowercase();
    let name = path.strip_suffix(".gz").unwrap_or(&path);
    name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending))
}

/// `dataset_version`: what the user says, or that nobody does.
pub(crate) fn version(given: Option<&str>) -> String {
    given.unwrap_or("not given").to_owned()
}

/// `source_md5`: the MD5 of each table and archive of the sources that `wanted` accepts by its path, as a JSON
/// map by path. Images and volumes that lie loose are not among them: their rows hold a digest of each.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn source_md5(
    sources: &[&SourceFiles],
    wanted: impl Fn(&str) -> bool,
    context: &StageContext<'_>,
) -> Result<String, StageError> {
    context.check_cancelled()?;
    let files: Vec<_> =
        sources.iter().flat_map(|files| files.tables()).filter(|(path, _)| wanted(path)).collect();
    let sums = files.par_iter().map(|(path, location)| Ok((path.clone(), md5_of(location)?.into())));
    let sums = sums.collect::<Result<Vec<(String, serde_json::Value)>, StageError>>()?;
    Ok(serde_json::Value::Object(sums.into_iter().collect()).to_string())
}
