//! `pipe status`: what runs now, seen from any terminal, how the last run ended, what is up to date, and
//! what the store takes.

use pipe_cache::{Digest, LeaseInfo, Owner, Store};
use serde_json::json;

use super::arguments::{Arguments, FileArguments};
use super::plan::counts;
use super::study::Study;
use super::{CliError, print, print_json};
use crate::journal::{Action, Journal};
use crate::kind::Registry;
use crate::plan::Wanted;
use crate::publish;
use crate::slurm::jobs::{self, LiveArray};

/// Runs that may still go on are among the newest.
const RECENT: usize = 64;

pub(crate) fn status(
    arguments: &Arguments,
    file: &FileArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &file.pipeline, registry)?;
    let Some(store) = study.open_existing()? else {
        if arguments.global.json {
            return print_json(
                &json!({ "version": 1, "store": null, "running": [], "waiting": [], "leases": [], "jobs": [], "last_run": null }),
            );
        }
        return print(&format!("no store at {}: nothing has run yet\n", study.store_path.display()));
    };
    let (plan, ..) = study.plan(Some(&store), &Wanted::default(), registry.numerics())?;
    let runs = store.runs()?;
    let recent: Vec<Journal> = runs.iter().rev().take(RECENT).filter_map(Journal::read).collect();
    let actions = |state: &str| -> Vec<(&Journal, &String, &Action)> {
        let living = recent.iter().filter(|journal| journal.alive);
        living
            .flat_map(|journal| journal.actions.iter().map(move |(node, action)| (journal, node, action)))
            .filter(|(.., action)| action.state == state)
            .collect()
    };
    let last = recent.iter().find(|journal| journal.pipeline() == study.pipeline.name);
    let usage = store.usage()?;
    let free = free_bytes(&store);
    // Where nothing was ever submitted nobody is asked; and who gives no answer is told apart from no jobs.
    let jobs = jobs::live(&jobs::arrays(&store, None)).ok().flatten();
    let mut leases = held_in_jobs(&store, jobs.as_deref().unwrap_or_default(), |key| {
        let place =
            plan.keys.iter().position(|known| known.as_ref().is_some_and(|(digest, _)| digest == key));
        place.map(|place| study.pipeline.nodes[place].name.clone())
    });
    // What a run does itself it tells itself.
    let told: Vec<Owner> = recent.iter().filter(|journal| journal.alive).filter_map(owner).collect();
    leases.retain(|lease| !told.contains(&lease.info.owner));
    if arguments.global.json {
        let json = |state: &str| -> Vec<serde_json::Value> {
            actions(state)
                .into_iter()
                .map(|(journal, node, action)| action_json(journal, node, action))
                .collect()
        };
        let (hit, run, maybe) = plan.counts();
        return print_json(&json!({
            "version": 1, "store": study.store_path, "uuid": store.uuid(), "hit": hit, "run": run, "maybe": maybe,
            "running": json("running"), "waiting": json("waiting"),
            "leases": leases.iter().map(Held::json).collect::<Vec<_>>(),
            "jobs": jobs.map(|jobs| jobs.iter().map(LiveArray::json).collect::<Vec<_>>()), "last_run": last.map(Journal::json),
            "disk": { "blobs": usage.blobs, "bytes": usage.bytes, "free": free },
        }));
    }
    let results = publish::folder(&study.results, &study.pipeline);
    let mut text = format!("store    {}\nresults  {}\n", study.store_path.display(), results.display());
    let free = free.map(|free| format!(", {} free", size(free))).unwrap_or_default();
    text.push_str(&format!("disk     {} in {} blobs{free}\n", size(usage.bytes), usage.blobs));
    for state in ["running", "waiting"] {
        for (journal, node, action) in actions(state) {
            text.push_str(&action_text(journal, node, action));
        }
    }
    text.extend(leases.iter().map(Held::words));
    match &jobs {
        Some(jobs) => text.extend(jobs.iter().map(LiveArray::words)),
        None => text.push_str("jobs     unknown: the cluster gives no answer\n"),
    }
    if let Some(last) = last {
        text.push_str(&format!("last run {}  {}  {}\n", last.time(), last.run, last.status()));
    }
    text.push_str(&counts(&plan));
    print(&text)
}

/// Who drives a run.
fn owner(journal: &Journal) -> Option<Owner> {
    serde_json::from_value(journal.began["owner"].clone()).ok()
}

fn action_text(journal: &Journal, node: &str, action: &Action) -> String {
    let progress = action
        .progress
        .as_ref()
        .map(|(done, total, unit)| format!("  {done}/{total} {unit}"))
        .unwrap_or_default();
    let (state, since) = (&action.state, &action.since);
    let owner = owner(journal).map_or_else(|| "?".to_owned(), |owner| owner.to_string());
    format!("{state:<8} {node}{progress}  since {since}  ({owner}, run {})\n", journal.run)
}

fn action_json(journal: &Journal, node: &str, action: &Action) -> serde_json::Value {
    let progress = action.progress.as_ref();
    json!({
        "node": node, "key": action.key, "since": action.since, "run": journal.run, "pipeline": journal.pipeline(),
        "host": journal.began["owner"]["host"], "pid": journal.began["owner"]["pid"],
        "done": progress.map(|(done, ..)| done), "total": progress.map(|(_, total, _)| total),
        "unit": progress.map(|(.., unit)| unit),
    })
}

/// An action that a job of a cluster works on.
struct Held {
    /// The node, or the stage where it is a part of one.
    name: String,
    key: Digest,
    info: LeaseInfo,
}

/// The actions that jobs of a cluster work on, as their leases say.
fn held_in_jobs(store: &Store, jobs: &[LiveArray], node: impl Fn(&Digest) -> Option<String>) -> Vec<Held> {
    let leases = store.living_leases().unwrap_or_default().into_iter();
    let held = leases.filter_map(|(key, info)| {
        let task = info.owner.slurm.as_ref()?;
        let id = task.array.as_ref().unwrap_or(&task.job);
        let stage = jobs.iter().find(|array| array.job.as_ref() == Some(id));
        let name = node(&key).or_else(|| stage.map(|array| format!("a part of {}", array.intent.stage)));
        Some(Held { name: name.unwrap_or_else(|| key.to_short()), key, info })
    });
    held.collect()
}

impl Held {
    fn words(&self) -> String {
        let LeaseInfo { owner, run, since, .. } = &self.info;
        format!("{:<8} {}  since {since}  ({owner}, run {run})\n", "at work", self.name)
    }

    fn json(&self) -> serde_json::Value {
        let LeaseInfo { owner, run, since, .. } = &self.info;
        json!({
            "action": self.name, "key": self.key, "since": since, "run": run, "host": owner.host, "pid": owner.pid,
            "slurm": owner.slurm,
        })
    }
}

fn free_bytes(store: &Store) -> Option<u64> {
    let stat = rustix::fs::statvfs(store.root()).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if bytes < 1024 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_short() {
        assert_eq!(
            [0, 1023, 1024, 1536, 1 << 20, 5 << 30, 1 << 50].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 GiB", "1024.0 TiB"]
        );
    }
}
