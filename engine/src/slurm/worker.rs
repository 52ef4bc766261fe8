//! `pipe worker`: one task of an array. It takes actions from its manifest, its own first, until all have results or its
//! time is over, and commits each as it is done.
//!
//! It reads no pipeline and talks to nobody: what it is to do stands in the store, and so does what it has to say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use pipe_cache::{ArrayFolder, Digest, Durability, LeaseAttempt, SlurmTask, Store};

use super::manifest::{Action, Done, Ended, Manifest, VERSION, WorkerFile};
use super::{own_program, program_digest};
use crate::action;
use crate::attempt::{Attempt, AttemptError, Finished, Task};
use crate::error::StageError;
use crate::events::EventLog;
use crate::exit;
use crate::kind::{AnyKind, Numerics, Registry};
use crate::pipeline::Limits;
use crate::progress::{Display, Verbosity};
use crate::remote::Fetcher;
use crate::run::resident_bytes;
use crate::workers::{Worker as Threads, Workers};

/// How often signals, the time and the memory are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a manifest that is not seen is waited for: another host may have just written it.
const VISIBILITY: Duration = Duration::from_secs(120);
/// An action that takes less than this is not worth to be stopped soon after.
const LEAST: f64 = 60.0;

/// The exit codes of a worker; the rest are those of the program.
pub(crate) mod code {
    /// Some actions failed.
    pub(crate) const FAILED: u8 = 10;
    /// Others work on all that is left.
    pub(crate) const BUSY: u8 = 11;
    /// The manifest is another program's.
    pub(crate) const OTHER_PROGRAM: u8 = 12;
}

/// What a worker is told by the command line and by Slurm.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) store: PathBuf,
    pub(crate) array: String,
    pub(crate) task: usize,
    pub(crate) job: String,
    pub(crate) restart: u32,
    /// When the job ends, in seconds since 1970, where Slurm says so.
    pub(crate) end: Option<u64>,
}

impl Place {
    /// From the environment of a task.
    pub(crate) fn new(store: &Path, array: &str, task: Option<usize>) -> Self {
        let own = SlurmTask::current();
        let (place, restart) = own.as_ref().map_or((None, 0), |own| (own.task, own.restart));
        Self {
            store: store.to_owned(),
            array: array.to_owned(),
            task: task.or(place).unwrap_or(0),
            job: own.map_or_else(|| format!("p{}", std::process::id()), |own| own.job),
            restart,
            end: std::env::var("SLURM_JOB_END_TIME").ok().and_then(|text| text.parse().ok()),
        }
    }
}

/// Works on a task; the exit code.
///
/// # Errors
/// If the store or the manifest cannot be read.
pub(crate) fn work(place: &Place, registry: &Registry) -> Result<u8, AttemptError> {
    let began = Instant::now();
    let cancelled = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGUSR1, signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&cancelled))
            .map_err(|error| StageError::environment("registering signal handlers", error))?;
    }
    let store = Store::open(&place.store, Durability::Full)?;
    let folder = seen(began, || store.array(&place.array))
        .ok_or_else(|| StageError::failed(format!("the store has no batch `{}`", place.array)))?;
    let bytes = seen(began, || folder.manifest().ok().flatten())
        .ok_or_else(|| StageError::failed(format!("the batch `{}` has no manifest", place.array)))?;
    let manifest = serde_json::from_slice::<Manifest>(&bytes).ok();
    let own = program_digest(&own_program()?)?;
    let manifest = manifest.filter(|manifest| manifest.version == VERSION && manifest.program == own);
    let Some(manifest) = manifest else {
        eprintln!("error: the batch `{}` was written by another build of this program", place.array);
        leave(&store, &folder, place, code::OTHER_PROGRAM)?;
        return Ok(code::OTHER_PROGRAM);
    };
    let store = match manifest.is_durable {
        true => store,
        false => Store::open(&place.store, Durability::Rename)?,
    };
    let time = time_left(manifest.limit, place.end, manifest.margin);
    let name = format!("{}_{}.{}", place.job, place.task, place.restart);
    let file = WorkerFile {
        host: store.owner().host.clone(),
        pid: store.owner().pid,
        began: crate::events::now(),
        deadline: time.map(|time| time.as_secs()),
        job: place.job.clone(),
        task: place.task,
        restart: place.restart,
    };
    store.write_in_array(&folder, &format!("workers/{name}.json"), &json(&file))?;
    let events = folder.path().join("events").join(format!("{name}.jsonl"));
    let events = EventLog::create(&events, &manifest.run, Display::new(Verbosity::Quiet, false), false)
        .map_err(|error| StageError::environment("opening the event log", error))?;
    let worker = Worker {
        deadline: time.map(|time| began + time),
        events: Arc::new(events),
        fetcher: Arc::new(Fetcher::from_environment(true)),
        workers: Workers::default(),
        store,
        folder,
        manifest,
        cancelled,
        registry,
    };
    let code = worker.take_all(place)?;
    leave(&worker.store, &worker.folder, place, code)?;
    Ok(code)
}

