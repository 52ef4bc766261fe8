//! Executes a plan: what is ready runs within the limits of the executor; after each action its
//! consumers are planned again, so an equal result stops the wave.
//!
//! Every node is in one [`State`]. `start` moves nodes from ready to running, `finish` from running to
//! done or failed, and whatever a result or a failure means for the consumers follows at once. The loop
//! here only waits for the one and calls the other, until nothing runs and nothing can be started.

mod admission;
mod asking;
mod finish;
mod orders;
mod parts;
mod start;
mod states;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use pipe_cache::{CommitOutcome, Digest, Record, RunFolder, Store, Verify};
use pipe_mirror::Mirror;
use serde_json::json;

use self::admission::{Admission, Demand, Grant};
pub(crate) use self::asking::{blobs, tell_if_off};
use self::parts::Parts;
use crate::action::{self, SourceDigests};
use crate::attempt::{AttemptError, Finished, nondeterministic};
use crate::brief::Brief;
use crate::events::EventLog;
use crate::handover;
use crate::history::History;
use crate::pipeline::{Limits, NodeId, Pipeline};
use crate::plan::{Plan, Status};
use crate::remote::Fetcher;
use crate::reproduce::{FileComparison, FileDifference};
use crate::slurm::Cluster;
use crate::workers::Workers;
use states::States;

/// The longest the loop sleeps: signals and leases of other processes are looked at this often.
const TICK: Duration = Duration::from_millis(100);

/// How long a ready action is passed over before what it needs is kept for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to do when a stage fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum OnFailure {
    /// Independent branches go on.
    #[default]
    Continue,
    /// Nothing new starts.
    StopStarting,
    /// What runs is stopped too.
    StopAll,
}

/// The limits of a run.
#[derive(Clone, Debug)]
pub(crate) struct RunOptions {
    /// What all actions together may take.
    pub(crate) limits: Limits,
    pub(crate) on_failure: OnFailure,
    /// How long running stages have to reach a safe point after an interrupt.
    pub(crate) grace: Duration,
    pub(crate) verify: Verify,
    /// Bytes that have to be free on the store's disk for anything to start.
    pub(crate) min_free: u64,
    /// Whether the run ends as soon as all that can be submitted to a cluster is.
    pub(crate) detach: bool,
}

/// What a run did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) executed: Vec<NodeId>,
    /// How many parts of row-wise nodes were computed.
    pub(crate) shards: usize,
    /// How many results of nodes came from the remote cache.
    pub(crate) taken: usize,
    pub(crate) failed: BTreeMap<NodeId, Failure>,
    /// Nodes that could not run, with the node whose failure blocked them.
    pub(crate) blocked: BTreeMap<NodeId, NodeId>,
    /// Damaged artifacts that were found.
    pub(crate) damaged: usize,
    /// Nodes that gave another result than the stored one under the same key, with how it differs.
    pub(crate) differing: BTreeMap<NodeId, Vec<FileDifference>>,
    pub(crate) cancelled: bool,
    /// Whether actions were left at work because there was no time to wait for them.
    pub(crate) abandoned: bool,
    /// The jobs of a cluster that go on: their names, and their ids.
    pub(crate) jobs: Vec<(String, Option<String>)>,
    /// Whether nothing was started any more because the disk was nearly full.
    pub(crate) low_space: bool,
    /// Bytes that the results to be made took when they were last made.
    pub(crate) expected: u64,
    /// Wall time of each executed node, in seconds.
    pub(crate) seconds: BTreeMap<NodeId, f64>,
}

impl Outcome {
    /// How the run ended, in one word.
    pub(crate) fn status(&self) -> &'static str {
        if self.cancelled {
            "cancelled"
        } else if !self.jobs.is_empty() {
            "detached"
        } else if self.failed.is_empty() && !self.low_space {
            "ok"
        } else {
            "failed"
        }
    }

    /// Adds what a later part of the same run did.
    pub(crate) fn extend(&mut self, later: Self) {
        self.executed.extend(later.executed);
        self.shards += later.shards;
        self.taken += later.taken;
        self.failed.extend(later.failed);
        self.blocked.extend(later.blocked);
        self.damaged += later.damaged;
        self.differing.extend(later.differing);
        self.cancelled |= later.cancelled;
        self.abandoned |= later.abandoned;
        self.jobs.extend(later.jobs);
        self.low_space |= later.low_space;
        self.expected = self.expected.max(later.expected);
        self.seconds.extend(later.seconds);
    }
}

