//! A fault injector for the tests of the commit protocol: stops at the n-th change and remembers what
//! a power loss would take away.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Input/output error.
const EIO: i32 = 5;

/// A change of the file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    MakeFolder,
    Write,
    SyncFile,
    SyncFolder,
    SyncAll,
    Link,
    Rename,
    Mode,
    Remove,
}

#[derive(Debug, Default)]
pub(crate) struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Changes that still succeed; none: all do.
    left: Option<u64>,
    /// Whether only the next one fails.
    once: bool,
    made: u64,
    /// Of these, waits for the disk.
    flushes: u64,
    /// Names whose folder was not flushed since.
    unsynced_names: BTreeSet<PathBuf>,
    /// Inodes whose bytes were flushed.
    synced_files: BTreeSet<u64>,
}

impl Faults {
    /// Lets `changes` more changes succeed; every later one fails, as after the death of the program.
    pub(crate) fn die_after(&self, changes: u64) {
        self.state().left = Some(changes);
    }

    /// Lets `changes` more changes succeed and the next one fail; all later ones succeed.
    pub(crate) fn fail_once_after(&self, changes: u64) {
        let mut state = self.state();
        (state.left, state.once) = (Some(changes), true);
    }

    /// Whether a failure is still to come.
    pub(crate) fn is_armed(&self) -> bool {
        self.state().left.is_some()
    }

    /// The number of changes so far.
    pub(crate) fn made(&self) -> u64 {
        self.state().made
    }

    /// The number of waits for the disk so far.
    pub(crate) fn flushes(&self) -> u64 {
        self.state().flushes
    }

    pub(crate) fn step(&self, change: Change, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.once && state.left == Some(0) {
            state.left = None;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        match &mut state.left {
            Some(0) => return Err(io::Error::other("the program died here")),
            Some(left) => *left -= 1,
            None => {}
        }
        state.made += 1;
        state.flushes += u64::from(matches!(change, Change::SyncFile | Change::SyncFolder | Change::SyncAll));
        match change {
            Change::MakeFolder | Change::Write | Change::Link | Change::Rename => {
                if !path.exists() {
                    state.unsynced_names.insert(path.to_owned());
                }
            }
            Change::SyncFile => {
                if let Ok(metadata) = std::fs::metadata(path) {
                    state.synced_files.insert(metadata.ino());
                }
            }
            Change::SyncFolder => {
                state.unsynced_names.retain(|name| name.parent() != Some(path));
            }
            Change::SyncAll => {
                state.unsynced_names.clear();
                let mut folders = vec![path.to_owned()];
                while let Some(folder) = folders.pop() {
                    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                        let Ok(metadata) = entry.metadata() else { continue };
                        if metadata.is_dir() {
                            folders.push(entry.path());
                        } else {
                            state.synced_files.insert(metadata.ino());
                        }
                    }
                }
            }
            Change::Mode | Change::Remove => {}
        }
        Ok(())
    }

    /// What a power loss may leave of `root`: unflushed files are empty, unflushed names are gone.
    pub(crate) fn lose_power(&self, root: &Path, names_too: bool) {
        let state = self.state();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                let path = entry.path();
                let is_staged = path.starts_with(root.join("tmp"));
                let is_lost = !is_staged && names_too && state.unsynced_names.contains(&path);
                if metadata.is_dir() && is_lost {
                    std::fs::remove_dir_all(path).unwrap();
                } else if metadata.is_dir() {
                    folders.push(path);
                } else if is_lost {
                    std::fs::remove_file(path).unwrap();
                } else if !is_staged && !state.synced_files.contains(&metadata.ino()) {
                    std::fs::remove_file(&path).unwrap();
                    std::fs::write(&path, b"").unwrap();
                }
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
