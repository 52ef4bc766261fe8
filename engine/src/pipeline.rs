//! A study after validation: what the planner and the scheduler work on. No templates, matrices or
//! profiles are left, and every value knows where it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pipe_cache::Digest;
use serde::{Deserialize, Serialize};

use crate::error::FailureClass;
use crate::kind::{AnyKind, KindDescription, OutputPort, ResolvedParams};
use crate::remote::Remote;

/// Index of a node in [`Pipeline::nodes`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub usize);

/// A place in a file, or a command-line option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Bytes `span` of file number `file` of [`Pipeline::sources`].
    File {
        /// Index into the sources.
        file: usize,
        /// Byte range.
        span: Range<usize>,
        /// The profile that set it, if one did.
        profile: Option<String>,
    },
    /// `--set` or `--var`, as typed.
    CommandLine(String),
    /// The kind's default.
    Default,
}

/// A TOML file that was read.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Its path, as given or as resolved from an include.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

impl SourceFile {
    /// Line and column, both from 1, of byte `offset`; columns count characters.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..offset.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// A validated study.
#[derive(Clone)]
pub struct Pipeline {
    /// `[pipeline] name`.
    pub name: String,
    /// The pipeline file.
    pub path: PathBuf,
    /// The nearest ancestor that holds `.pipe/` or `.git`, else the file's folder.
    pub project: PathBuf,
    /// The profiles chosen, in order.
    pub profiles: Vec<String>,
    /// What all actions together may take.
    pub executor: Executor,
    /// Where results are kept for other machines too.
    pub remote: RemoteCache,
    /// The files read; the first is the pipeline file.
    pub sources: Vec<SourceFile>,
    /// The stages, in file order.
    pub stages: Vec<Stage>,
    /// The nodes: stages in file order, matrix order inside. Not topologically sorted.
    pub nodes: Vec<Node>,
}

/// A stage: the nodes that one `[stage.NAME]` makes.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Its `doc`.
    pub doc: Option<String>,
    /// The axes of its matrix, in declared order.
    pub axes: Vec<String>,
    /// Its nodes.
    pub nodes: Vec<NodeId>,
    /// Where its table begins.
    pub origin: Origin,
}

/// Where values came from, by dotted path. A study of many nodes has many of them, each small.
#[derive(Clone, Debug, Default)]
pub struct Origins(Vec<(String, Origin)>);

impl Origins {
    /// Where the value at a path came from.
    pub fn get(&self, path: &str) -> Option<&Origin> {
        let place = self.0.binary_search_by(|(known, _)| known.as_str().cmp(path));
        place.ok().map(|place| &self.0[place].1)
    }
}

impl FromIterator<(String, Origin)> for Origins {
    fn from_iter<I: IntoIterator<Item = (String, Origin)>>(origins: I) -> Self {
        let mut origins: Vec<_> = origins.into_iter().collect();
        origins.sort_by(|a, b| a.0.cmp(&b.0));
        origins.shrink_to_fit();
        Self(origins)
    }
}

/// One instance of a stage.
#[derive(Clone)]
pub struct Node {
    /// The stage's name.
    pub stage: String,
    /// `stage[axis=value,...]`, or just `stage` without axes.
    pub name: String,
    /// The axis assignment in declared order; a table value appears as its `id`.
    pub axes: Vec<(String, String)>,
    /// The facts of the kind.
    pub description: Arc<KindDescription>,
    /// The kind.
    pub kind: Arc<dyn AnyKind>,
    /// Parameters with defaults.
    pub params: ResolvedParams,
    /// Where the kind was written.
    pub kind_origin: Origin,
    /// Where each parameter came from, by dotted path.
    pub origins: Origins,
    /// Inputs in port-name order.
    pub inputs: Vec<NodeInput>,
    /// Output ports.
    pub outputs: Vec<OutputPort>,
    /// Resources.
    pub resources: Resources,
    /// What happens after a failure.
    pub retry: Retry,
    /// When a long action keeps its state.
    pub checkpoint: CheckpointPolicy,
    /// Whether its actions run in processes of their own.
    pub isolate: bool,
    /// What of its results is kept for other machines too.
    pub remote: RemotePolicy,
    /// Where each resource and each value of `retry`, `checkpoint`, `isolate` and `remote` was written:
    /// `resources.cpu`, `retry.max`.
    pub setting_origins: Origins,
    /// Where the stage's table begins.
    pub origin: Origin,
}

