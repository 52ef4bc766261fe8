//! Why a node has to run: one enum, with old and new values, and one place that words it.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pipe_cache::{ActionKey, Digest, KeyInput, OutputRecord, Record, Store};

use crate::ancestry;
use crate::difference::{ParamChange, param_changes};
use crate::history::{History, PastFailure};
use crate::pipeline::{InputSource, Node, NodeId, Origin, Pipeline};
use crate::plan::{Plan, Status};

/// One cause.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DirtyReason {
    /// `--force`.
    Forced,
    /// It never ran.
    NoRecord,
    /// Another kind than before.
    Kind { old: String, new: String },
    /// The program computes it differently now.
    Implementation { old: i64, new: i64 },
    /// A parameter has another value; `None`: it was not there.
    Param { name: String, old: Option<String>, new: Option<String>, origin: Option<Origin> },
    /// An input has another content than `before`; `producer` is the node it comes from, if any.
    Input { name: String, producer: Option<NodeId>, file: Option<String>, before: Digest },
    /// Its inputs came about in another way, which it shows.
    Ancestry,
    /// An input is named differently, is new or is gone.
    Wiring { name: String },
    /// The arithmetic of this machine differs.
    Numerics { old: String, new: String },
    /// The record is there, its outputs are missing or damaged.
    Damaged,
    /// Its files were evicted, and this node reads them.
    Evicted { reader: String },
    /// The last attempt failed.
    FailedBefore(PastFailure),
    /// This remote source was never read, so its content is unknown.
    Fetch { source: String },
    /// These inputs have no result yet.
    Upstream { nodes: Vec<String> },
}

/// Compares a node with what earlier runs knew of it; root causes first.
pub(crate) fn reasons(
    pipeline: &Pipeline,
    node: &Node,
    key: Option<(&Digest, &ActionKey)>,
    plan: &Plan,
    store: Option<&Store>,
    history: &History,
    forced: bool,
) -> Vec<DirtyReason> {
    let mut reasons = Vec::new();
    if forced {
        reasons.push(DirtyReason::Forced);
    }
    let digest = key.map(|(digest, _)| digest);
    if let Some(digest) = digest {
        // A record that is there, sound or not, and yet was no hit.
        if store.is_some_and(|store| store.record_path(digest).exists()) {
            return vec![if forced { DirtyReason::Forced } else { DirtyReason::Damaged }];
        }
    }
    if let Some(digest) = digest
        && !forced
        && let Some(failure) = history.failure(&node.name)
        && history.last_key(&node.name).as_ref() == Some(digest)
    {
        return vec![DirtyReason::FailedBefore(failure.clone())];
    }
    let last = history.last_record(&node.name, digest);
    match last.as_ref().and_then(|record| record.components()) {
        Some(old) => compare(node, old, key.map(|(_, key)| key), &mut reasons),
        None if key.is_some() && !forced => reasons.push(match history.failure(&node.name) {
            Some(failure) => DirtyReason::FailedBefore(failure.clone()),
            None => DirtyReason::NoRecord,
        }),
        None => {}
    }
    if key.is_none() {
        let mut seen = BTreeSet::new();
        let nodes = crate::action::producers(node)
            .filter(|producer| matches!(plan.status[producer.0], Status::Run(_) | Status::Maybe(_)))
            .filter(|producer| seen.insert(*producer))
            .map(|producer| pipeline.nodes[producer.0].name.clone())
            .collect();
        let nodes: Vec<String> = nodes;
        if !nodes.is_empty() {
            reasons.push(DirtyReason::Upstream { nodes });
        }
    } else if reasons.is_empty() {
        // The same parameters and inputs under a key that has no record.
        reasons.push(DirtyReason::NoRecord);
    }
    reasons
}

