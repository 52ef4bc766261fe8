//! `pipe diff RUN RUN`: what differs between two runs: nodes, parameters, inputs, and results.

use std::collections::BTreeSet;

use pipe_cache::{Digest, Record, Store};
use serde_json::{Value as Json, json};

use super::arguments::{Arguments, DiffArguments};
use super::log::run_and_plan;
use super::study::open_store;
use super::{CliError, print, print_json};
use crate::difference::{Difference, differences};
use crate::exit;

/// How a node differs.
struct NodeDifference {
    node: String,
    /// `added`, `removed`, or `changed`.
    change: &'static str,
    /// Of the components of its key.
    parts: Vec<Difference>,
    /// Ports with another content, with both digests; none where one of the results is not there.
    outputs: Option<Vec<(String, Option<Digest>, Option<Digest>)>>,
}

pub(crate) fn diff(arguments: &Arguments, diff: &DiffArguments) -> Result<u8, CliError> {
    let store = open_store(arguments, Some(&diff.pipeline), false)?
        .ok_or_else(|| CliError::new(exit::USAGE, "error: there is no store, so there are no runs"))?;
    let (old_run, old) = run_and_plan(&store, &diff.old)?;
    let (new_run, new) = run_and_plan(&store, &diff.new)?;
    let names: BTreeSet<&String> = old.nodes.keys().chain(new.nodes.keys()).collect();
    let mut found = Vec::new();
    let mut equal = 0;
    for name in names {
        match (old.nodes.get(name), new.nodes.get(name)) {
            (Some(before), Some(after)) if before == after => equal += 1,
            (before, after) => found.push(compare(&store, name, before, after)?),
        }
    }
    if arguments.global.json {
        let nodes: Vec<Json> = found.iter().map(NodeDifference::json).collect();
        print_json(&json!({
            "version": 1, "old": old_run.id(), "new": new_run.id(), "equal": equal, "nodes": nodes,
        }))?;
    } else {
        let mut text: String = found.iter().map(NodeDifference::text).collect();
        text.push_str(&format!("{} nodes differ, {equal} are equal\n", found.len()));
        print(&text)?;
    }
    Ok(if diff.exit_code && !found.is_empty() { exit::WORK_TO_DO } else { exit::DONE })
}

fn compare(
    store: &Store,
    name: &str,
    before: Option<&Digest>,
    after: Option<&Digest>,
) -> Result<NodeDifference, CliError> {
    let record = |key: Option<&Digest>| key.map(|key| store.record(key)).transpose().map(Option::flatten);
    let (old, new) = (record(before)?, record(after)?);
    let change = match (before, after) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    };
    let both = old.as_ref().zip(new.as_ref());
    Ok(NodeDifference {
        node: name.to_owned(),
        change,
        parts: both.map(|(old, new)| differences(&old.components, &new.components)).unwrap_or_default(),
        outputs: both.map(|(old, new)| outputs(old, new)),
    })
}

fn outputs(old: &Record, new: &Record) -> Vec<(String, Option<Digest>, Option<Digest>)> {
    let content = |record: &Record, port: &str| record.outputs.get(port).map(|output| output.content);
    let ports: BTreeSet<&String> = old.outputs.keys().chain(new.outputs.keys()).collect();
    ports
        .into_iter()
        .map(|port| (port.clone(), content(old, port), content(new, port)))
        .filter(|(_, before, after)| before != after)
        .collect()
}

impl NodeDifference {
    fn text(&self) -> String {
        let mut text = format!("{:>8}  {}\n", self.change, self.node);
        for part in &self.parts {
            text.push_str(&format!("          {}\n", part.words()));
        }
        match &self.outputs {
            Some(outputs) if outputs.is_empty() && self.change == "changed" => {
                text.push_str("          the results are equal\n");
            }
            Some(outputs) => {
                for (port, ..) in outputs {
                    text.push_str(&format!("          output `{port}` differs\n"));
                }
            }
            None if self.change == "changed" => {
                text.push_str("          one of the results is not in the store\n");
            }
            None => {}
        }
        text
    }

    fn json(&self) -> Json {
        let outputs = self
            .outputs
            .iter()
            .flatten()
            .map(|(port, before, after)| json!({ "port": port, "old": before, "new": after }));
        json!({
            "node": self.node, "change": self.change,
            "parts": self.parts.iter().map(Difference::json).collect::<Vec<_>>(),
            "outputs": outputs.collect::<Vec<_>>(), "results_known": self.outputs.is_some(),
        })
    }
}