/// An input of a node.
#[derive(Clone, Debug)]
pub struct NodeInput {
    /// The port.
    pub name: String,
    /// Its sources: one, or the members of a fan-in in the producer's node order.
    pub sources: Vec<InputSource>,
    /// Whether it is a fan-in or a list, of however many members.
    pub is_list: bool,
    /// Whether the axis assignments are part of the input and of the key.
    pub with_axes: bool,
    /// Where it was written.
    pub origin: Origin,
}

/// Where an input artifact comes from.
#[derive(Clone, Debug)]
pub enum InputSource {
    /// A port of another node.
    Node {
        /// The node.
        node: NodeId,
        /// Its port.
        port: String,
    },
    /// Files outside the study: `file:PATH` or a glob, relative to the TOML file that writes it.
    File {
        /// As written, after `file:`.
        pattern: String,
        /// Absolute path or glob.
        path: PathBuf,
        /// Whether what was recorded of it is taken as it is, without looking.
        is_frozen: bool,
    },
    /// Files elsewhere: `hf:...`, `zenodo:...`, `https:...`.
    Remote(Remote),
    /// A pinned blob: `store:b3:<hex>`.
    Blob(Digest),
}

/// Where results are kept for other machines too; in no key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RemoteCache {
    /// `s3://BUCKET/PREFIX` or `file:///FOLDER`; without it there is none, unless the environment says one.
    pub url: Option<String>,
    /// The server of the bucket, where it is not Amazon's.
    pub endpoint: Option<String>,
    /// What it is used for; the environment may say otherwise.
    pub mode: Option<RemoteMode>,
}

/// What a remote cache is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemoteMode {
    /// Nothing.
    Off,
    /// Results are taken from it.
    Read,
    /// Results are put there too.
    ReadWrite,
}

impl RemoteMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::Read, Self::ReadWrite];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Read => "read",
            Self::ReadWrite => "read-write",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == text)
    }
}

/// Which files of a stage are put into the remote cache; its records, which hold digests and parameters, always are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RemotePolicy {
    /// All.
    #[default]
    Always,
    /// Those that no other stage reads: where many are small results of a few large steps.
    Results,
    /// None: data and weights that may not leave.
    Never,
}

impl RemotePolicy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Always, Self::Results, Self::Never];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Results => "results",
            Self::Never => "never",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == text)
    }
}

/// Where actions run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// In this process.
    #[default]
    Local,
    /// In jobs of a cluster.
    Slurm,
}

impl Place {
    /// As pipeline files and the command line name them.
    pub const NAMES: [&str; 2] = ["local", "slurm"];

    /// The place of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "local" => Some(Self::Local),
            "slurm" => Some(Self::Slurm),
            _ => None,
        }
    }
}

/// Where actions run, and what there is for all of them that run at one time.
#[derive(Clone, PartialEq, Debug)]
pub struct Executor {
    /// Where.
    pub place: Place,
    /// How much there is on this machine.
    pub limits: Limits,
    /// How jobs are submitted.
    pub slurm: JobSettings,
    /// Where each value was written, by its name in `[executor.local]` (`cpu`, `tokens.licence`), or in `[executor.slurm]`
    /// with that in front (`slurm.partition`).
    pub origins: BTreeMap<String, Origin>,
}

/// How jobs of a cluster are submitted: of a stage what it says under `resources`, and otherwise `[executor.slurm]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct JobSettings {
    /// What jobs ask for by name, as options of `sbatch` without their dashes: `partition`, `account`, `qos`, `constraint`,
    /// `reservation`.
    pub names: BTreeMap<String, String>,
    /// Further arguments of `sbatch`.
    pub extra_args: Vec<String>,
    /// Further variables of the environment that jobs are given.
    pub export: Vec<String>,
    /// A line for the shell before the work.
    pub setup: String,
    /// Tasks of an array that may run at one time.
    pub max_tasks: usize,
    /// The planned length of a task, in seconds.
    pub task_target: u64,
    /// Seconds before the end of a task at which its work stops.
    pub time_margin: u64,
    /// Tasks in the queue at any time: of the stage, and of all of them as `[executor.slurm]` has it.
    pub max_submitted: usize,
    /// What one submission takes of the time, so that there are no more: those of the stage, and all.
    pub submit_every: Duration,
    /// Seconds between two looks at the queue, while something changes: the least of what stages say whose jobs are there.
    pub poll: u64,
}

