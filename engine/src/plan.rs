//! What would run, and why: the one planner behind `plan`, `why`, `status` and `run`.

use std::collections::{BTreeMap, BTreeSet};

use pipe_cache::{ActionKey, Digest, Record, Store, StoreError, Verify};

use crate::action::{self, EXACT, SourceDigests};
use crate::ancestry::{self, Ancestor};
use crate::history::History;
use crate::pipeline::{Node, NodeId, Pipeline};
use crate::read_ahead::ReadAhead;
use crate::shards::{CutError, Shards};
use crate::why::{self, DirtyReason};

/// Where a node stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Status {
    /// Its result is in the store.
    Hit,
    /// It has to run.
    Run(Vec<DirtyReason>),
    /// It depends on results that do not exist yet.
    Maybe(Vec<DirtyReason>),
    /// It was not asked for.
    NotWanted,
}

/// The plan of a pipeline.
pub(crate) struct Plan {
    pub(crate) order: Vec<NodeId>,
    pub(crate) status: Vec<Status>,
    pub(crate) keys: Vec<Option<(Digest, ActionKey)>>,
    pub(crate) records: Vec<Option<Record>>,
    /// How nodes came about whose kinds show it, as it stands in their keys.
    pub(crate) ancestries: BTreeMap<NodeId, Vec<Ancestor>>,
    /// Of row-wise nodes that run: how many parts they have.
    pub(crate) shards: Vec<Option<ShardCount>>,
    /// The nodes that were asked for by name: of what else is wanted somebody has to read the files. `None`: all.
    pub(crate) asked: Option<BTreeSet<NodeId>>,
    /// Nodes that run whatever is in the store.
    pub(crate) forced: BTreeSet<NodeId>,
    /// Nodes whose results are known and whose files were evicted: a hit until somebody reads them.
    pub(crate) evicted: BTreeSet<NodeId>,
    /// The numerics classes whose results are taken where there is none of this machine's.
    pub(crate) accepted: Vec<String>,
    /// Nodes whose results are of such a class.
    pub(crate) foreign: BTreeSet<NodeId>,
    /// How many keys were computed.
    pub(crate) computed: usize,
}

/// The parts of a row-wise node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ShardCount {
    /// Different parts.
    pub(crate) total: usize,
    /// Those without a result.
    pub(crate) run: usize,
}

/// What is wanted of a plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// The nodes asked for and their ancestors; `None`: all.
    pub(crate) nodes: Option<BTreeSet<NodeId>>,
    /// The nodes that were asked for by name, without their ancestors; `None`: all.
    pub(crate) asked: Option<BTreeSet<NodeId>>,
    /// Nodes that run whatever is in the store.
    pub(crate) forced: BTreeSet<NodeId>,
    /// Whether there is a remote cache that files may come from.
    pub(crate) has_remote: bool,
    /// Whether results of other numerics classes will do.
    pub(crate) accept_numerics: bool,
}

impl Wanted {
    pub(crate) fn contains(&self, id: NodeId) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.contains(&id))
    }

    /// The nodes asked for and everything that their keys depend on; `None`: all.
    pub(crate) fn with_what_they_need(&self, pipeline: &Pipeline) -> Option<BTreeSet<NodeId>> {
        self.nodes.as_ref().map(|nodes| Self::with_ancestors(pipeline, nodes.clone()))
    }

    /// The targets with everything they depend on.
    pub(crate) fn with_ancestors(pipeline: &Pipeline, targets: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let mut waiting: Vec<NodeId> = targets.iter().copied().collect();
        let mut nodes = targets;
        while let Some(id) = waiting.pop() {
            for producer in action::producers(&pipeline.nodes[id.0]) {
                if nodes.insert(producer) {
                    waiting.push(producer);
                }
            }
        }
        nodes
    }

    /// The targets with everything that depends on them.
    pub(crate) fn with_descendants(pipeline: &Pipeline, targets: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let consumers = action::consumers(pipeline);
        let mut waiting: Vec<NodeId> = targets.iter().copied().collect();
        let mut nodes = targets;
        while let Some(id) = waiting.pop() {
            for consumer in &consumers[id.0] {
                if nodes.insert(*consumer) {
                    waiting.push(*consumer);
                }
            }
        }
        nodes
    }
}

