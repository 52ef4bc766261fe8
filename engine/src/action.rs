//! From a node and the contents of its inputs to its action key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pipe_cache::{ActionKey, Digest, KeyArtifact, KeyInput, Record, Source, Sources, Store, Value};

use crate::ancestry::{self, Ancestor};
use crate::kind::Numerics;
use crate::pipeline::{InputSource, Node, NodeId, NodeInput, Origin, Pipeline};
use crate::remote::Remote;
use crate::remote::lock::{LockFile, Pinned};

/// The numerics class of what does no floating-point arithmetic.
pub(crate) const EXACT: &str = "none";

/// Where an action of this numerics class computes: `cpu`, `cuda:sm_80`.
pub(crate) fn device(numerics: &str) -> &str {
    let class = numerics.split(';').next().unwrap_or_default();
    if class.starts_with("cuda") || class.starts_with("metal") { class } else { "cpu" }
}

/// Whether the actions of a node compute on a GPU.
pub(crate) fn is_on_gpu(node: &Node) -> bool {
    let class = node.params.numerics.as_deref().unwrap_or_default();
    node.description.numerics == Numerics::Tensor && device(class) != "cpu"
}

/// The digests of all external sources of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct SourceDigests {
    by_path: BTreeMap<std::path::PathBuf, Source>,
    /// Remote sources of which the lock file says what they are.
    pinned: BTreeMap<String, Pinned>,
    /// Those of which it does not.
    unpinned: Vec<Unpinned>,
}

/// A remote source that was never read.
#[derive(Clone, Debug)]
pub(crate) struct Unpinned {
    pub(crate) remote: Remote,
    pub(crate) origin: Origin,
    /// A node that reads it.
    pub(crate) node: String,
}

/// An external source that cannot be read.
#[derive(Debug)]
pub(crate) struct MissingSource {
    /// As written in the TOML, and where.
    pub(crate) source: String,
    pub(crate) origin: Origin,
    /// A node that reads it.
    pub(crate) node: String,
    pub(crate) reason: String,
    /// What would help.
    pub(crate) help: Vec<String>,
}

impl SourceDigests {
    /// Hashes every local source that `nodes` read, looks every remote one up in `lock` and every blob in
    /// `store`. What cannot be
    /// read is returned beside it, all at once.
    pub(crate) fn read<'a>(
        nodes: impl Iterator<Item = &'a Node>,
        sources: &Sources,
        lock: &LockFile,
        store: Option<&Store>,
    ) -> (Self, Vec<MissingSource>) {
        let mut digests = Self::default();
        let mut missing = Vec::new();
        // What is missing is told once, however many nodes read it.
        let mut tried = BTreeSet::new();
        let mut looked_up = BTreeSet::new();
        let mut blobs = BTreeSet::new();
        let nodes: Vec<&Node> = nodes.collect();
        let looked_at = looked_at(&nodes);
        for node in nodes {
            let sources_of = |input: &'a NodeInput| input.sources.iter().map(move |source| (input, source));
            for (input, source) in node.inputs.iter().flat_map(sources_of) {
                if let InputSource::Remote(remote) = source
                    && looked_up.insert(remote.text())
                {
                    let (origin, node) = (input.origin.clone(), node.name.clone());
                    match lock.pinned(remote) {
                        Some(Ok(pinned)) => _ = digests.pinned.insert(remote.text().to_owned(), pinned),
                        None => digests.unpinned.push(Unpinned { remote: remote.clone(), origin, node }),
                        Some(Err(reason)) => missing.push(MissingSource {
                            source: remote.text().to_owned(),
                            origin,
                            node,
                            reason: format!("its entry in `{}`: {reason}", lock.path().display()),
                            help: vec!["remove the entry, and the next run writes it anew".to_owned()],
                        }),
                    }
                }
                if let InputSource::Blob(digest) = source
                    && !store.is_some_and(|store| store.blob_path(digest).is_file())
                    && blobs.insert(digest)
                {
                    missing.push(MissingSource {
                        source: format!("store:b3:{digest}"),
                        origin: input.origin.clone(),
                        node: node.name.clone(),
                        reason: "the store has no such blob".to_owned(),
                        help: vec!["`pipe verify` tells what was removed; `pipe show NODE` names the blobs of a result".to_owned()],
                    });
                }
                let InputSource::File { pattern, path, .. } = source else { continue };
                if digests.by_path.contains_key(path) || !tried.insert(path) {
                    continue;
                }
                let base = path.parent().unwrap_or(path);
                let text = path.to_string_lossy();
                let hashed = if looked_at.contains(path.as_path()) {
                    sources.hash(base, &text)
                } else {
                    sources.hash_frozen(base, &text)
                };
                match hashed {
                    Ok(source) => {
                        digests.by_path.insert(path.clone(), source);
                    }
                    Err(error) => {
                        missing.push(MissingSource {
                            source: format!("file:{pattern}"),
                            origin: input.origin.clone(),
                            node: node.name.clone(),
                            reason: error.reason,
                            help: vec![
                                format!("it is looked for at `{}`", error.path.display()),
                                "a path is relative to the file that writes it".to_owned(),
                            ],
                        });
                    }
                }
            }
        }
        (digests, missing)
    }

    pub(crate) fn get(&self, path: &std::path::Path) -> Option<&Source> {
        self.by_path.get(path)
    }

    /// What a remote source is, if it is known.
    pub(crate) fn pinned(&self, remote: &Remote) -> Option<&Pinned> {
        self.pinned.get(remote.text())
    }

    /// The blobs of all remote sources that are known.
    pub(crate) fn blobs(&self) -> BTreeSet<Digest> {
        self.pinned.values().flat_map(|pinned| pinned.files.iter().map(|(_, file)| file.digest)).collect()
    }

    /// The remote sources of which nobody knows what they are.
    pub(crate) fn unpinned(&self) -> &[Unpinned] {
        &self.unpinned
    }

    /// Those of them that a node reads.
    pub(crate) fn unknown<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a str> {
        remotes(node).map(Remote::text).filter(|text| !self.pinned.contains_key(*text))
    }
}

