//! The axis assignments of a stage: Cartesian product, `exclude`, `include`, and `"@stage"`.

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::Diagnostic;
use super::files::Document;
use super::item::{Entry, Item, ItemValue, Table};
use super::template::Scope;
use super::{NAME_HELP, is_name, order, suggestion};
use crate::pipeline::Origin;

/// The largest matrix; what asks for more is a mistake.
const STAGE_LIMIT: usize = 100_000;
/// The most nodes of a study.
const NODE_LIMIT: usize = 250_000;
/// Bytes of an axis value: it becomes part of a folder's name.
const VALUE_LIMIT: usize = 64;

/// One full assignment, in axis order.
pub(crate) type Assignment = Vec<Item>;

/// The expanded matrix of a stage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matrix {
    pub(crate) axes: Vec<String>,
    pub(crate) assignments: Vec<Assignment>,
    /// Names of excluded nodes, so that joining on one can be told from a mistake.
    pub(crate) excluded: BTreeSet<String>,
    /// Part of it was in error and is not here: what is missing was reported.
    pub(crate) partial: bool,
}

impl Matrix {
    fn partial() -> Self {
        Self { partial: true, ..Self::default() }
    }
}

/// How an axis value appears in a node's name.
pub(crate) fn value_name(item: &Item) -> String {
    match &item.value {
        ItemValue::String(text) => text.clone(),
        ItemValue::Table(table) => table.get("id").map(value_name).unwrap_or_default(),
        _ => item.display(),
    }
}

/// `stage[axis=value,...]`, or just `stage`.
pub(crate) fn node_name(stage: &str, axes: &[String], values: &[Item]) -> String {
    if axes.is_empty() {
        return stage.to_owned();
    }
    let pairs: Vec<String> =
        axes.iter().zip(values).map(|(axis, value)| format!("{axis}={}", value_name(value))).collect();
    format!("{stage}[{}]", pairs.join(","))
}

