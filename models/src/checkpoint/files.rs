//! The files of a checkpoint by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::error::CheckpointError;
use super::tensor_file::TensorFile;

/// A text file of a checkpoint (configuration, tokeniser) is at most this long.
const TEXT_LIMIT: u64 = 64 << 20;

/// The files of a checkpoint by name: they need not lie in one folder.
#[derive(Clone, Debug, Default)]
pub struct CheckpointFiles {
    files: BTreeMap<String, PathBuf>,
}

impl CheckpointFiles {
    /// Files by name.
    pub fn new(files: impl IntoIterator<Item = (String, PathBuf)>) -> Self {
        Self { files: files.into_iter().collect() }
    }

    /// The plain files of a folder.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn folder(folder: &Path) -> Result<Self, CheckpointError> {
        let error =
            |error: std::io::Error| CheckpointError::new(folder.display().to_string(), error.to_string());
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(error)? {
            let entry = entry.map_err(error)?;
            if let (true, Ok(name)) = (entry.path().is_file(), entry.file_name().into_string()) {
                files.insert(name, entry.path());
            }
        }
        Ok(Self { files })
    }

    /// The names of all files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Where a file lies, if there is one of this name.
    pub fn get(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// The text of a file.
    ///
    /// # Errors
    /// If it is missing, too long, or no UTF-8.
    pub fn text(&self, name: &str) -> Result<String, CheckpointError> {
        let path =
            self.get(name).ok_or_else(|| CheckpointError::new(name, "the checkpoint has no such file"))?;
        let length =
            std::fs::metadata(path).map_err(|error| CheckpointError::new(name, error.to_string()))?.len();
        if length > TEXT_LIMIT {
            return Err(CheckpointError::new(
                name,
                format!("it has {length} bytes; at most {TEXT_LIMIT} are expected"),
            ));
        }
        std::fs::read_to_string(path).map_err(|error| CheckpointError::new(name, error.to_string()))
    }
}

impl CheckpointFiles {
    /// The JSON of a file, `null` if there is none of this name.
    ///
    /// # Errors
    /// If it cannot be read or is no JSON.
    pub(crate) fn json_if_any(&self, name: &str) -> Result<serde_json::Value, CheckpointError> {
        match self.get(name) {
            Some(_) => serde_json::from_str(&self.text(name)?)
                .map_err(|error| CheckpointError::new(name, error.to_string())),
            None => Ok(serde_json::Value::Null),
        }
    }
}

/// The names under which transformers publishes weights, in the order of preference.
const TRANSFORMERS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Those of open_clip.
const OPEN_CLIP: [&str; 2] = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"];
/// What the table is called that says in which of several files a tensor lies.
const INDEX: &str = ".index.json";

/// Whose file is read where a folder holds weights of two libraries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Prefer {
    /// That of transformers.
    Transformers,
    /// That of open_clip.
    OpenClip,
}

/// Whether there are weights by the names of transformers.
pub(crate) fn has_transformers_weights(files: &CheckpointFiles) -> bool {
    TRANSFORMERS.iter().any(|name| files.get(name).or_else(|| files.get(&format!("{name}{INDEX}"))).is_some())
}

/// All tensors of a checkpoint's weights by the names that libraries give the file, of one file or of the
/// shards that an index names; floats as f32 (integers stay as they are).
///
/// # Errors
/// If there are no weights, or a file is missing or damaged.
pub fn tensors(
    files: &CheckpointFiles,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    tensors_preferring(files, Prefer::Transformers, device)
}

/// As [`tensors`], where a folder may hold the files of two libraries.
pub(crate) fn tensors_preferring(
    files: &CheckpointFiles,
    prefer: Prefer,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    match weights_name(files, prefer)? {
        (name, Parts::One) => read_tensors(files, name, device),
        (name, Parts::Shards) => read_shards(files, &format!("{name}{INDEX}"), device),
    }
}

/// Whether weights are one file, or several that an index names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parts {
    /// One file.
    One,
    /// Several.
    Shards,
}

/// The name that the library of the weights gives them, and how many files they are.
pub(crate) fn weights_name(
    files: &CheckpointFiles,
    prefer: Prefer,
) -> Result<(&'static str, Parts), CheckpointError> {
    let names: [[&'static str; 2]; 2] = match prefer {
        Prefer::Transformers => [TRANSFORMERS, OPEN_CLIP],
        Prefer::OpenClip => [OPEN_CLIP, TRANSFORMERS],
    };
    let has = |name: &str| files.get(name).is_some();
    let found = names.as_flattened().iter().find_map(|name| match () {
        () if has(name) => Some((*name, Parts::One)),
        () if has(&format!("{name}{INDEX}")) => Some((*name, Parts::Shards)),
        () => None,
    });
    found.ok_or_else(|| CheckpointError::new(names[0][0], "the checkpoint has no such file"))
}

fn read_shards(
    files: &CheckpointFiles,
    index: &str,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let mut all = BTreeMap::new();
    for shard in shards(files, index)? {
        for (name, tensor) in read_tensors(files, &shard, device)? {
            if all.insert(name.clone(), tensor).is_some() {
                return Err(CheckpointError::new(shard, format!("tensor `{name}` is in another shard too")));
            }
        }
    }
    Ok(all)
}

/// The files that an index names.
fn shards(files: &CheckpointFiles, index: &str) -> Result<BTreeSet<String>, CheckpointError> {
    let json: serde_json::Value = serde_json::from_str(&files.text(index)?)
        .map_err(|error| CheckpointError::new(index, error.to_string()))?;
    let map = json["weight_map"]
        .as_object()
        .ok_or_else(|| CheckpointError::new(index, "it has no table `weight_map`"))?;
    map.iter()
        .map(|(tensor, shard)| {
            shard.as_str().map(str::to_owned).ok_or_else(|| {
                CheckpointError::new(
                    index,
                    format!("the shard of `{tensor}` is {shard}; a file name is expected"),
                )
            })
        })
        .collect()
}

/// A tensor that nobody's code uses and that is as large as a model: CT-CLIP's second projection of volumes, 604 MB.
const UNUSED: &str = "to_visual_latent_extra.weight";

/// All tensors of one file but [`UNUSED`], in any of the formats of [`TensorFile`]; floats as f32.
///
/// # Errors
/// If it is missing or damaged.
pub fn read_tensors(
    files: &CheckpointFiles,
    name: &str,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let path =
        files.get(name).ok_or_else(|| CheckpointError::new(name, "the checkpoint has no such file"))?;
    TensorFile::open(path, name)?.read(device, |tensor| !tensor.ends_with(UNUSED))
}

/// Writes a file under a temporary name first, so that it is there completely or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let name = path.display().to_string();
    let temporary = path.with_extension("partial");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| CheckpointError::new(name, error.to_string()))
}
