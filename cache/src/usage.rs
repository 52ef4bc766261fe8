//! What the store takes on the disk.

use std::fs::Metadata;
use std::path::PathBuf;

use crate::Digest;
use crate::fs::{FsError, list};
use crate::store::{Store, StoreError};

/// What the blobs of a store take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// The number of blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Counts the blobs.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        for (_, _, metadata) in self.blobs()? {
            usage.blobs += 1;
            usage.bytes += metadata.len();
        }
        Ok(usage)
    }

    /// All blobs, sorted by digest. Files of other names are not ours and are left out.
    pub(crate) fn blobs(&self) -> Result<Vec<(Digest, PathBuf, Metadata)>, StoreError> {
        let root = self.folder("cas");
        let mut blobs = Vec::new();
        for prefix in list(&root)? {
            let folder = root.join(&prefix);
            for name in list(&folder)? {
                let Ok(digest) = format!("{prefix}{name}").parse() else { continue };
                let path = folder.join(&name);
                match std::fs::symlink_metadata(&path) {
                    Ok(metadata) if metadata.is_file() => blobs.push((digest, path, metadata)),
                    Ok(_) => {}
                    // Removed meanwhile.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(FsError::new("reading the state of", path, error).into()),
                }
            }
        }
        Ok(blobs)
    }
}