impl Plan {
    /// The key of a node, once everything that it is made of is known.
    pub(crate) fn key(
        &mut self,
        pipeline: &Pipeline,
        id: NodeId,
        sources: &SourceDigests,
        numerics: &str,
    ) -> Option<ActionKey> {
        let node = &pipeline.nodes[id.0];
        let ancestry = ancestry::ancestry(pipeline, node, &self.records)?;
        let key = action::key(pipeline, node, &self.records, sources, numerics, &ancestry)?;
        if !ancestry.is_empty() {
            self.ancestries.insert(id, ancestry);
        }
        Some(key)
    }

    /// Looks every wanted node up, in topological order, first among what was read `ahead`. Without a store
    /// everything runs.
    pub(crate) fn make(
        pipeline: &Pipeline,
        store: Option<&Store>,
        sources: &SourceDigests,
        numerics: &str,
        wanted: &Wanted,
        history: &History,
        mut ahead: ReadAhead,
    ) -> Result<Self, StoreError> {
        let count = pipeline.nodes.len();
        let mut plan = Self {
            order: action::topological(pipeline),
            status: vec![Status::NotWanted; count],
            keys: vec![None; count],
            records: vec![None; count],
            ancestries: BTreeMap::new(),
            shards: vec![None; count],
            asked: wanted.asked.clone(),
            forced: wanted.forced.iter().copied().filter(|id| wanted.contains(*id)).collect(),
            evicted: BTreeSet::new(),
            accepted: if wanted.accept_numerics { history.numerics_classes() } else { Vec::new() },
            foreign: BTreeSet::new(),
            computed: 0,
        };
        let needed = wanted.with_what_they_need(pipeline);
        let needs = |id: NodeId| needed.as_ref().is_none_or(|needed| needed.contains(&id));
        for position in 0..plan.order.len() {
            let id = plan.order[position];
            if !needs(id) {
                continue;
            }
            let node = &pipeline.nodes[id.0];
            let key = plan.key(pipeline, id, sources, numerics);
            plan.computed += usize::from(key.is_some());
            if !wanted.contains(id) {
                // Left out with `--only`: what it gave earlier is still read.
                if let (Some(key), Some(store)) = (key, store) {
                    let digest = key.digest();
                    plan.records[id.0] = store.lookup(&digest)?;
                    plan.keys[id.0] = Some((digest, key));
                }
                continue;
            }
            let forced = wanted.forced.contains(&id);
            plan.status[id.0] = match key {
                Some(key) => {
                    let (mut digest, mut key) = (key.digest(), key);
                    let record = match store {
                        Some(store) if !forced => match ahead.take(&digest) {
                            Some(record) => Some(record),
                            None => plan.look_up(id, (&mut digest, &mut key), store)?,
                        },
                        _ => None,
                    };
                    let status = if record.is_some() {
                        Status::Hit
                    } else {
                        Status::Run(why::reasons(
                            pipeline,
                            node,
                            Some((&digest, &key)),
                            &plan,
                            store,
                            history,
                            forced,
                        ))
                    };
                    if record.is_none() {
                        plan.shards[id.0] = shard_count(node, &key, &plan, store, forced)?;
                    }
                    plan.records[id.0] = record;
                    plan.keys[id.0] = Some((digest, key));
                    status
                }
                None => {
                    let mut reasons = why::reasons(pipeline, node, None, &plan, store, history, forced);
                    let unknown = sources.unknown(node).map(str::to_owned);
                    reasons.extend(unknown.map(|source| DirtyReason::Fetch { source }));
                    Status::Maybe(reasons)
                }
            };
        }
        plan.make_evicted_again(pipeline, wanted.has_remote);
        Ok(plan)
    }

