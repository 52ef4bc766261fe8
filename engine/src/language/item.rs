//! TOML values that remember where they were written.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use crate::pipeline::Origin;

/// A value with its origin.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) value: ItemValue,
    pub(crate) origin: Origin,
}

/// A TOML value. Dates have no use in a study and are refused when read.
#[derive(Clone, Debug)]
pub(crate) enum ItemValue {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Item>),
    Table(Table),
    /// What could not be understood and was reported: nothing more is said of it.
    Invalid,
}

/// Tables of more entries have an index.
const FEW: usize = 16;

/// A table, in the order of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    /// Places by key; empty in a table of few entries, where looking at all of them is as fast.
    index: BTreeMap<String, usize>,
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_origin: Origin,
    pub(crate) item: Item,
}

impl Table {
    /// An empty table that will hold so many entries.
    pub(crate) fn with_capacity(entries: usize) -> Self {
        Self { entries: Vec::with_capacity(entries), index: BTreeMap::new() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Item> {
        self.entry(key).map(|entry| &entry.item)
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.place(key).map(|place| &self.entries[place])
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Item> {
        self.place(key).map(|place| &mut self.entries[place].item)
    }

    fn place(&self, key: &str) -> Option<usize> {
        if self.entries.len() <= FEW {
            self.entries.iter().position(|entry| entry.key == key)
        } else {
            self.index.get(key).copied()
        }
    }

    pub(crate) fn items_mut(&mut self) -> impl Iterator<Item = &mut Item> {
        self.entries.iter_mut().map(|entry| &mut entry.item)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.key.as_str())
    }

    /// Adds or replaces; returns the entry that was there.
    pub(crate) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        if let Some(place) = self.place(&entry.key) {
            return Some(std::mem::replace(&mut self.entries[place], entry));
        }
        self.entries.push(entry);
        let count = self.entries.len();
        if count > FEW {
            let new = if count == FEW + 1 { 0 } else { count - 1 };
            let places = self.entries.iter().enumerate().skip(new);
            self.index.extend(places.map(|(place, entry)| (entry.key.clone(), place)));
        }
        None
    }
}

impl IntoIterator for Table {
    type Item = Entry;
    type IntoIter = std::vec::IntoIter<Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl Item {
    /// The type's name, for people.
    pub(crate) fn type_name(&self) -> &'static str {
        match self.value {
            ItemValue::String(_) => "a string",
            ItemValue::Integer(_) => "an integer",
            ItemValue::Float(_) => "a float",
            ItemValue::Bool(_) => "a boolean",
            ItemValue::List(_) => "a list",
            ItemValue::Table(_) => "a table",
            ItemValue::Invalid => "invalid",
        }
    }

    /// An item that stands for one that was reported.
    pub(crate) fn invalid(origin: &Origin) -> Self {
        Self { value: ItemValue::Invalid, origin: origin.clone() }
    }

