//! How a result came about: the stages above it with what each gave, for kinds that show it.

use std::collections::{BTreeMap, BTreeSet};

use pipe_cache::{Digest, Record};
use serde::{Deserialize, Serialize};

use crate::action::{EXACT, producers};
use crate::pipeline::{Node, NodeId, Pipeline};

/// The name by which an ancestry enters a key, among the parameters: no parameter has a name like it.
pub(crate) const IN_KEY: &str = "stages above";

/// A stage above another, or the stage itself, which comes last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ancestor {
    /// The stage's name.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// The version of the kind's implementation.
    pub implementation: i64,
    /// The places of the stages that it reads, all of them before it.
    pub reads: BTreeSet<usize>,
    /// What its nodes gave, of those that are above; nothing of the stage itself.
    pub results: Vec<AncestorResult>,
}

/// What a node above gave.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AncestorResult {
    /// The node's name.
    pub node: String,
    /// The key of its action.
    pub key: Digest,
    /// The numerics class that it was computed in; none of what does no floating-point arithmetic.
    pub numerics: Option<String>,
    /// The digests of what it gave, by output port.
    pub outputs: BTreeMap<String, Digest>,
}

/// How a node comes about, each stage behind what it reads; nothing for kinds that do not show it. `None` as long as
/// some result above is not known.
pub(crate) fn ancestry(
    pipeline: &Pipeline,
    node: &Node,
    records: &[Option<Record>],
) -> Option<Vec<Ancestor>> {
    if !node.kind.shows_ancestry() {
        return Some(Vec::new());
    }
    let mut ancestors: Vec<Ancestor> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for id in above(pipeline, node) {
        let (above, record) = (&pipeline.nodes[id.0], records[id.0].as_ref()?);
        let place = place_of(above, &mut ancestors, &mut places);
        ancestors[place].results.push(result(above, record));
        read(pipeline, above, place, &mut ancestors, &places);
    }
    let own = place_of(node, &mut ancestors, &mut places);
    read(pipeline, node, own, &mut ancestors, &places);
    Some(ancestors)
}

/// What of an ancestry enters a key; see [`IN_KEY`].
pub(crate) fn digest(ancestry: &[Ancestor]) -> Digest {
    Digest::of(serde_json::json!(ancestry).to_string().as_bytes())
}

/// The place of a node's stage, which is a new one if it has none.
fn place_of<'a>(
    node: &'a Node,
    ancestors: &mut Vec<Ancestor>,
    places: &mut BTreeMap<&'a str, usize>,
) -> usize {
    *places.entry(&node.stage).or_insert_with(|| {
        ancestors.push(Ancestor {
            stage: node.stage.clone(),
            kind: node.description.name.to_owned(),
            implementation: node.description.implementation,
            reads: BTreeSet::new(),
            results: Vec::new(),
        });
        ancestors.len() - 1
    })
}

/// Notes which stages a node reads.
fn read(
    pipeline: &Pipeline,
    node: &Node,
    place: usize,
    ancestors: &mut [Ancestor],
    places: &BTreeMap<&str, usize>,
) {
    let stages = producers(node).map(|producer| pipeline.nodes[producer.0].stage.as_str());
    let before = stages.filter_map(|stage| places.get(stage).copied()).filter(|from| *from < place);
    ancestors[place].reads.extend(before);
}

fn result(node: &Node, record: &Record) -> AncestorResult {
    let numerics = record.components().map(|components| components.numerics.clone());
    AncestorResult {
        node: node.name.clone(),
        key: record.key,
        numerics: numerics.filter(|class| class != EXACT),
        outputs: record.outputs.iter().map(|(port, output)| (port.clone(), output.content)).collect(),
    }
}

/// The nodes above one, each behind what it reads, and otherwise in the order of the study. Iterative: a chain of any
/// length will do.
pub(crate) fn above(pipeline: &Pipeline, node: &Node) -> Vec<NodeId> {
    let mut wanted: BTreeSet<NodeId> = producers(node).collect();
    let mut waiting: Vec<NodeId> = wanted.iter().copied().collect();
    while let Some(id) = waiting.pop() {
        waiting.extend(producers(&pipeline.nodes[id.0]).filter(|producer| wanted.insert(*producer)));
    }
    let mut missing: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut readers: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for id in &wanted {
        let mut count = 0;
        for producer in producers(&pipeline.nodes[id.0]) {
            readers.entry(producer).or_default().push(*id);
            count += 1;
        }
        missing.insert(*id, count);
    }
    let ready = |(id, count): (&NodeId, &usize)| (*count == 0).then_some(*id);
    let mut ready: BTreeSet<NodeId> = missing.iter().filter_map(ready).collect();
    let mut order = Vec::with_capacity(wanted.len());
    while let Some(id) = ready.pop_first() {
        order.push(id);
        for reader in readers.remove(&id).unwrap_or_default() {
            if let Some(count) = missing.get_mut(&reader) {
                *count -= 1;
                if *count == 0 {
                    ready.insert(reader);
                }
            }
        }
    }
    order
}
