//! From a node and the contents of its inputs to its action key.

use std::collections::{BTreeMap, BTreeSet};

use pipe_cache::{ActionKey, Digest, KeyArtifact, KeyInput, Record, Source, SourceError, Sources, Value};

use crate::kind::Numerics;
use crate::pipeline::{InputSource, Node, NodeId, NodeInput, Origin, Pipeline};

/// The digests of all external sources of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct SourceDigests {
    by_path: BTreeMap<std::path::PathBuf, Source>,
}

/// An external source that cannot be read.
#[derive(Debug)]
pub(crate) struct MissingSource {
    /// As written in the TOML, and where.
    pub(crate) pattern: String,
    pub(crate) origin: Origin,
    /// A node that reads it.
    pub(crate) node: String,
    pub(crate) error: SourceError,
}

impl SourceDigests {
    /// Hashes every source that `nodes` read; all that cannot be read are returned at once.
    pub(crate) fn hash<'a>(
        nodes: impl Iterator<Item = &'a Node>,
        sources: &Sources,
    ) -> Result<Self, Vec<MissingSource>> {
        let mut digests = Self::default();
        let mut missing = Vec::new();
        // What is missing is told once, however many nodes read it.
        let mut tried = BTreeSet::new();
        for node in nodes {
            let sources_of = |input: &'a NodeInput| input.sources.iter().map(move |source| (input, source));
            for (input, source) in node.inputs.iter().flat_map(sources_of) {
                let InputSource::File { pattern, path } = source else { continue };
                if digests.by_path.contains_key(path) || !tried.insert(path) {
                    continue;
                }
                let base = path.parent().unwrap_or(path);
                match sources.hash(base, &path.to_string_lossy()) {
                    Ok(source) => {
                        digests.by_path.insert(path.clone(), source);
                    }
                    Err(error) => {
                        missing.push(MissingSource {
                            pattern: pattern.clone(),
                            origin: input.origin.clone(),
                            node: node.name.clone(),
                            error,
                        });
                    }
                }
            }
        }
        if missing.is_empty() { Ok(digests) } else { Err(missing) }
    }

    pub(crate) fn get(&self, path: &std::path::Path) -> Option<&Source> {
        self.by_path.get(path)
    }
}

/// The key of a node, if the contents of all its inputs are known.
pub(crate) fn key(
    pipeline: &Pipeline,
    node: &Node,
    records: &[Option<Record>],
    sources: &SourceDigests,
    numerics: &str,
) -> Option<ActionKey> {
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for input in &node.inputs {
        let mut artifacts = Vec::with_capacity(input.sources.len());
        for source in &input.sources {
            let (digest, axes) = match source {
                InputSource::Node { node: producer, port } => {
                    let digest = content(records, *producer, port)?;
                    let producer = &pipeline.nodes[producer.0];
                    let axes = producer
                        .axes
                        .iter()
                        .map(|(axis, value)| (axis.clone(), Value::String(value.clone())))
                        .collect();
                    (digest, input.with_axes.then_some(axes))
                }
                InputSource::File { path, .. } => (sources.get(path)?.digest, None),
                InputSource::Blob(digest) => (*digest, None),
            };
            artifacts.push(KeyArtifact { axes, digest });
        }
        inputs.push(KeyInput { name: input.name.clone(), artifacts });
    }
    Some(ActionKey {
        kind: node.description.name.to_owned(),
        implementation: node.description.implementation,
        schema_version: node.description.schema_version,
        params: node.params.canonical.clone(),
        inputs,
        shard: None,
        numerics: match node.description.numerics {
            Numerics::Exact => "none".to_owned(),
            Numerics::Tensor => numerics.to_owned(),
        },
    })
}

/// The content digest of a port, once its node is done.
pub(crate) fn content(records: &[Option<Record>], node: NodeId, port: &str) -> Option<Digest> {
    records[node.0].as_ref()?.outputs.get(port).map(|output| output.content)
}

/// The nodes in topological order. Iterative: a chain of any length will do.
pub(crate) fn topological(pipeline: &Pipeline) -> Vec<NodeId> {
    let consumers = consumers(pipeline);
    let mut waiting: Vec<usize> = pipeline.nodes.iter().map(|node| producers(node).count()).collect();
    let mut order: Vec<NodeId> =
        (0..waiting.len()).filter(|index| waiting[*index] == 0).map(NodeId).collect();
    let mut next = 0;
    while let Some(id) = order.get(next).copied() {
        next += 1;
        for consumer in &consumers[id.0] {
            waiting[consumer.0] -= 1;
            if waiting[consumer.0] == 0 {
                order.push(*consumer);
            }
        }
    }
    order
}

/// The nodes that a node reads, once per reference.
pub(crate) fn producers(node: &Node) -> impl Iterator<Item = NodeId> {
    node.inputs.iter().flat_map(|input| &input.sources).filter_map(|source| match source {
        InputSource::Node { node, .. } => Some(*node),
        _ => None,
    })
}

/// The nodes that read each node, once per reference.
pub(crate) fn consumers(pipeline: &Pipeline) -> Vec<Vec<NodeId>> {
    let mut consumers = vec![Vec::new(); pipeline.nodes.len()];
    for (index, node) in pipeline.nodes.iter().enumerate() {
        for producer in producers(node) {
            consumers[producer.0].push(NodeId(index));
        }
    }
    consumers
}
