//! What is in a store, what is reachable from its roots, and how: the ground on which the collector
//! decides and explains.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::fs::{FsError, list};
use crate::session::server_now;
use crate::store::{Store, StoreError};
use crate::{Digest, Record};

/// Something that keeps results alive: a pin, a plan, a living lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// What it is, for people: `pin paper`, `run 01a2...`.
    pub name: String,
    /// The action keys that it keeps.
    pub keys: Vec<Digest>,
}

/// A record in a survey.
#[derive(Clone, Debug)]
pub struct SurveyedRecord {
    /// The record; none if the file is damaged.
    pub record: Option<Record>,
    /// When its file was last written.
    pub written: SystemTime,
    /// The length of its file.
    pub bytes: u64,
}

/// A blob in a survey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SurveyedBlob {
    /// Its length.
    pub bytes: u64,
    /// When it was last written or touched.
    pub modified: SystemTime,
}

/// Everything in a store, and the roots. Blobs were listed before the roots were read: what is made
/// meanwhile is in no list and so never collected.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The file server's clock when the survey began.
    pub now: SystemTime,
    /// All blobs.
    pub blobs: BTreeMap<Digest, SurveyedBlob>,
    /// All records by key.
    pub records: BTreeMap<Digest, SurveyedRecord>,
    /// Folders of training checkpoints by key, with their time.
    pub checkpoints: BTreeMap<Digest, SystemTime>,
    /// Those of them that are to stay when their action is done.
    pub retained: BTreeSet<Digest>,
    /// The roots.
    pub roots: Vec<Root>,
}

/// How something is kept: root, key, and where in its result, from the outside in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The root's name.
    pub root: String,
    /// The action key.
    pub key: Digest,
    /// `port/path` for a file, `port` for an artifact, empty for the record itself.
    pub place: String,
}

impl Store {
    /// Lists everything, then asks for the roots beside pins and living leases.
    ///
    /// # Errors
    /// If the store cannot be read, or `roots` fails.
    pub fn survey(
        &self,
        roots: impl FnOnce() -> Result<Vec<Root>, StoreError>,
    ) -> Result<Survey, StoreError> {
        // A store that is only read has no clock to ask.
        let now = server_now(&self.shared.disk, &self.folder("tmp")).unwrap_or_else(|_| SystemTime::now());
        let blobs = self.blobs()?.into_iter().map(|(digest, _, metadata)| {
            (digest, SurveyedBlob { bytes: metadata.len(), modified: modified(&metadata) })
        });
        let blobs = blobs.collect();
        let mut records = BTreeMap::new();
        for (key, path) in self.record_files()? {
            // Removed meanwhile.
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            let record = self.record(&key)?;
            let surveyed = SurveyedRecord { record, written: modified(&metadata), bytes: metadata.len() };
            records.insert(key, surveyed);
        }
        let mut checkpoints = BTreeMap::new();
        let folder = self.folder("ckpt");
        for name in list(&folder)? {
            if let (Ok(key), Ok(metadata)) = (name.parse(), std::fs::symlink_metadata(folder.join(&name))) {
                checkpoints.insert(key, modified(&metadata));
            }
        }
        let retained = checkpoints.keys().filter(|key| self.retains(key)).copied().collect();
        let mut all = self.pins()?;
        for (key, info) in self.living_leases_at(now)? {
            all.push(Root { name: format!("lease of run {}", info.run), keys: vec![key] });
        }
        all.extend(roots()?);
        Ok(Survey { now, blobs, records, checkpoints, retained, roots: all })
    }

    /// The files of all records, by key.
    pub(crate) fn record_files(&self) -> Result<Vec<(Digest, PathBuf)>, FsError> {
        let root = self.folder("ac");
        let mut files = Vec::new();
        for prefix in list(&root)? {
            let folder = root.join(&prefix);
            for name in list(&folder)? {
                let hex = name.strip_suffix(".json").map(|rest| format!("{prefix}{rest}"));
                if let Some(key) = hex.and_then(|hex| hex.parse().ok()) {
                    files.push((key, folder.join(name)));
                }
            }
        }
        Ok(files)
    }
}

fn modified(metadata: &Metadata) -> SystemTime {
    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Survey {
    /// Whether something of this age is too young to be collected.
    pub(crate) fn is_young(&self, time: SystemTime, grace: Duration) -> bool {
        // A time in the future is young: clocks jump.
        self.now.duration_since(time).map_or(true, |age| age < grace)
    }

    /// The keys that roots keep, with those of the parts of row-wise nodes among them.
    pub fn rooted(&self) -> BTreeSet<Digest> {
        let named: BTreeSet<Digest> = self.roots.iter().flat_map(|root| &root.keys).copied().collect();
        let shards = named.iter().flat_map(|key| self.shards_of(key));
        let shards: Vec<Digest> = shards.copied().collect();
        named.into_iter().chain(shards).collect()
    }

    /// The keys of the parts of a row-wise node.
    pub(crate) fn shards_of(&self, key: &Digest) -> &[Digest] {
        let record = self.records.get(key).and_then(|one| one.record.as_ref());
        record.map_or(&[], |record| &record.shards)
    }

    /// The blobs of the outputs of `keys`.
    pub(crate) fn files_of(&self, keys: impl IntoIterator<Item = Digest>) -> BTreeSet<Digest> {
        let record = |key| self.records.get(&key).and_then(|one| one.record.as_ref());
        let outputs = keys.into_iter().filter_map(record).flat_map(|record| record.outputs.values());
        outputs.flat_map(|output| &output.files).map(|file| file.blob).collect()
    }

    /// The blobs that the records of `keys` need: their outputs, and blobs that they read directly.
    pub(crate) fn blobs_of(&self, keys: impl IntoIterator<Item = Digest>) -> BTreeSet<Digest> {
        let mut blobs = BTreeSet::new();
        for key in keys {
            let Some(record) = self.records.get(&key).and_then(|one| one.record.as_ref()) else { continue };
            blobs.extend(self.files_of([key]));
            // The digest of an input `store:b3:...` is the blob's own.
            let inputs = record.components().into_iter().flat_map(|components| &components.inputs);
            let inputs = inputs.flat_map(|input| &input.artifacts);
            blobs.extend(inputs.map(|artifact| artifact.digest));
        }
        blobs
    }

    /// All chains from a root to a digest, which may be a key, the content digest of an artifact, or a
    /// blob; none if nothing keeps it.
    pub fn explain(&self, digest: &Digest) -> Vec<Chain> {
        let mut chains = Vec::new();
        for root in &self.roots {
            for key in &root.keys {
                let mut places = BTreeSet::new();
                if key == digest {
                    places.insert(String::new());
                }
                if self.shards_of(key).contains(digest) {
                    places.insert("a part".to_owned());
                }
                let record = self.records.get(key).and_then(|one| one.record.as_ref());
                for (port, output) in record.iter().flat_map(|record| &record.outputs) {
                    if output.content == *digest {
                        places.insert(port.clone());
                    }
                    let files = output.files.iter().filter(|file| file.blob == *digest);
                    places.extend(files.map(|file| format!("{port}/{}", file.path)));
                }
                let chain = |place| Chain { root: root.name.clone(), key: *key, place };
                chains.extend(places.into_iter().map(chain));
            }
        }
        chains
    }
}
