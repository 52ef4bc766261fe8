//! The driver's side: orders wait, are submitted as arrays of tasks, and are watched until each has ended.
//!
//! It is asked to do so now and then ([`Cluster::tick`]) and never sleeps. What it submits is written down before, so
//! that a driver that comes after it finds the jobs again.

mod adoption;
mod submit;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipe_cache::{ArrayFolder, Digest, Store};
use serde_json::json;

pub(super) use self::submit::{BACKOFF, LONGEST_BACKOFF, LOST_ANSWER, UNKNOWN};
use super::batching::Bucket;
use super::manifest::{Intent, Order};
use super::verdict::Tries;
use super::{own_program, program_digest};
use crate::attempt::{AttemptError, Finished};
use crate::error::StageError;
use crate::events::EventLog;
use crate::pipeline::{JobSettings, Origin, SourceFile};

/// How long orders are collected before they are submitted.
const QUIET: Duration = Duration::from_millis(300);
/// The longest time between two looks at the queue.
const LONGEST_POLL: Duration = Duration::from_secs(120);
/// After so long without an answer of the controller it is told once more.
const LONG_SILENCE: Duration = Duration::from_secs(600);

/// What a cluster has to know of the run.
pub(crate) struct Surroundings {
    pub(crate) settings: JobSettings,
    pub(crate) store: Store,
    pub(crate) run: String,
    pub(crate) pipeline: String,
    pub(crate) revision: Option<String>,
    pub(crate) events: Arc<EventLog>,
    /// The files of the study.
    pub(crate) sources: Vec<SourceFile>,
}

/// The end of an order.
pub(crate) struct Ending {
    pub(crate) key: Digest,
    pub(crate) finished: Finished,
    /// Bytes.
    pub(crate) peak: u64,
}

/// Orders and the jobs that work on them.
pub(crate) struct Cluster {
    around: Surroundings,
    program: PathBuf,
    digest: Digest,
    began: Instant,
    waiting: Vec<Order>,
    /// When the last order came.
    quiet_since: Instant,
    flying: BTreeMap<Digest, Flying>,
    arrays: BTreeMap<String, Array>,
    /// Actions that jobs of earlier runs are to execute: the array, and the task.
    adoptable: BTreeMap<Digest, (String, usize)>,
    /// Whether the queue has told of them.
    has_looked_back: bool,
    tries: BTreeMap<Digest, Tries>,
    /// Seconds that parts took and how many there were, by kind.
    measured: BTreeMap<String, (f64, u32)>,
    bucket: Bucket,
    /// The same for each stage.
    stage_buckets: BTreeMap<String, Bucket>,
    next_scan: Instant,
    next_look: Instant,
    poll: Duration,
    /// Nothing is submitted before.
    hold: Instant,
    backoff: Duration,
    /// Since when the controller gives no answer.
    silent: Option<Instant>,
    /// Whether it was told that this lasts.
    is_long_silent: bool,
    /// Tasks of an array at most; asked for once.
    size: Option<usize>,
    max_submitted: usize,
    number: u32,
    stopped: bool,
    cancelled: bool,
    endings: Vec<Ending>,
}

/// An order that was submitted.
struct Flying {
    order: Order,
    array: String,
    task: usize,
    /// Since when nothing was seen of it, and in how many looks.
    unseen: Option<(Instant, u32)>,
    /// Since when its task waits for a reason that is not a passing one.
    stuck: Option<Instant>,
    /// The newest checkpoint when it was submitted, and how many results its task had given.
    step: Option<u64>,
    given: u32,
}

/// An array that was submitted.
struct Array {
    folder: ArrayFolder,
    intent: Intent,
    tasks: usize,
    state: State,
    /// Names of files that were taken.
    ended: BTreeSet<String>,
    /// By task: the restart and the exit code.
    exits: BTreeMap<usize, (u32, u8)>,
    /// Bytes of the events of each worker that were passed on.
    events: BTreeMap<String, u64>,
    /// Results by task.
    given: BTreeMap<usize, u32>,
    /// When an answer was lost, so that it may have been accepted.
    unanswered: Option<Instant>,
    /// How often it was refused without a known reason.
    refused: u32,
    /// What Slurm said last of tasks that are over.
    over: BTreeMap<usize, String>,
}

