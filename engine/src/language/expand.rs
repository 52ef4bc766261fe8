//! From stages to nodes: templates, kind, parameters, inputs and resources of each assignment.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::diagnostic::Diagnostic;
use super::files::Document;
use super::item::{Item, ItemValue, Table};
use super::matrix::{self, Matrix, node_name, value_name};
use super::overrides::{NODE_OVERRIDES, set_in};
use super::reference::{self, OutputReference, Reference};
use super::template::Scope;
use super::{params, suggestion};
use crate::kind::{AnyKind, InputPort, KindDescription, Registry, ResolvedParams};
use crate::pipeline::{InputSource, Node, NodeId, NodeInput, Origin, Resources, SourceFile, Stage};

/// What came of the stages.
pub(crate) struct Expanded {
    pub(crate) stages: Vec<Stage>,
    pub(crate) nodes: Vec<Node>,
    /// Variables that some template read.
    pub(crate) used_vars: BTreeSet<String>,
}

const STAGE_KEYS: [&str; 11] = [
    "kind",
    "doc",
    "matrix",
    "include",
    "exclude",
    "inputs",
    "params",
    "resources",
    "retry",
    "checkpoint",
    "frozen",
];

/// A node whose references are not resolved yet.
struct Draft {
    node: Node,
    inputs: Table,
    values: Vec<Item>,
}

/// Makes the nodes of all stages.
pub(crate) fn expand(
    document: &Document,
    registry: &Registry,
    sources: &[SourceFile],
    diagnostics: &mut Vec<Diagnostic>,
) -> Expanded {
    let used = RefCell::new(BTreeSet::new());
    let scope = Scope::new(&document.vars, &used);
    let matrices = matrix::expand_all(document, &scope, diagnostics);
    let mut kinds = KindCache { registry, known: BTreeMap::new() };
    let mut stages = Vec::new();
    let mut drafts: Vec<Draft> = Vec::new();
    for entry in document.stages.iter() {
        let Some(table) = entry.item.as_table() else {
            let message = format!("a stage has to be a table, this is {}", entry.item.type_name());
            diagnostics.push(Diagnostic::new("E003", &entry.item.origin, message));
            continue;
        };
        for key in table.iter() {
            if !STAGE_KEYS.contains(&key.key.as_str()) && key.key != NODE_OVERRIDES {
                let message = format!("unknown key `{}` of a stage", key.key);
                diagnostics.push(
                    Diagnostic::new("E002", &key.key_origin, message).help(suggestion(&key.key, STAGE_KEYS)),
                );
            }
        }
        let matrix = &matrices[&entry.key];
        let first = drafts.len();
        for values in &matrix.assignments {
            let axes = matrix.axes.iter().map(String::as_str).zip(values);
            let scope = scope.with_axes(axes);
            let draft =
                draft(&entry.key, &entry.key_origin, table, matrix, values, &scope, &mut kinds, diagnostics);
            drafts.extend(draft);
        }
        stages.push(Stage {
            name: entry.key.clone(),
            doc: table.get("doc").and_then(Item::as_str).map(str::to_owned),
            axes: matrix.axes.clone(),
            nodes: (first..drafts.len()).map(NodeId).collect(),
            origin: entry.key_origin.clone(),
        });
    }
    let nodes = connect(drafts, &stages, &matrices, sources, diagnostics);
    let used_vars = used.into_inner();
    Expanded { stages, nodes, used_vars }
}

/// Facts and schemas of kinds, computed once each.
struct KindCache<'a> {
    registry: &'a Registry,
    known: BTreeMap<String, (Arc<dyn AnyKind>, KindDescription, serde_json::Value)>,
}

impl KindCache<'_> {
    fn get(&mut self, name: &str) -> Option<(Arc<dyn AnyKind>, KindDescription, serde_json::Value)> {
        if !self.known.contains_key(name) {
            let kind = self.registry.get(name)?;
            let entry = (Arc::clone(kind), kind.describe(), kind.schema());
            self.known.insert(name.to_owned(), entry);
        }
        self.known.get(name).cloned()
    }
}

