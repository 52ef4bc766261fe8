//! From running to done or failed, and what that means for the consumers.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pipe_cache::{CommitOutcome, Committed, Record};
use serde_json::json;

use super::{Failure, OnFailure, Scheduler, State, TaskId, Work};
use crate::attempt::{AttemptError, Finished, chain, is_no_space};
use crate::error::StageError;
use crate::exit;
use crate::pipeline::NodeId;
use crate::plan::Status;
use crate::reproduce::{self, FileDifference};
use crate::why;

/// The longest delay before a retry, in seconds.
const LONGEST_BACKOFF: u64 = 600;

impl Scheduler<'_> {
    /// Takes the end of an attempt.
    pub(super) fn finish(&self, task: TaskId, finished: Finished, work: &mut Work<'_>) {
        let mut peak = 0;
        if let Some(running) = work.running.remove(&task) {
            peak = running.peak.load(Ordering::Relaxed);
            running.grant.into_iter().for_each(|grant| work.admission.give_back(grant));
        }
        if task.shard.is_some() {
            return self.finish_part(task, finished, peak, work);
        }
        let id = task.node;
        let mut wall = finished.wall;
        let mut differences = Vec::new();
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
            differences = parts.differences;
        }
        match finished.result {
            Ok(committed) => self.node_done(id, committed, differences, (event, wall), work),
            Err(AttemptError::Stage(StageError::Cancelled)) => {
                event["status"] = "cancelled".into();
                self.events.emit("action_finished", event);
                work.state[id.0] = State::Ready;
            }
            Err(error) => {
                event["status"] = "failed".into();
                event["error"] = chain(&error).into();
                self.events.emit("action_finished", event);
                if !self.retry(task, &error, work) {
                    self.fail(id, &error, work);
                }
            }
        }
    }

    /// A node has run and its record stands: `event` tells it, with what is added here. `differences`
    /// are those that its parts had from the stored ones.
    pub(super) fn node_done(
        &self,
        id: NodeId,
        committed: Committed,
        differences: Vec<FileDifference>,
        (mut event, wall): (serde_json::Value, Duration),
        work: &mut Work<'_>,
    ) {
        work.outcome.executed.push(id);
        work.outcome.seconds.insert(id, wall.as_secs_f64());
        event["status"] = "ok".into();
        event["outputs"] = outputs(&committed.record);
        event["counts"] = json!(committed.record.meta.counts);
        event["cutoff"] = self.is_as_before(id, &committed, work).into();
        self.events.emit("action_finished", event);
        self.compare(id, &committed, differences, work);
        self.share(id, &committed.record, work);
        work.plan.forced.remove(&id);
        self.wake_twins(id, work);
        self.complete(id, committed.record, work);
    }

    /// Nodes that wait because this one had the lease of their key need not wait longer.
    fn wake_twins(&self, id: NodeId, work: &mut Work<'_>) {
        let key = |id: NodeId| work.plan.keys[id.0].as_ref().map(|(digest, _)| *digest);
        let twins: Vec<NodeId> =
            work.waiting.keys().copied().filter(|other| key(*other) == key(id)).collect();
        for twin in twins.into_iter().filter(|twin| *twin != id) {
            if matches!(work.state[twin.0], State::Elsewhere(_)) {
                work.state[twin.0] = State::Elsewhere(Instant::now());
            }
        }
    }

    /// The key of a node, as events give it.
    pub(super) fn key_text(&self, id: NodeId, work: &Work<'_>) -> Option<String> {
        work.plan.keys[id.0].as_ref().map(|(digest, _)| digest.to_hex())
    }

    /// Tells whether a node that was executed again gave the result that the store has.
    fn compare(
        &self,
        id: NodeId,
        committed: &Committed,
        mut differences: Vec<FileDifference>,
        work: &mut Work<'_>,
    ) {
        match &committed.outcome {
            CommitOutcome::Nondeterministic { attempted } => {
                differences.extend(reproduce::compare(
                    self.store,
                    self.comparison,
                    &committed.record.outputs,
                    attempted,
                ));
            }
            CommitOutcome::Equal => {}
            _ if differences.is_empty() => return,
            _ => {}
        }
        let node = &self.pipeline.nodes[id.0];
        let is_promised = reproduce::is_promised(node.kind.determinism(), &differences);
        self.events.emit(
            "reproduced",
            json!({
                "node": node.name, "key": committed.record.key.to_hex(),
                "equal": differences.is_empty(), "promised": is_promised,
                "differences": differences.iter().map(FileDifference::json).collect::<Vec<_>>(),
            }),
        );
        if !is_promised {
            work.outcome.differing.insert(id, differences);
        }
    }

    /// Lets a failed node try again later, if its stage allows it for failures of this class.
    fn retry(&self, task: TaskId, error: &AttemptError, work: &mut Work<'_>) -> bool {
        let Some(at) = self.retry_at(task, error, work) else { return false };
        work.state[task.node.0] = State::Delayed(at);
        true
    }

    /// When a failed node, or its failed part, is tried again; none if it is not.
    pub(super) fn retry_at(
        &self,
        task: TaskId,
        error: &AttemptError,
        work: &mut Work<'_>,
    ) -> Option<Instant> {
        let node = &self.pipeline.nodes[task.node.0];
        let class = error.class().filter(|class| node.retry.on.contains(class))?;
        let tried = work.retries.entry(task).or_insert(0);
        if *tried >= node.retry.max || work.cancelled.load(Ordering::Relaxed) {
            return None;
        }
        *tried += 1;
        let shard = task.shard.map(|shard| shard.to_hex());
        let salt = format!("{}{}{}", self.run.id(), node.name, shard.as_deref().unwrap_or_default());
        let delay = backoff(node.retry.backoff, *tried, &salt);
        self.events.emit(
            "retry",
            json!({ "node": node.name, "shard": shard, "class": class.name(), "delay": delay.as_secs_f64(), "retry": tried, "max": node.retry.max }),
        );
        Some(Instant::now() + delay)
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

    /// A node turns out to have its result in the store, or in the remote cache.
    pub(super) fn hit(&self, id: NodeId, record: Record, source: &str, work: &mut Work<'_>) {
        self.events.emit(
            "action_hit",
            json!({
                "node": self.pipeline.nodes[id.0].name, "shard": null, "key": record.key.to_hex(), "source": source,
            }),
        );
        self.complete(id, record, work);
    }

    /// A node has its result: plan its consumers again.
    fn complete(&self, id: NodeId, record: Record, work: &mut Work<'_>) {
        work.state[id.0] = State::Done;
        if work.plan.status[id.0] != Status::NotWanted {
            // Whether anybody publishes them meanwhile is no concern of the run.
            let _ = self.done.send((id, record.clone()));
        }
        work.plan.records[id.0] = Some(record);
        work.plan.evicted.remove(&id);
        work.demanded.remove(&id);
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
        let (producers, known) = &mut work.producers[id.0];
        let has_result = |producer: &&NodeId| work.plan.records[producer.0].is_some();
        *known += producers[*known..].iter().take_while(has_result).count();
        if *known < producers.len() {
            return Ok(false);
        }
        let Some(key) = work.plan.key(self.pipeline, id, self.sources, self.numerics) else {
            return Ok(false);
        };
        work.plan.computed += 1;
        let (mut digest, mut key) = (key.digest(), key);
        let forced = work.plan.forced.contains(&id);
        // That the result is known is not enough for who waits for its files.
        let demanded = work.demanded.contains(&id);
        let record = match (forced, demanded) {
            (true, _) => None,
            (_, true) => self.store.lookup(&digest)?,
            _ => work.plan.look_up(id, (&mut digest, &mut key), self.store)?,
        };
        let Some(record) = record else {
            if !demanded {
                let (known, store) = (Some((&digest, &key)), Some(self.store));
                let reasons =
                    why::reasons(self.pipeline, node, known, work.plan, store, self.history, forced);
                work.plan.status[id.0] = Status::Run(reasons);
            }
            work.plan.keys[id.0] = Some((digest, key));
            work.state[id.0] = State::Ready;
            return Ok(false);
        };
        let source = if work.plan.foreign.contains(&id) { "other-class" } else { "local" };
        self.events.emit(
            "action_hit",
            json!({ "node": node.name, "shard": null, "key": digest.to_hex(), "source": source }),
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
        work.admission.forget(id);
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
        AttemptError::Stage(_)
        | AttemptError::Panic(_)
        | AttemptError::Timeout(_)
        | AttemptError::Lost(_) => exit::STAGE_FAILED,
    }
}

/// The delay before retry number `count` (from 1): doubled each time, at most ten minutes, and up to a
/// quarter shorter, so that actions that failed together do not come back together.
fn backoff(first: u64, count: u32, salt: &str) -> Duration {
    let doubled = first.saturating_mul(1u64.checked_shl(count - 1).unwrap_or(u64::MAX)).min(LONGEST_BACKOFF);
    let noise = pipe_cache::Digest::of(format!("{salt}{count}").as_bytes()).as_bytes()[0];
    Duration::from_secs(doubled).mul_f64(1.0 - f64::from(noise) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::backoff;

    #[test]
    fn delays_double_up_to_ten_minutes_and_differ() {
        for (count, seconds) in [(1, 30.0), (2, 60.0), (3, 120.0), (6, 600.0), (90, 600.0)] {
            let delay = backoff(30, count, "salt").as_secs_f64();
            assert!((0.75 * seconds..=seconds).contains(&delay), "{count}: {delay}");
        }
        assert_ne!(backoff(30, 1, "one"), backoff(30, 1, "two"));
        assert_eq!(backoff(0, 1, "").as_secs(), 0);
    }
}