/// Where a submission stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// To be submitted (again) then; perhaps it was accepted all the same.
    Unsent(Instant),
    Accepted,
}

impl Cluster {
    /// Finds the jobs of earlier runs that still go on.
    ///
    /// # Errors
    /// If this is no machine from which jobs are submitted.
    pub(crate) fn start(around: Surroundings) -> Result<Self, StageError> {
        let program = own_program()?;
        let now = Instant::now();
        let mut cluster = Self {
            digest: program_digest(&program)?,
            program,
            began: now,
            waiting: Vec::new(),
            quiet_since: now,
            flying: BTreeMap::new(),
            arrays: BTreeMap::new(),
            adoptable: BTreeMap::new(),
            has_looked_back: false,
            tries: BTreeMap::new(),
            measured: BTreeMap::new(),
            bucket: Bucket::new(around.settings.submit_every),
            stage_buckets: BTreeMap::new(),
            next_scan: now,
            next_look: now,
            poll: Duration::from_secs(around.settings.poll),
            hold: now,
            backoff: BACKOFF,
            silent: None,
            is_long_silent: false,
            size: None,
            max_submitted: around.settings.max_submitted,
            number: 0,
            stopped: false,
            cancelled: false,
            endings: Vec::new(),
            around,
        };
        cluster.find_jobs()?;
        Ok(cluster)
    }

    /// Whether a job of an earlier run, which still goes on, is to execute this action.
    pub(crate) fn is_adoptable(&self, key: &Digest) -> bool {
        self.adoptable.contains_key(key)
    }

    /// Takes an order.
    pub(crate) fn enqueue(&mut self, order: Order) {
        let adopted = self.adoptable.remove(&order.digest).filter(|_| !order.forced);
        match adopted {
            Some((array, task)) => self.fly(order, &array, task),
            None => {
                self.waiting.push(order);
                self.quiet_since = Instant::now();
            }
        }
    }

    fn fly(&mut self, order: Order, array: &str, task: usize) {
        let given = self.arrays.get(array).and_then(|array| array.given.get(&task)).copied().unwrap_or(0);
        let flying = Flying {
            step: self.step(&order),
            given,
            array: array.to_owned(),
            task,
            unseen: None,
            stuck: None,
            order,
        };
        self.flying.insert(flying.order.digest, flying);
    }

    /// Time between two looks at the queue while something changes: the least that a stage asks for whose jobs are there.
    fn shortest_poll(&self) -> Duration {
        let asked = self.flying.values().map(|flying| flying.order.ask.jobs.poll).min();
        Duration::from_secs(asked.unwrap_or(self.around.settings.poll))
    }

    /// The newest state that an action has kept.
    fn step(&self, order: &Order) -> Option<u64> {
        let keep = order.brief.checkpoint.keep;
        let newest = self.around.store.checkpoints(&order.digest, keep).newest();
        newest.ok().flatten().map(|checkpoint| checkpoint.step)
    }

    /// Submits what is due and looks at what was submitted; returns what has ended.
    pub(crate) fn tick(&mut self) -> Vec<Ending> {
        let now = Instant::now();
        if now >= self.next_scan && !self.flying.is_empty() {
            self.next_scan = now + watch::SCAN;
            self.scan(now);
        }
        if now >= self.next_look && !self.flying.is_empty() {
            self.look(now);
        }
        if !self.stopped {
            self.submit(now);
        }
        std::mem::take(&mut self.endings)
    }

