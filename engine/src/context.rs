//! What a running stage sees: its inputs, its outputs, and the few things it may ask of the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use pipe_cache::Digest;
use serde::{Deserialize, Serialize};

use crate::ancestry::Ancestor;
use crate::artifact::{Artifact, InputArtifact};
use crate::checkpoints::{Checkpoints, Resumed};
use crate::error::StageError;

/// One part of a table that a stage has written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TablePart {
    /// The file, relative to the port's folder.
    pub path: String,
    /// The logical digest of its rows.
    pub digest: Digest,
    /// Its number of rows.
    pub rows: u64,
}

/// Where a stage writes one artifact.
#[derive(Debug)]
pub struct OutputWriter {
    folder: PathBuf,
    parts: Option<Vec<TablePart>>,
}

impl OutputWriter {
    /// A writer into `folder`, which exists and is empty.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, parts: None }
    }

    /// The path of a new file, its parent folders made.
    ///
    /// # Errors
    /// If `relative` leaves the port's folder, or a folder cannot be made.
    pub fn path(&self, relative: &str) -> Result<PathBuf, StageError> {
        let inside = !relative.is_empty()
            && Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(StageError::failed(format!("output path `{relative}` leaves the output folder")));
        }
        let path = self.folder.join(relative);
        if let Some(parent) = path.parent().filter(|parent| *parent != self.folder) {
            std::fs::create_dir_all(parent)
                .map_err(|error| StageError::environment(format!("making `{}`", parent.display()), error))?;
        }
        Ok(path)
    }

    /// Declares the files written so far as one table of these parts, in this order. The artifact's
    /// digest is then that of its rows instead of that of its bytes.
    pub fn set_table(&mut self, parts: Vec<TablePart>) {
        self.parts = Some(parts);
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The parts, if it is a table.
    pub fn table(&self) -> Option<&[TablePart]> {
        self.parts.as_deref()
    }
}

/// What a stage may tell and ask the engine while it runs; implemented by the executor.
pub trait StageHost: Sync {
    /// Work done so far, in units of the stage (`images`, `steps`), with current figures (`loss`).
    fn progress(&self, done: u64, total: u64, unit: &str, figures: &[(&str, f64)]);
    /// A line for the log of this attempt.
    fn log(&self, line: &str);
    /// A warning that the run's summary repeats.
    fn warn(&self, message: &str);
    /// Whether the stage shall stop at the next safe point.
    fn cancelled(&self) -> bool;
    /// The state after a step was kept.
    fn checkpoint(&self, _step: u64) {}
    /// The work goes on after this step.
    fn resumed(&self, _step: u64) {}
    /// Work that says what a result costs on any machine: so many more of `what`, a name such as `forward_passes`.
    fn count(&self, _what: &str, _number: u64) {}
    /// A program that the stage had run took this much processor time, and at most this many bytes of memory.
    fn spent(&self, _cpu: Duration, _memory: u64) {}
}

/// Everything a stage has while it runs.
pub struct StageContext<'a> {
    /// The inputs by port name, each a list (one artifact unless the port takes many).
    pub(crate) inputs: BTreeMap<String, Vec<InputArtifact>>,
    /// The outputs by port name.
    pub(crate) outputs: BTreeMap<String, OutputWriter>,
    pub(crate) host: &'a dyn StageHost,
    pub(crate) threads: usize,
    pub(crate) gpus: Vec<usize>,
    pub(crate) memory: Option<u64>,
    /// Inputs that are fan-ins or lists.
    pub(crate) lists: BTreeSet<String>,
    pub(crate) scratch: PathBuf,
    pub(crate) provenance: String,
    /// What the parts gave, by output port, while they are merged.
    pub(crate) partials: BTreeMap<String, Vec<Artifact>>,
    pub(crate) is_part: bool,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) ancestry: Vec<Ancestor>,
}

impl<'a> StageContext<'a> {
    /// A context; the executor and tests of kinds make one.
    pub fn new(
        inputs: BTreeMap<String, Vec<InputArtifact>>,
        outputs: BTreeMap<String, OutputWriter>,
        host: &'a dyn StageHost,
        threads: usize,
        scratch: PathBuf,
        provenance: String,
    ) -> Self {
        Self {
            inputs,
            outputs,
            host,
            threads,
            gpus: Vec::new(),
            memory: None,
            lists: BTreeSet::new(),
            scratch,
            provenance,
            partials: BTreeMap::new(),
            is_part: false,
            checkpoints: Checkpoints::none(),
            ancestry: Vec::new(),
        }
    }

    /// The same context, which tells these stages above.
    #[must_use]
    pub fn with_ancestry(self, ancestry: Vec<Ancestor>) -> Self {
        Self { ancestry, ..self }
    }

    /// The same context with a bound of memory, in bytes.
    #[must_use]
    pub fn with_memory(self, memory: Option<u64>) -> Self {
        Self { memory, ..self }
    }

    /// The same context, in which these inputs are fan-ins or lists.
    #[must_use]
    pub fn with_lists(self, lists: BTreeSet<String>) -> Self {
        Self { lists, ..self }
    }

    /// The same context with GPUs of its own.
    #[must_use]
    pub fn with_gpus(self, gpus: Vec<usize>) -> Self {
        Self { gpus, ..self }
    }

