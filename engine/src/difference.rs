//! How the keys of two actions differ, part by part.

use std::collections::{BTreeMap, BTreeSet};

use pipe_cache::{ActionKey, KeyInput, Value};
use serde_json::{Value as Json, json};

/// A parameter with another value, as a dotted path; none: it is not there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParamChange {
    pub(crate) name: String,
    pub(crate) old: Option<String>,
    pub(crate) new: Option<String>,
}

/// One part of a key that differs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Difference {
    /// A part that is one value: `kind`, `implementation version`, `numerics class`.
    Part { name: &'static str, old: String, new: String },
    /// A parameter.
    Param(ParamChange),
    /// An input with another content, or that only one of them has.
    Input { name: String, change: &'static str },
}

/// The parameters that differ, sorted by name.
pub(crate) fn param_changes(old: &Value, new: &Value) -> Vec<ParamChange> {
    let (before, after) = (flat_params(old), flat_params(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .map(|name| ParamChange {
            name: name.clone(),
            old: before.get(name).cloned(),
            new: after.get(name).cloned(),
        })
        .filter(|change| change.old != change.new)
        .collect()
}

/// All parts that differ.
pub(crate) fn differences(old: &ActionKey, new: &ActionKey) -> Vec<Difference> {
    let version = |key: &ActionKey| format!("{}.{}", key.implementation, key.schema_version);
    let parts = [
        ("kind", old.kind.clone(), new.kind.clone()),
        ("implementation version", version(old), version(new)),
        ("numerics class", old.numerics.clone(), new.numerics.clone()),
    ];
    let mut found: Vec<Difference> = parts
        .into_iter()
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| Difference::Part { name, old, new })
        .collect();
    found.extend(param_changes(&old.params, &new.params).into_iter().map(Difference::Param));
    let by_name = |key: &ActionKey| -> BTreeMap<String, KeyInput> {
        key.inputs.iter().map(|input| (input.name.clone(), input.clone())).collect()
    };
    let (before, after) = (by_name(old), by_name(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let change = match (before.get(name), after.get(name)) {
            (Some(before), Some(after)) if before == after => continue,
            (Some(_), Some(_)) => "changed",
            (None, _) => "added",
            (_, None) => "removed",
        };
        found.push(Difference::Input { name: name.clone(), change });
    }
    found
}

impl Difference {
    /// For people.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Part { name, old, new } => format!("{name} {old} -> {new}"),
            Self::Param(ParamChange { name, old, new }) => {
                let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
                format!("param `{name}` {} -> {}", or_none(old), or_none(new))
            }
            Self::Input { name, change } => format!("input `{name}` {change}"),
        }
    }

    /// For `--json`.
    pub(crate) fn json(&self) -> Json {
        match self {
            Self::Part { name, old, new } => json!({ "part": name, "old": old, "new": new }),
            Self::Param(change) => {
                json!({ "part": "param", "param": change.name, "old": change.old, "new": change.new })
            }
            Self::Input { name, change } => json!({ "part": "input", "input": name, "change": change }),
        }
    }
}

/// Leaves of a parameter table as dotted names and printed values.
/// The parameters as texts, by dotted path.
pub(crate) fn flat_params(params: &Value) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    flatten("", params, &mut leaves);
    leaves
}

fn flatten(path: &str, value: &Value, leaves: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(entries) => {
            for (key, value) in entries {
                let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&inner, value, leaves);
            }
        }
        _ => {
            leaves.insert(path.to_owned(), print(value));
        }
    }
}

fn print(value: &Value) -> String {
    match value {
        Value::None => "none".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::Float(value) => format!("{value:?}"),
        Value::String(text) => format!("{text:?}"),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::Digest(digest) => digest.to_short(),
        Value::List(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(", ")),
        Value::Table(entries) => {
            let entries: Vec<String> =
                entries.iter().map(|(key, value)| format!("{key} = {}", print(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}
