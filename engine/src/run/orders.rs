//! Actions that are executed elsewhere: ordered from a cluster, and taken back when they have ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pipe_cache::{Digest, Record};

use super::start::Action;
use super::{Demand, OnFailure, Running, Scheduler, State, TaskId, Work};
use crate::attempt::{AttemptError, Finished};
use crate::brief::{Brief, Port};
use crate::pipeline::{Node, NodeId, Origin, Place};
use crate::slurm::manifest::{Ask, Order};

/// How often a lease held by another process is asked for again.
const LEASE_POLL: Duration = Duration::from_millis(250);
/// The same, where there are many and their holders are other hosts.
const FAR_LEASE_POLL: Duration = Duration::from_secs(2);

/// What may be asked of a cluster.
const ASKED: [&str; 9] =
    ["cpu", "mem", "gpu", "time", "partition", "account", "qos", "constraint", "reservation"];

impl Scheduler<'_> {
    /// Where actions run, as events name it.
    pub(super) fn executor(&self) -> &'static str {
        match self.pipeline.executor.place {
            Place::Local => "local",
            Place::Slurm => "slurm",
        }
    }

    pub(super) fn lease_poll(&self) -> Duration {
        match self.pipeline.executor.place {
            Place::Local => LEASE_POLL,
            Place::Slurm => FAR_LEASE_POLL,
        }
    }

    /// What a node takes of this machine for what it does here.
    pub(super) fn local_demand(&self, id: NodeId, work: &Work<'_>) -> Demand {
        match self.pipeline.executor.place {
            Place::Local => work.demands[id.0].clone(),
            Place::Slurm => Demand { cpu: 1, ..Demand::default() },
        }
    }

    /// Whether a job of an earlier run is to execute an action: then its worker may have the lease.
    pub(super) fn is_adoptable(&self, digest: &Digest, work: &Work<'_>) -> bool {
        work.cluster.as_ref().is_some_and(|cluster| cluster.is_adoptable(digest))
    }

    /// What attempts at a node have to know of it.
    pub(super) fn brief(&self, id: NodeId, work: &mut Work<'_>) -> Arc<Brief> {
        let node = &self.pipeline.nodes[id.0];
        if let Some(ancestry) = work.plan.ancestries.get(&id) {
            return Arc::new(Brief::new(node, ancestry.clone()));
        }
        Arc::clone(work.briefs.entry(id).or_insert_with(|| Arc::new(Brief::new(node, Vec::new()))))
    }

    /// Orders an action from the cluster.
    pub(super) fn order(&self, id: TaskId, action: Action, work: &mut Work<'_>) {
        let node = &self.pipeline.nodes[id.node.0];
        let digest = action.key.digest();
        let brief = self.brief(id.node, work);
        let order = Order {
            stage: node.stage.clone(),
            brief,
            common: action.inputs.common,
            part: action.inputs.part,
            outputs: action.outputs.iter().map(Port::from).collect(),
            key: action.key,
            digest,
            log: action.log,
            forced: work.plan.forced.contains(&id.node),
            ask: Ask::of(node),
            seconds: action.seconds,
            origins: Arc::new(self.origins(node)),
        };
        let Some(cluster) = &mut work.cluster else { return };
        cluster.enqueue(order);
        work.orders.insert(digest, id);
        let peak = Arc::new(AtomicU64::new(0));
        work.running.insert(id, Running { grant: None, began: Instant::now(), peak });
    }

    /// Where what a node asks for was written, and under no name where its stage was.
    fn origins(&self, node: &Node) -> BTreeMap<String, Origin> {
        let origin = |name: &str| {
            let own = node.setting_origins.get(&format!("resources.{name}"));
            own.or_else(|| self.pipeline.executor.origins.get(&format!("slurm.{name}"))).cloned()
        };
        let asked = ASKED.into_iter().filter_map(|name| Some((name.to_owned(), origin(name)?)));
        asked.chain([(String::new(), node.origin.clone())]).collect()
    }

    /// Lets the cluster do what is due, and takes what has ended there.
    pub(super) fn tend_cluster(&self, signals: usize, stopped: &mut Option<Instant>, work: &mut Work<'_>) {
        let goes_on = self.may_start(work);
        let Some(cluster) = &mut work.cluster else { return };
        if cluster.is_cancelled() {
            self.stop.store(true, Ordering::Relaxed);
        }
        if !goes_on && !cluster.is_stopped() {
            match self.options.on_failure {
                OnFailure::StopAll => cluster.cancel(),
                _ => cluster.stop(),
            }
        }
        match (signals, work.interrupts) {
            (2.., 0 | 1) => {
                // They have the same time once more to end.
                *stopped = Some(Instant::now());
                cluster.cancel();
            }
            _ if stopped.is_some() && work.interrupts == 0 => cluster.stop(),
            _ => {}
        }
        work.interrupts = signals.max(usize::from(stopped.is_some()));
        for ending in cluster.tick() {
            let Some(task) = work.orders.remove(&ending.key) else { continue };
            if let Some(running) = work.running.get(&task) {
                running.peak.store(ending.peak, Ordering::Relaxed);
            }
            self.finish(task, ending.finished, work);
        }
    }

    /// Whether nothing is left to do here that the end of a job does not have to come before.
    pub(super) fn is_detachable(&self, due: bool, work: &Work<'_>) -> bool {
        let is_idle = work.running.values().all(|running| running.grant.is_none());
        !due && is_idle
            && work.asking == 0
            && work.cluster.as_ref().is_none_or(|cluster| cluster.is_submitted())
    }

    /// What an action reads is there: it may be ordered.
    pub(super) fn fetched(&self, task: TaskId, result: Result<(), AttemptError>, work: &mut Work<'_>) {
        if let Err(error) = result {
            let finished = Finished { result: Err(error), wall: Duration::ZERO, cpu: None, is_taken: false };
            return self.finish(task, finished, work);
        }
        if let Some(grant) = work.running.remove(&task).and_then(|running| running.grant) {
            work.admission.give_back(grant);
        }
        let id = task.node;
        match work.parts.get_mut(&id) {
            Some(parts) => {
                parts.has_fetched(task.shard.as_ref());
                work.state[id.0] = State::Parts;
            }
            None => work.state[id.0] = State::Ready,
        }
    }

    /// What an action on a part takes: what those took of which there are results, or those of the last time.
    pub(super) fn seconds_of_part(&self, id: NodeId, records: &[Option<Record>]) -> Option<f64> {
        let known: Vec<f64> = records.iter().flatten().map(|record| record.meta.duration_seconds).collect();
        if !known.is_empty() {
            return Some(known.iter().sum::<f64>() / known.len() as f64);
        }
        if self.pipeline.executor.place == Place::Local {
            return None;
        }
        let last = self.history.last_record(&self.pipeline.nodes[id.0].name, None)?;
        let parts = last.shards.len();
        (parts > 0).then(|| last.meta.duration_seconds / parts as f64)
    }
}