    pub(crate) fn is_invalid(&self) -> bool {
        matches!(self.value, ItemValue::Invalid)
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            ItemValue::String(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn as_table(&self) -> Option<&Table> {
        match &self.value {
            ItemValue::Table(table) => Some(table),
            _ => None,
        }
    }

    pub(crate) fn as_list(&self) -> Option<&[Item]> {
        match &self.value {
            ItemValue::List(items) => Some(items),
            _ => None,
        }
    }

    /// The value on one line, as TOML would write it.
    pub(crate) fn display(&self) -> String {
        match &self.value {
            ItemValue::String(text) => format!("{text:?}"),
            ItemValue::Integer(value) => value.to_string(),
            ItemValue::Float(value) => format!("{value:?}"),
            ItemValue::Bool(value) => value.to_string(),
            ItemValue::List(items) => {
                format!("[{}]", items.iter().map(Self::display).collect::<Vec<_>>().join(", "))
            }
            ItemValue::Table(table) => {
                let entries: Vec<String> =
                    table.iter().map(|entry| format!("{} = {}", entry.key, entry.item.display())).collect();
                format!("{{ {} }}", entries.join(", "))
            }
            ItemValue::Invalid => "?".to_owned(),
        }
    }

    /// As JSON; a float that is whole stays a float.
    pub(crate) fn json(&self) -> serde_json::Value {
        match &self.value {
            ItemValue::String(text) => text.clone().into(),
            ItemValue::Integer(value) => (*value).into(),
            ItemValue::Float(value) => (*value).into(),
            ItemValue::Bool(value) => (*value).into(),
            ItemValue::List(items) => items.iter().map(Self::json).collect(),
            ItemValue::Table(table) => {
                table.iter().map(|entry| (entry.key.clone(), entry.item.json())).collect()
            }
            ItemValue::Invalid => serde_json::Value::Null,
        }
    }
}

/// Parses one file; syntax errors become E001 and what could be read is returned.
pub(crate) fn parse(file: usize, text: &str, diagnostics: &mut Vec<Diagnostic>) -> Table {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let origin = Origin::File { file, span: span.clone(), profile: None };
        // A key that stands twice is a mistake of its own kind.
        if error.message().contains("duplicate key") {
            let key = text.get(span.clone()).unwrap_or_default().trim_matches(['"', '\'']);
            let diagnostic = Diagnostic::new("E007", &origin, format!("`{key}` is set twice"));
            let first = first_header(text, &span).or_else(|| first_of(table.get_ref(), key, &span));
            let first = first.map(|span| Origin::File { file, span, profile: None });
            diagnostics.push(match first {
                Some(first) => diagnostic.also(&first, "set here first"),
                None => diagnostic,
            });
        } else {
            diagnostics.push(Diagnostic::new("E001", &origin, error.message().trim().to_owned()));
        }
    }
    let origin = |span| Origin::File { file, span, profile: None };
    convert_table(table.get_ref(), &origin, diagnostics)
}

/// For a header such as `[stage.a]` that stands twice: the same part of the first one.
fn first_header(text: &str, second: &Range<usize>) -> Option<Range<usize>> {
    let line_start = text.get(..second.start)?.rfind('\n').map_or(0, |newline| newline + 1);
    let header = text.get(line_start..second.end)?;
    if !header.trim_start().starts_with('[') {
        return None;
    }
    let mut start = 0;
    for line in text[..line_start].split_inclusive('\n') {
        let rest = line.strip_prefix(header);
        if rest.is_some_and(|rest| rest.trim_start().starts_with(']')) {
            return Some(start + header.len() - second.len()..start + header.len());
        }
        start += line.len();
    }
    None
}

/// The last key of this name before `second`.
fn first_of(table: &DeTable<'_>, key: &str, second: &Range<usize>) -> Option<Range<usize>> {
    let mut first: Option<Range<usize>> = None;
    let mut tables = vec![table];
    let mut lists: Vec<&toml::de::DeArray<'_>> = Vec::new();
    loop {
        let values: Vec<&DeValue<'_>> = if let Some(table) = tables.pop() {
            for (name, _) in table {
                let span = name.span();
                let later = first.as_ref().is_none_or(|first| first.start < span.start);
                if name.get_ref() == key && span.start < second.start && later {
                    first = Some(span);
                }
            }
            table.values().map(|value| value.get_ref()).collect()
        } else if let Some(list) = lists.pop() {
            list.iter().map(|value| value.get_ref()).collect()
        } else {
            return first;
        };
        for value in values {
            match value {
                DeValue::Table(table) => tables.push(table),
                DeValue::Array(list) => lists.push(list),
                _ => {}
            }
        }
    }
}

/// Parses the right side of `--var` and `--set`: a TOML value, else the text as a string.
pub(crate) fn parse_option(option: &str, text: &str) -> Item {
    let origin = Origin::CommandLine(option.to_owned());
    let mut diagnostics = Vec::new();
    match DeValue::parse(text) {
        Ok(value) => {
            let item = convert(value.get_ref(), origin.clone(), &|_| origin.clone(), &mut diagnostics);
            if diagnostics.is_empty() {
                return item;
            }
            Item { value: ItemValue::String(text.to_owned()), origin }
        }
        Err(_) => Item { value: ItemValue::String(text.to_owned()), origin },
    }
}

type OriginOf<'a> = dyn Fn(Range<usize>) -> Origin + 'a;

fn convert_table(table: &DeTable<'_>, origin: &OriginOf<'_>, diagnostics: &mut Vec<Diagnostic>) -> Table {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| key.span().start);
    let mut converted = Table::with_capacity(entries.len());
    for (key, value) in entries {
        converted.insert(Entry {
            key: key.get_ref().to_string(),
            key_origin: origin(key.span()),
            item: convert(value.get_ref(), origin(value.span()), origin, diagnostics),
        });
    }
    converted
}

fn convert(
    value: &DeValue<'_>,
    place: Origin,
    origin: &OriginOf<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Item {
    let mut refuse = |message: String| {
        diagnostics.push(Diagnostic::new("E003", &place, message));
        ItemValue::Invalid
    };
    let value = match value {
        DeValue::String(text) => ItemValue::String(text.to_string()),
        DeValue::Integer(integer) => {
            match i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()) {
                Ok(value) => ItemValue::Integer(value),
                Err(_) => refuse(format!("`{}` does not fit into 64 bits", integer.as_str())),
            }
        }
        DeValue::Float(float) => match float.as_str().replace('_', "").parse::<f64>() {
            Ok(value) if value.is_finite() => ItemValue::Float(value),
            _ => refuse(format!("`{}` is not a finite number", float.as_str())),
        },
        DeValue::Boolean(value) => ItemValue::Bool(*value),
        DeValue::Datetime(date) => refuse(format!("`{date}` is a date; a study has no use for dates")),
        DeValue::Array(items) => ItemValue::List(
            items
                .iter()
                .map(|item| convert(item.get_ref(), origin(item.span()), origin, diagnostics))
                .collect(),
        ),
        DeValue::Table(table) => ItemValue::Table(convert_table(table, origin, diagnostics)),
    };
    Item { value, origin: place }
}
