//! A row-wise node while it runs: its parts as actions, and what follows when all of them are done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pipe_cache::{
    CommitOutcome, Digest, Lease, LeaseAttempt, Reading, Record, RecordMeta, SharedOutputs, StoreError,
};
use rayon::prelude::*;
use serde_json::json;

use super::start::{Action, Inputs, Unreadable};
use super::{OnFailure, Scheduler, State, TaskId, Work};
use crate::action;
use crate::artifact::InputArtifact;
use crate::attempt::{Absent, AttemptError, Finished, Merge, Task, chain, is_no_space, nondeterministic};
use crate::error::StageError;
use crate::host::{PROGRESS_PERIOD, add_counts};
use crate::pipeline::NodeId;
use crate::reproduce::{self, FileDifference};
use crate::shards::{Shard, Shards, result};

/// After so many failed parts no further one of the node is started: the fault is hardly in the rows.
const MOST_FAILED: usize = 4;

/// A node that is executed part by part.
pub(super) struct Parts {
    shards: Shards,
    /// The results of the distinct actions, as far as they are there.
    records: Vec<Option<Record>>,
    /// Inputs that all parts share, verified once.
    common: Arc<BTreeMap<String, Vec<InputArtifact>>>,
    /// What of them has to be fetched first.
    absent: Vec<Absent>,
    /// What an action on a part takes, as far as it is known.
    seconds: Option<f64>,
    waiting: VecDeque<usize>,
    /// Parts that another node works on, here or in another process, or that have failed: asked for
    /// again then.
    elsewhere: Vec<(Instant, usize)>,
    /// By their keys.
    running: BTreeMap<Digest, usize>,
    /// Parts that have failed and are tried again.
    failed_once: BTreeSet<usize>,
    executed: usize,
    /// Parts whose results are there, whoever made them.
    done: usize,
    /// When this was told last.
    said: Instant,
    failed: usize,
    failure: Option<AttemptError>,
    /// How parts that were computed again differ from what the store has.
    pub(super) differences: Vec<FileDifference>,
    /// Whether partial results are being merged.
    is_merging: bool,
    /// The right to execute the node, until its record stands.
    lease: Option<Lease>,
    attempt: u32,
    log: PathBuf,
    pub(super) began: Instant,
    pub(super) cpu: Duration,
    pub(super) peak: u64,
}

impl Parts {
    /// The numbers that events give: all actions on parts, and those that ran.
    pub(super) fn counts(&self) -> serde_json::Value {
        json!({ "total": self.records.len(), "run": self.executed })
    }

    /// Whether a part may be started now.
    fn has_next(&self, now: Instant) -> bool {
        !self.waiting.is_empty() || self.elsewhere.iter().any(|(due, _)| *due <= now)
    }

    /// The next part that may be started now.
    fn next(&mut self, now: Instant) -> Option<usize> {
        if let Some(place) = self.elsewhere.iter().position(|(due, _)| *due <= now) {
            return Some(self.elsewhere.swap_remove(place).1);
        }
        self.waiting.pop_front()
    }

    /// What all parts read is there now; the one that it was fetched for waits again.
    pub(super) fn has_fetched(&mut self, part: Option<&Digest>) {
        self.absent.clear();
        self.waiting.extend(part.and_then(|part| self.running.remove(part)));
    }

    /// Starts no further part.
    fn give_up(&mut self) {
        self.waiting.clear();
        self.elsewhere.clear();
    }

    /// Whether nothing runs and nothing is to be started.
    fn is_over(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.elsewhere.is_empty() && !self.is_merging
    }
}

