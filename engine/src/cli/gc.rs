//! `pipe gc`, `pin` and `unpin`: what of the store is kept, why, and what goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use pipe_cache::{CollectOptions, Digest, Durability, Garbage, Store, Survey};
use serde_json::{Value as Json, json};

use super::arguments::{Arguments, GcArguments, PinArguments, UnpinArguments};
use super::status::size;
use super::study::{Study, open_store};
use super::{CliError, print, print_json};
use crate::exit;
use crate::kind::Registry;
use crate::language::quantity;
use crate::pipeline::NodeId;
use crate::plan::Wanted;
use crate::roots::{Uses, uses};

pub(crate) fn gc(arguments: &Arguments, gc: &GcArguments, registry: &Registry) -> Result<u8, CliError> {
    if let (Some(pipeline), [_, ..]) = (&gc.pipeline, gc.evict.as_slice()) {
        return evict(arguments, gc, pipeline, registry);
    }
    if gc.remote {
        return super::mirror::gc(arguments, gc, registry);
    }
    let Some(store) = open_store(arguments, gc.pipeline.as_deref(), gc.apply)? else {
        return print("there is no store, so there is nothing to collect\n");
    };
    let usage = |message: String| CliError::new(exit::USAGE, format!("error: {message}"));
    let grace = quantity::seconds(&gc.grace)
        .map(Duration::from_secs)
        .ok_or_else(|| usage(format!("`{}` is no duration such as `24h`", gc.grace)))?;
    let max_bytes = match &gc.max_size {
        Some(text) => Some(
            quantity::bytes(text).ok_or_else(|| usage(format!("`{text}` is no size such as `200GiB`")))?,
        ),
        None => None,
    };
    let mut known = Uses::default();
    let survey = store.survey(|| {
        known = uses(&store, gc.keep_runs)?;
        Ok(std::mem::take(&mut known.roots))
    })?;
    if let Some(text) = &gc.explain {
        let digest = text
            .strip_prefix("b3:")
            .unwrap_or(text)
            .parse()
            .map_err(|error: pipe_cache::ParseDigestError| usage(error.to_string()))?;
        return explain(arguments, &survey, &known, &digest);
    }
    let options = CollectOptions { grace, max_bytes, used: known.last.clone(), kept: known.blobs.clone() };
    let garbage = survey.garbage(&options);
    let removed = if gc.apply { Some(store.collect(&survey, &garbage, grace, gc.now)?) } else { None };
    if arguments.global.json {
        return print_json(&json!({
            "version": 1, "applied": gc.apply, "roots": survey.roots.len(),
            "records": entries(&survey, &garbage, &known).iter().map(Entry::json).collect::<Vec<_>>(),
            "orphans": orphans(&survey, &garbage).0, "blobs": garbage.blobs.len(), "bytes": garbage.bytes,
            "checkpoints": garbage.checkpoints.len(),
            "removed": removed.map(|done| json!({ "records": done.records, "blobs": done.blobs, "bytes": done.bytes })),
        }));
    }
    let mut text = listing(&survey, &garbage, &known, arguments.global.verbose);
    match removed {
        None if garbage == Garbage::default() => text.push_str("nothing to remove\n"),
        None => text.push_str(&format!(
            "{} in {} blobs would be removed; `--apply` does it\n",
            size(garbage.bytes),
            garbage.blobs.len()
        )),
        Some(done) => {
            let trash =
                if gc.now || done.blobs == 0 { "" } else { "; it stays in `trash/` for the grace period" };
            text.push_str(&format!(
                "{} results and {} in {} blobs removed{trash}\n",
                done.records,
                size(done.bytes),
                done.blobs
            ));
        }
    }
    print(&text)
}

