//! Profiles, `--var` and `--set`, in rising precedence, applied to the document.

use std::cell::Cell;

use super::diagnostic::Diagnostic;
use super::files::Document;
use super::item::{self, Entry, Item, ItemValue, Table};
use super::reference::parse_output;
use super::{LoadOptions, suggestion};
use crate::pipeline::Origin;

/// The sections of a stage whose keys can be set.
const SETTABLE: [&str; 5] = ["params", "resources", "inputs", "retry", "checkpoint"];

/// One `--set` or one entry of a profile's `set`: kept until the nodes of its stage exist.
#[derive(Clone, Debug)]
pub(crate) struct Override {
    /// As written.
    path: String,
    /// (axis, value); none: all nodes.
    pub(crate) selectors: Vec<(String, String)>,
    /// From the section inwards.
    keys: Vec<String>,
    pub(crate) key_origin: Origin,
    item: Item,
    matched: Cell<bool>,
    changed: Cell<bool>,
}

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
        for value in profile.executor.clone() {
            document.executor.insert(value);
        }
        for value in profile.remote.clone() {
            document.remote.insert(value);
        }
        for entry in vars {
            set_var(document, entry, diagnostics);
        }
        for entry in sets {
            set_path(document, entry, diagnostics);
        }
    }
    unused_profiles(document, options, diagnostics);
    for option in &options.vars {
        if let Some(entry) = split("--var", option, diagnostics) {
            set_var(document, entry, diagnostics);
        }
    }
    for option in &options.sets {
        if let Some(entry) = split("--set", option, diagnostics) {
            set_path(document, entry, diagnostics);
        }
    }
}

/// Profiles that were not chosen are looked at too: what addresses nothing would be an error later.
fn unused_profiles(document: &Document, options: &LoadOptions, diagnostics: &mut Vec<Diagnostic>) {
    for (name, profile) in &document.profiles {
        if options.profiles.contains(name) {
            continue;
        }
        let vars = profile.vars.iter().filter_map(|entry| unknown_var(document, entry));
        let sets =
            profile.set.iter().filter_map(|entry| parse_path(document, entry).err().map(|unknown| *unknown));
        for unknown in vars.chain(sets) {
            diagnostics.push(unknown.downgrade("W101", format!("profile `{name}`")));
        }
    }
}

/// Splits `name=value` at the first `=` outside brackets: a selector holds `=` too.
fn split(flag: &str, option: &str, diagnostics: &mut Vec<Diagnostic>) -> Option<Entry> {
    let shown = format!("{flag} {option}");
    let mut depth = 0;
    let place = option.char_indices().find_map(|(place, c)| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        (c == '=' && depth == 0).then_some(place)
    });
    let Some(place) = place else {
        let origin = Origin::CommandLine(shown);
        diagnostics.push(Diagnostic::new("E002", &origin, "an override is `name=value`"));
        return None;
    };
    let (key, value) = (option[..place].trim().to_owned(), option[place + 1..].trim());
    let item = item::parse_option(&shown, value);
    Some(Entry { key, key_origin: item.origin.clone(), item })
}

fn unknown_var(document: &Document, entry: &Entry) -> Option<Diagnostic> {
    if document.vars.get(&entry.key).is_some() {
        return None;
    }
    let help = suggestion(&entry.key, document.vars.keys());
    let message = format!("unknown variable `{}`", entry.key);
    Some(Diagnostic::new("E002", &entry.key_origin, message).help(help))
}

fn set_var(document: &mut Document, entry: Entry, diagnostics: &mut Vec<Diagnostic>) {
    if let Some(unknown) = unknown_var(document, &entry) {
        diagnostics.push(unknown);
        return;
    }
    let origin = entry.item.origin.clone();
    let (key, value) = (entry.key.clone(), entry.item.display());
    let previous = document.vars.insert(entry);
    if matches!(origin, Origin::CommandLine(_)) && previous.is_some_and(|old| old.item.display() == value) {
        diagnostics.push(Diagnostic::new("W102", &origin, format!("`{key}` is {value} without it")));
    }
}

