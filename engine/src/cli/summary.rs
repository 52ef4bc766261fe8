//! The last words of a run, on standard error: failures with their causes, what they blocked, and where
//! the results are.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use pipe_cache::Store;

use super::arguments::Arguments;
use super::study::Study;
use crate::attempt::chain;
use crate::exit;
use crate::pipeline::NodeId;
use crate::publish::{self, PublishError};
use crate::run::Outcome;

/// Everything that is told.
pub(crate) struct Summary<'a> {
    pub(crate) study: &'a Study,
    pub(crate) outcome: &'a Outcome,
    pub(crate) published: Result<&'a publish::Summary, &'a PublishError>,
    pub(crate) hits: usize,
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
                eprintln!("  hint: {}", free_some_space(self.store.root()));
            }
        }
        if self.outcome.low_space {
            eprintln!("error: the disk of the store is nearly full, so nothing more was started");
            eprintln!(
                "  hint: {}; `--min-free` sets how much has to be free",
                free_some_space(self.store.root())
            );
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
            eprintln!("{:>10}  {} (by `{}`)", "Blocked", blocked.join(", "), nodes[cause.0].name);
        }
        if self.outcome.damaged > 0 {
            let them = if self.outcome.damaged == 1 { "result was" } else { "results were" };
            eprintln!("{:>10}  {} stored {them} missing or damaged", "Damage", self.outcome.damaged);
        }
        let evicted = self.published.map_or(0, |published| published.evicted);
        if evicted > 0 {
            let files = if evicted == 1 { "file" } else { "files" };
            eprintln!(
                "{:>10}  {evicted} {files} of evicted results left out; `--force NODE` makes them again",
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

/// What to do about a full disk.
pub(crate) fn free_some_space(store: &Path) -> String {
    let free = rustix::fs::statvfs(store).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let left = free.map(|bytes| format!(" ({} MiB are left)", bytes >> 20)).unwrap_or_default();
    format!(
        "free some space at `{}`{left}: `pipe gc` says what can go; or name another store with `--store` or PIPE_STORE",
        store.display()
    )
}