/// Removes the files of results and keeps their records.
fn evict(
    arguments: &Arguments,
    gc: &GcArguments,
    pipeline: &Path,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, pipeline, registry)?;
    let mut nodes = BTreeSet::new();
    for target in &gc.evict {
        nodes.extend(study.select(target)?);
    }
    if !study.store_path.exists() {
        return print("there is no store, so there is nothing to evict\n");
    }
    let store = study.open(Durability::Full)?;
    let (plan, ..) = study.plan(Some(&store), &Wanted::default(), registry.numerics())?;
    let (mut kept, mut runs) = (BTreeSet::new(), Vec::new());
    let survey = store.survey(|| {
        kept = uses(&store, gc.keep_runs)?.blobs;
        Ok(Vec::new())
    })?;
    runs.extend(survey.roots.iter().filter(|root| root.name.starts_with("lease of ")));
    if let Some(run) = runs.first().filter(|_| gc.apply) {
        let text = format!("error: {} is at work and may read what is to be evicted", run.name);
        let mut error = CliError::new(exit::ENVIRONMENT, text);
        error.hint = Some("wait until it has ended".to_owned());
        return Err(error);
    }
    let stored = |id: &&NodeId| plan.records[id.0].is_some() && !plan.evicted.contains(*id);
    let keys = |id: &NodeId| plan.keys[id.0].as_ref().map(|(digest, _)| *digest);
    let nodes: Vec<(&str, Digest)> = nodes
        .iter()
        .filter(stored)
        .filter_map(|id| Some((study.pipeline.nodes[id.0].name.as_str(), keys(id)?)))
        .collect();
    let evictable = survey.evictable(nodes.iter().map(|(_, key)| *key), &kept);
    let removed = if gc.apply { Some(store.evict(&survey, &evictable, gc.now)?) } else { None };
    if arguments.global.json {
        return print_json(&json!({
            "version": 1, "applied": gc.apply, "blobs": evictable.blobs.len(), "bytes": evictable.bytes,
            "evicted": nodes.iter().map(|(node, key)| json!({ "node": node, "key": key })).collect::<Vec<_>>(),
            "removed": removed.map(|done| json!({ "records": done.records, "blobs": done.blobs, "bytes": done.bytes })),
        }));
    }
    let mut text = String::new();
    for (node, key) in &nodes {
        let own = survey.evictable([*key], &kept);
        text.push_str(&format!("{:>12}  {node}\n", size(own.bytes)));
    }
    text.push_str(&match removed {
        _ if nodes.is_empty() => "nothing to evict\n".to_owned(),
        None => format!(
            "{} in {} blobs would be evicted; `--apply` does it\n",
            size(evictable.bytes),
            evictable.blobs.len()
        ),
        Some(done) => format!(
            "{} in {} blobs evicted; the results stay known, and what is read later is made again\n",
            size(done.bytes),
            done.blobs
        ),
    });
    print(&text)
}

/// One result that goes.
struct Entry {
    key: Digest,
    kind: String,
    node: String,
    run: String,
    bytes: u64,
    used: SystemTime,
}

impl Entry {
    /// `pipeline: stage`, as the newest plan that names the key has it; the kind if none does.
    fn stage(&self) -> &str {
        match self.node.split('[').next() {
            Some(stage) if !stage.is_empty() => stage,
            _ => &self.kind,
        }
    }

    fn json(&self) -> Json {
        json!({
            "key": self.key, "kind": self.kind, "node": self.node, "run": self.run, "bytes": self.bytes,
            "used": time(self.used),
        })
    }
}

fn entries(survey: &Survey, garbage: &Garbage, known: &Uses) -> Vec<Entry> {
    let mut bytes: BTreeMap<Digest, u64> = BTreeMap::new();
    for (blob, key) in &garbage.blobs {
        if let Some(key) = key {
            *bytes.entry(*key).or_default() += survey.blobs[blob].bytes;
        }
    }
    garbage
        .records
        .iter()
        .map(|key| {
            let surveyed = &survey.records[key];
            let record = surveyed.record.as_ref();
            Entry {
                key: *key,
                kind: record
                    .and_then(|record| record.components())
                    .map_or("damaged", |components| components.kind.as_str())
                    .to_owned(),
                node: known.nodes.get(key).cloned().unwrap_or_default(),
                run: record.map(|record| record.meta.run.clone()).unwrap_or_default(),
                bytes: bytes.get(key).copied().unwrap_or(0),
                used: known.last.get(key).copied().unwrap_or(surveyed.written),
            }
        })
        .collect()
}

/// The number and the bytes of blobs that no record names.
fn orphans(survey: &Survey, garbage: &Garbage) -> (usize, u64) {
    let orphans = garbage.blobs.iter().filter(|(_, key)| key.is_none());
    orphans.fold((0, 0), |(count, bytes), (blob, _)| (count + 1, bytes + survey.blobs[blob].bytes))
}

/// What goes, by stage and run; with `each`, every result.
fn listing(survey: &Survey, garbage: &Garbage, known: &Uses, each: bool) -> String {
    let entries = entries(survey, garbage, known);
    let mut text = String::new();
    if each {
        for entry in &entries {
            let used = time(entry.used);
            let node = if entry.node.is_empty() { "in no plan" } else { &entry.node };
            text.push_str(&format!(
                "{:>12}  {:<22} {node}  {}  last used {used}\n",
                size(entry.bytes),
                entry.kind,
                entry.key.to_short()
            ));
        }
    } else {
        let mut groups: BTreeMap<(&str, &str), (usize, u64)> = BTreeMap::new();
        for entry in &entries {
            let group = groups.entry((entry.stage(), &entry.run)).or_default();
            *group = (group.0 + 1, group.1 + entry.bytes);
        }
        for ((stage, run), (count, bytes)) in groups {
            text.push_str(&format!("{:>12}  {stage:<28} {count} results of run {run}\n", size(bytes)));
        }
    }
    if !entries.is_empty() {
        text.push_str(&format!(
            "  why: none of the {} roots (pins, living runs, the last plans of each pipeline) keeps them\n",
            survey.roots.len()
        ));
    }
    let (count, bytes) = orphans(survey, garbage);
    if count > 0 {
        text.push_str(&format!("{:>12}  {count} blobs that no result names\n", size(bytes)));
    }
    if !garbage.checkpoints.is_empty() {
        text.push_str(&format!("{:>12}  checkpoints of {} trainings\n", "", garbage.checkpoints.len()));
    }
    text
}

