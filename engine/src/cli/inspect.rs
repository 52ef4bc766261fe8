//! Commands that look and change nothing but published results: plan, why, status, show, log, clean.

use pipe_cache::Store;
use serde_json::json;

use super::arguments::{Arguments, FileArguments, PlanArguments, ShowArguments, TargetArguments};
use super::study::Study;
use super::{CliError, print};
use crate::exit;
use crate::kind::Registry;
use crate::pipeline::{InputSource, Node, NodeId, Pipeline};
use crate::plan::{Plan, Status, Wanted};
use crate::publish;
use crate::why;

pub(crate) fn plan(arguments: &Arguments, plan: &PlanArguments, registry: &Registry) -> Result<u8, CliError> {
    let study = Study::load(arguments, &plan.pipeline, registry)?;
    let wanted = study.wanted(&plan.selection)?;
    let store = study.open_existing()?;
    let (made, ..) = study.plan(store.as_ref(), &wanted, registry.numerics())?;
    plan_text(arguments, &study, &made)?;
    Ok(if plan.check && !made.is_up_to_date() { exit::WORK_TO_DO } else { exit::DONE })
}

/// Prints a plan: what would run, with reasons; hits are counted, and listed with `-v`.
pub(crate) fn plan_text(arguments: &Arguments, study: &Study, plan: &Plan) -> Result<u8, CliError> {
    if arguments.global.json {
        return print(&format!("{:#}\n", plan.json(&study.pipeline)));
    }
    let mut text = String::new();
    for id in &plan.order {
        let (word, reasons) = plan.words(*id);
        if plan.status[id.0] == Status::NotWanted || (word == "hit" && !arguments.global.verbose) {
            continue;
        }
        text.push_str(&format!("{word:>6}  {}\n", study.pipeline.nodes[id.0].name));
        for reason in reasons {
            text.push_str(&format!("          {}\n", reason.words(&study.pipeline)));
        }
    }
    let (hit, run, maybe) = plan.counts();
    text.push_str(&format!("{hit} up to date, {run} to run, {maybe} depend on what runs\n"));
    print(&text)
}

pub(crate) fn why(
    arguments: &Arguments,
    target: &TargetArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &target.pipeline, registry)?;
    let store = study.open_existing()?;
    let (plan, ..) = study.plan(store.as_ref(), &Wanted::default(), registry.numerics())?;
    let pipeline = &study.pipeline;
    let mut text = String::new();
    let mut answers = Vec::new();
    for target in &target.targets {
        for id in study.select(target)? {
            let (word, reasons) = plan.words(id);
            let causes = root_causes(pipeline, &plan, id);
            answers.push(json!({
                "node": pipeline.nodes[id.0].name,
                "status": word,
                "root_causes": causes.iter().map(|(node, reason)| json!({
                    "node": pipeline.nodes[node.0].name, "reason": reason.json(pipeline),
                })).collect::<Vec<_>>(),
                "reasons": reasons.iter().map(|reason| reason.json(pipeline)).collect::<Vec<_>>(),
            }));
            match word {
                "hit" => text.push_str(&format!("{} is up to date\n", pipeline.nodes[id.0].name)),
                _ => {
                    let verb = if word == "run" { "runs" } else { "may run" };
                    text.push_str(&format!("{} {verb} because\n", pipeline.nodes[id.0].name));
                    for (node, reason) in causes {
                        text.push_str(&format!(
                            "  {}: {}\n",
                            pipeline.nodes[node.0].name,
                            reason.words(pipeline)
                        ));
                    }
                    if reasons.iter().any(|reason| matches!(reason, why::DirtyReason::Upstream { .. })) {
                        text.push_str("  (it runs only if their results differ from the stored ones)\n");
                    }
                }
            }
        }
    }
    if arguments.global.json {
        return print(&format!("{:#}\n", json!({ "version": 1, "nodes": answers })));
    }
    print(&text)
}

/// The first causes above a node: reasons that are not "an upstream node runs", nearest to the sources
/// first.
fn root_causes(pipeline: &Pipeline, plan: &Plan, id: NodeId) -> Vec<(NodeId, why::DirtyReason)> {
    let ancestors = Wanted::with_ancestors(pipeline, [id].into());
    plan.order
        .iter()
        .filter(|node| ancestors.contains(node))
        .flat_map(|node| plan.words(*node).1.iter().map(move |reason| (*node, reason.clone())))
        .filter(|(_, reason)| !matches!(reason, why::DirtyReason::Upstream { .. }))
        .collect()
}

