//! `pipe show`: a node as TOML with its templates and profiles resolved, where each value was set, and
//! what the store has of it.

use std::collections::BTreeMap;

use pipe_cache::{OutputRecord, Record};
use serde_json::{Value as Json, json};

use super::arguments::{Arguments, ShowArguments};
use super::figures::figures_of;
use super::status::size;
use super::study::Study;
use super::{CliError, print, print_json};
use crate::kind::{Figures, Registry};
use crate::pipeline::{InputSource, Node, NodeId, Origin, Origins, Pipeline, RemotePolicy};
use crate::plan::{Plan, Wanted};
use crate::why::place;

/// So many figures of an output are told to a person.
const SHOWN_FIGURES: usize = 60;

/// A node that is shown, and the port if only one is.
struct Shown {
    id: NodeId,
    port: Option<String>,
}

pub(crate) fn show(arguments: &Arguments, show: &ShowArguments, registry: &Registry) -> Result<u8, CliError> {
    let study = Study::load(arguments, &show.pipeline, registry)?;
    let pipeline = &study.pipeline;
    let store = study.open_existing()?;
    let (plan, _, history) = study.plan(store.as_ref(), &Wanted::default(), registry.numerics())?;
    let mut shown: Vec<Shown> = Vec::new();
    for target in &show.targets {
        for (id, port) in study.select_ports(target)? {
            shown.push(Shown { id, port });
        }
    }
    if show.targets.is_empty() {
        shown.extend(plan.order.iter().map(|id| Shown { id: *id, port: None }));
    }
    let earlier = |id: NodeId| -> Vec<Record> {
        let node = &pipeline.nodes[id.0];
        history.records(&node.name, plan.keys[id.0].as_ref().map(|(digest, _)| digest))
    };
    // Of a node that was asked for by name, also what its results say.
    let figures = |shown: &Shown| -> Result<BTreeMap<String, Figures>, CliError> {
        let (Some(store), Some(record)) = (&store, &plan.records[shown.id.0]) else {
            return Ok(BTreeMap::new());
        };
        let mut figures = BTreeMap::new();
        let wanted = |port: &String| shown.port.as_ref().is_none_or(|wanted| wanted == port);
        for (port, output) in
            record.outputs.iter().filter(|(port, _)| !show.targets.is_empty() && wanted(port))
        {
            figures.extend(figures_of(store, registry, output)?.map(|found| (port.clone(), found)));
        }
        Ok(figures)
    };
    if arguments.global.json {
        let node = |shown: &Shown| -> Result<Json, CliError> {
            let mut json = node_json(pipeline, &plan, shown, &earlier(shown.id));
            json["figures"] = json!(figures(shown)?);
            Ok(json)
        };
        let nodes = shown.iter().map(node).collect::<Result<Vec<Json>, _>>()?;
        return print_json(&json!({ "version": 1, "nodes": nodes }));
    }
    let text = |shown: &Shown| -> Result<String, CliError> {
        let text = node_text(pipeline, &plan, shown, &earlier(shown.id), show.resolved);
        Ok(text + &figures_text(&figures(shown)?))
    };
    print(&shown.iter().map(text).collect::<Result<Vec<String>, _>>()?.join("\n"))
}

/// The figures of each output, the first of many.
fn figures_text(figures: &BTreeMap<String, Figures>) -> String {
    let mut text = String::new();
    for (port, figures) in figures {
        for (name, value) in figures.iter().take(SHOWN_FIGURES) {
            let value = if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.4}") };
            text.push_str(&format!("# {port}: {name} = {value}\n"));
        }
        if figures.len() > SHOWN_FIGURES {
            let more = figures.len() - SHOWN_FIGURES;
            text.push_str(&format!("# {port}: and {more} more, which `--json` lists\n"));
        }
    }
    text
}

