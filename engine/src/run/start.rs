//! From ready to running: what fits, most urgent first; leases; inputs that can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use pipe_cache::{ActionKey, Damage, Digest, Lease, LeaseAttempt, Reading, Source, SourceFile, StoreError};
use serde_json::json;

use super::{Demand, News, Running, Scheduler, State, TaskId, Work};
use crate::action;
use crate::artifact::{Artifact, ArtifactFile, ArtifactFiles, InputArtifact};
use crate::attempt::{Absent, Attempt, AttemptError, Task};
use crate::brief::Port;
use crate::error::StageError;
use crate::kind::{DefaultCpu, OutputPort};
use crate::pipeline::{InputSource, Node, NodeId, Place};
use crate::plan::Status;
use crate::remote::lock::PinnedFile;
use crate::shards::{self, CutError, Shards};
use crate::why::DirtyReason;
use crate::workers::Worker;

/// How often it is told that an action waits for another process.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// How often a node is made again because its results are damaged when they are read: more often, the
/// disk is at fault.
const REPAIRS: u32 = 3;

/// What came of an attempt to start a node.
enum Started {
    /// It runs in a thread of its own.
    Running,
    /// It does not, and nothing else changed.
    No,
    /// It does not, but other nodes may be ready now.
    Changed,
}

/// The inputs of an action.
pub(super) struct Inputs {
    /// Those that all actions of its node share.
    pub(super) common: Arc<BTreeMap<String, Vec<InputArtifact>>>,
    /// The part that it works on.
    pub(super) part: Option<(String, InputArtifact)>,
    /// What has to be fetched first.
    pub(super) absent: Vec<Absent>,
}

impl Inputs {
    fn all(&self) -> BTreeMap<String, Vec<InputArtifact>> {
        let mut all = BTreeMap::clone(&self.common);
        all.extend(self.part.clone().map(|(port, artifact)| (port, vec![artifact])));
        all
    }
}

/// What is executed under which key, and where its log goes.
pub(super) struct Action {
    pub(super) key: ActionKey,
    pub(super) inputs: Inputs,
    pub(super) outputs: Vec<OutputPort>,
    pub(super) log: PathBuf,
    /// What it takes, as far as it is known.
    pub(super) seconds: Option<f64>,
}

/// Why the inputs of a node cannot be read.
pub(super) enum Unreadable {
    /// These producers have to run again.
    Damaged(BTreeSet<NodeId>),
    Error(AttemptError),
}

impl From<StoreError> for Unreadable {
    fn from(error: StoreError) -> Self {
        Self::Error(error.into())
    }
}

