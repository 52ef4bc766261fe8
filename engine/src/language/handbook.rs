//! The language of pipeline files as a page: what the schema says to editors, for people.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::schema::schema;
use crate::kind::{AnyKind, ArtifactType, InputClass, InputPort, Registry};

/// Markdown: the tables of a pipeline file, and every kind with its inputs, parameters and outputs.
pub fn reference(registry: &Registry) -> String {
    let schema = schema(registry);
    let mut page = String::from(
        "# Reference of the language\n\n\
         Made by `pipe schema --format md`; a test keeps it current. What the words mean, and templates, matrices, \
         references and profiles: [the language of a study](pipeline-language.md).\n\n",
    );
    page.push_str("## Tables of a pipeline file\n\n");
    let tables = &schema["properties"];
    for (heading, path) in [
        ("[pipeline]", "/pipeline"),
        ("[stage.NAME]", "/stage/additionalProperties"),
        ("[stage.NAME.resources]", "/stage/additionalProperties/properties/resources"),
        ("[stage.NAME.retry]", "/stage/additionalProperties/properties/retry"),
        ("[stage.NAME.checkpoint]", "/stage/additionalProperties/properties/checkpoint"),
        ("[executor]", "/executor"),
        ("[remote]", "/remote"),
        ("[profile.NAME]", "/profile/additionalProperties"),
    ] {
        let table = tables.pointer(path).unwrap_or(&Json::Null);
        page.push_str(&format!("### `{heading}`\n\n"));
        page.push_str(&properties(table, table, ""));
    }
    page.push_str("## Stage kinds\n\n");
    for (name, kind) in registry.iter() {
        page.push_str(&of_kind(name, kind.as_ref()));
    }
    page
}

fn of_kind(name: &str, kind: &dyn AnyKind) -> String {
    let description = kind.describe();
    let mut page = format!("### `{name}`\n\n{}.\n\n", capital(&sentence(description.summary)));
    if !description.inputs.is_empty() || description.free_inputs.is_some() {
        page.push_str("| input | type | |\n| --- | --- | --- |\n");
        let free = description.free_inputs.as_ref().map(|port| ("any name", port));
        let named = description.inputs.iter().map(|port| (port.name, port));
        for (name, port) in named.chain(free) {
            let name = if name == "any name" { name.to_owned() } else { format!("`{name}`") };
            page.push_str(&format!("| {name} | {} | {} |\n", types(port.accepts), cell(&of_port(port))));
        }
        page.push('\n');
    }
    let schema = kind.schema();
    let params = properties(&schema, &schema, "");
    if !params.is_empty() {
        page.push_str(&params);
    }
    // With the defaults; parameters without one have to be given before the outputs are known.
    if let Ok(resolved) = kind.resolve(&Json::Object(serde_json::Map::new())) {
        page.push_str("| output | type | |\n| --- | --- | --- |\n");
        for port in kind.outputs(&resolved) {
            page.push_str(&format!(
                "| `{}` | `{}` | {} |\n",
                port.name,
                port.artifact.0,
                cell(&sentence(&port.summary))
            ));
        }
        page.push('\n');
    } else {
        page.push_str("Outputs depend on the parameters: `pipe show STUDY NODE` lists them.\n\n");
    }
    page
}

fn types(types: &[ArtifactType]) -> String {
    if types.is_empty() {
        return "any".to_owned();
    }
    types.iter().map(|one| format!("`{}`", one.0)).collect::<Vec<_>>().join(", ")
}

fn of_port(port: &InputPort) -> String {
    let mut text = sentence(port.summary);
    let class = match port.class {
        InputClass::Map | InputClass::Reduce => "row by row",
        InputClass::Lookup => "only the rows that are named",
        InputClass::Whole => "",
    };
    let notes: Vec<&str> =
        [if port.required { "" } else { "optional" }, if port.many { "one or many" } else { "" }, class]
            .into_iter()
            .filter(|note| !note.is_empty())
            .collect();
    if !notes.is_empty() {
        text.push_str(&format!(" ({})", notes.join("; ")));
    }
    text
}

/// The properties of an object as a table, those of nested objects by their paths; empty if there are none.
fn properties(table: &Json, root: &Json, prefix: &str) -> String {
    let mut rows = BTreeMap::new();
    collect(table, root, prefix, &mut rows, 0);
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::from("| key | type | default | |\n| --- | --- | --- | --- |\n");
    for (name, [kind, default, meaning]) in rows {
        text.push_str(&format!("| `{name}` | {kind} | {default} | {meaning} |\n"));
    }
    text.push('\n');
    text
}