pub(crate) fn status(
    arguments: &Arguments,
    file: &FileArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &file.pipeline, registry)?;
    let Some(store) = study.open_existing()? else {
        if arguments.global.json {
            return print(&format!(
                "{:#}\n",
                json!({ "version": 1, "store": null, "running": [], "last_run": null })
            ));
        }
        return print(&format!("no store at {}: nothing has run yet\n", study.store_path.display()));
    };
    let (plan, ..) = study.plan(Some(&store), &Wanted::default(), registry.numerics())?;
    let running: Vec<_> = store.leases()?;
    let last = last_run(&store, &study.pipeline)?;
    let (hit, run, maybe) = plan.counts();
    if arguments.global.json {
        let running: Vec<_> = running
            .iter()
            .map(|(key, info)| json!({ "key": key.to_hex(), "run": info.run, "host": info.owner.host, "pid": info.owner.pid, "since": info.since }))
            .collect();
        return print(&format!(
            "{:#}\n",
            json!({ "version": 1, "store": study.store_path, "hit": hit, "run": run, "maybe": maybe, "running": running, "last_run": last })
        ));
    }
    let mut text = format!(
        "store    {}\nresults  {}\n",
        study.store_path.display(),
        publish::folder(&study.results, &study.pipeline).display()
    );
    for (key, info) in &running {
        let name = study
            .pipeline
            .nodes
            .iter()
            .zip(&plan.keys)
            .find(|(_, known)| known.as_ref().is_some_and(|(digest, _)| digest == key));
        let name = name.map_or_else(|| key.to_short(), |(node, _)| node.name.clone());
        text.push_str(&format!(
            "running  {name}  since {}  ({}:{})\n",
            info.since, info.owner.host, info.owner.pid
        ));
    }
    if let Some(last) = &last {
        text.push_str(&format!(
            "last run {}  {}  {}\n",
            last["ts"].as_str().unwrap_or("?"),
            last["run"].as_str().unwrap_or("?"),
            last["status"].as_str().unwrap_or("not finished")
        ));
    }
    text.push_str(&format!("{hit} up to date, {run} to run, {maybe} depend on what runs\n"));
    print(&text)
}

/// The start of the newest run of this pipeline, with its `status` if it finished.
fn last_run(store: &Store, pipeline: &Pipeline) -> Result<Option<serde_json::Value>, CliError> {
    for run in store.runs()?.iter().rev() {
        let text = std::fs::read_to_string(run.events()).unwrap_or_default();
        let mut events = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let Some(mut start) = events.next().filter(|event| event["pipeline"] == pipeline.name) else {
            continue;
        };
        let finish = events.rfind(|event| event["ev"] == "run_finished");
        if let (Some(finish), Some(start)) = (finish, start.as_object_mut()) {
            for key in ["status", "executed", "failed", "wall"] {
                start.insert(key.to_owned(), finish[key].clone());
            }
        }
        return Ok(Some(start));
    }
    Ok(None)
}

pub(crate) fn show(arguments: &Arguments, show: &ShowArguments, registry: &Registry) -> Result<u8, CliError> {
    let study = Study::load(arguments, &show.pipeline, registry)?;
    let pipeline = &study.pipeline;
    let store = study.open_existing()?;
    let (plan, ..) = study.plan(store.as_ref(), &Wanted::default(), registry.numerics())?;
    let mut nodes = Vec::new();
    for target in &show.targets {
        nodes.extend(study.select(target)?);
    }
    if show.targets.is_empty() {
        nodes.extend(plan.order.iter().copied());
    }
    if arguments.global.json {
        let nodes: Vec<_> = nodes.iter().map(|id| node_json(pipeline, &plan, *id)).collect();
        return print(&format!("{:#}\n", json!({ "version": 1, "nodes": nodes })));
    }
    let mut text = String::new();
    for id in nodes {
        let node = &pipeline.nodes[id.0];
        text.push_str(&format!("[{}]  {}  {}\n", node.name, node.description.name, plan.words(id).0));
        params_text(pipeline, node, show.resolved, &mut text);
        for input in &node.inputs {
            for source in &input.sources {
                text.push_str(&format!("  inputs.{} = {}\n", input.name, source_text(pipeline, source)));
            }
        }
        for port in &node.outputs {
            let output = plan.records[id.0].as_ref().and_then(|record| record.outputs.get(&port.name));
            let state = output.map_or_else(
                || "not there yet".to_owned(),
                |output| {
                    let rows = output.rows.map(|rows| format!("{rows} rows, ")).unwrap_or_default();
                    format!("{rows}{} bytes, {}", output.bytes(), output.content.to_short())
                },
            );
            text.push_str(&format!("  outputs.{}  {}  {state}\n", port.name, port.artifact.0));
        }
        text.push('\n');
    }
    print(&text)
}

