//! `${name}`, `${name.field}` and `${name[0]}` in strings; `$${` is a literal `${`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, ItemValue, Table};
use super::suggestion;

/// What templates may name: variables, and inside a stage its axes.
pub(crate) struct Scope<'a> {
    vars: &'a Table,
    axes: BTreeMap<&'a str, &'a Item>,
    used: &'a RefCell<BTreeSet<String>>,
}

impl<'a> Scope<'a> {
    /// A scope with variables only; `used` collects the variables that were read.
    pub(crate) fn new(vars: &'a Table, used: &'a RefCell<BTreeSet<String>>) -> Self {
        Self { vars, axes: BTreeMap::new(), used }
    }

    /// The same with axes, which hide variables of the same name.
    pub(crate) fn with_axes(&self, axes: impl IntoIterator<Item = (&'a str, &'a Item)>) -> Self {
        Self { vars: self.vars, axes: axes.into_iter().collect(), used: self.used }
    }

    /// Replaces every template in `item`, tables and lists included.
    pub(crate) fn resolve(&self, item: &Item, diagnostics: &mut Vec<Diagnostic>) -> Item {
        self.resolve_inside(item, &mut Vec::new(), diagnostics)
    }

    fn resolve_inside(&self, item: &Item, open: &mut Vec<String>, diagnostics: &mut Vec<Diagnostic>) -> Item {
        let value = match &item.value {
            ItemValue::String(text) if text.contains("${") => {
                return self.resolve_text(text, item, open, diagnostics);
            }
            ItemValue::List(items) => ItemValue::List(
                items.iter().map(|item| self.resolve_inside(item, open, diagnostics)).collect(),
            ),
            ItemValue::Table(table) => {
                let mut resolved = Table::default();
                for entry in table.iter() {
                    resolved.insert(Entry {
                        key: entry.key.clone(),
                        key_origin: entry.key_origin.clone(),
                        item: self.resolve_inside(&entry.item, open, diagnostics),
                    });
                }
                ItemValue::Table(resolved)
            }
            value => value.clone(),
        };
        Item { value, origin: item.origin.clone() }
    }

    fn resolve_text(
        &self,
        text: &str,
        item: &Item,
        open: &mut Vec<String>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Item {
        // A string that is nothing but one template keeps the value's type.
        if let Some(inner) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
            && !inner.contains(['{', '}'])
        {
            return match self.lookup(inner, item, open, diagnostics) {
                // The value shows where it was set, unless only its use has a place in a file.
                Some(found) => found,
                None => Item { value: ItemValue::String(String::new()), origin: item.origin.clone() },
            };
        }
        let mut resolved = String::new();
        let mut rest = text;
        while let Some(place) = rest.find("${") {
            if rest[..place].ends_with('$') {
                resolved.push_str(&rest[..place - 1]);
                resolved.push_str("${");
                rest = &rest[place + 2..];
                continue;
            }
            resolved.push_str(&rest[..place]);
            let Some(end) = rest[place..].find('}') else {
                let message = format!("`{}` has no closing brace", &rest[place..]);
                diagnostics.push(
                    Diagnostic::new("E002", &item.origin, message)
                        .help("write `$${` for the two characters themselves".to_owned()),
                );
                rest = "";
                break;
            };
            let inner = &rest[place + 2..place + end];
            if let Some(value) = self.lookup(inner, item, open, diagnostics) {
                match &value.value {
                    ItemValue::String(text) => resolved.push_str(text),
                    ItemValue::List(_) | ItemValue::Table(_) => {
                        let message = format!(
                            "`${{{inner}}}` is {}, which has no place inside a string",
                            value.type_name()
                        );
                        diagnostics.push(Diagnostic::new("E003", &item.origin, message));
                    }
                    _ => resolved.push_str(&value.display()),
                }
            }
            rest = &rest[place + end + 1..];
        }
        resolved.push_str(rest);
        Item { value: ItemValue::String(resolved), origin: item.origin.clone() }
    }

    /// The value of `name`, `name.field` or `name[0]`, itself without templates.
    fn lookup(
        &self,
        path: &str,
        at: &Item,
        open: &mut Vec<String>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Option<Item> {
        let name_end = path.find(['.', '[']).unwrap_or(path.len());
        let name = path[..name_end].trim();
        let mut current = if let Some(axis) = self.axes.get(name) {
            // A table value is named by its `id` where a plain value is wanted.
            match (&axis.value, path.len() == name_end) {
                (ItemValue::Table(table), true) => {
                    table.get("id").cloned().unwrap_or_else(|| (*axis).clone())
                }
                _ => (*axis).clone(),
            }
        } else if let Some(var) = self.vars.get(name) {
            self.used.borrow_mut().insert(name.to_owned());
            if open.iter().any(|open| open == name) {
                let message = format!("variables refer to each other: {} -> {name}", open.join(" -> "));
                diagnostics.push(Diagnostic::new("E006", &at.origin, message));
                return None;
            }
            open.push(name.to_owned());
            let vars_only = Scope { vars: self.vars, axes: BTreeMap::new(), used: self.used };
            let value = vars_only.resolve_inside(var, open, diagnostics);
            open.pop();
            value
        } else {
            let known: Vec<&str> = self.axes.keys().copied().chain(self.vars.keys()).collect();
            let message = format!("`${{{path}}}`: neither a variable nor an axis is named `{name}`");
            diagnostics.push(Diagnostic::new("E002", &at.origin, message).help(suggestion(name, known)));
            return None;
        };
        let mut rest = &path[name_end..];
        while !rest.is_empty() {
            let next = if let Some(field) = rest.strip_prefix('.') {
                let end = field.find(['.', '[']).unwrap_or(field.len());
                rest = &field[end..];
                current.as_table().and_then(|table| table.get(&field[..end])).cloned()
            } else {
                let (index, tail) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))?;
                rest = tail;
                let index = index.trim().parse::<usize>().ok();
                index.and_then(|index| current.as_list()?.get(index)).cloned()
            };
            let Some(next) = next else {
                let message = format!("`${{{path}}}`: `{}` has no such part", current.display());
                diagnostics.push(Diagnostic::new("E002", &at.origin, message));
                return None;
            };
            current = next;
        }
        Some(current)
    }
}
