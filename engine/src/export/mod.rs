//! A run as a folder or an archive that stands alone: its results, the files of the study, what each
//! action was made of, and all of it described as a Workflow Run RO-Crate.

mod description;
mod sheets;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pipe_cache::{ActionKey, Digest, Record, RunFolder, Store, StoreError};

use crate::history::StoredPlan;
use crate::journal::Journal;
use crate::language::parts_of;
use crate::publish;
use description::Description;
pub use sheets::{Pictured, SheetDrawer};
pub(crate) use sheets::{SheetsError, sheets};
use target::Target;

/// A node of the run.
pub(crate) struct Execution {
    pub(crate) name: String,
    pub(crate) stage: String,
    pub(crate) axes: Vec<(String, String)>,
    pub(crate) key: Digest,
    /// None where it failed, did not run, or its result is gone.
    pub(crate) record: Option<Record>,
    /// Why it failed, if it did.
    pub(crate) failure: Option<String>,
}

impl Execution {
    fn new(store: &Store, name: &str, key: Digest, plan: &StoredPlan) -> Result<Self, StoreError> {
        let (stage, axes) = parts_of(name);
        Ok(Self {
            name: name.to_owned(),
            stage,
            axes,
            key,
            // One that does not say what it was made of tells nothing.
            record: store.record(&key)?.filter(|record| record.components().is_some()),
            failure: plan.failed.get(name).cloned(),
        })
    }

    /// Where the files of an output lie in the crate.
    fn folder(&self, port: &str) -> String {
        format!("results/{}", publish::folder_of(&self.stage, &self.axes, port))
    }
}

/// A file that was written.
pub(crate) struct Written {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// What was exported.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) nodes: usize,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Outputs that were left out because they tell of single samples.
    pub(crate) private: usize,
    /// Nodes without a result, with the reason.
    pub(crate) missing: Vec<(String, String)>,
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// Nothing that exists is replaced.
    #[error("`{}` exists", .0.display())]
    Exists(PathBuf),
    /// A stored file is not what it was.
    #[error("a file of `{node}`, `{path}`, is damaged in the store")]
    Damaged { node: String, path: String },
    /// A file could not be read or written.
    #[error("writing `{path}`")]
    Write {
        path: String,
        #[source]
        source: std::io::Error,
    },
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which results are written, beside the provenance of all.
pub(crate) struct Wanted<'a> {
    /// Whether those of a node are.
    pub(crate) node: &'a dyn Fn(&str) -> bool,
    /// Whether an artifact of a type tells of no single sample; none where others are written too. With it,
    /// what the stages said stays behind as well: their lines name samples.
    pub(crate) aggregate: Option<&'a dyn Fn(&str) -> bool>,
}

/// Writes `run` to `to`: an archive if that ends in `.zip`, else a folder. `to` appears whole or not at all.
pub(crate) fn export(
    store: &Store,
    run: &RunFolder,
    plan: &StoredPlan,
    to: &Path,
    wanted: &Wanted<'_>,
) -> Result<Summary, ExportError> {
    if to.symlink_metadata().is_ok() {
        return Err(ExportError::Exists(to.to_owned()));
    }
    let mut executions = plan
        .nodes
        .iter()
        .map(|(name, key)| Execution::new(store, name, *key, plan))
        .collect::<Result<Vec<Execution>, StoreError>>()?;
    let mut target = Target::create(to)?;
    let mut summary = Summary { nodes: executions.len(), ..Summary::default() };
    let study = study_files(plan, &mut target)?;
    let mut kept = Vec::new();
    if wanted.aggregate.is_none() {
        kept = run_files(run, &mut target)?;
    } else {
        for execution in &mut executions {
            execution.failure = execution.failure.take().map(|_| "it failed".to_owned());
        }
    }
    let resolved: BTreeMap<&str, &ActionKey> = executions
        .iter()
        .filter_map(|one| Some((one.name.as_str(), one.record.as_ref()?.components()?)))
        .collect();
    let resolved = serde_json::to_string_pretty(&resolved).expect("keys in clear are strings and numbers");
    kept.push(target.write("study/resolved.json", resolved.as_bytes())?);
    let mut outputs = BTreeMap::new();
    // Nodes that are made of the same things share a record.
    let mut recorded = BTreeSet::new();
    for execution in &executions {
        let Some(record) = &execution.record else {
            let reason =
                execution.failure.clone().unwrap_or_else(|| "its result is not in the store".to_owned());
            summary.missing.push((execution.name.clone(), reason));
            continue;
        };
        if recorded.insert(execution.key) {
            let path = format!("records/{}.json", execution.key);
            kept.push(target.copy(&path, &store.record_path(&execution.key), None)?);
        }
        if !(wanted.node)(&execution.name) {
            continue;
        }
        for (port, output) in &record.outputs {
            if wanted.aggregate.is_some_and(|is_aggregate| !is_aggregate(&output.artifact_type)) {
                summary.private += 1;
                continue;
            }
            let folder = execution.folder(port);
            let mut files = Vec::with_capacity(output.files.len());
            for file in &output.files {
                let path = format!("{folder}/{}", file.path);
                let written = target.copy(&path, &store.blob_path(&file.blob), Some(&file.blob));
                files.push(written.map_err(|error| match error {
                    ExportError::Damaged { path, .. } => {
                        ExportError::Damaged { node: execution.name.clone(), path }
                    }
                    other => other,
                })?);
            }
            outputs.insert(folder, files);
        }
    }
    let journal = Journal::read(run);
    let description = Description {
        run,
        plan,
        journal: journal.as_ref(),
        executions: &executions,
        study: &study,
        kept: &kept,
        outputs: &outputs,
    };
    target.write("README.md", description.read_me().as_bytes())?;
    let metadata = format!("{:#}\n", description.metadata());
    target.write("ro-crate-metadata.json", metadata.as_bytes())?;
    (summary.files, summary.bytes) = target.finish()?;
    Ok(summary)
}

/// The files that made the study; the pipeline file first.
fn study_files(plan: &StoredPlan, target: &mut Target) -> Result<Vec<Written>, ExportError> {
    plan.files.iter().map(|(path, text)| target.write(&format!("study/{path}"), text.as_bytes())).collect()
}

/// What the run left: its plan, its events, what its stages said.
fn run_files(run: &RunFolder, target: &mut Target) -> Result<Vec<Written>, ExportError> {
    let mut files = Vec::new();
    for (name, path) in [("run/plan.json", run.plan()), ("run/events.jsonl", run.events())] {
        if path.is_file() {
            files.push(target.copy(name, &path, None)?);
        }
    }
    let mut logs: Vec<PathBuf> = std::fs::read_dir(run.path().join("logs"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0))
        .collect();
    logs.sort();
    for path in logs {
        let Some(name) = path.file_name() else { continue };
        files.push(target.copy(&format!("run/logs/{}", name.to_string_lossy()), &path, None)?);
    }
    Ok(files)
}
