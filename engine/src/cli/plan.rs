//! `pipe plan` and `pipe why`: what would run, and the causes, root first.

use std::collections::BTreeMap;

use serde_json::json;

use super::arguments::{Arguments, PlanArguments, WhyArguments};
use super::study::Study;
use super::{CliError, print, print_json, size};
use crate::estimate::{Basis, Estimate};
use crate::exit;
use crate::history::History;
use crate::kind::{Determinism, Registry};
use crate::pipeline::{NodeId, Pipeline};
use crate::plan::{Plan, Status, Wanted};
use crate::why::{self, DirtyReason};

pub(crate) fn plan(arguments: &Arguments, plan: &PlanArguments, registry: &Registry) -> Result<u8, CliError> {
    let study = Study::load(arguments, &plan.pipeline, registry)?;
    let wanted = study.wanted(&plan.selection)?;
    let store = study.open_existing()?;
    let (made, _, history) = study.plan(store.as_ref(), &wanted, registry.numerics())?;
    if plan.estimate {
        let given = given_rows(&study, &plan.rows)?;
        let estimate = Estimate::make(&study.pipeline, &made, &history, registry.numerics(), &given);
        estimate_text(arguments, &study, &made, &estimate)?;
    } else {
        plan_text(arguments, &study, &made, &history)?;
    }
    Ok(if plan.check && !made.is_up_to_date() { exit::WORK_TO_DO } else { exit::DONE })
}

/// `NODE=ROWS` of the command line.
fn given_rows(study: &Study, texts: &[String]) -> Result<BTreeMap<NodeId, u64>, CliError> {
    let mut given = BTreeMap::new();
    for text in texts {
        let parsed = text.rsplit_once('=').and_then(|(node, rows)| Some((node, rows.parse::<u64>().ok()?)));
        let Some((node, rows)) = parsed else {
            let mut error =
                CliError::new(exit::USAGE, format!("error: `--rows {text}` names no number of rows"));
            error.hint =
                Some("write a node or a stage and a whole number: `--rows pairs=15000000`".to_owned());
            return Err(error);
        };
        given.extend(study.select(node)?.into_iter().map(|id| (id, rows)));
    }
    Ok(given)
}

/// Prints what a plan costs.
fn estimate_text(
    arguments: &Arguments,
    study: &Study,
    plan: &Plan,
    estimate: &Estimate,
) -> Result<u8, CliError> {
    if arguments.global.json {
        let (hit, run, maybe) = plan.counts();
        return print_json(&json!({
            "version": 1, "pipeline": study.pipeline.name, "hit": hit, "run": run, "maybe": maybe,
            "estimate": estimate.json(&study.pipeline),
        }));
    }
    if arguments.global.quiet {
        return Ok(exit::DONE);
    }
    let unknown = || "unknown".to_owned();
    let hours = |seconds: Option<f64>| seconds.map_or_else(unknown, duration);
    let bytes = |bytes: Option<f64>| bytes.map_or_else(unknown, |bytes| size(bytes as u64));
    let mut text = format!(
        "{:>8} {:>7} {:>9} {:>9} {:>9} {:>10}  node\n",
        "actions", "jobs", "time", "of GPUs", "of cores", "results"
    );
    for cost in &estimate.costs {
        let count = |count: Option<usize>| count.map_or_else(unknown, |count| count.to_string());
        let note = match cost.basis {
            Some(Basis::Kind) => "  (by others of its kind)",
            _ => "",
        };
        text.push_str(&format!(
            "{:>8} {:>7} {:>9} {:>9} {:>9} {:>10}  {}{note}\n",
            count(cost.actions),
            count(cost.jobs),
            hours(cost.seconds),
            hours(cost.gpu_seconds),
            hours(cost.core_seconds),
            bytes(cost.bytes),
            study.pipeline.nodes[cost.id.0].name,
        ));
    }
    let totals = estimate.totals();
    text.push_str(&counts(plan));
    text.push_str(&format!(
        "by what was measured: {} jobs, {} of one action after another, {} of GPUs, {} of cores, {} of results\n",
        totals.jobs,
        duration(totals.seconds),
        duration(totals.gpu_seconds),
        duration(totals.core_seconds),
        size(totals.bytes as u64)
    ));
    if totals.unknown > 0 {
        text.push_str(&format!(
            "nothing is known of what {} of these nodes take, which adds to it\n",
            totals.unknown
        ));
    }
    print(&text)
}