/// One failed node.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: String,
    pub(crate) exit_code: u8,
    /// Whether the disk was full.
    pub(crate) no_space: bool,
    pub(crate) log: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Inputs are missing.
    Waiting,
    Ready,
    /// Another process works on it; ask again then.
    Elsewhere(Instant),
    /// A row-wise node some of whose parts are to be started; others may run.
    Parts,
    /// It failed and is tried again then.
    Delayed(Instant),
    Running,
    Done,
    Failed,
    Blocked,
    NotWanted,
}

/// The scheduler of one run.
pub(crate) struct Scheduler<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) store: &'a Store,
    pub(crate) sources: &'a SourceDigests,
    pub(crate) fetcher: &'a Arc<Fetcher>,
    /// The remote cache.
    pub(crate) mirror: Option<&'a Mirror>,
    pub(crate) history: &'a History,
    pub(crate) numerics: &'a str,
    /// How the values of files are compared that came out differently.
    pub(crate) comparison: Option<FileComparison>,
    pub(crate) revision: Option<String>,
    pub(crate) options: RunOptions,
    pub(crate) events: Arc<EventLog>,
    pub(crate) run: &'a RunFolder,
    pub(crate) stop: Arc<AtomicBool>,
    /// How many signals wanted the run to end.
    pub(crate) signals: Arc<AtomicUsize>,
    /// Where results go as nodes get them.
    pub(crate) done: mpsc::Sender<(NodeId, Record)>,
}

/// What changes while a run goes on.
struct Work<'p> {
    plan: &'p mut Plan,
    /// For each node, the nodes that wait for its result.
    consumers: Vec<Vec<NodeId>>,
    /// For each node, the nodes whose results it waits for, and how many of them, from the first, are known to have
    /// results: so a node that reads thousands looks at each of them once.
    producers: Vec<(Vec<NodeId>, usize)>,
    state: States,
    /// How many attempts were begun at each node and its parts: each has a log of its own.
    attempts: BTreeMap<NodeId, u32>,
    /// How often failed actions were tried again.
    retries: BTreeMap<TaskId, u32>,
    /// Since when nodes wait for other processes, and when that was told last.
    waiting: BTreeMap<NodeId, (Instant, Option<Instant>)>,
    /// Nodes whose evicted files somebody waits for.
    demanded: BTreeSet<NodeId>,
    /// How often nodes were made again because their results were damaged.
    repairs: BTreeMap<NodeId, u32>,
    demands: Vec<Demand>,
    admission: Admission,
    running: BTreeMap<TaskId, Running>,
    /// The row-wise nodes that are executed part by part.
    parts: BTreeMap<NodeId, Parts>,
    /// Where actions go that do not run here.
    cluster: Option<Cluster>,
    /// Those that went there, by their keys.
    orders: BTreeMap<Digest, TaskId>,
    briefs: BTreeMap<NodeId, Arc<Brief>>,
    /// How many signals the cluster was told of.
    interrupts: usize,
    /// Seconds that nodes take, as far as it is known.
    durations: BTreeMap<NodeId, f64>,
    workers: Workers,
    /// The resident memory of the process when it was last looked at, in bytes, and when that was.
    resident: u64,
    measured: Instant,
    sender: mpsc::Sender<(TaskId, News)>,
    /// How many nodes the remote cache is being asked for.
    asking: usize,
    /// The keys under which nodes were asked for.
    asked: BTreeMap<NodeId, Digest>,
    /// The parts that were asked for before they were ordered from a cluster.
    asked_parts: BTreeSet<Digest>,
    /// Tells running stages to stop at their next safe point.
    cancelled: Arc<AtomicBool>,
    outcome: Outcome,
}

impl Work<'_> {
    /// The number of the attempt at a node, or at one of its parts, that begins now.
    fn next_attempt(&mut self, id: NodeId) -> u32 {
        *self.attempts.entry(id).and_modify(|count| *count += 1).or_insert(1)
    }
}

/// What runs: a node, or one part of a row-wise node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct TaskId {
    node: NodeId,
    /// The key of the part.
    shard: Option<Digest>,
}

/// What a thread tells of an action.
enum News {
    /// It has ended.
    Finished(Box<Finished>),
    /// What it reads is there, or cannot be had; it is executed elsewhere.
    Fetched(Result<(), AttemptError>),
    /// The remote cache was asked for the result of this key.
    Asked(Digest, Option<Box<Record>>),
}

/// An action that runs.
struct Running {
    /// What it was given of this machine; none for one that runs elsewhere.
    grant: Option<Grant>,
    began: Instant,
    /// The greatest resident memory of the process since it started, in bytes.
    peak: Arc<AtomicU64>,
}