/// Says how it ended.
fn leave(store: &Store, folder: &ArrayFolder, place: &Place, code: u8) -> Result<(), AttemptError> {
    let name = format!("exits/{}.{}", place.task, place.restart);
    Ok(store.write_in_array(folder, &name, code.to_string().as_bytes())?)
}

/// Something that another host has written, as soon as it is seen.
fn seen<T>(began: Instant, look: impl Fn() -> Option<T>) -> Option<T> {
    let mut pause = Duration::from_secs(1);
    loop {
        let found = look();
        if found.is_some() || began.elapsed() > VISIBILITY {
            return found;
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
}

/// The time that a task has for its work.
fn time_left(limit: Option<u64>, end: Option<u64>, margin: u64) -> Option<Duration> {
    let until = end.and_then(|end| {
        let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end))?;
        Some(end.duration_since(SystemTime::now()).unwrap_or_default())
    });
    let time = until.or_else(|| limit.map(Duration::from_secs))?;
    Some(time.saturating_sub(Duration::from_secs(margin)))
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("these files hold strings, integers and finite floats only")
}

/// The order in which a task takes actions: its own, and then all others from a place that no other task begins at.
fn order(tasks: &[Vec<usize>], task: usize, actions: usize) -> Vec<usize> {
    let own: &[usize] = tasks.get(task).map_or(&[], Vec::as_slice);
    let known: BTreeSet<usize> = own.iter().copied().collect();
    let noise = Digest::of(task.to_string().as_bytes());
    let noise = u64::from_le_bytes(std::array::from_fn(|index| noise.as_bytes()[index]));
    let first = if actions == 0 { 0 } else { (noise % actions as u64) as usize };
    let others = (first..actions).chain(0..first).filter(|place| !known.contains(place));
    own.iter().copied().chain(others).collect()
}

struct Worker<'r> {
    store: Store,
    folder: ArrayFolder,
    manifest: Manifest,
    deadline: Option<Instant>,
    cancelled: Arc<AtomicBool>,
    events: Arc<EventLog>,
    fetcher: Arc<Fetcher>,
    workers: Workers,
    registry: &'r Registry,
}

/// What came of an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Came {
    Done,
    Failed,
    Busy,
    /// The worker has to stop.
    Stopped,
}

