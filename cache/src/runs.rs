//! The folder of one run: plan, events and logs. Each run writes only into its own, so no two
//! processes append to one file.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::Digest;
use crate::fs::list;
use crate::store::{Store, StoreError};

/// The folder `runs/<id>/`.
#[derive(Clone, Debug)]
pub struct RunFolder {
    id: String,
    path: PathBuf,
}

impl RunFolder {
    /// The run's id: a UUID of version 7, so ids sort by time.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// When the run began: the id says so.
    pub fn began(&self) -> Option<SystemTime> {
        let (seconds, nanoseconds) = uuid::Uuid::try_parse(&self.id).ok()?.get_timestamp()?.to_unix();
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `plan.json`.
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan.json")
    }

    /// `events.jsonl`.
    pub fn events(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// `shards`: the keys of the parts that row-wise nodes of the run were cut into, a line each. What such a node has
    /// made so far is named by nothing else until it is done.
    pub fn shards(&self) -> PathBuf {
        self.path.join("shards")
    }

    /// Adds keys to `shards`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add_shards(&self, keys: impl IntoIterator<Item = Digest>) -> std::io::Result<()> {
        let lines: String = keys.into_iter().map(|key| format!("{key}\n")).collect();
        File::options().create(true).append(true).open(self.shards())?.write_all(lines.as_bytes())
    }

    /// The keys in `shards`; a line that is torn is left out.
    pub fn read_shards(&self) -> Vec<Digest> {
        let text = std::fs::read(self.shards()).unwrap_or_default();
        let lines = text.split(|byte| *byte == b'\n');
        lines.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok()).collect()
    }

    /// `logs/<node>.<attempt>.log`, with everything in the node's name escaped that is unusual in a
    /// file name; long names end in a digest.
    pub fn log(&self, node: &str, attempt: u32) -> PathBuf {
        let mut name = String::new();
        for byte in node.bytes() {
            if byte.is_ascii_alphanumeric() || b"_.=,[]-".contains(&byte) {
                name.push(char::from(byte));
            } else {
                name.push_str(&format!("%{byte:02x}"));
            }
        }
        if name.len() > 180 {
            name.truncate(160);
            name.push('~');
            name.push_str(&Digest::of(node.as_bytes()).to_short());
        }
        self.path.join("logs").join(format!("{name}.{attempt}.log"))
    }
}

impl Store {
    /// Makes the folder of a new run, with its `logs/`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new_run(&self) -> Result<RunFolder, StoreError> {
        let id = uuid::Uuid::now_v7().to_string();
        let path = self.folder("runs").join(&id);
        self.shared.disk.make_folder(&path.join("logs"))?;
        Ok(RunFolder { id, path })
    }

    /// The folder of an earlier run.
    ///
    /// # Errors
    /// If the id is not one, or no such run is here.
    pub fn run(&self, id: &str) -> Result<RunFolder, StoreError> {
        let path = self.folder("runs").join(id);
        if is_run_id(id) && path.is_dir() {
            Ok(RunFolder { id: id.to_owned(), path })
        } else {
            Err(StoreError::RunId(id.to_owned()))
        }
    }

    /// All runs, oldest first.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn runs(&self) -> Result<Vec<RunFolder>, StoreError> {
        let folder = self.folder("runs");
        let names = list(&folder)?.into_iter().filter(|id| is_run_id(id));
        Ok(names.map(|id| RunFolder { path: folder.join(&id), id }).collect())
    }

    /// Replaces a file of a run's folder in one step. It does not wait for the disk: a run that a power
    /// loss ends is remembered by its results.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_atomic(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        Ok(self.shared.disk.write_atomic_passing(path, bytes)?)
    }
}

fn is_run_id(id: &str) -> bool {
    uuid::Uuid::try_parse(id).is_ok_and(|uuid| uuid.to_string() == id)
}
