//! From running to done or failed, and what that means for the consumers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pipe_cache::{CommitOutcome, Committed, Record};
use serde_json::json;

use super::{Failure, OnFailure, Scheduler, State, TaskId, Work};
use crate::action;
use crate::attempt::{AttemptError, Finished, chain};
use crate::error::StageError;
use crate::exit;
use crate::pipeline::NodeId;
use crate::plan::Status;
use crate::why;

impl Scheduler<'_> {
    /// Takes the end of an attempt.
    pub(super) fn finish(&self, task: TaskId, finished: Finished, work: &mut Work<'_>) {
        let mut peak = 0;
        if let Some(running) = work.running.remove(&task) {
            work.free += running.cores;
            peak = running.peak.load(Ordering::Relaxed);
        }
        if task.shard.is_some() {
            return self.finish_part(task, finished, peak, work);
        }
        let id = task.node;
        let mut wall = finished.wall;
        let mut event = json!({
            "node": self.pipeline.nodes[id.0].name, "shard": null, "key": self.key_text(id, work),
            "wall": wall.as_secs_f64(), "cpu": finished.cpu.map(|cpu| cpu.as_secs_f64()), "peak_rss": peak,
            "peak_gpu": null,
        });
        // What the parts of a row-wise node gave was merged.
        if let Some(mut parts) = work.parts.remove(&id) {
            parts.cpu += finished.cpu.unwrap_or_default();
            parts.peak = parts.peak.max(peak);
            event = self.finished_event(id, &parts, work);
            wall = parts.began.elapsed();
        }
        match finished.result {
            Ok(committed) => self.node_done(id, committed, event, wall, work),
            Err(AttemptError::Stage(StageError::Cancelled)) => {
                event["status"] = "cancelled".into();
                self.events.emit("action_finished", event);
                work.state[id.0] = State::Ready;
            }
            Err(error) => {
                event["status"] = "failed".into();
                event["error"] = chain(&error).into();
                self.events.emit("action_finished", event);
                self.fail(id, &error, work);
            }
        }
    }

    /// A node has run and its record stands: `event` tells it, with what is added here.
    pub(super) fn node_done(
        &self,
        id: NodeId,
        committed: Committed,
        mut event: serde_json::Value,
        wall: Duration,
        work: &mut Work<'_>,
    ) {
        work.outcome.executed.push(id);
        work.outcome.seconds.insert(id, wall.as_secs_f64());
        event["status"] = "ok".into();
        event["outputs"] = outputs(&committed.record);
        event["cutoff"] = self.is_as_before(id, &committed, work).into();
        self.events.emit("action_finished", event);
        work.plan.forced.remove(&id);
        self.complete(id, committed.record, work);
    }

    /// The key of a node, as events give it.
    pub(super) fn key_text(&self, id: NodeId, work: &Work<'_>) -> Option<String> {
        work.plan.keys[id.0].as_ref().map(|(digest, _)| digest.to_hex())
    }

    /// Whether a node gave the result that it had before: then nothing below it has to run.
    fn is_as_before(&self, id: NodeId, committed: &Committed, work: &Work<'_>) -> bool {
        if committed.outcome == CommitOutcome::Equal {
            return true;
        }
        let key = work.plan.keys[id.0].as_ref().map(|(digest, _)| digest);
        let previous = self.history.last_record(&self.pipeline.nodes[id.0].name, key);
        previous.is_some_and(|record| record.has_equal_outputs(&committed.record))
    }

    /// A node turns out to have its result in the store.
    pub(super) fn hit(&self, id: NodeId, record: Record, work: &mut Work<'_>) {
        self.events.emit(
            "action_hit",
            json!({
                "node": self.pipeline.nodes[id.0].name, "shard": null, "key": record.key.to_hex(), "source": "local",
            }),
        );
        self.complete(id, record, work);
    }

    /// A node has its result: plan its consumers again.
    fn complete(&self, id: NodeId, record: Record, work: &mut Work<'_>) {
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
                match self.plan_again(consumer, work) {
                    Ok(true) => waiting.push(consumer),
                    Ok(false) => {}
                    Err(error) => self.fail(consumer, &error, work),
                }
            }
        }
    }

    /// Looks a waiting node up, if all its inputs are known now; whether its result is there.
    fn plan_again(&self, id: NodeId, work: &mut Work<'_>) -> Result<bool, AttemptError> {
        let node = &self.pipeline.nodes[id.0];
        let Some(key) = action::key(self.pipeline, node, &work.plan.records, self.sources, self.numerics)
        else {
            return Ok(false);
        };
        let digest = key.digest();
        let forced = work.plan.forced.contains(&id);
        let record = if forced { None } else { self.store.lookup(&digest)? };
        let Some(record) = record else {
            let known = Some((&digest, &key));
            let reasons =
                why::reasons(self.pipeline, node, known, work.plan, Some(self.store), self.history, forced);
            work.plan.status[id.0] = Status::Run(reasons);
            work.plan.keys[id.0] = Some((digest, key));
            work.state[id.0] = State::Ready;
            return Ok(false);
        };
        self.events.emit(
            "action_hit",
            json!({ "node": node.name, "shard": null, "key": digest.to_hex(), "source": "local" }),
        );
        work.plan.keys[id.0] = Some((digest, key));
        work.plan.records[id.0] = Some(record);
        work.state[id.0] = State::Done;
        Ok(true)
    }

    /// A node has failed, and what depends on it is blocked.
    pub(super) fn fail(&self, id: NodeId, error: &AttemptError, work: &mut Work<'_>) {
        let attempt = work.attempts.get(&id).copied().unwrap_or(1);
        let failure = Failure {
            error: chain(error),
            exit_code: exit_code(error),
            no_space: is_no_space(error),
            log: self.run.log(&self.pipeline.nodes[id.0].name, attempt),
        };
        if failure.no_space || self.options.on_failure == OnFailure::StopAll {
            work.cancelled.store(true, Ordering::Relaxed);
        }
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

pub(super) fn outputs(record: &Record) -> serde_json::Value {
    let outputs = record.outputs.iter().map(|(port, output)| {
        json!({ "port": port, "digest": output.content.to_hex(), "bytes": output.bytes(), "rows": output.rows })
    });
    outputs.collect()
}

fn exit_code(error: &AttemptError) -> u8 {
    match error {
        AttemptError::Stage(StageError::InputData { .. }) => exit::INPUT_DATA,
        AttemptError::Stage(StageError::Environment { .. }) | AttemptError::Store(_) => exit::ENVIRONMENT,
        error if is_no_space(error) => exit::ENVIRONMENT,
        AttemptError::Stage(_) | AttemptError::Panic(_) | AttemptError::Timeout(_) => exit::STAGE_FAILED,
    }
}

/// Whether some cause of an error is a full disk or an exhausted quota, whatever class the stage gave it.
pub(super) fn is_no_space(error: &AttemptError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded)) {
            return true;
        }
        // An I/O error that wraps another shows the inner one's cause as its own.
        let inner =
            io.and_then(|error| error.get_ref()).map(|inner| inner as &(dyn std::error::Error + 'static));
        cause = inner.or_else(|| error.source());
    }
    false
}
