//! `pipe run`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipe_cache::Verify;
use serde_json::json;

use super::CliError;
use super::arguments::{Arguments, RunArguments};
use super::inspect::plan_text;
use super::signals::Signals;
use super::study::Study;
use crate::events::EventLog;
use crate::exit;
use crate::kind::Registry;
use crate::pipeline::NodeId;
use crate::progress::{Display, Verbosity};
use crate::publish;
use crate::run::{OnFailure, Outcome, RunOptions, Scheduler};

pub(crate) fn run(arguments: &Arguments, run: &RunArguments, registry: &Registry) -> Result<u8, CliError> {
    let started = Instant::now();
    let global = &arguments.global;
    let study = Study::load(arguments, &run.pipeline, registry)?;
    let pipeline = &study.pipeline;
    let wanted = study.wanted(&run.selection)?;
    if run.dry_run {
        let store = study.open_existing()?;
        let (plan, ..) = study.plan(store.as_ref(), &wanted, registry.numerics())?;
        return plan_text(arguments, &study, &plan);
    }
    // Before the store is made: missing data are the user's to mend, and nothing shall be left behind.
    if !study.store_path.exists() {
        study.hash_sources(None, &wanted)?;
    }
    let store = study.open()?;
    let signals =
        Signals::register().map_err(|error| CliError::environment("registering signal handlers", &error))?;
    let (mut plan, sources, history) = study.plan(Some(&store), &wanted, registry.numerics())?;
    let folder = store.new_run()?;
    let verbosity = match (global.quiet || global.json, global.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, true) => Verbosity::Verbose,
        (false, false) => Verbosity::Normal,
    };
    let display = Display::new(verbosity, std::io::stderr().is_terminal());
    let events = EventLog::create(&folder.events(), folder.id(), display, global.json)
        .map_err(|error| CliError::environment("opening the event log", &error))?;
    let events = Arc::new(events);
    let argv: Vec<String> = std::env::args().collect();
    events.emit(
        "run_started",
        json!({
            "pipeline": pipeline.name, "argv": argv, "profile": pipeline.profiles,
            "overrides": { "var": global.var, "set": global.set },
            "version": env!("CARGO_PKG_VERSION"), "host": store.owner().host, "pid": store.owner().pid, "devices": ["cpu"],
        }),
    );
    let (hit, run_count, maybe) = plan.counts();
    events.emit(
        "planned",
        json!({ "hit": hit, "run_count": run_count, "maybe": maybe, "nodes": pipeline.nodes.len() }),
    );

    let durations: BTreeMap<NodeId, f64> = (0..pipeline.nodes.len())
        .filter(|index| plan.records[*index].is_none())
        .filter_map(|index| {
            let key = history.keys.get(&pipeline.nodes[index].name)?;
            let record = store.record(key).ok().flatten()?;
            Some((NodeId(index), record.meta.duration_seconds))
        })
        .collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = RunOptions {
        cores: run.jobs.unwrap_or(cores).max(1),
        on_failure: match run.fail_fast.as_deref() {
            Some("now") => OnFailure::StopAll,
            Some(_) => OnFailure::StopStarting,
            None => OnFailure::Continue,
        },
        grace: Duration::from_secs(run.grace),
        verify: Verify::Always,
    };
    let scheduler = Scheduler {
        pipeline,
        store: &store,
        sources: &sources,
        numerics: registry.numerics(),
        options,
        events: Arc::clone(&events),
        run: &folder,
        stop: Arc::clone(&signals.stop),
        abort: Arc::clone(&signals.abort),
    };
    let outcome = if plan.is_up_to_date() {
        Ok(Outcome::default())
    } else {
        silence_panics();
        scheduler.execute(&mut plan, &durations)
    };
    let outcome = outcome?;
    let failed =
        outcome.failed.iter().map(|(id, failure)| (pipeline.nodes[id.0].name.clone(), failure.error.clone()));
    history.write(&store, &folder, pipeline, plan.known_keys(pipeline), failed.collect())?;

    let complete = wanted.nodes.is_none() && outcome.failed.is_empty() && !outcome.cancelled;
    let published = publish::publish(&store, &study.results, pipeline, &plan.records, complete)
        .map_err(|error| CliError::environment("publishing results", &error))?;
    for path in &published.kept {
        let detail = "was changed by someone and is kept as it is";
        events.emit("warning", json!({ "subject": path.display().to_string(), "detail": detail }));
    }
    let status = if outcome.cancelled {
        "cancelled"
    } else if outcome.failed.is_empty() {
        "ok"
    } else {
        "failed"
    };
    events.emit(
        "run_finished",
        json!({
            "status": status, "executed": outcome.executed.len(), "failed": outcome.failed.len(),
            "blocked": outcome.blocked.len(), "wall": started.elapsed().as_secs_f64(),
        }),
    );
    if !global.quiet && !global.json {
        summary(&study, &outcome, &published, hit, started.elapsed());
    }
    // Abandoned actions hold handles of the store; the process ends with them.
    Ok(if outcome.cancelled {
        signals.exit_code()
    } else {
        outcome.failed.values().map(|failure| failure.exit_code).max().unwrap_or(exit::DONE)
    })
}

/// A panic inside a stage is reported as that stage's failure, not as a dump on the terminal.
fn silence_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        if !name.starts_with("stage-") && !name.starts_with("action ") {
            default(info);
        }
    }));
}

fn summary(study: &Study, outcome: &Outcome, published: &publish::Summary, hits: usize, wall: Duration) {
    let nodes = &study.pipeline.nodes;
    for (id, failure) in &outcome.failed {
        eprintln!(
            "error: `{}` failed\n  cause: {}\n  log: {}",
            nodes[id.0].name,
            failure.error,
            failure.log.display()
        );
    }
    let mut by_cause: BTreeMap<NodeId, Vec<&str>> = BTreeMap::new();
    for (blocked, cause) in &outcome.blocked {
        by_cause.entry(*cause).or_default().push(&nodes[blocked.0].name);
    }
    for (cause, blocked) in by_cause {
        eprintln!("{:>10}  {} (by `{}`)", "Blocked", blocked.join(", "), nodes[cause.0].name);
    }
    let verb = if outcome.cancelled { "Stopped" } else { "Finished" };
    eprintln!(
        "{verb:>10}  {} executed, {hits} up to date, {} failed, {:.1} s   results: {}",
        outcome.executed.len(),
        outcome.failed.len(),
        wall.as_secs_f64(),
        published.folder.display()
    );
}
