//! What earlier and living runs keep in the store, and when results were last used.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use pipe_cache::{Digest, Root, Store, StoreError};

use crate::history::StoredPlan;
use crate::journal::Journal;

/// The runs of a store, as the garbage collector sees them.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// The newest distinct plans of each pipeline and profile, and runs that go on.
    pub(crate) roots: Vec<Root>,
    /// When a plan last named a key.
    pub(crate) last: BTreeMap<Digest, SystemTime>,
    /// A node that a key was planned for, as `pipeline: node`.
    pub(crate) nodes: BTreeMap<Digest, String>,
    /// The files of remote sources that these plans read.
    pub(crate) blobs: BTreeSet<Digest>,
}

/// Reads all runs, newest first. Of each pipeline and profile the last `keep` *distinct* plans are roots,
/// so that runs with nothing to do push no result out.
pub(crate) fn uses(store: &Store, keep: usize) -> Result<Uses, StoreError> {
    let mut uses = Uses::default();
    let mut kept: BTreeMap<(String, Vec<String>), BTreeSet<Vec<Digest>>> = BTreeMap::new();
    for run in store.runs()?.iter().rev() {
        let mut planned = Vec::new();
        if let Some(plan) = StoredPlan::read(store, run) {
            planned.extend(plan.nodes.values().copied());
            planned.sort_unstable();
            for (node, key) in &plan.nodes {
                uses.nodes.entry(*key).or_insert_with(|| format!("{}: {node}", plan.pipeline));
                if let Some(began) = run.began() {
                    uses.last.entry(*key).or_insert(began);
                }
            }
            let name = match plan.profiles.as_slice() {
                [] => plan.pipeline.clone(),
                profiles => format!("{}@{}", plan.pipeline, profiles.join("@")),
            };
            let plans = kept.entry((plan.pipeline, plan.profiles)).or_default();
            if plans.contains(&planned) || plans.len() < keep {
                uses.blobs.extend(&plan.blobs);
                // The parts of nodes that were not finished; no record names them.
                let shards = run.read_shards();
                if !shards.is_empty() {
                    uses.roots
                        .push(Root { name: format!("parts of run {} of {name}", run.id()), keys: shards });
                }
            }
            if plans.len() < keep && plans.insert(planned.clone()) {
                uses.roots.push(Root { name: format!("run {} of {name}", run.id()), keys: planned.clone() });
            }
        }
        // Its plan is of its beginning: what it made since is in its events.
        if let Some(journal) = Journal::read(run).filter(|journal| journal.alive) {
            planned.extend(journal.actions.values().filter_map(|action| action.key.parse::<Digest>().ok()));
            planned.extend(run.read_shards());
            uses.roots.push(Root { name: format!("run {}, which goes on", run.id()), keys: planned });
        }
    }
    Ok(uses)
}