impl Scheduler<'_> {
    /// A node of these shards begins: what its parts have in common is read, and what is known of them
    /// looked up.
    pub(super) fn begin_parts(
        &self,
        id: NodeId,
        shards: Shards,
        lease: Lease,
        work: &mut Work<'_>,
    ) -> Result<(), Unreadable> {
        let node = &self.pipeline.nodes[id.0];
        let (common, absent) = self.inputs(id, work, |input| !shards.is_cut(input))?;
        let forced = work.plan.forced.contains(&id);
        let store = self.store;
        let look = |shard: &Shard| if forced { Ok(None) } else { store.lookup(&shard.digest) };
        // There may be ten thousand of them.
        let records = shards.distinct.par_iter().map(look).collect::<Result<Vec<_>, StoreError>>()?;
        let waiting: VecDeque<usize> = (0..records.len()).filter(|index| records[*index].is_none()).collect();
        let done = records.len() - waiting.len();
        // Without the list they are as young as any result, and are kept for the grace period.
        let _ = self.run.add_shards(shards.distinct.iter().map(|shard| shard.digest));
        let attempt = work.next_attempt(id);
        let device = work.plan.keys[id.0].as_ref().map(|(_, key)| action::device(&key.numerics));
        self.events.emit(
            "action_started",
            json!({
                "node": node.name, "shard": null, "key": self.key_text(id, work), "attempt": attempt,
                "executor": self.executor(), "device": device, "slurm": null, "reason": self.reason(id, work),
                "shards": { "total": records.len(), "run": waiting.len() },
            }),
        );
        let parts = Parts {
            shards,
            seconds: self.seconds_of_part(id, &records),
            records,
            common: Arc::new(common),
            absent,
            waiting,
            elsewhere: Vec::new(),
            running: BTreeMap::new(),
            failed_once: BTreeSet::new(),
            executed: 0,
            done,
            said: Instant::now(),
            failed: 0,
            failure: None,
            differences: Vec::new(),
            is_merging: false,
            lease: Some(lease),
            attempt,
            log: self.run.log(&node.name, attempt),
            began: Instant::now(),
            cpu: Duration::ZERO,
            peak: 0,
        };
        work.parts.insert(id, parts);
        Ok(())
    }

    /// Starts as many parts of a node as fit, and ends the node if there is nothing left to do.
    pub(super) fn start_parts(&self, id: NodeId, work: &mut Work<'_>) -> Result<(), Unreadable> {
        let Some(mut parts) = work.parts.remove(&id) else { return Ok(()) };
        let now = Instant::now();
        while parts.has_next(now) && work.admission.admits(id, &work.demands[id.0], now) {
            let Some(index) = parts.next(now) else { break };
            self.start_part(id, index, &mut parts, work)?;
        }
        let is_over = parts.is_over();
        let can_start = !parts.waiting.is_empty() || !parts.elsewhere.is_empty();
        work.state[id.0] = if can_start || is_over { State::Parts } else { State::Running };
        work.parts.insert(id, parts);
        if is_over { self.conclude(id, work).map_err(Unreadable::Error) } else { Ok(()) }
    }

    fn start_part(
        &self,
        id: NodeId,
        index: usize,
        parts: &mut Parts,
        work: &mut Work<'_>,
    ) -> Result<(), Unreadable> {
        let node = &self.pipeline.nodes[id.0];
        let shard = &parts.shards.distinct[index];
        if work.orders.contains_key(&shard.digest) {
            parts.elsewhere.push((Instant::now() + self.lease_poll(), index));
            return Ok(());
        }
        let lease = if self.is_adoptable(&shard.digest, work) {
            None
        } else {
            match self.store.lease(&shard.digest, self.run.id())? {
                LeaseAttempt::Acquired(lease) => Some(lease),
                LeaseAttempt::Busy(_) => {
                    parts.elsewhere.push((Instant::now() + self.lease_poll(), index));
                    return Ok(());
                }
            }
        };
        let forced = work.plan.forced.contains(&id);
        if !forced && let Some(record) = self.store.lookup(&shard.digest)? {
            parts.records[index] = Some(record);
            parts.done += 1;
            return Ok(());
        }
        let artifact = match shard.artifact(self.store, self.options.verify)? {
            Ok(artifact) => artifact,
            Err(damages) => {
                let producer = parts.shards.producer(shard).unwrap_or(id);
                self.report_damage(producer, damages, work);
                return Err(Unreadable::Damaged([producer].into()));
            }
        };
        // The axes of its producer are not in the key of a part.
        let input = InputArtifact { axes: BTreeMap::new(), stage: String::new(), artifact };
        let inputs = Inputs {
            common: Arc::clone(&parts.common),
            part: Some((shard.port.clone(), input)),
            absent: parts.absent.clone(),
        };
        // The first attempts at all parts share a log.
        let attempt = if parts.failed_once.contains(&index) { work.next_attempt(id) } else { parts.attempt };
        self.events.emit(
            "action_started",
            json!({
                "node": node.name, "shard": shard.digest.to_hex(), "key": shard.digest.to_hex(),
                "attempt": attempt, "executor": self.executor(), "device": action::device(&shard.key.numerics), "slurm": null, "reason": null,
            }),
        );
        let outputs = parts.shards.ports_of(node, &shard.port).into_iter().cloned().collect();
        let digest = shard.digest;
        let task = TaskId { node: id, shard: Some(digest) };
        let (key, log) = (shard.key.clone(), self.run.log(&node.name, attempt));
        let action = Action { key, inputs, outputs, log, seconds: parts.seconds };
        self.spawn(task, Task::Part(digest), action, lease, work).map_err(Unreadable::Error)?;
        parts.running.insert(digest, index);
        Ok(())
    }

    /// Takes the end of an action on a part.
    pub(super) fn finish_part(&self, task: TaskId, finished: Finished, peak: u64, work: &mut Work<'_>) {
        let (id, Some(digest)) = (task.node, task.shard) else { return };
        let node = &self.pipeline.nodes[id.0];
        super::tell_if_off(self.mirror, &self.events);
        let mut event = json!({
            "node": node.name, "shard": digest.to_hex(), "key": digest.to_hex(),
            "wall": finished.wall.as_secs_f64(), "cpu": finished.cpu.map(|cpu| cpu.as_secs_f64()),
            "peak_rss": peak, "peak_gpu": null,
        });
        event["status"] = match &finished.result {
            Ok(_) => "ok",
            Err(AttemptError::Stage(StageError::Cancelled)) => "cancelled",
            Err(_) => "failed",
        }
        .into();
        match &finished.result {
            Ok(committed) => {
                event["outputs"] = super::finish::outputs(&committed.record);
                event["cutoff"] = false.into();
            }
            Err(error) => event["error"] = chain(error).into(),
        }
        if finished.is_taken {
            self.events.emit(
                "action_hit",
                json!({ "node": node.name, "shard": digest.to_hex(), "key": digest.to_hex(), "source": "remote" }),
            );
        } else {
            self.events.emit("action_finished", event);
        }
        // Of a node that was given up meanwhile, the result stands in the store all the same.
        let Some(parts) = work.parts.get_mut(&id) else { return };
        let Some(index) = parts.running.remove(&digest) else { return };
        parts.cpu += finished.cpu.unwrap_or_default();
        parts.peak = parts.peak.max(peak);
        let mut shared = None;
        match finished.result {
            Ok(committed) => {
                if !finished.is_taken {
                    work.outcome.shards += 1;
                    parts.executed += 1;
                    shared = Some(committed.record.clone());
                }
                if let CommitOutcome::Nondeterministic { attempted } = &committed.outcome {
                    let stored = &committed.record.outputs;
                    parts.differences.extend(reproduce::compare(
                        self.store,
                        self.comparison,
                        stored,
                        attempted,
                    ));
                }
                parts.records[index] = Some(committed.record);
                parts.done += 1;
                let (done, total) = (parts.done, parts.records.len());
                if parts.said.elapsed() >= PROGRESS_PERIOD || done == total {
                    parts.said = Instant::now();
                    self.events.emit(
                        "progress",
                        json!({ "node": node.name, "shard": null, "done": done, "total": total, "unit": "parts", "metrics": {} }),
                    );
                }
            }
            Err(AttemptError::Stage(StageError::Cancelled)) => parts.waiting.push_front(index),
            Err(error) => {
                if let Some(at) = self.retry_at(task, &error, work) {
                    if let Some(parts) = work.parts.get_mut(&id) {
                        parts.failed_once.insert(index);
                        parts.elsewhere.push((at, index));
                    }
                    work.state[id.0] = State::Parts;
                    return;
                }
                let Some(parts) = work.parts.get_mut(&id) else { return };
                let no_space = is_no_space(&error);
                parts.failed += 1;
                if parts.failed >= MOST_FAILED || no_space || self.options.on_failure != OnFailure::Continue {
                    parts.give_up();
                }
                if no_space || self.options.on_failure == OnFailure::StopAll {
                    work.cancelled.store(true, Ordering::Relaxed);
                }
                parts.failure.get_or_insert(error);
            }
        }
        if let Some(record) = shared {
            self.share(id, &record, work);
        }
        let parts = &work.parts[&id];
        if parts.is_over() || !parts.waiting.is_empty() || !parts.elsewhere.is_empty() {
            work.state[id.0] = State::Parts;
        }
        if parts.is_over() {
            let ended = self.conclude(id, work);
            if let Err(error) = ended {
                work.parts.remove(&id);
                self.fail(id, &error, work);
            }
        }
    }

    /// All parts are done or given up: the node's own record, or its failure.
    fn conclude(&self, id: NodeId, work: &mut Work<'_>) -> Result<(), AttemptError> {
        let node = &self.pipeline.nodes[id.0];
        let Some(mut parts) = work.parts.remove(&id) else { return Ok(()) };
        if let Some(failure) = parts.failure.take() {
            let mut event = self.finished_event(id, &parts, work);
            event["status"] = "failed".into();
            event["error"] = chain(&failure).into();
            self.events.emit("action_finished", event);
            return Err(failure);
        }
        let Some((_, key)) = work.plan.keys[id.0].clone() else { return Ok(()) };
        let mut tables = parts.shards.tables(node, &parts.records)?;
        let merged: Vec<_> = parts.shards.merged_ports(node).into_iter().cloned().collect();
        let shards = parts.shards.distinct.iter().map(|shard| shard.digest).collect();
        let seconds = parts.records.iter().flatten().map(|record| record.meta.duration_seconds).sum();
        let mut counts = BTreeMap::new();
        for record in parts.records.iter().flatten() {
            add_counts(&mut counts, record.meta.counts.iter().map(|(what, number)| (what.as_str(), *number)));
        }
        if merged.is_empty() {
            let meta = RecordMeta {
                created: crate::events::now(),
                run: self.run.id().to_owned(),
                host: self.store.owner().host.clone(),
                duration_seconds: seconds,
                cpu_seconds: Some(
                    parts.records.iter().flatten().filter_map(|one| one.meta.cpu_seconds).sum(),
                ),
                peak_memory_bytes: parts
                    .records
                    .iter()
                    .flatten()
                    .filter_map(|one| one.meta.peak_memory_bytes)
                    .max(),
                device: Some(action::device(&key.numerics).to_owned()),
                revision: self.revision.clone(),
                counts,
            };
            let shared = SharedOutputs { outputs: std::mem::take(&mut tables), shards };
            let committed = self.store.stage()?.commit_soon(&key, &[], shared, meta)?;
            if let CommitOutcome::Nondeterministic { .. } = committed.outcome {
                nondeterministic(&self.events, &node.name);
            }
            if let Some(lease) = parts.lease.take() {
                self.store.release(lease);
            }
            let event = self.finished_event(id, &parts, work);
            self.node_done(id, committed, parts.differences, (event, parts.began.elapsed()), work);
            return Ok(());
        }
        if !work.admission.admits(id, &self.local_demand(id, work), Instant::now()) {
            // As soon as there is room.
            work.state[id.0] = State::Parts;
            work.parts.insert(id, parts);
            return Ok(());
        }
        let mut partials = BTreeMap::new();
        for port in &merged {
            let mut artifacts = Vec::new();
            for output in parts.shards.outputs_of(node, &port.name, &parts.records) {
                match self.store.read(output, self.options.verify)? {
                    Reading::Files(files) => artifacts.push(result(output, files)),
                    Reading::Damaged(damages) => {
                        // The records that name them are misses now: the parts are looked up again.
                        self.report_damage(id, damages, work);
                        work.state[id.0] = State::Ready;
                        return Ok(());
                    }
                }
            }
            partials.insert(port.name.clone(), artifacts);
        }
        let shared = SharedOutputs { outputs: tables, shards };
        let merge = Task::Merge(Box::new(Merge { partials, shared, seconds, counts }));
        let task = TaskId { node: id, shard: None };
        let (common, absent) = (Arc::clone(&parts.common), parts.absent.clone());
        let inputs = Inputs { common, part: None, absent };
        let action = Action { key, inputs, outputs: merged, log: parts.log.clone(), seconds: None };
        let lease = parts.lease.take();
        self.spawn(task, merge, action, lease, work)?;
        parts.is_merging = true;
        work.parts.insert(id, parts);
        work.state[id.0] = State::Running;
        Ok(())
    }

    /// What the event of the node's end says in any case.
    pub(super) fn finished_event(&self, id: NodeId, parts: &Parts, work: &Work<'_>) -> serde_json::Value {
        json!({
            "node": self.pipeline.nodes[id.0].name, "shard": null, "key": self.key_text(id, work),
            "wall": parts.began.elapsed().as_secs_f64(), "cpu": parts.cpu.as_secs_f64(),
            "peak_rss": parts.peak, "peak_gpu": null, "shards": parts.counts(),
        })
    }
}
