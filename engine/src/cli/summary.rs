//! The last words of a run, on standard error: failures with their causes, what they blocked, and where
//! the results are.

use std::collections::BTreeMap;
use std::time::Duration;

use pipe_cache::{CollectOptions, Store, StoreError};

use super::arguments::{Arguments, GRACE, KEPT_RUNS};
use super::size;
use super::study::Study;
use crate::attempt::chain;
use crate::exit;
use crate::language::quantity;
use crate::pipeline::NodeId;
use crate::publish::{self, PublishError};
use crate::roots::{Uses, uses};
use crate::run::{Outcome, free_bytes};
use crate::why::some_of;

/// Everything that is told.
pub(crate) struct Summary<'a> {
    pub(crate) study: &'a Study,
    pub(crate) outcome: &'a Outcome,
    pub(crate) published: Result<&'a publish::Summary, &'a PublishError>,
    pub(crate) hits: usize,
    /// What was put into the remote cache.
    pub(crate) uploaded: pipe_mirror::Uploaded,
    /// Results that another numerics class gave, and were accepted.
    pub(crate) foreign: usize,
    pub(crate) wall: Duration,
    pub(crate) store: &'a Store,
}

/// The exit code of what was executed: that of the gravest failure.
pub(crate) fn exit_code(outcome: &Outcome) -> u8 {
    let failed = outcome.failed.values().map(|failure| failure.exit_code);
    failed.chain(outcome.low_space.then_some(exit::ENVIRONMENT)).max().unwrap_or(exit::DONE)
}

impl Summary<'_> {
    /// Errors are told always, the rest to people who did not ask for quiet or for events.
    pub(crate) fn print(&self, arguments: &Arguments) {
        let nodes = &self.study.pipeline.nodes;
        let quiet = arguments.global.quiet || arguments.global.json;
        for (id, failure) in &self.outcome.failed {
            let (name, log) = (&nodes[id.0].name, failure.log.display());
            eprintln!("error: `{name}` failed\n  cause: {}\n  log: {log}", failure.error);
            if failure.no_space {
                eprintln!("  hint: {}", self.free_some_space());
            }
        }
        if self.outcome.low_space {
            eprintln!("error: the disk of the store is nearly full, so nothing more was started");
            eprintln!("  hint: {}; `--min-free` sets how much has to be free", self.free_some_space());
        }
        if let Err(error) = self.published {
            eprintln!("error: publishing results\n  cause: {}", chain(error));
            eprintln!("  hint: name another folder with `--results` or PIPE_RESULTS");
        }
        for (id, differences) in &self.outcome.differing {
            eprintln!("error: `{}` gave another result than the stored one, which stands", nodes[id.0].name);
            for difference in differences {
                eprintln!("  {}", difference.words());
            }
        }
        if quiet {
            return;
        }
        let mut by_cause: BTreeMap<NodeId, Vec<&str>> = BTreeMap::new();
        for (blocked, cause) in &self.outcome.blocked {
            by_cause.entry(*cause).or_default().push(&nodes[blocked.0].name);
        }
        for (cause, blocked) in by_cause {
            eprintln!("{:>10}  {} (by `{}`)", "Blocked", some_of(&blocked), nodes[cause.0].name);
        }
        if self.outcome.damaged > 0 {
            let them = if self.outcome.damaged == 1 { "result was" } else { "results were" };
            eprintln!("{:>10}  {} stored {them} missing or damaged", "Damage", self.outcome.damaged);
        }
        if self.foreign > 0 {
            let results = if self.foreign == 1 { "result is" } else { "results are" };
            eprintln!(
                "{:>10}  {} {results} of another numerics class; `pipe plan --accept-numerics any` names them",
                "Accepted", self.foreign
            );
        }
        if self.outcome.taken > 0 || self.uploaded.records > 0 {
            let (taken, put) = (self.outcome.taken, self.uploaded.records);
            eprintln!("{:>10}  {taken} results taken from the remote cache, {put} put there", "Remote");
        }
        if !self.outcome.jobs.is_empty() {
            let jobs: Vec<&str> =
                self.outcome.jobs.iter().map(|(name, id)| id.as_ref().unwrap_or(name).as_str()).collect();
            let file = self.study.pipeline.path.display();
            eprintln!(
                "{:>10}  jobs {} go on; `pipe status {file}` follows them, `pipe cancel {file} RUN` ends them, and the next \
                 run takes what they gave",
                "Left",
                jobs.join(", ")
            );
        }
        let evicted = self.published.map_or(0, |published| published.evicted);
        if evicted > 0 {
            let files = if evicted == 1 { "file" } else { "files" };
            eprintln!(
                "{:>10}  {evicted} {files} left out of results that are evicted or whose records alone came from the remote cache; naming \
                 their stages brings the latter, `--force NODE` makes them again",
                "Evicted"
            );
        }
        let verb = if self.outcome.cancelled { "Stopped" } else { "Finished" };
        let results = publish::folder(&self.study.results, &self.study.pipeline);
        eprintln!(
            "{verb:>10}  {} executed, {} up to date, {} failed, {:.1} s   results: {}",
            self.outcome.executed.len(),
            self.hits,
            self.outcome.failed.len(),
            self.wall.as_secs_f64(),
            results.display()
        );
    }
}

impl Summary<'_> {
    /// What to do about a full disk: what is free, what the results that ran took when they were last made, and what is
    /// garbage.
    fn free_some_space(&self) -> String {
        let store = self.store.root().display();
        let free = free_bytes(self.store).map_or_else(|| "an unknown part".to_owned(), size);
        let needed = match self.outcome.expected {
            0 => String::new(),
            bytes => format!(", the results to be made took {} last time", size(bytes)),
        };
        let garbage = garbage(self.store).map(|bytes| format!(" would free {}", size(bytes)));
        format!(
            "free some space at `{store}` ({free} of it is free{needed}): `pipe gc --apply`{}; or name another store with `--store` or PIPE_STORE",
            garbage.unwrap_or_else(|_| " removes what nothing needs".to_owned())
        )
    }
}

/// The bytes that `pipe gc` would remove.
fn garbage(store: &Store) -> Result<u64, StoreError> {
    let mut known = Uses::default();
    let survey = store.survey(|| {
        known = uses(store, KEPT_RUNS)?;
        Ok(std::mem::take(&mut known.roots))
    })?;
    let grace = quantity::seconds(GRACE).map(Duration::from_secs).unwrap_or_default();
    let options = CollectOptions { grace, max_bytes: None, used: known.last, kept: known.blobs };
    Ok(survey.garbage(&options).bytes)
}