fn params_text(pipeline: &Pipeline, node: &Node, with_origins: bool, text: &mut String) {
    for (name, value) in node.params.json.as_object().into_iter().flatten() {
        text.push_str(&format!("  params.{name} = {value}"));
        if with_origins {
            let place = node
                .origins
                .get(name)
                .map_or_else(|| "default".to_owned(), |origin| why::place(pipeline, origin));
            text.push_str(&format!("    # {place}"));
        }
        text.push('\n');
    }
}

fn source_text(pipeline: &Pipeline, source: &InputSource) -> String {
    match source {
        InputSource::Node { node, port } => format!("{}.{port}", pipeline.nodes[node.0].name),
        InputSource::File { pattern, .. } => format!("file:{pattern}"),
        InputSource::Blob(digest) => format!("store:b3:{digest}"),
    }
}

fn node_json(pipeline: &Pipeline, plan: &Plan, id: NodeId) -> serde_json::Value {
    let node = &pipeline.nodes[id.0];
    let origins: serde_json::Map<String, serde_json::Value> = node
        .origins
        .iter()
        .map(|(name, origin)| (name.clone(), why::place(pipeline, origin).into()))
        .collect();
    let inputs: serde_json::Map<String, serde_json::Value> = node
        .inputs
        .iter()
        .map(|input| {
            let sources: Vec<String> =
                input.sources.iter().map(|source| source_text(pipeline, source)).collect();
            (input.name.clone(), sources.into())
        })
        .collect();
    let outputs: serde_json::Map<String, serde_json::Value> = plan.records[id.0]
        .iter()
        .flat_map(|record| &record.outputs)
        .map(|(port, output)| {
            (port.clone(), json!({ "type": output.artifact_type, "digest": output.content, "rows": output.rows, "bytes": output.bytes() }))
        })
        .collect();
    json!({
        "node": node.name, "kind": node.description.name, "status": plan.words(id).0,
        "key": plan.keys[id.0].as_ref().map(|(digest, _)| digest.to_hex()),
        "params": node.params.json, "origins": origins, "inputs": inputs, "outputs": outputs,
    })
}

pub(crate) fn log(arguments: &Arguments, log: &ShowArguments, registry: &Registry) -> Result<u8, CliError> {
    let study = Study::load(arguments, &log.pipeline, registry)?;
    let Some(store) = study.open_existing()? else {
        return print("nothing has run yet\n");
    };
    if log.targets.is_empty() {
        let mut text = String::new();
        for run in store.runs()? {
            let events = std::fs::read_to_string(run.events()).unwrap_or_default();
            let first: serde_json::Value =
                events.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
            let last: serde_json::Value =
                events.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
            if first["pipeline"] == study.pipeline.name {
                let status = last["status"]
                    .as_str()
                    .filter(|_| last["ev"] == "run_finished")
                    .unwrap_or("not finished");
                text.push_str(&format!("{}  {}  {status}\n", run.id(), first["ts"].as_str().unwrap_or("?")));
            }
        }
        return print(&text);
    }
    let mut text = String::new();
    for target in &log.targets {
        for id in study.select(target)? {
            let name = &study.pipeline.nodes[id.0].name;
            let newest = store.runs()?.into_iter().rev().find_map(|run| {
                let attempts =
                    (1..=100).map_while(|attempt| std::fs::read_to_string(run.log(name, attempt)).ok());
                attempts.last()
            });
            text.push_str(&format!(
                "[{name}]\n{}",
                newest.unwrap_or_else(|| "no log: it has not run\n".to_owned())
            ));
        }
    }
    print(&text)
}

pub(crate) fn clean(
    arguments: &Arguments,
    file: &FileArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &file.pipeline, registry)?;
    let summary = publish::clean(&study.results, &study.pipeline)
        .map_err(|error| CliError::environment("removing published results", &error))?;
    for path in &summary.kept {
        eprintln!("{:>10}  {} was changed by someone", "Kept", path.display());
    }
    print(&format!(
        "{} files removed from {}; the store is as it was\n",
        summary.removed,
        summary.folder.display()
    ))
}