impl JobSettings {
    /// All that a stage may say of its jobs, as it stands in a pipeline file.
    pub const KEYS: [&str; 14] = [
        "partition",
        "account",
        "qos",
        "constraint",
        "reservation",
        "extra_args",
        "export",
        "setup",
        "max_tasks",
        "task_target",
        "time_margin",
        "max_submitted",
        "submit_rate",
        "poll",
    ];
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            names: BTreeMap::new(),
            extra_args: Vec::new(),
            export: Vec::new(),
            setup: String::new(),
            max_tasks: 64,
            task_target: 40 * 60,
            time_margin: 180,
            max_submitted: 500,
            submit_every: Duration::from_secs(1),
            poll: 20,
        }
    }
}

/// How much there is of everything that actions ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Cores.
    pub cpu: usize,
    /// Devices of the kind GPU; their slots are numbered from 0.
    pub gpu: usize,
    /// Bytes of memory; `None`: unknown, so anything goes.
    pub memory: Option<u64>,
    /// Tokens that the study defines.
    pub tokens: BTreeMap<String, usize>,
}

/// Resources of one action.
#[derive(Clone, PartialEq, Debug)]
pub struct Resources {
    /// Cores; `None`: the kind's default.
    pub cpu: Option<usize>,
    /// Devices of the kind GPU.
    pub gpu: usize,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Wall time limit, in seconds.
    pub time: Option<u64>,
    /// Tokens that the study defines: name to how many.
    pub tokens: BTreeMap<String, usize>,
    /// How its jobs on a cluster are submitted.
    pub jobs: JobSettings,
    /// What of that the stage says itself, as names and values of its file.
    pub said: BTreeMap<String, serde_json::Value>,
}

/// What lies between two checkpoints of an action that keeps its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CheckpointEvery {
    /// Seconds of wall time.
    Seconds(u64),
    /// Steps of the stage.
    Steps(u64),
}

/// When a long action keeps its state, if its kind can.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckpointPolicy {
    /// What lies between two of them.
    pub every: CheckpointEvery,
    /// How many of the newest are kept.
    pub keep: usize,
    /// Whether they stay when the action is done.
    pub retain: bool,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self { every: CheckpointEvery::Seconds(300), keep: 2, retain: false }
    }
}

impl CheckpointPolicy {
    /// What was asked for, as names and values of a pipeline file; nothing if it is the default.
    pub(crate) fn json(&self) -> impl Iterator<Item = (&'static str, serde_json::Value)> {
        let every = match self.every {
            CheckpointEvery::Seconds(seconds) => format!("{seconds}s").into(),
            CheckpointEvery::Steps(steps) => steps.into(),
        };
        let values = [("every", every), ("keep", self.keep.into()), ("retain", self.retain.into())];
        let is_default = *self == Self::default();
        values.into_iter().filter(move |_| !is_default)
    }
}

/// When a failed action is tried again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retry {
    /// How often.
    pub max: u32,
    /// Seconds before the first time; each further time twice as long, at most ten minutes.
    pub backoff: u64,
    /// After which failures.
    pub on: BTreeSet<FailureClass>,
}

impl Default for Retry {
    fn default() -> Self {
        use FailureClass::{Io, Lost, Oom, Signal, Timeout};
        Self { max: 0, backoff: 10, on: [Oom, Io, Signal, Timeout, Lost].into() }
    }
}

impl Retry {
    /// What was asked for, as names and values of a pipeline file; nothing if nothing is retried.
    pub(crate) fn json(&self) -> impl Iterator<Item = (&'static str, serde_json::Value)> {
        let on: serde_json::Value = self.on.iter().map(|class| class.name()).collect();
        let values = [("max", self.max.into()), ("backoff", format!("{}s", self.backoff).into()), ("on", on)];
        values.into_iter().filter(|_| self.max > 0)
    }
}

impl Resources {
    /// What was asked for, as names and values of a pipeline file.
    pub(crate) fn json(&self) -> impl Iterator<Item = (&str, serde_json::Value)> {
        let gpu = (self.gpu > 0).then_some(self.gpu);
        let tokens = self.tokens.iter().map(|(name, count)| (name.as_str(), Some((*count).into())));
        [
            ("cpu", self.cpu.map(serde_json::Value::from)),
            ("gpu", gpu.map(serde_json::Value::from)),
            ("mem", self.memory.map(serde_json::Value::from)),
            ("time", self.time.map(serde_json::Value::from)),
        ]
        .into_iter()
        .chain(tokens)
        .chain(self.said.iter().map(|(name, value)| (name.as_str(), Some(value.clone()))))
        .filter_map(|(name, value)| Some((name, value?)))
    }
}
