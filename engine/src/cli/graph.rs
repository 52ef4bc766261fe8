//! `pipe graph`: the study as text, Graphviz or Mermaid.

use std::collections::BTreeSet;

use serde_json::json;

use super::arguments::{Arguments, GraphArguments, GraphFormat};
use super::study::Study;
use super::{CliError, print};
use crate::action::{producers, topological};
use crate::kind::Registry;

pub(crate) fn graph(
    arguments: &Arguments,
    graph: &GraphArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &graph.pipeline, registry)?;
    let pipeline = &study.pipeline;
    let label = |index: usize| {
        let node = &pipeline.nodes[index];
        if graph.nodes { node.name.clone() } else { node.stage.clone() }
    };
    let mut names: Vec<String> = Vec::new();
    let mut edges: BTreeSet<(usize, usize)> = BTreeSet::new();
    for id in topological(pipeline) {
        let name = label(id.0);
        let place =
            |names: &mut Vec<String>, name: String| match names.iter().position(|known| *known == name) {
                Some(place) => place,
                None => {
                    names.push(name);
                    names.len() - 1
                }
            };
        let consumer = place(&mut names, name);
        for producer in producers(&pipeline.nodes[id.0]) {
            let producer = place(&mut names, label(producer.0));
            edges.insert((producer, consumer));
        }
    }
    if arguments.global.json {
        let edges: Vec<_> =
            edges.iter().map(|(from, to)| json!({ "from": names[*from], "to": names[*to] })).collect();
        return print(&format!("{:#}\n", json!({ "version": 1, "nodes": names, "edges": edges })));
    }
    let mut text = String::new();
    match graph.format {
        GraphFormat::Text => {
            for (index, name) in names.iter().enumerate() {
                let from: Vec<&str> = edges
                    .iter()
                    .filter(|(_, to)| *to == index)
                    .map(|(from, _)| names[*from].as_str())
                    .collect();
                let arrow = if from.is_empty() { String::new() } else { format!("  <- {}", from.join(", ")) };
                text.push_str(&format!("{name}{arrow}\n"));
            }
        }
        GraphFormat::Dot => {
            text.push_str("digraph study {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n");
            for (index, name) in names.iter().enumerate() {
                text.push_str(&format!("  n{index} [label=\"{}\"];\n", name.replace('"', "\\\"")));
            }
            for (from, to) in &edges {
                text.push_str(&format!("  n{from} -> n{to};\n"));
            }
            text.push_str("}\n");
        }
        GraphFormat::Mermaid => {
            text.push_str("graph LR\n");
            for (index, name) in names.iter().enumerate() {
                text.push_str(&format!("  n{index}[\"{}\"]\n", name.replace('"', "#quot;")));
            }
            for (from, to) in &edges {
                text.push_str(&format!("  n{from} --> n{to}\n"));
            }
        }
    }
    print(&text)
}
