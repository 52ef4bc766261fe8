//! What a plan will cost, by what results so far took: jobs, hours, bytes. Of what nothing was measured nothing is said.

use std::collections::BTreeMap;

use pipe_cache::{Digest, Record};
use serde_json::{Value as Json, json};

use crate::action;
use crate::history::History;
use crate::pipeline::{InputSource, Node, NodeId, Pipeline};
use crate::plan::{Plan, Status};
use crate::slurm::batching;
use crate::slurm::manifest::Ask;

/// How many results of a node or of a kind its rates are taken from, the newest.
const WEIGHED: usize = 5;

/// Which results a rate was measured on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Basis {
    /// Earlier ones of the node itself.
    Node,
    /// Those of other nodes of its kind.
    Kind,
}

impl Basis {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Kind => "kind",
        }
    }
}

/// What a node that runs, or may run, will cost.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Cost {
    pub(crate) id: NodeId,
    /// Where its rates come from; none if nothing is known of it.
    pub(crate) basis: Option<Basis>,
    /// Rows that it reads, and that it has to work on.
    pub(crate) rows: Option<f64>,
    /// Actions to execute: parts of a table, or one.
    pub(crate) actions: Option<usize>,
    /// Tasks of a cluster that execute them.
    pub(crate) jobs: Option<usize>,
    /// Of one action after another.
    pub(crate) seconds: Option<f64>,
    /// Seconds of GPUs: zero for what computes on none.
    pub(crate) gpu_seconds: Option<f64>,
    /// Seconds of cores, where they were measured.
    pub(crate) core_seconds: Option<f64>,
    /// Of its results.
    pub(crate) bytes: Option<f64>,
}

/// The costs of a plan, in its order.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Estimate {
    pub(crate) costs: Vec<Cost>,
}

/// Sums over what is known.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(crate) struct Totals {
    pub(crate) jobs: usize,
    pub(crate) seconds: f64,
    pub(crate) gpu_seconds: f64,
    pub(crate) core_seconds: f64,
    pub(crate) bytes: f64,
    /// Nodes of which the time is not known.
    pub(crate) unknown: usize,
}

/// What was measured, of a node or a kind: sums.
#[derive(Clone, Copy, Default, Debug)]
struct Measured {
    /// Rows read, over results whose rows are known; if any is not, nothing is said in rows.
    rows: Option<f64>,
    rows_out: f64,
    actions: f64,
    results: f64,
    seconds: f64,
    core_seconds: Option<f64>,
    bytes: f64,
}

/// Every result that runs of the store know, and the rows of every table among them.
struct Results {
    records: Vec<Record>,
    rows: BTreeMap<Digest, f64>,
}

impl Results {
    fn read(history: &History) -> Self {
        let records = history.known_records();
        let outputs = records.iter().flat_map(|record| record.outputs.values());
        let rows = outputs.filter_map(|output| Some((output.content, output.rows? as f64))).collect();
        Self { records, rows }
    }

    /// Rows of the largest table that a result was made of.
    fn rows_read(&self, record: &Record) -> Option<f64> {
        let inputs = record.components()?.inputs.iter();
        let rows = inputs.map(|input| {
            let known = input.artifacts.iter().filter_map(|artifact| self.rows.get(&artifact.digest));
            known.sum::<f64>()
        });
        rows.reduce(f64::max).filter(|rows| *rows > 0.0)
    }

    /// Sums over these results.
    fn measure<'r>(&self, records: impl Iterator<Item = &'r Record>) -> Option<Measured> {
        let mut sums = Measured { rows: Some(0.0), core_seconds: Some(0.0), ..Measured::default() };
        for record in records.take(WEIGHED) {
            let add = |sum: Option<f64>, more: Option<f64>| Some(sum? + more?);
            sums.rows = add(sums.rows, self.rows_read(record));
            sums.core_seconds = add(sums.core_seconds, record.meta.cpu_seconds);
            sums.rows_out += rows_of(record);
            sums.actions += record.shards.len().max(1) as f64;
            sums.results += 1.0;
            sums.seconds += record.meta.duration_seconds;
            sums.bytes += record.outputs.values().map(|output| output.bytes() as f64).sum::<f64>();
        }
        (sums.results > 0.0).then_some(sums)
    }

    /// What is known of a node: by its own results on its device, else by those of its kind.
    fn of(&self, node: &Node, history: &History, numerics: &str) -> Option<(Measured, Basis)> {
        let device = action::device(node.params.numerics.as_deref().unwrap_or(numerics));
        let is_alike = |record: &&Record| {
            let is_of = |key: &pipe_cache::ActionKey| {
                key.kind == node.description.name
                    && (key.numerics == action::EXACT || action::device(&key.numerics) == device)
            };
            record.components().is_some_and(is_of)
        };
        let own = history.records(&node.name, None);
        let own = self.measure(own.iter().filter(is_alike)).map(|measured| (measured, Basis::Node));
        own.or_else(|| {
            let measured = self.measure(self.records.iter().filter(is_alike))?;
            Some((measured, Basis::Kind))
        })
    }
}

fn rows_of(record: &Record) -> f64 {
    let rows = record.outputs.values().filter_map(|output| output.rows);
    rows.max().unwrap_or(0) as f64
}

