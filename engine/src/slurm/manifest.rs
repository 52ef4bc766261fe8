//! What tasks are told and what they tell, as the files of an array's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipe_cache::{ActionKey, CommitOutcome, Digest, OutputRecord};
use serde::{Deserialize, Serialize};

use crate::action;
use crate::artifact::InputArtifact;
use crate::attempt::AttemptError;
use crate::brief::{Brief, Port};
use crate::isolate::Failure;
use crate::kind::DefaultCpu;
use crate::pipeline::{JobSettings, Node, Origin};

/// The version of these files.
pub(crate) const VERSION: u32 = 1;

/// The inputs of an action by name.
pub(crate) type Inputs = BTreeMap<String, Vec<InputArtifact>>;

/// What a task asks the cluster for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// Cores; none: what the cluster gives.
    pub(crate) cpu: Option<usize>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) gpu: usize,
    /// Seconds.
    pub(crate) time: Option<u64>,
    /// How it is submitted.
    pub(crate) jobs: JobSettings,
}

impl Ask {
    /// What a task of a node asks for.
    pub(crate) fn of(node: &Node) -> Self {
        let resources = &node.resources;
        let on_gpu = usize::from(action::is_on_gpu(node));
        Self {
            cpu: resources.cpu.or(match node.description.cpu {
                DefaultCpu::One => Some(1),
                DefaultCpu::All => None,
            }),
            memory: resources.memory,
            gpu: resources.gpu.max(on_gpu),
            time: resources.time,
            jobs: resources.jobs.clone(),
        }
    }

    /// The wall time of a task in seconds: what was asked for, in whole minutes.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.time.map(|time| time.div_ceil(60).max(1) * 60)
    }

    /// Seconds before the end of a task at which its work stops, of which a short one does not lose more than a quarter.
    pub(crate) fn margin(&self) -> u64 {
        let wanted = self.jobs.time_margin;
        self.limit().map_or(wanted, |limit| wanted.min(limit / 4))
    }
}

/// An action on its way to the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) stage: String,
    pub(crate) brief: Arc<Brief>,
    /// The inputs that all actions of the node share.
    pub(crate) common: Arc<Inputs>,
    /// The part that it works on.
    pub(crate) part: Option<(String, InputArtifact)>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) key: ActionKey,
    pub(crate) digest: Digest,
    pub(crate) log: PathBuf,
    /// Whether it runs though there is a result.
    pub(crate) forced: bool,
    pub(crate) ask: Ask,
    /// What it takes, as far as it is known.
    pub(crate) seconds: Option<f64>,
    /// Where what it asks for was written, by its name.
    pub(crate) origins: Arc<BTreeMap<String, Origin>>,
}

/// What the tasks of an array do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    /// The digest of the program that wrote it: no other one executes it.
    pub(crate) program: Digest,
    pub(crate) run: String,
    pub(crate) pipeline: String,
    pub(crate) stage: String,
    /// The git revision of the project.
    pub(crate) revision: Option<String>,
    pub(crate) is_durable: bool,
    /// Cores; none: what the task was given.
    pub(crate) threads: Option<usize>,
    pub(crate) gpus: usize,
    /// Seconds that a task may take.
    pub(crate) limit: Option<u64>,
    /// Seconds before its end at which it stops.
    pub(crate) margin: u64,
    /// Seconds that the longest action is expected to take.
    pub(crate) longest: f64,
    pub(crate) nodes: Vec<NodePart>,
    pub(crate) actions: Vec<Action>,
    /// The actions of each task.
    pub(crate) tasks: Vec<Vec<usize>>,
}

/// What actions of one node share.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodePart {
    pub(crate) brief: Brief,
    pub(crate) inputs: Inputs,
}

/// One action.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Action {
    /// The index of its node.
    pub(crate) node: usize,
    pub(crate) key: ActionKey,
    pub(crate) part: Option<(String, InputArtifact)>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) log: PathBuf,
    pub(crate) forced: bool,
}

impl Manifest {
    /// The nodes and actions of these orders; nodes are told apart by their briefs.
    pub(crate) fn actions_of<'a>(orders: impl Iterator<Item = &'a Order>) -> (Vec<NodePart>, Vec<Action>) {
        let mut known: Vec<(*const Brief, *const Inputs)> = Vec::new();
        let (mut nodes, mut actions) = (Vec::new(), Vec::new());
        for order in orders {
            let identity = (Arc::as_ptr(&order.brief), Arc::as_ptr(&order.common));
            // Orders of one node follow each other.
            let place = known.iter().rposition(|one| *one == identity).unwrap_or_else(|| {
                let mut inputs = Inputs::clone(&order.common);
                inputs.values_mut().flatten().for_each(absolute);
                // Under a scheduler the time is that of a task, which may be continued by another one.
                let brief = Brief { time: None, ..Brief::clone(&order.brief) };
                nodes.push(NodePart { brief, inputs });
                known.push(identity);
                known.len() - 1
            });
            let mut part = order.part.clone();
            part.iter_mut().for_each(|(_, artifact)| absolute(artifact));
            actions.push(Action {
                node: place,
                key: order.key.clone(),
                part,
                outputs: order.outputs.clone(),
                log: absolute_path(&order.log),
                forced: order.forced,
            });
        }
        (nodes, actions)
    }
}

/// Makes the places of an artifact's files independent of the folder of a process.
fn absolute(input: &mut InputArtifact) {
    input.artifact.files = input.artifact.files.moved(absolute_path);
}

pub(crate) fn absolute_path(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// How an action ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Wall time, in seconds.
    pub(crate) wall: f64,
    /// Processor time, in seconds.
    pub(crate) cpu: Option<f64>,
    /// Bytes.
    pub(crate) peak: u64,
    pub(crate) outcome: Result<Done, Failure>,
}

/// How a result came to stand in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Done {
    Created,
    Equal,
    Repaired,
    Nondeterministic(BTreeMap<String, OutputRecord>),
}

impl From<CommitOutcome> for Done {
    fn from(outcome: CommitOutcome) -> Self {
        match outcome {
            CommitOutcome::Created => Self::Created,
            CommitOutcome::Equal => Self::Equal,
            CommitOutcome::Repaired => Self::Repaired,
            CommitOutcome::Nondeterministic { attempted } => Self::Nondeterministic(attempted),
        }
    }
}

impl From<Done> for CommitOutcome {
    fn from(done: Done) -> Self {
        match done {
            Done::Created => Self::Created,
            Done::Equal => Self::Equal,
            Done::Repaired => Self::Repaired,
            Done::Nondeterministic(attempted) => Self::Nondeterministic { attempted },
        }
    }
}

impl Ended {
    /// A failure.
    pub(crate) fn failed(error: &AttemptError) -> Self {
        Self { wall: 0.0, cpu: None, peak: 0, outcome: Err(Failure::of(error)) }
    }
}

/// Who works on a task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerFile {
    pub(crate) host: String,
    pub(crate) pid: u32,
    /// When it began, RFC 3339.
    pub(crate) began: String,
    /// When it stops, in seconds after it began.
    pub(crate) deadline: Option<u64>,
    pub(crate) job: String,
    pub(crate) task: usize,
    pub(crate) restart: u32,
}

/// A submission.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// The name of the job.
    pub(crate) name: String,
    pub(crate) run: String,
    pub(crate) stage: String,
    /// How many there are.
    pub(crate) tasks: usize,
    pub(crate) actions: usize,
    pub(crate) arguments: Vec<String>,
    /// The line for the shell before the work.
    #[serde(default)]
    pub(crate) setup: String,
    pub(crate) time: String,
}

/// A submission that was accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) time: String,
}