#[expect(clippy::too_many_arguments, reason = "all of it is the context of one node")]
fn draft(
    stage: &str,
    origin: &Origin,
    table: &Table,
    matrix: &Matrix,
    values: &[Item],
    scope: &Scope<'_>,
    kinds: &mut KindCache<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Draft> {
    let Some(kind_item) = table.get("kind") else {
        let message = format!("stage `{stage}` has no `kind`");
        diagnostics.push(Diagnostic::new("E010", origin, message));
        return None;
    };
    let kind_item = scope.resolve(kind_item, diagnostics);
    let Some((kind, description, schema)) = kind_item.as_str().and_then(|name| kinds.get(name)) else {
        let name = kind_item.as_str().unwrap_or_default();
        let help = suggestion(name, kinds.registry.iter().map(|(name, _)| name));
        let message = format!("unknown stage kind {}", kind_item.display());
        diagnostics.push(Diagnostic::new("E002", &kind_item.origin, message).help(help));
        return None;
    };
    let section = |key: &str, diagnostics: &mut Vec<Diagnostic>| -> Table {
        let Some(item) = table.get(key) else { return Table::default() };
        let item = scope.resolve(item, diagnostics);
        match item.value {
            ItemValue::Table(table) => table,
            _ => {
                let message = format!("`{key}` has to be a table, this is {}", item.type_name());
                diagnostics.push(Diagnostic::new("E003", &item.origin, message));
                Table::default()
            }
        }
    };
    let mut sections = Table::default();
    for key in ["params", "inputs", "resources"] {
        let value = section(key, diagnostics);
        let item = Item { value: ItemValue::Table(value), origin: origin.clone() };
        sections.insert(super::item::Entry { key: key.to_owned(), key_origin: origin.clone(), item });
    }
    apply_node_overrides(table, matrix, values, &mut sections);
    let take = |key: &str| sections.get(key).and_then(Item::as_table).cloned().unwrap_or_default();
    let param_table = take("params");

    let before = errors(diagnostics);
    let json = params::check(&schema, &param_table, origin, diagnostics);
    let resolved = if errors(diagnostics) > before {
        None
    } else {
        match kind.resolve(&json) {
            Ok(resolved) => Some(resolved),
            Err(problems) => {
                for problem in problems {
                    let at = origin_of(&param_table, &problem.path).unwrap_or_else(|| origin.clone());
                    let message = if problem.path.is_empty() {
                        problem.message
                    } else {
                        format!("parameter `{}`: {}", problem.path, problem.message)
                    };
                    diagnostics.push(Diagnostic::new("E003", &at, message).help(problem.help));
                }
                None
            }
        }
    };
    let resolved = resolved
        .or_else(|| kind.resolve(&serde_json::json!({})).ok())
        .unwrap_or(ResolvedParams { json: serde_json::json!({}), canonical: pipe_cache::Value::None });
    let outputs = kind.outputs(&resolved);
    let node = Node {
        stage: stage.to_owned(),
        name: node_name(stage, &matrix.axes, values),
        axes: matrix.axes.iter().cloned().zip(values.iter().map(value_name)).collect(),
        description,
        kind,
        params: resolved,
        origins: params::origins(&param_table),
        inputs: Vec::new(),
        outputs,
        resources: resources(&take("resources"), diagnostics),
        origin: origin.clone(),
    };
    Some(Draft { node, inputs: take("inputs"), values: values.to_vec() })
}

fn errors(diagnostics: &[Diagnostic]) -> usize {
    diagnostics.iter().filter(|diagnostic| diagnostic.code.starts_with('E')).count()
}

fn origin_of(params: &Table, path: &str) -> Option<Origin> {
    let origins = params::origins(params);
    let mut path = path;
    loop {
        if let Some(origin) = origins.get(path) {
            return Some(origin.clone());
        }
        path = &path[..path.rfind('.')?];
    }
}

/// Applies `--set stage.NAME[axis=value]...` to the nodes that match.
fn apply_node_overrides(stage: &Table, matrix: &Matrix, values: &[Item], sections: &mut Table) {
    let Some(overrides) = stage.get(NODE_OVERRIDES).and_then(Item::as_table) else { return };
    for entry in overrides.iter() {
        let Some((selector, path)) = entry.key.split_once(']') else { continue };
        let matches = selector.split(',').filter_map(|pair| pair.split_once('=')).all(|(axis, wanted)| {
            let place = matrix.axes.iter().position(|name| name == axis.trim());
            place.is_some_and(|place| value_name(&values[place]) == wanted.trim())
        });
        if matches {
            let keys: Vec<&str> = path.split('.').collect();
            set_in(sections, &keys, &entry.key_origin, entry.item.clone());
        }
    }
}

fn resources(table: &Table, diagnostics: &mut Vec<Diagnostic>) -> Resources {
    let mut resources = Resources { cpu: None, gpu: 0, memory: None, time: None };
    for entry in table.iter() {
        let integer = match entry.item.value {
            ItemValue::Integer(value) => u64::try_from(value).ok(),
            _ => None,
        };
        let text = entry.item.as_str();
        let understood = match entry.key.as_str() {
            "cpu" => integer.filter(|cpu| *cpu > 0).map(|cpu| resources.cpu = Some(cpu as usize)).is_some(),
            "gpu" => integer.map(|gpu| resources.gpu = gpu as usize).is_some(),
            "mem" => integer.or_else(|| bytes(text?)).map(|bytes| resources.memory = Some(bytes)).is_some(),
            "time" => integer.or_else(|| seconds(text?)).map(|time| resources.time = Some(time)).is_some(),
            _ => {
                let message = format!("unknown resource `{}`", entry.key);
                let help = suggestion(&entry.key, ["cpu", "gpu", "mem", "time"]);
                diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
                true
            }
        };
        if !understood {
            let message = format!("resource `{}` cannot be {}", entry.key, entry.item.display());
            diagnostics.push(
                Diagnostic::new("E003", &entry.item.origin, message)
                    .help("write `cpu = 4`, `gpu = 1`, `mem = \"16GiB\"`, `time = \"4h\"`".to_owned()),
            );
        }
    }
    resources
}

/// `16GiB`, `500MB`, `1000`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

/// `90s`, `10min`, `4h`, `2d`.
fn seconds(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match text[digits..].trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

/// Resolves the references of all drafts.
fn connect(
    drafts: Vec<Draft>,
    stages: &[Stage],
    matrices: &BTreeMap<String, Matrix>,
    sources: &[SourceFile],
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Node> {
    let by_name: BTreeMap<String, NodeId> =
        drafts.iter().enumerate().map(|(index, draft)| (draft.node.name.clone(), NodeId(index))).collect();
    let by_stage: BTreeMap<&str, &Stage> = stages.iter().map(|stage| (stage.name.as_str(), stage)).collect();
    let joiner = Joiner { drafts: &drafts, by_name: &by_name, by_stage: &by_stage, matrices };
    let mut all_inputs = Vec::with_capacity(drafts.len());
    for draft in &drafts {
        all_inputs.push(node_inputs(draft, &joiner, sources, diagnostics));
    }
    drafts.into_iter().zip(all_inputs).map(|(draft, inputs)| Node { inputs, ..draft.node }).collect()
}

fn node_inputs(
    draft: &Draft,
    joiner: &Joiner<'_>,
    sources: &[SourceFile],
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<NodeInput> {
    let description = &draft.node.description;
    let mut inputs = Vec::new();
    for entry in draft.inputs.iter() {
        let port = description.inputs.iter().find(|port| port.name == entry.key);
        let Some(port) = port.or(description.free_inputs.as_ref()) else {
            let known = description.inputs.iter().map(|port| port.name);
            let message = format!("kind `{}` has no input `{}`", description.name, entry.key);
            diagnostics.push(
                Diagnostic::new("E002", &entry.key_origin, message).help(suggestion(&entry.key, known)),
            );
            continue;
        };
        let written: Vec<&Item> = match &entry.item.value {
            ItemValue::List(items) => items.iter().collect(),
            _ => vec![&entry.item],
        };
        let mut members = Vec::new();
        for item in written {
            match item.as_str() {
                Some(text) => source(text, item, port, draft, joiner, sources, &mut members, diagnostics),
                None => {
                    let message =
                        format!("input `{}` has to be a reference, this is {}", entry.key, item.type_name());
                    diagnostics.push(Diagnostic::new("E003", &item.origin, message));
                }
            }
        }
        if members.len() > 1 && !port.many {
            let message = format!("input `{}` takes one artifact, {} are given", entry.key, members.len());
            diagnostics.push(
                Diagnostic::new("E003", &entry.item.origin, message)
                    .help("give every axis of the producer a value, or share its axes".to_owned()),
            );
        }
        inputs.push(NodeInput {
            name: entry.key.clone(),
            sources: members,
            with_axes: port.axes,
            origin: entry.item.origin.clone(),
        });
    }
    for port in description.inputs.iter().filter(|port| port.required) {
        if draft.inputs.get(port.name).is_none() {
            let message =
                format!("stage `{}` lacks input `{}`: {}", draft.node.stage, port.name, port.summary);
            diagnostics.push(Diagnostic::new("E010", &draft.node.origin, message));
        }
    }
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    inputs
}

#[expect(clippy::too_many_arguments, reason = "one reference with all that it is resolved against")]
fn source(
    text: &str,
    item: &Item,
    port: &InputPort,
    draft: &Draft,
    joiner: &Joiner<'_>,
    sources: &[SourceFile],
    members: &mut Vec<InputSource>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    match reference::parse(text) {
        Err((message, help)) => diagnostics.push(Diagnostic::new("E002", &item.origin, message).help(help)),
        Ok(Reference::Blob(digest)) => members.push(InputSource::Blob(digest)),
        Ok(Reference::File(pattern)) => {
            // Relative to the file that writes it; on the command line, to the pipeline file.
            let file = match &item.origin {
                Origin::File { file, .. } => sources.get(*file),
                _ => sources.first(),
            };
            let folder = file.and_then(|file| file.path.parent()).unwrap_or(Path::new(""));
            let joined = folder.join(&pattern);
            let path = std::path::absolute(&joined).unwrap_or(joined);
            members.push(InputSource::File { pattern, path });
        }
        Ok(Reference::Output(reference)) => {
            joiner.join(&reference, item, port, draft, members, diagnostics);
        }
    }
}

/// Finds the producers of a reference.
struct Joiner<'a> {
    drafts: &'a [Draft],
    by_name: &'a BTreeMap<String, NodeId>,
    by_stage: &'a BTreeMap<&'a str, &'a Stage>,
    matrices: &'a BTreeMap<String, Matrix>,
}

impl Joiner<'_> {
    fn join(
        &self,
        reference: &OutputReference,
        item: &Item,
        port: &InputPort,
        consumer: &Draft,
        members: &mut Vec<InputSource>,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        let Some(stage) = self.by_stage.get(reference.stage.as_str()) else {
            let help = suggestion(&reference.stage, self.by_stage.keys().copied());
            let message = format!("unknown stage `{}`", reference.stage);
            diagnostics.push(Diagnostic::new("E004", &item.origin, message).help(help));
            return;
        };
        let mut fixed: BTreeMap<&str, &str> = BTreeMap::new();
        let mut fan_in = false;
        for (axis, value) in &reference.selectors {
            if !stage.axes.contains(axis) {
                let help = suggestion(axis, stage.axes.iter().map(String::as_str));
                let message = format!("stage `{}` has no axis `{axis}`", stage.name);
                diagnostics.push(Diagnostic::new("E002", &item.origin, message).help(help));
                return;
            }
            fan_in |= value == "*";
            fixed.insert(axis, value);
        }
        // Axes that are not given join on the consumer's axis of the same name.
        let mut wanted: Vec<(&str, Option<String>)> = Vec::new();
        for axis in &stage.axes {
            let value = match fixed.get(axis.as_str()) {
                Some(&"*") => None,
                Some(value) => Some((*value).to_owned()),
                None => {
                    let own = consumer.node.axes.iter().position(|(name, _)| name == axis);
                    match own {
                        Some(place) => Some(value_name(&consumer.values[place])),
                        None => {
                            let message = format!(
                                "axis `{axis}` of stage `{}` is neither given nor an axis of `{}`",
                                stage.name, consumer.node.stage
                            );
                            diagnostics.push(Diagnostic::new("E008", &item.origin, message).help(format!(
                                "write `{0}[{axis}=VALUE]` for one, `{0}[{axis}=*]` for all, or give `{1}` the axis: `matrix = {{ {axis} = \"@{0}\" }}`",
                                stage.name, consumer.node.stage
                            )));
                            return;
                        }
                    }
                }
            };
            wanted.push((axis, value));
        }
        let exact: Option<Vec<(&str, String)>> =
            wanted.iter().map(|(axis, value)| Some((*axis, value.clone()?))).collect();
        let producers: Vec<NodeId> = match exact {
            Some(pairs) => {
                let name = if pairs.is_empty() {
                    stage.name.clone()
                } else {
                    let pairs: Vec<String> =
                        pairs.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
                    format!("{}[{}]", stage.name, pairs.join(","))
                };
                match self.by_name.get(&name) {
                    Some(id) => vec![*id],
                    None => {
                        // A producer that is itself in error was reported where it stands.
                        if stage.nodes.is_empty() {
                            return;
                        }
                        let excluded = self.matrices[&stage.name].excluded.contains(&name);
                        let code = if excluded { "E008" } else { "E002" };
                        let reason = if excluded { "is excluded from its matrix" } else { "does not exist" };
                        let message = format!("node `{name}` {reason}");
                        diagnostics.push(Diagnostic::new(code, &item.origin, message));
                        return;
                    }
                }
            }
            None => stage
                .nodes
                .iter()
                .copied()
                .filter(|id| {
                    let axes = &self.drafts[id.0].node.axes;
                    wanted
                        .iter()
                        .zip(axes)
                        .all(|((_, value), (_, actual))| value.as_ref().is_none_or(|value| value == actual))
                })
                .collect(),
        };
        if fan_in && !port.many {
            let message = format!("input `{}` takes one artifact, not a fan-in", port.name);
            diagnostics.push(Diagnostic::new("E003", &item.origin, message));
            return;
        }
        for id in producers {
            if let Some(port) = self.port(id, reference, item, port, diagnostics) {
                members.push(InputSource::Node { node: id, port });
            }
        }
    }

    /// The port of a producer, its type checked.
    fn port(
        &self,
        id: NodeId,
        reference: &OutputReference,
        item: &Item,
        wanted: &InputPort,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Option<String> {
        let producer = &self.drafts[id.0].node;
        let names = || producer.outputs.iter().map(|port| port.name.as_str());
        let found = match &reference.port {
            Some(name) => producer.outputs.iter().find(|port| port.name == *name),
            None if producer.outputs.len() == 1 => producer.outputs.first(),
            None => {
                let message = format!("stage `{}` has several outputs; say which", producer.stage);
                let help = format!("outputs are `{}`", names().collect::<Vec<_>>().join("`, `"));
                diagnostics.push(Diagnostic::new("E005", &item.origin, message).help(help));
                return None;
            }
        };
        let Some(found) = found else {
            let name = reference.port.as_deref().unwrap_or_default();
            let message = format!("stage `{}` has no output `{name}`", producer.stage);
            let help = suggestion(name, names())
                .unwrap_or_else(|| format!("outputs are `{}`", names().collect::<Vec<_>>().join("`, `")));
            diagnostics.push(Diagnostic::new("E005", &item.origin, message).help(help));
            return None;
        };
        if !wanted.accepts.is_empty() && !wanted.accepts.contains(&found.artifact) {
            let accepted: Vec<&str> = wanted.accepts.iter().map(|artifact| artifact.0).collect();
            let message = format!(
                "input `{}` takes `{}`, but `{}.{}` is `{}`",
                wanted.name,
                accepted.join("` or `"),
                producer.stage,
                found.name,
                found.artifact.0
            );
            let fitting: Vec<String> = producer
                .outputs
                .iter()
                .filter(|port| wanted.accepts.contains(&port.artifact))
                .map(|port| format!("`{}.{}`", producer.stage, port.name))
                .collect();
            let help = (!fitting.is_empty()).then(|| format!("{} would fit", fitting.join(", ")));
            diagnostics.push(
                Diagnostic::new("E009", &item.origin, message)
                    .help(help)
                    .also(&producer.origin, "produced by this stage"),
            );
            return None;
        }
        Some(found.name.clone())
    }
}