fn explain(arguments: &Arguments, survey: &Survey, known: &Uses, digest: &Digest) -> Result<u8, CliError> {
    let chains = survey.explain(digest);
    let node = |key: &Digest| known.nodes.get(key).cloned().unwrap_or_else(|| key.to_short());
    if arguments.global.json {
        let chains: Vec<Json> = chains
            .iter()
            .map(|chain| json!({ "root": chain.root, "key": chain.key, "node": node(&chain.key), "place": chain.place }))
            .collect();
        return print_json(&json!({ "version": 1, "digest": digest, "chains": chains }));
    }
    if chains.is_empty() {
        let there = survey.blobs.contains_key(digest) || survey.records.contains_key(digest);
        let what = if there { "it is in the store" } else { "it is no key and no blob of the store" };
        return print(&format!("no root keeps {digest}; {what}\n"));
    }
    let line = |chain: &pipe_cache::Chain| {
        let place = if chain.place.is_empty() { String::new() } else { format!(" -> {}", chain.place) };
        format!("{} -> {}{place}\n", chain.root, node(&chain.key))
    };
    print(&chains.iter().map(line).collect::<String>())
}

fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| format!("{time:.0}")).unwrap_or_default()
}

pub(crate) fn pin(arguments: &Arguments, pin: &PinArguments, registry: &Registry) -> Result<u8, CliError> {
    let study = Study::load(arguments, &pin.pipeline, registry)?;
    let store = study.open(Durability::Full)?;
    let (plan, ..) = study.plan(Some(&store), &Wanted::default(), registry.numerics())?;
    let mut nodes = Vec::new();
    for target in &pin.targets {
        nodes.extend(study.select(target)?);
    }
    if pin.targets.is_empty() {
        nodes.extend(plan.order.iter().copied());
    }
    let missing: Vec<&str> = nodes
        .iter()
        .filter(|id| plan.records[id.0].is_none())
        .map(|id| study.pipeline.nodes[id.0].name.as_str())
        .collect();
    if !missing.is_empty() {
        let text = format!("error: there is no result yet of {}", missing.join(", "));
        let mut error = CliError::new(exit::USAGE, text);
        error.hint = Some("run the study first, or name the nodes to pin".to_owned());
        return Err(error);
    }
    let keys: Vec<Digest> =
        nodes.iter().filter_map(|id| plan.keys[id.0].as_ref()).map(|(digest, _)| *digest).collect();
    let name = pin.name.as_deref().unwrap_or(&study.pipeline.name);
    keep(&store, name, &keys)?;
    if arguments.global.json {
        return print_json(&json!({ "version": 1, "pin": name, "keys": keys }));
    }
    let file = pin.pipeline.display();
    print(&format!("{} results are kept as `{name}`; `pipe unpin {file} {name}` lets them go\n", keys.len()))
}

fn keep(store: &Store, name: &str, keys: &[Digest]) -> Result<(), CliError> {
    store.pin(name, keys).map_err(|error| match error {
        pipe_cache::StoreError::PinName(_) => CliError::new(exit::USAGE, format!("error: {error}")),
        other => other.into(),
    })
}

pub(crate) fn unpin(arguments: &Arguments, unpin: &UnpinArguments) -> Result<u8, CliError> {
    let store = open_store(arguments, Some(&unpin.pipeline), true)?;
    let known = match &store {
        Some(store) => store.unpin(&unpin.name).map_err(|error| match error {
            pipe_cache::StoreError::PinName(_) => CliError::new(exit::USAGE, format!("error: {error}")),
            other => other.into(),
        })?,
        None => false,
    };
    if known {
        return print(&format!("`{}` keeps nothing any more\n", unpin.name));
    }
    let pins = store.map(|store| store.pins()).transpose()?.unwrap_or_default();
    let mut error = CliError::new(exit::USAGE, format!("error: there is no pin `{}`", unpin.name));
    let names = pins.iter().filter_map(|pin| pin.name.strip_prefix("pin "));
    error.hint = crate::language::suggestion(&unpin.name, names);
    Err(error)
}