impl Estimate {
    /// The costs of what runs or may run. `given` says how many rows nodes will give that have no result yet. Time and
    /// bytes go in proportion to the rows of the largest table that a node reads, where they are known.
    pub(crate) fn make(
        pipeline: &Pipeline,
        plan: &Plan,
        history: &History,
        numerics: &str,
        given: &BTreeMap<NodeId, u64>,
    ) -> Self {
        let results = Results::read(history);
        // Rows of the largest table that each node has given or will give.
        let mut rows: Vec<Option<f64>> = vec![None; pipeline.nodes.len()];
        let mut costs = Vec::new();
        for id in &plan.order {
            let node = &pipeline.nodes[id.0];
            let own = given.get(id).map(|rows| *rows as f64);
            if !matches!(plan.status[id.0], Status::Run(_) | Status::Maybe(_)) {
                rows[id.0] = plan.records[id.0].as_ref().map(rows_of).or(own);
                continue;
            }
            let found = results.of(node, history, numerics);
            let read = rows_read(node, plan, &rows);
            let measured = found.map(|(measured, _)| measured);
            let one = |measured: &Measured, sum: f64| sum / measured.results;
            // The size of this result in sizes of those that were measured.
            let scale = measured.and_then(|measured| match (read, measured.rows, own) {
                (Some(read), Some(before), _) => Some(read / one(&measured, before)),
                (None, None, Some(own)) if measured.rows_out > 0.0 => {
                    Some(own / one(&measured, measured.rows_out))
                }
                // In size as before; another node of its kind says nothing of this one then.
                _ => found.filter(|(_, basis)| *basis == Basis::Node).map(|_| 1.0),
            });
            let sized = measured.zip(scale);
            rows[id.0] =
                own.or_else(|| sized.map(|(measured, scale)| scale * one(&measured, measured.rows_out)));
            let shards = plan.shards[id.0];
            let share = shards.map_or(1.0, |shards| shards.run as f64 / shards.total.max(1) as f64);
            let cost = |sum: fn(&Measured) -> Option<f64>| {
                sized.and_then(|(measured, scale)| Some(one(&measured, sum(&measured)?) * scale * share))
            };
            let seconds = cost(|measured| Some(measured.seconds));
            let is_cut = measured.is_some_and(|measured| measured.actions > measured.results);
            let actions = match (shards, is_cut) {
                (Some(shards), _) => Some(shards.run),
                (None, true) => {
                    cost(|measured| Some(measured.actions)).map(|actions| actions.ceil() as usize)
                }
                (None, false) => sized.map(|_| 1),
            };
            let jobs = actions.map(|actions| {
                let target = node.resources.jobs.task_target as f64;
                let each = seconds.map(|seconds| seconds / actions.max(1) as f64);
                batching::tasks(&vec![each; actions], target, usize::MAX).len()
            });
            let gpus = Ask::of(node).gpu as f64;
            costs.push(Cost {
                id: *id,
                basis: sized.and(found).map(|(_, basis)| basis),
                rows: read.map(|rows| rows * share),
                actions,
                jobs,
                seconds,
                gpu_seconds: seconds.map(|seconds| seconds * gpus),
                core_seconds: cost(|measured| measured.core_seconds),
                bytes: cost(|measured| Some(measured.bytes)),
            });
        }
        Self { costs }
    }

    /// Sums over what is known.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for cost in &self.costs {
            totals.jobs += cost.jobs.unwrap_or(0);
            totals.seconds += cost.seconds.unwrap_or(0.0);
            totals.gpu_seconds += cost.gpu_seconds.unwrap_or(0.0);
            totals.core_seconds += cost.core_seconds.unwrap_or(0.0);
            totals.bytes += cost.bytes.unwrap_or(0.0);
            totals.unknown += usize::from(cost.seconds.is_none());
        }
        totals
    }

    /// For `--json`; null is what is not known.
    pub(crate) fn json(&self, pipeline: &Pipeline) -> Json {
        let cost = |cost: &Cost| {
            json!({
                "node": pipeline.nodes[cost.id.0].name, "measured_on": cost.basis.map(Basis::word), "rows": cost.rows.map(f64::round),
                "actions": cost.actions, "jobs": cost.jobs, "seconds": cost.seconds, "gpu_seconds": cost.gpu_seconds,
                "core_seconds": cost.core_seconds, "bytes": cost.bytes.map(f64::round),
            })
        };
        let totals = self.totals();
        json!({
            "jobs": totals.jobs, "seconds": totals.seconds, "gpu_seconds": totals.gpu_seconds,
            "core_seconds": totals.core_seconds, "bytes": totals.bytes.round(), "unknown": totals.unknown,
            "nodes": self.costs.iter().map(cost).collect::<Vec<_>>(),
        })
    }
}

/// Rows of the largest table that a node reads; none if it reads none, or one whose size is not known.
fn rows_read(node: &Node, plan: &Plan, rows: &[Option<f64>]) -> Option<f64> {
    let mut largest = None::<f64>;
    for input in &node.inputs {
        let mut sum = 0.0;
        for source in &input.sources {
            let InputSource::Node { node, port } = source else { continue };
            sum += match &plan.records[node.0] {
                Some(record) => record.outputs.get(port).and_then(|output| output.rows).unwrap_or(0) as f64,
                None => rows[node.0]?,
            };
        }
        largest = Some(largest.map_or(sum, |largest| largest.max(sum)));
    }
    largest.filter(|rows| *rows > 0.0)
}
