//! Staging of one attempt, and its commit: the order of operations that makes a store crash-safe.
//!
//! 1. Outputs are written under `tmp/` and hashed.
//! 2. Each file is flushed.
//! 3. Each file is linked into `cas/`; one that is there already stays.
//! 4. The folders are flushed: from here the blobs are there, though nothing names them yet.
//! 5. The record is written under `tmp/`, flushed, linked into `ac/`, its folder flushed: the commit.
//! 6. Staging is given back or removed, the lease released: nobody has to wait for that.
//!
//! A crash before 5 leaves staging of a dead owner and perhaps orphaned blobs, after 5 a hit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::fs::{FsError, is_plain_relative, read_open};
use crate::read::Verify;
use crate::record::{FileRecord, OutputRecord, PartRecord, Record, RecordMeta};
use crate::store::{Store, StoreError};
use crate::{ActionKey, Digest};

/// A private folder for one attempt. When dropped it is given back after a commit, and removed without one.
#[derive(Debug)]
pub struct Staging {
    store: Store,
    folder: PathBuf,
    is_committed: bool,
}

/// One output of an attempt, whose files lie in [`Staging::output_folder`].
#[derive(Clone, Debug)]
pub struct StagedOutput {
    /// The port.
    pub port: String,
    /// The type of the artifact.
    pub artifact_type: String,
    /// The parts, in order, if the files are one table.
    pub parts: Option<Vec<PartRecord>>,
}

/// What a row-wise node shares with the actions on its parts instead of writing it again.
#[derive(Clone, Debug, Default)]
pub struct SharedOutputs {
    /// Outputs by port whose blobs are in the store: see [`OutputRecord::concatenation`].
    pub outputs: BTreeMap<String, OutputRecord>,
    /// The keys of these actions.
    pub shards: Vec<Digest>,
}

/// A finished commit.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The record that stands in the store: the one to go on with.
    pub record: Record,
    /// How it came to stand there.
    pub outcome: CommitOutcome,
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq)]
pub enum CommitOutcome {
    /// The record is new.
    Created,
    /// There was a record with equal outputs.
    Equal,
    /// There was a damaged record, or one whose blobs were missing; it was replaced.
    Repaired,
    /// There was a sound record with *other* outputs: the kind is not deterministic. The existing
    /// record stands.
    Nondeterministic {
        /// The outputs of this attempt.
        attempted: BTreeMap<String, OutputRecord>,
    },
}

impl Staging {
    /// Of a folder that holds at most empty folders.
    pub(crate) fn new(store: Store, folder: PathBuf) -> Self {
        Self { store, folder, is_committed: false }
    }

    /// The attempt's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The empty folder for the files of a port.
    ///
    /// # Errors
    /// If the name is no plain name or the folder cannot be made.
    pub fn output_folder(&self, port: &str) -> Result<PathBuf, StoreError> {
        let folder = self.port_folder(port)?;
        self.store.shared.disk.make_subfolder(&folder)?;
        Ok(folder)
    }

