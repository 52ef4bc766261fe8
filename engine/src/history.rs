//! What earlier runs of a pipeline knew: the keys of each node, newest first, and its last failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::sync::OnceLock;
use std::time::SystemTime;

use pipe_cache::{Digest, Record, RunFolder, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::action;
use crate::pipeline::{Node, Pipeline, SourceFile};

/// How many runs are looked through: enough for a node that was left out of many partial runs.
const DEPTH: usize = 64;

/// How many results of a node its duration is the mean of; older ones weigh next to nothing.
const WEIGHED: usize = 5;

/// From how many results the durations of kinds are known.
const SAMPLED: usize = 256;

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
    /// The blobs of its remote sources: as good as results, for whoever collects garbage.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) blobs: BTreeSet<Digest>,
    /// The pipeline file and what it includes, as paths beside the pipeline file and texts; the pipeline
    /// file is the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) files: Vec<(String, String)>,
    /// Node name to the error of its last attempt.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) failed: BTreeMap<String, String>,
}

impl StoredPlan {
    /// The plan of a run, its nodes written out; none if it has none or it cannot be read.
    pub(crate) fn read(store: &Store, run: &RunFolder) -> Option<Self> {
        let read = |run: &RunFolder| -> Option<Self> {
            serde_json::from_slice(&std::fs::read(run.plan()).ok()?).ok()
        };
        let mut plan = read(run)?;
        if let Some(id) = &plan.same_as {
            let holder = read(&store.run(id).ok()?)?;
            (plan.nodes, plan.blobs, plan.files) = (holder.nodes, holder.blobs, holder.files);
        }
        Some(plan)
    }
}

/// The last attempt of a node, which failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PastFailure {
    pub(crate) error: String,
    /// When its run began.
    pub(crate) began: Option<SystemTime>,
}

/// What is known of one node.
#[derive(Debug, Default)]
struct Past {
    /// Its keys, newest first, each once.
    keys: Vec<Digest>,
    /// Why its last attempt failed, if it did.
    failure: Option<PastFailure>,
}

/// The earlier runs of a pipeline. Only the newest is read at once: a run with nothing to do needs no
/// more.
#[derive(Debug)]
pub(crate) struct History {
    store: Option<Store>,
    pipeline: String,
    /// The runs of the store, oldest first.
    runs: Vec<RunFolder>,
    /// The newest plan of the same profiles, and the run that holds its nodes.
    newest: Option<(String, StoredPlan)>,
    past: OnceLock<BTreeMap<String, Past>>,
    /// Sums of the weighted seconds and of the weights of results, by kind and device.
    kinds: OnceLock<BTreeMap<(String, String), (f64, f64)>>,
}

impl History {
    /// Nothing ever ran.
    pub(crate) fn none() -> Self {
        let (pipeline, past, kinds) = (String::new(), OnceLock::new(), OnceLock::new());
        Self { store: None, pipeline, runs: Vec::new(), newest: None, past, kinds }
    }

    /// The runs of this pipeline.
    pub(crate) fn read(store: &Store, pipeline: &Pipeline) -> Result<Self, StoreError> {
        let runs = store.runs()?;
        let newest = runs.iter().rev().take(DEPTH).find_map(|run| {
            let plan = StoredPlan::read(store, run)?;
            let same = plan.pipeline == pipeline.name && plan.profiles == pipeline.profiles;
            let holder = plan.same_as.clone().unwrap_or_else(|| run.id().to_owned());
            same.then_some((holder, plan))
        });
        Ok(Self {
            store: Some(store.clone()),
            pipeline: pipeline.name.clone(),
            runs,
            newest,
            past: OnceLock::new(),
            kinds: OnceLock::new(),
        })
    }

    fn past(&self, node: &str) -> Option<&Past> {
        let past = self.past.get_or_init(|| {
            let mut past: BTreeMap<String, Past> = BTreeMap::new();
            let Some(store) = &self.store else { return past };
            for run in self.runs.iter().rev().take(DEPTH) {
                let plan = StoredPlan::read(store, run).filter(|plan| plan.pipeline == self.pipeline);
                let Some(plan) = plan else { continue };
                for (name, key) in plan.nodes {
                    let known = past.entry(name.clone()).or_default();
                    if known.keys.is_empty() {
                        known.failure = plan
                            .failed
                            .get(&name)
                            .map(|error| PastFailure { error: error.clone(), began: run.began() });
                    }
                    if !known.keys.contains(&key) {
                        known.keys.push(key);
                    }
                }
            }
            past
        });
        past.get(node)
    }

    /// The key that the node had last.
    pub(crate) fn last_key(&self, node: &str) -> Option<Digest> {
        self.past(node)?.keys.first().copied()
    }

    /// Why the last attempt of the node failed, if it did.
    pub(crate) fn failure(&self, node: &str) -> Option<&PastFailure> {
        self.past(node)?.failure.as_ref()
    }

    /// The newest result of the node under another key than `key`.
    pub(crate) fn last_record(&self, node: &str, key: Option<&Digest>) -> Option<Record> {
        self.other_records(node, key).next()
    }

    /// The results of the node under other keys than `key`, newest first.
    pub(crate) fn records(&self, node: &str, key: Option<&Digest>) -> Vec<Record> {
        self.other_records(node, key).collect()
    }

    fn other_records(&self, node: &str, key: Option<&Digest>) -> impl Iterator<Item = Record> {
        let keys = self.past(node).into_iter().flat_map(|past| &past.keys);
        keys.filter(move |known| Some(*known) != key)
            .filter_map(|key| self.store.as_ref()?.record(key).ok().flatten())
    }