    /// The result of a node, whether or not its files are still there. One of another numerics class is there with its
    /// files, and the key becomes that of its class.
    pub(crate) fn look_up(
        &mut self,
        id: NodeId,
        (digest, key): (&mut Digest, &mut ActionKey),
        store: &Store,
    ) -> Result<Option<Record>, StoreError> {
        let stored = store.lookup(digest)?;
        if stored.is_some() {
            return Ok(stored);
        }
        let evicted = store.evicted(digest)?;
        if evicted.is_some() {
            self.evicted.insert(id);
            return Ok(evicted);
        }
        for class in self.accepted.iter().filter(|_| key.numerics != EXACT) {
            let other = ActionKey { numerics: class.clone(), ..key.clone() };
            let found = store.lookup(&other.digest())?;
            if found.is_some() {
                self.foreign.insert(id);
                (*digest, *key) = (other.digest(), other);
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The numerics class of a result that is not of this machine's.
    pub(crate) fn foreign_class(&self, id: NodeId) -> Option<&str> {
        let (_, key) = self.keys[id.0].as_ref().filter(|_| self.foreign.contains(&id))?;
        Some(&key.numerics)
    }

    /// What was evicted and is read by a node that runs has to run too, and so on towards the sources. What only
    /// may run reads it when it does; and so does what runs because it was evicted itself, where its files may come from a
    /// remote cache.
    fn make_evicted_again(&mut self, pipeline: &Pipeline, has_remote: bool) {
        if self.evicted.is_empty() {
            return;
        }
        let consumers = action::consumers(pipeline);
        for id in self.order.iter().rev().filter(|id| self.evicted.contains(id)) {
            let runs = |consumer: &&NodeId| {
                let comes = has_remote && self.evicted.contains(consumer);
                matches!(self.status[consumer.0], Status::Run(_)) && !comes
            };
            if let Some(reader) = consumers[id.0].iter().find(runs) {
                let reader = pipeline.nodes[reader.0].name.clone();
                self.status[id.0] = Status::Run(vec![DirtyReason::Evicted { reader }]);
                self.records[id.0] = None;
            }
        }
    }

    /// Whether a node was asked for by name, or all were.
    pub(crate) fn is_asked(&self, id: NodeId) -> bool {
        self.asked.as_ref().is_none_or(|asked| asked.contains(&id))
    }

    /// (hit, run, maybe).
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let count = |wanted: fn(&Status) -> bool| self.status.iter().filter(|status| wanted(status)).count();
        (
            count(|status| *status == Status::Hit),
            count(|status| matches!(status, Status::Run(_))),
            count(|status| matches!(status, Status::Maybe(_))),
        )
    }

    /// The first wanted node, with a node that it reads, that was not asked for and has no result.
    pub(crate) fn without_input(&self, pipeline: &Pipeline) -> Option<(NodeId, NodeId)> {
        let wanted = self.order.iter().filter(|id| matches!(self.status[id.0], Status::Maybe(_)));
        wanted.flat_map(|id| action::producers(&pipeline.nodes[id.0]).map(|producer| (*id, producer))).find(
            |(_, producer)| {
                self.status[producer.0] == Status::NotWanted && self.records[producer.0].is_none()
            },
        )
    }

    /// Whether every wanted node is a hit.
    pub(crate) fn is_up_to_date(&self) -> bool {
        let (_, run, maybe) = self.counts();
        run + maybe == 0
    }

    /// Seconds that a node will take, as it took before; none for a hit and for what never ran.
    pub(crate) fn seconds(&self, id: NodeId, pipeline: &Pipeline, history: &History) -> Option<f64> {
        let runs = matches!(self.status[id.0], Status::Run(_) | Status::Maybe(_));
        let seconds = runs.then(|| history.seconds(&pipeline.nodes[id.0].name))??;
        let share = self.shards[id.0].map_or(1.0, |shards| shards.run as f64 / shards.total.max(1) as f64);
        Some(seconds * share)
    }

    /// Seconds that all nodes that run or may run took before, if any is known.
    pub(crate) fn estimate(&self, pipeline: &Pipeline, history: &History) -> Option<f64> {
        let known = self.order.iter().filter_map(|id| self.seconds(*id, pipeline, history));
        known.reduce(|sum, seconds| sum + seconds)
    }

    /// The plan for `--json`, one object per wanted node in topological order.
    pub(crate) fn json(&self, pipeline: &Pipeline, history: &History) -> serde_json::Value {
        let nodes: Vec<serde_json::Value> = self
            .order
            .iter()
            .filter(|id| self.status[id.0] != Status::NotWanted)
            .map(|id| {
                let node = &pipeline.nodes[id.0];
                let (word, reasons) = self.words(*id);
                serde_json::json!({
                    "node": node.name,
                    "kind": node.description.name,
                    "status": word,
                    "key": self.keys[id.0].as_ref().map(|(digest, _)| digest.to_hex()),
                    "seconds": self.seconds(*id, pipeline, history),
                    "other_class": self.foreign_class(*id),
                    "shards": self.shards[id.0].map(|shards| serde_json::json!({ "total": shards.total, "run": shards.run })),
                    "reasons": reasons.iter().map(|reason| reason.json(pipeline)).collect::<Vec<_>>(),
                })
            })
            .collect();
        let (hit, run, maybe) = self.counts();
        serde_json::json!({
            "version": 1, "pipeline": pipeline.name, "hit": hit, "run": run, "maybe": maybe,
            "seconds": self.estimate(pipeline, history), "nodes": nodes,
        })
    }

    /// The results that a run makes up to date and shows: those of what was asked for.
    pub(crate) fn wanted_records(&self) -> impl Iterator<Item = Option<&Record>> {
        let wanted = self.status.iter().map(|status| *status != Status::NotWanted);
        self.records.iter().zip(wanted).map(|(record, wanted)| record.as_ref().filter(|_| wanted))
    }

    /// The parts of a row-wise node, if they are known: of one with a result none has to run.
    pub(crate) fn shard_count(&self, id: NodeId) -> Option<ShardCount> {
        let stored = self.records[id.0].as_ref().map(|record| record.shards.len()).filter(|total| *total > 0);
        self.shards[id.0].or_else(|| stored.map(|total| ShardCount { total, run: 0 }))
    }

    /// The status as a word, with its reasons.
    pub(crate) fn words(&self, id: NodeId) -> (&'static str, &[DirtyReason]) {
        match &self.status[id.0] {
            Status::Hit => ("hit", &[]),
            Status::Run(reasons) => ("run", reasons),
            Status::Maybe(reasons) => ("maybe", reasons),
            Status::NotWanted => ("not wanted", &[]),
        }
    }

    /// Node name to key, of all nodes whose key is known: what a run remembers.
    pub(crate) fn known_keys(&self, pipeline: &Pipeline) -> BTreeMap<String, Digest> {
        self.keys
            .iter()
            .enumerate()
            .filter_map(|(index, key)| Some((pipeline.nodes[index].name.clone(), key.as_ref()?.0)))
            .collect()
    }
}

/// How many parts a node has, if it is row-wise and what it reads can be read.
fn shard_count(
    node: &Node,
    key: &ActionKey,
    plan: &Plan,
    store: Option<&Store>,
    forced: bool,
) -> Result<Option<ShardCount>, StoreError> {
    let Some(store) = store else { return Ok(None) };
    match Shards::cut(node, key, &plan.records, store, Verify::Once) {
        Ok(None) => Ok(None),
        Ok(Some(shards)) => {
            let run = shards.missing((!forced).then_some(store));
            Ok(Some(ShardCount { total: shards.distinct.len(), run }))
        }
        Err(CutError::Store(error)) => Err(error),
        // Executing tells what is wrong.
        Err(CutError::Stage(_) | CutError::Damaged(_)) => Ok(None),
    }
}

impl ShardCount {
    /// `3 of 40 parts`.
    pub(crate) fn words(self) -> String {
        format!("{} of {} parts", self.run, self.total)
    }
}
