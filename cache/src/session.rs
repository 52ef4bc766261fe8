//! One process's presence in a store: its staging folder under `tmp/` and its heartbeat.
//!
//! The folder says by its name and in `owner.json` whose it is, so that a later start can tell a dead owner's
//! leftovers from a living one's work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::downloads;
use crate::fs::{Disk, FsError, Identity, list, nonce, read_bounded};
use crate::owner::{HEARTBEAT, Owner, SILENCE};

const OWNER_FILE: &str = "owner.json";
/// How the names of files begin that tell the file server's time.
const CLOCK: &str = "clock-";
const OWNER_LIMIT: u64 = 1 << 16;

/// The staging folder of this process and the thread that keeps its files young.
#[derive(Debug)]
pub(crate) struct Session {
    disk: Disk,
    folder: PathBuf,
    next: AtomicU64,
    heartbeat: Heartbeat,
    /// Used up, and ready for another attempt: making and removing what each needs anew is most of what a short action
    /// costs on a file system that keeps the numbers of removed files back for a while, as ext4 does.
    spares: Mutex<Spares>,
}

#[derive(Debug, Default)]
struct Spares {
    /// Staging folders that hold at most empty folders.
    folders: Vec<PathBuf>,
    /// Files that were leases.
    leases: Vec<LeaseFile>,
}

/// A file of this process that is a lease, was one or will be one.
#[derive(Clone, Debug)]
pub(crate) struct LeaseFile {
    pub(crate) path: PathBuf,
    /// What tells it from the file of another process under the same name; none where the file system does not tell.
    pub(crate) identity: Option<Identity>,
}

impl Session {
    pub(crate) fn start(disk: &Disk, tmp: &Path, owner: &Owner) -> Result<Self, FsError> {
        let folder = tmp.join(owner.folder_name());
        disk.make_subfolder(&folder)?;
        let text = serde_json::to_vec(owner).expect("an owner is strings and integers");
        disk.write_passing(&folder.join(OWNER_FILE), &text)?;
        let heartbeat = Heartbeat::start(disk.clone());
        heartbeat.watch(folder.join(OWNER_FILE), None);
        Ok(Self { disk: disk.clone(), folder, next: AtomicU64::new(0), heartbeat, spares: Mutex::default() })
    }

