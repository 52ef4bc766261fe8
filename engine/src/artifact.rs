//! What stages give each other: artifacts and their files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipe_cache::{Digest, SourceFile, SourceFiles};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::StageError;

/// A read-only artifact, as a stage sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Artifact {
    /// Its type, such as `table<images>`.
    pub artifact_type: String,
    /// The digest of its content.
    pub digest: Digest,
    /// Its files.
    pub files: ArtifactFiles,
    /// For an external source: what the TOML says (`file:data/breastmnist.npz`).
    pub origin: Option<String>,
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactFile {
    /// The path inside the artifact, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Where it can be read now. Never written to.
    pub location: PathBuf,
}

impl From<SourceFile> for ArtifactFile {
    fn from(file: SourceFile) -> Self {
        Self { path: file.path, bytes: file.bytes, location: file.location }
    }
}

/// The files of an artifact, sorted by path. Clones share one list: there may be millions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactFiles(List);

#[derive(Clone, Debug, Serialize, Deserialize)]
enum List {
    /// Of a result, wherever each of its files lies.
    #[serde(serialize_with = "write_listed", deserialize_with = "read_listed")]
    Listed(Arc<[ArtifactFile]>),
    /// Of a local source.
    Source(SourceFiles),
}

impl ArtifactFiles {
    /// How many.
    pub fn len(&self) -> usize {
        match &self.0 {
            List::Listed(files) => files.len(),
            List::Source(files) => files.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All, in the order of their paths.
    pub fn iter(&self) -> Box<dyn Iterator<Item = ArtifactFile> + Send + '_> {
        match &self.0 {
            List::Listed(files) => Box::new(files.iter().cloned()),
            List::Source(files) => Box::new(files.iter().map(ArtifactFile::from)),
        }
    }

    /// The file of this path.
    pub fn get(&self, path: &str) -> Option<ArtifactFile> {
        match &self.0 {
            List::Listed(files) => {
                let place = files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
                Some(files[place].clone())
            }
            List::Source(files) => files.get(path).map(ArtifactFile::from),
        }
    }

    /// The same files, where `moved` says that what lay at a place lies now: a file, or the folder of a source.
    pub(crate) fn moved(&self, moved: impl Fn(&Path) -> PathBuf) -> Self {
        match &self.0 {
            List::Listed(files) => files
                .iter()
                .map(|file| ArtifactFile { location: moved(&file.location), ..file.clone() })
                .collect(),
            List::Source(files) => files.moved(moved).into(),
        }
    }
}

impl FromIterator<ArtifactFile> for ArtifactFiles {
    fn from_iter<T: IntoIterator<Item = ArtifactFile>>(files: T) -> Self {
        let mut files: Vec<ArtifactFile> = files.into_iter().collect();
        files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Self(List::Listed(files.into()))
    }
}

impl From<ArtifactFile> for ArtifactFiles {
    fn from(file: ArtifactFile) -> Self {
        [file].into_iter().collect()
    }
}

impl From<SourceFiles> for ArtifactFiles {
    fn from(files: SourceFiles) -> Self {
        Self(List::Source(files))
    }
}

impl<'a> IntoIterator for &'a ArtifactFiles {
    type Item = ArtifactFile;
    type IntoIter = Box<dyn Iterator<Item = ArtifactFile> + Send + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn write_listed<S: Serializer>(files: &Arc<[ArtifactFile]>, serializer: S) -> Result<S::Ok, S::Error> {
    files.as_ref().serialize(serializer)
}

fn read_listed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[ArtifactFile]>, D::Error> {
    Vec::deserialize(deserializer).map(Arc::from)
}

impl Artifact {
    /// The file of this path inside the artifact.
    pub fn file(&self, path: &str) -> Option<ArtifactFile> {
        self.files.get(path)
    }

    /// The only file.
    ///
    /// # Errors
    /// If there are none or several.
    pub fn single_file(&self) -> Result<ArtifactFile, StageError> {
        let mut files = self.files.iter();
        match (files.next(), files.next()) {
            (Some(file), None) => Ok(file),
            _ => Err(StageError::input(
                self.origin.as_deref().unwrap_or("input"),
                format!("one file is expected, {} were found", self.files.len()),
            )),
        }
    }

    /// The same artifact, as if this file were all of it.
    pub fn only(&self, file: ArtifactFile) -> Self {
        Self { files: file.into(), ..self.clone() }
    }

    /// The files whose path ends in `extension` (with its dot), in path order.
    pub fn files_ending(&self, extension: &str) -> impl Iterator<Item = ArtifactFile> {
        self.files.iter().filter(move |file| file.path.ends_with(extension))
    }
}

/// One artifact of an input, with the axis assignment of its producer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputArtifact {
    /// The axis assignment of the producing node; empty for external sources.
    pub axes: BTreeMap<String, String>,
    /// The name of the producing stage, for reports; empty for external sources. Never in a key.
    pub stage: String,
    /// The artifact.
    pub artifact: Artifact,
}
