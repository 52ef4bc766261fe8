//! The table of stages: what each result cost, where and when it was made. `pipe query` has it as `stages`; a run
//! leaves one of all that it planned in its own folder, as `stages.parquet`. Stored results say nothing of this, because
//! equal results have to be equal files.

use std::collections::BTreeSet;
use std::path::Path;

use pipe_cache::Record;

use crate::answers::{Answer, Cell, ResultTables};
use crate::error::StageError;
use crate::pipeline::{Node, NodeId, Pipeline};
use crate::plan::{Plan, Status};
use crate::run::Outcome;

/// The name of a run's table.
pub(crate) const FILE: &str = "stages.parquet";

/// Writes what a run did into its folder, whole or not at all: a row for each node that was planned, also for those
/// that failed, with `status` and, of what ran, the `reason`.
///
/// # Errors
/// If the file system refuses.
pub(crate) fn write(
    folder: &Path,
    (pipeline, plan): (&Pipeline, &Plan),
    outcome: &Outcome,
    tables: &ResultTables,
) -> Result<(), StageError> {
    let planned: Vec<NodeId> =
        plan.order.iter().copied().filter(|id| plan.status[id.0] != Status::NotWanted).collect();
    let nodes: Vec<_> =
        planned.iter().map(|id| (&pipeline.nodes[id.0], plan.records[id.0].as_ref())).collect();
    let mut table = rows(&nodes);
    table.columns.extend(["status".to_owned(), "reason".to_owned()]);
    let executed: BTreeSet<NodeId> = outcome.executed.iter().copied().collect();
    for (id, cells) in planned.iter().zip(&mut table.rows) {
        let status = match id {
            id if outcome.failed.contains_key(id) => "failed",
            id if outcome.blocked.contains_key(id) => "blocked",
            id if executed.contains(id) => "executed",
            id if plan.records[id.0].is_some() => "hit",
            _ => "not run",
        };
        let reason = match &plan.status[id.0] {
            Status::Run(reasons) | Status::Maybe(reasons) if status != "hit" => {
                reasons.first().map(|reason| Cell::Text(reason.words(pipeline)))
            }
            _ => None,
        };
        cells.extend([Cell::Text(status.to_owned()), reason.unwrap_or(Cell::Null)]);
    }
    let staged = folder.join(format!(".{FILE}"));
    (tables.write)(&table, &staged)?;
    let target = folder.join(FILE);
    std::fs::rename(&staged, &target)
        .map_err(|error| StageError::environment(format!("writing `{}`", target.display()), error))
}

/// Nodes with what their results cost, as far as they have one: a row each, their axes as columns.
pub(crate) fn rows(nodes: &[(&Node, Option<&Record>)]) -> Answer {
    let axes: BTreeSet<&str> =
        nodes.iter().flat_map(|(node, _)| &node.axes).map(|(axis, _)| axis.as_str()).collect();
    let axes: Vec<&str> = axes.into_iter().filter(|axis| !FACTS.contains(axis)).collect();
    // What kinds counted, under names of their own.
    let made = nodes.iter().filter_map(|(_, record)| *record);
    let counted: BTreeSet<&str> =
        made.flat_map(|record| record.meta.counts.keys()).map(String::as_str).collect();
    let taken = |name: &&str| FACTS.contains(name) || axes.contains(name);
    let counted: Vec<&str> = counted.into_iter().filter(|name| !taken(name)).collect();
    let row = |(node, record): &(&Node, Option<&Record>)| {
        let axis = |name: &&str| {
            let own = node.axes.iter().find(|(axis, _)| axis == name);
            own.map_or(Cell::Null, |(_, value)| Cell::Text(value.clone()))
        };
        let mut cells = vec![Cell::Text(node.stage.clone())];
        cells.extend(axes.iter().map(axis));
        cells.extend([Cell::Text(node.name.clone()), Cell::Text(node.description.name.to_owned())]);
        match record {
            Some(record) => cells.extend(costs(record, &counted)),
            None => cells.extend(vec![Cell::Null; FACTS.len() - 3 + counted.len()]),
        }
        cells
    };
    let names = FACTS[..1].iter().chain(&axes).chain(&FACTS[1..]).chain(&counted);
    Answer { columns: names.map(|name| (*name).to_owned()).collect(), rows: nodes.iter().map(row).collect() }
}

/// The cells of [`FACTS`] from the key on, and what was counted.
fn costs(record: &Record, counted: &[&str]) -> Vec<Cell> {
    let whole = |number: u64| Cell::Integer(i64::try_from(number).unwrap_or(i64::MAX));
    let meta = &record.meta;
    // Of tables alone.
    let rows = record.outputs.values().filter_map(|output| output.rows).reduce(u64::saturating_add);
    let bytes = record.outputs.values().flat_map(|output| &output.files).map(|file| file.bytes);
    let mut cells = vec![
        Cell::Text(record.key.to_hex()),
        Cell::Text(meta.created.clone()),
        Cell::Text(meta.run.clone()),
        Cell::Real(meta.duration_seconds),
        meta.cpu_seconds.map_or(Cell::Null, Cell::Real),
        meta.peak_memory_bytes.map_or(Cell::Null, whole),
        meta.device.clone().map_or(Cell::Null, Cell::Text),
        rows.map_or(Cell::Null, whole),
        whole(bytes.fold(0, u64::saturating_add)),
    ];
    cells.extend(
        counted.iter().map(|name| meta.counts.get(*name).map_or(Cell::Null, |number| whole(*number))),
    );
    cells
}

/// The columns of the table of stages, between the first and the others the axes.
const FACTS: [&str; 12] = [
    "stage",
    "node",
    "kind",
    "key",
    "created",
    "run",
    "seconds",
    "cpu_seconds",
    "peak_memory_bytes",
    "device",
    "rows",
    "bytes",
];
