//! Which nodes a person means: a stage, a node, a selector, or a glob over node names.

use super::diagnostic::Diagnostic;
use super::{reference, suggestion};
use crate::pipeline::{NodeId, Origin, Pipeline};

/// Whether `target`, a stage, a node, or a glob over either, means the node `name` of `stage`.
pub(crate) fn means(target: &str, stage: &str, name: &str) -> bool {
    target == stage || target == name || (target.contains('*') && (glob(target, name) || glob(target, stage)))
}

/// The nodes that `target` names, in node order: `finetune`, `finetune[model=clip]` (other axes
/// free), `finetune[model=clip,seed=0]`, or a glob such as `eval*`.
///
/// # Errors
/// A diagnostic (E004, E002) if it names none.
pub fn select(pipeline: &Pipeline, target: &str) -> Result<Vec<NodeId>, Box<Diagnostic>> {
    let origin = Origin::CommandLine(target.to_owned());
    let stages = || pipeline.stages.iter().map(|stage| stage.name.as_str());
    if target.contains('*') && !target.contains("=*") {
        let nodes: Vec<NodeId> = (0..pipeline.nodes.len())
            .map(NodeId)
            .filter(|id| {
                let node = &pipeline.nodes[id.0];
                glob(target, &node.name) || glob(target, &node.stage)
            })
            .collect();
        return if nodes.is_empty() {
            Err(Box::new(Diagnostic::new("E004", &origin, format!("no node matches `{target}`"))))
        } else {
            Ok(nodes)
        };
    }
    let unknown = |name: &str| {
        let message = format!("unknown stage `{name}`");
        Box::new(Diagnostic::new("E004", &origin, message).help(suggestion(name, stages())))
    };
    let Some(wanted) = reference::parse_output(target) else { return Err(unknown(target)) };
    let Some(stage) = pipeline.stages.iter().find(|stage| stage.name == wanted.stage) else {
        return Err(unknown(&wanted.stage));
    };
    for (axis, _) in &wanted.selectors {
        if !stage.axes.contains(axis) {
            let message = format!("stage `{}` has no axis `{axis}`", stage.name);
            let help = suggestion(axis, stage.axes.iter().map(String::as_str));
            return Err(Box::new(Diagnostic::new("E002", &origin, message).help(help)));
        }
    }
    let nodes: Vec<NodeId> = stage
        .nodes
        .iter()
        .copied()
        .filter(|id| {
            wanted.selectors.iter().all(|(axis, value)| {
                value == "*"
                    || pipeline.nodes[id.0].axes.iter().any(|(name, actual)| name == axis && actual == value)
            })
        })
        .collect();
    if nodes.is_empty() {
        let known = stage.nodes.iter().map(|id| pipeline.nodes[id.0].name.as_str());
        let message = format!("no node is named `{target}`");
        return Err(Box::new(Diagnostic::new("E002", &origin, message).help(suggestion(target, known))));
    }
    Ok(nodes)
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters. Linear in both.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        match rest.find(piece) {
            Some(place) => rest = &rest[place + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
