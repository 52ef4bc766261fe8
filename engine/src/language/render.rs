//! Diagnostics for people (source line, marker, help) and for editors (JSON).

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::diagnostic::{Diagnostic, Severity};
use crate::pipeline::SourceFile;

/// More than this are one mistake in many nodes: the rest is counted.
const SHOWN: usize = 50;

/// The diagnostics as text, in the style of rustc, errors first where there are too many to show; ends with one line
/// that counts them.
pub fn render_text(diagnostics: &[Diagnostic], sources: &[SourceFile], colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut text = String::new();
    let mut shown: Vec<&Diagnostic> = diagnostics.iter().collect();
    if shown.len() > SHOWN {
        shown.sort_by_key(|diagnostic| diagnostic.severity != Severity::Error);
        shown.truncate(SHOWN);
    }
    for diagnostic in &shown {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code);
        let mut group = Group::with_title(title);
        let mut files: Vec<usize> = Vec::new();
        for label in diagnostic.primary.iter().chain(&diagnostic.secondary) {
            if !files.contains(&label.file) {
                files.push(label.file);
            }
        }
        for file in files {
            let Some(source) = sources.get(file) else { continue };
            let mut snippet =
                Snippet::source(source.text.as_str()).path(source.path.display().to_string()).fold(true);
            let labels = diagnostic
                .primary
                .iter()
                .map(|label| (label, AnnotationKind::Primary))
                .chain(diagnostic.secondary.iter().map(|label| (label, AnnotationKind::Context)));
            for (label, kind) in labels.filter(|(label, _)| label.file == file) {
                let end = label.span.end.min(source.text.len());
                let annotation = kind.span(label.span.start.min(end)..end);
                snippet = snippet.annotation(if label.text.is_empty() {
                    annotation
                } else {
                    annotation.label(label.text.as_str())
                });
            }
            group = group.element(snippet);
        }
        for help in &diagnostic.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        text.push_str(&renderer.render(&[group]));
        text.push_str("\n\n");
    }
    if diagnostics.len() > shown.len() {
        text.push_str(&format!(
            "and {} more, which `pipe check --json` lists\n\n",
            diagnostics.len() - shown.len()
        ));
    }
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
    let warnings = diagnostics.len() - errors;
    let count = |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
    if !diagnostics.is_empty() {
        text.push_str(&format!("{}, {}\n", count(errors, "error"), count(warnings, "warning")));
    }
    text
}

/// The diagnostics as one versioned JSON object.
pub fn render_json(diagnostics: &[Diagnostic], sources: &[SourceFile]) -> serde_json::Value {
    let place = |label: &super::diagnostic::Label, offset: usize| {
        let (line, column) = sources.get(label.file).map_or((0, 0), |source| source.line_column(offset));
        serde_json::json!({ "line": line, "column": column })
    };
    let label_json = |label: &super::diagnostic::Label| {
        serde_json::json!({
            "file": sources.get(label.file).map(|source| source.path.display().to_string()),
            "start": place(label, label.span.start),
            "end": place(label, label.span.end),
            "text": label.text,
        })
    };
    let diagnostics: Vec<serde_json::Value> = diagnostics
        .iter()
        .map(|diagnostic| {
            let mut json = serde_json::json!({
                "code": diagnostic.code,
                "severity": if diagnostic.severity == Severity::Error { "error" } else { "warning" },
                "message": diagnostic.message,
                "help": diagnostic.help,
                "related": diagnostic.secondary.iter().map(label_json).collect::<Vec<_>>(),
            });
            if let (Some(label), Some(json)) = (&diagnostic.primary, json.as_object_mut()) {
                let primary = label_json(label);
                for key in ["file", "start", "end"] {
                    json.insert(key.to_owned(), primary[key].clone());
                }
            }
            json
        })
        .collect();
    serde_json::json!({ "version": 1, "diagnostics": diagnostics })
}
