//! From waiting orders to an array of tasks: an intent that is written down, `sbatch`, and the id that it gave.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pipe_cache::Digest;
use serde_json::json;

use super::super::batching::{self, Bucket};
use super::super::manifest::{Ask, Intent, Job, Manifest, Order, VERSION};
use super::super::refusal::{self, Refusal};
use super::super::submission::{self, arguments, job_id, script};
use super::super::worker::json as bytes_of;
use super::super::{command, queue};
use super::{Array, Cluster, QUIET, State};
use crate::attempt::AttemptError;
use crate::pipeline::JobSettings;
use crate::slurm::manifest::absolute_path;

/// The delay after a first transient refusal.
pub(crate) const BACKOFF: Duration = Duration::from_secs(5);
pub(crate) const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
/// After a lost answer the job is looked for in the queue so long before it is submitted again: the controller's time-out,
/// and a minute.
pub(crate) const LOST_ANSWER: Duration = Duration::from_secs(70);
/// Refusals that nobody knows are tried again so often.
pub(crate) const UNKNOWN: u32 = 3;

/// Bytes that differ from process to process and from time to time.
fn noise(of: &str) -> [u8; 32] {
    *Digest::of(format!("{of}{:?}{}", Instant::now(), std::process::id()).as_bytes()).as_bytes()
}

impl Cluster {
    /// Submits what is due.
    pub(super) fn submit(&mut self, now: Instant) {
        let due = |array: &Array| matches!(array.state, State::Unsent(then) if then <= now);
        let again: Vec<String> =
            self.arrays.iter().filter(|(_, array)| due(array)).map(|(id, _)| id.clone()).collect();
        for id in again {
            self.send_again(&id, now);
        }
        if self.waiting.is_empty() || now.duration_since(self.quiet_since) < QUIET || now < self.hold {
            return;
        }
        // What jobs of an earlier run do already is not submitted.
        if !self.has_looked_back {
            self.hold = now + self.pause("");
            if self.find_jobs().is_ok() && self.has_looked_back {
                self.note_answer(true, now);
                (self.hold, self.backoff) = (now, BACKOFF);
                std::mem::take(&mut self.waiting).into_iter().for_each(|order| self.enqueue(order));
            }
            return;
        }
        while let Some((stage, tasks)) = self.choose() {
            let clock = self.began.elapsed().as_secs_f64();
            if !self.bucket.take(clock) {
                return;
            }
            if let Some(bucket) = self.stage_buckets.get_mut(&stage) {
                bucket.take(clock);
            }
            if let Err(error) = self.send_new(&tasks, now) {
                // The store cannot be written: whoever waits for it fails.
                for key in tasks.into_iter().flatten() {
                    if let Some(place) = self.waiting.iter().position(|order| order.digest == key) {
                        let order = self.waiting.remove(place);
                        self.fly(order, "", 0);
                    }
                    self.fail(key, AttemptError::Lost(crate::attempt::chain(&error)));
                }
            }
            if now < self.hold {
                return;
            }
        }
    }

    /// Tasks of ours that are in the queue, of one stage or of all.
    fn queued(&self, stage: Option<&str>) -> usize {
        let flying =
            self.flying.values().filter(|flying| stage.is_none_or(|stage| flying.order.stage == stage));
        let tasks: BTreeSet<(&str, usize)> =
            flying.map(|flying| (flying.array.as_str(), flying.task)).collect();
        tasks.len()
    }

    /// How many tasks of a stage may be submitted now, of so many in all.
    fn room_of(&mut self, stage: &str, jobs: &JobSettings, room: usize) -> usize {
        let clock = self.began.elapsed().as_secs_f64();
        let bucket =
            self.stage_buckets.entry(stage.to_owned()).or_insert_with(|| Bucket::new(jobs.submit_every));
        if !bucket.has_one(clock) {
            return 0;
        }
        room.min(jobs.max_submitted.saturating_sub(self.queued(Some(stage))))
    }

    /// Seconds that an order takes, as far as it is known.
    fn seconds(&self, order: &Order) -> Option<f64> {
        order.seconds.or_else(|| {
            let (sum, count) = self.measured.get(&order.brief.kind).filter(|_| order.part.is_some())?;
            Some(sum / f64::from(*count))
        })
    }

