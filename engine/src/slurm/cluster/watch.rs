//! What becomes of orders that were submitted: what workers write, what the queue says, and what follows from both.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

use pipe_cache::{Committed, Digest};
use serde_json::Value as Json;

use super::super::accounts;
use super::super::manifest::Ended;
use super::super::queue::{self, Listed, Waiting};
use super::super::verdict::{After, Cause, Signs, Verdict, judge};
use super::super::worker::code;
use super::{Array, Cluster, LONGEST_POLL};
use crate::attempt::{AttemptError, Finished};
use crate::error::StageError;
use crate::exit;

/// How often the folders of arrays are looked at.
pub(super) const SCAN: Duration = Duration::from_millis(500);
/// How long a job may wait for a reason that will not pass.
const STUCK: Duration = Duration::from_secs(60);
/// After this time of waiting for a reason that nobody knows it is told.
const UNKNOWN: Duration = Duration::from_secs(3600);
/// Events of workers that are passed on.
const PASSED_ON: [&str; 5] = ["progress", "checkpoint", "resume", "warning", "nondeterminism"];
/// Bytes of a job's log that are looked through for what ended it.
const LOG_END: u64 = 16 << 10;
/// Characters of the last line of a job's standard error that are told.
const LONGEST_WORDS: usize = 200;

impl Cluster {
    /// Takes what workers have written.
    pub(super) fn scan(&mut self, now: Instant) {
        let ids: BTreeSet<String> = self.flying.values().map(|flying| flying.array.clone()).collect();
        for id in ids {
            let Some(array) = self.arrays.get_mut(&id) else { continue };
            self.cancelled |= array.folder.read("cancelled").is_some();
            for name in array.folder.names("exits") {
                let read = || {
                    let (task, restart) = name.split_once('.')?;
                    let text = String::from_utf8(array.folder.read(&format!("exits/{name}"))?).ok()?;
                    Some((task.parse().ok()?, restart.parse().ok()?, text.trim().parse().ok()?))
                };
                let known =
                    |task, restart| array.exits.get(&task).is_some_and(|(known, _)| *known >= restart);
                if let Some((task, restart, code)) = read()
                    && !known(task, restart)
                {
                    array.exits.insert(task, (restart, code));
                    // The queue knows soon.
                    self.next_look = self.next_look.min(now + SCAN);
                }
            }
            for event in array.new_events() {
                let name = event["ev"].as_str().unwrap_or_default().to_owned();
                let Json::Object(mut fields) = event else { continue };
                for common in ["v", "ts", "run", "seq", "ev"] {
                    fields.remove(common);
                }
                self.around.events.emit(&name, Json::Object(fields));
            }
            let new: Vec<String> =
                array.folder.names("ended").into_iter().filter(|name| !array.ended.contains(name)).collect();
            for name in new {
                self.take(&id, &name);
            }
        }
    }

    /// Takes the end of an action; what is not to be seen yet is asked for again.
    fn take(&mut self, id: &str, name: &str) {
        let Some(key) = name.strip_suffix(".json").and_then(|hex| hex.parse::<Digest>().ok()) else { return };
        let Some(array) = self.arrays.get_mut(id) else { return };
        let Some(flying) = self.flying.get(&key).filter(|flying| flying.array == id) else {
            array.ended.insert(name.to_owned());
            return;
        };
        let ended = array.folder.read(&format!("ended/{name}"));
        let Some(ended) = ended.and_then(|bytes| serde_json::from_slice::<Ended>(&bytes).ok()) else {
            return;
        };
        let result = match ended.outcome {
            Ok(done) => match self.around.store.lookup(&key) {
                Ok(Some(record)) => Ok(Committed { record, outcome: done.into() }),
                Ok(None) => return self.look_anew(&key),
                Err(error) => Err(error.into()),
            },
            Err(failure) => Err(failure.into_error()),
        };
        array.ended.insert(name.to_owned());
        *array.given.entry(flying.task).or_default() += 1;
        let cpu = ended.cpu.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let wall = Duration::try_from_secs_f64(ended.wall).unwrap_or_default();
        self.poll = self.shortest_poll();
        self.end(key, Finished { result, wall, cpu, is_taken: false }, ended.peak);
    }

    /// Lists the folder of a record: a network file system that remembers that there was none asks its server again.
    fn look_anew(&self, key: &Digest) {
        let path = self.around.store.record_path(key);
        let _ = path.parent().map(std::fs::read_dir).map(|entries| entries.into_iter().flatten().count());
    }

