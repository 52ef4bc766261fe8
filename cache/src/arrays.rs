//! What tasks of a cluster are told, and what they tell: a folder `batches/<array>/` for each array of jobs.
//!
//! | path | holds |
//! |---|---|
//! | `manifest.json` | what is to be done; never changed |
//! | `intent.json`, `job.json` | that it is being submitted, and that it was |
//! | `workers/<job>_<task>.<restart>.json` | who began to work on a task |
//! | `exits/<task>.<restart>` | the exit code of a worker |
//! | `ended/<key>.json` | how an action ended |
//! | `events/<job>_<task>.<restart>.jsonl` | what a worker tells |
//! | `logs/<task>.<job>.out`, `.err` | what jobs print, on standard output and standard error |
//! | `cancelled` | that somebody cancelled it |
//!
//! One process writes each file, and once; a reader on another host that misses one asks again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Digest;
use crate::fs::{is_plain_relative, list, read_bounded};
use crate::lease::{LeaseInfo, living};
use crate::store::{Store, StoreError};
use crate::survey::Survey;

/// The folder of all of them.
const FOLDER: &str = "batches";
const PARTS: [&str; 5] = ["workers", "exits", "ended", "events", "logs"];
/// A manifest lists actions, each some kilobytes.
const MANIFEST_LIMIT: u64 = 1 << 30;
const FILE_LIMIT: u64 = 64 << 20;

/// The folder of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayFolder {
    id: String,
    path: PathBuf,
}

impl ArrayFolder {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest.
    ///
    /// # Errors
    /// If it cannot be read. One that is not there is none.
    pub fn manifest(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(read_bounded(&self.path.join("manifest.json"), MANIFEST_LIMIT)?)
    }

    /// A file of the folder; none if it is not there or cannot be read.
    pub fn read(&self, relative: &str) -> Option<Vec<u8>> {
        read_bounded(&self.path.join(relative), FILE_LIMIT).ok().flatten()
    }

    /// The names in a subfolder; none of them if it cannot be read. Listing it lets network file systems look anew.
    pub fn names(&self, subfolder: &str) -> Vec<String> {
        let mut names = list(&self.path.join(subfolder)).unwrap_or_default();
        // What is being written is not there yet.
        names.retain(|name| !name.starts_with('.'));
        names
    }

    /// Where what its jobs print goes: standard output and standard error of each, of which `name` tells jobs apart as
    /// `sbatch` writes it.
    pub fn logs(&self, name: &str) -> [PathBuf; 2] {
        ["out", "err"].map(|stream| self.path.join("logs").join(format!("{name}.{stream}")))
    }
}

impl Store {
    /// Makes the folder of an array, with its manifest.
    ///
    /// # Errors
    /// If it is there already, or cannot be made.
    pub fn new_array(&self, id: &str, manifest: &[u8]) -> Result<ArrayFolder, StoreError> {
        let disk = &self.shared.disk;
        let folder = self.folder(FOLDER);
        disk.make_subfolder(&folder)?;
        let array = ArrayFolder { id: id.to_owned(), path: folder.join(id) };
        disk.make_subfolder(&array.path)?;
        for part in PARTS {
            disk.make_subfolder(&array.path.join(part))?;
        }
        disk.write_new(&array.path.join("manifest.json"), manifest)?;
        disk.sync_folder(&array.path)?;
        disk.sync_folder(&folder)?;
        Ok(array)
    }

    /// The folder of an array that somebody made.
    pub fn array(&self, id: &str) -> Option<ArrayFolder> {
        let path = self.folder(FOLDER).join(id);
        let is_name = is_plain_relative(id) && !id.contains('/') && !id.starts_with('.');
        (is_name && path.is_dir()).then(|| ArrayFolder { id: id.to_owned(), path })
    }

    /// All arrays, sorted by name.
    pub fn arrays(&self) -> Vec<ArrayFolder> {
        let names = list(&self.folder(FOLDER)).unwrap_or_default();
        names.iter().filter_map(|name| self.array(name)).collect()
    }

    /// Writes a file of an array's folder: aside, flushed, and renamed.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_in_array(
        &self,
        array: &ArrayFolder,
        relative: &str,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        Ok(self.shared.disk.write_atomic(&array.path.join(relative), bytes)?)
    }

    /// Who works on an action now, as far as can be seen from here.
    ///
    /// # Errors
    /// If the store cannot be read, or its clock not be asked for.
    pub fn holder(&self, key: &Digest) -> Result<Option<LeaseInfo>, StoreError> {
        living(self, key)
    }

    /// Removes the folders of arrays of which nothing was heard for a grace period.
    pub(crate) fn collect_arrays(&self, survey: &Survey, grace: Duration) -> Result<(), StoreError> {
        for array in self.arrays() {
            let times = PARTS.iter().map(|part| array.path.join(part)).chain([array.path.clone()]);
            let modified =
                times.filter_map(|path| std::fs::symlink_metadata(path).ok()?.modified().ok()).max();
            if modified.is_some_and(|modified| !survey.is_young(modified, grace)) {
                self.shared.disk.remove_tree(&array.path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durability, LeaseAttempt};

    #[test]
    fn arrays_are_made_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with_cache(&folder.path().join("s"), Durability::Rename, None).unwrap();
        assert!(store.arrays().is_empty());
        let array = store.new_array("run-1", b"{}").unwrap();
        assert!(store.new_array("run-1", b"[]").is_err(), "a manifest never changes");
        assert_eq!(array.manifest().unwrap().as_deref(), Some(&b"{}"[..]));
        store.write_in_array(&array, "exits/0.0", b"75").unwrap();
        assert_eq!(
            (array.names("exits"), array.read("exits/0.0")),
            (vec!["0.0".to_owned()], Some(b"75".to_vec()))
        );
        assert_eq!(array.read("exits/1.0"), None);
        assert_eq!(store.arrays(), [array]);
        for name in ["", "..", "run-1/exits", ".hidden", "other"] {
            assert_eq!(store.array(name), None, "{name}");
        }
    }

    #[test]
    fn who_works_on_an_action_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with_cache(&folder.path().join("s"), Durability::Rename, None).unwrap();
        let key = Digest::of(b"key");
        assert_eq!(store.holder(&key).unwrap(), None);
        let LeaseAttempt::Acquired(lease) = store.lease(&key, "run").unwrap() else { panic!("it is free") };
        assert_eq!(store.holder(&key).unwrap().as_ref(), Some(lease.info()));
        drop(lease);
        assert_eq!(store.holder(&key).unwrap(), None);
    }
}
