//! The store as a folder: its format, its subfolders, and what a process does when it opens it.
//!
//! | path | holds |
//! |---|---|
//! | `FORMAT` | `pipe-store 1`, and the store's own id on the second line |
//! | `cas/ab/cdef...` | blobs, mode 0444, named by their digest |
//! | `ac/ab/cdef....json` | records, named by the action key |
//! | `ckpt/<key>/<step>/` | training checkpoints |
//! | `evicted/<key>` | marks a record whose files are gone on purpose |
//! | `lease/<key>.json` | who works on an action |
//! | `runs/<run id>/` | plan, events and logs of a run |
//! | `pins/<name>` | what a person wants kept |
//! | `tmp/<host>-<pid>-.../` | staging |
//! | `tmp/downloads/` | files on their way from elsewhere |
//! | `quarantine/` | damaged blobs |
//! | `batches/<array>/` | what tasks of a cluster are told, and what they tell |
//! | `trash/` | what the garbage collector removed, for one grace period |

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::batch::Batch;
use crate::downloads;
use crate::fs::{Disk, Durability, FsError, is_plain_relative, nonce, read_bounded};
use crate::lease::{self, LeaseAttempt};
use crate::owner::Owner;
use crate::read::{LookedCounter, Verified};
use crate::record::Record;
use crate::session::{self, Session};
use crate::sources::Sources;
use crate::staging::{CommitOutcome, Committed, Staging};
use crate::{Digest, FORMAT_LINE};

/// What the store reports.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The folder is a store of another version, or no store at all.
    #[error("`{}` is not a store that this program reads: {reason}", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What was found instead.
        reason: String,
    },
    /// A stage left outputs that cannot be stored.
    #[error("output `{port}`: {reason}")]
    Output {
        /// The port.
        port: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Commits that waited for a common flush did not reach the disk.
    #[error("flushing the store: {0}")]
    Flush(String),
    /// A run id that names no folder of `runs/`.
    #[error("`{0}` is not a run id")]
    RunId(String),
    /// A text that cannot name a pin.
    #[error("`{0}` cannot name a pin: a name is 1 to 128 of letters, digits, `_`, `-` and `.`")]
    PinName(String),
}

impl StoreError {
    /// Whether the cause is a full disk or an exhausted quota.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Fs(error) if error.is_no_space())
    }
}

/// An open store. Clones are handles of the same process-wide session; the last one to go removes its
/// staging.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    root: PathBuf,
    uuid: String,
    cache: Option<PathBuf>,
    owner: Owner,
    pub(crate) disk: Disk,
    pub(crate) verified: Verified,
    pub(crate) batch: Batch,
    pub(crate) looked: LookedCounter,
    session: Mutex<Option<Arc<Session>>>,
}

const FOLDERS: [&str; 10] =
    ["cas", "ac", "ckpt", "evicted", "lease", "runs", "pins", "tmp", "quarantine", "trash"];

impl Store {
    /// Opens the store at `path`, or makes one there, and removes what dead processes left in it.
    ///
    /// # Errors
    /// If the folder holds something else, or cannot be read and written.
    pub fn open(path: &Path, durability: Durability) -> Result<Self, StoreError> {
        Self::open_with_cache(path, durability, user_cache_folder())
    }

