//! What can only be seen when all nodes exist: cycles, colliding results, unused names.

use std::collections::BTreeMap;

use super::diagnostic::Diagnostic;
use super::expand::Expanded;
use super::files::Document;
use super::order;
use crate::kind::Determinism;
use crate::pipeline::{InputSource, Node, Origin};

pub(crate) fn check(document: &Document, expanded: &Expanded, diagnostics: &mut Vec<Diagnostic>) {
    if document.stages.iter().next().is_none() && diagnostics.is_empty() {
        let origin = Origin::File { file: 0, span: 0..0, profile: None };
        diagnostics.push(Diagnostic::new("E010", &origin, "the file has no `[stage.NAME]`"));
    }
    diagnostics.extend(cycle(&expanded.nodes));
    ports_of_a_stage(expanded, diagnostics);
    folders(&expanded.nodes, diagnostics);
    nondeterministic_inputs(&expanded.nodes, diagnostics);
    for entry in document.vars.iter() {
        if !expanded.used_vars.contains(&entry.key) {
            let message = format!("variable `{}` is never used", entry.key);
            diagnostics.push(Diagnostic::new("W101", &entry.key_origin, message));
        }
    }
}

/// A cycle among the nodes, with the input that makes each of its edges.
fn cycle(nodes: &[Node]) -> Option<Diagnostic> {
    let needs: Vec<Vec<usize>> =
        nodes.iter().map(|node| producers(node).map(|(id, _)| id).collect()).collect();
    let mut cycle = order::order(&needs).cycle;
    // From producer to consumer, as data flows, beginning with the first in the file.
    cycle.reverse();
    let first = cycle.iter().enumerate().min_by_key(|(_, index)| **index).map_or(0, |(place, _)| place);
    cycle.rotate_left(first);
    let names: Vec<&str> =
        cycle.iter().chain(cycle.first()).map(|index| nodes[*index].name.as_str()).collect();
    let mut edges = cycle.iter().enumerate().filter_map(|(position, producer)| {
        let consumer = &nodes[cycle[(position + 1) % cycle.len()]];
        let (_, origin) = producers(consumer).find(|(id, _)| id == producer)?;
        Some((origin, format!("`{}` reads `{}`", consumer.name, nodes[*producer].name)))
    });
    let (origin, _) = edges.next()?;
    let message = format!("stages need each other: {}", names.join(" -> "));
    let first = Diagnostic::new("E006", origin, message);
    Some(edges.fold(first, |diagnostic, (origin, text)| diagnostic.also(origin, text)))
}

/// The producers of a node, and where it names them.
fn producers(node: &Node) -> impl Iterator<Item = (usize, &Origin)> {
    node.inputs.iter().flat_map(|input| {
        input.sources.iter().filter_map(|source| match source {
            InputSource::Node { node, .. } => Some((node.0, &input.origin)),
            _ => None,
        })
    })
}

/// All nodes of a stage offer the same ports of the same types.
fn ports_of_a_stage(expanded: &Expanded, diagnostics: &mut Vec<Diagnostic>) {
    let ports = |node: &Node| -> Vec<String> {
        node.outputs.iter().map(|port| format!("{}: {}", port.name, port.artifact.0)).collect()
    };
    for stage in &expanded.stages {
        let mut nodes = stage.nodes.iter().map(|id| &expanded.nodes[id.0]);
        let Some(first) = nodes.next() else { continue };
        let expected = ports(first);
        if let Some(other) = nodes.find(|node| ports(node) != expected) {
            let message =
                format!("nodes of one stage have different outputs: `{}` and `{}`", first.name, other.name);
            diagnostics.push(
                Diagnostic::new("E009", &stage.origin, message)
                    .help(format!("`{}` has {}", first.name, expected.join(", ")))
                    .help(format!("`{}` has {}", other.name, ports(other).join(", "))),
            );
        }
    }
}

/// A cached result of something that differs from run to run is one of many.
fn nondeterministic_inputs(nodes: &[Node], diagnostics: &mut Vec<Diagnostic>) {
    for node in nodes {
        for (producer, origin) in producers(node) {
            let producer = &nodes[producer];
            if producer.kind.determinism() == Determinism::None {
                let kind = producer.description.name;
                let message = format!(
                    "`{}` reads `{}`, whose kind `{kind}` is not deterministic",
                    node.stage, producer.stage
                );
                let help = "its first result is kept; when it is made again, what reads it runs again too"
                    .to_owned();
                let first = "it differs from run to run".to_owned();
                diagnostics
                    .push(Diagnostic::new("W104", origin, message).help(help).also(&producer.origin, first));
            }
        }
    }
}

/// Two nodes may not publish to one folder; some disks do not tell `A` from `a`.
fn folders(nodes: &[Node], diagnostics: &mut Vec<Diagnostic>) {
    let mut seen: BTreeMap<String, &Node> = BTreeMap::new();
    for node in nodes {
        if let Some(other) = seen.insert(node.name.to_lowercase(), node) {
            let message = format!(
                "`{}` and `{}` would be published to one folder where case does not count",
                other.name, node.name
            );
            diagnostics.push(
                Diagnostic::new("E014", &node.origin, message).also(&other.origin, "the other node's stage"),
            );
        }
    }
}