impl Scheduler<'_> {
    /// Starts what is ready and fits, the most urgent first.
    pub(super) fn start_ready(&self, work: &mut Work<'_>) {
        while self.start_round(work) {}
    }

    /// One walk over what is ready; whether another may find more.
    fn start_round(&self, work: &mut Work<'_>) -> bool {
        let now = Instant::now();
        let mut changed = false;
        let mut last = None;
        // What did not fit in this round does not fit a second time.
        let mut refused: Vec<Demand> = Vec::new();
        while !work.admission.is_exhausted()
            && let Some(place) = work.state.next_open(last)
        {
            last = Some(place);
            let index = place.1;
            let due = match work.state[index] {
                State::Ready | State::Parts => true,
                State::Elsewhere(again) | State::Delayed(again) => again <= now,
                _ => false,
            };
            if !due {
                continue;
            }
            let id = NodeId(index);
            let demand = &work.demands[index];
            if refused.contains(demand) {
                continue;
            }
            if !work.admission.admits(id, demand, now) {
                refused.push(demand.clone());
                continue;
            }
            match self.start(id, work) {
                Ok(Started::Running | Started::No) => {}
                Ok(Started::Changed) => changed = true,
                Err(error) => {
                    work.parts.remove(&id);
                    self.fail(id, &error, work);
                    changed |= self.may_start(work);
                }
            }
            if !self.may_start(work) {
                return false;
            }
        }
        changed
    }

    /// What a node, or one of its parts, takes while it runs. More cores than there are: all of them.
    pub(super) fn demand(&self, node: &Node) -> Demand {
        let (resources, limits) = (&node.resources, &self.options.limits);
        // In a job it takes nothing of this machine.
        if self.pipeline.executor.place == Place::Slurm {
            return Demand::default();
        }
        let cpu = resources.cpu.unwrap_or(match node.description.cpu {
            DefaultCpu::One => 1,
            DefaultCpu::All => limits.cpu,
        });
        // What computes on a GPU has one for itself, unless the study says how many.
        let gpu = if action::is_on_gpu(node) { resources.gpu.max(1).min(limits.gpu) } else { resources.gpu };
        Demand {
            cpu: cpu.clamp(1, limits.cpu),
            memory: resources.memory.unwrap_or(0),
            gpu,
            tokens: resources.tokens.clone(),
        }
    }

    fn start(&self, id: NodeId, work: &mut Work<'_>) -> Result<Started, AttemptError> {
        let Some((digest, key)) = work.plan.keys[id.0].clone() else {
            work.state[id.0] = State::Waiting;
            return Ok(Started::No);
        };
        // A node of the same key is on its way to the cluster.
        if work.orders.contains_key(&digest) {
            work.waiting.entry(id).or_insert((Instant::now(), None));
            work.state[id.0] = State::Elsewhere(Instant::now() + self.lease_poll());
            return Ok(Started::No);
        }
        // Another node of this run has the same key, and has just made its result.
        if !work.plan.forced.contains(&id)
            && let Some(record) = self.store.pending(&digest)
        {
            self.hit(id, record, "local", work);
            return Ok(Started::Changed);
        }
        if !work.parts.contains_key(&id) {
            if self.ask(id, digest, work) {
                return Ok(Started::No);
            }
            let node = &self.pipeline.nodes[id.0];
            let verify = self.options.verify;
            match Shards::cut(node, &key, &work.plan.records, self.store, verify) {
                Ok(None) => return self.start_whole(id, digest, key, work),
                Ok(Some(shards)) => {
                    let Some(lease) = self.node_lease(id, &digest, work)? else { return Ok(Started::No) };
                    if !work.plan.forced.contains(&id)
                        && let Some(record) = self.store.lookup(&digest)?
                    {
                        drop(lease);
                        self.hit(id, record, "local", work);
                        return Ok(Started::Changed);
                    }
                    if let Err(error) = self.begin_parts(id, shards, lease, work) {
                        return self.unreadable(id, error, work);
                    }
                }
                Err(CutError::Stage(error)) => return Err(error.into()),
                Err(CutError::Store(error)) => return Err(error.into()),
                Err(CutError::Damaged(damaged)) => {
                    let mut producers = BTreeSet::new();
                    for (producer, damages) in damaged {
                        self.report_damage(producer, damages, work);
                        producers.insert(producer);
                    }
                    return self.unreadable(id, Unreadable::Damaged(producers), work);
                }
            }
        }
        match self.start_parts(id, work) {
            // The node may be done, and others ready.
            Ok(()) if work.state[id.0] == State::Done => Ok(Started::Changed),
            Ok(()) => Ok(Started::No),
            Err(error) => self.unreadable(id, error, work),
        }
    }

    /// The lease of a node; none if another process works on it, and then it is asked for again later.
    fn node_lease(
        &self,
        id: NodeId,
        digest: &Digest,
        work: &mut Work<'_>,
    ) -> Result<Option<Lease>, AttemptError> {
        let node = &self.pipeline.nodes[id.0];
        match self.store.lease(digest, self.run.id())? {
            LeaseAttempt::Acquired(lease) => {
                work.waiting.remove(&id);
                Ok(Some(lease))
            }
            LeaseAttempt::Busy(info) => {
                let now = Instant::now();
                let (since, told) = work.waiting.entry(id).or_insert((now, None));
                // For a node of the same key nobody needs to be told to wait.
                let is_ours = info.as_ref().is_some_and(|info| info.run == self.run.id());
                if !is_ours && told.is_none_or(|told| told + TELL_AGAIN <= now) {
                    *told = Some(now);
                    let minutes = match since.elapsed().as_secs() / 60 {
                        0 => String::new(),
                        minutes => format!(", {minutes} min"),
                    };
                    let owner = info
                        .map(|info| format!("waits for run {} ({}){minutes}", info.run, info.owner))
                        .unwrap_or_else(|| format!("waits for another process{minutes}"));
                    self.events.emit(
                        "waiting",
                        json!({ "node": node.name, "key": digest.to_hex(), "subject": node.name, "detail": owner }),
                    );
                }
                work.state[id.0] = State::Elsewhere(Instant::now() + self.lease_poll());
                Ok(None)
            }
        }
    }

    /// What follows when an input cannot be read.
    fn unreadable(
        &self,
        id: NodeId,
        error: Unreadable,
        work: &mut Work<'_>,
    ) -> Result<Started, AttemptError> {
        work.parts.remove(&id);
        match error {
            Unreadable::Error(error) => Err(error),
            Unreadable::Damaged(producers) => {
                self.make_again(&producers, id, work)?;
                work.state[id.0] = State::Waiting;
                Ok(Started::Changed)
            }
        }
    }

    /// Why a node runs, in one sentence.
    pub(super) fn reason(&self, id: NodeId, work: &Work<'_>) -> Option<String> {
        match &work.plan.status[id.0] {
            Status::Run(reasons) | Status::Maybe(reasons) => {
                reasons.first().map(|reason| reason.words(self.pipeline))
            }
            _ => None,
        }
    }

    fn start_whole(
        &self,
        id: NodeId,
        digest: Digest,
        key: ActionKey,
        work: &mut Work<'_>,
    ) -> Result<Started, AttemptError> {
        let node = &self.pipeline.nodes[id.0];
        let lease = if self.is_adoptable(&digest, work) {
            None
        } else {
            let Some(lease) = self.node_lease(id, &digest, work)? else { return Ok(Started::No) };
            Some(lease)
        };
        // Another process may have finished it since it was planned.
        if !work.plan.forced.contains(&id)
            && let Some(record) = self.store.lookup(&digest)?
        {
            drop(lease);
            self.hit(id, record, "local", work);
            return Ok(Started::Changed);
        }
        let inputs = match self.inputs(id, work, |_| true) {
            Ok((common, absent)) => Inputs { common: Arc::new(common), part: None, absent },
            Err(error) => return self.unreadable(id, error, work),
        };
        let attempt = work.next_attempt(id);
        self.events.emit(
            "action_started",
            json!({
                "node": node.name, "shard": null, "key": digest.to_hex(), "attempt": attempt,
                "executor": self.executor(), "device": action::device(&key.numerics), "slurm": null, "reason": self.reason(id, work),
            }),
        );
        let log = self.run.log(&node.name, attempt);
        let task = TaskId { node: id, shard: None };
        let seconds = work.durations.get(&id).copied();
        let action = Action { key, inputs, outputs: node.outputs.clone(), log, seconds };
        self.spawn(task, Task::Whole, action, lease, work)?;
        work.state[id.0] = State::Running;
        Ok(Started::Running)
    }

    /// Executes an action, which was admitted: in a thread of its own, or in a job of a cluster once all that it reads is
    /// there.
    pub(super) fn spawn(
        &self,
        id: TaskId,
        task: Task,
        action: Action,
        lease: Option<Lease>,
        work: &mut Work<'_>,
    ) -> Result<(), AttemptError> {
        let node = &self.pipeline.nodes[id.node.0];
        let for_cluster = work.cluster.is_some() && !matches!(task, Task::Merge(_));
        let is_part = matches!(task, Task::Part(_));
        let mirror = self.mirror.filter(|_| is_part && !work.plan.forced.contains(&id.node));
        // A driver asks for each part once, before it is ordered: nodes of a cluster need no network.
        let mirror = mirror.filter(|mirror| mirror.is_on());
        let mirror =
            mirror.filter(|_| !for_cluster || id.shard.is_some_and(|part| work.asked_parts.insert(part)));
        if for_cluster && action.inputs.absent.is_empty() && mirror.is_none() {
            // The lease is the worker's to take.
            drop(lease);
            self.order(id, action, work);
            return Ok(());
        }
        let peak = Arc::new(AtomicU64::new(work.resident));
        let demand = self.local_demand(id.node, work);
        let grant = work.admission.take(&demand);
        let Action { key, inputs, outputs, log, .. } = action;
        let attempt = Attempt {
            brief: self.brief(id.node, work),
            kind: Arc::clone(&node.kind),
            key,
            inputs: inputs.all(),
            outputs: outputs.iter().map(Port::from).collect(),
            task,
            threads: demand.cpu,
            gpus: grant.gpus.clone(),
            store: self.store.clone(),
            run: self.run.id().to_owned(),
            revision: self.revision.clone(),
            log,
            events: Arc::clone(&self.events),
            cancelled: Arc::clone(&work.cancelled),
            peak: Arc::clone(&peak),
            lease,
            absent: inputs.absent,
            fetcher: Arc::clone(self.fetcher),
            mirror: mirror.cloned(),
        };
        let sender = work.sender.clone();
        let job = Box::new(move |worker: Result<&Worker, &_>| {
            // The receiver is gone only when the run was aborted.
            let tell = |news| _ = sender.send((id, news));
            if for_cluster {
                match attempt.prepare() {
                    Ok(Some(taken)) => tell(News::Finished(Box::new(taken))),
                    fetched => tell(News::Fetched(fetched.map(|_| ()))),
                }
            } else {
                attempt.execute(worker, |finished| tell(News::Finished(Box::new(finished))));
            }
        });
        if let Err(error) = work.workers.execute(demand.cpu, job) {
            work.admission.give_back(grant);
            return Err(StageError::environment("starting a thread", error).into());
        }
        work.running.insert(id, Running { grant: Some(grant), began: Instant::now(), peak });
        Ok(())
    }

    /// Lets the producers of damaged or evicted artifacts, which `reader` asked for, run again.
    fn make_again(
        &self,
        producers: &BTreeSet<NodeId>,
        reader: NodeId,
        work: &mut Work<'_>,
    ) -> Result<(), AttemptError> {
        let mut asked = Vec::new();
        let mut waiting: Vec<NodeId> = producers.iter().copied().collect();
        while let Some(id) = waiting.pop() {
            // Without a record it is on its way already.
            if work.plan.records[id.0].take().is_none() {
                continue;
            }
            let node = &self.pipeline.nodes[id.0];
            let repairs = work.repairs.entry(id).or_insert(0);
            *repairs += 1;
            if *repairs > REPAIRS {
                let doing = format!("reading what `{}` wrote {REPAIRS} times", node.name);
                let cause = std::io::Error::other("it is damaged each time: the disk cannot be trusted");
                return Err(StageError::environment(doing, cause).into());
            }
            let may_come = self.mirror.is_some_and(pipe_mirror::Mirror::is_on);
            let reason = if work.plan.evicted.contains(&id) {
                work.demanded.insert(id);
                // Its files are another question than its record was.
                work.asked.remove(&id);
                DirtyReason::Evicted { reader: self.pipeline.nodes[reader.0].name.clone() }
            } else {
                DirtyReason::Damaged
            };
            work.plan.status[id.0] = Status::Run(vec![reason]);
            // What is made here is of this machine's class.
            if work.plan.foreign.remove(&id) {
                let key = work.plan.key(self.pipeline, id, self.sources, self.numerics);
                work.plan.keys[id.0] = key.map(|key| (key.digest(), key));
            }
            asked.push(id);
            // What it reads itself may be evicted too, and is needed if its own files do not come.
            let evicted = &work.plan.evicted;
            let read = action::producers(node).filter(|producer| evicted.contains(producer));
            waiting.extend(read.filter(|_| !may_come));
        }
        for id in asked {
            let mut producers = action::producers(&self.pipeline.nodes[id.0]);
            let has_inputs = producers.all(|producer| work.plan.records[producer.0].is_some());
            work.state[id.0] = if has_inputs { State::Ready } else { State::Waiting };
        }
        Ok(())
    }

    /// The inputs of a node whose names are `wanted`, verified, and what of them has to be fetched first.
    pub(super) fn inputs(
        &self,
        id: NodeId,
        work: &mut Work<'_>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(BTreeMap<String, Vec<InputArtifact>>, Vec<Absent>), Unreadable> {
        let mut absent = Vec::new();
        let mut inputs = BTreeMap::new();
        let mut damaged = BTreeSet::new();
        for input in self.pipeline.nodes[id.0].inputs.iter().filter(|input| wanted(&input.name)) {
            let mut artifacts = Vec::with_capacity(input.sources.len());
            for source in &input.sources {
                match source {
                    InputSource::Node { node, port } => match self.result(*node, port, work)? {
                        // What is not in the key is not seen.
                        Some(artifact) if !input.with_axes => {
                            artifacts.push(InputArtifact { axes: BTreeMap::new(), ..artifact });
                        }
                        Some(artifact) => artifacts.push(artifact),
                        None => _ = damaged.insert(*node),
                    },
                    InputSource::File { pattern, path, .. } => {
                        if let Some(source) = self.sources.get(path) {
                            check_frozen(pattern, source).map_err(|error| Unreadable::Error(error.into()))?;
                            let origin = format!("file:{pattern}");
                            artifacts.push(external(origin, source.digest, source.files.clone().into()));
                        }
                    }
                    InputSource::Remote(remote) => {
                        let Some(pinned) = self.sources.pinned(remote) else { continue };
                        let mut missing = BTreeSet::new();
                        for (_, file) in &pinned.files {
                            if !self.is_sound(id, file, work)? {
                                missing.insert(file.path.as_str());
                            }
                        }
                        let to_fetch = pinned.to_fetch(|file| missing.contains(file.path.as_str()));
                        if !to_fetch.is_empty() {
                            let revision = pinned.revision.clone();
                            absent.push(Absent { remote: remote.clone(), revision, files: to_fetch });
                        }
                        let files = pinned.files.iter().map(|(path, file)| ArtifactFile {
                            path: path.clone(),
                            bytes: file.size,
                            location: self.store.blob_path(&file.digest),
                        });
                        let origin = remote.text().to_owned();
                        artifacts.push(external(origin, pinned.digest, files.collect()));
                    }
                    InputSource::Blob(digest) => {
                        let origin = format!("store:b3:{digest}");
                        let location = self.store.blob_path(digest);
                        let bytes = std::fs::metadata(&location).map_or(0, |metadata| metadata.len());
                        if let Some(damage) = self.store.verify_blob(digest, bytes, self.options.verify)? {
                            return Err(Unreadable::Error(StageError::input(origin, damage.reason).into()));
                        }
                        let file = ArtifactFile { path: digest.to_hex(), bytes, location };
                        artifacts.push(external(origin, *digest, file.into()));
                    }
                }
            }
            inputs.insert(input.name.clone(), artifacts);
        }
        if damaged.is_empty() { Ok((inputs, absent)) } else { Err(Unreadable::Damaged(damaged)) }
    }

    /// Whether a file of a remote source is in the store; that it is damaged is reported.
    fn is_sound(&self, id: NodeId, file: &PinnedFile, work: &mut Work<'_>) -> Result<bool, StoreError> {
        if !self.store.blob_path(&file.digest).exists() {
            return Ok(false);
        }
        let Some(damage) = self.store.verify_blob(&file.digest, file.size, self.options.verify)? else {
            return Ok(true);
        };
        work.outcome.damaged += 1;
        let subject = &self.pipeline.nodes[id.0].name;
        self.events.emit(
            "corruption",
            json!({ "subject": subject, "detail": damage.reason, "blob": damage.blob.to_hex() }),
        );
        Ok(false)
    }

    /// One artifact of a producer; none if it is damaged, which is reported.
    fn result(
        &self,
        producer: NodeId,
        port: &str,
        work: &mut Work<'_>,
    ) -> Result<Option<InputArtifact>, StoreError> {
        let node = &self.pipeline.nodes[producer.0];
        let record = work.plan.records[producer.0].as_ref();
        let Some(output) = record.and_then(|record| record.outputs.get(port)) else { return Ok(None) };
        let files = match self.store.read(output, self.options.verify)? {
            Reading::Files(files) => files,
            Reading::Damaged(damages) => {
                self.report_damage(producer, damages, work);
                return Ok(None);
            }
        };
        Ok(Some(InputArtifact {
            axes: node.axes.iter().cloned().collect(),
            stage: node.stage.clone(),
            artifact: shards::result(output, files),
        }))
    }

    /// Says what of a node's results is damaged; of evicted ones nothing is.
    pub(super) fn report_damage(&self, producer: NodeId, damages: Vec<Damage>, work: &mut Work<'_>) {
        let node = &self.pipeline.nodes[producer.0];
        if work.plan.evicted.contains(&producer) {
            return;
        }
        for damage in damages {
            work.outcome.damaged += 1;
            self.events.emit(
                "corruption",
                json!({ "subject": node.name, "detail": damage.reason, "blob": damage.blob.to_hex() }),
            );
        }
    }
}

/// A frozen source that is read is looked at after all, as far as that is cheap: what it holds now must not be
/// stored under the key of what it was.
fn check_frozen(pattern: &str, source: &Source) -> Result<(), StageError> {
    let is_as_recorded = |file: &SourceFile, recorded: i64| {
        let length = std::fs::metadata(&file.location).map(|metadata| metadata.len());
        length.is_ok_and(|length| length == file.bytes)
            && pipe_cache::modified(&file.location) == Some(recorded)
    };
    for file in source.files.iter() {
        if file.recorded.is_some_and(|recorded| !is_as_recorded(&file, recorded)) {
            let reason = format!(
                "the source `file:{pattern}` is frozen, and this is not what was recorded; \
                 `pipe verify --sources --repair` records what is there now"
            );
            return Err(StageError::input(&file.location, reason));
        }
    }
    Ok(())
}

fn external(origin: String, digest: pipe_cache::Digest, files: ArtifactFiles) -> InputArtifact {
    InputArtifact {
        axes: BTreeMap::new(),
        stage: String::new(),
        artifact: Artifact { artifact_type: "file".to_owned(), digest, files, origin: Some(origin) },
    }
}