impl Worker<'_> {
    /// Takes all actions that nobody else has; the exit code.
    fn take_all(&self, place: &Place) -> Result<u8, AttemptError> {
        let order = order(&self.manifest.tasks, place.task, self.manifest.actions.len());
        let own = self.manifest.tasks.get(place.task).map_or(0, Vec::len);
        let (mut failed, mut busy, mut worked) = (false, false, false);
        let mut come_back = Vec::new();
        for (number, index) in order.into_iter().enumerate() {
            if worked && !self.has_time() {
                return Ok(exit::OUT_OF_TIME);
            }
            match self.take(index, &mut worked)? {
                Came::Done => {}
                Came::Failed => failed |= number < own,
                Came::Busy if number < own => come_back.push(index),
                Came::Busy => {}
                Came::Stopped => return Ok(exit::OUT_OF_TIME),
            }
        }
        for index in come_back {
            match self.take(index, &mut worked)? {
                Came::Done => {}
                Came::Failed => failed = true,
                Came::Busy => busy = true,
                Came::Stopped => return Ok(exit::OUT_OF_TIME),
            }
        }
        Ok(match (failed, busy) {
            (true, _) => code::FAILED,
            (false, true) => code::BUSY,
            (false, false) => exit::DONE,
        })
    }

    /// Whether another action is worth to be begun.
    fn has_time(&self) -> bool {
        let least = self.manifest.limit.map_or(LEAST, |limit| LEAST.min(limit as f64 / 4.0));
        let needed = Duration::from_secs_f64(self.manifest.longest.clamp(least, 1e9));
        let has_time = self.deadline.is_none_or(|deadline| Instant::now() + needed < deadline);
        has_time && !self.cancelled.load(Ordering::Relaxed)
    }

    fn take(&self, index: usize, worked: &mut bool) -> Result<Came, AttemptError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Ok(Came::Stopped);
        }
        let action = &self.manifest.actions[index];
        let digest = action.key.digest();
        let ended = format!("ended/{digest}.json");
        let told = self.folder.read(&ended).and_then(|bytes| serde_json::from_slice::<Ended>(&bytes).ok());
        if let Some(told) = told {
            return Ok(if told.outcome.is_ok() { Came::Done } else { Came::Failed });
        }
        let is_done = |worker: &Self| {
            Ok::<bool, AttemptError>(!action.forced && worker.store.lookup(&digest)?.is_some())
        };
        if is_done(self)? {
            return Ok(Came::Done);
        }
        let LeaseAttempt::Acquired(lease) = self.store.lease(&digest, &self.manifest.run)? else {
            return Ok(Came::Busy);
        };
        // Whoever had it may have been done just now.
        if is_done(self)? {
            return Ok(Came::Done);
        }
        *worked = true;
        let peak = Arc::new(AtomicU64::new(resident_bytes().unwrap_or(0)));
        let finished = match self.kind(action) {
            Ok(kind) => self.execute(action, kind, lease, &peak)?,
            Err(error) => {
                Finished { result: Err(error.into()), wall: Duration::ZERO, cpu: None, is_taken: false }
            }
        };
        let outcome = match finished.result {
            Ok(committed) => self.settled(&digest, committed.outcome.into()),
            Err(AttemptError::Stage(StageError::Cancelled)) => return Ok(Came::Stopped),
            Err(error) => Err(error),
        };
        let came = if outcome.is_ok() { Came::Done } else { Came::Failed };
        let told = match outcome {
            Ok(done) => Ended {
                wall: finished.wall.as_secs_f64(),
                cpu: finished.cpu.map(|cpu| cpu.as_secs_f64()),
                peak: peak.load(Ordering::Relaxed),
                outcome: Ok(done),
            },
            Err(error) => Ended { wall: finished.wall.as_secs_f64(), ..Ended::failed(&error) },
        };
        self.store.write_in_array(&self.folder, &ended, &json(&told))?;
        Ok(came)
    }

    /// Waits until a result is on the disk, where other hosts see it.
    fn settled(&self, digest: &Digest, done: Done) -> Result<Done, AttemptError> {
        for (key, outcome) in self.store.flush() {
            match outcome {
                Ok(outcome) if key == *digest => return Ok(outcome.into()),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// The kind of an action, if it gives here what the key says.
    fn kind(&self, action: &Action) -> Result<Arc<dyn AnyKind>, StageError> {
        let brief = &self.manifest.nodes[action.node].brief;
        let kind = self.registry.get(&brief.kind);
        let kind = kind.ok_or_else(|| StageError::failed(format!("unknown stage kind `{}`", brief.kind)))?;
        let resolved = kind.resolve(&brief.params).map_err(|problems| {
            let text: Vec<String> =
                problems.into_iter().map(|one| format!("{} {}", one.path, one.message)).collect();
            StageError::failed(format!(
                "the parameters mean nothing on this node: {}",
                text.join("; ").trim()
            ))
        })?;
        let numerics = match kind.describe().numerics {
            Numerics::Exact => action::EXACT.to_owned(),
            Numerics::Tensor => resolved.numerics.unwrap_or_else(|| self.registry.numerics().to_owned()),
        };
        if numerics != action.key.numerics {
            return Err(StageError::failed(format!(
                "this node computes in the numerics class `{numerics}`, the action is of `{}`; choose nodes like the one \
                 that plans with `constraint`, or run `pipe run` in a job on one of these",
                action.key.numerics
            )));
        }
        if action::params_in_key(&resolved.canonical, &brief.ancestry) != action.key.params {
            return Err(StageError::failed(
                "the environment of this node gives other parameters than that of `pipe run`; `export` of \
                 `[executor.slurm]` passes variables on",
            ));
        }
        Ok(Arc::clone(kind))
    }

    fn execute(
        &self,
        action: &Action,
        kind: Arc<dyn AnyKind>,
        lease: pipe_cache::Lease,
        peak: &Arc<AtomicU64>,
    ) -> Result<Finished, AttemptError> {
        let node = &self.manifest.nodes[action.node];
        let mut inputs = node.inputs.clone();
        if let Some((port, artifact)) = &action.part {
            inputs.insert(port.clone(), vec![artifact.clone()]);
        }
        let threads = self.manifest.threads.unwrap_or_else(|| Limits::of_this_machine().cpu);
        let attempt = Attempt {
            brief: Arc::new(node.brief.clone()),
            kind,
            key: action.key.clone(),
            inputs,
            outputs: action.outputs.clone(),
            task: if action.part.is_some() { Task::Part(action.key.digest()) } else { Task::Whole },
            threads,
            gpus: (0..self.manifest.gpus).collect(),
            store: self.store.clone(),
            run: self.manifest.run.clone(),
            revision: self.manifest.revision.clone(),
            log: action.log.clone(),
            events: Arc::clone(&self.events),
            cancelled: Arc::clone(&self.cancelled),
            peak: Arc::clone(peak),
            lease: Some(lease),
            absent: Vec::new(),
            fetcher: Arc::clone(&self.fetcher),
            // The driver has asked for the node and for its parts.
            mirror: None,
        };
        let (sender, receiver) = mpsc::channel();
        let job = Box::new(move |threads: Result<&Threads, &rayon::ThreadPoolBuildError>| {
            let mut finished = None;
            attempt.execute(threads, |told| finished = Some(told));
            // When all is tidied up: this process may end as soon as it knows.
            if let Some(finished) = finished {
                let _ = sender.send(finished);
            }
        });
        self.workers
            .execute(threads, job)
            .map_err(|error| StageError::environment("starting a thread", error))?;
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(finished) => return Ok(finished),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(StageError::failed("the stage gave no answer").into());
                }
            }
            peak.fetch_max(resident_bytes().unwrap_or(0), Ordering::Relaxed);
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.cancelled.store(true, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_takes_its_own_first_and_then_all_others() {
        let tasks = vec![vec![0, 1], vec![2, 3], vec![4]];
        for task in 0..3 {
            let taken = order(&tasks, task, 5);
            assert_eq!(taken[..tasks[task].len()], tasks[task]);
            assert_eq!(taken.iter().copied().collect::<BTreeSet<usize>>().len(), 5);
        }
        assert_eq!(order(&tasks, 9, 5).len(), 5, "one that has nothing of its own helps");
        assert!(order(&[], 0, 0).is_empty());
    }

    #[test]
    fn the_time_of_a_task_is_what_slurm_says_or_what_was_asked_for() {
        let seconds = |limit, end, margin| time_left(limit, end, margin).map(|time| time.as_secs());
        assert_eq!((seconds(Some(600), None, 180), seconds(None, None, 180)), (Some(420), None));
        assert_eq!(seconds(Some(600), Some(1), 180), Some(0), "it is over");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(seconds(Some(600), Some(now + 1000), 180).is_some_and(|left| (815..=820).contains(&left)));
    }
}
