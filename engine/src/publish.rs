//! `results/`: the view of the store that people read. Idempotent; never touches what they changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use pipe_cache::{Digest, Owner, Record, Store, StoreError, Verify, reflink_or_copy};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::pipeline::{Node, NodeId, Pipeline};

const MANIFEST: &str = ".published.json";
const STAGING: &str = ".publishing";
/// What has been in staging for so long without an owner belongs to a run that was killed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// Fewer files are looked at sooner than threads are started.
const MANY: usize = 256;

/// What was written, by path below the pipeline's folder.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: BTreeMap<String, Published>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Published {
    blob: Digest,
    bytes: u64,
    /// Modification time in nanoseconds, as a string: JSON numbers are too short.
    modified: String,
}

/// Why publishing stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// A file below `results/` could not be written.
    #[error("publishing `{}`", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What publishing did.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) folder: PathBuf,
    pub(crate) written: usize,
    pub(crate) removed: usize,
    /// Files that a person changed: kept as they are.
    pub(crate) kept: Vec<PathBuf>,
    /// Files of evicted results that are not there.
    pub(crate) evicted: usize,
    /// Nodes whose stored outputs turned out to be damaged, with the reason: not published.
    pub(crate) damaged: BTreeMap<NodeId, String>,
}

/// The folder of a pipeline below the results folder: `NAME[@profile...]`.
pub(crate) fn folder(results: &Path, pipeline: &Pipeline) -> PathBuf {
    let mut name = pipeline.name.clone();
    for profile in &pipeline.profiles {
        name.push('@');
        name.push_str(profile);
    }
    results.join(name)
}

/// `stage/port/axis=value/...` of a node's port.
pub(crate) fn port_folder(node: &Node, port: &str) -> String {
    folder_of(&node.stage, &node.axes, port)
}

/// The same, of a node that is known by its stage and its axes alone.
pub(crate) fn folder_of(stage: &str, axes: &[(String, String)], port: &str) -> String {
    let mut path = format!("{stage}/{port}");
    for (axis, value) in axes {
        path.push('/');
        path.push_str(axis);
        path.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"_.-".contains(&byte) {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    path
}

fn stamp(path: &Path) -> Option<(u64, String)> {
    let metadata = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), modified.as_nanos().to_string()))
}

/// A file that is to be published.
struct Wanted {
    node: NodeId,
    /// Below the pipeline's folder.
    relative: String,
    blob: Digest,
    bytes: u64,
}

/// The files of all results, one record per node.
fn files<'a>(pipeline: &Pipeline, records: impl Iterator<Item = Option<&'a Record>>) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for (index, (node, record)) in pipeline.nodes.iter().zip(records).enumerate() {
        let Some(record) = record else { continue };
        for (port, output) in &record.outputs {
            let base = port_folder(node, port);
            wanted.extend(output.files.iter().map(|file| Wanted {
                node: NodeId(index),
                relative: format!("{base}/{}", file.path),
                blob: file.blob,
                bytes: file.bytes,
            }));
        }
    }
    wanted
}

/// How results are published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Publishing {
    /// Whether the run made everything up to date, so that what it no longer plans is removed.
    pub(crate) complete: bool,
    /// Whether files may be second names of the store's.
    pub(crate) hard_links: bool,
}

