//! Which nodes a person means: a stage, a node, a selector, or a glob over node names.

use super::diagnostic::Diagnostic;
use super::{reference, suggestion};
use crate::pipeline::{NodeId, Origin, Pipeline};

/// The stage and the axes in the name of a node: `stage[axis=value,...]`.
pub(crate) fn parts_of(name: &str) -> (String, Vec<(String, String)>) {
    let Some((stage, axes)) =
        name.split_once('[').and_then(|(stage, rest)| Some((stage, rest.strip_suffix(']')?)))
    else {
        return (name.to_owned(), Vec::new());
    };
    let mut pairs: Vec<(String, String)> = Vec::new();
    for piece in axes.split(',') {
        let is_name = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        };
        match (piece.split_once('=').filter(|(axis, _)| is_name(axis)), pairs.last_mut()) {
            (Some((axis, value)), _) => pairs.push((axis.to_owned(), value.to_owned())),
            // A comma of the value itself.
            (None, Some((_, value))) => value.push_str(&format!(",{piece}")),
            (None, None) => pairs.push((String::new(), piece.to_owned())),
        }
    }
    (stage.to_owned(), pairs)
}

/// Whether `target` means the node `name`: its stage or the node itself, a selector (`fit[model=clip]`, other axes
/// free), or a glob in the place of a whole name, of a stage, or of a value.
pub(crate) fn means(target: &str, name: &str) -> bool {
    let (stage, axes) = parts_of(name);
    if target == name || glob(target, name) || glob(target, &stage) {
        return true;
    }
    let (wanted, selectors) = parts_of(target);
    let is_met = |(axis, value): &(String, String)| {
        axes.iter().any(|(name, actual)| name == axis && glob(value, actual))
    };
    target.ends_with(']') && glob(&wanted, &stage) && selectors.iter().all(is_met)
}

/// The nodes that `target` names, in node order: see [`means`].
///
/// # Errors
/// A diagnostic (E004, E002) if it names none.
pub fn select(pipeline: &Pipeline, target: &str) -> Result<Vec<NodeId>, Box<Diagnostic>> {
    let nodes: Vec<NodeId> = (0..pipeline.nodes.len())
        .map(NodeId)
        .filter(|id| means(target, &pipeline.nodes[id.0].name))
        .collect();
    if nodes.is_empty() { Err(unmet(pipeline, target)) } else { Ok(nodes) }
}

/// Why a target names no node.
fn unmet(pipeline: &Pipeline, target: &str) -> Box<Diagnostic> {
    let origin = Origin::CommandLine(target.to_owned());
    let stages = || pipeline.stages.iter().map(|stage| stage.name.as_str());
    if target.contains('*') && reference::parse_output(target).is_none() {
        return Box::new(Diagnostic::new("E004", &origin, format!("no node matches `{target}`")));
    }
    let unknown = |name: &str| {
        let message = format!("unknown stage `{name}`");
        Box::new(Diagnostic::new("E004", &origin, message).help(suggestion(name, stages())))
    };
    let Some(wanted) = reference::parse_output(target) else { return unknown(target) };
    let Some(stage) = pipeline.stages.iter().find(|stage| stage.name == wanted.stage) else {
        return unknown(&wanted.stage);
    };
    for (axis, _) in &wanted.selectors {
        if !stage.axes.contains(axis) {
            let message = format!("stage `{}` has no axis `{axis}`", stage.name);
            let help = suggestion(axis, stage.axes.iter().map(String::as_str));
            return Box::new(Diagnostic::new("E002", &origin, message).help(help));
        }
    }
    let known = stage.nodes.iter().map(|id| pipeline.nodes[id.0].name.as_str());
    let message = format!("no node is named `{target}`");
    Box::new(Diagnostic::new("E002", &origin, message).help(suggestion(target, known)))
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

#[cfg(test)]
mod tests {
    use super::parts_of;

    #[test]
    fn names_fall_into_stage_and_axes() {
        let pair = |axis: &str, value: &str| (axis.to_owned(), value.to_owned());
        assert_eq!(parts_of("read"), ("read".to_owned(), Vec::new()));
        assert_eq!(
            parts_of("tuned[model=clip,lr=1e-5]"),
            ("tuned".to_owned(), vec![pair("model", "clip"), pair("lr", "1e-5")])
        );
        assert_eq!(parts_of("a[x=1,2,y=b=c]"), ("a".to_owned(), vec![pair("x", "1,2"), pair("y", "b=c")]));
    }
}
