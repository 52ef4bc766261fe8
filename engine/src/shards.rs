//! Row-wise nodes: one action per part of their table, and the table of what these gave.
//!
//! A node whose kind declares inputs of class `Map` or `Reduce` is cut where its tables are: each part is a
//! *shard*, an action with a key of its own in which the part's digest stands for the table. So rows that
//! did not change are not computed again, whatever happened to the others. The node has a record too, with
//! the list of all files: where nothing changed, one look is enough.

use std::collections::BTreeMap;

use pipe_cache::{
    ActionKey, Digest, FileRecord, KeyArtifact, KeyInput, OutputRecord, PartRecord, Reading, Record, Store,
    StoreError, StoredFile, Verify,
};
use rayon::prelude::*;

use crate::artifact::{Artifact, ArtifactFile};
use crate::error::StageError;
use crate::kind::InputClass;
use crate::pipeline::{InputSource, Node, NodeId, NodeInput};

/// An action on one part.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    /// The input whose part it is.
    pub(crate) port: String,
    pub(crate) key: ActionKey,
    pub(crate) digest: Digest,
    artifact_type: String,
    part: PartRecord,
    file: FileRecord,
}

/// A node as actions on parts.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    /// The actions, each once: equal parts are one action.
    pub(crate) distinct: Vec<Shard>,
    /// For each part, in the order of the tables, its action.
    order: Vec<usize>,
    /// The inputs that are cut.
    principals: Vec<Principal>,
}

/// An input that is cut.
#[derive(Clone, Debug)]
struct Principal {
    port: String,
    class: InputClass,
    producer: NodeId,
    output: OutputRecord,
}

/// Why a node cannot be cut.
#[derive(Debug)]
pub(crate) enum CutError {
    /// What these nodes gave is damaged.
    Damaged(Vec<(NodeId, Vec<pipe_cache::Damage>)>),
    Store(StoreError),
    Stage(StageError),
}

impl From<StoreError> for CutError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The class of an input, as its kind declares it.
pub(crate) fn class(node: &Node, input: &str) -> InputClass {
    let port = node.description.inputs.iter().find(|port| port.name == input);
    port.map_or(InputClass::Whole, |port| port.class)
}

fn is_principal(class: InputClass) -> bool {
    matches!(class, InputClass::Map | InputClass::Reduce)
}

impl Shards {
    /// Cuts a node whose key is `key`; none if it runs as a whole: because of its kind or parameters, or
    /// because an input to be cut is no table of this study, or many.
    pub(crate) fn cut(
        node: &Node,
        key: &ActionKey,
        records: &[Option<Record>],
        store: &Store,
        verify: Verify,
    ) -> Result<Option<Self>, CutError> {
        let Some(principals) = principals(node, records) else { return Ok(None) };
        let mut shards = Self { distinct: Vec::new(), order: Vec::new(), principals: Vec::new() };
        let mut known: BTreeMap<Digest, usize> = BTreeMap::new();
        for principal in principals {
            let Some(parts) = parts(&principal.output) else { return Ok(None) };
            let looked_up = lookups(node, &principal, &parts, records, store, verify)?;
            let common = common_inputs(node, key, &principal.port, &looked_up);
            for (index, (part, file)) in parts.into_iter().enumerate() {
                let mut inputs = common.clone();
                for (name, digests) in &looked_up {
                    if let Some(digests) = digests {
                        let artifacts = vec![KeyArtifact { axes: None, digest: digests[index] }];
                        inputs.push(KeyInput { name: name.clone(), artifacts });
                    }
                }
                let key = ActionKey { inputs, shard: Some(part.digest), ..key.clone() };
                let digest = key.digest();
                let place = *known.entry(digest).or_insert(shards.distinct.len());
                if place == shards.distinct.len() {
                    shards.distinct.push(Shard {
                        port: principal.port.clone(),
                        key,
                        digest,
                        artifact_type: principal.output.artifact_type.clone(),
                        part: part.clone(),
                        file: file.clone(),
                    });
                }
                shards.order.push(place);
            }
            shards.principals.push(principal);
        }
        Ok(Some(shards))
    }

    /// How many of the actions have no record.
    pub(crate) fn missing(&self, store: Option<&Store>) -> usize {
        let known = |shard: &&Shard| store.is_some_and(|store| store.has_record(&shard.digest));
        self.distinct.len() - self.distinct.par_iter().filter(known).count()
    }

