//! What earlier runs of a pipeline knew: the last key and the last failure of each node.

use std::collections::BTreeMap;

use pipe_cache::{Digest, RunFolder, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::pipeline::Pipeline;

/// How many runs are looked through: enough for a node that was left out of many partial runs.
const DEPTH: usize = 64;

/// `plan.json` of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredPlan {
    pub(crate) version: u32,
    pub(crate) pipeline: String,
    pub(crate) profiles: Vec<String>,
    /// The run that holds the nodes, if they are the same as there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) same_as: Option<String>,
    /// Node name to action key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) nodes: BTreeMap<String, Digest>,
    /// Node name to the error of its last attempt.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) failed: BTreeMap<String, String>,
}

/// The last keys and failures by node name.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) keys: BTreeMap<String, Digest>,
    pub(crate) failed: BTreeMap<String, String>,
    /// The newest plan with its nodes written out, and the run that holds it.
    newest: Option<(String, StoredPlan)>,
}

fn read_plan(run: &RunFolder) -> Option<StoredPlan> {
    serde_json::from_slice(&std::fs::read(run.plan()).ok()?).ok()
}

impl History {
    /// Reads the runs of this pipeline, newest first, until every node is known.
    pub(crate) fn read(store: &Store, pipeline: &Pipeline) -> Result<Self, StoreError> {
        let mut history = Self::default();
        let mut unknown = pipeline.nodes.len();
        for run in store.runs()?.iter().rev().take(DEPTH) {
            let Some(mut plan) = read_plan(run) else { continue };
            if plan.pipeline != pipeline.name {
                continue;
            }
            let mut holder = run.id().to_owned();
            if let Some(id) = plan.same_as.take() {
                match store.run(&id).ok().as_ref().and_then(read_plan) {
                    Some(full) => plan.nodes = full.nodes,
                    None => continue,
                }
                holder = id;
            }
            for (name, key) in &plan.nodes {
                if !history.keys.contains_key(name) {
                    history.keys.insert(name.clone(), *key);
                    if let Some(error) = plan.failed.get(name) {
                        history.failed.insert(name.clone(), error.clone());
                    }
                    unknown = unknown.saturating_sub(1);
                }
            }
            if history.newest.is_none() && plan.profiles == pipeline.profiles {
                history.newest = Some((holder, plan));
            }
            if unknown == 0 && history.newest.is_some() {
                break;
            }
        }
        Ok(history)
    }

    /// Writes `plan.json` of `run`; an unchanged plan only names the run that holds it.
    pub(crate) fn write(
        &self,
        store: &Store,
        run: &RunFolder,
        pipeline: &Pipeline,
        nodes: BTreeMap<String, Digest>,
        failed: BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        let mut plan = StoredPlan {
            version: 1,
            pipeline: pipeline.name.clone(),
            profiles: pipeline.profiles.clone(),
            same_as: None,
            nodes,
            failed,
        };
        if let Some((id, newest)) = &self.newest
            && newest.nodes == plan.nodes
            && newest.failed == plan.failed
        {
            plan.same_as = Some(id.clone());
            plan.nodes.clear();
        }
        let bytes = serde_json::to_vec(&plan).expect("a plan is strings and digests");
        store.write_atomic(&run.plan(), &bytes)
    }
}