/// The local sources that some node reads and does not freeze.
fn looked_at<'a>(nodes: &[&'a Node]) -> BTreeSet<&'a Path> {
    let sources = nodes.iter().flat_map(|node| &node.inputs).flat_map(|input| &input.sources);
    let looked_at = sources.filter_map(|source| match source {
        InputSource::File { path, is_frozen: false, .. } => Some(path.as_path()),
        _ => None,
    });
    looked_at.collect()
}

/// The key of a node, if the contents of all its inputs are known. `ancestry` is how these came about, if its kind shows
/// that.
pub(crate) fn key(
    pipeline: &Pipeline,
    node: &Node,
    records: &[Option<Record>],
    sources: &SourceDigests,
    numerics: &str,
    ancestry: &[Ancestor],
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
                InputSource::Remote(remote) => (sources.pinned(remote)?.digest, None),
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
        params: params_in_key(&node.params.canonical, ancestry),
        inputs,
        shard: None,
        numerics: match node.description.numerics {
            Numerics::Exact => EXACT.to_owned(),
            Numerics::Tensor => node.params.numerics.clone().unwrap_or_else(|| numerics.to_owned()),
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

/// The remote sources that a node reads, once per reference.
pub(crate) fn remotes(node: &Node) -> impl Iterator<Item = &Remote> {
    node.inputs.iter().flat_map(|input| &input.sources).filter_map(|source| match source {
        InputSource::Remote(remote) => Some(remote),
        _ => None,
    })
}

/// The nodes that a node reads, once per reference.
pub(crate) fn producers(node: &Node) -> impl Iterator<Item = NodeId> {
    node.inputs.iter().flat_map(|input| &input.sources).filter_map(|source| match source {
        InputSource::Node { node, .. } => Some(*node),
        _ => None,
    })
}

/// Parameters as they stand in a key: with the ancestry that its kind shows, if it shows one.
pub(crate) fn params_in_key(canonical: &Value, ancestry: &[Ancestor]) -> Value {
    let mut params = canonical.clone();
    if let (false, Value::Table(entries)) = (ancestry.is_empty(), &mut params) {
        entries.insert(ancestry::IN_KEY.to_owned(), Value::Digest(ancestry::digest(ancestry)));
    }
    params
}

/// The nodes whose results have to be known before the key of a node is: those that it reads, once per reference, or all
/// above, if its kind shows them.
pub(crate) fn awaited(pipeline: &Pipeline, node: &Node) -> Vec<NodeId> {
    if node.kind.shows_ancestry() { ancestry::above(pipeline, node) } else { producers(node).collect() }
}

/// The nodes that wait for each node.
pub(crate) fn waiting(pipeline: &Pipeline) -> Vec<Vec<NodeId>> {
    let mut waiting = vec![Vec::new(); pipeline.nodes.len()];
    for (index, node) in pipeline.nodes.iter().enumerate() {
        for awaited in awaited(pipeline, node) {
            waiting[awaited.0].push(NodeId(index));
        }
    }
    waiting
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
