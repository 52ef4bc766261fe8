//! What the inputs of each node refer to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use super::diagnostic::Diagnostic;
use super::expand::Draft;
use super::item::{Item, ItemValue, Table};
use super::matrix::Matrix;
use super::reference::{self, OutputReference, Reference};
use super::suggestion;
use crate::kind::{ArtifactType, InputPort, PortAxes};
use crate::pipeline::{InputSource, Node, NodeId, NodeInput, Origin, SourceFile, Stage};

/// Resolves the references of all drafts.
pub(crate) fn connect(
    drafts: Vec<Draft>,
    stages: &[Stage],
    matrices: &BTreeMap<String, Matrix>,
    sources: &[SourceFile],
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Node> {
    let by_stage = stages.iter().map(|stage| (stage.name.as_str(), stage)).collect();
    let mut connector =
        Connector { drafts: &drafts, by_stage, matrices, sources, groups: RefCell::default(), diagnostics };
    let inputs: Vec<Vec<NodeInput>> = drafts.iter().map(|draft| connector.inputs(draft)).collect();
    drafts.into_iter().zip(inputs).map(|(draft, inputs)| Node { inputs, ..draft.node }).collect()
}

/// The nodes of a stage by their values of some of its axes.
type Groups = BTreeMap<Vec<String>, Vec<NodeId>>;

struct Connector<'a> {
    drafts: &'a [Draft],
    by_stage: BTreeMap<&'a str, &'a Stage>,
    matrices: &'a BTreeMap<String, Matrix>,
    sources: &'a [SourceFile],
    /// By stage and by which of its axes have a value: so no consumer looks at all producers.
    groups: RefCell<BTreeMap<(&'a str, Vec<bool>), Groups>>,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl<'a> Connector<'a> {
    fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    fn inputs(&mut self, draft: &'a Draft) -> Vec<NodeInput> {
        let description = &draft.node.description;
        let Some(written) = &draft.inputs else { return Vec::new() };
        let mut inputs = Vec::new();
        for entry in written.iter() {
            let named = description.inputs.iter().find(|port| port.name == entry.key);
            let Some(port) = named.or(description.free_inputs.as_ref()) else {
                let help = suggestion(&entry.key, description.inputs.iter().map(|port| port.name));
                let message = format!("kind `{}` has no input `{}`", description.name, entry.key);
                self.report(Diagnostic::new("E002", &entry.key_origin, message).help(help));
                continue;
            };
            let sources = self.members(&entry.key, &entry.item, port, draft);
            if sources.len() > 1 && !port.many {
                let message =
                    format!("input `{}` takes one artifact, {} are given", entry.key, sources.len());
                let help = "give every axis of the producer a value, or share its axes".to_owned();
                self.report(Diagnostic::new("E003", &entry.item.origin, message).help(help));
            }
            let is_list = is_list(&entry.item);
            inputs.push(NodeInput {
                name: entry.key.clone(),
                sources,
                is_list,
                with_axes: match port.axes {
                    PortAxes::Ignored => false,
                    PortAxes::OfLists => is_list,
                    PortAxes::Always => true,
                },
                origin: entry.item.origin.clone(),
            });
        }
        self.missing(draft, written);
        self.freeze(draft, &mut inputs);
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        inputs
    }

    /// Marks the sources that the stage says never change.
    fn freeze(&mut self, draft: &Draft, inputs: &mut [NodeInput]) {
        for item in &draft.frozen {
            let pattern = item.as_str().and_then(|text| text.strip_prefix("file:"));
            let Some(frozen) = pattern else {
                let message = format!("only files can be frozen, this is {}", item.display());
                let help =
                    "write `frozen = [\"file:PATH\"]`; remote sources are pinned by the lock file".to_owned();
                self.report(Diagnostic::new("E003", &item.origin, message).help(help));
                continue;
            };
            let mut is_known = false;
            let mut known = Vec::new();
            for source in inputs.iter_mut().flat_map(|input| &mut input.sources) {
                if let InputSource::File { pattern, is_frozen, .. } = source {
                    *is_frozen |= pattern == frozen;
                    is_known |= pattern == frozen;
                    known.push(format!("file:{pattern}"));
                }
            }
            if !is_known {
                let message = format!("`{}` reads no `file:{frozen}`", draft.node.name);
                let help = suggestion(&format!("file:{frozen}"), known.iter().map(String::as_str));
                self.report(Diagnostic::new("E002", &item.origin, message).help(help));
            }
        }
    }

    fn missing(&mut self, draft: &Draft, written: &Table) {
        for port in draft.node.description.inputs.iter().filter(|port| port.required) {
            if written.get(port.name).is_none() {
                let message =
                    format!("stage `{}` lacks input `{}`: {}", draft.node.stage, port.name, port.summary);
                self.report(Diagnostic::new("E010", &draft.node.origin, message));
            }
        }
    }

    /// The sources of one input: a reference, or a list of them.
    fn members(&mut self, name: &str, item: &Item, port: &InputPort, draft: &'a Draft) -> Vec<InputSource> {
        let written = match &item.value {
            ItemValue::List(items) => items.as_slice(),
            _ => std::slice::from_ref(item),
        };
        if written.is_empty() {
            let message = format!("input `{name}` names no artifact");
            self.report(Diagnostic::new("E010", &item.origin, message));
        }
        let mut members = Vec::new();
        for item in written.iter().filter(|item| !item.is_invalid()) {
            let Some(text) = item.as_str() else {
                let message = format!("input `{name}` has to be a reference, this is {}", item.type_name());
                self.report(Diagnostic::new("E003", &item.origin, message));
                continue;
            };
            match reference::parse(text) {
                Err((message, help)) => {
                    self.report(Diagnostic::new("E002", &item.origin, message).help(help));
                }
                Ok(Reference::Blob(digest)) => members.push(InputSource::Blob(digest)),
                Ok(Reference::File(pattern)) => {
                    self.file_fits(name, item, port);
                    members.push(self.file(pattern, item));
                }
                Ok(Reference::Remote(remote)) => {
                    self.file_fits(name, item, port);
                    members.push(InputSource::Remote(remote));
                }
                Ok(Reference::Output(reference)) => {
                    self.join(&reference, name, item, port, draft, &mut members);
                }
            }
        }
        members
    }

    fn file_fits(&mut self, name: &str, item: &Item, port: &InputPort) {
        let files = [ArtifactType::FILE, ArtifactType::TREE];
        if !port.accepts.is_empty() && !port.accepts.iter().any(|accepted| files.contains(accepted)) {
            let accepted: Vec<&str> = port.accepts.iter().map(|artifact| artifact.0).collect();
            let message = format!("input `{name}` takes `{}`, not files", accepted.join("` or `"));
            let help = "let a stage of an `ingest` kind or of `checkpoint` read the files".to_owned();
            self.report(Diagnostic::new("E009", &item.origin, message).help(help));
        }
    }

    /// A path is relative to the file that writes it; on the command line, to the current folder.
    fn file(&self, pattern: String, item: &Item) -> InputSource {
        let file = match &item.origin {
            Origin::File { file, .. } => self.sources.get(*file),
            Origin::CommandLine(_) => None,
            _ => self.sources.first(),
        };
        let folder = file.and_then(|file| file.path.parent()).unwrap_or(Path::new(""));
        let joined = folder.join(&pattern);
        let path = std::path::absolute(&joined).unwrap_or(joined);
        InputSource::File { pattern, path, is_frozen: false }
    }

    /// Finds the producers of a reference and checks their port.
    fn join(
        &mut self,
        reference: &OutputReference,
        name: &str,
        item: &Item,
        port: &InputPort,
        consumer: &'a Draft,
        members: &mut Vec<InputSource>,
    ) {
        let Some(stage) = self.by_stage.get(reference.stage.as_str()).copied() else {
            let help = suggestion(&reference.stage, self.by_stage.keys().copied());
            let message = format!("unknown stage `{}`", reference.stage);
            self.report(Diagnostic::new("E004", &item.origin, message).help(help));
            return;
        };
        let Some(wanted) = self.wanted(reference, stage, item, consumer) else { return };
        let fan_in = wanted.iter().any(Option::is_none);
        if fan_in && !port.many {
            let message = format!("input `{name}` takes one artifact, not a fan-in");
            self.report(Diagnostic::new("E003", &item.origin, message));
            return;
        }
        let producers = self.producers(stage, &wanted);
        if producers.is_empty() {
            self.no_producer(stage, &wanted, item);
        }
        for id in producers {
            if let Some(port) = self.port(id, reference, name, item, port) {
                members.push(InputSource::Node { node: id, port });
            }
        }
    }

    /// The value wanted of each axis of the producing stage; `None` in it: all values.
    fn wanted(
        &mut self,
        reference: &OutputReference,
        stage: &Stage,
        item: &Item,
        consumer: &Draft,
    ) -> Option<Vec<Option<String>>> {
        let partial = self.matrices.get(&stage.name).is_none_or(|matrix| matrix.partial);
        if let Some((axis, _)) = reference.selectors.iter().find(|(axis, _)| !stage.axes.contains(axis)) {
            // The axes of a stage in error may be unknown; that was reported.
            if !partial || !stage.axes.is_empty() {
                let help = suggestion(axis, stage.axes.iter().map(String::as_str));
                let message = format!("stage `{}` has no axis `{axis}`", stage.name);
                self.report(Diagnostic::new("E002", &item.origin, message).help(help));
            }
            return None;
        }
        let mut wanted = Vec::with_capacity(stage.axes.len());
        for axis in &stage.axes {
            let mut given = reference.selectors.iter().filter(|(name, _)| name == axis);
            let value = given.next().map(|(_, value)| value);
            if given.next().is_some() {
                let message = format!("axis `{axis}` is given twice");
                self.report(Diagnostic::new("E007", &item.origin, message));
                return None;
            }
            // An axis that is not given joins on the consumer's axis of the same name.
            let own = || consumer.node.axes.iter().find(|(name, _)| name == axis).map(|(_, value)| value);
            wanted.push(match value.or_else(own) {
                Some(value) if value == "*" => None,
                Some(value) => Some(value.clone()),
                None => {
                    let message = format!(
                        "axis `{axis}` of stage `{}` is neither given nor an axis of `{}`",
                        stage.name, consumer.node.stage
                    );
                    let help = format!(
                        "write `{0}[{axis}=VALUE]` for one, `{0}[{axis}=*]` for all, or give `{1}` the axis: `matrix = {{ {axis} = \"@{0}\" }}`",
                        stage.name, consumer.node.stage
                    );
                    self.report(Diagnostic::new("E008", &item.origin, message).help(help));
                    return None;
                }
            });
        }
        Some(wanted)
    }

    /// The nodes of a stage that have the wanted values, in node order.
    fn producers(&self, stage: &'a Stage, wanted: &[Option<String>]) -> Vec<NodeId> {
        let given: Vec<bool> = wanted.iter().map(Option::is_some).collect();
        let values: Vec<String> = wanted.iter().flatten().cloned().collect();
        let mut groups = self.groups.borrow_mut();
        let groups = groups.entry((stage.name.as_str(), given.clone())).or_insert_with(|| {
            let mut groups = Groups::new();
            for id in &stage.nodes {
                let axes = self.drafts[id.0].node.axes.iter().zip(&given);
                let values = axes.filter(|(_, given)| **given).map(|((_, value), _)| value.clone());
                groups.entry(values.collect()).or_default().push(*id);
            }
            groups
        });
        groups.get(&values).cloned().unwrap_or_default()
    }

    fn no_producer(&mut self, stage: &Stage, wanted: &[Option<String>], item: &Item) {
        let Some(matrix) = self.matrices.get(&stage.name) else { return };
        if matrix.partial {
            return;
        }
        let pairs: Vec<String> = stage
            .axes
            .iter()
            .zip(wanted)
            .map(|(axis, value)| format!("{axis}={}", value.as_deref().unwrap_or("*")))
            .collect();
        let name = format!("{}[{}]", stage.name, pairs.join(","));
        let diagnostic = if matrix.excluded.contains(&name) {
            Diagnostic::new("E008", &item.origin, format!("node `{name}` is excluded from its matrix")).help(
                format!(
                    "exclude the consumer's node too, or take its axes with `matrix = \"@{}\"`",
                    stage.name
                ),
            )
        } else {
            let known = stage.nodes.iter().map(|id| self.drafts[id.0].node.name.as_str());
            Diagnostic::new("E002", &item.origin, format!("node `{name}` does not exist"))
                .help(suggestion(&name, known))
        };
        self.report(diagnostic);
    }

    /// The port of a producer, its type checked.
    fn port(
        &mut self,
        id: NodeId,
        reference: &OutputReference,
        input: &str,
        item: &Item,
        wanted: &InputPort,
    ) -> Option<String> {
        let producer = &self.drafts[id.0].node;
        let list = || {
            let names: Vec<&str> = producer.outputs.iter().map(|port| port.name.as_str()).collect();
            format!("outputs of `{}` are `{}`", producer.description.name, names.join("`, `"))
        };
        let found = match &reference.port {
            Some(name) => producer.outputs.iter().find(|port| port.name == *name),
            None if producer.outputs.len() == 1 => producer.outputs.first(),
            None => {
                let message = format!("stage `{}` has several outputs; say which", producer.stage);
                let diagnostic = Diagnostic::new("E005", &item.origin, message).help(list());
                self.report(diagnostic);
                return None;
            }
        };
        let Some(found) = found else {
            let name = reference.port.as_deref().unwrap_or_default();
            let message = format!("stage `{}` has no output `{name}`", producer.stage);
            let nearest = suggestion(name, producer.outputs.iter().map(|port| port.name.as_str()))
                .filter(|help| help.starts_with("did"));
            let diagnostic = Diagnostic::new("E005", &item.origin, message).help(nearest).help(list());
            self.report(diagnostic);
            return None;
        };
        if wanted.accepts.is_empty() || wanted.accepts.contains(&found.artifact) {
            return Some(found.name.clone());
        }
        let accepted: Vec<&str> = wanted.accepts.iter().map(|artifact| artifact.0).collect();
        let message = format!(
            "input `{input}` takes `{}`, but `{}.{}` is `{}`",
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
        let diagnostic = Diagnostic::new("E009", &item.origin, message)
            .help(help)
            .also(&producer.origin, format!("`{}` makes `{}`", producer.stage, found.artifact.0));
        self.report(diagnostic);
        None
    }
}

/// Whether an input is written as a list or as a fan-in.
fn is_list(item: &Item) -> bool {
    match &item.value {
        ItemValue::List(_) => true,
        ItemValue::String(text) => match reference::parse(text) {
            Ok(Reference::Output(reference)) => reference.selectors.iter().any(|(_, value)| value == "*"),
            _ => false,
        },
        _ => false,
    }
}
