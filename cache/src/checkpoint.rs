//! Training checkpoints of an action, under its key: changed parameters, data, code or arithmetic can never
//! resume a wrong one, and an identical action of another process can.
//!
//! A checkpoint is a folder `ckpt/<key>/<step>/` of files and, written last, their digest. It is made
//! aside and renamed, so it is there completely or not at all; one that does not agree with its digest is
//! as good as none.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::Digest;
use crate::content::tree_digest;
use crate::fs::{FsError, list, nonce, read_bounded};
use crate::staging::hash_file;
use crate::store::{Store, StoreError};

const DIGEST: &str = "digest";
/// A folder with this file stays when its action is done.
const RETAINED: &str = "retained";
/// Files made aside begin with this.
const ASIDE: &str = ".aside-";

/// The checkpoints of one action. Its lease is the right to write them.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    store: Store,
    folder: PathBuf,
    keep: usize,
}

/// A checkpoint that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The step after which it was made.
    pub step: u64,
    /// Its files.
    pub folder: PathBuf,
}

impl Store {
    /// Whether the checkpoints of an action are to stay when it is done.
    pub(crate) fn retains(&self, key: &Digest) -> bool {
        self.checkpoint_folder(key).join(RETAINED).exists()
    }

    /// The checkpoints of an action, of which the newest `keep` stay.
    pub fn checkpoints(&self, key: &Digest, keep: usize) -> Checkpoints {
        Checkpoints { store: self.clone(), folder: self.checkpoint_folder(key), keep: keep.max(1) }
    }
}

impl Checkpoints {
    /// The newest one that is whole.
    ///
    /// # Errors
    /// If the folder cannot be read. A damaged checkpoint is none, not an error.
    pub fn newest(&self) -> Result<Option<Checkpoint>, StoreError> {
        let found = self.steps()?.into_iter().rev().map(|step| Checkpoint { step, folder: self.path(step) });
        Ok(found.into_iter().find(|checkpoint| is_whole(&checkpoint.folder)))
    }

    /// Makes the checkpoint of `step` from the files that `write` puts into a folder, and removes the oldest
    /// ones.
    ///
    /// # Errors
    /// What `write` says, or if the store cannot be written.
    pub fn save<E: From<StoreError>>(
        &self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let aside = self.begin()?;
        let saved = write(&aside).and_then(|()| Ok(self.publish(step, &aside)?));
        if saved.is_err() {
            let _ = self.store.shared.disk.remove_tree(&aside);
        }
        saved
    }

    fn begin(&self) -> Result<PathBuf, StoreError> {
        let disk = &self.store.shared.disk;
        disk.make_subfolder(&self.folder)?;
        for name in list(&self.folder)?.iter().filter(|name| name.starts_with(ASIDE)) {
            // Left by a process that died: only the holder of the lease comes here.
            disk.remove_tree(&self.folder.join(name))?;
        }
        let aside = self.folder.join(format!("{ASIDE}{}", nonce()));
        disk.make_subfolder(&aside)?;
        Ok(aside)
    }

    fn publish(&self, step: u64, aside: &Path) -> Result<(), StoreError> {
        let disk = &self.store.shared.disk;
        let digest = digest_of(aside)?;
        for name in list(aside)? {
            disk.sync_file(&aside.join(name))?;
        }
        disk.write_new(&aside.join(DIGEST), digest.to_hex().as_bytes())?;
        disk.sync_folder(aside)?;
        let target = self.path(step);
        // One of the same step is from a process that resumed before it: this one is as good.
        disk.remove_tree(&target)?;
        disk.rename(aside, &target)?;
        disk.sync_folder(&self.folder)?;
        let steps = self.steps()?;
        for step in steps.iter().rev().skip(self.keep) {
            disk.remove_tree(&self.path(*step))?;
        }
        Ok(())
    }

    /// Keeps them for as long as the action is wanted, though nothing will resume it any more.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn retain(&self) -> Result<(), StoreError> {
        let path = self.folder.join(RETAINED);
        if self.folder.is_dir() && !path.exists() {
            self.store.shared.disk.write_atomic(&path, b"")?;
        }
        Ok(())
    }

    /// Removes all of them.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn clear(&self) -> Result<(), StoreError> {
        Ok(self.store.shared.disk.remove_tree(&self.folder)?)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(step.to_string())
    }

    /// The steps of which there are folders, in order.
    fn steps(&self) -> Result<Vec<u64>, StoreError> {
        let names = if self.folder.is_dir() { list(&self.folder)? } else { Vec::new() };
        let mut steps: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }
}

/// The digest of the files of a checkpoint.
fn digest_of(folder: &Path) -> Result<Digest, FsError> {
    let mut files = Vec::new();
    for name in list(folder)?.into_iter().filter(|name| name != DIGEST) {
        let (bytes, digest) = hash_file(&folder.join(&name))?;
        files.push((name, bytes, digest));
    }
    Ok(tree_digest(files.iter().map(|(name, bytes, digest)| (name.as_str(), *bytes, *digest))))
}

fn is_whole(folder: &Path) -> bool {
    let stated = read_bounded(&folder.join(DIGEST), 1 << 10).ok().flatten();
    let stated = stated.and_then(|bytes| String::from_utf8(bytes).ok()?.parse::<Digest>().ok());
    File::open(folder).is_ok() && stated.is_some() && digest_of(folder).ok() == stated
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Durability;

    fn save(checkpoints: &Checkpoints, step: u64) -> Result<(), StoreError> {
        checkpoints.save(step, |folder| {
            std::fs::write(folder.join("state"), format!("state {step}"))
                .map_err(|error| FsError::new("writing", folder, error).into())
        })
    }

    #[test]
    fn the_newest_whole_one_counts_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with_cache(&folder.path().join("s"), Durability::Rename, None).unwrap();
        let checkpoints = store.checkpoints(&Digest::of(b"key"), 2);
        assert_eq!(checkpoints.newest().unwrap(), None);
        for step in [5, 20, 100] {
            save(&checkpoints, step).unwrap();
        }
        assert_eq!(checkpoints.steps().unwrap(), [20, 100]);
        let newest = checkpoints.newest().unwrap().unwrap();
        assert_eq!(newest.step, 100);
        assert_eq!(std::fs::read_to_string(newest.folder.join("state")).unwrap(), "state 100");
        // A damaged one is as good as none.
        std::fs::write(newest.folder.join("state"), "state 10O").unwrap();
        assert_eq!(checkpoints.newest().unwrap().unwrap().step, 20);
        // What a killed process left half-made goes with the next one.
        std::fs::create_dir(checkpoints.folder.join(".aside-dead")).unwrap();
        assert_eq!(checkpoints.newest().unwrap().unwrap().step, 20);
        save(&checkpoints, 100).unwrap();
        assert_eq!(checkpoints.newest().unwrap().unwrap().step, 100);
        assert!(!checkpoints.folder.join(".aside-dead").exists());
        let failed: Result<(), StoreError> =
            checkpoints.save(200, |_| Err(StoreError::RunId("it fails".to_owned())));
        assert!(failed.is_err());
        assert_eq!(checkpoints.newest().unwrap().unwrap().step, 100);
        let other = store.checkpoints(&Digest::of(b"other"), 2);
        assert_eq!(other.newest().unwrap(), None);
        checkpoints.clear().unwrap();
        assert_eq!(checkpoints.newest().unwrap(), None);
    }
}