/// Makes the published files agree with `records`, one per node, as far as their files were not `evicted`. A
/// `complete` run also removes what it
/// once published and no longer plans.
pub(crate) fn publish<'a>(
    store: &Store,
    results: &Path,
    pipeline: &Pipeline,
    records: impl Iterator<Item = Option<&'a Record>>,
    evicted: &BTreeSet<NodeId>,
    how: Publishing,
) -> Result<Summary, PublishError> {
    let folder = folder(results, pipeline);
    let manifest_path = folder.join(MANIFEST);
    let old: Manifest = std::fs::read(&manifest_path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let mut new = Manifest { version: 1, files: BTreeMap::new() };
    let mut summary = Summary { folder: folder.clone(), ..Summary::default() };
    let staging = Staging::new(&folder, store.owner());
    let wanted = files(pipeline, records);
    let placing = Placing { store, folder: &folder, staging: &staging, old: &old, evicted, how };
    let placed: Vec<Placed> = if wanted.len() < MANY {
        wanted.iter().map(|wanted| placing.place(wanted)).collect::<Result<_, _>>()?
    } else {
        wanted.par_iter().map(|wanted| placing.place(wanted)).collect::<Result<_, _>>()?
    };
    for (Wanted { node, relative, .. }, placed) in wanted.into_iter().zip(placed) {
        let stays = match placed {
            Placed::There(published) => Some(published),
            Placed::Written(published) => {
                summary.written += 1;
                published
            }
            Placed::Foreign => {
                summary.kept.push(folder.join(&relative));
                old.files.get(&relative).cloned()
            }
            Placed::Evicted => {
                summary.evicted += 1;
                None
            }
            Placed::Damaged(reason) => {
                summary.damaged.insert(node, reason);
                // What stands there came from an earlier result and is removed only when this one is.
                old.files.get(&relative).cloned()
            }
        };
        new.files.extend(stays.map(|published| (relative, published)));
    }
    for (relative, published) in &old.files {
        if new.files.contains_key(relative) {
            continue;
        }
        let path = folder.join(relative);
        if !how.complete {
            new.files.insert(relative.clone(), published.clone());
        } else if let Some(found) = stamp(&path) {
            if (found.0, &found.1) == (published.bytes, &published.modified) {
                std::fs::remove_file(&path)
                    .map_err(|source| PublishError::File { path: path.clone(), source })?;
                summary.removed += 1;
                remove_empty_parents(&path, &folder);
            } else {
                summary.kept.push(path);
            }
        }
    }
    if new != old && !(new.files.is_empty() && old.version == 0) {
        let bytes = serde_json::to_vec_pretty(&new).expect("a manifest is strings and integers");
        place(&manifest_path, &staging, |temporary| std::fs::write(temporary, &bytes))?;
    }
    Ok(summary)
}

/// What came of a file that is to be published.
enum Placed {
    /// It stood there already.
    There(Published),
    /// It was written; none if it was gone again at once.
    Written(Option<Published>),
    /// What stands there is a person's.
    Foreign,
    /// What was evicted is not there to be written; what may stand there is of an earlier result.
    Evicted,
    /// What is in the store cannot be trusted.
    Damaged(String),
}

/// What is needed to publish one file, whatever becomes of the others.
struct Placing<'a> {
    store: &'a Store,
    folder: &'a Path,
    staging: &'a Staging<'a>,
    old: &'a Manifest,
    evicted: &'a BTreeSet<NodeId>,
    how: Publishing,
}

impl Placing<'_> {
    fn place(&self, wanted: &Wanted) -> Result<Placed, PublishError> {
        let Wanted { node, relative, blob, bytes } = wanted;
        let path = self.folder.join(relative);
        if let Some((bytes, modified)) = stamp(&path) {
            let known = self.old.files.get(relative);
            match known.filter(|known| (known.bytes, &known.modified) == (bytes, &modified)) {
                Some(known) if known.blob == *blob => return Ok(Placed::There(known.clone())),
                Some(_) => {}
                // Not as we left it: a person's file, unless its content is what we would write.
                None if content(&path) == Some(*blob) => {
                    return Ok(Placed::There(Published { blob: *blob, bytes, modified }));
                }
                None => return Ok(Placed::Foreign),
            }
        }
        if self.evicted.contains(node) && !self.store.blob_path(blob).exists() {
            return Ok(Placed::Evicted);
        }
        let short = if self.how.hard_links { None } else { self.store.short_blob(blob) };
        if let Some(content) = short {
            place(&path, self.staging, |temporary| std::fs::write(temporary, &content))?;
        } else {
            if let Some(damage) = self.store.verify_blob(blob, *bytes, Verify::Once)? {
                return Ok(Placed::Damaged(damage.reason));
            }
            let stored = self.store.blob_path(blob);
            place(&path, self.staging, |temporary| {
                if self.how.hard_links && std::fs::hard_link(&stored, temporary).is_ok() {
                    return Ok(());
                }
                reflink_or_copy(&stored, temporary).map(drop).map_err(|failure| failure.source)
            })?;
        }
        let stands = stamp(&path);
        Ok(Placed::Written(stands.map(|(bytes, modified)| Published { blob: *blob, bytes, modified })))
    }
}

fn content(path: &Path) -> Option<Digest> {
    std::fs::read(path).ok().map(|bytes| Digest::of(&bytes))
}

