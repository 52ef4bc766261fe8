//! Leases: who works on an action, so that two processes on one store do not do it twice.
//!
//! A lease is a courtesy, not a lock: commits are create-once, so a wrong takeover costs time, never
//! correctness. Therefore nothing ever has to be unlocked by hand.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::fs::{FsError, Identity, list, nonce, read_bounded};
use crate::owner::{HEARTBEAT, Owner, SILENCE};
use crate::session::{LeaseFile, Session, age, server_now};
use crate::store::{Store, StoreError};

const LEASE_LIMIT: u64 = 1 << 16;

/// What a lease file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Distinguishes this lease from any other of the same key.
    pub nonce: String,
    /// The run that took it.
    pub run: String,
    /// The process that took it.
    pub owner: Owner,
    /// When it was taken, RFC 3339 in UTC, for people: expiry goes by the file's time.
    pub since: String,
    /// The period of the owner's signs of life, in seconds.
    pub heartbeat_seconds: u64,
}

/// The outcome of asking for a lease.
#[derive(Debug)]
pub enum LeaseAttempt {
    /// It is ours until dropped.
    Acquired(Lease),
    /// Someone has it; none where the file cannot be read (it dies after 300 s).
    Busy(Option<LeaseInfo>),
}

/// A lease that is held; dropping it releases it.
#[derive(Debug)]
pub struct Lease {
    session: Arc<Session>,
    key: Digest,
    file: LeaseFile,
    info: LeaseInfo,
}

impl Lease {
    /// The action.
    pub fn key(&self) -> Digest {
        self.key
    }

    /// What the lease file says.
    pub fn info(&self) -> &LeaseInfo {
        &self.info
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let path = &self.file.path;
        self.session.heartbeat().forget(path);
        // Who took this process for dead has put a file of his own there.
        let is_ours = match &self.file.identity {
            Some(ours) => Identity::of(path).as_ref() == Some(ours),
            None => read(path).is_some_and(|info| info.nonce == self.info.nonce),
        };
        if is_ours {
            self.session.retire_lease(self.file.clone());
        }
    }
}

impl Store {
    /// The leases of the store by key, dead ones included.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn leases(&self) -> Result<Vec<(Digest, LeaseInfo)>, StoreError> {
        let folder = self.folder("lease");
        let names = list(&folder)?;
        Ok(names
            .iter()
            .filter_map(|name| {
                let key = name.strip_suffix(".json")?.parse().ok()?;
                Some((key, read(&folder.join(name))?))
            })
            .collect())
    }

    /// The leases of owners that live, as far as can be seen from here.
    ///
    /// # Errors
    /// If the folder cannot be read, or the store's clock not be asked for.
    pub fn living_leases(&self) -> Result<Vec<(Digest, LeaseInfo)>, StoreError> {
        self.living_leases_at(server_now(&self.shared.disk, &self.folder("tmp"))?)
    }

    /// The same at this time of the file server.
    pub(crate) fn living_leases_at(&self, now: SystemTime) -> Result<Vec<(Digest, LeaseInfo)>, StoreError> {
        let mut leases = self.leases()?;
        leases.retain(|(key, info)| !info.owner.is_dead(self.owner(), age(&path_of(self, key), now)));
        Ok(leases)
    }
}

fn path_of(store: &Store, key: &Digest) -> PathBuf {
    store.folder("lease").join(format!("{key}.json"))
}

pub(crate) fn acquire(store: &Store, key: &Digest, run: &str) -> Result<LeaseAttempt, StoreError> {
    let session = store.session()?;
    let disk = &store.shared.disk;
    let path = path_of(store, key);
    let info = LeaseInfo {
        nonce: nonce(),
        run: run.to_owned(),
        owner: store.owner().clone(),
        since: jiff::Timestamp::now().to_string(),
        heartbeat_seconds: HEARTBEAT.as_secs(),
    };
    let staged = session.lease_file(&serde_json::to_vec(&info).expect("a lease is strings and integers"))?;
    // Each round either wins, meets a living owner, or removes a dead one.
    loop {
        if disk.link_new(&staged.path, &path)? {
            session.heartbeat().watch(path.clone(), staged.identity.clone());
            let file = LeaseFile { path, ..staged };
            return Ok(LeaseAttempt::Acquired(Lease { session, key: *key, file, info }));
        }
        let holder = read(&path);
        if !path.exists() {
            continue;
        }
        if !is_dead(store, &path, holder.as_ref())? {
            session.retire_lease_file(staged);
            return Ok(LeaseAttempt::Busy(holder));
        }
        take_away(store, &session, &path, holder.as_ref())?;
    }
}

/// Who has the lease of an action and lives.
pub(crate) fn living(store: &Store, key: &Digest) -> Result<Option<LeaseInfo>, StoreError> {
    let path = path_of(store, key);
    let Some(holder) = read(&path) else { return Ok(None) };
    Ok((!is_dead(store, &path, Some(&holder))?).then_some(holder))
}

/// Removes the leases of dead owners.
pub(crate) fn sweep(store: &Store) -> Result<(), StoreError> {
    let folder = store.folder("lease");
    for name in list(&folder)? {
        let path = folder.join(name);
        let holder = read(&path);
        if path.exists() && is_dead(store, &path, holder.as_ref())? {
            take_away(store, &*store.session()?, &path, holder.as_ref())?;
        }
    }
    Ok(())
}

fn is_dead(store: &Store, path: &Path, holder: Option<&LeaseInfo>) -> Result<bool, StoreError> {
    let now = server_now(&store.shared.disk, &store.folder("tmp"))?;
    let silence = age(path, now);
    Ok(match holder {
        Some(holder) => holder.owner.is_dead(store.owner(), silence),
        None => silence > SILENCE || is_blank(path),
    })
}

/// Whether a lease is a file without content: only a power loss leaves one, because a lease is written
/// before it gets its name.
fn is_blank(path: &Path) -> bool {
    let bytes = read_bounded(path, LEASE_LIMIT).ok().flatten();
    bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
}

/// Renames a dead lease away. Only the holder of a kernel lock does so, and only if the lease is still the
/// dead one: otherwise a slow process could take away what a faster one has just acquired. The lock
/// goes with its process, so nothing is left for a person to remove.
fn take_away(
    store: &Store,
    session: &Session,
    path: &Path,
    dead: Option<&LeaseInfo>,
) -> Result<(), StoreError> {
    let _lock = kernel_lock(store, "takeover.lock")?;
    if read(path).map(|info| info.nonce) == dead.map(|info| info.nonce.clone()) && path.exists() {
        let disk = &store.shared.disk;
        let caught = session.fresh_path();
        if disk.move_away(path, &caught)? {
            disk.remove_file(&caught)?;
        }
    }
    Ok(())
}

/// A lock that the kernel releases with its process: under it dead leases are removed, and garbage is
/// collected. A file system without locks goes without: it costs time, never correctness.
pub(crate) fn kernel_lock(store: &Store, name: &str) -> Result<File, StoreError> {
    let path = store.root().join(name);
    let file = match File::options().create(true).truncate(false).write(true).open(&path) {
        // Of another account: a lock needs no writing.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => File::open(&path),
        opened => opened,
    };
    let file = file.map_err(|error| FsError::new("opening", &path, error))?;
    let _ = store.shared.disk.share(&file);
    let _ = rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive);
    Ok(file)
}

fn read(path: &Path) -> Option<LeaseInfo> {
    let text = read_bounded(path, LEASE_LIMIT).ok().flatten()?;
    serde_json::from_slice(&text).ok()
}
