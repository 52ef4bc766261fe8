//! Profiles, `--var` and `--set`, in rising precedence, applied to the document.

use super::diagnostic::Diagnostic;
use super::files::Document;
use super::item::{self, Entry, Item, ItemValue, Table};
use super::{LoadOptions, suggestion};
use crate::pipeline::Origin;

/// An override of one node's parameter: kept beside the stage until its nodes exist.
pub(crate) const NODE_OVERRIDES: &str = " node overrides";

/// Applies the options to the document.
pub(crate) fn apply(document: &mut Document, options: &LoadOptions, diagnostics: &mut Vec<Diagnostic>) {
    for name in &options.profiles {
        let Some(profile) = document.profiles.get(name) else {
            let origin = Origin::CommandLine(format!("--profile {name}"));
            let help = suggestion(name, document.profiles.keys().map(String::as_str));
            diagnostics
                .push(Diagnostic::new("E002", &origin, format!("unknown profile `{name}`")).help(help));
            continue;
        };
        let vars: Vec<Entry> = profile.vars.iter().cloned().collect();
        let sets: Vec<Entry> = profile.set.iter().cloned().collect();
        for entry in vars {
            set_var(document, entry, diagnostics);
        }
        for entry in sets {
            set_path(document, &entry.key.clone(), entry.key_origin, entry.item, diagnostics);
        }
    }
    for option in &options.vars {
        if let Some((name, item)) = split("--var", option, diagnostics) {
            let key_origin = item.origin.clone();
            set_var(document, Entry { key: name, key_origin, item }, diagnostics);
        }
    }
    for option in &options.sets {
        if let Some((path, item)) = split("--set", option, diagnostics) {
            set_path(document, &path, item.origin.clone(), item, diagnostics);
        }
    }
}

fn split(flag: &str, option: &str, diagnostics: &mut Vec<Diagnostic>) -> Option<(String, Item)> {
    let shown = format!("{flag} {option}");
    match option.find('=').filter(|_| true) {
        // A selector holds `=` too: the value begins after the first one outside brackets.
        Some(_) => {
            let mut depth = 0;
            let place = option.char_indices().find(|(_, c)| {
                match c {
                    '[' => depth += 1,
                    ']' => depth -= 1,
                    _ => {}
                }
                *c == '=' && depth == 0
            });
            if let Some((place, _)) = place {
                let (name, value) = (option[..place].trim(), option[place + 1..].trim());
                return Some((name.to_owned(), item::parse_option(&shown, value)));
            }
        }
        None => {}
    }
    diagnostics.push(Diagnostic::new("E002", &Origin::CommandLine(shown), "an override is `name=value`"));
    None
}

fn set_var(document: &mut Document, entry: Entry, diagnostics: &mut Vec<Diagnostic>) {
    match document.vars.get(&entry.key) {
        None => {
            let help = suggestion(&entry.key, document.vars.keys());
            let message = format!("unknown variable `{}`", entry.key);
            diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
        }
        Some(previous) => {
            if previous.same_value(&entry.item) {
                let message = format!("`{}` already is {}", entry.key, previous.display());
                diagnostics.push(Diagnostic::new("W102", &entry.item.origin, message));
            }
            document.vars.insert(entry);
        }
    }
}

/// Sets `stage.NAME[axis=value].section.key...`.
fn set_path(
    document: &mut Document,
    path: &str,
    key_origin: Origin,
    item: Item,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let unknown =
        |message: String, help: Option<String>| Diagnostic::new("E002", &key_origin, message).help(help);
    let Some(rest) = path.strip_prefix("stage.") else {
        let help = "a path begins with `stage.NAME.`, a variable is set by `--var` or `vars`".to_owned();
        diagnostics.push(unknown(format!("`{path}` addresses nothing"), Some(help)));
        return;
    };
    let name_end = rest.find(['.', '[']).unwrap_or(rest.len());
    let name = &rest[..name_end];
    let (selector, rest) = match rest[name_end..].strip_prefix('[').and_then(|tail| tail.split_once(']')) {
        Some((selector, tail)) => (Some(selector), tail),
        None => (None, &rest[name_end..]),
    };
    let keys: Vec<&str> = rest.trim_start_matches('.').split('.').filter(|key| !key.is_empty()).collect();
    if document.stages.get(name).is_none() {
        let help = suggestion(name, document.stages.keys());
        diagnostics.push(unknown(format!("unknown stage `{name}`"), help));
        return;
    }
    let Some(stage) = document.stages.get_mut(name) else { return };
    let ItemValue::Table(stage) = &mut stage.value else { return };
    let [first, rest @ ..] = keys.as_slice() else {
        diagnostics.push(unknown(format!("`{path}` names no key of the stage"), None));
        return;
    };
    const SETTABLE: [&str; 4] = ["params", "resources", "inputs", "retry"];
    if !SETTABLE.contains(first) || rest.is_empty() {
        let help = suggestion(first, SETTABLE)
            .or(Some("`params`, `resources`, `inputs` and `retry` have keys to set".to_owned()));
        diagnostics.push(unknown(format!("`{path}` cannot be set"), help));
        return;
    }
    if let Some(selector) = selector {
        // The nodes do not exist yet: `expand` applies it to those that match.
        let mut entry = table_entry(NODE_OVERRIDES, &key_origin);
        if let Some(existing) = stage.entry(NODE_OVERRIDES) {
            entry = existing.clone();
        }
        if let ItemValue::Table(overrides) = &mut entry.item.value {
            overrides.insert(Entry { key: format!("{selector}]{}", keys.join(".")), key_origin, item });
        }
        stage.insert(entry);
        return;
    }
    if let Some(previous) = set_in(stage, &keys, &key_origin, item.clone())
        && previous.same_value(&item)
    {
        let message = format!("`{path}` already is {}", previous.display());
        diagnostics.push(Diagnostic::new("W102", &item.origin, message));
    }
}

fn table_entry(key: &str, origin: &Origin) -> Entry {
    let item = Item { value: ItemValue::Table(Table::default()), origin: origin.clone() };
    Entry { key: key.to_owned(), key_origin: origin.clone(), item }
}

/// Sets a dotted key, making tables on the way; returns what was there.
pub(crate) fn set_in(table: &mut Table, keys: &[&str], key_origin: &Origin, item: Item) -> Option<Item> {
    let mut table = table;
    let (last, way) = keys.split_last()?;
    for key in way {
        if !matches!(table.get(key), Some(Item { value: ItemValue::Table(_), .. })) {
            table.insert(table_entry(key, key_origin));
        }
        match table.get_mut(key).map(|item| &mut item.value) {
            Some(ItemValue::Table(next)) => table = next,
            _ => return None,
        }
    }
    let entry = Entry { key: (*last).to_owned(), key_origin: key_origin.clone(), item };
    table.insert(entry).map(|previous| previous.item)
}
