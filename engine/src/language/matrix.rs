//! The axis assignments of a stage: Cartesian product, `exclude`, `include`, and `"@stage"`.

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::Diagnostic;
use super::files::Document;
use super::item::{Item, ItemValue, Table};
use super::template::Scope;
use super::{is_name, suggestion};
use crate::pipeline::Origin;

/// The largest matrix: beyond it, it is a mistake.
const ASSIGNMENT_LIMIT: usize = 1_000_000;

/// One full assignment, in axis order.
pub(crate) type Assignment = Vec<Item>;

/// The expanded matrix of a stage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matrix {
    pub(crate) axes: Vec<String>,
    pub(crate) assignments: Vec<Assignment>,
    /// Names of excluded nodes, so that joining on one can be told from a mistake.
    pub(crate) excluded: BTreeSet<String>,
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
    let mut done: BTreeMap<String, Matrix> = BTreeMap::new();
    let mut waiting: Vec<&str> = document.stages.keys().collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|name| {
            let Some(stage) = document.stages.get(name).and_then(Item::as_table) else {
                done.insert((*name).to_owned(), Matrix::default());
                return false;
            };
            let ready = borrowed_from(stage)
                .all(|other| done.contains_key(other) || document.stages.get(other).is_none());
            if ready {
                let matrix = expand_stage(name, stage, document, &done, scope, diagnostics);
                done.insert((*name).to_owned(), matrix);
            }
            !ready
        });
        if waiting.len() == before {
            for name in waiting {
                if let Some(entry) = document.stages.entry(name) {
                    let message =
                        format!("the axes of `{name}` are taken from stages that take theirs from it");
                    diagnostics.push(Diagnostic::new("E006", &entry.key_origin, message));
                }
                done.insert(name.to_owned(), Matrix::default());
            }
            break;
        }
    }
    done
}

/// The stages named by `"@stage"` in the matrix of a stage.
fn borrowed_from(stage: &Table) -> impl Iterator<Item = &str> {
    let items: Vec<&Item> = match stage.get("matrix") {
        Some(Item { value: ItemValue::Table(table), .. }) => table.iter().map(|entry| &entry.item).collect(),
        Some(item) => vec![item],
        None => Vec::new(),
    };
    items.into_iter().filter_map(|item| item.as_str()?.strip_prefix('@'))
}