/// A node as a TOML table, with what is no part of a pipeline file in comments.
fn node_text(
    pipeline: &Pipeline,
    plan: &Plan,
    shown: &Shown,
    earlier: &[Record],
    with_origins: bool,
) -> String {
    let node = &pipeline.nodes[shown.id.0];
    let record = plan.records[shown.id.0].as_ref();
    let outputs = outputs_text(node, record, shown.port.as_deref());
    if shown.port.is_some() {
        return outputs;
    }
    let evicted = if plan.evicted.contains(&shown.id) { "; its files were evicted" } else { "" };
    let mut text = format!("[{}]  # {}{evicted}\n", key(&node.name), plan.words(shown.id).0);
    for (path, value, origin) in values(pipeline, node) {
        text.push_str(&format!("{path} = {}", toml(&value)));
        if with_origins {
            text.push_str(&format!("  # {}", place(pipeline, &origin)));
        }
        text.push('\n');
    }
    text.push_str(&outputs);
    if let Some(record) = record {
        text.push_str(&format!("# made {}\n", made(record)));
    }
    for record in earlier {
        text.push_str(&format!("# earlier: {}, {}\n", record.key.to_short(), made(record)));
    }
    text
}

fn outputs_text(node: &Node, record: Option<&Record>, port: Option<&str>) -> String {
    let mut text = String::new();
    for output in node.outputs.iter().filter(|output| port.is_none_or(|port| port == output.name)) {
        let stored = record.and_then(|record| record.outputs.get(&output.name));
        let state = stored.map_or_else(|| "not there yet".to_owned(), stored_text);
        text.push_str(&format!("# outputs.{}: {}, {state}\n", output.name, output.artifact.0));
    }
    text
}

fn stored_text(output: &OutputRecord) -> String {
    let rows = output.rows.map(|rows| format!("{rows} rows, ")).unwrap_or_default();
    let files = match output.files.len() {
        1 => String::new(),
        several => format!(" in {several} files"),
    };
    format!("{rows}{}{files}, {}", size(output.bytes()), output.content.to_short())
}

fn made(record: &Record) -> String {
    let meta = &record.meta;
    format!("{} in {:.1} s on {}, run {}", meta.created, meta.duration_seconds, meta.host, meta.run)
}

/// Every value of a node with its path and origin: kind, parameters to their leaves, inputs, resources.
fn values(pipeline: &Pipeline, node: &Node) -> Vec<(String, Json, Origin)> {
    let mut values = vec![("kind".to_owned(), node.description.name.into(), node.kind_origin.clone())];
    leaves("params", &node.params.json, "", &node.origins, &mut values);
    for input in &node.inputs {
        let sources: Vec<Json> =
            input.sources.iter().map(|source| source_text(pipeline, source).into()).collect();
        let value = match sources.as_slice() {
            [one] => one.clone(),
            _ => Json::Array(sources),
        };
        values.push((format!("inputs.{}", key(&input.name)), value, input.origin.clone()));
    }
    let resources = node.resources.json().map(|(name, value)| (format!("resources.{name}"), value));
    let retry = node.retry.json().map(|(name, value)| (format!("retry.{name}"), value));
    let checkpoint = node.checkpoint.json().map(|(name, value)| (format!("checkpoint.{name}"), value));
    let isolate = node.isolate.then(|| ("isolate".to_owned(), true.into()));
    let remote =
        (node.remote != RemotePolicy::default()).then(|| ("remote".to_owned(), node.remote.name().into()));
    for (path, value) in resources.chain(retry).chain(checkpoint).chain(isolate).chain(remote) {
        let origin = node.setting_origins.get(&path).cloned().unwrap_or(Origin::Default);
        values.push((path, value, origin));
    }
    values
}