    /// A path inside the staging folder that nothing has used.
    pub(crate) fn fresh_path(&self) -> PathBuf {
        self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// A folder for one attempt, at a path that nothing has used; empty but for empty folders of an attempt that was
    /// committed.
    pub(crate) fn staging_folder(&self) -> Result<PathBuf, FsError> {
        let fresh = self.fresh_path();
        let spare = self.spares().folders.pop();
        // Under its old name a straggler of the earlier attempt would write into this one.
        if !matches!(&spare, Some(spare) if self.disk.move_away(spare, &fresh)?) {
            self.disk.make_subfolder(&fresh)?;
        }
        Ok(fresh)
    }

    /// Takes back the folder of an attempt that was committed: for another attempt if it is as good as new, else it is
    /// removed.
    pub(crate) fn retire_folder(&self, folder: PathBuf) -> Result<(), FsError> {
        if holds_only_empty_folders(&folder) {
            self.spares().folders.push(folder);
            return Ok(());
        }
        self.disk.remove_tree(&folder)
    }

    /// A file of these bytes in the staging folder, to be renamed to a lease.
    pub(crate) fn lease_file(&self, bytes: &[u8]) -> Result<LeaseFile, FsError> {
        let spare = self.spares().leases.pop();
        if let Some(spare) = spare.filter(|spare| self.disk.rewrite_passing(&spare.path, bytes).is_ok()) {
            return Ok(spare);
        }
        let path = self.fresh_path();
        self.disk.write_passing(&path, bytes)?;
        let identity = Identity::of(&path);
        Ok(LeaseFile { path, identity })
    }

    /// Keeps a file of [`Session::lease_file`] that has no second name.
    pub(crate) fn retire_lease_file(&self, file: LeaseFile) {
        self.spares().leases.push(file);
    }

    /// Takes a lease's name from it and keeps the file. What cannot be renamed is left to expire.
    pub(crate) fn retire_lease(&self, lease: LeaseFile) {
        let fresh = self.fresh_path();
        if matches!(self.disk.move_away(&lease.path, &fresh), Ok(true)) {
            self.retire_lease_file(LeaseFile { path: fresh, ..lease });
        }
    }

    fn spares(&self) -> std::sync::MutexGuard<'_, Spares> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    /// Removes its leases and its staging folder, though threads may still be at work in it.
    pub(crate) fn abandon(&self) {
        let files = self.heartbeat.files();
        for (file, _) in files.iter().filter(|(file, ours)| is_ours(file, ours.as_ref())) {
            let _ = self.disk.remove_file(file);
        }
        // What a thread writes meanwhile goes in the next round.
        for _ in 0..3 {
            if self.disk.remove_tree(&self.folder).is_ok() {
                break;
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.heartbeat.stop();
        // What cannot be removed now is swept by the next start.
        let _ = self.disk.remove_tree(&self.folder);
    }
}

/// A folder with more entries than this is not worth looking through.
const FEW: usize = 16;

fn holds_only_empty_folders(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.enumerate().all(|(place, entry)| {
        let empty = |path: PathBuf| std::fs::read_dir(path).is_ok_and(|mut inner| inner.next().is_none());
        // Of a file it fails; and a link is not followed, so that nothing outside is ever taken for ours.
        let is_folder = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        place < FEW && entry.is_ok_and(|entry| is_folder(&entry) && empty(entry.path()))
    })
}

/// Removes the staging folders of dead owners. Failures are left to the next start.
pub(crate) fn sweep(disk: &Disk, tmp: &Path, me: &Owner) -> Result<(), FsError> {
    let names = list(tmp)?;
    if names.is_empty() {
        return Ok(());
    }
    let now = server_now(disk, tmp)?;
    // What was begun to be fetched outlives its process: the next one goes on with it.
    for name in names.into_iter().filter(|name| name != downloads::FOLDER) {
        let folder = tmp.join(&name);
        // Needed no longer than it takes to make it.
        if name.starts_with(CLOCK) {
            let _ = disk.remove_file(&folder);
            continue;
        }
        let owner_file = folder.join(OWNER_FILE);
        let owner = read_bounded(&owner_file, OWNER_LIMIT)
            .ok()
            .flatten()
            .and_then(|text| serde_json::from_slice::<Owner>(&text).ok());
        let dead = match owner {
            Some(owner) => owner.is_dead(me, age(&owner_file, now)),
            // Its maker is between making the folder and writing the file, or died there.
            None => me.is_dead_by_name(&name).unwrap_or_else(|| age(&folder, now) > SILENCE),
        };
        if dead {
            let _ = disk.remove_tree(&folder);
            let _ = disk.remove_file(&folder);
        }
    }
    Ok(())
}

/// How long ago the file server saw `path` change; zero if it is gone.
pub(crate) fn age(path: &Path, now: SystemTime) -> Duration {
    std::fs::symlink_metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|modified| now.duration_since(modified).ok())
        .unwrap_or_default()
}

/// The file server's clock, read from a file that it has just made: clocks of hosts may differ.
pub(crate) fn server_now(disk: &Disk, folder: &Path) -> Result<SystemTime, FsError> {
    let probe = folder.join(format!("{CLOCK}{}", nonce()));
    // Asked of the open file: another process may sweep its name away.
    let file = disk.write_passing(&probe, b"")?;
    let now = file.metadata().and_then(|metadata| metadata.modified());
    disk.remove_file(&probe)?;
    now.map_err(|error| FsError::new("reading the time of", probe, error))
}

/// A thread that touches files at a fixed period, as signs of life for other hosts.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// With what tells them from the files of other processes under the same names, where that is known.
    files: BTreeMap<PathBuf, Option<Identity>>,
}

/// Touches the files that are still ours: another process' lease must not seem to live by us. A lost lease costs time,
/// never correctness, so there is nothing to report.
fn beat(disk: &Disk, files: &BTreeMap<PathBuf, Option<Identity>>) {
    for (file, _) in files.iter().filter(|(file, ours)| is_ours(file, ours.as_ref())) {
        let _ = disk.touch(file);
    }
}

fn is_ours(file: &Path, ours: Option<&Identity>) -> bool {
    ours.is_none_or(|ours| Identity::of(file).as_ref() == Some(ours))
}

impl Heartbeat {
    fn start(disk: Disk) -> Self {
        let shared = Arc::new(Shared::default());
        let beating = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            let mut state = beating.state.lock().unwrap_or_else(PoisonError::into_inner);
            while !state.stopped {
                let waited = beating.wake.wait_timeout(state, HEARTBEAT);
                let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = woken;
                if timeout.timed_out() {
                    // Whoever takes or gives back a lease does not wait for a slow file system.
                    let files = state.files.clone();
                    drop(state);
                    beat(&disk, &files);
                    state = beating.state.lock().unwrap_or_else(PoisonError::into_inner);
                }
            }
        });
        // Without the thread this process only looks silent to other hosts.
        Self { shared, thread: Mutex::new(thread.ok()) }
    }

    pub(crate) fn watch(&self, file: PathBuf, identity: Option<Identity>) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).files.insert(file, identity);
    }

    fn files(&self) -> BTreeMap<PathBuf, Option<Identity>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).files.clone()
    }

    pub(crate) fn forget(&self, file: &Path) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).files.remove(file);
    }

    fn stop(&self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.shared.wake.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Durability;

    #[test]
    fn a_beat_does_not_keep_the_lease_of_another_process_young() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(Durability::Rename);
        let long_ago = SystemTime::now() - Duration::from_secs(1000);
        let old_file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
            path
        };
        let (ours, lost, unknown) = (old_file("ours"), old_file("lost"), old_file("unknown"));
        let files = BTreeMap::from([
            (ours.clone(), Identity::of(&ours)),
            (lost.clone(), Identity::of(&ours)),
            (unknown.clone(), None),
        ]);
        beat(&disk, &files);
        let is_young = |path| age(path, SystemTime::now()) < Duration::from_secs(500);
        assert_eq!([&ours, &lost, &unknown].map(|path| is_young(path)), [true, false, true]);
    }
}