fn compare(node: &Node, old: &ActionKey, new: Option<&ActionKey>, reasons: &mut Vec<DirtyReason>) {
    let kind = node.description.name;
    if old.kind != kind {
        reasons.push(DirtyReason::Kind { old: old.kind.clone(), new: kind.to_owned() });
        return;
    }
    let new_params = new.map_or(&node.params.canonical, |new| &new.params);
    if old.implementation != node.description.implementation
        || old.schema_version != node.description.schema_version
    {
        reasons.push(DirtyReason::Implementation {
            old: old.implementation,
            new: node.description.implementation,
        });
    }
    let changes = param_changes(&old.params, new_params);
    let (above, changes): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| change.name == ancestry::IN_KEY);
    for ParamChange { name, old, new } in changes {
        let origin = nearest_origin(node, &name);
        reasons.push(DirtyReason::Param { name, old, new, origin });
    }
    let Some(new) = new else { return };
    if old.numerics != new.numerics {
        reasons.push(DirtyReason::Numerics { old: old.numerics.clone(), new: new.numerics.clone() });
    }
    let old_inputs: BTreeMap<&str, &KeyInput> =
        old.inputs.iter().map(|input| (input.name.as_str(), input)).collect();
    let new_inputs: BTreeMap<&str, &KeyInput> =
        new.inputs.iter().map(|input| (input.name.as_str(), input)).collect();
    for name in old_inputs.keys().filter(|name| !new_inputs.contains_key(*name)) {
        reasons.push(DirtyReason::Wiring { name: (*name).to_owned() });
    }
    for input in &node.inputs {
        let (Some(after), before) =
            (new_inputs.get(input.name.as_str()), old_inputs.get(input.name.as_str()))
        else {
            continue;
        };
        let Some(before) = before else {
            reasons.push(DirtyReason::Wiring { name: input.name.clone() });
            continue;
        };
        if before == after {
            continue;
        }
        let changed: Vec<(Digest, &InputSource)> = if before.artifacts.len() == after.artifacts.len() {
            let pairs = before.artifacts.iter().zip(&after.artifacts).zip(&input.sources);
            let changed = pairs.filter(|((before, after), _)| before != after);
            changed.map(|((before, _), source)| (before.digest, source)).collect()
        } else {
            Vec::new()
        };
        if changed.is_empty() {
            reasons.push(DirtyReason::Wiring { name: input.name.clone() });
        }
        for (before, source) in changed {
            let (producer, file) = match source {
                InputSource::Node { node, .. } => (Some(*node), None),
                InputSource::File { pattern, .. } => (None, Some(pattern.clone())),
                InputSource::Remote(remote) => (None, Some(remote.text().to_owned())),
                InputSource::Blob(_) => (None, None),
            };
            reasons.push(DirtyReason::Input { name: input.name.clone(), producer, file, before });
        }
    }
    // Where something else changed, that tells more.
    if !above.is_empty() && reasons.is_empty() {
        reasons.push(DirtyReason::Ancestry);
    }
}

/// How far a change is followed towards its source.
const DEPTH: usize = 32;

/// What is known of a changed input beyond that it changed: how much of the table is new, and why the node that it
/// comes from gave another result, up to the first cause. Empty for other reasons, and where the earlier results
/// are gone.
pub(crate) fn account(
    pipeline: &Pipeline,
    plan: &Plan,
    history: &History,
    reason: &DirtyReason,
) -> Vec<String> {
    let mut lines = Vec::new();
    let DirtyReason::Input { producer: Some(producer), before, .. } = reason else { return lines };
    let (mut producer, mut before) = (*producer, *before);
    for step in 0..DEPTH {
        let node = &pipeline.nodes[producer.0];
        let gave = |record: &Record, content: &Digest| -> Option<String> {
            let output = record.outputs.iter().find(|(_, output)| output.content == *content);
            output.map(|(port, _)| port.clone())
        };
        let key = plan.keys[producer.0].as_ref().map(|(digest, _)| digest);
        let mut earlier = history.records(&node.name, key).into_iter();
        let found = earlier.find_map(|record| gave(&record, &before).map(|port| (record, port)));
        let (Some((old, port)), Some(new)) = (found, plan.records[producer.0].as_ref()) else { break };
        if step == 0
            && let (Some(was), Some(is)) = (old.outputs.get(&port), new.outputs.get(&port))
        {
            lines.extend(change_of_parts(was, is));
        }
        let (Some(was), Some(is)) = (old.components(), new.components()) else { break };
        let mut reasons = Vec::new();
        compare(node, was, Some(is), &mut reasons);
        let next = reasons.iter().find_map(|reason| match reason {
            DirtyReason::Input { producer: Some(producer), before, .. } => Some((*producer, *before)),
            _ => None,
        });
        let (inner, own): (Vec<_>, Vec<_>) =
            reasons.iter().partition(|reason| matches!(reason, DirtyReason::Input { producer: Some(_), .. }));
        lines.extend(own.iter().map(|reason| format!("`{}`: {}", node.name, reason.words(pipeline))));
        let Some(next) = next.filter(|_| own.is_empty()) else { break };
        lines.extend(
            inner.iter().take(1).map(|reason| format!("`{}`: {}", node.name, reason.words(pipeline))),
        );
        (producer, before) = next;
    }
    lines
}

/// `1 of 7 parts is new (+100 rows)`; none of what is no table.
fn change_of_parts(was: &OutputRecord, is: &OutputRecord) -> Option<String> {
    let known: BTreeSet<Digest> = was.parts.as_ref()?.iter().map(|part| part.digest).collect();
    let parts = is.parts.as_ref()?;
    let new = parts.iter().filter(|part| !known.contains(&part.digest)).count();
    let rows = |output: &OutputRecord| output.rows.and_then(|rows| i64::try_from(rows).ok()).unwrap_or(0);
    let verb = if new == 1 { "is" } else { "are" };
    Some(match rows(is) - rows(was) {
        0 => format!("{new} of {} parts {verb} new", parts.len()),
        more => format!("{new} of {} parts {verb} new ({more:+} rows)", parts.len()),
    })
}

fn nearest_origin(node: &Node, name: &str) -> Option<Origin> {
    let mut name = name;
    loop {
        if let Some(origin) = node.origins.get(name) {
            return Some(origin.clone());
        }
        name = &name[..name.rfind('.')?];
    }
}

