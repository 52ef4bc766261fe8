//! From stages to nodes: templates, kind, parameters and resources of each assignment.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use super::connect;
use super::diagnostic::Diagnostic;
use super::files::Document;
use super::item::{Entry, Item, ItemValue, Table};
use super::matrix::{self, Matrix, node_name, value_name};
use super::overrides::Override;
use super::resources;
use super::template::{self, Scope};
use super::{checkpoint, executor, params, remote, retry, suggestion};
use crate::kind::{AnyKind, KindDescription, Registry, ResolvedParams};
use crate::pipeline::{Executor, Limits, Node, NodeId, Origin, RemoteCache, RemotePolicy, SourceFile, Stage};

/// What came of the stages.
pub(crate) struct Expanded {
    pub(crate) stages: Vec<Stage>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) executor: Executor,
    pub(crate) remote: RemoteCache,
    /// Variables that some template read.
    pub(crate) used_vars: BTreeSet<String>,
}

const STAGE_KEYS: [&str; 13] = [
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
    "isolate",
    "frozen",
    "remote",
];

/// What an override may change.
const SECTIONS: [&str; 5] = ["params", "inputs", "resources", "retry", "checkpoint"];

/// A node whose references are not resolved yet.
pub(crate) struct Draft {
    pub(crate) node: Node,
    /// `None`: in error, and reported.
    pub(crate) inputs: Option<Table>,
    /// Sources that never change, as written.
    pub(crate) frozen: Vec<Item>,
}

/// Makes the nodes of all stages.
pub(crate) fn expand(
    document: &Document,
    registry: &Registry,
    (machine, asked): (Limits, Option<&str>),
    sources: &[SourceFile],
    diagnostics: &mut Vec<Diagnostic>,
) -> Expanded {
    let used = RefCell::new(BTreeSet::new());
    let vars = template::resolve_vars(&document.vars, &used, diagnostics);
    let scope = Scope::new(&vars, &used);
    let mut matrices = matrix::expand_all(document, &scope, diagnostics);
    let executor = executor::read(&document.executor, machine, asked, &scope, diagnostics);
    let remote = remote::read(&document.remote, &scope, diagnostics);
    let mut expander = Expander { registry, executor: &executor, kinds: BTreeMap::new(), diagnostics };
    let mut stages = Vec::new();
    let mut drafts: Vec<Draft> = Vec::new();
    for entry in document.stages.iter() {
        let Some(matrix) = matrices.get_mut(&entry.key) else { continue };
        let first = drafts.len();
        let mut doc = None;
        if let Some(table) = expander.stage_table(entry) {
            let overrides = document.overrides.get(&entry.key).map(Vec::as_slice).unwrap_or_default();
            let stage = StageItem { entry, table, overrides: expander.fitting(overrides, matrix) };
            doc = expander.doc(table);
            for values in &matrix.assignments {
                let scope = scope.with_axes(matrix.axes.iter().map(String::as_str).zip(values));
                drafts.extend(expander.draft(&stage, &matrix.axes, values, &scope));
            }
            if !matrix.assignments.is_empty() {
                expander.diagnostics.extend(stage.overrides.iter().filter_map(|set| set.verdict()));
            }
        }
        matrix.partial |= drafts.len() - first < matrix.assignments.len();
        stages.push(Stage {
            name: entry.key.clone(),
            doc,
            axes: matrix.axes.clone(),
            nodes: (first..drafts.len()).map(NodeId).collect(),
            origin: entry.key_origin.clone(),
        });
    }
    let nodes = connect::connect(drafts, &stages, &matrices, sources, diagnostics);
    note_profiles(document, &used);
    Expanded { stages, nodes, executor, remote, used_vars: used.into_inner() }
}

/// A variable that only a profile's values name is used, whether or not the profile is chosen.
fn note_profiles(document: &Document, used: &RefCell<BTreeSet<String>>) {
    for profile in document.profiles.values() {
        let settings = profile.executor.iter().chain(profile.remote.iter());
        for entry in profile.vars.iter().chain(profile.set.iter()).chain(settings) {
            used.borrow_mut().extend(template::names_in(&entry.item).into_iter().map(str::to_owned));
        }
    }
}

/// A kind with its facts and the schema of its parameters, computed once.
struct KnownKind {
    kind: Arc<dyn AnyKind>,
    description: Arc<KindDescription>,
    schema: serde_json::Value,
}

/// A stage as written, with the overrides that address existing axes.
struct StageItem<'a> {
    entry: &'a Entry,
    table: &'a Table,
    overrides: Vec<&'a Override>,
}

