//! The remote cache of a study: which one, and `pipe push`, `pipe pull` and `pipe gc --remote`.

use std::collections::BTreeSet;
use std::time::Duration;

use pipe_cache::{Digest, Store};
use pipe_mirror::{Mirror, Mode, PlaceError, RemoteLimits};
use rayon::prelude::*;
use serde_json::json;

use super::arguments::{Arguments, GcArguments, MirrorArguments};
use super::signals::Signals;
use super::status::size;
use super::study::Study;
use super::{CliError, print, print_json};
use crate::action;
use crate::exit;
use crate::kind::Registry;
use crate::language::quantity;
use crate::pipeline::{NodeId, Place, RemoteMode};
use crate::plan::Status;
use crate::run::{blobs, tell_if_off};

const URL: &str = "PIPE_REMOTE";
const MODE: &str = "PIPE_REMOTE_MODE";

/// Opens the remote cache of a study: the one that the environment names, else that of the file. None if there is none
/// or it is off.
pub(crate) fn open(study: &Study, asked: Option<RemoteMode>) -> Result<Option<Mirror>, CliError> {
    let Some((place, mode)) = place(study, asked)? else { return Ok(None) };
    let mode = match mode {
        RemoteMode::Off => return Ok(None),
        RemoteMode::Read => Mode::Read,
        RemoteMode::ReadWrite => Mode::ReadWrite,
    };
    Mirror::open(&place, mode).map(Some).map_err(refuse)
}

fn place(
    study: &Study,
    asked: Option<RemoteMode>,
) -> Result<Option<(pipe_mirror::Place, RemoteMode)>, CliError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let said = &study.pipeline.remote;
    let mode = match variable(MODE) {
        None => said.mode,
        Some(text) => Some(RemoteMode::parse(&text).ok_or_else(|| {
            let text = format!("error: the environment variable {MODE} is `{text}`");
            let mut error = CliError::new(exit::USAGE, text);
            error.hint = Some("it has to be `off`, `read` or `read-write`".to_owned());
            error
        })?),
    };
    let mode = asked.or(mode).unwrap_or(RemoteMode::Read);
    let place = match (variable(URL), &said.url) {
        (Some(url), _) => pipe_mirror::Place::parse(&url, None),
        (None, Some(url)) => pipe_mirror::Place::parse(url, said.endpoint.as_deref()),
        (None, None) => return Ok(None),
    };
    Ok(Some((place.map_err(refuse)?, mode)))
}

fn refuse(error: PlaceError) -> CliError {
    let (code, hint) = match &error {
        PlaceError::Address { .. } => {
            (exit::USAGE, "see docs/remote-cache.md; `--remote off` goes without it")
        }
        _ => (exit::ENVIRONMENT, "`--remote off` goes without it"),
    };
    let mut failure =
        CliError::new(code, format!("error: the remote cache cannot be used\n  cause: {error}"));
    failure.hint = Some(hint.to_owned());
    failure
}

/// The remote cache of a command that is about nothing else.
fn required(study: &Study, mode: RemoteMode) -> Result<Mirror, CliError> {
    open(study, Some(mode))?.ok_or_else(|| {
        let mut error = CliError::new(exit::USAGE, "error: this study has no remote cache");
        error.hint = Some(format!("write `[remote]` with `url = \"s3://BUCKET/PREFIX\"`, or set {URL}"));
        error
    })
}

/// That it stopped answering is the end of a command that is about nothing else.
fn check(mirror: &Mirror) -> Result<(), CliError> {
    match mirror.why_off() {
        None => Ok(()),
        Some(reason) => Err(CliError::new(
            exit::ENVIRONMENT,
            format!("error: the remote cache cannot be used\n  cause: {reason}"),
        )),
    }
}

fn signals() -> Result<Signals, CliError> {
    Signals::register(Place::Local)
        .map_err(|error| CliError::environment("registering signal handlers", &error))
}

/// `pipe push`: puts what the store has of a study into the remote cache.
pub(crate) fn push(
    arguments: &Arguments,
    push: &MirrorArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &push.pipeline, registry)?;
    let mirror = required(&study, RemoteMode::ReadWrite)?;
    let Some(store) = study.open_existing()? else {
        return print("there is no store, so there is nothing to put\n");
    };
    let wanted = study.wanted(&push.selection)?;
    let (plan, ..) = study.plan(Some(&store), &wanted, registry.numerics())?;
    let consumers = action::consumers(&study.pipeline);
    let mut sent: BTreeSet<Digest> = BTreeSet::new();
    for id in plan.order.iter().filter(|id| plan.status[id.0] == Status::Hit && !plan.evicted.contains(id)) {
        let Some(record) = &plan.records[id.0] else { continue };
        let files = blobs(study.pipeline.nodes[id.0].remote, !consumers[id.0].is_empty());
        // What the next edit of some rows starts from.
        for key in record.shards.iter().filter(|key| sent.insert(**key)) {
            if let Some(part) = store.lookup(key)? {
                mirror.send(part, files, &store);
            }
        }
        if sent.insert(record.key) {
            mirror.send(record.clone(), files, &store);
        }
    }
    let signals = signals()?;
    let stopped = || signals.stop.load(std::sync::atomic::Ordering::Relaxed);
    let is_quiet = arguments.global.quiet || arguments.global.json;
    let mut told = std::time::Instant::now();
    let uploaded = mirror.finish(stopped, |done, total| {
        if !is_quiet && told.elapsed() > Duration::from_secs(1) {
            told = std::time::Instant::now();
            eprintln!("{:>10}  {done} of {total} results", "Putting");
        }
    });
    check(&mirror)?;
    if stopped() {
        return Ok(signals.exit_code());
    }
    if arguments.global.json {
        return print_json(&json!({
            "version": 1, "records": uploaded.records, "blobs": uploaded.blobs, "bytes": uploaded.bytes,
            "differing": uploaded.differing,
        }));
    }
    print(&format!(
        "{} results are there now; {} files with {} were sent\n",
        uploaded.records,
        uploaded.blobs,
        size(uploaded.bytes)
    ))
}

