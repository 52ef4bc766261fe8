//! `pipe export STUDY RUN TO`: a run as a folder or an archive that stands alone.

use pipe_cache::Store;
use serde_json::json;

use super::arguments::{Arguments, ExportArguments};
use super::log::run_and_plan;
use super::study::open_store;
use super::{CliError, print, print_json, size};
use crate::answers::QueryError;
use crate::exit;
use crate::export::{self, ExportError, SheetsError, Summary, Wanted};
use crate::history::StoredPlan;
use crate::kind::Registry;
use crate::language::{means, suggestion};

/// More nodes without a result are not listed by name.
const LISTED: usize = 10;

pub(crate) fn export(
    arguments: &Arguments,
    export: &ExportArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let store = open_store(arguments, Some(&export.pipeline), false)?
        .ok_or_else(|| CliError::new(exit::USAGE, "error: there is no store, so there are no runs"))?;
    let (run, plan) = run_and_plan(&store, &export.run)?;
    for target in &export.targets {
        if !plan.nodes.keys().any(|name| means(target, name)) {
            let mut error =
                CliError::new(exit::USAGE, format!("error: `{target}` names no node of run {}", run.id()));
            error.hint = suggestion(target, plan.nodes.keys().map(String::as_str));
            return Err(error);
        }
    }
    let wanted =
        |name: &str| export.targets.is_empty() || export.targets.iter().any(|target| means(target, name));
    if export.sheets {
        return sheets(arguments, export, registry, &store, &plan, &wanted);
    }
    let is_aggregate = |artifact_type: &str| registry.is_aggregate(artifact_type);
    let wanted =
        Wanted { node: &wanted, aggregate: if export.aggregate_only { Some(&is_aggregate) } else { None } };
    let summary = export::export(&store, &run, &plan, &export.to, &wanted).map_err(failure)?;
    if arguments.global.json {
        let missing: Vec<_> =
            summary.missing.iter().map(|(node, reason)| json!({ "node": node, "reason": reason })).collect();
        return print_json(&json!({
            "version": 1, "run": run.id(), "to": export.to, "nodes": summary.nodes, "files": summary.files,
            "bytes": summary.bytes, "private": summary.private, "missing": missing,
        }));
    }
    let mut text = format!(
        "run {} is in `{}`: {} nodes, {} files, {}\n",
        run.id(),
        export.to.display(),
        summary.nodes,
        summary.files,
        size(summary.bytes)
    );
    if export.aggregate_only {
        text.push_str(&format!("  without {} outputs that tell of single samples\n", summary.private));
    }
    text.push_str(&without(&summary));
    print(&text)
}

/// Which nodes are missing, and why.
fn without(summary: &Summary) -> String {
    let mut text = String::new();
    for (node, reason) in summary.missing.iter().take(LISTED) {
        text.push_str(&format!("  without {node}: {reason}\n"));
    }
    if summary.missing.len() > LISTED {
        text.push_str(&format!("  and without {} others\n", summary.missing.len() - LISTED));
    }
    text
}

/// Pictures in the place of results.
fn sheets(
    arguments: &Arguments,
    export: &ExportArguments,
    registry: &Registry,
    store: &Store,
    plan: &StoredPlan,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<u8, CliError> {
    let draw = registry
        .sheets()
        .ok_or_else(|| CliError::new(exit::USAGE, "error: this program draws no results"))?;
    let written = export::sheets(store, plan, &export.to, wanted, (draw, export.samples as usize));
    let summary = written.map_err(|error| match error {
        SheetsError::Export(error) => failure(error),
        SheetsError::Drawing(error) => super::query::failure(QueryError::Results(error), None),
        SheetsError::Nothing => {
            let mut error = CliError::new(exit::USAGE, format!("error: {error}"));
            error.hint = Some("name a stage that gives saliency maps, as `attribute` does".to_owned());
            error
        }
    })?;
    if arguments.global.json {
        return print_json(&json!({
            "version": 1, "to": export.to, "nodes": summary.nodes, "files": summary.files, "bytes": summary.bytes,
        }));
    }
    print(&format!(
        "sheets of {} nodes are in `{}`: {} files, {}\n{}",
        summary.nodes,
        export.to.display(),
        summary.files,
        size(summary.bytes),
        without(&summary)
    ))
}

fn failure(error: ExportError) -> CliError {
    let (code, hint) = match &error {
        ExportError::Exists(_) => (exit::USAGE, "name a place where nothing is"),
        ExportError::Damaged { .. } => {
            (exit::ENVIRONMENT, "`pipe verify --repair` moves it aside, and the next run makes it again")
        }
        ExportError::Write { .. } => (exit::ENVIRONMENT, "nothing was left at the place that you named"),
        ExportError::Store(_) => (exit::ENVIRONMENT, "name the store with `--store` or PIPE_STORE"),
    };
    let mut failure = CliError::new(code, format!("error: {}", crate::attempt::chain(&error)));
    failure.hint = Some(hint.to_owned());
    failure
}