    /// Whether an input is cut.
    pub(crate) fn is_cut(&self, input: &str) -> bool {
        self.principals.iter().any(|one| one.port == input)
    }

    /// The node that made the table of a shard.
    pub(crate) fn producer(&self, shard: &Shard) -> Option<NodeId> {
        self.principals.iter().find(|one| one.port == shard.port).map(|one| one.producer)
    }

    /// The output ports that an action on a part of `input` writes.
    pub(crate) fn ports_of<'n>(&self, node: &'n Node, input: &str) -> Vec<&'n crate::kind::OutputPort> {
        node.outputs
            .iter()
            .filter(|port| self.followed(port.follows).is_some_and(|one| one.port == input))
            .collect()
    }

    /// The ports whose partial results are to be merged.
    pub(crate) fn merged_ports<'n>(&self, node: &'n Node) -> Vec<&'n crate::kind::OutputPort> {
        let merged = |port: &&crate::kind::OutputPort| {
            self.followed(port.follows).is_some_and(|one| one.class == InputClass::Reduce)
        };
        node.outputs.iter().filter(merged).collect()
    }

    fn followed(&self, follows: Option<&str>) -> Option<&Principal> {
        match (follows, self.principals.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(port), all) => all.iter().find(|one| one.port == port),
        }
    }

    /// What the parts gave for a port, in their order; `records` are those of the distinct actions.
    pub(crate) fn outputs_of<'r>(
        &self,
        node: &Node,
        port: &str,
        records: &'r [Option<Record>],
    ) -> Vec<&'r OutputRecord> {
        let follows = node.outputs.iter().find(|one| one.name == port).and_then(|one| one.follows);
        let Some(principal) = self.followed(follows) else { return Vec::new() };
        let places = self.order.iter().filter(|place| self.distinct[**place].port == principal.port);
        places.filter_map(|place| records[*place].as_ref()?.outputs.get(port)).collect()
    }

    /// The outputs that are tables of what the parts gave.
    pub(crate) fn tables(
        &self,
        node: &Node,
        records: &[Option<Record>],
    ) -> Result<BTreeMap<String, OutputRecord>, StageError> {
        let merged: Vec<&str> = self.merged_ports(node).iter().map(|port| port.name.as_str()).collect();
        let mut tables = BTreeMap::new();
        for port in node.outputs.iter().filter(|port| !merged.contains(&port.name.as_str())) {
            let outputs = self.outputs_of(node, &port.name, records);
            let table = OutputRecord::concatenation(port.artifact.0, outputs).ok_or_else(|| {
                StageError::failed(format!(
                    "the kind is row-wise, but its output `{}` is no table",
                    port.name
                ))
            })?;
            tables.insert(port.name.clone(), table);
        }
        Ok(tables)
    }
}

impl Shard {
    /// The part as an artifact, verified; what is wrong with it, if it is damaged.
    pub(crate) fn artifact(
        &self,
        store: &Store,
        verify: Verify,
    ) -> Result<Result<Artifact, Vec<pipe_cache::Damage>>, StoreError> {
        if let Some(damage) = store.verify_blob(&self.file.blob, self.file.bytes, verify)? {
            return Ok(Err(vec![damage]));
        }
        Ok(Ok(part_artifact(&self.artifact_type, &self.part, &self.file, store)))
    }
}

/// A table of one part. Its place among the others is not told: nothing may depend on it.
fn part_artifact(artifact_type: &str, part: &PartRecord, file: &FileRecord, store: &Store) -> Artifact {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let extension = name.split_once('.').map_or(String::new(), |(_, extension)| format!(".{extension}"));
    let location = store.blob_path(&file.blob);
    Artifact {
        artifact_type: artifact_type.to_owned(),
        digest: pipe_cache::table_digest(&[part.digest]),
        files: ArtifactFile { path: format!("part-00000{extension}"), bytes: file.bytes, location }.into(),
        origin: None,
    }
}