    /// Where files may lie that the attempt needs only while it runs; few do, and those make the folder.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join("scratch")
    }

    /// Commits the outputs under `key`; the steps are those of the module's documentation.
    ///
    /// # Errors
    /// If an output holds something else than plain files, does not agree with its parts, or the file
    /// system refuses. Nothing is then visible under `key`.
    pub fn commit(
        mut self,
        key: &ActionKey,
        outputs: &[StagedOutput],
        meta: RecordMeta,
    ) -> Result<Committed, StoreError> {
        self.commit_node(key, outputs, SharedOutputs::default(), meta)
    }

    /// As [`Staging::commit`], with further outputs that the store holds already.
    ///
    /// # Errors
    /// As [`Staging::commit`].
    pub fn commit_node(
        &mut self,
        key: &ActionKey,
        outputs: &[StagedOutput],
        shared: SharedOutputs,
        meta: RecordMeta,
    ) -> Result<Committed, StoreError> {
        let (record, staged) = self.record(key, outputs, shared, meta)?;
        let store = self.store.clone();
        let disk = &store.shared.disk;
        for (path, _) in &staged {
            disk.sync_file(path)?;
        }
        for folder in self.link_blobs(&staged)? {
            disk.sync_folder(&folder)?;
        }
        let folders = self.write_record(&record)?;
        disk.sync_file(&self.record_path())?;
        let committed = self.link_record(record)?;
        if committed.outcome != CommitOutcome::Equal {
            for folder in folders {
                disk.sync_folder(&folder)?;
            }
        }
        Ok(committed)
    }

    /// As [`Staging::commit_node`], without waiting for the disk: this process finds the result at once, others
    /// once it was flushed together with what else finishes at this time. [`Store::flush`] waits for all,
    /// and tells what went wrong.
    ///
    /// # Errors
    /// As [`Staging::commit`].
    pub fn commit_soon(
        &mut self,
        key: &ActionKey,
        outputs: &[StagedOutput],
        shared: SharedOutputs,
        meta: RecordMeta,
    ) -> Result<Committed, StoreError> {
        // What may stand against an earlier result is settled here and now.
        if !self.store.shared.disk.is_full() || self.store.record_path(&key.digest()).exists() {
            return self.commit_node(key, outputs, shared, meta);
        }
        let (record, staged) = self.record(key, outputs, shared, meta)?;
        self.link_blobs(&staged)?;
        self.write_record(&record)?;
        // What is left here has nothing to give back.
        let waiting =
            Self { store: self.store.clone(), folder: std::mem::take(&mut self.folder), is_committed: false };
        self.store.enqueue(waiting, record.clone());
        Ok(Committed { record, outcome: CommitOutcome::Created })
    }

    /// Commits a record that was made elsewhere and whose blobs are in the store.
    ///
    /// # Errors
    /// If the file system refuses. Nothing is then visible under its key.
    pub(crate) fn commit_record(mut self, record: Record) -> Result<Committed, StoreError> {
        let store = self.store.clone();
        let disk = &store.shared.disk;
        let folders = self.write_record(&record)?;
        disk.sync_file(&self.record_path())?;
        let committed = self.link_record(record)?;
        for folder in folders {
            disk.sync_folder(&folder)?;
        }
        Ok(committed)
    }

    /// Hashes the outputs; returns the record with its files and where these lie.
    fn record(
        &self,
        key: &ActionKey,
        outputs: &[StagedOutput],
        shared: SharedOutputs,
        mut meta: RecordMeta,
    ) -> Result<(Record, Vec<(PathBuf, FileRecord)>), StoreError> {
        let mut staged = Vec::new();
        let mut records = shared.outputs;
        for output in outputs {
            let (files, record) = self.hash_output(output)?;
            staged.extend(files);
            if records.insert(output.port.clone(), record).is_some() {
                return Err(refuse(&output.port, "it is given twice".to_owned()));
            }
        }
        // JSON has no other numbers; a clock that misbehaves must not lose a result.
        meta.duration_seconds = if meta.duration_seconds.is_finite() { meta.duration_seconds } else { 0.0 };
        meta.cpu_seconds = meta.cpu_seconds.filter(|seconds| seconds.is_finite());
        let record = Record::new(key, records, shared.shards, meta);
        Ok((record, staged))
    }

    /// Links the files into `cas/`; returns the folders to flush.
    fn link_blobs(&self, staged: &[(PathBuf, FileRecord)]) -> Result<BTreeSet<PathBuf>, StoreError> {
        let mut folders = BTreeSet::new();
        for (path, file) in staged {
            folders.extend(self.store_blob(path, file)?);
        }
        Ok(folders)
    }

    fn record_path(&self) -> PathBuf {
        self.folder.join("record.json")
    }

    /// Writes the record into the staging folder; returns the folders to flush once it is linked.
    fn write_record(&self, record: &Record) -> Result<[PathBuf; 2], StoreError> {
        let disk = &self.store.shared.disk;
        disk.write_read_only(&self.record_path(), record.to_text().as_bytes())?;
        Ok(folders_of(&self.store.record_path(&record.key)))
    }

    /// Links the record into `ac/`: the commit.
    pub(crate) fn link_record(&mut self, record: Record) -> Result<Committed, StoreError> {
        let disk = &self.store.shared.disk;
        let staged = self.record_path();
        let target = self.store.record_path(&record.key);
        let committed = if disk.link_new_below(&staged, &target)? {
            Committed { record, outcome: CommitOutcome::Created }
        } else {
            // All of its files are there again.
            disk.remove_file(&self.store.eviction_mark(&record.key))?;
            match self.store.stored(&record.key)? {
                Some(existing) if existing.has_equal_outputs(&record) => {
                    Committed { record: existing, outcome: CommitOutcome::Equal }
                }
                Some(existing) => {
                    let outcome = CommitOutcome::Nondeterministic { attempted: record.outputs };
                    Committed { record: existing, outcome }
                }
                None => {
                    disk.rename(&staged, &target)?;
                    Committed { record, outcome: CommitOutcome::Repaired }
                }
            }
        };
        self.is_committed = true;
        Ok(committed)
    }

    fn port_folder(&self, port: &str) -> Result<PathBuf, StoreError> {
        if !is_plain_relative(port) || port.contains('/') {
            return Err(refuse(port, "the name is not a plain name".to_owned()));
        }
        Ok(self.folder.join(format!("out-{port}")))
    }

    /// The files of a port with where they lie, and its record.
    fn hash_output(
        &self,
        output: &StagedOutput,
    ) -> Result<(Vec<(PathBuf, FileRecord)>, OutputRecord), StoreError> {
        let root = self.port_folder(&output.port)?;
        let mut found = Vec::new();
        list_files(&root, &output.port, &mut found)?;
        if found.is_empty() {
            return Err(refuse(&output.port, "the stage wrote nothing to it".to_owned()));
        }
        let mut files = Vec::with_capacity(found.len());
        for (relative, path, metadata) in found {
            // A second name would let the file change behind the store's back.
            if metadata.nlink() > 1 {
                self.separate(&path)?;
            }
            let (bytes, blob) = hash_file(&path)?;
            files.push((path, FileRecord { path: relative, bytes, blob }));
        }
        files.sort_by(|left, right| left.1.path.cmp(&right.1.path));
        if let Some(parts) = &output.parts {
            let named: BTreeSet<&str> = parts.iter().map(|part| part.path.as_str()).collect();
            let there: BTreeSet<&str> = files.iter().map(|(_, file)| file.path.as_str()).collect();
            if named.len() != parts.len() || named != there {
                let reason = format!("its parts are {named:?}, its files {there:?}");
                return Err(refuse(&output.port, reason));
            }
        }
        let mut record = OutputRecord {
            artifact_type: output.artifact_type.clone(),
            content: Digest::of(b""),
            rows: output
                .parts
                .as_ref()
                .map(|parts| parts.iter().map(|part| part.rows).fold(0, u64::saturating_add)),
            parts: output.parts.clone(),
            files: files.iter().map(|(_, file)| file.clone()).collect(),
        };
        record.content = record.content_digest();
        Ok((files, record))
    }

    fn separate(&self, path: &Path) -> Result<(), StoreError> {
        let copy = self.folder.join(format!("copy-{}", crate::fs::nonce()));
        crate::fs::reflink_or_copy(path, &copy)?;
        self.store.shared.disk.rename(&copy, path)?;
        Ok(())
    }

    /// Links one file into `cas/`; returns the folders to flush.
    pub(crate) fn store_blob(&self, staged: &Path, file: &FileRecord) -> Result<[PathBuf; 2], StoreError> {
        let disk = &self.store.shared.disk;
        let target = self.store.blob_path(&file.blob);
        let touched = folders_of(&target);
        disk.make_read_only(staged)?;
        // The second round follows after a damaged blob was moved to quarantine.
        for _ in 0..2 {
            if disk.link_new_below(staged, &target)? {
                return Ok(touched);
            }
            if self.store.verify_blob(&file.blob, file.bytes, Verify::Always)?.is_none() {
                // A younger time keeps the garbage collector away until the record stands.
                match disk.touch(&target) {
                    // Of another account, which alone may do so: equal bytes take its place.
                    Err(error) if error.source.kind() == ErrorKind::PermissionDenied => {
                        disk.rename(staged, &target)?;
                    }
                    outcome => outcome?,
                }
                return Ok(touched);
            }
        }
        // Another process put it back meanwhile, and it was whole when it did.
        Ok(touched)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.folder);
        if folder.as_os_str().is_empty() {
            return;
        }
        // What cannot be removed is swept later.
        let _ = match self.store.session() {
            Ok(session) if self.is_committed => session.retire_folder(folder),
            _ => self.store.shared.disk.remove_tree(&folder),
        };
    }
}

