//! Executes a plan: what is ready runs within the cores of the machine; after each action its
//! consumers are planned again, so an equal result stops the wave.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use pipe_cache::{
    CommitOutcome, Digest, LeaseAttempt, Reading, Record, RunFolder, Store, StoreError, Verify,
};
use serde_json::json;

use crate::action::{self, SourceDigests};
use crate::attempt::{Attempt, AttemptError, Finished, chain};
use crate::context::{Artifact, ArtifactFile, InputArtifact};
use crate::error::StageError;
use crate::events::EventLog;
use crate::exit;
use crate::kind::DefaultCpu;
use crate::pipeline::{InputSource, NodeId, Pipeline};
use crate::plan::{Plan, Status};

/// How often a lease held by another process is asked for again.
const LEASE_POLL: Duration = Duration::from_millis(250);
const TICK: Duration = Duration::from_millis(100);

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
    pub(crate) cores: usize,
    pub(crate) on_failure: OnFailure,
    pub(crate) grace: Duration,
    pub(crate) verify: Verify,
}

/// What a run did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) executed: Vec<NodeId>,
    pub(crate) failed: BTreeMap<NodeId, Failure>,
    /// Nodes that could not run, with the node whose failure blocked them.
    pub(crate) blocked: BTreeMap<NodeId, NodeId>,
    pub(crate) cancelled: bool,
    pub(crate) wall: Duration,
}

/// One failed node.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: String,
    pub(crate) exit_code: u8,
    pub(crate) log: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Inputs are missing.
    Waiting,
    Ready,
    /// Another process works on it; ask again then.
    Elsewhere(Instant),
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
    pub(crate) numerics: &'a str,
    pub(crate) options: RunOptions,
    pub(crate) events: Arc<EventLog>,
    pub(crate) run: &'a RunFolder,
    pub(crate) stop: Arc<AtomicBool>,
    /// Set by the signal that wants an immediate end.
    pub(crate) abort: Arc<AtomicBool>,
}

struct Work<'p> {
    plan: &'p mut Plan,
    consumers: Vec<Vec<NodeId>>,
    state: Vec<State>,
    /// Longest remaining path, in estimated seconds.
    urgency: Vec<f64>,
    attempts: BTreeMap<NodeId, u32>,
    free: usize,
    cores_of: BTreeMap<NodeId, usize>,
    outcome: Outcome,
}

