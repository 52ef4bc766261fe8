//! `pipe run`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use pipe_cache::{OutputRecord, RunFolder, Store, Verify};
use serde_json::json;

use super::arguments::{Arguments, RunArguments};
use super::plan::plan_text;
use super::signals::Signals;
use super::status::size;
use super::study::Study;
use super::summary::{Summary, exit_code};
use super::{CliError, fetching, mirror};
use crate::action::{self, SourceDigests};
use crate::attempt::chain;
use crate::events::EventLog;
use crate::exit;
use crate::history::{self, History};
use crate::interim::{self, Interim};
use crate::kind::Registry;
use crate::pipeline::{Limits, NodeId, Place};
use crate::plan::{Plan, Status, Wanted};
use crate::progress::{Display, Verbosity};
use crate::publish::{self, PublishError, Publishing};
use crate::read_ahead::ReadAhead;
use crate::remote::Fetcher;
use crate::reproduce;
use crate::run::{OnFailure, Outcome, RunOptions, Scheduler, critical_path, free_bytes};
use crate::slurm::{Cluster, Surroundings, relay};
use crate::stage_table;
use crate::why::DirtyReason;

/// How often results that turn out to be damaged when they are published are made again.
const REPAIRS: usize = 3;

pub(crate) fn run(arguments: &Arguments, run: &RunArguments, registry: &Registry) -> Result<u8, CliError> {
    let started = Instant::now();
    let study = Study::load_for(arguments, &run.pipeline, run.executor.as_deref(), registry)?;
    check_place(&study, run)?;
    let mut wanted = study.wanted(&run.selection)?;
    if run.dry_run {
        let store = study.open_existing()?;
        let (plan, _, history) = study.plan(store.as_ref(), &wanted, registry.numerics())?;
        return plan_text(arguments, &study, &plan, &history);
    }
    let fetcher = Arc::new(Fetcher::from_environment(run.offline));
    // Before the store is made: missing data are the user's to mend, and nothing shall be left behind.
    let to_fetch = if study.reads_remotes() || !study.store_path.exists() {
        fetching::resolve(&study, study.open_existing()?.as_ref(), &wanted, run, &fetcher)?
    } else {
        Vec::new()
    };
    let mirror = if run.offline { None } else { mirror::open(&study, run.remote.map(Into::into))? };
    wanted.has_remote = mirror.is_some();
    let store = study.open(run.durability.into())?;
    let signals = Signals::register(study.pipeline.executor.place)
        .map_err(|error| CliError::environment("registering signal handlers", &error))?;
    let mut begun = None;
    if !to_fetch.is_empty() {
        let (folder, events) = begin(arguments, &study, &store)?;
        let grace = Duration::from_secs(run.grace);
        let fetched = fetching::fetch(&study, &store, to_fetch, &fetcher, &events, &signals, grace);
        if !matches!(fetched, Ok(None)) {
            fetching::close(&events, fetched.is_ok(), started.elapsed());
        }
        if let Some(code) = fetched? {
            return Ok(code);
        }
        begun = Some((folder, events));
    }
    let (mut plan, sources, history) = study.plan(Some(&store), &wanted, registry.numerics())?;
    if run.offline {
        let absent = study.absent_sources(&store, &plan, &sources, &fetcher);
        if !absent.is_empty() {
            return Err(study.missing_sources(&absent));
        }
    }
    let (folder, events) = match begun {
        Some(begun) => begun,
        None => begin(arguments, &study, &store)?,
    };
    if run.reproduce {
        let asked = study.targets(&run.selection)?;
        let again = reproduce::choose(&study.pipeline, &plan, asked.as_ref(), run.rate, folder.id());
        wanted.forced.extend(again);
        let (numerics, ahead) = (registry.numerics(), ReadAhead::default());
        plan = Plan::make(&study.pipeline, Some(&store), &sources, numerics, &wanted, &history, ahead)?;
    }
    if let Some(mirror) = &mirror {
        bring_asked(&mut plan, mirror, &store);
    }
    announce(&study, &plan, &events);
    let hits = plan.counts().0;
    let session =
        Session { study: &study, store, wanted, sources, history, folder, events, signals, fetcher, mirror };
    let (plan, outcome, published) = session.make_up_to_date(plan, run, registry)?;
    session.tell_costs(&plan, &outcome, registry);
    let uploaded = session
        .mirror
        .as_ref()
        .map(|one| mirror::finish(one, &session.store, &session.events, &session.signals));
    let kept = published.as_ref().map(|published| published.kept.as_slice()).unwrap_or_default();
    session.close(&plan, &outcome, kept, started.elapsed());
    let summary = Summary {
        study: &study,
        outcome: &outcome,
        published: published.as_ref(),
        hits: hits + outcome.taken,
        uploaded: uploaded.unwrap_or_default(),
        foreign: plan.foreign.len(),
        wall: started.elapsed(),
        store: &session.store,
    };
    summary.print(arguments);
    if run.detach && !outcome.jobs.is_empty() && !outcome.cancelled {
        session.relay(&outcome, arguments)?;
    }
    // Abandoned actions hold handles of the store; the process ends with them.
    let code = match published {
        _ if outcome.cancelled => session.signals.exit_code(),
        Ok(_) if run.reproduce && !outcome.differing.is_empty() && outcome.failed.is_empty() => {
            exit::NOT_DETERMINISTIC
        }
        Err(_) => exit_code(&outcome).max(exit::ENVIRONMENT),
        Ok(_) => exit_code(&outcome),
    };
    if outcome.abandoned {
        session.store.abandon();
    }
    drop(session);
    // The memory of a large study goes with the process at once; piece by piece takes as long as much of a run
    // with nothing to do.
    std::mem::forget((plan, study));
    Ok(code)
}

