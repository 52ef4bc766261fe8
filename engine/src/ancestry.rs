//! The stages that a result came about by, for kinds that show them.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{producers, topological};
use crate::pipeline::{Node, NodeId, Pipeline};

/// A stage above another, or the stage itself, which comes last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// The stage's name.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// How many of its nodes are above.
    pub nodes: usize,
    /// The places of the stages that it reads, all of them before it.
    pub reads: BTreeSet<usize>,
}

/// Tells every node whose kind has a parameter for it what stands above it.
pub(crate) fn tell(pipeline: &mut Pipeline) {
    let wants = |node: &Node| node.kind.ancestry_parameter();
    let wanting: Vec<(usize, &str)> =
        (pipeline.nodes.iter().enumerate()).filter_map(|(index, node)| Some((index, wants(node)?))).collect();
    if wanting.is_empty() {
        return;
    }
    let order = topological(pipeline);
    for (index, parameter) in wanting {
        let ancestors = serde_json::json!(above(pipeline, &order, NodeId(index)));
        let node = &mut pipeline.nodes[index];
        let mut json = node.params.json.clone();
        if let Some(params) = json.as_object_mut() {
            params.insert(parameter.to_owned(), ancestors);
        }
        // What was valid before is with it too.
        if let Ok(params) = node.kind.resolve(&json) {
            node.params = params;
        }
    }
}

/// The stages above a node and its own, in an order in which each comes behind what it reads. `order` is one of all nodes.
fn above(pipeline: &Pipeline, order: &[NodeId], own: NodeId) -> Vec<Ancestor> {
    let mut wanted = BTreeSet::from([own]);
    let mut waiting = vec![own];
    while let Some(id) = waiting.pop() {
        waiting.extend(producers(&pipeline.nodes[id.0]).filter(|producer| wanted.insert(*producer)));
    }
    let mut ancestors: Vec<Ancestor> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for id in order.iter().filter(|id| wanted.contains(id)) {
        let node = &pipeline.nodes[id.0];
        let place = *places.entry(&node.stage).or_insert_with(|| {
            ancestors.push(Ancestor {
                stage: node.stage.clone(),
                kind: node.description.name.to_owned(),
                nodes: 0,
                reads: BTreeSet::new(),
            });
            ancestors.len() - 1
        });
        ancestors[place].nodes += 1;
        for producer in producers(node) {
            let from = places.get(pipeline.nodes[producer.0].stage.as_str()).copied();
            ancestors[place].reads.extend(from.filter(|from| *from < place));
        }
    }
    ancestors
}