fn expand_stage(
    name: &str,
    stage: &Table,
    document: &Document,
    done: &BTreeMap<String, Matrix>,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Matrix {
    let Some(item) = stage.get("matrix") else {
        return Matrix { assignments: vec![Vec::new()], ..Matrix::default() };
    };
    let borrow = |text: &str, origin: &Origin, diagnostics: &mut Vec<Diagnostic>| -> Option<Matrix> {
        let other = text.strip_prefix('@')?;
        if document.stages.get(other).is_none() {
            let help = suggestion(other, document.stages.keys());
            diagnostics.push(Diagnostic::new("E004", origin, format!("unknown stage `{other}`")).help(help));
            return Some(Matrix::default());
        }
        done.get(other).cloned()
    };
    // `matrix = "@stage"`: the assignments of that stage as they are.
    if let Some(text) = item.as_str()
        && let Some(matrix) = borrow(text, &item.origin, diagnostics)
    {
        return Matrix { excluded: BTreeSet::new(), ..matrix };
    }
    let Some(table) = item.as_table() else {
        let message =
            format!("`matrix` has to be a table of axes or \"@stage\", this is {}", item.type_name());
        diagnostics.push(Diagnostic::new("E003", &item.origin, message));
        return Matrix::default();
    };
    let mut axes: Vec<String> = Vec::new();
    let mut columns: Vec<Vec<Item>> = Vec::new();
    for entry in table.iter() {
        if !is_name(&entry.key) {
            let message = format!("`{}` is not a legal axis name", entry.key);
            diagnostics.push(
                Diagnostic::new("E015", &entry.key_origin, message)
                    .help("a name is [a-z][a-z0-9_]*".to_owned()),
            );
        }
        let values = match entry.item.as_str() {
            Some(text) if text.starts_with('@') => {
                let matrix = borrow(text, &entry.item.origin, diagnostics).unwrap_or_default();
                match matrix.axes.iter().position(|axis| *axis == entry.key) {
                    Some(index) => {
                        distinct(matrix.assignments.into_iter().map(|mut values| values.swap_remove(index)))
                    }
                    None => {
                        let message = format!("stage `{}` has no axis `{}`", &text[1..], entry.key);
                        let help = suggestion(&entry.key, matrix.axes.iter().map(String::as_str));
                        diagnostics.push(Diagnostic::new("E002", &entry.item.origin, message).help(help));
                        Vec::new()
                    }
                }
            }
            _ => {
                let resolved = match &entry.item.value {
                    // Templates inside table values stay: they may name axes of the node.
                    ItemValue::List(items) if items.iter().any(|item| item.as_table().is_some()) => {
                        entry.item.clone()
                    }
                    _ => scope.resolve(&entry.item, diagnostics),
                };
                match resolved.value {
                    ItemValue::List(items) => items,
                    _ => {
                        let message = format!(
                            "axis `{}` has to be a list of values, this is {}",
                            entry.key,
                            resolved.type_name()
                        );
                        diagnostics.push(Diagnostic::new("E003", &entry.item.origin, message));
                        Vec::new()
                    }
                }
            }
        };
        check_values(&entry.key, &values, diagnostics);
        axes.push(entry.key.clone());
        columns.push(values);
    }
    let size = columns.iter().try_fold(1usize, |size, column| size.checked_mul(column.len()));
    if size.is_none_or(|size| size > ASSIGNMENT_LIMIT) {
        let message = format!("the matrix of `{name}` has more than {ASSIGNMENT_LIMIT} nodes");
        diagnostics.push(Diagnostic::new("E003", &item.origin, message));
        return Matrix { axes, ..Matrix::default() };
    }
    let mut assignments: Vec<Assignment> = vec![Vec::new()];
    for column in &columns {
        assignments = assignments
            .into_iter()
            .flat_map(|prefix| {
                column.iter().map(move |value| {
                    let mut assignment = prefix.clone();
                    assignment.push(value.clone());
                    assignment
                })
            })
            .collect();
    }
    let mut matrix = Matrix { axes, assignments, excluded: BTreeSet::new() };
    exclude(name, stage, &mut matrix, scope, diagnostics);
    include(name, stage, &mut matrix, scope, diagnostics);
    if matrix.assignments.is_empty() && columns.iter().all(|column| !column.is_empty()) {
        let message = format!("the matrix of `{name}` is empty after `exclude`");
        diagnostics.push(Diagnostic::new("E016", &item.origin, message));
    }
    matrix
}

fn check_values(axis: &str, values: &[Item], diagnostics: &mut Vec<Diagnostic>) {
    let mut seen = BTreeMap::new();
    for value in values {
        if matches!(value.value, ItemValue::List(_) | ItemValue::Float(_))
            || value.as_table().is_some_and(|table| table.get("id").and_then(Item::as_str).is_none())
        {
            let message = format!("{} cannot be a value of axis `{axis}`", value.display());
            diagnostics.push(
                Diagnostic::new("E003", &value.origin, message)
                    .help("a value is a string, an integer, a boolean, or a table with an `id`".to_owned()),
            );
        }
        let name = value_name(value);
        if name.contains(['[', ']', ',', '=', '/']) {
            let message = format!("`{name}` cannot name a node: it holds one of `[],=/`");
            diagnostics.push(Diagnostic::new("E015", &value.origin, message));
        }
        if let Some(previous) = seen.insert(name.clone(), value) {
            diagnostics.push(
                Diagnostic::new("E007", &value.origin, format!("`{name}` stands twice in axis `{axis}`"))
                    .also(&previous.origin, "first here"),
            );
        }
    }
}

fn distinct(values: impl Iterator<Item = Item>) -> Vec<Item> {
    let mut seen = BTreeSet::new();
    values.filter(|value| seen.insert(value_name(value))).collect()
}

fn assignments_of<'a>(
    key: &str,
    stage: &Table,
    matrix: &Matrix,
    scope: &Scope<'a>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<(Origin, BTreeMap<String, Item>)> {
    let Some(item) = stage.get(key) else { return Vec::new() };
    let item = scope.resolve(item, diagnostics);
    let Some(tables) = item.as_list() else {
        let message = format!("`{key}` has to be a list of tables, this is {}", item.type_name());
        diagnostics.push(Diagnostic::new("E003", &item.origin, message));
        return Vec::new();
    };
    let mut assignments = Vec::new();
    for item in tables {
        let Some(table) = item.as_table() else {
            let message = format!("`{key}` has to be a list of tables, this is {}", item.type_name());
            diagnostics.push(Diagnostic::new("E003", &item.origin, message));
            continue;
        };
        let mut assignment = BTreeMap::new();
        for entry in table.iter() {
            if matrix.axes.contains(&entry.key) {
                assignment.insert(entry.key.clone(), entry.item.clone());
            } else {
                let help = suggestion(&entry.key, matrix.axes.iter().map(String::as_str));
                let message = format!("unknown axis `{}`", entry.key);
                diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
            }
        }
        assignments.push((item.origin.clone(), assignment));
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
    for (origin, pattern) in assignments_of("exclude", stage, matrix, scope, diagnostics) {
        let axes = matrix.axes.clone();
        let (out, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut matrix.assignments).into_iter().partition(|values| {
                axes.iter().zip(values).all(|(axis, value)| {
                    pattern.get(axis).is_none_or(|wanted| value_name(wanted) == value_name(value))
                })
            });
        if out.is_empty() {
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
    for (origin, assignment) in assignments_of("include", stage, matrix, scope, diagnostics) {
        let missing: Vec<&str> =
            matrix.axes.iter().map(String::as_str).filter(|axis| !assignment.contains_key(*axis)).collect();
        if !missing.is_empty() {
            let message = format!("an `include` names every axis; `{}` is missing", missing.join("`, `"));
            diagnostics.push(Diagnostic::new("E010", &origin, message));
            continue;
        }
        let values: Assignment = matrix.axes.iter().map(|axis| assignment[axis].clone()).collect();
        let new_name = node_name(name, &matrix.axes, &values);
        if matrix.assignments.iter().any(|other| node_name(name, &matrix.axes, other) == new_name) {
            diagnostics.push(Diagnostic::new(
                "E007",
                &origin,
                format!("`{new_name}` is in the matrix already"),
            ));
        } else {
            matrix.assignments.push(values);
        }
    }
}