    /// One look at the queue, and a judgement of all that was submitted.
    pub(super) fn look(&mut self, now: Instant) {
        let names: BTreeMap<&str, &str> = self
            .flying
            .values()
            .filter_map(|flying| {
                let array = self.arrays.get(&flying.array)?;
                Some((array.intent.name.as_str(), flying.array.as_str()))
            })
            .collect();
        let listed = queue::look(&names.keys().copied().collect::<Vec<_>>()).ok().flatten();
        self.next_look = now + self.poll;
        self.poll = (self.poll * 2).min(LONGEST_POLL.max(self.poll));
        let answered = listed.is_some();
        let mut by_task: BTreeMap<(String, usize), Listed> = BTreeMap::new();
        for one in listed.into_iter().flatten() {
            let Some(id) = names.get(one.name.as_str()) else { continue };
            let known = by_task.entry(((*id).to_owned(), one.task)).or_insert_with(|| one.clone());
            // Of two jobs of one name the living one counts.
            if one.is_live() {
                *known = one;
            }
        }
        drop(names);
        self.note_answer(answered, now);
        if !answered {
            // Nothing is lost because nobody answers.
            return;
        }
        for ((id, task), one) in by_task.iter().filter(|(_, one)| !one.is_live()) {
            if let Some(array) = self.arrays.get_mut(id) {
                array.over.insert(*task, one.state.clone());
            }
        }
        for key in self.flying.keys().copied().collect::<Vec<_>>() {
            let Some(flying) = self.flying.get(&key) else { continue };
            let one = by_task.get(&(flying.array.clone(), flying.task));
            self.judge(key, one, now);
        }
    }

    fn judge(&mut self, key: Digest, listed: Option<&Listed>, now: Instant) {
        let Some(flying) = self.flying.get(&key) else { return };
        let Some(array) = self.arrays.get(&flying.array) else { return };
        if array.state != super::State::Accepted {
            return;
        }
        let live = listed.is_some_and(Listed::is_live);
        // In this order: whoever gave the lease back before the first look has left a record before the second.
        let held = !live && self.around.store.holder(&key).ok().flatten().is_some();
        // A result of somebody else's is one too.
        let record = if flying.order.forced { None } else { self.around.store.lookup(&key).ok().flatten() };
        let (since, looks) = flying.unseen.map_or((now, 1), |(since, looks)| (since, looks + 1));
        let exit = array.exits.get(&flying.task).map(|(_, code)| *code);
        let exit = exit.filter(|_| self.has_no_later_worker(array, flying.task));
        let promised = exit == Some(exit::DONE);
        if promised && record.is_none() {
            self.look_anew(&key);
        }
        let completing = listed.is_some_and(|one| one.state == "COMPLETING");
        let signs = Signs {
            recorded: record.is_some(),
            live,
            completing,
            held,
            unexplained: completing && exit == Some(exit::OUT_OF_TIME),
            exited: exit.is_some() && !promised,
            unseen: (looks, now.duration_since(since)),
        };
        match judge(&signs) {
            Verdict::Done => {
                if let Some(record) = record {
                    let wall = Duration::try_from_secs_f64(record.meta.duration_seconds).unwrap_or_default();
                    let result = Ok(Committed { record, outcome: pipe_cache::CommitOutcome::Created });
                    self.end(key, Finished { result, wall, cpu: None, is_taken: false }, 0);
                }
            }
            Verdict::Alive => {
                let stuck = listed.map_or(Waiting::Passing, Listed::waiting);
                let reason = listed.map(|one| one.reason.clone()).unwrap_or_default();
                self.wait(key, stuck, &reason, now);
            }
            Verdict::Doubtful => {
                if let Some(flying) = self.flying.get_mut(&key) {
                    flying.unseen = Some((since, looks));
                }
                // To be sure soon, and not after a long pause.
                self.next_look = self.next_look.min(now + self.shortest_poll());
            }
            Verdict::Lost => self.lost(key),
        }
    }

    /// Whether nobody began to work on a task after the last who said that he ended.
    fn has_no_later_worker(&self, array: &Array, task: usize) -> bool {
        let last = array.exits.get(&task).map_or(0, |(restart, _)| *restart);
        let restart = |name: String| -> Option<u32> {
            let (job_and_task, rest) = name.split_once('.')?;
            let (_, found) = job_and_task.rsplit_once('_')?;
            (found.parse::<usize>().ok()? == task).then(|| rest.strip_suffix(".json")?.parse().ok())?
        };
        array.folder.names("workers").into_iter().filter_map(restart).all(|restart| restart <= last)
    }