/// Where files are written before they get their names: several runs may publish at the same time, each in
/// a folder of its own, and what a dead one left is removed by the next.
struct Staging<'a> {
    folder: PathBuf,
    own: PathBuf,
    owner: &'a Owner,
    /// How many files were begun in it.
    begun: AtomicU64,
    /// Whether it could be made, which is done before the first.
    made: OnceLock<std::io::Result<()>>,
}

const OWNER: &str = "owner.json";

/// How often something is tried that other runs, as they end, may get in the way of.
const ATTEMPTS: u32 = 10;

impl<'a> Staging<'a> {
    fn new(results: &Path, owner: &'a Owner) -> Self {
        let folder = results.join(STAGING);
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let file = path.join(OWNER);
            let other =
                std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Owner>(&text).ok());
            let age = |path: &Path| -> Option<Duration> {
                std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).ok()?.elapsed().ok()
            };
            let is_dead = match other {
                Some(other) => other.is_dead(owner, age(&file).unwrap_or_default()),
                None => {
                    let name = entry.file_name();
                    let told = name.to_str().and_then(|name| owner.is_dead_by_name(name));
                    told.unwrap_or_else(|| age(&path).is_some_and(|age| age > ABANDONED))
                }
            };
            if is_dead {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
        let own = folder.join(owner.folder_name());
        Self { folder, own, owner, begun: AtomicU64::new(0), made: OnceLock::new() }
    }

    /// A path that nothing has used, its folder made.
    fn path(&self) -> Result<PathBuf, PublishError> {
        let path = self.own.join(self.begun.fetch_add(1, Ordering::Relaxed).to_string());
        let made = self.made.get_or_init(|| {
            let owner = serde_json::to_vec(self.owner).expect("an owner is strings and integers");
            // Another run that ends now removes the folder above, as long as it is empty.
            let mut left = ATTEMPTS;
            loop {
                match std::fs::create_dir_all(&self.own) {
                    Err(error) if error.kind() == ErrorKind::NotFound && left > 0 => left -= 1,
                    made => break made?,
                }
            }
            std::fs::write(self.own.join(OWNER), owner)
        });
        match made {
            Ok(()) => Ok(path),
            Err(error) => Err(PublishError::File { path, source: error.kind().into() }),
        }
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.own);
        // Only if no other run uses it.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Gives `path` the content that `make` writes into a file of the staging folder.
fn place(
    path: &Path,
    staging: &Staging<'_>,
    make: impl Fn(&Path) -> std::io::Result<()>,
) -> Result<(), PublishError> {
    let error = |source| PublishError::File { path: path.to_owned(), source };
    for attempt in 0.. {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(error)?;
        let temporary = staging.path()?;
        match make(&temporary).and_then(|()| std::fs::rename(&temporary, path)) {
            Ok(()) => return Ok(()),
            // Another run that ends now removes folders that are empty.
            Err(failure) if failure.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Err(failure) => {
                let _ = std::fs::remove_file(&temporary);
                return Err(error(failure));
            }
        }
    }
    unreachable!("the loop above ends by returning")
}

fn remove_empty_parents(path: &Path, root: &Path) {
    let mut parent = path.parent();
    while let Some(folder) = parent.filter(|folder| *folder != root && folder.starts_with(root)) {
        if std::fs::remove_dir(folder).is_err() {
            return;
        }
        parent = folder.parent();
    }
}

/// Removes everything that publishing wrote and nobody changed; returns how many files went and what
/// was kept.
pub(crate) fn clean(results: &Path, pipeline: &Pipeline) -> Result<Summary, PublishError> {
    let folder = folder(results, pipeline);
    let manifest_path = folder.join(MANIFEST);
    let manifest: Manifest = std::fs::read(&manifest_path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let mut summary = Summary { folder: folder.clone(), ..Summary::default() };
    let mut parents = BTreeSet::new();
    for (relative, published) in manifest.files {
        let path = folder.join(&relative);
        let Some(found) = stamp(&path) else { continue };
        if found == (published.bytes, published.modified) {
            std::fs::remove_file(&path)
                .map_err(|source| PublishError::File { path: path.clone(), source })?;
            summary.removed += 1;
            parents.insert(path);
        } else {
            summary.kept.push(path);
        }
    }
    for path in parents {
        remove_empty_parents(&path, &folder);
    }
    let _ = std::fs::remove_file(&manifest_path);
    let _ = std::fs::remove_dir(&folder);
    Ok(summary)
}