/// What is asked for by name comes with its files, if only its record is here.
fn bring_asked(plan: &mut Plan, mirror: &pipe_mirror::Mirror, store: &Store) {
    let Some(asked) = plan.asked.clone() else { return };
    for id in asked.intersection(&plan.evicted.clone()) {
        let key = plan.keys[id.0].as_ref().map(|(digest, _)| *digest);
        if plan.status[id.0] == Status::Hit && key.is_some_and(|key| mirror.bring(&key, store).is_some()) {
            plan.evicted.remove(id);
        }
    }
}

/// Some options make sense in one place only.
fn check_place(study: &Study, run: &RunArguments) -> Result<(), CliError> {
    let (option, place) = match study.pipeline.executor.place {
        Place::Local if run.detach => ("--detach", "slurm"),
        Place::Slurm if run.reproduce => ("--reproduce", "local"),
        _ => return Ok(()),
    };
    Err(CliError::new(exit::USAGE, format!("error: `{option}` is for `--executor {place}`")))
}

fn event_log(arguments: &Arguments, folder: &RunFolder) -> Result<Arc<EventLog>, CliError> {
    let global = &arguments.global;
    let verbosity = match (global.quiet || global.json, global.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, true) => Verbosity::Verbose,
        (false, false) => Verbosity::Normal,
    };
    let display = Display::new(verbosity, std::io::stderr().is_terminal());
    EventLog::create(&folder.events(), folder.id(), display, global.json)
        .map(Arc::new)
        .map_err(|error| CliError::environment("opening the event log", &error))
}

/// Makes the folder of a run and says that it began.
fn begin(
    arguments: &Arguments,
    study: &Study,
    store: &Store,
) -> Result<(RunFolder, Arc<EventLog>), CliError> {
    let folder = store.new_run()?;
    let events = event_log(arguments, &folder)?;
    let global = &arguments.global;
    let argv: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let mut devices = BTreeSet::from(["cpu"]);
    devices.extend(
        study.pipeline.nodes.iter().filter_map(|node| node.params.numerics.as_deref()).map(action::device),
    );
    events.emit(
        "run_started",
        json!({
            "pipeline": study.pipeline.name, "digest": history::digest(&study.pipeline).to_hex(),
            "argv": argv, "profile": study.pipeline.profiles,
            "overrides": { "var": global.var, "set": global.set },
            "versions": { "pipe": env!("CARGO_PKG_VERSION") },
            "host": store.owner().host, "owner": store.owner(), "devices": devices,
        }),
    );
    Ok((folder, events))
}

fn announce(study: &Study, plan: &Plan, events: &EventLog) {
    let (hit, run, maybe) = plan.counts();
    events.emit(
        "planned",
        json!({
            "counts": { "hit": hit, "run": run, "maybe": maybe }, "nodes": study.pipeline.nodes.len(),
            "other_class": plan.foreign.iter().map(|id| &study.pipeline.nodes[id.0].name).collect::<Vec<_>>(),
        }),
    );
}

/// One run, from its plan to its end.
struct Session<'a> {
    study: &'a Study,
    store: Store,
    wanted: Wanted,
    sources: SourceDigests,
    history: History,
    folder: RunFolder,
    events: Arc<EventLog>,
    signals: Signals,
    fetcher: Arc<Fetcher>,
    mirror: Option<pipe_mirror::Mirror>,
}