    /// A task waits in the queue or works.
    fn wait(&mut self, key: Digest, waiting: Waiting, reason: &str, now: Instant) {
        let Some(flying) = self.flying.get_mut(&key) else { return };
        flying.unseen = None;
        if waiting == Waiting::Passing {
            flying.stuck = None;
            return;
        }
        let since = *flying.stuck.get_or_insert(now);
        let stuck = now.duration_since(since);
        match waiting {
            Waiting::Permanent(about) if stuck >= STUCK => {
                let (array, task) = (flying.array.clone(), flying.task);
                self.refuse(key, &format!("its job waits with the reason {reason}"), about);
                self.cancel_task(&array, task);
            }
            Waiting::Permanent(_) => {
                self.next_look = self.next_look.min(now + STUCK.saturating_sub(stuck) + SCAN);
            }
            Waiting::Unknown if stuck >= UNKNOWN => {
                flying.stuck = Some(now);
                let name = flying.order.brief.node.clone();
                self.warn(&format!("the job of `{name}` has waited for an hour with the reason {reason}"));
            }
            _ => {}
        }
    }

    /// Takes a task out of the queue, if nobody waits for it any more.
    fn cancel_task(&self, id: &str, task: usize) {
        let is_wanted = self.flying.values().any(|flying| flying.array == id && flying.task == task);
        let Some(array) = self.arrays.get(id).filter(|_| !is_wanted) else { return };
        let job = array.folder.read("job.json");
        let job = job.and_then(|bytes| serde_json::from_slice::<super::super::manifest::Job>(&bytes).ok());
        if let Some(job) = job {
            let _ = super::super::command::run("scancel", &[format!("{}_{task}", job.id)], "");
        }
    }

    /// An attempt gave no result, and will give none.
    fn lost(&mut self, key: Digest) {
        let Some(flying) = self.flying.get(&key) else { return };
        let Some(array) = self.arrays.get(&flying.array) else { return };
        let cause = array.cause(flying.task);
        let given = array.given.get(&flying.task).copied().unwrap_or(0);
        let progress = self.step(&flying.order) > flying.step || given > flying.given;
        let ask = &flying.order.ask;
        let (asked, limit) = (ask.memory.is_some(), ask.limit());
        let after = self.tries.entry(key).or_default().after(cause.clone(), progress, asked, limit);
        let detail = match &cause {
            Cause::OutOfTime => "its task came to the end of its time; another one goes on".to_owned(),
            Cause::Lost(what) => format!("its task gave no result ({what}); another one tries"),
            Cause::OutOfMemory => {
                "its task had too little memory; another one gets half as much on top".to_owned()
            }
            _ => format!("{cause:?}"),
        };
        if self.stopped || self.cancelled {
            return self.fail(key, StageError::Cancelled.into());
        }
        if let After::Fail(text) = after {
            return self.fail(key, AttemptError::Lost(text));
        }
        let event = serde_json::json!({ "node": flying.order.brief.node, "class": "lost", "delay": 0.0, "detail": detail,
            "shard": flying.order.part.is_some().then(|| key.to_hex()) });
        self.around.events.emit("retry", event);
        let Some(mut flying) = self.flying.remove(&key) else { return };
        if after == After::WithMoreMemory {
            flying.order.ask.memory = flying.order.ask.memory.map(|bytes| bytes.saturating_add(bytes / 2));
        }
        self.waiting.push(flying.order);
    }
}

impl Array {
    /// Why a task that is over gave no result.
    fn cause(&self, task: usize) -> Cause {
        let state = self.over.get(&task).map(String::as_str);
        let exit = self.exits.get(&task).map(|(_, code)| *code);
        if exit == Some(code::OTHER_PROGRAM) {
            return Cause::OtherProgram;
        }
        if state == Some("OUT_OF_MEMORY") || self.log_tells_of_memory(task) {
            return Cause::OutOfMemory;
        }
        let how = match (state, exit) {
            (Some("CANCELLED"), _) => return Cause::Cancelled,
            (Some("TIMEOUT"), _) | (_, Some(exit::OUT_OF_TIME)) => return Cause::OutOfTime,
            (Some(state), Some(code)) => format!("{state}, exit code {code}"),
            (None, Some(code)) => format!("exit code {code}"),
            (Some(state), None) => state.to_owned(),
            // Whoever keeps accounts knows more, and may be asked: it is rare.
            (None, None) => accounts::end_of(&self.intent.name, task)
                .unwrap_or_else(|| "the queue does not know it".to_owned()),
        };
        Cause::Lost(match self.last_words(task) {
            Some(words) => format!("{how}; its job said at last: {words}"),
            None => how,
        })
    }

