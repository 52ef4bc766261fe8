//! Parameters against the JSON Schema of their kind, with the place of every mistake.

use serde_json::{Map, Value as Json};

use super::diagnostic::{Diagnostic, Severity};
use super::item::{Entry, Item, ItemValue, Table};
use super::suggestion;
use crate::pipeline::{Origin, Origins};

/// Checks `params` and converts integers to floats where the schema wants numbers. What is returned
/// can be given to [`AnyKind::resolve`](crate::AnyKind::resolve) if the second value, whether there
/// was no error, is true.
pub(crate) fn check(
    schema: &Json,
    params: &Table,
    stage_origin: &Origin,
    diagnostics: &mut Vec<Diagnostic>,
) -> (Json, bool) {
    let mut checker = Checker { diagnostics, valid: true };
    let json = checker.table(schema, params, stage_origin, "");
    (json, checker.valid)
}

struct Checker<'a> {
    diagnostics: &'a mut Vec<Diagnostic>,
    valid: bool,
}

impl Checker<'_> {
    fn report(&mut self, diagnostic: Diagnostic) {
        self.valid &= diagnostic.severity == Severity::Warning;
        self.diagnostics.push(diagnostic);
    }

    fn table(&mut self, schema: &Json, table: &Table, origin: &Origin, path: &str) -> Json {
        let none = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&none);
        let additional = &schema["additionalProperties"];
        let mut checked = Map::new();
        for entry in table.iter() {
            let inner = dotted(path, &entry.key);
            match properties.get(&entry.key) {
                Some(property) => {
                    let value = self.value(property, &entry.item, &inner);
                    checked.insert(entry.key.clone(), value);
                }
                None if additional.is_object() => {
                    let value = self.value(additional, &entry.item, &inner);
                    checked.insert(entry.key.clone(), value);
                }
                None if *additional == Json::Bool(false) || !properties.is_empty() => {
                    self.unknown(entry, properties);
                }
                None => {
                    checked.insert(entry.key.clone(), entry.item.json());
                }
            }
        }
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            if table.get(required).is_none() {
                let message = format!("parameter `{}` is missing", dotted(path, required));
                self.report(Diagnostic::new("E010", origin, message));
            }
        }
        Json::Object(checked)
    }

    fn unknown(&mut self, entry: &Entry, properties: &Map<String, Json>) {
        let message = format!("unknown parameter `{}`", entry.key);
        let help = suggestion(&entry.key, properties.keys().map(String::as_str));
        self.report(Diagnostic::new("E002", &entry.key_origin, message).help(help));
    }

    fn value(&mut self, schema: &Json, item: &Item, path: &str) -> Json {
        if item.is_invalid() {
            self.valid = false;
            return Json::Null;
        }
        let variants: Vec<&Json> = ["anyOf", "oneOf"]
            .iter()
            .filter_map(|key| schema[*key].as_array())
            .flatten()
            .filter(|variant| variant["type"] != "null")
            .collect();
        match variants.as_slice() {
            [] => {}
            [only] => return self.value(&merged(schema, only), item, path),
            several => return self.one_of(schema, several, item, path),
        }
        if let Some(inner) = schema["allOf"].as_array().and_then(|all| all.first()) {
            return self.value(&merged(schema, inner), item, path);
        }
        if let Some(allowed) = allowed_values(schema) {
            let json = item.json();
            if allowed.contains(&json) {
                return json;
            }
            let names: Vec<&str> = allowed.iter().filter_map(Json::as_str).collect();
            let help = item.as_str().and_then(|text| suggestion(text, names.iter().copied()));
            let help = help.filter(|help| help.starts_with("did"));
            let message = format!("parameter `{path}` cannot be {}", item.display());
            let all: Vec<String> = allowed.iter().map(Json::to_string).collect();
            let all = format!("it has to be one of {}{}", all.join(", "), default_of(schema));
            self.report(Diagnostic::new("E003", &item.origin, message).help(help).help(all));
            return Json::Null;
        }
        let types: Vec<&str> = match &schema["type"] {
            Json::String(name) => vec![name],
            Json::Array(names) => names.iter().filter_map(Json::as_str).collect(),
            _ => Vec::new(),
        };
        let accepts = |name: &str| types.is_empty() || types.contains(&name);
        match &item.value {
            ItemValue::String(text) if !accepts("string") => {
                let number = text.parse::<f64>().ok().filter(|value| value.is_finite());
                match number.filter(|_| accepts("number") || accepts("integer")) {
                    Some(number) => {
                        let message =
                            format!("parameter `{path}` is a number written as the string {text:?}");
                        self.report(
                            Diagnostic::new("W103", &item.origin, message)
                                .help("leave out the quotes".to_owned()),
                        );
                        let value = match text.parse::<i64>() {
                            Ok(value) if accepts("integer") => ItemValue::Integer(value),
                            _ => ItemValue::Float(number),
                        };
                        self.value(schema, &Item { value, origin: item.origin.clone() }, path)
                    }
                    None => self.wrong_type(schema, &types, item, path),
                }
            }
            ItemValue::String(_) => item.json(),
            ItemValue::Integer(value) if accepts("integer") => {
                self.in_range(schema, *value as f64, item, path, Json::from(*value))
            }
            ItemValue::Integer(value) if accepts("number") => {
                let value = *value as f64;
                self.in_range(schema, value, item, path, Json::from(value))
            }
            ItemValue::Float(value) if accepts("number") => {
                self.in_range(schema, *value, item, path, Json::from(*value))
            }
            ItemValue::Bool(value) if accepts("boolean") => Json::from(*value),
            ItemValue::List(items) if accepts("array") => {
                let length = items.len() as u64;
                let (least, most) = (schema["minItems"].as_u64(), schema["maxItems"].as_u64());
                if least.is_some_and(|least| length < least) || most.is_some_and(|most| length > most) {
                    let message = format!("parameter `{path}` has {length} items");
                    let bounds = match (least, most) {
                        (Some(least), Some(most)) if least == most => format!("exactly {least}"),
                        (Some(least), Some(most)) => format!("{least} to {most}"),
                        (Some(least), None) => format!("at least {least}"),
                        (None, most) => format!("at most {}", most.unwrap_or_default()),
                    };
                    let help = format!("it has to have {bounds}{}", default_of(schema));
                    self.report(Diagnostic::new("E003", &item.origin, message).help(help));
                }
                let element = &schema["items"];
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.value(element, item, &format!("{path}[{index}]")))
                    .collect()
            }
            ItemValue::Table(table) if accepts("object") => self.table(schema, table, &item.origin, path),
            _ => self.wrong_type(schema, &types, item, path),
        }
    }

    /// The first variant that fits without a mistake; otherwise the mistakes of the one of this type.
    fn one_of(&mut self, schema: &Json, variants: &[&Json], item: &Item, path: &str) -> Json {
        let mut enumerated: Vec<Json> = Vec::new();
        let mut nearest: Option<Vec<Diagnostic>> = None;
        for variant in variants {
            let mut diagnostics = Vec::new();
            let mut checker = Checker { diagnostics: &mut diagnostics, valid: true };
            let value = checker.value(variant, item, path);
            if checker.valid {
                self.diagnostics.append(&mut diagnostics);
                return value;
            }
            enumerated.extend(allowed_values(variant).unwrap_or_default());
            if variant["type"] == json_type(item) {
                nearest.get_or_insert(diagnostics);
            }
        }
        if enumerated.len() == variants.len() || nearest.is_none() {
            let flat = serde_json::json!({ "enum": enumerated, "default": schema["default"] });
            if enumerated.is_empty() {
                return self.wrong_type(schema, &[], item, path);
            }
            return self.value(&flat, item, path);
        }
        nearest.into_iter().flatten().for_each(|diagnostic| self.report(diagnostic));
        Json::Null
    }

    fn in_range(&mut self, schema: &Json, value: f64, item: &Item, path: &str, json: Json) -> Json {
        let least = schema["minimum"].as_f64();
        let most = schema["maximum"].as_f64();
        let above = schema["exclusiveMinimum"].as_f64();
        let below = schema["exclusiveMaximum"].as_f64();
        let inside = least.is_none_or(|least| value >= least)
            && most.is_none_or(|most| value <= most)
            && above.is_none_or(|above| value > above)
            && below.is_none_or(|below| value < below);
        if !inside {
            let bounds: Vec<String> =
                [(least, "at least"), (above, "above"), (most, "at most"), (below, "below")]
                    .into_iter()
                    .filter_map(|(bound, words)| Some(format!("{words} {}", bound?)))
                    .collect();
            let message = format!("parameter `{path}` is out of range: {}", item.display());
            let help = format!("it has to be {}{}", bounds.join(" and "), default_of(schema));
            self.report(Diagnostic::new("E003", &item.origin, message).help(help));
        }
        json
    }

    fn wrong_type(&mut self, schema: &Json, types: &[&str], item: &Item, path: &str) -> Json {
        let words: Vec<&str> = types
            .iter()
            .filter_map(|name| match *name {
                "string" => Some("a string"),
                "integer" => Some("an integer"),
                "number" => Some("a number"),
                "boolean" => Some("a boolean"),
                "array" => Some("a list"),
                "object" => Some("a table"),
                _ => None,
            })
            .collect();
        let expected = if words.is_empty() { "something else".to_owned() } else { words.join(" or ") };
        let message = format!("parameter `{path}` has to be {expected}, this is {}", item.type_name());
        let help = format!("found {}{}", item.display(), default_of(schema));
        self.report(Diagnostic::new("E003", &item.origin, message).help(help));
        Json::Null
    }
}