    /// As [`Store::open`], with caches that can be rebuilt in a folder under `cache` instead of the
    /// user's; `None` keeps none.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with_cache(
        path: &Path,
        durability: Durability,
        cache: Option<PathBuf>,
    ) -> Result<Self, StoreError> {
        Self::open_on(Disk::new(durability), path, cache)
    }

    /// Opens the store at `path` if there is one; makes, changes and removes nothing.
    ///
    /// # Errors
    /// If the folder holds something else or cannot be read.
    pub fn open_existing(path: &Path, durability: Durability) -> Result<Option<Self>, StoreError> {
        let disk = Disk::new(durability).below(path);
        match read_format(path)? {
            Some(uuid) => Ok(Some(Self::with_parts(disk, path, uuid, user_cache_folder()))),
            None => Ok(None),
        }
    }

    pub(crate) fn open_on(disk: Disk, path: &Path, cache: Option<PathBuf>) -> Result<Self, StoreError> {
        let disk = disk.below(path);
        let uuid = match read_format(path)? {
            Some(uuid) => uuid,
            None => create(&disk, path)?,
        };
        let mut grown = false;
        for folder in FOLDERS {
            grown |= disk.make_subfolder(&path.join(folder))?;
        }
        if grown {
            disk.sync_folder(path)?;
        }
        let store = Self::with_parts(disk, path, uuid, cache);
        session::sweep(&store.shared.disk, &store.folder("tmp"), &store.shared.owner)?;
        lease::sweep(&store)?;
        downloads::sweep(&store)?;
        Ok(store)
    }

    fn with_parts(disk: Disk, path: &Path, uuid: String, cache: Option<PathBuf>) -> Self {
        let cache = cache.map(|folder| folder.join(&uuid));
        let shared = Shared {
            root: path.to_owned(),
            verified: Verified::new(cache.as_deref()),
            uuid,
            cache,
            owner: Owner::current(),
            disk,
            batch: Batch::default(),
            looked: LookedCounter::default(),
            session: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// Whether commits survive a power loss.
    pub fn is_durable(&self) -> bool {
        self.shared.disk.is_full()
    }

    /// The store's own id.
    pub fn uuid(&self) -> &str {
        &self.shared.uuid
    }

    /// This process, as leases and records name it.
    pub fn owner(&self) -> &Owner {
        &self.shared.owner
    }

    /// Where a blob lies, whether it is there or not.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_hex();
        self.folder("cas").join(&hex[..2]).join(&hex[2..])
    }

    /// Where the record of a key lies, whether it is there or not.
    pub fn record_path(&self, key: &Digest) -> PathBuf {
        let hex = key.to_hex();
        self.folder("ac").join(&hex[..2]).join(format!("{}.json", &hex[2..]))
    }

    /// Where the training checkpoints of an action lie, whether there are any or not.
    pub fn checkpoint_folder(&self, key: &Digest) -> PathBuf {
        self.folder("ckpt").join(key.to_hex())
    }

    /// A new staging folder for one attempt.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn stage(&self) -> Result<Staging, StoreError> {
        let session = self.session()?;
        Ok(Staging::new(self.clone(), session.staging_folder()?))
    }

    /// Takes a record that was made elsewhere and whose blobs are all here. One that stands already stays, unless it
    /// is damaged.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn adopt(&self, record: &Record) -> Result<Committed, StoreError> {
        self.stage()?.commit_record(record.clone())
    }

    /// Takes a record that was made elsewhere and whose blobs are not all here: it is as that of an evicted result. One that
    /// stands already stays, unless it is damaged.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn adopt_without_files(&self, record: &Record) -> Result<Record, StoreError> {
        if let Some(whole) = self.lookup(&record.key)? {
            return Ok(whole);
        }
        if let Some(known) = self.evicted(&record.key)? {
            return Ok(known);
        }
        let mark = self.eviction_mark(&record.key);
        // Marked first: a blob that is missing without a mark is damage.
        self.shared.disk.write_atomic(&mark, b"")?;
        let committed = self.adopt(record)?;
        if committed.outcome == CommitOutcome::Repaired {
            // A damaged record stood there, and whatever replaces one has its files.
            self.shared.disk.write_atomic(&mark, b"")?;
        }
        Ok(committed.record)
    }

    /// Takes the lease of an action, or tells who has it.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn lease(&self, key: &Digest, run: &str) -> Result<LeaseAttempt, StoreError> {
        lease::acquire(self, key, run)
    }

    /// The hasher of external sources, with this store's memory of files that did not change.
    pub fn sources(&self) -> Sources {
        Sources::open(self.shared.disk.clone(), self.shared.cache.as_deref())
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.shared.root.join(name)
    }

    /// Gives up whatever this process is doing in the store: its leases and staging folders are gone at once, though
    /// threads may still be at work. Only for a process that ends now.
    pub fn abandon(&self) {
        let session = self.shared.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(session) = session {
            session.abandon();
        }
    }

    pub(crate) fn session(&self) -> Result<Arc<Session>, StoreError> {
        let mut session = self.shared.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = &*session {
            return Ok(Arc::clone(session));
        }
        let tmp = self.folder("tmp");
        let started = Arc::new(Session::start(&self.shared.disk, &tmp, &self.shared.owner)?);
        *session = Some(Arc::clone(&started));
        Ok(started)
    }
}

/// The user's folder for caches that can be rebuilt: `$XDG_CACHE_HOME/pipe` or `~/.cache/pipe`.
pub fn user_cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("pipe"))
}

fn read_format(path: &Path) -> Result<Option<String>, StoreError> {
    let format = path.join("FORMAT");
    let refuse = |reason: String| StoreError::Format { path: path.to_owned(), reason };
    let Some(bytes) = read_bounded(&format, 4096)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    match lines.next() {
        Some(FORMAT_LINE) => {}
        Some(other) if other.starts_with("pipe-store ") => {
            return Err(refuse(format!("its format is `{other}`, this program writes `{FORMAT_LINE}`")));
        }
        _ => return Err(refuse("its file FORMAT says something else".to_owned())),
    }
    // The id becomes a folder name in the user's cache.
    match lines.next() {
        Some(uuid) if is_plain_relative(uuid) && uuid.len() == 36 && !uuid.contains('/') => {
            Ok(Some(uuid.to_owned()))
        }
        _ => Err(refuse("its file FORMAT has no store id on the second line".to_owned())),
    }
}

fn create(disk: &Disk, path: &Path) -> Result<String, StoreError> {
    // Once per store, whatever the durability: without this file nothing else can be found again.
    let disk = disk.flushing();
    disk.make_folder(path)?;
    // A folder of someone else's is not turned into a store by a mistyped path.
    let names = crate::fs::list(path)?;
    // FORMAT itself may have come since it was looked for: another process opens the same new store, and
    // the link below decides whose id stands.
    let known = |name: &str| FOLDERS.contains(&name) || name == "FORMAT" || name.starts_with('.');
    if let Some(stranger) = names.iter().find(|name| !known(name)) {
        return Err(StoreError::Format {
            path: path.to_owned(),
            reason: format!("it has no file FORMAT and holds `{stranger}`"),
        });
    }
    let uuid = uuid::Uuid::now_v7().to_string();
    let aside = path.join(format!(".FORMAT.{}", nonce()));
    disk.write_new(&aside, format!("{FORMAT_LINE}\n{uuid}\n").as_bytes())?;
    let created = disk.link_new(&aside, &path.join("FORMAT"));
    let removed = disk.remove_file(&aside);
    let created = created?;
    removed?;
    disk.sync_folder(path)?;
    if created {
        return Ok(uuid);
    }
    // Another process was first.
    read_format(path)?.ok_or_else(|| StoreError::Format {
        path: path.to_owned(),
        reason: "its file FORMAT vanished".to_owned(),
    })
}
