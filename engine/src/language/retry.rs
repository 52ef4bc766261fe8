//! `retry = { max = 2, backoff = "30s", on = ["oom", "io"] }`.

use std::collections::BTreeSet;

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, ItemValue, Table};
use super::quantity::seconds;
use super::suggestion;
use crate::error::FailureClass;
use crate::pipeline::Retry;

/// More attempts than this are a mistake.
const MOST: i64 = 100;

/// Reads the `retry` of a stage.
pub(crate) fn read(table: &Table, diagnostics: &mut Vec<Diagnostic>) -> Retry {
    let mut retry = Retry::default();
    for entry in table.iter().filter(|entry| !entry.item.is_invalid()) {
        let help = match entry.key.as_str() {
            "max" => match entry.item.value {
                ItemValue::Integer(max @ 0..=MOST) => {
                    retry.max = max as u32;
                    continue;
                }
                _ => format!("write how often, 0 to {MOST}: `max = 2`"),
            },
            "backoff" => match entry.item.as_str().and_then(seconds) {
                Some(backoff) => {
                    retry.backoff = backoff;
                    continue;
                }
                None => "write a duration: `backoff = \"30s\"`".to_owned(),
            },
            "on" => {
                if let Some(on) = classes(&entry.item, diagnostics) {
                    retry.on = on;
                    continue;
                }
                "write a list: `on = [\"oom\", \"io\"]`".to_owned()
            }
            _ => {
                let message = format!("unknown key `{}` of `retry`", entry.key);
                let help = suggestion(&entry.key, ["max", "backoff", "on"]);
                diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
                continue;
            }
        };
        wrong(entry, help, diagnostics);
    }
    retry
}

fn wrong(entry: &Entry, help: String, diagnostics: &mut Vec<Diagnostic>) {
    let message = format!("`retry.{}` cannot be {}", entry.key, entry.item.display());
    diagnostics.push(Diagnostic::new("E003", &entry.item.origin, message).help(help));
}

/// The classes of a list; what is no class is reported. None if it is no list.
fn classes(item: &Item, diagnostics: &mut Vec<Diagnostic>) -> Option<BTreeSet<FailureClass>> {
    let mut classes = BTreeSet::new();
    for one in item.as_list()?.iter().filter(|one| !one.is_invalid()) {
        match one.as_str().and_then(FailureClass::of_name) {
            Some(class) => _ = classes.insert(class),
            None => {
                let names = FailureClass::ALL.map(FailureClass::name);
                let help = one.as_str().and_then(|text| suggestion(text, names));
                let message = format!("{} is no class of failures", one.display());
                diagnostics.push(Diagnostic::new("E003", &one.origin, message).help(help));
            }
        }
    }
    Some(classes)
}