impl Scheduler<'_> {
    /// Executes what `plan` says, updating its keys and records.
    pub(crate) fn execute(
        &self,
        plan: &mut Plan,
        durations: &BTreeMap<NodeId, f64>,
    ) -> Result<Outcome, StoreError> {
        let started = Instant::now();
        let cancelled = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel::<(NodeId, Finished)>();
        let consumers = action::consumers(self.pipeline);
        let urgency = urgency(plan, &consumers, durations);
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
        let mut work = Work {
            plan,
            consumers,
            state,
            urgency,
            attempts: BTreeMap::new(),
            free: self.options.cores,
            cores_of: BTreeMap::new(),
            outcome: Outcome::default(),
        };
        let mut stopped_at: Option<Instant> = None;
        loop {
            if self.stop.load(Ordering::Relaxed) && stopped_at.is_none() {
                stopped_at = Some(Instant::now());
                cancelled.store(true, Ordering::Relaxed);
            }
            let aborting = self.abort.load(Ordering::Relaxed)
                || stopped_at.is_some_and(|since| since.elapsed() > self.options.grace);
            let starting = stopped_at.is_none()
                && (work.outcome.failed.is_empty() || self.options.on_failure == OnFailure::Continue);
            if starting {
                self.start_ready(&mut work, &cancelled, &sender)?;
            }
            let running = work.state.contains(&State::Running);
            let elsewhere = work.state.iter().any(|state| matches!(state, State::Elsewhere(_)));
            if aborting || (!running && (!starting || !elsewhere)) {
                break;
            }
            match receiver.recv_timeout(TICK) {
                Ok((id, finished)) => {
                    self.finish(id, finished, &mut work)?;
                    if self.options.on_failure == OnFailure::StopAll && !work.outcome.failed.is_empty() {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        work.outcome.cancelled = stopped_at.is_some();
        work.outcome.wall = started.elapsed();
        Ok(work.outcome)
    }

    fn cores(&self, id: NodeId) -> usize {
        let node = &self.pipeline.nodes[id.0];
        let wanted = node.resources.cpu.unwrap_or(match node.description.cpu {
            DefaultCpu::One => 1,
            DefaultCpu::All => self.options.cores,
        });
        wanted.clamp(1, self.options.cores)
    }

    /// Starts what is ready and fits, the most urgent first.
    fn start_ready(
        &self,
        work: &mut Work<'_>,
        cancelled: &Arc<AtomicBool>,
        sender: &mpsc::Sender<(NodeId, Finished)>,
    ) -> Result<(), StoreError> {
        let now = Instant::now();
        let mut ready: BinaryHeap<(u64, std::cmp::Reverse<usize>)> = BinaryHeap::new();
        for (index, state) in work.state.iter().enumerate() {
            let due = match state {
                State::Ready => true,
                State::Elsewhere(again) => *again <= now,
                _ => false,
            };
            if due {
                // Milliseconds, so that urgencies have a total order.
                ready.push(((work.urgency[index] * 1e3) as u64, std::cmp::Reverse(index)));
            }
        }
        while let Some((_, std::cmp::Reverse(index))) = ready.pop() {
            if work.free == 0 {
                break;
            }
            let id = NodeId(index);
            let cores = self.cores(id);
            if cores > work.free {
                continue;
            }
            if self.start(id, cores, work, cancelled, sender)? {
                work.free -= cores;
                work.cores_of.insert(id, cores);
            }
        }
        Ok(())
    }

    /// Starts one action; false if it need not or cannot run now.
    fn start(
        &self,
        id: NodeId,
        cores: usize,
        work: &mut Work<'_>,
        cancelled: &Arc<AtomicBool>,
        sender: &mpsc::Sender<(NodeId, Finished)>,
    ) -> Result<bool, StoreError> {
        let node = &self.pipeline.nodes[id.0];
        let Some((digest, key)) = work.plan.keys[id.0].clone() else {
            work.state[id.0] = State::Waiting;
            return Ok(false);
        };
        let waited = matches!(work.state[id.0], State::Elsewhere(_));
        let lease = match self.store.lease(&digest, self.run.id())? {
            LeaseAttempt::Acquired(lease) => lease,
            LeaseAttempt::Busy(info) => {
                if !waited {
                    let owner = info
                        .map(|info| {
                            format!("waits for run {} ({}:{})", info.run, info.owner.host, info.owner.pid)
                        })
                        .unwrap_or_else(|| "waits for another process".to_owned());
                    self.events.emit("waiting", json!({ "subject": node.name, "detail": owner }));
                }
                work.state[id.0] = State::Elsewhere(Instant::now() + LEASE_POLL);
                return Ok(false);
            }
        };
        // Between planning and the lease another process may have finished it.
        if waited && let Some(record) = self.store.lookup(&digest)? {
            drop(lease);
            self.events
                .emit("action_hit", json!({ "node": node.name, "key": digest.to_hex(), "source": "local" }));
            self.complete(id, record, work)?;
            return Ok(false);
        }
        let inputs = match self.inputs(id, &work.plan.records)? {
            Ok(inputs) => inputs,
            Err(damaged) => {
                for producer in damaged {
                    work.plan.records[producer.0] = None;
                    work.state[producer.0] = State::Ready;
                }
                work.state[id.0] = State::Waiting;
                return Ok(false);
            }
        };
        let attempt_number = work.attempts.entry(id).and_modify(|count| *count += 1).or_insert(1);
        let reason = match &work.plan.status[id.0] {
            Status::Run(reasons) | Status::Maybe(reasons) => {
                reasons.first().map(|reason| reason.words(self.pipeline))
            }
            _ => None,
        };
        self.events.emit(
            "action_started",
            json!({
                "node": node.name, "shard": null, "key": digest.to_hex(), "attempt": attempt_number,
                "executor": "local", "device": "cpu", "reason": reason,
            }),
        );
        let attempt = Attempt {
            node: node.clone(),
            key,
            inputs,
            threads: cores,
            store: self.store.clone(),
            run: self.run.id().to_owned(),
            log: self.run.log(&node.name, *attempt_number),
            events: Arc::clone(&self.events),
            cancelled: Arc::clone(cancelled),
            lease,
        };
        let sender = sender.clone();
        let spawned = std::thread::Builder::new().name(format!("action {}", node.name)).spawn(move || {
            // The receiver is gone only when the run was aborted.
            let _ = sender.send((id, attempt.execute()));
        });
        match spawned {
            Ok(_) => {
                work.state[id.0] = State::Running;
                Ok(true)
            }
            Err(error) => {
                let error = StageError::environment("starting a thread", error).into();
                self.fail(id, &error, work);
                Ok(false)
            }
        }
    }

    /// The inputs of a node, verified; or the producers whose outputs are damaged.
    fn inputs(
        &self,
        id: NodeId,
        records: &[Option<Record>],
    ) -> Result<Result<BTreeMap<String, Vec<InputArtifact>>, BTreeSet<NodeId>>, StoreError> {
        let mut inputs = BTreeMap::new();
        let mut damaged = BTreeSet::new();
        for input in &self.pipeline.nodes[id.0].inputs {
            let mut artifacts = Vec::with_capacity(input.sources.len());
            for source in &input.sources {
                match source {
                    InputSource::Node { node, port } => {
                        let producer = &self.pipeline.nodes[node.0];
                        let Some(output) =
                            records[node.0].as_ref().and_then(|record| record.outputs.get(port))
                        else {
                            damaged.insert(*node);
                            continue;
                        };
                        match self.store.read(output, self.options.verify)? {
                            Reading::Files(files) => artifacts.push(InputArtifact {
                                axes: producer.axes.iter().cloned().collect(),
                                stage: producer.stage.clone(),
                                artifact: Artifact {
                                    artifact_type: output.artifact_type.clone(),
                                    digest: output.content,
                                    files: files
                                        .into_iter()
                                        .map(|file| ArtifactFile {
                                            path: file.path,
                                            bytes: file.bytes,
                                            location: file.location,
                                        })
                                        .collect(),
                                    origin: None,
                                },
                            }),
                            Reading::Damaged(damages) => {
                                for damage in damages {
                                    self.events.emit(
                                        "corruption",
                                        json!({ "subject": producer.name, "detail": damage.reason, "blob": damage.blob.to_hex() }),
                                    );
                                }
                                damaged.insert(*node);
                            }
                        }
                    }
                    InputSource::File { pattern, path } => {
                        if let Some(source) = self.sources.get(path) {
                            let files = source.files.iter().map(|file| ArtifactFile {
                                path: file.path.clone(),
                                bytes: file.bytes,
                                location: file.location.clone(),
                            });
                            artifacts.push(external(
                                format!("file:{pattern}"),
                                source.digest,
                                files.collect(),
                            ));
                        }
                    }
                    InputSource::Blob(digest) => {
                        let location = self.store.blob_path(digest);
                        let bytes = std::fs::metadata(&location).map_or(0, |metadata| metadata.len());
                        let file = ArtifactFile { path: digest.to_hex(), bytes, location };
                        artifacts.push(external(format!("store:b3:{digest}"), *digest, vec![file]));
                    }
                }
            }
            inputs.insert(input.name.clone(), artifacts);
        }
        Ok(if damaged.is_empty() { Ok(inputs) } else { Err(damaged) })
    }

    fn finish(&self, id: NodeId, finished: Finished, work: &mut Work<'_>) -> Result<(), StoreError> {
        work.free += work.cores_of.remove(&id).unwrap_or_default();
        let node = &self.pipeline.nodes[id.0];
        let key = work.plan.keys[id.0].as_ref().map(|(digest, _)| digest.to_hex());
        let wall = finished.wall.as_secs_f64();
        match finished.result {
            Ok(committed) => {
                let outputs: Vec<serde_json::Value> = committed
                    .record
                    .outputs
                    .iter()
                    .map(|(port, output)| {
                        json!({ "port": port, "digest": output.content.to_hex(), "bytes": output.bytes(), "rows": output.rows })
                    })
                    .collect();
                let cutoff = committed.outcome == CommitOutcome::Equal;
                self.events.emit(
                    "action_finished",
                    json!({ "node": node.name, "shard": null, "key": key, "status": "ok", "wall": wall, "outputs": outputs, "cutoff": cutoff }),
                );
                work.outcome.executed.push(id);
                self.complete(id, committed.record, work)
            }
            Err(AttemptError::Stage(StageError::Cancelled)) => {
                self.events.emit(
                    "action_finished",
                    json!({ "node": node.name, "shard": null, "key": key, "status": "cancelled", "wall": wall }),
                );
                work.state[id.0] = State::Ready;
                Ok(())
            }
            Err(error) => {
                self.events.emit(
                    "action_finished",
                    json!({ "node": node.name, "shard": null, "key": key, "status": "failed", "wall": wall, "error": chain(&error) }),
                );
                self.fail(id, &error, work);
                Ok(())
            }
        }
    }

    /// A node has its result: plan its consumers again.
    fn complete(&self, id: NodeId, record: Record, work: &mut Work<'_>) -> Result<(), StoreError> {
        work.state[id.0] = State::Done;
        work.plan.records[id.0] = Some(record);
        let mut waiting = vec![id];
        while let Some(done) = waiting.pop() {
            let mut consumers = work.consumers[done.0].clone();
            consumers.dedup();
            for consumer in consumers {
                if work.state[consumer.0] != State::Waiting {
                    continue;
                }
                let node = &self.pipeline.nodes[consumer.0];
                let Some(key) =
                    action::key(self.pipeline, node, &work.plan.records, self.sources, self.numerics)
                else {
                    continue;
                };
                let digest = key.digest();
                let record = self.store.lookup(&digest)?;
                work.plan.keys[consumer.0] = Some((digest, key));
                match record {
                    Some(record) => {
                        self.events.emit(
                            "action_hit",
                            json!({ "node": node.name, "shard": null, "key": digest.to_hex(), "source": "local" }),
                        );
                        work.plan.records[consumer.0] = Some(record);
                        work.state[consumer.0] = State::Done;
                        waiting.push(consumer);
                    }
                    None => work.state[consumer.0] = State::Ready,
                }
            }
        }
        Ok(())
    }

    fn fail(&self, id: NodeId, error: &AttemptError, work: &mut Work<'_>) {
        let attempt = work.attempts.get(&id).copied().unwrap_or(1);
        let failure = Failure {
            error: chain(error),
            exit_code: exit_code(error),
            log: self.run.log(&self.pipeline.nodes[id.0].name, attempt),
        };
        work.state[id.0] = State::Failed;
        work.outcome.failed.insert(id, failure);
        let mut waiting = vec![id];
        while let Some(cause) = waiting.pop() {
            for consumer in work.consumers[cause.0].clone() {
                if work.state[consumer.0] == State::Waiting {
                    work.state[consumer.0] = State::Blocked;
                    work.outcome.blocked.insert(consumer, id);
                    waiting.push(consumer);
                }
            }
        }
    }
}

fn external(origin: String, digest: Digest, files: Vec<ArtifactFile>) -> InputArtifact {
    InputArtifact {
        axes: BTreeMap::new(),
        stage: String::new(),
        artifact: Artifact { artifact_type: "file".to_owned(), digest, files, origin: Some(origin) },
    }
}

fn exit_code(error: &AttemptError) -> u8 {
    match error {
        AttemptError::Stage(StageError::InputData { .. }) => exit::INPUT_DATA,
        AttemptError::Stage(StageError::Environment { .. }) | AttemptError::Store(_) => exit::ENVIRONMENT,
        AttemptError::Stage(_) | AttemptError::Panic(_) | AttemptError::Timeout(_) => exit::STAGE_FAILED,
    }
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
