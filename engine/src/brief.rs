//! What an attempt has to know of its node, in words that another process understands.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::ancestry::Ancestor;
use crate::kind::{OutputPort, ResolvedParams};
use crate::pipeline::{CheckpointPolicy, Node};

/// The part of a node that all its attempts share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Brief {
    /// The node's name.
    pub(crate) node: String,
    pub(crate) kind: String,
    /// With defaults.
    pub(crate) params: Json,
    /// The inputs that are fan-ins or lists.
    pub(crate) lists: BTreeSet<String>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Wall time limit, in seconds.
    pub(crate) time: Option<u64>,
    pub(crate) isolate: bool,
    pub(crate) checkpoint: CheckpointPolicy,
    /// How its inputs came about, of kinds that show it.
    pub(crate) ancestry: Vec<Ancestor>,
}

/// An output that an attempt writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) artifact_type: String,
}

impl Brief {
    /// `ancestry` is that of the node; see [`crate::ancestry::ancestry`].
    pub(crate) fn new(node: &Node, ancestry: Vec<Ancestor>) -> Self {
        let lists = node.inputs.iter().filter(|input| input.is_list);
        Self {
            node: node.name.clone(),
            kind: node.description.name.to_owned(),
            params: node.params.json.clone(),
            lists: lists.map(|input| input.name.clone()).collect(),
            memory: node.resources.memory,
            time: node.resources.time,
            isolate: node.isolate,
            checkpoint: node.checkpoint,
            ancestry,
        }
    }

    /// The parameters as kinds take them. What of them enters the key was settled before.
    pub(crate) fn params(&self) -> ResolvedParams {
        ResolvedParams { json: self.params.clone(), canonical: pipe_cache::Value::None, numerics: None }
    }
}

impl From<&OutputPort> for Port {
    fn from(port: &OutputPort) -> Self {
        Self { name: port.name.clone(), artifact_type: port.artifact.0.to_owned() }
    }
}