/// `pipe pull`: takes what the remote cache has of a study, and runs nothing.
pub(crate) fn pull(
    arguments: &Arguments,
    pull: &MirrorArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &pull.pipeline, registry)?;
    let mirror = required(&study, RemoteMode::Read)?;
    let store = study.open(pipe_cache::Durability::Full)?;
    let wanted = study.wanted(&pull.selection)?;
    let signals = signals()?;
    let stopped = || signals.stop.load(std::sync::atomic::Ordering::Relaxed);
    let (mut taken, mut asked) = (0, BTreeSet::new());
    // What a result says decides the keys of what reads it.
    loop {
        let (plan, ..) = study.plan(Some(&store), &wanted, registry.numerics())?;
        let missing = |id: &NodeId| match plan.status[id.0] {
            Status::Run(_) => true,
            Status::Hit => plan.evicted.contains(id),
            _ => false,
        };
        let keys =
            plan.order.iter().copied().filter(missing).filter_map(|id| Some(plan.keys[id.0].as_ref()?.0));
        let keys: BTreeSet<Digest> = keys.filter(|key| !asked.contains(key)).collect();
        if keys.is_empty() || stopped() {
            break;
        }
        let came = keys.par_iter().filter(|key| !stopped() && mirror.bring(key, &store).is_some());
        taken += came.count();
        asked.extend(keys);
        check(&mirror)?;
    }
    if stopped() {
        return Ok(signals.exit_code());
    }
    let (plan, ..) = study.plan(Some(&store), &wanted, registry.numerics())?;
    let (hit, run, maybe) = plan.counts();
    if arguments.global.json {
        return print_json(&json!({ "version": 1, "taken": taken, "hit": hit, "run": run, "maybe": maybe }));
    }
    print(&format!("{taken} results taken; {hit} are up to date, {} are not there\n", run + maybe))
}

/// `pipe gc --remote`.
pub(crate) fn gc(arguments: &Arguments, gc: &GcArguments, registry: &Registry) -> Result<u8, CliError> {
    let usage = |message: String| CliError::new(exit::USAGE, format!("error: {message}"));
    let Some(pipeline) = &gc.pipeline else {
        return Err(usage("which study's remote cache is meant?".to_owned()));
    };
    let study = Study::load(arguments, pipeline, registry)?;
    let mirror = required(&study, RemoteMode::ReadWrite)?;
    let duration = |text: &str| {
        let seconds = quantity::seconds(text).map(Duration::from_secs);
        seconds.ok_or_else(|| usage(format!("`{text}` is no duration such as `24h`")))
    };
    let limits = RemoteLimits {
        older_than: gc.older_than.as_deref().map(duration).transpose()?,
        grace: duration(&gc.grace)?,
    };
    let failed = |reason: String| {
        CliError::new(exit::ENVIRONMENT, format!("error: the remote cache cannot be used\n  cause: {reason}"))
    };
    let garbage = mirror.garbage(&limits).map_err(failed)?;
    if gc.apply {
        mirror.collect(&garbage).map_err(failed)?;
    }
    if arguments.global.json {
        return print_json(&json!({
            "version": 1, "applied": gc.apply, "records": garbage.records.len(), "blobs": garbage.blobs.len(),
            "bytes": garbage.bytes, "uploads": garbage.uploads.len(),
        }));
    }
    let would = if gc.apply { "were removed" } else { "would be removed; `--apply` does it" };
    let uploads = match garbage.uploads.len() {
        0 => String::new(),
        count => format!(", and what {count} broken-off uploads left"),
    };
    print(&format!(
        "{} results and {} files that nothing needs there, {}{uploads}, {would}\n",
        garbage.records.len(),
        garbage.blobs.len(),
        size(garbage.bytes)
    ))
}

/// Puts what is left into the remote cache at the end of a run, and says what came of it.
pub(crate) fn finish(
    mirror: &Mirror,
    store: &Store,
    events: &crate::events::EventLog,
    signals: &Signals,
) -> pipe_mirror::Uploaded {
    let stopped = || signals.stop.load(std::sync::atomic::Ordering::Relaxed);
    let mut told = std::time::Instant::now();
    let uploaded = mirror.finish(stopped, |done, total| {
        if told.elapsed() > Duration::from_secs(1) {
            told = std::time::Instant::now();
            events.emit(
                "progress",
                json!({ "node": "remote cache", "shard": null, "done": done, "total": total, "unit": "results", "metrics": {} }),
            );
        }
    });
    for key in &uploaded.differing {
        let node =
            store.record(key).ok().flatten().and_then(|record| Some(record.components()?.kind.clone()));
        let detail =
            "another machine's result under the same key is another one; the remote cache keeps both";
        let subject = node.map_or_else(|| key.to_hex(), |kind| format!("{kind} {key}"));
        events.emit("nondeterminism", json!({ "subject": subject, "detail": detail }));
    }
    tell_if_off(Some(mirror), events);
    uploaded
}