    /// The next stage that may submit, and the tasks of its next array, as keys of waiting orders which ask for the same.
    fn choose(&mut self) -> Option<(String, Vec<Vec<Digest>>)> {
        let room = self.max_submitted.saturating_sub(self.queued(None));
        if room == 0 || self.waiting.is_empty() {
            return None;
        }
        let size = *self.size.get_or_insert_with(command::max_array_size);
        let mut groups: Vec<(String, Ask)> = Vec::new();
        for order in &self.waiting {
            if !groups.iter().any(|(stage, ask)| (stage, ask) == (&order.stage, &order.ask)) {
                groups.push((order.stage.clone(), order.ask.clone()));
            }
        }
        for (stage, ask) in groups {
            let room = self.room_of(&stage, &ask.jobs, room);
            if room == 0 {
                continue;
            }
            // Of parts of which nothing is known one is measured first.
            let is_measured = |order: &&Order| {
                let kind = &order.brief.kind;
                self.flying.values().any(|one| one.order.part.is_some() && one.order.brief.kind == *kind)
            };
            let mut measures = false;
            let orders: Vec<&Order> = self
                .waiting
                .iter()
                .filter(|order| (&order.stage, &order.ask) == (&stage, &ask))
                .filter(|order| {
                    let is_unknown = order.part.is_some() && self.seconds(order).is_none();
                    let waits = is_unknown && (measures || is_measured(order));
                    measures |= is_unknown;
                    !waits
                })
                .collect();
            let seconds: Vec<Option<f64>> = orders.iter().map(|order| self.seconds(order)).collect();
            let target = ask.jobs.task_target as f64;
            let tasks = batching::tasks(&seconds, target, room.min(size));
            if !tasks.is_empty() {
                let keys = |task: Vec<usize>| task.into_iter().map(|place| orders[place].digest).collect();
                return Some((stage, tasks.into_iter().map(keys).collect()));
            }
        }
        None
    }