struct Expander<'a> {
    registry: &'a Registry,
    executor: &'a Executor,
    kinds: BTreeMap<String, Rc<KnownKind>>,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Expander<'_> {
    fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// The table of a stage; its unknown keys are reported.
    fn stage_table<'e>(&mut self, entry: &'e Entry) -> Option<&'e Table> {
        let Some(table) = entry.item.as_table() else {
            let message = format!("a stage has to be a table, this is {}", entry.item.type_name());
            self.report(Diagnostic::new("E003", &entry.item.origin, message));
            return None;
        };
        for key in table.iter() {
            let name = key.key.as_str();
            if !STAGE_KEYS.contains(&name) {
                let message = format!("unknown key `{name}` of a stage");
                let help = suggestion(name, STAGE_KEYS);
                self.report(Diagnostic::new("E002", &key.key_origin, message).help(help));
            }
        }
        Some(table)
    }

    fn doc(&mut self, table: &Table) -> Option<String> {
        let item = table.get("doc")?;
        if item.as_str().is_none() {
            let message = format!("`doc` has to be a string, this is {}", item.type_name());
            self.report(Diagnostic::new("E003", &item.origin, message));
        }
        item.as_str().map(str::to_owned)
    }

    /// The overrides whose selectors name axes of the stage.
    fn fitting<'o>(&mut self, overrides: &'o [Override], matrix: &Matrix) -> Vec<&'o Override> {
        let mut fitting = Vec::new();
        for set in overrides {
            match set.selectors.iter().find(|(axis, _)| !matrix.axes.contains(axis)) {
                Some((axis, _)) => {
                    let help = suggestion(axis, matrix.axes.iter().map(String::as_str));
                    let message = format!("the stage has no axis `{axis}`");
                    self.report(Diagnostic::new("E002", &set.key_origin, message).help(help));
                }
                None => fitting.push(set),
            }
        }
        fitting
    }

    fn kind(&mut self, stage: &StageItem<'_>, scope: &Scope<'_>) -> Option<Rc<KnownKind>> {
        let Some(item) = stage.table.get("kind") else {
            let message = format!("stage `{}` has no `kind`", stage.entry.key);
            self.report(Diagnostic::new("E010", &stage.entry.key_origin, message));
            return None;
        };
        let item = scope.resolve(item, self.diagnostics);
        if item.is_invalid() {
            return None;
        }
        let Some(name) = item.as_str() else {
            let message = format!("`kind` has to be a string, this is {}", item.type_name());
            self.report(Diagnostic::new("E003", &item.origin, message));
            return None;
        };
        if !self.kinds.contains_key(name) {
            let Some(kind) = self.registry.get(name) else {
                let help = suggestion(name, self.registry.iter().map(|(name, _)| name))
                    .unwrap_or_else(|| "`pipe schema` lists the kinds".to_owned());
                let message = format!("unknown stage kind `{name}`");
                self.report(Diagnostic::new("E002", &item.origin, message).help(help));
                return None;
            };
            let description = Arc::new(kind.describe());
            let known = KnownKind { kind: Arc::clone(kind), description, schema: kind.schema() };
            self.kinds.insert(name.to_owned(), Rc::new(known));
        }
        self.kinds.get(name).cloned()
    }

    /// A section of the stage with its templates replaced; invalid if that was reported.
    fn section(&mut self, stage: &StageItem<'_>, key: &str, scope: &Scope<'_>) -> Entry {
        let origin = &stage.entry.key_origin;
        let empty = || Item { value: ItemValue::Table(Table::default()), origin: origin.clone() };
        let item = match stage.table.get(key) {
            None => empty(),
            Some(item) => scope.resolve(item, self.diagnostics),
        };
        let item = if item.as_table().is_some() || item.is_invalid() {
            item
        } else {
            let message = format!("`{key}` has to be a table, this is {}", item.type_name());
            self.report(Diagnostic::new("E003", &item.origin, message));
            Item::invalid(origin)
        };
        Entry { key: key.to_owned(), key_origin: origin.clone(), item }
    }

    /// The sources that the stage says never change.
    fn frozen(&mut self, stage: &StageItem<'_>, scope: &Scope<'_>) -> Vec<Item> {
        let Some(item) = stage.table.get("frozen") else { return Vec::new() };
        let item = scope.resolve(item, self.diagnostics);
        match item.value {
            ItemValue::List(items) => items.into_iter().filter(|item| !item.is_invalid()).collect(),
            ItemValue::Invalid => Vec::new(),
            _ => {
                let message = format!("`frozen` has to be a list, this is {}", item.type_name());
                let help = "write `frozen = [\"file:PATH\"]`".to_owned();
                self.report(Diagnostic::new("E003", &item.origin, message).help(help));
                Vec::new()
            }
        }
    }

    /// Whether the stage runs in processes of its own, and where that was written.
    fn isolate(&mut self, stage: &StageItem<'_>, scope: &Scope<'_>) -> (bool, Option<Origin>) {
        let Some(item) = stage.table.get("isolate") else { return (false, None) };
        let item = scope.resolve(item, self.diagnostics);
        match item.value {
            ItemValue::Bool(isolate) => return (isolate, Some(item.origin)),
            ItemValue::Invalid => {}
            _ => {
                let message = format!("`isolate` has to be a boolean, this is {}", item.type_name());
                self.report(Diagnostic::new("E003", &item.origin, message));
            }
        }
        (false, None)
    }

    /// What of the stage's results is kept elsewhere too, and where that was written.
    fn remote(&mut self, stage: &StageItem<'_>, scope: &Scope<'_>) -> (RemotePolicy, Option<Origin>) {
        let Some(item) = stage.table.get("remote") else { return (RemotePolicy::default(), None) };
        let item = scope.resolve(item, self.diagnostics);
        match remote::policy(&item, self.diagnostics) {
            Some(policy) => (policy, Some(item.origin)),
            None => (RemotePolicy::default(), None),
        }
    }

    /// The node of one assignment; `None` if its kind is unknown.
    fn draft(
        &mut self,
        stage: &StageItem<'_>,
        axes: &[String],
        values: &[Item],
        scope: &Scope<'_>,
    ) -> Option<Draft> {
        let known = self.kind(stage, scope)?;
        let mut sections = Table::with_capacity(SECTIONS.len());
        for key in SECTIONS {
            sections.insert(self.section(stage, key, scope));
        }
        let assigned: Vec<(String, String)> =
            axes.iter().cloned().zip(values.iter().map(value_name)).collect();
        for set in &stage.overrides {
            if set.selectors.iter().all(|selector| selector.1 == "*" || assigned.contains(selector)) {
                let value = scope.resolve(set.item(), self.diagnostics);
                let default = set.parameter().map(|name| &known.schema["properties"][name]["default"]);
                set.set(&mut sections, value, default);
            }
        }
        let section = |key: &str| sections.get(key).and_then(Item::as_table);
        let empty = Table::default();
        let origin = &stage.entry.key_origin;
        let (isolate, isolate_origin) = self.isolate(stage, scope);
        let (remote, remote_origin) = self.remote(stage, scope);
        let params = section("params");
        let resources = section("resources").unwrap_or(&empty);
        let retry = section("retry").unwrap_or(&empty);
        let checkpoint = section("checkpoint").unwrap_or(&empty);
        let named = |section: &str, table: &Table| {
            let origins = params::origins(table).into_iter();
            origins.map(|(path, origin)| (format!("{section}.{path}"), origin)).collect::<Vec<_>>()
        };
        let resolved = params.and_then(|params| self.params(&known, params, origin));
        // With defaults instead, references to the outputs are still checked.
        let resolved =
            resolved.or_else(|| known.kind.resolve(&serde_json::json!({})).ok()).unwrap_or(ResolvedParams {
                json: serde_json::json!({}),
                canonical: pipe_cache::Value::None,
                numerics: None,
            });
        let node = Node {
            stage: stage.entry.key.clone(),
            name: node_name(&stage.entry.key, axes, values),
            axes: assigned,
            description: Arc::clone(&known.description),
            kind: Arc::clone(&known.kind),
            outputs: known.kind.outputs(&resolved),
            params: resolved,
            kind_origin: stage.table.get("kind").map_or_else(|| origin.clone(), |item| item.origin.clone()),
            origins: params::origins(params.unwrap_or(&empty)).into_iter().collect(),
            inputs: Vec::new(),
            resources: resources::read(resources, self.executor, self.diagnostics),
            retry: retry::read(retry, self.diagnostics),
            checkpoint: checkpoint::read(checkpoint, self.diagnostics),
            isolate,
            remote,
            setting_origins: [("resources", resources), ("retry", retry), ("checkpoint", checkpoint)]
                .into_iter()
                .flat_map(|(section, table)| named(section, table))
                .chain(isolate_origin.map(|origin| ("isolate".to_owned(), origin)))
                .chain(remote_origin.map(|origin| ("remote".to_owned(), origin)))
                .collect(),
            origin: origin.clone(),
        };
        let frozen = self.frozen(stage, scope);
        let inputs = sections.into_iter().find(|entry| entry.key == "inputs");
        let inputs = inputs.and_then(|entry| match entry.item.value {
            ItemValue::Table(inputs) => Some(inputs),
            _ => None,
        });
        Some(Draft { node, inputs, frozen })
    }

    /// The parameters of a node with their defaults; `None` if a mistake was reported.
    fn params(&mut self, known: &KnownKind, params: &Table, origin: &Origin) -> Option<ResolvedParams> {
        let (json, valid) = params::check(&known.schema, params, origin, self.diagnostics);
        if !valid {
            return None;
        }
        match known.kind.resolve(&json) {
            Ok(resolved) => Some(resolved),
            Err(problems) => {
                for problem in problems {
                    let at = params::origin_of(params, &problem.path).unwrap_or_else(|| origin.clone());
                    let message = if problem.path.is_empty() {
                        problem.message
                    } else {
                        format!("parameter `{}`: {}", problem.path, problem.message)
                    };
                    self.report(Diagnostic::new("E003", &at, message).help(problem.help));
                }
                None
            }
        }
    }
}
