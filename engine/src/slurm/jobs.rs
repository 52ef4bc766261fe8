//! The jobs of a store's runs, as any process can see them.

use std::collections::BTreeMap;

use pipe_cache::{ArrayFolder, Store};
use serde_json::{Value as Json, json};

use super::manifest::{Intent, Job, Manifest};
use super::queue::{self, Listed};
use crate::error::StageError;

/// So many arrays may still go on.
const RECENT: usize = 256;

/// An array with tasks in the queue.
#[derive(Debug)]
pub(crate) struct LiveArray {
    pub(crate) intent: Intent,
    pub(crate) job: Option<String>,
    /// How many tasks are in each state.
    pub(crate) states: BTreeMap<String, usize>,
    /// Why tasks wait.
    pub(crate) reasons: BTreeMap<String, usize>,
}

/// The arrays that somebody submitted, newest first, and what stands in their intents; of one run or of all.
pub(crate) fn arrays(store: &Store, run: Option<&str>) -> Vec<(ArrayFolder, Intent)> {
    let of_run = |folder: &ArrayFolder| run.is_none_or(|run| folder.id().starts_with(run));
    let folders = store.arrays().into_iter().rev().filter(of_run).take(RECENT);
    let intent = |folder: &ArrayFolder| serde_json::from_slice::<Intent>(&folder.read("intent.json")?).ok();
    folders.filter_map(|folder| intent(&folder).map(|intent| (folder, intent))).collect()
}

/// Those of which tasks are in the queue; none if the queue gives no answer.
///
/// # Errors
/// If there is no `squeue`.
pub(crate) fn live(arrays: &[(ArrayFolder, Intent)]) -> Result<Option<Vec<LiveArray>>, StageError> {
    if arrays.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let names: Vec<&str> = arrays.iter().map(|(_, intent)| intent.name.as_str()).collect();
    let Some(listed) = queue::look(&names)? else { return Ok(None) };
    let mut by_name: BTreeMap<&str, Vec<&Listed>> = BTreeMap::new();
    for one in listed.iter().filter(|one| one.is_live()) {
        by_name.entry(&one.name).or_default().push(one);
    }
    let live = arrays.iter().filter_map(|(folder, intent)| {
        let listed = by_name.get(intent.name.as_str())?;
        let (mut states, mut reasons) = (BTreeMap::new(), BTreeMap::new());
        for one in listed {
            *states.entry(one.state.to_lowercase()).or_default() += 1;
            if one.state == "PENDING" {
                *reasons.entry(one.reason.clone()).or_default() += 1;
            }
        }
        let job = folder.read("job.json").and_then(|bytes| serde_json::from_slice::<Job>(&bytes).ok());
        let job = job.map(|job| job.id).or_else(|| listed.first().map(|one| one.job.clone()));
        Some(LiveArray { intent: intent.clone(), job, states, reasons })
    });
    Ok(Some(live.collect()))
}

/// How many of the actions of an array there are, and how many have results.
pub(crate) fn results(store: &Store, folder: &ArrayFolder) -> Option<(usize, usize)> {
    let manifest: Manifest = serde_json::from_slice(&folder.manifest().ok()??).ok()?;
    let done = manifest.actions.iter().filter(|action| store.has_record(&action.key.digest())).count();
    Some((done, manifest.actions.len()))
}

fn counts(of: &BTreeMap<String, usize>) -> String {
    of.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}

impl LiveArray {
    /// One line for people.
    pub(crate) fn words(&self) -> String {
        let Intent { stage, actions, run, .. } = &self.intent;
        let reasons =
            if self.reasons.is_empty() { String::new() } else { format!(" ({})", counts(&self.reasons)) };
        let job = self.job.as_deref().unwrap_or("?");
        format!(
            "job      {job}: {}{reasons}, {actions} actions of {stage}  (run {run})\n",
            counts(&self.states)
        )
    }

    pub(crate) fn json(&self) -> Json {
        json!({
            "run": self.intent.run, "stage": self.intent.stage, "name": self.intent.name, "job": self.job,
            "tasks": self.intent.tasks, "actions": self.intent.actions, "states": self.states, "reasons": self.reasons,
        })
    }
}
