//! Files on their way into the store from elsewhere: `tmp/downloads/<name>`.
//!
//! They outlive the process that began them, so that the next one goes on where it ended. A file is locked
//! while it is written, by the lock of the operating system, which goes with its process. A finished one
//! is flushed and linked into `cas/` as the outputs of a stage are.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fs::{FsError, list};
use crate::session::{age, server_now};
use crate::staging::hash_file;
use crate::store::{Store, StoreError};
use crate::{Digest, FileRecord};

/// The folder below `tmp/`.
pub(crate) const FOLDER: &str = "downloads";

/// What nobody went on with for so long is removed.
const ABANDONED: Duration = Duration::from_secs(14 * 24 * 3600);

/// A file on its way into the store, held by this process alone.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Store {
    /// Begins the file that `identity` names, or goes on with it; none while another process does.
    /// Whatever makes two downloads different has to be in `identity`.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn partial(&self, identity: &str) -> Result<Option<Partial>, StoreError> {
        let folder = self.folder("tmp").join(FOLDER);
        self.shared.disk.make_subfolder(&folder)?;
        let path = folder.join(Digest::of(identity.as_bytes()).to_hex());
        let failed = |error| FsError::new("opening", &path, error);
        loop {
            let file = match OpenOptions::new().read(true).append(true).create(true).open(&path) {
                // Its last owner died while it made a blob of it.
                Err(error) if error.kind() == ErrorKind::PermissionDenied && path.exists() => {
                    self.shared.disk.remove_file(&path)?;
                    continue;
                }
                opened => opened.map_err(failed)?,
            };
            // Of another account it is shared already, or is taken as it is.
            let _ = self.shared.disk.share(&file);
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                // A file system without locks: two processes may fetch the same, at worst in vain, since
                // what they get is verified.
                Err(TryLockError::Error(_)) => {}
            }
            // Its last owner may have moved it into the store before it let go.
            if is_at(&file, &path).map_err(failed)? {
                let bytes = file.metadata().map_err(failed)?.len();
                return Ok(Some(Partial { store: self.clone(), path, file, bytes }));
            }
        }
    }

    /// Whether a blob is there with its length; its content is not read.
    pub fn has_blob(&self, digest: &Digest, bytes: u64) -> bool {
        std::fs::symlink_metadata(self.blob_path(digest))
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes)
    }
}

impl Partial {
    /// Where it lies, to be read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes are there.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| FsError::new("writing", &self.path, error))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Begins again with nothing.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn clear(&mut self) -> Result<(), StoreError> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared.map_err(|error| FsError::new("emptying", &self.path, error))?;
        self.bytes = 0;
        Ok(())
    }

    /// The digest of what is there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self) -> Result<Digest, StoreError> {
        Ok(hash_file(&self.path)?.1)
    }

    /// Makes it the blob that `digest`, of [`Partial::digest`], names.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn store(self, digest: Digest) -> Result<(), StoreError> {
        let disk = &self.store.shared.disk;
        disk.sync_file(&self.path)?;
        let file = FileRecord { path: String::new(), bytes: self.bytes, blob: digest };
        for folder in self.store.stage()?.store_blob(&self.path, &file)? {
            disk.sync_folder(&folder)?;
        }
        // It is still here where the blob was there already, and where the file system cannot rename.
        self.discard()
    }

    /// Removes it.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn discard(self) -> Result<(), StoreError> {
        // What lies there may be another process's by now.
        match is_at(&self.file, &self.path) {
            Ok(true) => Ok(self.store.shared.disk.remove_file(&self.path)?),
            _ => Ok(()),
        }
    }
}

/// Whether an open file is the one that lies at `path`.
fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let opened = identity(file.metadata()?);
    Ok(std::fs::symlink_metadata(path).is_ok_and(|there| identity(there) == opened))
}

/// Removes what nobody went on with for long.
pub(crate) fn sweep(store: &Store) -> Result<(), FsError> {
    let tmp = store.folder("tmp");
    let folder = tmp.join(FOLDER);
    let names = list(&folder)?;
    if names.is_empty() {
        return Ok(());
    }
    let now = server_now(&store.shared.disk, &tmp)?;
    for path in names.iter().map(|name| folder.join(name)).filter(|path| age(path, now) > ABANDONED) {
        let _ = store.shared.disk.remove_file(&path);
    }
    Ok(())
}