/// The two-letter folder of a blob or record, and its parent: the folders to flush. The parent too, always:
/// another process may have made the folder and not have flushed it yet.
fn folders_of(target: &Path) -> [PathBuf; 2] {
    let folder = target.parent().expect("blobs and records lie in folders").to_owned();
    let parent = folder.parent().expect("these folders lie in the store").to_owned();
    [folder, parent]
}

/// Files up to this length, in bytes, are read at once.
pub(crate) const SHORT: u64 = 64 << 10;

/// Length and BLAKE3 of a file; large ones by memory map and on several threads.
pub(crate) fn hash_file(path: &Path) -> Result<(u64, Digest), FsError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (length, file) = opened.map_err(|error| FsError::new("opening", path, error))?;
    let mut hasher = blake3::Hasher::new();
    let read = if length <= SHORT {
        read_open(&file, length, SHORT).map(|bytes| _ = hasher.update(&bytes))
    } else {
        hasher.update_mmap_rayon(path).map(drop)
    };
    read.map_err(|error| FsError::new("hashing", path, error))?;
    let hashed = hasher.count();
    if hashed != length {
        let error = std::io::Error::other(format!("it changed from {length} to {hashed} bytes"));
        return Err(FsError::new("hashing", path, error));
    }
    Ok((length, hasher.finalize().into()))
}

/// Lists the plain files below `root` as (relative path, path, metadata), without recursion.
fn list_files(
    root: &Path,
    port: &str,
    found: &mut Vec<(String, PathBuf, Metadata)>,
) -> Result<(), StoreError> {
    let mut folders = vec![(String::new(), root.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && prefix.is_empty() => continue,
            Err(error) => return Err(FsError::new("listing", folder, error).into()),
        };
        for entry in entries {
            let entry = entry.map_err(|error| FsError::new("listing", &folder, error))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(refuse(port, format!("the file name `{}` is not UTF-8", path.display())));
            };
            let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if !is_plain_relative(&relative) {
                return Err(refuse(port, format!("the file name `{relative}` cannot be stored")));
            }
            let metadata =
                entry.metadata().map_err(|error| FsError::new("reading the state of", &path, error))?;
            if metadata.is_dir() {
                folders.push((relative, path));
            } else if metadata.is_file() {
                found.push((relative, path, metadata));
            } else {
                return Err(refuse(port, format!("`{relative}` is a link or a device, not a file")));
            }
        }
    }
    Ok(())
}

fn refuse(port: &str, reason: String) -> StoreError {
    StoreError::Output { port: port.to_owned(), reason }
}