/// The leaves of a table; TOML has no null, so what is not set is left out.
fn leaves(
    shown: &str,
    value: &Json,
    path: &str,
    origins: &Origins,
    values: &mut Vec<(String, Json, Origin)>,
) {
    match value {
        Json::Null => {}
        Json::Object(entries) if !entries.is_empty() => {
            for (name, value) in entries {
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(&format!("{shown}.{}", key(name)), value, &inner, origins, values);
            }
        }
        Json::Object(_) if path.is_empty() => {}
        _ => {
            let origin = origins.get(path).cloned().unwrap_or(Origin::Default);
            values.push((shown.to_owned(), value.clone(), origin));
        }
    }
}

/// A TOML key, quoted where it has to be.
fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { toml(&name.into()) }
}

/// A value on one line. JSON's strings, numbers and booleans read the same in TOML.
fn toml(value: &Json) -> String {
    match value {
        Json::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Json::Object(entries) => {
            let entries = entries.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<String> =
                entries.map(|(name, value)| format!("{} = {}", key(name), toml(value))).collect();
            if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) }
        }
        Json::String(text) => string(text),
        _ => value.to_string(),
    }
}

/// A basic string.
fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            control if control.is_control() => quoted.push_str(&format!("\\U{:08X}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

fn source_text(pipeline: &Pipeline, source: &InputSource) -> String {
    match source {
        InputSource::Node { node, port } => format!("{}.{port}", pipeline.nodes[node.0].name),
        InputSource::File { pattern, .. } => format!("file:{pattern}"),
        InputSource::Remote(remote) => remote.text().to_owned(),
        InputSource::Blob(digest) => format!("store:b3:{digest}"),
    }
}

fn node_json(pipeline: &Pipeline, plan: &Plan, shown: &Shown, earlier: &[Record]) -> Json {
    let node = &pipeline.nodes[shown.id.0];
    let record = plan.records[shown.id.0].as_ref();
    let origins: serde_json::Map<String, Json> = values(pipeline, node)
        .into_iter()
        .map(|(path, _, origin)| (path, place(pipeline, &origin).into()))
        .collect();
    let inputs: serde_json::Map<String, Json> = node
        .inputs
        .iter()
        .map(|input| {
            let sources: Vec<String> =
                input.sources.iter().map(|source| source_text(pipeline, source)).collect();
            (input.name.clone(), sources.into())
        })
        .collect();
    let outputs: serde_json::Map<String, Json> = record
        .iter()
        .flat_map(|record| &record.outputs)
        .filter(|(name, _)| shown.port.as_ref().is_none_or(|port| port == *name))
        .map(|(name, output)| (name.clone(), output_json(output)))
        .collect();
    json!({
        "node": node.name, "kind": node.description.name, "status": plan.words(shown.id).0,
        "key": plan.keys[shown.id.0].as_ref().map(|(digest, _)| digest.to_hex()),
        "numerics": plan.keys[shown.id.0].as_ref().map(|(_, key)| &key.numerics),
        "params": node.params.json, "resources": Json::Object(node.resources.json().map(|(name, value)| (name.to_owned(), value)).collect()),
        "origins": origins, "inputs": inputs, "outputs": outputs,
        "made": record.map(|record| &record.meta),
        "earlier": earlier.iter().map(|record| json!({ "key": record.key, "params": record.components().map(|components| &components.params), "made": record.meta })).collect::<Vec<_>>(),
    })
}

fn output_json(output: &OutputRecord) -> Json {
    let files: Vec<Json> = output
        .files
        .iter()
        .map(|file| json!({ "path": file.path, "bytes": file.bytes, "blob": file.blob }))
        .collect();
    json!({
        "type": output.artifact_type, "digest": output.content, "rows": output.rows, "bytes": output.bytes(),
        "files": files,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{key, toml};

    /// What is shown reads back as what it was.
    #[test]
    fn values_are_toml() {
        let value = json!({
            "text": "a \"quoted\" \\ word\n\u{1}ü", "list": [1, 2.5, true, {}], "table": { "a b": 1e-6, "": 0 },
        });
        let text = format!("{} = {}", key("odd key"), toml(&value));
        let read: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(&read["odd key"]).unwrap(), value);
    }
}
