//! `pipe log`: the runs of a study, the events of one of them, or what a node wrote.

use pipe_cache::{RunFolder, Store};
use serde_json::{Value as Json, json};

use super::arguments::{Arguments, LogArguments};
use super::study::Study;
use super::{CliError, print, print_json};
use crate::exit;
use crate::history::StoredPlan;
use crate::journal::{Journal, events};
use crate::kind::Registry;

/// More attempts of one action in one run are not looked for.
const ATTEMPTS: u32 = 100;

pub(crate) fn log(arguments: &Arguments, log: &LogArguments, registry: &Registry) -> Result<u8, CliError> {
    let study = Study::load(arguments, &log.pipeline, registry)?;
    let store = study.open_existing()?;
    let json = arguments.global.json;
    match (&store, log.target.as_deref()) {
        (None, _) if json => print_json(&json!({ "version": 1, "runs": [] })),
        (None, _) => print("nothing has run yet\n"),
        (Some(store), None) => runs(store, &study, log.last, json),
        (Some(store), Some(target)) => match find_run(store, target)? {
            Some(run) => print_events(&run, json),
            None => outputs(store, &study, target, json),
        },
    }
}

/// The run that a person means and has to mean, with its plan.
///
/// # Errors
/// If there is no such run, or it left no plan.
pub(crate) fn run_and_plan(store: &Store, text: &str) -> Result<(RunFolder, StoredPlan), CliError> {
    let run = find_run(store, text)?.ok_or_else(|| {
        let mut error = CliError::new(exit::USAGE, format!("error: `{text}` is no run"));
        error.hint =
            Some("`pipe log` lists the runs; the beginning of an id is enough, or `last`".to_owned());
        error
    })?;
    let plan = StoredPlan::read(store, &run)
        .ok_or_else(|| CliError::new(exit::USAGE, format!("error: run {} left no plan", run.id())))?;
    Ok((run, plan))
}

/// The run that a person means: its id, the unambiguous beginning of one, or `last`.
///
/// # Errors
/// If several runs begin so.
pub(crate) fn find_run(store: &Store, text: &str) -> Result<Option<RunFolder>, CliError> {
    let mut runs = store.runs()?;
    if text == "last" {
        return Ok(runs.pop());
    }
    // A stage may be called `a1`, a run never has fewer characters than this.
    let may_be_one = text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    runs.retain(|run| may_be_one && run.id().starts_with(text));
    match runs.as_slice() {
        [_, _, ..] => {
            let text = format!("error: {} runs begin with `{text}`", runs.len());
            Err(CliError::new(exit::USAGE, text))
        }
        _ => Ok(runs.pop()),
    }
}

fn runs(store: &Store, study: &Study, last: usize, json: bool) -> Result<u8, CliError> {
    let runs = store.runs()?;
    let newest = runs.iter().rev().filter_map(Journal::read);
    let mut journals: Vec<Journal> =
        newest.filter(|journal| journal.pipeline() == study.pipeline.name).take(last).collect();
    journals.reverse();
    if json {
        let runs: Vec<Json> = journals.iter().map(Journal::json).collect();
        return print_json(&json!({ "version": 1, "runs": runs }));
    }
    let line = |journal: &Journal| {
        let end = journal.finished.as_ref();
        let number = |key: &str| end.and_then(|end| end[key].as_u64());
        let what = match (number("executed"), number("failed"), end.and_then(|end| end["wall"].as_f64())) {
            (Some(executed), Some(failed), Some(wall)) => {
                format!("  {executed} executed, {failed} failed, {wall:.1} s")
            }
            _ => String::new(),
        };
        format!("{}  {}  {}{what}\n", journal.run, journal.time(), journal.status())
    };
    print(&journals.iter().map(line).collect::<String>())
}

fn print_events(run: &RunFolder, json: bool) -> Result<u8, CliError> {
    let events = events(run);
    if json {
        return print_json(&json!({ "version": 1, "run": run.id(), "events": events }));
    }
    print(&events.iter().map(line).collect::<String>())
}

/// An event on one line: time, what, about what, and the rest that a person may want.
fn line(event: &Json) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let about = [text("node"), text("subject")].concat();
    let mut parts = vec![text("ts"), text("ev"), about];
    for key in ["status", "reason", "detail", "error"] {
        parts.push(text(key));
    }
    if let (Some(done), Some(total)) = (event["done"].as_u64(), event["total"].as_u64()) {
        parts.push(format!("{done}/{total} {}", text("unit")));
    }
    if let Some(wall) = event["wall"].as_f64() {
        parts.push(format!("{wall:.3} s"));
    }
    parts.retain(|part| !part.is_empty());
    format!("{}\n", parts.join("  "))
}

/// What the nodes of a target wrote when they last ran.
fn outputs(store: &Store, study: &Study, target: &str, json: bool) -> Result<u8, CliError> {
    let runs = store.runs()?;
    let mut logs = Vec::new();
    for id in study.select(target)? {
        let node = &study.pipeline.nodes[id.0].name;
        let newest = runs.iter().rev().find_map(|run| {
            let journal = Journal::read(run)?;
            journal.actions.get(node).filter(|action| !action.began.is_empty())?;
            let attempts = (1..=ATTEMPTS).map_while(|attempt| {
                let text = std::fs::read(run.log(node, attempt)).ok()?;
                Some((attempt, String::from_utf8_lossy(&text).into_owned()))
            });
            // An attempt that had nothing to say has no file.
            let (attempt, text) = attempts.last().unwrap_or((1, String::new()));
            Some((run.id().to_owned(), attempt, text))
        });
        logs.push((node, newest));
    }
    if json {
        let logs: Vec<Json> = logs
            .iter()
            .map(|(node, log)| match log {
                Some((run, attempt, text)) => {
                    json!({ "node": node, "run": run, "attempt": attempt, "text": text })
                }
                None => json!({ "node": node, "run": null, "attempt": null, "text": null }),
            })
            .collect();
        return print_json(&json!({ "version": 1, "logs": logs }));
    }
    let text = |(node, log): &(&String, Option<(String, u32, String)>)| match log {
        Some((run, attempt, text)) => {
            let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            format!("[{node}]  run {run}, attempt {attempt}\n{text}{end}")
        }
        None => format!("[{node}]  it has not run\n"),
    };
    print(&logs.iter().map(text).collect::<String>())
}