    /// Seconds that the node takes: the mean of its last results under whatever keys, each weighing half as much as
    /// the one after it.
    pub(crate) fn seconds(&self, node: &str) -> Option<f64> {
        let results = self.other_records(node, None).take(WEIGHED);
        let mut sums = (0.0, 0.0);
        for (record, weight) in results.zip(std::iter::successors(Some(1.0), |weight| Some(weight / 2.0))) {
            sums = (sums.0 + weight * record.meta.duration_seconds, sums.1 + weight);
        }
        (sums.1 > 0.0).then(|| sums.0 / sums.1)
    }

    /// The numerics classes of the results that earlier runs in this store had, whatever they ran.
    pub(crate) fn numerics_classes(&self) -> Vec<String> {
        let Some(store) = &self.store else { return Vec::new() };
        let plans = self.runs.iter().rev().take(DEPTH).filter_map(|run| StoredPlan::read(store, run));
        let keys: BTreeSet<Digest> = plans.flat_map(|plan| plan.nodes.into_values()).collect();
        let records = keys.iter().filter_map(|key| store.record(key).ok().flatten());
        let classes: BTreeSet<String> =
            records.filter_map(|record| Some(record.components()?.numerics.clone())).collect();
        classes.into_iter().filter(|class| class != action::EXACT).collect()
    }

    /// The results that the newest runs in this store had, whatever they ran: the newest first, by the runs and then by
    /// when they were made.
    pub(crate) fn known_records(&self) -> Vec<Record> {
        let Some(store) = &self.store else { return Vec::new() };
        let plans = self.runs.iter().rev().take(DEPTH).filter_map(|run| StoredPlan::read(store, run));
        let keys: BTreeSet<Digest> = plans.flat_map(|plan| plan.nodes.into_values()).collect();
        let mut records: Vec<Record> =
            keys.iter().filter_map(|key| store.record(key).ok().flatten()).collect();
        records.sort_by(|left, right| (&right.meta.created, right.key).cmp(&(&left.meta.created, left.key)));
        records
    }

    /// Seconds that nodes of this one's kind take on its device: the mean of the results of the newest plan, each
    /// weighing a tenth less than the next younger one. For a node that never ran.
    pub(crate) fn seconds_of_kind(&self, node: &Node, numerics: &str) -> Option<f64> {
        let kinds = self.kinds.get_or_init(|| {
            let mut kinds: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
            let Some((store, (_, newest))) = self.store.as_ref().zip(self.newest.as_ref()) else {
                return kinds;
            };
            let mut records: Vec<Record> = newest
                .nodes
                .values()
                .take(SAMPLED)
                .filter_map(|key| store.record(key).ok().flatten())
                .collect();
            records.sort_by(|left, right| left.meta.created.cmp(&right.meta.created));
            for record in records {
                let Some(key) = record.components() else { continue };
                let device = action::device(&key.numerics).to_owned();
                let (sum, count) = kinds.entry((key.kind.clone(), device)).or_default();
                (*sum, *count) = (0.9 * *sum + record.meta.duration_seconds, 0.9 * *count + 1.0);
            }
            kinds
        });
        let device = action::device(node.params.numerics.as_deref().unwrap_or(numerics));
        let (sum, count) = kinds.get(&(node.description.name.to_owned(), device.to_owned()))?;
        Some(sum / count)
    }

    /// Writes `plan.json` of `run`; an unchanged plan only names the run that holds it.
    pub(crate) fn write(
        &self,
        run: &RunFolder,
        pipeline: &Pipeline,
        nodes: BTreeMap<String, Digest>,
        blobs: BTreeSet<Digest>,
        failed: BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut plan = StoredPlan {
            version: 1,
            pipeline: pipeline.name.clone(),
            profiles: pipeline.profiles.clone(),
            same_as: None,
            nodes,
            blobs,
            files: files(pipeline),
            failed,
        };
        if let Some((holder, newest)) = &self.newest
            && newest.nodes == plan.nodes
            && newest.blobs == plan.blobs
            && newest.files == plan.files
        {
            plan.same_as = Some(holder.clone());
            plan.nodes.clear();
            plan.blobs.clear();
            plan.files.clear();
        }
        let bytes = serde_json::to_vec(&plan).expect("a plan is strings and digests");
        store.write_atomic(&run.plan(), &bytes)
    }
}

/// The digest of the pipeline file and all that it includes, with their names.
pub(crate) fn digest(pipeline: &Pipeline) -> Digest {
    let mut files = files(pipeline);
    files.sort();
    let digests =
        files.iter().map(|(name, text)| (name.as_str(), text.len() as u64, Digest::of(text.as_bytes())));
    pipe_cache::tree_digest(digests)
}

/// The files of a study. One that does not lie below the folder of the pipeline file goes by its name and
/// its place in the list.
fn files(pipeline: &Pipeline) -> Vec<(String, String)> {
    let folder = pipeline.path.parent().unwrap_or(Path::new(""));
    let name = |(place, source): (usize, &SourceFile)| {
        let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        let path = source.path.strip_prefix(folder).ok().filter(|path| plain(path));
        let name = match (path, source.path.file_name()) {
            (Some(path), _) => path.to_string_lossy().into_owned(),
            (None, Some(name)) => format!("{place}-{}", name.to_string_lossy()),
            (None, None) => format!("{place}.toml"),
        };
        (name, source.text.clone())
    };
    pipeline.sources.iter().enumerate().map(name).collect()
}
