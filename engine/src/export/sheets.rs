//! The pictures of a run's results, as sheets for print.

use std::collections::BTreeMap;
use std::path::Path;

use pipe_cache::{Digest, Reading, Store, Verify};

use super::target::Target;
use super::{Execution, ExportError, Summary};
use crate::answers::StudyResult;
use crate::error::StageError;
use crate::history::StoredPlan;
use crate::shards;

/// A result with everything that the makers of its inputs gave: of maps the images that they explain, with masks and
/// labels.
#[derive(Clone, Debug)]
pub struct Pictured {
    /// The result.
    pub result: StudyResult,
    /// What stands beside it.
    pub beside: Vec<StudyResult>,
}

/// Draws those of some results that are pictures, of so many samples at most: files by their names.
///
/// # Errors
/// If a result is damaged.
pub type SheetDrawer = fn(&[Pictured], usize) -> Result<Vec<(String, Vec<u8>)>, StageError>;

/// Why no sheets were written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SheetsError {
    /// As of any export.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A result could not be drawn.
    #[error(transparent)]
    Drawing(#[from] StageError),
    /// There is nothing to draw.
    #[error("none of these results is a picture")]
    Nothing,
}

/// Draws what `wanted` nodes of a run gave into a folder or an archive.
///
/// # Errors
/// See [`SheetsError`]; nothing is left then.
pub(crate) fn sheets(
    store: &Store,
    plan: &StoredPlan,
    to: &Path,
    wanted: &dyn Fn(&str) -> bool,
    (draw, most): (SheetDrawer, usize),
) -> Result<Summary, SheetsError> {
    if to.symlink_metadata().is_ok() {
        return Err(ExportError::Exists(to.to_owned()).into());
    }
    let executions = plan
        .nodes
        .iter()
        .map(|(name, key)| Execution::new(store, name, *key, plan))
        .collect::<Result<Vec<Execution>, _>>()
        .map_err(ExportError::Store)?;
    // By the digest of an output the node that gave it.
    let mut makers: BTreeMap<Digest, usize> = BTreeMap::new();
    for (place, execution) in executions.iter().enumerate() {
        for output in execution.record.iter().flat_map(|record| record.outputs.values()) {
            makers.entry(output.content).or_insert(place);
        }
    }
    let mut summary = Summary::default();
    let mut pictured = Vec::new();
    for execution in executions.iter().filter(|execution| wanted(&execution.name)) {
        let results = results(store, execution)?;
        if results.is_empty() {
            let reason = "its result is not in the store".to_owned();
            summary.missing.push((execution.name.clone(), execution.failure.clone().unwrap_or(reason)));
        }
        let components = execution.record.as_ref().and_then(|record| record.components());
        let inputs = components.iter().flat_map(|key| &key.inputs).flat_map(|input| &input.artifacts);
        let mut places: Vec<usize> = inputs.filter_map(|input| makers.get(&input.digest).copied()).collect();
        places.sort_unstable();
        places.dedup();
        let mut beside = Vec::new();
        for place in places {
            beside.extend(self::results(store, &executions[place])?);
        }
        summary.nodes += 1;
        pictured.extend(results.into_iter().map(|result| Pictured { result, beside: beside.clone() }));
    }
    let files = draw(&pictured, most)?;
    if files.is_empty() {
        return Err(SheetsError::Nothing);
    }
    let mut target = Target::create(to)?;
    for (path, content) in files {
        target.write(&path, &content)?;
    }
    (summary.files, summary.bytes) = target.finish()?;
    Ok(summary)
}

/// What a node gave, as far as it is whole in the store.
fn results(store: &Store, execution: &Execution) -> Result<Vec<StudyResult>, ExportError> {
    let mut results = Vec::new();
    for (port, output) in execution.record.iter().flat_map(|record| &record.outputs) {
        if !output.files.iter().all(|file| store.blob_path(&file.blob).is_file()) {
            continue;
        }
        if let Reading::Files(files) = store.read(output, Verify::Never).map_err(ExportError::Store)? {
            results.push(StudyResult {
                stage: execution.stage.clone(),
                port: port.clone(),
                axes: execution.axes.iter().cloned().collect(),
                rows: output.rows,
                artifact: shards::result(output, files),
            });
        }
    }
    Ok(results)
}