impl Scheduler<'_> {
    /// Executes what `plan` says, updating its keys and records.
    pub(crate) fn execute(
        &self,
        plan: &mut Plan,
        durations: BTreeMap<NodeId, f64>,
        cluster: Option<Cluster>,
    ) -> Outcome {
        let (sender, receiver) = mpsc::channel::<(TaskId, News)>();
        let consumers = action::waiting(self.pipeline);
        let urgency = urgency(plan, &consumers, &durations);
        let state = plan
            .status
            .iter()
            .map(|status| match status {
                Status::Hit => State::Done,
                Status::Run(_) => State::Ready,
                Status::Maybe(_) => State::Waiting,
                Status::NotWanted => State::NotWanted,
            })
            .collect();
        let mut state: Vec<State> = state;
        // What reads evicted results waits until they are there again.
        let demanded = plan.evicted.iter().copied().filter(|id| plan.records[id.0].is_none());
        let demanded: BTreeSet<NodeId> = demanded.collect();
        for id in &demanded {
            let waiting = consumers[id.0].iter().filter(|consumer| state[consumer.0] == State::Ready);
            for consumer in waiting.copied().collect::<Vec<_>>() {
                state[consumer.0] = State::Waiting;
            }
        }
        let nodes = self.pipeline.nodes.iter();
        let mut work = Work {
            producers: nodes.map(|node| (action::awaited(self.pipeline, node), 0)).collect(),
            plan,
            consumers,
            state: States::new(state, &urgency),
            attempts: BTreeMap::new(),
            retries: BTreeMap::new(),
            waiting: BTreeMap::new(),
            demanded,
            repairs: BTreeMap::new(),
            demands: self.pipeline.nodes.iter().map(|node| self.demand(node)).collect(),
            admission: Admission::new(&self.options.limits, PATIENCE),
            running: BTreeMap::new(),
            parts: BTreeMap::new(),
            cluster,
            orders: BTreeMap::new(),
            briefs: BTreeMap::new(),
            interrupts: 0,
            durations,
            workers: Workers::default(),
            resident: resident_bytes().unwrap_or(0),
            measured: Instant::now(),
            sender,
            asking: 0,
            asked: BTreeMap::new(),
            asked_parts: BTreeSet::new(),
            cancelled: Arc::new(AtomicBool::new(false)),
            outcome: Outcome::default(),
        };
        let mut stopped_at: Option<Instant> = None;
        let mut space_seen: Option<Instant> = None;
        loop {
            if self.stop.load(Ordering::Relaxed) && stopped_at.is_none() {
                stopped_at = Some(Instant::now());
                work.cancelled.store(true, Ordering::Relaxed);
            }
            let signals = self.signals.load(Ordering::Relaxed);
            self.tend_cluster(signals, &mut stopped_at, &mut work);
            // The second signal cancels jobs, where there are any.
            let last = if work.cluster.is_some() { 3 } else { 2 };
            let aborting =
                signals >= last || stopped_at.is_some_and(|since| since.elapsed() > self.options.grace);
            let starting = stopped_at.is_none() && self.may_start(&work);
            let due = space_seen.is_none_or(|seen| seen.elapsed() >= TICK);
            if starting && due && work.state.next_open(None).is_some() {
                space_seen = Some(Instant::now());
                work.outcome.low_space |=
                    free_bytes(self.store).is_some_and(|free| free < self.options.min_free);
            }
            if starting && !work.outcome.low_space {
                self.start_ready(&mut work);
            }
            let running = !work.running.is_empty() || work.asking > 0;
            let due = starting && self.may_start(&work) && work.state.next_open(None).is_some();
            let due = due && !work.outcome.low_space;
            if aborting || (!running && !due) || (self.options.detach && self.is_detachable(due, &work)) {
                break;
            }
            match handover::receive(&receiver, TICK) {
                Ok((task, News::Finished(finished))) => self.finish(task, *finished, &mut work),
                Ok((task, News::Fetched(result))) => self.fetched(task, result, &mut work),
                Ok((task, News::Asked(key, found))) => self.answered(task.node, key, found, &mut work),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            note_memory(&mut work);
        }
        for (task, running) in &work.running {
            let (node, shard) = (&self.pipeline.nodes[task.node.0].name, task.shard.map(|key| key.to_hex()));
            let key = shard.clone().or_else(|| self.key_text(task.node, &work));
            let event = json!({
                "node": node, "shard": shard, "key": key,
                "status": if running.grant.is_some() { "cancelled" } else { "left" },
                "wall": running.began.elapsed().as_secs_f64(), "cpu": null,
                "peak_rss": running.peak.load(Ordering::Relaxed), "peak_gpu": null, "outputs": [],
            });
            self.events.emit("action_finished", event);
        }
        work.outcome.abandoned = work.running.values().any(|running| running.grant.is_some());
        work.outcome.jobs = work.cluster.as_ref().map(Cluster::jobs).unwrap_or_default();
        self.flush(&mut work);
        work.outcome.cancelled = stopped_at.is_some();
        let Work { sender, outcome, running, asking, .. } = work;
        drop(sender);
        // Threads that have told how their action ended may still tidy up; each has a sender until it is done.
        while running.is_empty() && asking == 0 && receiver.recv().is_ok() {}
        outcome
    }

    /// Waits until all results are on the disk. One that does not come there has failed after all.
    fn flush(&self, work: &mut Work<'_>) {
        for (key, outcome) in self.store.flush() {
            let known = |id: &NodeId| work.plan.keys[id.0].as_ref().is_some_and(|(digest, _)| *digest == key);
            let node = work.outcome.executed.iter().copied().find(known);
            match (outcome, node) {
                (Ok(CommitOutcome::Nondeterministic { .. }), Some(id)) => {
                    nondeterministic(&self.events, &self.pipeline.nodes[id.0].name);
                }
                (Ok(_), _) => {}
                (Err(error), Some(id)) => self.fail(id, &error.into(), work),
                // Of no node in particular: the last one answers for it.
                (Err(error), None) => {
                    if let Some(id) = work.outcome.executed.last().copied() {
                        self.fail(id, &error.into(), work);
                    }
                }
            }
        }
    }

    /// Whether a failure so far allows more to start. Without space on the disk nothing can succeed.
    fn may_start(&self, work: &Work<'_>) -> bool {
        let failed = &work.outcome.failed;
        failed.is_empty()
            || (self.options.on_failure == OnFailure::Continue && !failed.values().any(|one| one.no_space))
    }
}

