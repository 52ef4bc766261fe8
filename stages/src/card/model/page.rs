//! The card: YAML for the hub, then text for people.

use std::collections::BTreeSet;

use pipe_engine::Artifact;

use super::{Figure, Params, Training};
use crate::card::page::{line, yaml};

/// `README.md`.
pub(super) fn page(
    params: &Params,
    model: &Artifact,
    training: Option<&Training>,
    figures: &[Figure],
) -> String {
    let mut text = front_matter(params, figures);
    text.push_str(&format!("# {}\n\n", line(&params.name)));
    let mut section = |heading: &str, body: &str| {
        if !body.trim().is_empty() {
            text.push_str(&format!("## {heading}\n\n{}\n\n", body.trim()));
        }
    };
    section("Model details", &details(params, model));
    section("Intended use", &params.intended_use);
    section("Limits", &params.limits);
    section("Training data", &data(params, training));
    section("Training", &training.map(procedure).unwrap_or_default());
    section("Results", &results(params, figures));
    section("By class and subgroup", &parts(figures));
    section("Citation", &params.citation);
    text
}

/// What the hub reads.
fn front_matter(params: &Params, figures: &[Figure]) -> String {
    let mut text = String::from("---\n");
    if !params.licence.is_empty() {
        text.push_str(&format!("license: {}\n", yaml(&params.licence.to_lowercase())));
    }
    if !params.base_models.is_empty() {
        text.push_str("base_model:\n");
        for model in &params.base_models {
            text.push_str(&format!("- {}\n", yaml(model)));
        }
    }
    text.push_str("tags:\n- medical\n");
    let overall: Vec<&Figure> = overall(figures).collect();
    if !overall.is_empty() {
        text.push_str(&format!("model-index:\n- name: {}\n  results:\n", yaml(&params.name)));
    }
    for figure in overall {
        let dataset = figure.dataset.as_deref().unwrap_or(&params.evaluation_data);
        text.push_str(&format!(
            "  - task:\n      type: {}\n    dataset:\n      name: {}\n      type: {}\n      split: {}\n    metrics:\n    - type: {}\n      value: {}\n      name: {}\n",
            task(&figure.task),
            yaml(dataset),
            yaml(&identifier(dataset)),
            yaml(&figure.split),
            yaml(&figure.metric),
            figure.value,
            yaml(&name(figure)),
        ));
    }
    text.push_str("---\n\n");
    text
}

/// A task in the hub's words.
fn task(task: &str) -> &'static str {
    match task {
        "classification" => "image-classification",
        "vqa" => "visual-question-answering",
        _ => "image-text-to-text",
    }
}

/// A name as an identifier: letters, digits and `-`.
fn identifier(name: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    name.chars().map(plain).collect()
}

/// Figures of the model over all samples.
fn overall(figures: &[Figure]) -> impl Iterator<Item = &Figure> {
    figures.iter().filter(|figure| figure.class.is_none() && figure.subgroup.is_none())
}

/// A figure's full name: what tells it from its neighbours.
fn name(figure: &Figure) -> String {
    let parts = [figure.method.as_deref(), figure.protocol.as_deref(), Some(figure.of.as_str())];
    let parts: Vec<&str> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    match parts.is_empty() {
        true => figure.metric.clone(),
        false => format!("{} ({})", figure.metric, parts.join("; ")),
    }
}

fn details(params: &Params, model: &Artifact) -> String {
    let mut text = String::new();
    for paragraph in [&params.description, &params.licence] {
        if std::ptr::eq(paragraph, &params.licence) && !paragraph.is_empty() {
            text.push_str(&format!("Licence: {paragraph}\n\n"));
        } else if !paragraph.is_empty() {
            text.push_str(&format!("{paragraph}\n\n"));
        }
    }
    for base in &params.base_models {
        text.push_str(&format!("- Made of `{}`\n", line(base)));
    }
    text.push_str(&format!("- Digest of its files (BLAKE3): `{}`\n", model.digest));
    let size: u64 = model.files.iter().map(|file| file.bytes).sum();
    text.push_str(&format!("- {} files, {size} bytes\n", model.files.len()));
    text
}

fn data(params: &Params, training: Option<&Training>) -> String {
    let mut text = params.training_data.clone();
    let inputs = training.map(|training| training.inputs.as_slice()).unwrap_or_default();
    if !inputs.is_empty() {
        text.push_str("\n\n| input | digest of its content (BLAKE3) |\n| --- | --- |\n");
        for (name, digests) in inputs {
            let digests: Vec<String> = digests.iter().map(|digest| format!("`{}`", line(digest))).collect();
            text.push_str(&format!("| `{}` | {} |\n", line(name), digests.join("<br>")));
        }
    }
    text
}

fn procedure(training: &Training) -> String {
    let mut text =
        format!("By the stage kind `{}`:\n\n| parameter | value |\n| --- | --- |\n", training.kind);
    for (name, value) in &training.params {
        text.push_str(&format!("| `{name}` | `{}` |\n", line(&value.to_string())));
    }
    text
}

fn results(params: &Params, figures: &[Figure]) -> String {
    let rows: Vec<&Figure> = overall(figures).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("On {}, with 95 % intervals where they are known.\n\n", params.evaluation_data);
    table(&mut text, &rows, |_| None, "");
    text
}

/// Figures of classes and of subgroups.
fn parts(figures: &[Figure]) -> String {
    let rows: Vec<&Figure> =
        figures.iter().filter(|figure| figure.class.is_some() || figure.subgroup.is_some()).collect();
    let mut text = String::new();
    if !rows.is_empty() {
        let of = |figure: &Figure| {
            let class = figure.class.as_ref().map(|class| format!("class {class}"));
            let both: Vec<String> = class.into_iter().chain(figure.subgroup.clone()).collect();
            Some(both.join(", "))
        };
        table(&mut text, &rows, of, "of");
    }
    text
}

/// A table of figures; columns that would be empty are left out.
fn table(text: &mut String, rows: &[&Figure], part: impl Fn(&Figure) -> Option<String>, part_name: &str) {
    type Cell<'a> = Box<dyn Fn(&Figure) -> String + 'a>;
    let columns: [(&str, Cell<'_>); 8] = [
        ("evaluation", Box::new(|figure| figure.of.clone())),
        (part_name, Box::new(move |figure| part(figure).unwrap_or_default())),
        ("split", Box::new(|figure| figure.split.clone())),
        ("method", Box::new(|figure| figure.method.clone().unwrap_or_default())),
        ("protocol", Box::new(|figure| figure.protocol.clone().unwrap_or_default())),
        ("metric", Box::new(|figure| figure.metric.clone())),
        ("value", Box::new(|figure| shown(figure.value, figure.interval))),
        ("n", Box::new(|figure| figure.n.to_string())),
    ];
    let used: BTreeSet<usize> = (0..columns.len())
        .filter(|place| rows.iter().any(|figure| !(columns[*place].1)(figure).is_empty()))
        .collect();
    let heads: Vec<&str> = used.iter().map(|place| columns[*place].0).collect();
    text.push_str(&format!("| {} |\n|{}\n", heads.join(" | "), " --- |".repeat(heads.len())));
    for figure in rows {
        let cells: Vec<String> = used.iter().map(|place| line(&(columns[*place].1)(figure))).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
}

fn shown(value: f64, interval: Option<(f64, f64)>) -> String {
    match interval {
        Some((low, high)) => format!("{value:.3} [{low:.3}, {high:.3}]"),
        None => format!("{value:.3}"),
    }
}