    /// Writes the manifest and the intent of an array, and submits it.
    fn send_new(&mut self, tasks: &[Vec<Digest>], now: Instant) -> Result<(), pipe_cache::StoreError> {
        let keys: Vec<Digest> = tasks.iter().flatten().copied().collect();
        let chosen: BTreeSet<Digest> = keys.iter().copied().collect();
        let of = |key: &Digest| self.waiting.iter().find(|order| order.digest == *key);
        let orders: Vec<&Order> = keys.iter().filter_map(of).collect();
        let Some(first) = orders.first() else { return Ok(()) };
        let (ask, stage) = (first.ask.clone(), first.stage.clone());
        let longest = orders.iter().filter_map(|order| self.seconds(order)).fold(0.0, f64::max);
        let (nodes, actions) = Manifest::actions_of(orders.iter().copied());
        let mut places = 0..actions.len();
        let tasks: Vec<Vec<usize>> =
            tasks.iter().map(|task| places.by_ref().take(task.len()).collect()).collect();
        let store = &self.around.store;
        let manifest = Manifest {
            version: VERSION,
            program: self.digest,
            run: self.around.run.clone(),
            pipeline: self.around.pipeline.clone(),
            stage,
            revision: self.around.revision.clone(),
            is_durable: store.is_durable(),
            threads: ask.cpu,
            gpus: ask.gpu,
            limit: ask.limit(),
            margin: ask.margin(),
            longest,
            nodes,
            actions,
            tasks,
        };
        let id = format!("{}-{}", self.around.run, self.number);
        self.number += 1;
        let folder = store.new_array(&id, &bytes_of(&manifest))?;
        let name = self.name(&id);
        let array = submission::Array {
            name: &name,
            run: &self.around.run,
            tasks: manifest.tasks.len(),
            ask: &ask,
            logs: &folder.logs("%a.%A").map(|path| absolute_path(&path)),
        };
        let arguments = arguments(&array);
        let intent = Intent {
            name: name.clone(),
            run: self.around.run.clone(),
            stage: manifest.stage.clone(),
            tasks: manifest.tasks.len(),
            actions: manifest.actions.len(),
            arguments,
            setup: ask.jobs.setup.clone(),
            time: crate::events::now(),
        };
        store.write_in_array(&folder, "intent.json", &bytes_of(&intent))?;
        let array = Array::new(folder, intent, manifest.tasks.len(), State::Unsent(now));
        self.arrays.insert(id.clone(), array);
        let task_of = |key: &Digest| {
            let place = keys.iter().position(|one| one == key)?;
            manifest.tasks.iter().position(|task| task.contains(&place))
        };
        let (orders, rest) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|order| chosen.contains(&order.digest));
        self.waiting = rest;
        for order in orders {
            let task = task_of(&order.digest).unwrap_or(0);
            self.fly(order, &id, task);
        }
        self.sbatch(&id, &[], now);
        Ok(())
    }

    /// The name of a job, which no other has: by it alone it is found again.
    fn name(&self, array: &str) -> String {
        let run = &self.around.run;
        let short = &run[run.len().saturating_sub(8)..];
        let [a, b, c, ..] = noise(array);
        format!("pipe-{short}-{}-{a:02x}{b:02x}{c:02x}", self.number - 1)
    }

    /// Submits an array once more, unless it is in the queue all the same.
    fn send_again(&mut self, id: &str, now: Instant) {
        let Some(array) = self.arrays.get(id) else { return };
        let name = array.intent.name.clone();
        match queue::look(&[&name]) {
            Ok(Some(listed)) => match listed.iter().find(|one| one.name == name) {
                Some(one) => self.accepted(id, one.job.clone()),
                None if array.unanswered.is_some_and(|since| now < since + LOST_ANSWER) => {
                    self.later(id, now)
                }
                // Should it come to light after all, it waits until the other has ended.
                None => self.sbatch(id, &["--dependency=singleton".to_owned()], now),
            },
            _ => self.later(id, now),
        }
    }

    fn sbatch(&mut self, id: &str, further: &[String], now: Instant) {
        let Some(array) = self.arrays.get(id) else { return };
        let arguments = [array.intent.arguments.as_slice(), further].concat();
        let store = absolute_path(self.around.store.root());
        let script = script(&self.program, &store, id, &array.intent.setup);
        let said = match command::run("sbatch", &arguments, &script) {
            Ok(said) => said,
            Err(error) => {
                let text = crate::attempt::chain(&error);
                return self.refuse_array(id, &text, &[]);
            }
        };
        if let Some(job) = job_id(&said.out).filter(|_| said.succeeded) {
            self.note_answer(true, now);
            return self.accepted(id, job);
        }
        match refusal::class(&said.err) {
            Refusal::Transient => {
                self.note_answer(false, now);
                if let Some(array) = self.arrays.get_mut(id) {
                    array.unanswered = said.err.contains("timed out").then_some(now);
                }
                self.later(id, now);
            }
            Refusal::Quota => {
                let others = self.queued(None).saturating_sub(self.arrays[id].tasks);
                if others == 0 {
                    // Those of another run, or of another program, leave too.
                    return match queue::look(&[]) {
                        Ok(Some(listed)) if !listed.iter().any(queue::Listed::is_live) => {
                            self.refuse_array(id, &said.err, &["qos", "account"]);
                        }
                        _ => self.later(id, now),
                    };
                }
                self.max_submitted = others;
                self.withdraw(id);
                self.hold = now + self.backoff;
            }
            Refusal::Size if self.arrays[id].tasks > 1 => {
                self.size = Some(self.arrays[id].tasks / 2);
                self.withdraw(id);
            }
            Refusal::Size => self.refuse_array(id, &said.err, &[]),
            Refusal::Permanent(about) => self.refuse_array(id, &said.err, about),
            Refusal::Unknown => {
                let count = self.arrays.get_mut(id).map_or(UNKNOWN, |array| {
                    array.refused += 1;
                    array.refused
                });
                if count >= UNKNOWN {
                    return self.refuse_array(id, &said.err, &[]);
                }
                self.later(id, now);
            }
        }
    }

    fn accepted(&mut self, id: &str, job: String) {
        let Some(array) = self.arrays.get_mut(id) else { return };
        array.state = State::Accepted;
        let name = array.intent.name.clone();
        let (tasks, folder) = (array.tasks, array.folder.clone());
        let actions = self.flying.values().filter(|flying| flying.array == id).count();
        let written = Job { id: job.clone(), time: crate::events::now() };
        // Without it the job is found by its name.
        let _ = self.around.store.write_in_array(&folder, "job.json", &bytes_of(&written));
        self.backoff = BACKOFF;
        self.poll = self.shortest_poll();
        self.next_look = Instant::now() + self.poll;
        let event = json!({ "subject": name, "job": job, "array": id, "tasks": tasks, "actions": actions,
            "detail": format!("job {job}: {actions} actions in {tasks} tasks") });
        self.around.events.emit("submitted", event);
    }

    /// A while, a longer one each time, and not that of all other drivers.
    fn pause(&mut self, id: &str) -> Duration {
        let pause = self.backoff.mul_f64(1.0 + f64::from(noise(id)[0]) / 1024.0);
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        pause
    }

    /// Tries again after a while.
    fn later(&mut self, id: &str, now: Instant) {
        let pause = self.pause(id);
        self.hold = now + pause;
        if let Some(array) = self.arrays.get_mut(id) {
            array.state = State::Unsent(now + pause);
        }
    }

    /// Gives up an array that was not accepted; its orders wait again.
    fn withdraw(&mut self, id: &str) {
        for key in self.keys_of(id) {
            if let Some(flying) = self.flying.remove(&key) {
                self.waiting.push(flying.order);
            }
        }
        self.forget(id);
    }

    /// The orders of an array are not to be had.
    fn refuse_array(&mut self, id: &str, reason: &str, about: &[&str]) {
        let lines = reason.lines().map(|line| line.trim_start_matches("sbatch: error: "));
        let reason = lines.collect::<Vec<_>>().join("; ");
        for key in self.keys_of(id) {
            self.refuse(key, &reason, about);
        }
        self.forget(id);
    }

    fn keys_of(&self, id: &str) -> Vec<Digest> {
        let of = self.flying.iter().filter(|(_, flying)| flying.array == id);
        of.map(|(key, _)| *key).collect()
    }

    /// No driver looks for this array any more.
    fn forget(&mut self, id: &str) {
        if let Some(array) = self.arrays.remove(id) {
            let _ = self.around.store.write_in_array(&array.folder, "cancelled", b"");
        }
    }
}