/// Keeps the greatest resident memory seen while each action runs: a figure of the whole process.
fn note_memory(work: &mut Work<'_>) {
    // Looking takes longer than many an action.
    if work.measured.elapsed() < TICK {
        return;
    }
    work.measured = Instant::now();
    if let Some(bytes) = resident_bytes() {
        work.resident = bytes;
        for running in work.running.values() {
            running.peak.fetch_max(bytes, Ordering::Relaxed);
        }
    }
}

/// Bytes that are left on the disk of a store.
pub(crate) fn free_bytes(store: &Store) -> Option<u64> {
    let disk = rustix::fs::statvfs(store.root()).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// `VmRSS:    10240 kB` of `/proc/self/status`, in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The longest way from each node to an end, in estimated seconds.
fn urgency(plan: &Plan, consumers: &[Vec<NodeId>], durations: &BTreeMap<NodeId, f64>) -> Vec<f64> {
    let mut urgency = vec![0.0f64; consumers.len()];
    for id in plan.order.iter().rev() {
        let longest = consumers[id.0].iter().map(|consumer| urgency[consumer.0]).fold(0.0, f64::max);
        urgency[id.0] = longest + durations.get(id).copied().unwrap_or(1.0);
    }
    urgency
}

/// The chain of executed nodes that took longest, from its first to its last, and its seconds.
pub(crate) fn critical_path(
    pipeline: &Pipeline,
    order: &[NodeId],
    seconds: &BTreeMap<NodeId, f64>,
) -> (Vec<NodeId>, f64) {
    let mut longest: BTreeMap<NodeId, (f64, Option<NodeId>)> = BTreeMap::new();
    for id in order {
        let Some(own) = seconds.get(id) else { continue };
        let before = action::producers(&pipeline.nodes[id.0])
            .filter_map(|producer| Some((longest.get(&producer)?.0, producer)))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let (so_far, producer) = before.map_or((0.0, None), |(so_far, producer)| (so_far, Some(producer)));
        longest.insert(*id, (so_far + own, producer));
    }
    let Some((last, (total, _))) = longest.iter().max_by(|a, b| a.1.0.total_cmp(&b.1.0)) else {
        return (Vec::new(), 0.0);
    };
    let mut path = vec![*last];
    while let Some(producer) = path.last().and_then(|id| longest[id].1) {
        path.push(producer);
    }
    path.reverse();
    (path, *total)
}