impl Session<'_> {
    /// Executes the plan and publishes the results; what is damaged then is made again.
    fn make_up_to_date(
        &self,
        mut plan: Plan,
        run: &RunArguments,
        registry: &Registry,
    ) -> Result<(Plan, Outcome, Result<publish::Summary, PublishError>), CliError> {
        let mut outcome = Outcome::default();
        let mut told = BTreeSet::new();
        for round in 0.. {
            if !plan.is_up_to_date() {
                // Beforehand, so that the keys of a killed run are known.
                self.remember(&plan, &outcome)?;
                outcome.extend(self.execute(&mut plan, &told, run, registry)?);
            }
            let complete = self.wanted.nodes.is_none()
                && outcome.failed.is_empty()
                && outcome.jobs.is_empty()
                && !outcome.cancelled;
            let published = publish::publish(
                &self.store,
                &self.study.results,
                &self.study.pipeline,
                plan.wanted_records(),
                &plan.evicted,
                Publishing { complete, hard_links: run.hard_links },
            );
            let damaged = published.as_ref().map(|published| published.damaged.clone()).unwrap_or_default();
            if damaged.is_empty() || outcome.cancelled || round >= REPAIRS {
                return Ok((plan, outcome, published));
            }
            outcome.damaged += damaged.len();
            for (id, reason) in &damaged {
                let node = &self.study.pipeline.nodes[id.0].name;
                self.events.emit("corruption", json!({ "subject": node, "detail": reason }));
            }
            told.extend(damaged.into_keys());
            plan = self.study.plan(Some(&self.store), &self.wanted, registry.numerics())?.0;
        }
        unreachable!("the loop above ends by returning")
    }

    /// Leaves a table of what each stage did and cost in the run's folder, if any did something.
    fn tell_costs(&self, plan: &Plan, outcome: &Outcome, registry: &Registry) {
        let Some(tables) = registry.tables() else { return };
        if outcome.executed.is_empty() && outcome.failed.is_empty() {
            return;
        }
        let study = (&self.study.pipeline, plan);
        if let Err(error) = stage_table::write(self.folder.path(), study, outcome, &tables) {
            let detail = format!("was not written: {}", chain(&error));
            self.events.emit("warning", json!({ "subject": stage_table::FILE, "detail": detail }));
        }
    }

    /// Executes the plan. The damage of `told` nodes was reported.
    fn execute(
        &self,
        plan: &mut Plan,
        told: &BTreeSet<NodeId>,
        run: &RunArguments,
        registry: &Registry,
    ) -> Result<Outcome, CliError> {
        let pipeline = &self.study.pipeline;
        let lost = |id: &NodeId| {
            let damaged = |reasons: &[DirtyReason]| reasons.contains(&DirtyReason::Damaged);
            matches!(&plan.status[id.0], Status::Run(reasons) if damaged(reasons)) && !told.contains(id)
        };
        let lost: Vec<NodeId> = plan.order.iter().copied().filter(lost).collect();
        for node in lost.iter().map(|id| &pipeline.nodes[id.0]) {
            let detail = "its stored outputs are missing or damaged; it runs again";
            self.events.emit("corruption", json!({ "subject": node.name, "detail": detail }));
        }
        let runs = |index: &usize| plan.records[*index].is_none();
        let expected = |index: usize| {
            let seconds = plan.seconds(NodeId(index), pipeline, &self.history);
            seconds.or_else(|| self.history.seconds_of_kind(&pipeline.nodes[index], registry.numerics()))
        };
        let durations: BTreeMap<NodeId, f64> = (0..pipeline.nodes.len())
            .filter(runs)
            .filter_map(|index| Some((NodeId(index), expected(index)?)))
            .collect();
        let bytes = (0..pipeline.nodes.len()).filter(runs).filter_map(|index| {
            let record = self.history.last_record(&pipeline.nodes[index].name, None)?;
            Some(record.outputs.values().map(OutputRecord::bytes).sum::<u64>())
        });
        let bytes: u64 = bytes.sum();
        if let Some(free) = free_bytes(&self.store).filter(|free| *free < bytes) {
            let detail = format!("the results took {} last time, and {} are free", size(bytes), size(free));
            self.events.emit("warning", json!({ "subject": "the store's disk", "detail": detail }));
        }
        let limits = pipeline.executor.limits.clone();
        let cpu = run.jobs.unwrap_or(limits.cpu).max(1);
        let options = RunOptions {
            limits: Limits { cpu, ..limits },
            on_failure: match run.fail_fast.as_deref() {
                Some("now") => OnFailure::StopAll,
                Some(_) => OnFailure::StopStarting,
                None => OnFailure::Continue,
            },
            grace: Duration::from_secs(run.grace),
            min_free: run.min_free,
            verify: Verify::from(run.verify),
            detach: run.detach,
        };
        let (done, results) = mpsc::channel();
        let scheduler = Scheduler {
            pipeline,
            store: &self.store,
            sources: &self.sources,
            fetcher: &self.fetcher,
            mirror: self.mirror.as_ref(),
            history: &self.history,
            numerics: registry.numerics(),
            comparison: registry.comparison(),
            revision: crate::revision::revision(&pipeline.project),
            options,
            events: Arc::clone(&self.events),
            run: &self.folder,
            stop: Arc::clone(&self.signals.stop),
            signals: Arc::clone(&self.signals.count),
            done,
        };
        let cluster = match pipeline.executor.place {
            Place::Local => None,
            Place::Slurm => Some(self.cluster(&scheduler)?),
        };
        let interim = Interim {
            store: &self.store,
            results: &self.study.results,
            pipeline,
            hard_links: run.hard_links,
            every: interim::EVERY,
        };
        let known = plan.order.iter().filter(|id| plan.status[id.0] == Status::Hit);
        let known = known.filter_map(|id| Some((*id, plan.keys[id.0].as_ref()?.0))).collect();
        let mut outcome = std::thread::scope(|scope| {
            scope.spawn(|| interim.publish(known, results));
            let outcome = scheduler.execute(plan, durations, cluster);
            drop(scheduler);
            outcome
        });
        outcome.damaged += lost.len();
        outcome.expected = bytes;
        Ok(outcome)
    }

    /// Where actions go that do not run in this process.
    fn cluster(&self, scheduler: &Scheduler<'_>) -> Result<Cluster, CliError> {
        let pipeline = &self.study.pipeline;
        let surroundings = Surroundings {
            settings: pipeline.executor.slurm.clone(),
            store: self.store.clone(),
            run: self.folder.id().to_owned(),
            pipeline: pipeline.name.clone(),
            revision: scheduler.revision.clone(),
            events: Arc::clone(&self.events),
            sources: pipeline.sources.clone(),
        };
        Cluster::start(surroundings).map_err(|error| {
            let mut failure = CliError::environment("jobs cannot be submitted", &error);
            failure.hint = Some("`--executor local` runs the study on this machine".to_owned());
            failure
        })
    }

    /// Leaves the rest of the run to a job that begins when those that were submitted have ended.
    fn relay(&self, outcome: &Outcome, arguments: &Arguments) -> Result<(), CliError> {
        let jobs: Vec<String> = outcome.jobs.iter().filter_map(|(_, id)| id.clone()).collect();
        let words: Vec<String> =
            std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        let settings = &self.study.pipeline.executor.slurm;
        let (run, stop) = (self.folder.id(), &self.signals.stop);
        let id = relay::submit(&self.store, run, &jobs, settings, &words, stop).map_err(|error| {
            let mut failure = CliError::environment("the rest of the run cannot be submitted", &error);
            failure.hint = Some("what was submitted goes on; run again when it is done".to_owned());
            failure
        })?;
        if !arguments.global.quiet && !arguments.global.json {
            eprintln!("{:>10}  job {id} goes on with the run when these have ended", "Detached");
        }
        Ok(())
    }

    /// Writes the plan of this run.
    fn remember(&self, plan: &Plan, outcome: &Outcome) -> Result<(), CliError> {
        let pipeline = &self.study.pipeline;
        let failed = outcome.failed.iter();
        let failed = failed.map(|(id, failure)| (pipeline.nodes[id.0].name.clone(), failure.error.clone()));
        let (keys, blobs) = (plan.known_keys(pipeline), self.sources.blobs());
        Ok(self.history.write(&self.folder, pipeline, keys, blobs, failed.collect())?)
    }

    /// Writes down how the run ended.
    fn close(&self, plan: &Plan, outcome: &Outcome, kept: &[PathBuf], wall: Duration) {
        for path in kept {
            let detail = "was changed by someone and is kept as it is";
            self.events.emit("warning", json!({ "subject": path.display().to_string(), "detail": detail }));
        }
        if self.remember(plan, outcome).is_err() {
            let detail = "the plan of this run could not be stored; the next `why` knows less";
            self.events.emit("warning", json!({ "subject": self.folder.id(), "detail": detail }));
        }
        let pipeline = &self.study.pipeline;
        let (path, seconds) = critical_path(pipeline, &plan.order, &outcome.seconds);
        let looked = self.store.looked();
        let hit = plan.counts().0.saturating_sub(outcome.executed.len());
        let path: Vec<&str> = path.iter().map(|id| pipeline.nodes[id.0].name.as_str()).collect();
        self.events.emit(
            "run_finished",
            json!({
                "status": outcome.status(), "executed": outcome.executed.len(), "shards": outcome.shards, "failed": outcome.failed.len(),
                "blocked": outcome.blocked.len(), "repaired": outcome.damaged, "wall": wall.as_secs_f64(),
                "critical_path": { "nodes": path, "seconds": seconds },
                "counts": { "executed": outcome.executed.len(), "hit": hit, "failed": outcome.failed.len(), "blocked": outcome.blocked.len(), "taken": outcome.taken },
                "looked": { "keys": plan.computed, "records": looked.records, "bytes": looked.bytes },
            }),
        );
    }
}
