//! `checkpoint = { every = "10min", keep = 2, retain = false }`.

use super::diagnostic::Diagnostic;
use super::item::{ItemValue, Table};
use super::quantity::seconds;
use super::suggestion;
use crate::pipeline::{CheckpointEvery, CheckpointPolicy};

/// More of them than this are a mistake.
const MOST: i64 = 1000;

/// Reads the `checkpoint` of a stage.
pub(crate) fn read(table: &Table, diagnostics: &mut Vec<Diagnostic>) -> CheckpointPolicy {
    let mut policy = CheckpointPolicy::default();
    for entry in table.iter().filter(|entry| !entry.item.is_invalid()) {
        let help = match (entry.key.as_str(), &entry.item.value) {
            ("every", ItemValue::Integer(steps @ 1..)) => {
                policy.every = CheckpointEvery::Steps(steps.unsigned_abs());
                continue;
            }
            ("every", _) => match entry.item.as_str().and_then(seconds) {
                Some(seconds) => {
                    policy.every = CheckpointEvery::Seconds(seconds);
                    continue;
                }
                None => {
                    "write a duration or a number of steps: `every = \"10min\"` or `every = 500`".to_owned()
                }
            },
            ("keep", ItemValue::Integer(keep @ 1..=MOST)) => {
                policy.keep = *keep as usize;
                continue;
            }
            ("keep", _) => format!("write how many, 1 to {MOST}: `keep = 2`"),
            ("retain", ItemValue::Bool(retain)) => {
                policy.retain = *retain;
                continue;
            }
            ("retain", _) => "write `true` or `false`".to_owned(),
            _ => {
                let message = format!("unknown key `{}` of `checkpoint`", entry.key);
                let help = suggestion(&entry.key, ["every", "keep", "retain"]);
                diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
                continue;
            }
        };
        let message = format!("`checkpoint.{}` cannot be {}", entry.key, entry.item.display());
        diagnostics.push(Diagnostic::new("E003", &entry.item.origin, message).help(help));
    }
    policy
}