    /// The same context with checkpoints.
    #[must_use]
    pub fn with_checkpoints(self, checkpoints: Checkpoints) -> Self {
        Self { checkpoints, ..self }
    }

    /// What an earlier attempt of this action kept, and where this one keeps its state.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// The newest state that an earlier attempt kept; that it is resumed is told.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn resume(&self) -> Result<Option<Resumed>, StageError> {
        let resumed = self.checkpoints.resume()?;
        if let Some(resumed) = &resumed {
            self.host.resumed(resumed.step);
        }
        Ok(resumed)
    }

    /// A safe point after `step`, where the state of the stage is whole: keeps it if that is due or the run
    /// was asked to stop, and then stops.
    ///
    /// # Errors
    /// [`StageError::Cancelled`], or if the state cannot be kept.
    pub fn safe_point(
        &self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        if step > 0 && (self.checkpoints.is_due(step) || self.host.cancelled()) {
            self.checkpoints.save(step, write)?;
            self.host.checkpoint(step);
        }
        self.check_cancelled()
    }

    /// The same context for one part of a row-wise node; see [`Self::is_part`].
    #[must_use]
    pub fn of_part(self) -> Self {
        Self { is_part: true, ..self }
    }

    /// The same context for merging what the parts gave; see [`Self::partials`].
    #[must_use]
    pub fn with_partials(self, partials: BTreeMap<String, Vec<Artifact>>) -> Self {
        Self { partials, ..self }
    }

    /// Whether the action is on one part of a table. What is said of it is said of each part, and what is
    /// remarkable of a whole table (that no row passes a filter) need not be of a part.
    pub fn is_part(&self) -> bool {
        self.is_part
    }

    /// In [`crate::StageKind::merge`]: what the parts gave for an output port, in their order.
    pub fn partials(&self, port: &str) -> &[Artifact] {
        self.partials.get(port).map_or(&[], Vec::as_slice)
    }

    /// The only artifact of a required input.
    ///
    /// # Errors
    /// If the port has none or several: validation has excluded both.
    pub fn input(&self, port: &str) -> Result<&Artifact, StageError> {
        match self.inputs(port) {
            [one] => Ok(&one.artifact),
            several => Err(StageError::failed(format!(
                "input `{port}` has {} artifacts, one is expected",
                several.len()
            ))),
        }
    }

    /// The artifact of an input that may be left out.
    pub fn optional_input(&self, port: &str) -> Option<&Artifact> {
        self.inputs(port).first().map(|input| &input.artifact)
    }

    /// All artifacts of an input, in the producers' node order; empty if it was left out.
    pub fn inputs(&self, port: &str) -> &[InputArtifact] {
        self.inputs.get(port).map_or(&[], Vec::as_slice)
    }

    /// All inputs by name, for kinds whose inputs are freely named.
    pub fn all_inputs(&self) -> impl Iterator<Item = (&str, &[InputArtifact])> {
        self.inputs.iter().map(|(name, artifacts)| (name.as_str(), artifacts.as_slice()))
    }

    /// Where to write the artifact of an output port.
    ///
    /// # Errors
    /// If the kind did not declare the port.
    pub fn output(&mut self, port: &str) -> Result<&mut OutputWriter, StageError> {
        self.outputs
            .get_mut(port)
            .ok_or_else(|| StageError::failed(format!("output port `{port}` was not declared")))
    }

    /// The number of threads that this action may use; the calling thread is inside a pool of it.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The slots of the GPUs that this action alone may use, in rising order: ordinals among the devices
    /// that the process sees. As many as `resources.gpu` asks for.
    pub fn gpus(&self) -> &[usize] {
        &self.gpus
    }

    /// The memory that the action asked for, in bytes.
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// Whether an input is written as a fan-in or a list, of however many members.
    pub fn is_list(&self, port: &str) -> bool {
        self.lists.contains(port)
    }

    /// A private folder that lives as long as the attempt, made when it is first asked for.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> Result<&Path, StageError> {
        std::fs::create_dir_all(&self.scratch)
            .map_err(|error| StageError::environment("making the folder for what lives only now", error))?;
        Ok(&self.scratch)
    }

    /// The provenance that stored files carry in their `pipe` metadata: one JSON object of kind,
    /// implementation version, parameters and input digests.
    pub fn provenance(&self) -> &str {
        &self.provenance
    }

    /// How the inputs came about, each stage behind what it reads and the own one last: for kinds that show it, see
    /// [`crate::StageKind::shows_ancestry`]; empty for others.
    pub fn ancestry(&self) -> &[Ancestor] {
        &self.ancestry
    }

    /// The host, for work that outlives a borrow of the context.
    pub fn host(&self) -> &'a dyn StageHost {
        self.host
    }

    /// Reports progress.
    pub fn progress(&self, done: u64, total: u64, unit: &str, figures: &[(&str, f64)]) {
        self.host.progress(done, total, unit, figures);
    }

    /// Warns.
    pub fn warn(&self, message: &str) {
        self.host.warn(message);
    }

    /// Returns early when the run was asked to stop: call it at every safe point.
    ///
    /// # Errors
    /// [`StageError::Cancelled`].
    pub fn check_cancelled(&self) -> Result<(), StageError> {
        if self.host.cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }
}