/// Schemas that refer to themselves end here.
const DEEPEST: usize = 4;

fn collect(table: &Json, root: &Json, prefix: &str, rows: &mut BTreeMap<String, [String; 3]>, depth: usize) {
    let table = followed(table, root);
    let required: Vec<&str> =
        table["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    for (name, property) in table["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        let inner = followed(property, root);
        let default = match property.get("default").or_else(|| inner.get("default")) {
            Some(Json::Null) | None if required.contains(&name.as_str()) => "required".to_owned(),
            Some(Json::Null) | None => String::new(),
            Some(default) => format!("`{}`", cell(&default.to_string())),
        };
        let described = property.get("description").or_else(|| inner.get("description"));
        let meaning = described.and_then(Json::as_str).map(sentence).unwrap_or_default();
        let choices = choices(inner, root);
        let meaning =
            [meaning, choices].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
        rows.insert(path.clone(), [cell(&type_of(property, root)), default, cell(&meaning)]);
        if depth < DEEPEST && inner.get("properties").is_some() && prefix.matches('.').count() < 2 {
            // These have tables of their own.
            let has_own = depth == 0 && ["resources", "retry", "checkpoint"].contains(&name.as_str());
            if !has_own {
                collect(inner, root, &format!("{path}."), rows, depth + 1);
            }
        }
    }
}

/// A schema behind references, and behind "this or nothing" and "this or a template".
fn followed<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    let mut schema = schema;
    for _ in 0..8 {
        let target = schema["$ref"].as_str().and_then(|path| root.pointer(path.trim_start_matches('#')));
        let single = |list: &'a Json| {
            let members = list.as_array().into_iter().flatten();
            let mut members = members.filter(|member| member["type"] != "null" && !is_template(member));
            members.next().filter(|_| members.next().is_none())
        };
        let next = target.or_else(|| single(&schema["anyOf"])).or_else(|| single(&schema["allOf"]));
        match next {
            Some(next) => schema = next,
            None => break,
        }
    }
    schema
}

/// What stands beside a type because a template may take its place.
fn is_template(schema: &Json) -> bool {
    schema["pattern"] == "\\$\\{" && schema["type"] == "string"
}

/// The type of a value in words.
fn type_of(schema: &Json, root: &Json) -> String {
    let inner = followed(schema, root);
    if inner.get("enum").is_some() || inner.get("const").is_some() || inner.get("oneOf").is_some() {
        return "one of".to_owned();
    }
    let alone = |name: &str| -> String {
        match name {
            "array" => match inner.get("items") {
                Some(items) => format!("list of {}", type_of(items, root)),
                None => "list".to_owned(),
            },
            "object" => "table".to_owned(),
            "boolean" => "truth value".to_owned(),
            "number" => "number".to_owned(),
            "integer" => "whole number".to_owned(),
            "string" => "text".to_owned(),
            other => other.to_owned(),
        }
    };
    match &inner["type"] {
        Json::String(name) => alone(name),
        Json::Array(names) => {
            // A text that has to hold a template is one for it.
            let only_template = inner["pattern"] == "\\$\\{";
            let names = names.iter().filter_map(Json::as_str);
            let names = names.filter(|name| *name != "null" && !(only_template && *name == "string"));
            names.map(alone).collect::<Vec<_>>().join(" or ")
        }
        _ => match inner["anyOf"].as_array() {
            Some(members) => {
                let members =
                    members.iter().filter(|member| member["type"] != "null" && !is_template(member));
                let mut types: Vec<String> = Vec::new();
                for name in members.map(|member| type_of(member, root)) {
                    if !types.contains(&name) {
                        types.push(name);
                    }
                }
                types.join(" or ")
            }
            None => String::new(),
        },
    }
}

/// The values of an enumeration with what they mean.
fn choices(schema: &Json, root: &Json) -> String {
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("`{}`", bare(value))).collect::<Vec<_>>().join(", ");
    }
    if let Some(value) = schema.get("const") {
        return format!("`{}`", bare(value));
    }
    let Some(members) = schema["oneOf"].as_array() else { return String::new() };
    let one = |member: &Json| {
        let member = followed(member, root);
        let values = choices(member, root);
        match member["description"].as_str() {
            Some(meaning) => format!("{values} {}", sentence(meaning)),
            None => values,
        }
    };
    members.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn bare(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().collect::<String>());
    first.unwrap_or_default() + characters.as_str()
}

/// A sentence on one line without its full stop.
fn sentence(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_suffix('.').map_or(line.clone(), str::to_owned)
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
