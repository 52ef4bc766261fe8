//! `${name}`, `${name.field}` and `${name[0]}` in strings; `$${` is a literal `${`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, ItemValue, Table};
use super::reference::FILE;
use super::{order, suggestion};
use crate::pipeline::Origin;

/// Bytes and values that templates may bring into one value: they double what they name, so a few
/// lines could ask for more than any machine has.
const SIZE_LIMIT: usize = 1 << 22;
/// Nesting of a variable after its templates were replaced.
const DEPTH_LIMIT: usize = 100;
/// Axis values may name other axes, this many deep.
const AXIS_DEPTH_LIMIT: usize = 3;

/// What templates may name: variables, and inside a stage its axes.
pub(crate) struct Scope<'a> {
    vars: &'a Table,
    axes: BTreeMap<&'a str, &'a Item>,
    used: &'a RefCell<BTreeSet<String>>,
    /// Bytes and values that templates brought into the value at hand.
    brought: Cell<usize>,
}

/// The variables with all their templates replaced, each after those that it names.
pub(crate) fn resolve_vars(
    vars: &Table,
    used: &RefCell<BTreeSet<String>>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Table {
    let entries: Vec<&Entry> = vars.iter().collect();
    let places: BTreeMap<&str, usize> =
        entries.iter().enumerate().map(|(place, entry)| (entry.key.as_str(), place)).collect();
    let needs: Vec<Vec<usize>> = entries
        .iter()
        .map(|entry| names_in(&entry.item).iter().filter_map(|name| places.get(name).copied()).collect())
        .collect();
    let order = order::order(&needs);
    if !order.cycle.is_empty() {
        let names: Vec<&str> =
            order.cycle.iter().chain(order.cycle.first()).map(|place| entries[*place].key.as_str()).collect();
        let message = format!("variables need each other: {}", names.join(" -> "));
        let mut cycle = order.cycle.iter().zip(&names[1..]);
        let first =
            cycle.next().map(|(place, _)| Diagnostic::new("E006", &entries[*place].item.origin, message));
        diagnostics.extend(first.map(|first| {
            cycle.fold(first, |diagnostic, (place, next)| {
                diagnostic.also(&entries[*place].item.origin, format!("needs `{next}`"))
            })
        }));
    }
    let mut resolved = Table::default();
    for place in order.sorted {
        let entry = entries[place];
        let item = Scope::new(&resolved, used).resolve(&entry.item, diagnostics);
        let item = if measure(&item).1 > DEPTH_LIMIT {
            diagnostics.push(too_large(&entry.item.origin));
            Item::invalid(&item.origin)
        } else {
            item
        };
        resolved.insert(Entry { item, ..entry.clone() });
    }
    // What is in a cycle was reported: naming it is no further mistake.
    for entry in entries {
        if resolved.get(&entry.key).is_none() {
            used.borrow_mut().insert(entry.key.clone());
            resolved.insert(Entry { item: Item::invalid(&entry.item.origin), ..entry.clone() });
        }
    }
    resolved
}

fn too_large(origin: &Origin) -> Diagnostic {
    Diagnostic::new("E003", origin, "this is too large once its templates are replaced")
        .help(format!("the limit is {SIZE_LIMIT} bytes or values, nested {DEPTH_LIMIT} deep"))
}

/// Bytes and values in `item`, and how deep it nests.
fn measure(item: &Item) -> (usize, usize) {
    let children: Vec<(usize, usize)> = match &item.value {
        ItemValue::String(text) => return (text.len() + 1, 1),
        ItemValue::List(items) => items.iter().map(measure).collect(),
        ItemValue::Table(table) => table.iter().map(|entry| measure(&entry.item)).collect(),
        _ => return (1, 1),
    };
    children.iter().fold((1, 1), |(size, depth), (inner, below)| (size + inner, depth.max(below + 1)))
}

/// The names that templates in `item` begin with.
pub(crate) fn names_in(item: &Item) -> Vec<&str> {
    let mut names = Vec::new();
    let mut waiting = vec![item];
    while let Some(item) = waiting.pop() {
        match &item.value {
            ItemValue::String(text) => names.extend(pieces(text).filter_map(|piece| match piece {
                Piece::Template(path) => Some(name_of(path)),
                _ => None,
            })),
            ItemValue::List(items) => waiting.extend(items),
            ItemValue::Table(table) => waiting.extend(table.iter().map(|entry| &entry.item)),
            _ => {}
        }
    }
    names
}

fn name_of(path: &str) -> &str {
    path[..path.find(['.', '[']).unwrap_or(path.len())].trim()
}

/// A part of a string.
enum Piece<'a> {
    Text(&'a str),
    /// What stands between `${` and `}`.
    Template(&'a str),
    /// `${` without an end, to the end of the string.
    Open(&'a str),
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(tail) = rest.strip_prefix("$${") {
            rest = tail;
            return Some(Piece::Text("${"));
        }
        if let Some(inner) = rest.strip_prefix("${") {
            let whole = rest;
            return Some(match inner.split_once('}') {
                Some((path, tail)) => {
                    rest = tail;
                    Piece::Template(path)
                }
                None => {
                    rest = "";
                    Piece::Open(whole)
                }
            });
        }
        let end = [rest.find("$${"), rest.find("${")].into_iter().flatten().min().unwrap_or(rest.len());
        let (text, tail) = rest.split_at(end);
        rest = tail;
        Some(Piece::Text(text))
    })
}

impl<'a> Scope<'a> {
    /// A scope with resolved variables only; `used` collects the variables that were read.
    pub(crate) fn new(vars: &'a Table, used: &'a RefCell<BTreeSet<String>>) -> Self {
        Self { vars, axes: BTreeMap::new(), used, brought: Cell::new(0) }
    }

    /// The same with axes, which hide variables of the same name.
    pub(crate) fn with_axes(&self, axes: impl IntoIterator<Item = (&'a str, &'a Item)>) -> Self {
        Self { vars: self.vars, axes: axes.into_iter().collect(), used: self.used, brought: Cell::new(0) }
    }

    /// Replaces every template in `item`, tables and lists included. What cannot be replaced becomes
    /// invalid and is reported.
    pub(crate) fn resolve(&self, item: &Item, diagnostics: &mut Vec<Diagnostic>) -> Item {
        self.brought.set(0);
        self.resolve_inside(item, 0, diagnostics)
    }

    fn resolve_inside(&self, item: &Item, depth: usize, diagnostics: &mut Vec<Diagnostic>) -> Item {
        let value = match &item.value {
            ItemValue::String(text) if text.contains("${") => {
                return self.resolve_text(text, item, depth, diagnostics);
            }
            ItemValue::List(items) => ItemValue::List(
                items.iter().map(|item| self.resolve_inside(item, depth, diagnostics)).collect(),
            ),
            ItemValue::Table(table) => {
                let mut resolved = Table::with_capacity(table.iter().len());
                for entry in table.iter() {
                    let item = self.resolve_inside(&entry.item, depth, diagnostics);
                    resolved.insert(Entry {
                        key: entry.key.clone(),
                        key_origin: entry.key_origin.clone(),
                        item,
                    });
                }
                ItemValue::Table(resolved)
            }
            value => value.clone(),
        };
        Item { value, origin: item.origin.clone() }
    }

    fn resolve_text(&self, text: &str, item: &Item, depth: usize, diagnostics: &mut Vec<Diagnostic>) -> Item {
        let mut parts = pieces(text);
        // A string that is nothing but one template keeps the value's type, and shows where it was set.
        if let (Some(Piece::Template(path)), None) = (parts.next(), parts.next()) {
            return self
                .lookup(path, item, depth, diagnostics)
                .unwrap_or_else(|| Item::invalid(&item.origin));
        }
        let mut resolved = String::new();
        let mut valid = true;
        let mut beginning = None;
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => resolved.push_str(text),
                Piece::Open(rest) => {
                    let message = format!("`{rest}` has no closing brace");
                    let help = "write `$${` for the two characters themselves".to_owned();
                    diagnostics.push(Diagnostic::new("E002", &item.origin, message).help(help));
                    valid = false;
                }
                Piece::Template(path) => match self.lookup(path, item, depth, diagnostics) {
                    Some(Item { value: ItemValue::String(text), origin: from }) => {
                        // A path belongs to who writes its beginning: it is relative to that place.
                        if resolved == FILE {
                            beginning = Some(from);
                        }
                        resolved.push_str(&text);
                    }
                    Some(value) if matches!(value.value, ItemValue::List(_) | ItemValue::Table(_)) => {
                        let message = format!(
                            "`${{{path}}}` is {}, which has no place inside a string",
                            value.type_name()
                        );
                        diagnostics.push(Diagnostic::new("E003", &item.origin, message));
                        valid = false;
                    }
                    Some(value) if value.is_invalid() => valid = false,
                    Some(value) => resolved.push_str(&value.display()),
                    None => valid = false,
                },
            }
            if !valid {
                return Item::invalid(&item.origin);
            }
        }
        let origin = beginning.unwrap_or_else(|| item.origin.clone());
        Item { value: ItemValue::String(resolved), origin }
    }

    /// The value of `name`, `name.field` or `name[0]`, itself without templates; `None` if it was
    /// reported.
    fn lookup(&self, path: &str, at: &Item, depth: usize, diagnostics: &mut Vec<Diagnostic>) -> Option<Item> {
        let name = name_of(path);
        let rest = &path[path.find(['.', '[']).unwrap_or(path.len())..];
        let Some(axis) = self.axes.get(name) else {
            let Some(var) = self.vars.get(name) else {
                let known: Vec<&str> = self.axes.keys().copied().chain(self.vars.keys()).collect();
                let message = format!("`${{{path}}}`: neither a variable nor an axis is named `{name}`");
                diagnostics.push(Diagnostic::new("E002", &at.origin, message).help(suggestion(name, known)));
                return None;
            };
            self.used.borrow_mut().insert(name.to_owned());
            let found = part(var, rest, path, at, diagnostics)?;
            return self.bring(found, at, diagnostics).cloned();
        };
        // A table value is named by its `id` where a plain value is wanted.
        let id = axis.as_table().filter(|_| rest.is_empty()).and_then(|table| table.get("id"));
        let found = part(id.unwrap_or(axis), rest, path, at, diagnostics)?;
        if depth >= AXIS_DEPTH_LIMIT {
            let message = format!("`${{{path}}}`: the values of axes need each other");
            diagnostics.push(Diagnostic::new("E006", &at.origin, message));
            return None;
        }
        let found = self.bring(found, at, diagnostics)?;
        Some(self.resolve_inside(found, depth + 1, diagnostics))
    }

    /// Counts what a template brings; `None` once it is too much, which is reported once.
    fn bring<'i>(&self, found: &'i Item, at: &Item, diagnostics: &mut Vec<Diagnostic>) -> Option<&'i Item> {
        let before = self.brought.get();
        self.brought.set(before.saturating_add(measure(found).0));
        if self.brought.get() <= SIZE_LIMIT {
            return Some(found);
        }
        if before <= SIZE_LIMIT {
            diagnostics.push(too_large(&at.origin));
        }
        None
    }
}

/// Follows `.field` and `[0]`.
fn part<'i>(
    item: &'i Item,
    rest: &str,
    path: &str,
    at: &Item,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<&'i Item> {
    let mut current = item;
    let mut rest = rest;
    while !rest.is_empty() {
        if current.is_invalid() {
            return None;
        }
        let mut known = Vec::new();
        let (next, tail) = if let Some(field) = rest.strip_prefix('.') {
            let (field, tail) = field.split_at(field.find(['.', '[']).unwrap_or(field.len()));
            known.extend(current.as_table().into_iter().flat_map(Table::keys));
            (current.as_table().and_then(|table| table.get(field)), tail)
        } else {
            let (index, tail) =
                rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).unwrap_or((rest, ""));
            let index = index.trim().parse::<usize>().ok();
            (index.and_then(|index| current.as_list()?.get(index)), tail)
        };
        let Some(next) = next else {
            let message = format!("`${{{path}}}`: {} has no such part", current.type_name());
            let help = suggestion(rest.trim_start_matches('.'), known);
            diagnostics.push(Diagnostic::new("E002", &at.origin, message).help(help));
            return None;
        };
        current = next;
        rest = tail;
    }
    Some(current)
}