/// Prints a plan: what would run, with reasons; hits are counted, and listed with `-v`.
pub(crate) fn plan_text(
    arguments: &Arguments,
    study: &Study,
    plan: &Plan,
    history: &History,
) -> Result<u8, CliError> {
    if arguments.global.json {
        return print_json(&plan.json(&study.pipeline, history));
    }
    if arguments.global.quiet {
        return Ok(exit::DONE);
    }
    let mut text = String::new();
    for id in &plan.order {
        let (word, reasons) = plan.words(*id);
        let foreign = plan.foreign_class(*id);
        let is_shown = word != "hit" || foreign.is_some() || arguments.global.verbose;
        if plan.status[id.0] == Status::NotWanted || !is_shown {
            continue;
        }
        let node = &study.pipeline.nodes[id.0];
        let promise = match node.kind.determinism() {
            Determinism::Bitwise => String::new(),
            Determinism::Tolerance { absolute, relative } => {
                format!("  (deterministic within {absolute:e} or a share of {relative:e})")
            }
            Determinism::None => "  (not deterministic)".to_owned(),
        };
        let parts = plan.shards[id.0].map(|shards| format!("  ({})", shards.words())).unwrap_or_default();
        let before = plan.seconds(*id, &study.pipeline, history);
        let before = before.filter(|seconds| *seconds >= 1.0);
        let before = before.map(|seconds| format!("  about {}", duration(seconds))).unwrap_or_default();
        let foreign = foreign.map(|class| format!("  (of numerics class {class})")).unwrap_or_default();
        text.push_str(&format!("{word:>6}  {}{parts}{before}{promise}{foreign}\n", node.name));
        for reason in reasons {
            text.push_str(&format!("          {}\n", reason.words(&study.pipeline)));
        }
    }
    text.push_str(&counts(plan));
    if let Some(seconds) = plan.estimate(&study.pipeline, history) {
        text.push_str(&format!(
            "as before this takes up to {} of one action after another\n",
            duration(seconds)
        ));
    }
    print(&text)
}

/// `40 s`, `5 min`, `2.5 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        short if short < 10.0 => format!("{short:.1} s"),
        short if short < 120.0 => format!("{short:.0} s"),
        medium if medium < 7200.0 => format!("{:.0} min", medium / 60.0),
        long => format!("{:.1} h", long / 3600.0),
    }
}

/// `3 up to date, 1 to run, 2 depend on what runs`, as a line.
pub(crate) fn counts(plan: &Plan) -> String {
    let (hit, run, maybe) = plan.counts();
    format!("{hit} up to date, {run} to run, {maybe} depend on what runs\n")
}

pub(crate) fn why(arguments: &Arguments, why: &WhyArguments, registry: &Registry) -> Result<u8, CliError> {
    let study = Study::load(arguments, &why.target.pipeline, registry)?;
    let store = study.open_existing()?;
    let wanted = Wanted { accept_numerics: why.accept_numerics.is_some(), ..Wanted::default() };
    let (plan, _, history) = study.plan(store.as_ref(), &wanted, registry.numerics())?;
    let mut nodes = Vec::new();
    for target in &why.target.targets {
        nodes.extend(study.select(target)?);
    }
    let pipeline = &study.pipeline;
    if arguments.global.json {
        let answers: Vec<_> = nodes.iter().map(|id| answer_json(pipeline, &plan, &history, *id)).collect();
        return print_json(&json!({ "version": 1, "nodes": answers }));
    }
    print(&nodes.iter().map(|id| answer(pipeline, &plan, &history, *id)).collect::<String>())
}

fn answer(pipeline: &Pipeline, plan: &Plan, history: &History, id: NodeId) -> String {
    let name = &pipeline.nodes[id.0].name;
    let (word, reasons) = plan.words(id);
    if word == "hit" {
        let foreign = plan.foreign_class(id).map(|class| format!(" with a result of numerics class {class}"));
        return format!("{name} is up to date{}\n", foreign.unwrap_or_default());
    }
    let verb = if word == "run" { "runs" } else { "may run" };
    let parts = plan.shards[id.0].map(|shards| format!(", {},", shards.words())).unwrap_or_default();
    let mut text = format!("{name} {verb}{parts} because\n");
    for (node, reason) in root_causes(pipeline, plan, id) {
        text.push_str(&format!("  {}: {}\n", pipeline.nodes[node.0].name, reason.words(pipeline)));
        for line in why::account(pipeline, plan, history, &reason) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    let is_stored = history.last_record(name, None).is_some();
    if is_stored && reasons.iter().any(|reason| matches!(reason, DirtyReason::Upstream { .. })) {
        text.push_str(if pipeline.nodes[id.0].kind.shows_ancestry() {
            "  (it shows under which keys its inputs came about, so it runs even if these are as before)\n"
        } else {
            "  (it runs only if their results differ from the stored ones)\n"
        });
    }
    text
}

fn answer_json(pipeline: &Pipeline, plan: &Plan, history: &History, id: NodeId) -> serde_json::Value {
    let (word, reasons) = plan.words(id);
    let causes: Vec<_> = root_causes(pipeline, plan, id)
        .iter()
        .map(|(node, reason)| {
            json!({
                "node": pipeline.nodes[node.0].name, "reason": reason.json(pipeline),
                "account": why::account(pipeline, plan, history, reason),
            })
        })
        .collect();
    json!({
        "node": pipeline.nodes[id.0].name, "status": word, "root_causes": causes,
        "other_class": plan.foreign_class(id),
        "shards": plan.shards[id.0].map(|shards| json!({ "total": shards.total, "run": shards.run })),
        "reasons": reasons.iter().map(|reason| reason.json(pipeline)).collect::<Vec<_>>(),
    })
}

/// The first causes above a node: reasons that are not "an upstream node runs", nearest to the sources
/// first.
fn root_causes(pipeline: &Pipeline, plan: &Plan, id: NodeId) -> Vec<(NodeId, DirtyReason)> {
    let ancestors = Wanted::with_ancestors(pipeline, [id].into());
    plan.order
        .iter()
        .filter(|node| ancestors.contains(node))
        .flat_map(|node| plan.words(*node).1.iter().map(move |reason| (*node, reason.clone())))
        .filter(|(_, reason)| !matches!(reason, DirtyReason::Upstream { .. }))
        .collect()
}