    /// The names of the logs of a task, of its standard output and its standard error.
    fn logs(&self, task: usize) -> impl Iterator<Item = String> {
        let begin = format!("{task}.");
        self.folder.names("logs").into_iter().filter(move |name| name.starts_with(&begin))
    }

    /// The end of a log.
    fn log_end(&self, name: &str) -> Option<String> {
        let mut file = std::fs::File::open(self.folder.path().join("logs").join(name)).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END))).ok()?;
        let mut bytes = Vec::new();
        file.take(LOG_END).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether the last lines of a job's logs say that it had too little memory: without control groups nothing else does.
    fn log_tells_of_memory(&self, task: usize) -> bool {
        self.logs(task).filter_map(|name| self.log_end(&name)).any(|text| {
            ["exceeded memory limit", "oom-kill", "oom_kill", "Exceeded job memory"]
                .iter()
                .any(|mark| text.contains(mark))
        })
    }

    /// The last line on the standard error of a task: what a set-up that fails has to say stands nowhere else.
    fn last_words(&self, task: usize) -> Option<String> {
        let newest = self.logs(task).filter(|name| name.ends_with(".err")).max()?;
        let text = self.log_end(&newest)?;
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        Some(line.chars().filter(|c| !c.is_control()).take(LONGEST_WORDS).collect())
    }

    /// What workers have told since the last look.
    fn new_events(&mut self) -> Vec<Json> {
        let mut found = Vec::new();
        for name in self.folder.names("events") {
            let taken = self.events.entry(name.clone()).or_default();
            let read = || -> std::io::Result<Vec<u8>> {
                let mut file = std::fs::File::open(self.folder.path().join("events").join(&name))?;
                file.seek(SeekFrom::Start(*taken))?;
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            let bytes = read().unwrap_or_default();
            // A line that is being written is taken when it is whole.
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            *taken += whole as u64;
            let lines = bytes[..whole].split(|byte| *byte == b'\n');
            let events = lines.filter_map(|line| serde_json::from_slice::<Json>(line).ok());
            found
                .extend(events.filter(|event| PASSED_ON.contains(&event["ev"].as_str().unwrap_or_default())));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use pipe_cache::{Durability, Store};

    use super::super::State;
    use super::*;
    use crate::slurm::manifest::Intent;

    #[test]
    fn both_streams_of_a_job_tell_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with_cache(&folder.path().join("s"), Durability::Rename, None).unwrap();
        let intent = Intent {
            name: "pipe-x".to_owned(),
            run: "r".to_owned(),
            stage: "s".to_owned(),
            tasks: 20,
            actions: 20,
            arguments: Vec::new(),
            setup: String::new(),
            time: String::new(),
        };
        let of = |task: usize, state: &str| {
            let mut array = Array::new(store.array("a").unwrap(), intent.clone(), 20, State::Accepted);
            array.over.insert(task, state.to_owned());
            array.cause(task)
        };
        let array = store.new_array("a", b"{}").unwrap();
        let log =
            |name: &str, text: &str| std::fs::write(array.path().join("logs").join(name), text).unwrap();
        log("1.7.out", "words\n");
        log("1.7.err", "slurmstepd: error: StepId=7.batch exceeded memory limit (9 > 8), being killed\n");
        log("2.7.out", "slurmstepd: Exceeded job memory limit\n");
        log("3.7.out", "all is well\n");
        log("3.7.err", "first\nmodule: command not found\u{7}\n\n");
        log("13.7.err", "of another task\n");
        log("4.7.out", "all is well\n");
        log("4.7.err", "");
        assert_eq!([of(1, "FAILED"), of(2, "FAILED")], [Cause::OutOfMemory, Cause::OutOfMemory]);
        let lost = |text: &str| Cause::Lost(text.to_owned());
        assert_eq!(of(3, "FAILED"), lost("FAILED; its job said at last: module: command not found"));
        assert_eq!(of(4, "NODE_FAIL"), lost("NODE_FAIL"));
        assert_eq!(of(3, "CANCELLED"), Cause::Cancelled);
    }
}