fn json_type(item: &Item) -> &'static str {
    match item.value {
        ItemValue::String(_) => "string",
        ItemValue::Integer(_) => "integer",
        ItemValue::Float(_) => "number",
        ItemValue::Bool(_) => "boolean",
        ItemValue::List(_) => "array",
        ItemValue::Table(_) => "object",
        ItemValue::Invalid => "null",
    }
}

fn allowed_values(schema: &Json) -> Option<Vec<Json>> {
    if let Some(values) = schema["enum"].as_array() {
        return Some(values.clone());
    }
    match &schema["const"] {
        Json::Null => None,
        value => Some(vec![value.clone()]),
    }
}

/// A schema that only refers to another keeps its own default and description.
fn merged(outer: &Json, inner: &Json) -> Json {
    let mut merged = inner.clone();
    if let (Some(merged), Some(default)) = (merged.as_object_mut(), outer.get("default")) {
        merged.insert("default".to_owned(), default.clone());
    }
    merged
}

fn default_of(schema: &Json) -> String {
    match &schema["default"] {
        Json::Null => String::new(),
        default => format!("; the default is {default}"),
    }
}

/// `inner` below `path`, as a dotted path.
pub(crate) fn dotted(path: &str, inner: &str) -> String {
    if path.is_empty() { inner.to_owned() } else { format!("{path}.{inner}") }
}

/// Where the value at a dotted path, or the nearest table or list around it, was written.
pub(crate) fn origin_of(params: &Table, path: &str) -> Option<Origin> {
    let origins: Origins = origins(params).into_iter().collect();
    let mut path = path;
    loop {
        if let Some(origin) = origins.get(path) {
            return Some(origin.clone());
        }
        path = &path[..path.rfind(['.', '['])?];
    }
}

/// The origins of all values of a table, with their dotted paths.
pub(crate) fn origins(table: &Table) -> Vec<(String, Origin)> {
    let mut origins = Vec::with_capacity(table.iter().len());
    let mut waiting: Vec<(String, &Table)> = vec![(String::new(), table)];
    while let Some((path, table)) = waiting.pop() {
        for entry in table.iter() {
            let inner = dotted(&path, &entry.key);
            origins.push((inner.clone(), entry.item.origin.clone()));
            if let ItemValue::Table(table) = &entry.item.value {
                waiting.push((inner, table));
            }
        }
    }
    origins
}