fn set_path(document: &mut Document, entry: Entry, diagnostics: &mut Vec<Diagnostic>) {
    match parse_path(document, &entry) {
        Ok((stage, set)) => document.overrides.entry(stage).or_default().push(set),
        Err(diagnostic) => diagnostics.push(*diagnostic),
    }
}

/// `stage.NAME[axis=value].section.key...`: the stage's name and what is set.
fn parse_path(document: &Document, entry: &Entry) -> Result<(String, Override), Box<Diagnostic>> {
    let unknown = |message: String, help: Option<String>| {
        Box::new(Diagnostic::new("E002", &entry.key_origin, message).help(help))
    };
    let path = &entry.key;
    let Some(reference) = path.strip_prefix("stage.").and_then(parse_output) else {
        let help = "a path is `stage.NAME.params.KEY`; a variable is set by `--var` or by `vars`".to_owned();
        return Err(unknown(format!("`{path}` addresses nothing"), Some(help)));
    };
    if document.stages.get(&reference.stage).is_none() {
        let help = suggestion(&reference.stage, document.stages.keys());
        return Err(unknown(format!("unknown stage `{}`", reference.stage), help));
    }
    let keys: Vec<String> =
        reference.port.iter().flat_map(|keys| keys.split('.')).map(|key| key.trim().to_owned()).collect();
    let section = keys.first().map(String::as_str).unwrap_or_default();
    if keys.len() < 2 || keys.iter().any(String::is_empty) || !SETTABLE.contains(&section) {
        let help = suggestion(section, SETTABLE);
        return Err(unknown(format!("`{path}` is nothing that can be set"), help));
    }
    let set = Override {
        path: path.clone(),
        selectors: reference.selectors,
        keys,
        key_origin: entry.key_origin.clone(),
        item: entry.item.clone(),
        matched: Cell::new(false),
        changed: Cell::new(false),
    };
    Ok((reference.stage, set))
}

impl Override {
    /// The value that is set, its templates still in it.
    pub(crate) fn item(&self) -> &Item {
        &self.item
    }

    /// Sets `value` in the sections of a node that the selectors fit.
    pub(crate) fn set(&self, sections: &mut Table, value: Item, default: Option<&serde_json::Value>) {
        self.matched.set(true);
        let written = value.json();
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let same = match set_in(sections, &keys, &self.key_origin, value) {
            Some(previous) => previous.json() == written,
            None => default.is_some_and(|default| *default == written),
        };
        if !same {
            self.changed.set(true);
        }
    }

    /// The key of `params` that is set, if it is one.
    pub(crate) fn parameter(&self) -> Option<&str> {
        match self.keys.as_slice() {
            [section, key] if section == "params" => Some(key),
            _ => None,
        }
    }

    /// What is wrong or needless, once all nodes were made.
    pub(crate) fn verdict(&self) -> Option<Diagnostic> {
        if !self.matched.get() {
            let message = format!("`{}` matches no node", self.path);
            return Some(Diagnostic::new("E002", &self.key_origin, message));
        }
        let typed = matches!(self.item.origin, Origin::CommandLine(_));
        (typed && !self.changed.get()).then(|| {
            let message = format!("`{}` has this value without it", self.path);
            Diagnostic::new("W102", &self.item.origin, message)
        })
    }
}

fn table_entry(key: &str, origin: &Origin) -> Entry {
    let item = Item { value: ItemValue::Table(Table::default()), origin: origin.clone() };
    Entry { key: key.to_owned(), key_origin: origin.clone(), item }
}

/// Sets a dotted key, making tables on the way; returns what was there.
fn set_in(table: &mut Table, keys: &[&str], key_origin: &Origin, item: Item) -> Option<Item> {
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