/// `pipeline.toml:22:20`, the option, or "default".
pub(crate) fn place(pipeline: &Pipeline, origin: &Origin) -> String {
    match origin {
        Origin::File { file, span, profile } => {
            let Some(source) = pipeline.sources.get(*file) else { return String::new() };
            let (line, column) = source.line_column(span.start);
            let place = format!("{}:{line}:{column}", source.path.display());
            match profile {
                Some(profile) => format!("{profile} profile, {place}"),
                None => place,
            }
        }
        Origin::CommandLine(option) => format!("`{option}`"),
        Origin::Default => "default".to_owned(),
    }
}

/// ` 5 min ago`, with a blank in front.
fn ago(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0..60 => " just now".to_owned(),
        seconds @ 60..3600 => format!(" {} min ago", seconds / 60),
        seconds @ 3600..172_800 => format!(" {} h ago", seconds / 3600),
        seconds => format!(" {} days ago", seconds / 86_400),
    }
}

impl DirtyReason {
    /// The sentence that every command prints.
    pub(crate) fn words(&self, pipeline: &Pipeline) -> String {
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        match self {
            Self::Forced => "forced".to_owned(),
            Self::NoRecord => "it has no result yet".to_owned(),
            Self::Kind { old, new } => format!("kind {old} -> {new}"),
            Self::Implementation { old, new } => format!("implementation version {old} -> {new}"),
            Self::Param { name, old, new, origin } => {
                let place = origin
                    .as_ref()
                    .map(|origin| format!(" ({})", place(pipeline, origin)))
                    .unwrap_or_default();
                format!("param `{name}` {} -> {}{place}", or_none(old), or_none(new))
            }
            Self::Input { name, producer: Some(producer), .. } => {
                let producer = &pipeline.nodes[producer.0].name;
                format!("input `{name}` changed: `{producer}` gave another result")
            }
            Self::Input { name, file: Some(file), .. } => {
                format!("input `{name}` changed: `{file}` has another content")
            }
            Self::Input { name, .. } => format!("input `{name}` changed"),
            Self::Ancestry => "its inputs came about by other results, which it shows".to_owned(),
            Self::Wiring { name } => format!("input `{name}` is wired differently"),
            Self::Numerics { old, new } => format!("numerics class {old} -> {new}"),
            Self::Damaged => "its outputs are missing or damaged".to_owned(),
            Self::Evicted { reader } => format!("its files were evicted, and `{reader}` reads them"),
            Self::FailedBefore(failure) => {
                let ago = failure.began.and_then(|began| began.elapsed().ok()).map(ago).unwrap_or_default();
                // A program's last words take further lines.
                let first = failure.error.lines().next().unwrap_or_default();
                format!("its last attempt failed{ago}: {first}")
            }
            Self::Fetch { source } => format!("its source `{source}` would be fetched first"),
            Self::Upstream { nodes } => format!("waits for {}", some_of(nodes)),
        }
    }

    /// The reason for `--json`.
    pub(crate) fn json(&self, pipeline: &Pipeline) -> serde_json::Value {
        let code = match self {
            Self::Forced => "forced",
            Self::NoRecord => "no_record",
            Self::Kind { .. } => "kind",
            Self::Implementation { .. } => "implementation",
            Self::Param { .. } => "param",
            Self::Input { .. } => "input",
            Self::Ancestry => "ancestry",
            Self::Wiring { .. } => "wiring",
            Self::Numerics { .. } => "numerics",
            Self::Damaged => "damaged",
            Self::Evicted { .. } => "evicted",
            Self::FailedBefore(_) => "failed_before",
            Self::Fetch { .. } => "fetch",
            Self::Upstream { .. } => "upstream",
        };
        let mut json = serde_json::json!({ "reason": code, "text": self.words(pipeline) });
        match (self, json.as_object_mut()) {
            (Self::Param { name, old, new, .. }, Some(json)) => {
                json.insert("param".to_owned(), name.clone().into());
                json.insert("old".to_owned(), old.clone().into());
                json.insert("new".to_owned(), new.clone().into());
            }
            (Self::Upstream { nodes }, Some(json)) => {
                json.insert("nodes".to_owned(), nodes.clone().into());
            }
            _ => (),
        }
        json
    }
}

/// So many names stand in a sentence.
const NAMED: usize = 4;

/// Names as part of a sentence: a report may wait for hundreds of nodes, of which the first few say enough.
pub(crate) fn some_of<N: Borrow<str>>(names: &[N]) -> String {
    // "and 1 others" would be no shorter than the name.
    if names.len() <= NAMED + 1 {
        return names.join(", ");
    }
    format!("{} and {} others", names[..NAMED].join(", "), names.len() - NAMED)
}

#[cfg(test)]
mod tests {
    use super::some_of;

    #[test]
    fn of_many_names_the_first_are_told() {
        assert_eq!(some_of::<&str>(&[]), "");
        assert_eq!(some_of(&["a", "b", "c", "d", "e"]), "a, b, c, d, e");
        assert_eq!(some_of(&["a", "b", "c", "d", "e", "f"]), "a, b, c, d and 2 others");
    }
}
