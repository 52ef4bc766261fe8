//! One process's presence in a store: its staging folder under `tmp/` and its heartbeat.
//!
//! The folder says by its name and in `owner.json` whose it is, so that a later start can tell a dead owner's
//! leftovers from a living one's work.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::downloads;
use crate::fs::{Disk, FsError, list, nonce, read_bounded};
use crate::owner::{HEARTBEAT, Owner, SILENCE};

const OWNER_FILE: &str = "owner.json";
const OWNER_LIMIT: u64 = 1 << 16;

/// The staging folder of this process and the thread that keeps its files young.
#[derive(Debug)]
pub(crate) struct Session {
    disk: Disk,
    folder: PathBuf,
    next: AtomicU64,
    heartbeat: Heartbeat,
}

impl Session {
    pub(crate) fn start(disk: &Disk, tmp: &Path, owner: &Owner) -> Result<Self, FsError> {
        let folder = tmp.join(owner.folder_name());
        disk.make_subfolder(&folder)?;
        let text = serde_json::to_vec(owner).expect("an owner is strings and integers");
        disk.write_passing(&folder.join(OWNER_FILE), &text)?;
        let heartbeat = Heartbeat::start(disk.clone());
        heartbeat.watch(folder.join(OWNER_FILE));
        Ok(Self { disk: disk.clone(), folder, next: AtomicU64::new(0), heartbeat })
    }

    /// A path inside the staging folder that nothing has used.
    pub(crate) fn fresh_path(&self) -> PathBuf {
        self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    pub(crate) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    /// Removes its leases and its staging folder, though threads may still be at work in it.
    pub(crate) fn abandon(&self) {
        for file in self.heartbeat.files() {
            let _ = self.disk.remove_file(&file);
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
    let probe = folder.join(format!("clock-{}", nonce()));
    disk.write_passing(&probe, b"")?;
    let now = std::fs::metadata(&probe).and_then(|metadata| metadata.modified());
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
    files: BTreeSet<PathBuf>,
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
                    for file in &state.files {
                        // A lost lease costs time, never correctness: nothing to report.
                        let _ = disk.touch(file);
                    }
                }
            }
        });
        // Without the thread this process only looks silent to other hosts.
        Self { shared, thread: Mutex::new(thread.ok()) }
    }

    pub(crate) fn watch(&self, file: PathBuf) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).files.insert(file);
    }

    fn files(&self) -> BTreeSet<PathBuf> {
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