/// Expands the matrices of all stages; those that take axes of another stage after it.
pub(crate) fn expand_all(
    document: &Document,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeMap<String, Matrix> {
    let stages: Vec<&Entry> = document.stages.iter().collect();
    let places: BTreeMap<&str, usize> =
        stages.iter().enumerate().map(|(place, stage)| (stage.key.as_str(), place)).collect();
    let needs: Vec<Vec<usize>> = stages
        .iter()
        .map(|stage| borrows(stage).filter_map(|(name, _)| places.get(name).copied()).collect())
        .collect();
    let order = order::order(&needs);
    diagnostics.extend(cycle(&stages, &order.cycle));
    let mut done: BTreeMap<String, Matrix> = BTreeMap::new();
    let mut nodes = 0;
    for place in order.sorted {
        let stage = stages[place];
        let matrix = match stage.item.as_table() {
            Some(table) => expand_stage(&stage.key, table, document, &done, scope, diagnostics),
            None => Matrix::partial(),
        };
        nodes += matrix.assignments.len();
        if nodes > NODE_LIMIT {
            let message = format!("the study has more than {NODE_LIMIT} nodes");
            diagnostics.push(Diagnostic::new("E003", &stage.key_origin, message));
            break;
        }
        done.insert(stage.key.clone(), matrix);
    }
    for stage in stages {
        done.entry(stage.key.clone()).or_insert_with(Matrix::partial);
    }
    done
}

/// The stages named by `"@stage"` in the matrix of a stage, and where.
fn borrows(stage: &Entry) -> impl Iterator<Item = (&str, &Origin)> {
    let matrix = stage.item.as_table().and_then(|table| table.get("matrix"));
    let items: Vec<&Item> = match matrix {
        Some(Item { value: ItemValue::Table(table), .. }) => table.iter().map(|entry| &entry.item).collect(),
        Some(item) => vec![item],
        None => Vec::new(),
    };
    items.into_iter().filter_map(|item| Some((item.as_str()?.strip_prefix('@')?, &item.origin)))
}

fn cycle(stages: &[&Entry], cycle: &[usize]) -> Option<Diagnostic> {
    let names: Vec<&str> =
        cycle.iter().chain(cycle.first()).map(|place| stages[*place].key.as_str()).collect();
    let mut edges = cycle.iter().zip(names.get(1..)?).filter_map(|(place, needed)| {
        let (_, origin) = borrows(stages[*place]).find(|(name, _)| name == needed)?;
        Some((origin, format!("`{}` takes its axis from `{needed}`", stages[*place].key)))
    });
    let (origin, _) = edges.next()?;
    let message = format!("the axes of stages come from each other: {}", names.join(" -> "));
    let first = Diagnostic::new("E006", origin, message);
    Some(edges.fold(first, |diagnostic, (origin, text)| diagnostic.also(origin, text)))
}

fn expand_stage(
    name: &str,
    stage: &Table,
    document: &Document,
    done: &BTreeMap<String, Matrix>,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Matrix {
    let mut matrix = match stage.get("matrix") {
        None => Matrix { assignments: vec![Vec::new()], ..Matrix::default() },
        Some(item) => match (&item.value, item.as_str().and_then(|text| text.strip_prefix('@'))) {
            // `matrix = "@stage"`: the assignments of that stage as they are.
            (_, Some(other)) => {
                let lender = borrow(other, &item.origin, document, done, diagnostics);
                Matrix { excluded: BTreeSet::new(), ..lender }
            }
            (ItemValue::Table(axes), None) => {
                product(name, axes, &item.origin, document, done, scope, diagnostics)
            }
            _ => {
                let message =
                    format!("`matrix` has to be a table of axes or \"@stage\", this is {}", item.type_name());
                diagnostics.push(Diagnostic::new("E003", &item.origin, message));
                Matrix::partial()
            }
        },
    };
    let before = matrix.assignments.len();
    exclude(name, stage, &mut matrix, scope, diagnostics);
    include(name, stage, &mut matrix, scope, diagnostics);
    if let (Some(item), true) = (stage.get("matrix"), before > 0 && matrix.assignments.is_empty()) {
        let message = format!("the matrix of `{name}` is empty after `exclude`");
        diagnostics.push(Diagnostic::new("E016", &item.origin, message));
        matrix.partial = true;
    }
    matrix
}

/// The matrix of the stage that `"@other"` names.
fn borrow(
    other: &str,
    origin: &Origin,
    document: &Document,
    done: &BTreeMap<String, Matrix>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Matrix {
    if document.stages.get(other).is_none() {
        let help = suggestion(other, document.stages.keys());
        diagnostics.push(Diagnostic::new("E004", origin, format!("unknown stage `{other}`")).help(help));
    }
    done.get(other).cloned().unwrap_or_else(Matrix::partial)
}

/// The Cartesian product of the axes, the last one fastest.
fn product(
    name: &str,
    table: &Table,
    origin: &Origin,
    document: &Document,
    done: &BTreeMap<String, Matrix>,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Matrix {
    let mut matrix = Matrix { assignments: vec![Vec::new()], ..Matrix::default() };
    for entry in table.iter() {
        if !is_name(&entry.key) {
            let message = format!("`{}` is not a legal axis name", entry.key);
            diagnostics.push(Diagnostic::new("E015", &entry.key_origin, message).help(NAME_HELP.to_owned()));
        }
        let (values, complete) = axis_values(entry, document, done, scope, diagnostics);
        matrix.partial |= !complete;
        matrix.axes.push(entry.key.clone());
        let size = matrix.assignments.len().saturating_mul(values.len());
        if size > STAGE_LIMIT {
            let message = format!("the matrix of `{name}` has more than {STAGE_LIMIT} nodes");
            diagnostics.push(Diagnostic::new("E003", origin, message));
            return Matrix { axes: table.keys().map(str::to_owned).collect(), ..Matrix::partial() };
        }
        let prefixes = std::mem::take(&mut matrix.assignments);
        matrix.assignments.reserve(size);
        for prefix in prefixes {
            for value in &values {
                let mut assignment = prefix.clone();
                assignment.push(value.clone());
                matrix.assignments.push(assignment);
            }
        }
    }
    matrix
}

/// The values of one axis, and whether they are all that were meant.
fn axis_values(
    entry: &Entry,
    document: &Document,
    done: &BTreeMap<String, Matrix>,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> (Vec<Item>, bool) {
    let item = &entry.item;
    if let Some(other) = item.as_str().and_then(|text| text.strip_prefix('@')) {
        let lender = borrow(other, &item.origin, document, done, diagnostics);
        let Some(index) = lender.axes.iter().position(|axis| *axis == entry.key) else {
            // A lender in error may have lost the axis with its mistake.
            if !lender.partial || !lender.axes.is_empty() {
                let message = format!("stage `{other}` has no axis `{}`", entry.key);
                let help = suggestion(&entry.key, lender.axes.iter().map(String::as_str));
                diagnostics.push(Diagnostic::new("E002", &item.origin, message).help(help));
            }
            return (Vec::new(), false);
        };
        let mut seen = BTreeSet::new();
        let values = lender.assignments.into_iter().map(|mut values| values.swap_remove(index));
        return (values.filter(|value| seen.insert(value_name(value))).collect(), !lender.partial);
    }
    let listed = match &item.value {
        ItemValue::String(_) => scope.resolve(item, diagnostics),
        _ => item.clone(),
    };
    let ItemValue::List(items) = listed.value else {
        if !listed.is_invalid() {
            let message =
                format!("axis `{}` has to be a list of values, this is {}", entry.key, listed.type_name());
            diagnostics.push(Diagnostic::new("E003", &item.origin, message));
        }
        return (Vec::new(), false);
    };
    if items.is_empty() {
        let message = format!("axis `{}` has no values, so the stage would have no nodes", entry.key);
        diagnostics.push(Diagnostic::new("E016", &item.origin, message));
        return (Vec::new(), false);
    }
    let count = items.len();
    let mut seen: BTreeMap<String, Origin> = BTreeMap::new();
    let mut values = Vec::with_capacity(count);
    for item in items {
        // Templates inside a table stay: they may name other axes of the node.
        let item = if item.as_table().is_some() { item } else { scope.resolve(&item, diagnostics) };
        if item.is_invalid() || !fits(&entry.key, &item, diagnostics) {
            continue;
        }
        let name = value_name(&item);
        match seen.get(&name) {
            Some(first) => {
                let message = format!("`{name}` stands twice in axis `{}`", entry.key);
                diagnostics.push(Diagnostic::new("E007", &item.origin, message).also(first, "first here"));
            }
            None => {
                seen.insert(name, item.origin.clone());
                values.push(item);
            }
        }
    }
    let complete = values.len() == count;
    (values, complete)
}

/// Whether `value` can be a value of an axis.
fn fits(axis: &str, value: &Item, diagnostics: &mut Vec<Diagnostic>) -> bool {
    let plain = match &value.value {
        ItemValue::String(_) | ItemValue::Integer(_) | ItemValue::Bool(_) => true,
        ItemValue::Table(table) => table.get("id").is_some_and(|id| id.as_str().is_some()),
        _ => false,
    };
    if !plain {
        let message = format!("{} cannot be a value of axis `{axis}`", value.display());
        let help = "a value is a string, an integer, a boolean, or a table with an `id`".to_owned();
        diagnostics.push(Diagnostic::new("E003", &value.origin, message).help(help));
        return false;
    }
    let name = value_name(value);
    let illegal = |c: char| "[],=/*\\".contains(c) || c.is_control();
    if name.is_empty() || name.len() > VALUE_LIMIT || name.trim() != name || name.contains(illegal) {
        let message = format!("`{}` cannot name a node", name.escape_debug());
        let help = format!("a value has 1 to {VALUE_LIMIT} bytes and none of `[ ] , = / \\ *`");
        diagnostics.push(Diagnostic::new("E015", &value.origin, message).help(help));
        return false;
    }
    true
}

/// The tables of `include` or `exclude`, each with its values by axis.
fn assignments_of(
    key: &str,
    stage: &Table,
    matrix: &Matrix,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<(Origin, BTreeMap<String, Item>)> {
    let Some(item) = stage.get(key) else { return Vec::new() };
    let item = match item.as_str() {
        Some(_) => scope.resolve(item, diagnostics),
        None => item.clone(),
    };
    let mut wrong = |item: &Item| {
        if !item.is_invalid() {
            let message = format!("`{key}` has to be a list of tables, this is {}", item.type_name());
            diagnostics.push(Diagnostic::new("E003", &item.origin, message));
        }
    };
    let Some(tables) = item.as_list() else {
        wrong(&item);
        return Vec::new();
    };
    let tables: Vec<&Item> = tables
        .iter()
        .filter(|item| {
            item.as_table().is_some() || {
                wrong(item);
                false
            }
        })
        .collect();
    let mut assignments = Vec::new();
    for item in tables {
        let mut assignment = BTreeMap::new();
        let mut known = true;
        for entry in item.as_table().into_iter().flat_map(Table::iter) {
            if matrix.axes.contains(&entry.key) {
                // An included table value keeps its templates, as in the matrix.
                let table = entry.item.as_table().is_some();
                let value = if table { entry.item.clone() } else { scope.resolve(&entry.item, diagnostics) };
                known &= !value.is_invalid() && fits(&entry.key, &value, diagnostics);
                assignment.insert(entry.key.clone(), value);
            } else {
                known = false;
                if !matrix.partial || !matrix.axes.is_empty() {
                    let help = suggestion(&entry.key, matrix.axes.iter().map(String::as_str));
                    let message = format!("unknown axis `{}`", entry.key);
                    diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
                }
            }
        }
        if known {
            assignments.push((item.origin.clone(), assignment));
        }
    }
    assignments
}

fn exclude(
    name: &str,
    stage: &Table,
    matrix: &mut Matrix,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let axes = matrix.axes.clone();
    for (origin, pattern) in assignments_of("exclude", stage, matrix, scope, diagnostics) {
        let pattern: Vec<Option<String>> =
            axes.iter().map(|axis| pattern.get(axis).map(value_name)).collect();
        let (out, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut matrix.assignments).into_iter().partition(|values| {
                pattern
                    .iter()
                    .zip(values)
                    .all(|(wanted, value)| wanted.as_ref().is_none_or(|wanted| *wanted == value_name(value)))
            });
        if out.is_empty() && !matrix.partial {
            diagnostics.push(Diagnostic::new("E016", &origin, "this `exclude` matches no node"));
        }
        matrix.excluded.extend(out.iter().map(|values| node_name(name, &axes, values)));
        matrix.assignments = kept;
    }
}

fn include(
    name: &str,
    stage: &Table,
    matrix: &mut Matrix,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let included = assignments_of("include", stage, matrix, scope, diagnostics);
    if included.is_empty() {
        return;
    }
    let place = |values: &Assignment| values.first().map(|value| value.origin.clone());
    let mut names: BTreeMap<String, Option<Origin>> = matrix
        .assignments
        .iter()
        .map(|values| (node_name(name, &matrix.axes, values), place(values)))
        .collect();
    for (origin, mut assignment) in included {
        let missing: Vec<String> =
            matrix.axes.iter().filter(|axis| !assignment.contains_key(*axis)).cloned().collect();
        if !missing.is_empty() {
            let message = format!("an `include` names every axis; `{}` is missing", missing.join("`, `"));
            diagnostics.push(Diagnostic::new("E010", &origin, message));
            continue;
        }
        let values: Assignment = matrix.axes.iter().filter_map(|axis| assignment.remove(axis)).collect();
        let new_name = node_name(name, &matrix.axes, &values);
        if let Some(first) = names.get(&new_name) {
            let message = format!("`{new_name}` is in the matrix already");
            let diagnostic = Diagnostic::new("E007", &origin, message);
            diagnostics.push(match first {
                Some(first) => diagnostic.also(first, "here first"),
                None => diagnostic,
            });
        } else {
            matrix.excluded.remove(&new_name);
            names.insert(new_name, Some(origin));
            matrix.assignments.push(values);
        }
    }
}