/// The inputs that are cut, if the node is row-wise.
fn principals(node: &Node, records: &[Option<Record>]) -> Option<Vec<Principal>> {
    let mut principals = Vec::new();
    for input in &node.inputs {
        let class = class(node, &input.name);
        if !is_principal(class) {
            continue;
        }
        let (producer, output) = only_result(input, records)?;
        output.parts.as_ref()?;
        principals.push(Principal { port: input.name.clone(), class, producer, output: output.clone() });
    }
    let follows_one = |follows: Option<&str>| match follows {
        None => principals.len() == 1,
        Some(port) => principals.iter().any(|one| one.port == port),
    };
    let all_follow = node.outputs.iter().all(|port| follows_one(port.follows));
    let has = |port: &str| node.inputs.iter().any(|input| input.name == port && !input.sources.is_empty());
    let is_row_wise = !principals.is_empty() && all_follow && node.kind.is_row_wise(&node.params, &has);
    is_row_wise.then_some(principals)
}

/// The only artifact of an input, if it comes from another node.
fn only_result<'r>(input: &NodeInput, records: &'r [Option<Record>]) -> Option<(NodeId, &'r OutputRecord)> {
    match input.sources.as_slice() {
        [InputSource::Node { node, port }] => Some((*node, records[node.0].as_ref()?.outputs.get(port)?)),
        _ => None,
    }
}

/// The parts of a table with their files, in order.
fn parts(output: &OutputRecord) -> Option<Vec<(&PartRecord, &FileRecord)>> {
    let file = |path: &str| {
        let place = output.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        Some(&output.files[place])
    };
    output.parts.as_ref()?.iter().map(|part| Some((part, file(&part.path)?))).collect()
}

/// What the parts of a principal read of each `Lookup` input, by name: a digest per part, or none where
/// their own rows say it.
type Lookups = BTreeMap<String, Option<Vec<Digest>>>;

fn lookups(
    node: &Node,
    principal: &Principal,
    parts: &[(&PartRecord, &FileRecord)],
    records: &[Option<Record>],
    store: &Store,
    verify: Verify,
) -> Result<Lookups, CutError> {
    let mut lookups = Lookups::new();
    let mut principal_parts: Option<Vec<Artifact>> = None;
    for input in node.inputs.iter().filter(|input| class(node, &input.name) == InputClass::Lookup) {
        // A file from outside, or many artifacts: the key has them whole.
        let Some((producer, output)) = only_result(input, records) else { continue };
        if principal_parts.is_none() {
            read(principal.producer, &principal.output, store, verify)?;
            let artifact = |(part, file): &(&PartRecord, &FileRecord)| {
                part_artifact(&principal.output.artifact_type, part, file, store)
            };
            principal_parts = Some(parts.iter().map(artifact).collect());
        }
        let rows = principal_parts.as_deref().unwrap_or_default();
        let artifact = result(output, read(producer, output, store, verify)?);
        let digests = node
            .kind
            .lookup(&node.params, (&principal.port, rows), (&input.name, &artifact))
            .map_err(CutError::Stage)?;
        if digests.as_ref().is_some_and(|digests| digests.len() != parts.len()) {
            let message = format!("the kind looks `{}` up for another number of parts", input.name);
            return Err(CutError::Stage(StageError::failed(message)));
        }
        lookups.insert(input.name.clone(), digests);
    }
    Ok(lookups)
}

fn read(
    producer: NodeId,
    output: &OutputRecord,
    store: &Store,
    verify: Verify,
) -> Result<Vec<StoredFile>, CutError> {
    match store.read(output, verify)? {
        Reading::Files(files) => Ok(files),
        Reading::Damaged(damages) => Err(CutError::Damaged(vec![(producer, damages)])),
    }
}

/// A stored output as a stage sees it.
pub(crate) fn result(output: &OutputRecord, files: Vec<StoredFile>) -> Artifact {
    let file =
        |file: StoredFile| ArtifactFile { path: file.path, bytes: file.bytes, location: file.location };
    Artifact {
        artifact_type: output.artifact_type.clone(),
        digest: output.content,
        files: files.into_iter().map(file).collect(),
        origin: None,
    }
}

/// The inputs that all parts of a principal share, as they enter the keys: the principal without
/// artifacts, no other input that is cut, nothing that is looked up.
fn common_inputs(node: &Node, key: &ActionKey, principal: &str, looked_up: &Lookups) -> Vec<KeyInput> {
    let common = key.inputs.iter().filter(|input| !looked_up.contains_key(&input.name));
    let common = common.filter(|input| input.name == principal || !is_principal(class(node, &input.name)));
    let mut inputs: Vec<KeyInput> = common.cloned().collect();
    for input in inputs.iter_mut().filter(|input| input.name == principal) {
        input.artifacts.clear();
    }
    inputs
}