    /// Submits nothing more; what was submitted goes on.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        for order in std::mem::take(&mut self.waiting) {
            let finished = Finished {
                result: Err(StageError::Cancelled.into()),
                wall: Duration::ZERO,
                cpu: None,
                is_taken: false,
            };
            self.endings.push(Ending { key: order.digest, finished, peak: 0 });
        }
    }

    /// Whether nothing more is submitted.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether all that can be submitted is.
    pub(crate) fn is_submitted(&self) -> bool {
        let is_sent = |flying: &Flying| {
            self.arrays.get(&flying.array).is_none_or(|array| array.state == State::Accepted)
        };
        self.waiting.is_empty() && self.flying.values().all(is_sent)
    }

    /// Whether somebody cancelled jobs of this run with `pipe cancel`.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// The arrays with orders that have not ended: their names, and the ids of their jobs.
    pub(crate) fn jobs(&self) -> Vec<(String, Option<String>)> {
        let arrays: BTreeSet<&String> = self.flying.values().map(|flying| &flying.array).collect();
        let arrays = arrays.into_iter().filter_map(|id| self.arrays.get(id));
        let id = |array: &Array| {
            let job: super::manifest::Job = serde_json::from_slice(&array.folder.read("job.json")?).ok()?;
            Some(job.id)
        };
        arrays.map(|array| (array.intent.name.clone(), id(array))).collect()
    }

    /// Cancels all jobs of this run.
    pub(crate) fn cancel(&mut self) {
        self.stop();
        for (name, _) in self.jobs() {
            // What cannot be reached now goes on, and its results are as good as any.
            let _ = super::cancel(&name);
        }
    }

    /// The order has ended, whoever said so first; a part that gave its result tells how long others of its kind take.
    fn end(&mut self, key: Digest, finished: Finished, peak: u64) {
        let Some(Flying { order, .. }) = self.flying.remove(&key) else { return };
        if finished.result.is_ok() && order.part.is_some() {
            let (sum, count) = self.measured.entry(order.brief.kind.clone()).or_default();
            (*sum, *count) = (*sum + finished.wall.as_secs_f64(), *count + 1);
        }
        self.endings.push(Ending { key, finished, peak });
    }

    fn fail(&mut self, key: Digest, error: AttemptError) {
        self.end(key, Finished { result: Err(error), wall: Duration::ZERO, cpu: None, is_taken: false }, 0);
    }

    /// The order is not to be had: `about` names the values that it is about, most likely the first.
    fn refuse(&mut self, key: Digest, reason: &str, about: &[&str]) {
        let Some(flying) = self.flying.get(&key) else { return };
        let origins = &flying.order.origins;
        let named = about.iter().find_map(|name| Some((*name, origins.get(*name)?)));
        let place = named.map(|(_, origin)| origin).or_else(|| origins.get(""));
        let place = place.and_then(|origin| self.place(origin));
        let what = named.map_or_else(String::new, |(name, _)| format!(" for what `{name}` asks"));
        let place = place.map_or_else(String::new, |place| format!(" ({place})"));
        self.fail(key, AttemptError::Lost(format!("Slurm never starts its job{what}{place}: {reason}")));
    }

    /// File, line and column.
    fn place(&self, origin: &Origin) -> Option<String> {
        match origin {
            Origin::File { file, span, .. } => {
                let source = self.around.sources.get(*file)?;
                let (line, column) = source.line_column(span.start);
                Some(format!("{}:{line}:{column}", source.path.display()))
            }
            Origin::CommandLine(text) => Some(format!("`{text}`")),
            Origin::Default => None,
        }
    }

    fn warn(&self, detail: &str) {
        self.around.events.emit("warning", json!({ "subject": "slurm", "detail": detail }));
    }

    /// The controller answered, or did not.
    fn note_answer(&mut self, answered: bool, now: Instant) {
        match (answered, self.silent) {
            (true, Some(since)) => {
                (self.silent, self.is_long_silent) = (None, false);
                self.warn(&format!("the controller answers again, after {} s", since.elapsed().as_secs()));
            }
            (false, None) => {
                self.silent = Some(now);
                self.warn(
                    "the controller gives no answer; jobs that run are not affected, and it is asked again",
                );
            }
            (false, Some(since)) if !self.is_long_silent && since.elapsed() >= LONG_SILENCE => {
                self.is_long_silent = true;
                self.warn(&format!(
                    "the controller has given no answer for {} minutes; is it to be reached from this machine?",
                    since.elapsed().as_secs() / 60
                ));
            }
            _ => {}
        }
    }
}
