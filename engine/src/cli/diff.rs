//! `pipe diff RUN RUN`: what differs between two runs: nodes, parameters, inputs, results, and the figures in
//! these.

use std::collections::BTreeSet;

use pipe_cache::{Digest, Record, Store};
use serde_json::{Value as Json, json};

use super::arguments::{Arguments, DiffArguments};
use super::figures::figures_of;
use super::log::run_and_plan;
use super::study::open_store;
use super::{CliError, print, print_json};
use crate::difference::{Difference, differences};
use crate::exit;
use crate::kind::{Figures, Registry};

/// How a node differs.
struct NodeDifference {
    node: String,
    /// Its key before and after.
    keys: (Option<Digest>, Option<Digest>),
    /// `added`, `removed`, or `changed`.
    change: &'static str,
    /// Of the components of its key.
    parts: Vec<Difference>,
    /// Ports with another content, with both digests; none where one of the results is not there.
    outputs: Option<Vec<(String, Option<Digest>, Option<Digest>)>>,
    /// Figures with another value.
    figures: Vec<FigureDifference>,
}

/// How a figure differs.
struct FigureDifference {
    port: String,
    name: String,
    old: Option<f64>,
    new: Option<f64>,
}

/// So many figures of a node are told to a person.
const SHOWN_FIGURES: usize = 20;

pub(crate) fn diff(arguments: &Arguments, diff: &DiffArguments, registry: &Registry) -> Result<u8, CliError> {
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
            (before, after) => found.push(compare(&store, registry, name, (before, after))?),
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
    registry: &Registry,
    name: &str,
    (before, after): (Option<&Digest>, Option<&Digest>),
) -> Result<NodeDifference, CliError> {
    let record = |key: Option<&Digest>| key.map(|key| store.record(key)).transpose().map(Option::flatten);
    let (old, new) = (record(before)?, record(after)?);
    let change = match (before, after) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    };
    let both = old.as_ref().zip(new.as_ref());
    let outputs = both.map(|(old, new)| outputs(old, new));
    let mut figures = Vec::new();
    if let Some((old, new)) = both {
        for (port, ..) in outputs.iter().flatten() {
            let read = |record: &Record| match record.outputs.get(port) {
                Some(output) => figures_of(store, registry, output),
                None => Ok(None),
            };
            if let (Some(before), Some(after)) = (read(old)?, read(new)?) {
                figures.extend(compare_figures(port, &before, &after));
            }
        }
    }
    Ok(NodeDifference {
        node: name.to_owned(),
        keys: (before.copied(), after.copied()),
        change,
        parts: both
            .and_then(|(old, new)| Some(differences(old.components()?, new.components()?)))
            .unwrap_or_default(),
        outputs,
        figures,
    })
}

fn compare_figures(port: &str, old: &Figures, new: &Figures) -> Vec<FigureDifference> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let pairs = names.into_iter().map(|name| FigureDifference {
        port: port.to_owned(),
        name: name.clone(),
        old: old.get(name).copied(),
        new: new.get(name).copied(),
    });
    pairs.filter(|one| one.old != one.new).collect()
}

impl FigureDifference {
    fn words(&self) -> String {
        let value =
            |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.4}"));
        let (old, new) = (value(self.old), value(self.new));
        let change = self.old.zip(self.new).map(|(old, new)| format!(" ({:+.2e})", new - old));
        format!("{}: {old} -> {new}{}", self.name, change.unwrap_or_default())
    }

    fn json(&self) -> Json {
        json!({ "output": self.port, "figure": self.name, "old": self.old, "new": self.new })
    }
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
                    let figures = || self.figures.iter().filter(|figure| figure.port == *port);
                    for figure in figures().take(SHOWN_FIGURES) {
                        text.push_str(&format!("            {}\n", figure.words()));
                    }
                    let more = figures().count().saturating_sub(SHOWN_FIGURES);
                    if more > 0 {
                        text.push_str(&format!("            and {more} more, which `--json` lists\n"));
                    }
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
            "node": self.node, "change": self.change, "old_key": self.keys.0, "new_key": self.keys.1,
            "parts": self.parts.iter().map(Difference::json).collect::<Vec<_>>(),
            "outputs": outputs.collect::<Vec<_>>(), "results_known": self.outputs.is_some(),
            "figures": self.figures.iter().map(FigureDifference::json).collect::<Vec<_>>(),
        })
    }
}
