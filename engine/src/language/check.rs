//! What can only be seen when all nodes exist: cycles, colliding results, unused names.

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::Diagnostic;
use super::expand::Expanded;
use super::files::Document;
use crate::pipeline::{InputSource, Node, SourceFile};

pub(crate) fn check(
    document: &Document,
    expanded: &Expanded,
    sources: &[SourceFile],
    diagnostics: &mut Vec<Diagnostic>,
) {
    cycles(expanded, sources, diagnostics);
    ports_of_a_stage(expanded, diagnostics);
    names(expanded, diagnostics);
    machine(expanded, diagnostics);
    for entry in document.vars.iter() {
        if !expanded.used_vars.contains(&entry.key) {
            let message = format!("variable `{}` is never used", entry.key);
            diagnostics.push(Diagnostic::new("W101", &entry.key_origin, message));
        }
    }
    let Some(first) = document.stages.iter().next() else {
        if diagnostics.is_empty() {
            let origin = crate::pipeline::Origin::File { file: 0, span: 0..0, profile: None };
            diagnostics.push(Diagnostic::new("E010", &origin, "the file has no `[stage.NAME]`"));
        }
        return;
    };
    let _ = first;
}

/// Kahn's algorithm; what is left over holds a cycle, which is then walked. No recursion.
fn cycles(expanded: &Expanded, _sources: &[SourceFile], diagnostics: &mut Vec<Diagnostic>) {
    let nodes = &expanded.nodes;
    let mut waiting: Vec<usize> = vec![0; nodes.len()];
    let mut consumers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (consumer, node) in nodes.iter().enumerate() {
        for producer in producers(node) {
            waiting[consumer] += 1;
            consumers[producer].push(consumer);
        }
    }
    let mut ready: Vec<usize> = (0..nodes.len()).filter(|index| waiting[*index] == 0).collect();
    let mut left: BTreeSet<usize> = (0..nodes.len()).collect();
    while let Some(index) = ready.pop() {
        left.remove(&index);
        for consumer in &consumers[index] {
            waiting[*consumer] -= 1;
            if waiting[*consumer] == 0 {
                ready.push(*consumer);
            }
        }
    }
    // Every node left depends on one left, so walking producers ends in a cycle.
    let Some(mut current) = left.first().copied() else { return };
    let mut way: Vec<usize> = Vec::new();
    let mut place: BTreeMap<usize, usize> = BTreeMap::new();
    while !place.contains_key(&current) {
        place.insert(current, way.len());
        way.push(current);
        match producers(&nodes[current]).find(|producer| left.contains(producer)) {
            Some(producer) => current = producer,
            None => return,
        }
    }
    let mut cycle = way.split_off(place[&current]);
    cycle.reverse();
    let names: Vec<&str> =
        cycle.iter().chain(cycle.first()).map(|index| nodes[*index].name.as_str()).collect();
    let edge = |consumer: usize, producer: usize| {
        nodes[consumer].inputs.iter().find(|input| {
            input
                .sources
                .iter()
                .any(|source| matches!(source, InputSource::Node { node, .. } if node.0 == producer))
        })
    };
    let mut diagnostic = None;
    for (position, producer) in cycle.iter().enumerate() {
        let consumer = cycle[(position + 1) % cycle.len()];
        let Some(input) = edge(consumer, *producer) else { continue };
        let text = format!("`{}` reads `{}`", nodes[consumer].name, nodes[*producer].name);
        diagnostic = Some(match diagnostic {
            None => Diagnostic::new(
                "E006",
                &input.origin,
                format!("stages depend on each other: {}", names.join(" -> ")),
            ),
            Some(diagnostic) => Diagnostic::also(diagnostic, &input.origin, text),
        });
    }
    diagnostics.extend(diagnostic);
}

fn producers(node: &Node) -> impl Iterator<Item = usize> {
    node.inputs.iter().flat_map(|input| &input.sources).filter_map(|source| match source {
        InputSource::Node { node, .. } => Some(node.0),
        _ => None,
    })
}

/// All nodes of a stage offer the same ports of the same types.
fn ports_of_a_stage(expanded: &Expanded, diagnostics: &mut Vec<Diagnostic>) {
    for stage in &expanded.stages {
        let ports = |index: usize| -> Vec<(&str, &str)> {
            let outputs = &expanded.nodes[index].outputs;
            outputs.iter().map(|port| (port.name.as_str(), port.artifact.0)).collect()
        };
        let Some(first) = stage.nodes.first() else { continue };
        if let Some(other) = stage.nodes.iter().find(|id| ports(id.0) != ports(first.0)) {
            let message = format!(
                "nodes `{}` and `{}` of one stage have different outputs",
                expanded.nodes[first.0].name, expanded.nodes[other.0].name
            );
            diagnostics.push(Diagnostic::new("E009", &stage.origin, message));
        }
    }
}

/// Two nodes may not publish to one path; names that differ only in case collide on some disks.
fn names(expanded: &Expanded, diagnostics: &mut Vec<Diagnostic>) {
    let mut paths: BTreeMap<String, &Node> = BTreeMap::new();
    for node in &expanded.nodes {
        if let Some(other) = paths.insert(node.name.to_lowercase(), node) {
            let message = format!("`{}` and `{}` would be published to one path", other.name, node.name);
            diagnostics
                .push(Diagnostic::new("E014", &node.origin, message).also(&other.origin, "the other one"));
        }
    }
}

fn machine(expanded: &Expanded, diagnostics: &mut Vec<Diagnostic>) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for stage in &expanded.stages {
        let Some(node) = stage.nodes.first().map(|id| &expanded.nodes[id.0]) else { continue };
        if node.resources.cpu.is_some_and(|cpu| cpu > cores) {
            let message = format!(
                "`{}` asks for {} cores, this machine has {cores}; it runs alone",
                stage.name,
                node.resources.cpu.unwrap_or_default()
            );
            diagnostics.push(Diagnostic::new("W105", &stage.origin, message));
        }
    }
}
