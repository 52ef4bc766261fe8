//! Checkpoint files: finding them, reading and writing safetensors, and handing tensors out by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};

/// A text file of a checkpoint (configuration, tokeniser) is at most this long.
const TEXT_LIMIT: u64 = 64 << 20;

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{file}`: {reason}")]
pub struct CheckpointError {
    /// The file, or the tensor.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

impl CheckpointError {
    pub(crate) fn new(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { file: file.into(), reason: reason.into() }
    }
}

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

/// All tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names, in
/// f32 (integers stay as they are).
///
/// # Errors
/// If a file is missing or damaged.
pub fn tensors(
    files: &CheckpointFiles,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    const SINGLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    if files.get(SINGLE).is_some() || files.get(INDEX).is_none() {
        return read_tensors(files, SINGLE, device);
    }
    let index: serde_json::Value = serde_json::from_str(&files.text(INDEX)?)
        .map_err(|error| CheckpointError::new(INDEX, error.to_string()))?;
    let map = index["weight_map"]
        .as_object()
        .ok_or_else(|| CheckpointError::new(INDEX, "it has no table `weight_map`"))?;
    let shards: BTreeSet<&str> = map.values().filter_map(serde_json::Value::as_str).collect();
    let mut all = BTreeMap::new();
    for shard in shards {
        all.extend(read_tensors(files, shard, device)?);
    }
    Ok(all)
}

/// All tensors of one safetensors file, floats as f32.
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
    // safetensors checks its header against the file's length before anything is allocated.
    let tensors = candle_core::safetensors::load(path, device)
        .map_err(|error| CheckpointError::new(name, first_line(&error.to_string())))?;
    tensors
        .into_iter()
        .map(|(key, tensor)| {
            let tensor = match tensor.dtype() {
                DType::F16 | DType::BF16 | DType::F64 => tensor.to_dtype(DType::F32),
                _ => Ok(tensor),
            };
            tensor.map(|tensor| (key.clone(), tensor)).map_err(|error| {
                CheckpointError::new(name, format!("tensor `{key}`: {}", first_line(&error.to_string())))
            })
        })
        .collect()
}

/// candle's errors may carry a backtrace.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Writes tensors as safetensors, sorted by name: equal tensors give equal bytes.
///
/// # Errors
/// If the file cannot be written.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), CheckpointError> {
    let bytes = safetensors::serialize(tensors.iter(), None)
        .map_err(|error| CheckpointError::new(path.display().to_string(), error.to_string()))?;
    write(path, &bytes)
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let name = path.display().to_string();
    let temporary = path.with_extension("partial");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| CheckpointError::new(name, error.to_string()))
}

/// Which parameters become variables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trainable {
    /// None: inference and attribution.
    Frozen,
    /// All.
    All,
    /// Those of the image side: the vision model and its projection.
    Image,
    /// Those of the text side: the text model and its projection.
    Text,
}

impl Trainable {
    fn contains(self, name: &str) -> bool {
        let image = name.starts_with("vision_model.") || name.starts_with("visual_projection.");
        match self {
            Self::Frozen => false,
            Self::All => true,
            Self::Image => image,
            Self::Text => !image && name != "logit_scale",
        }
    }
}

/// Tensors on their way into a model: handed out by name, with all mismatches collected.
pub(crate) struct Weights {
    tensors: BTreeMap<String, Tensor>,
    trainable: Trainable,
    variables: BTreeMap<String, Var>,
    taken: BTreeMap<String, Tensor>,
    problems: Vec<String>,
}

impl Weights {
    pub(crate) fn new(tensors: BTreeMap<String, Tensor>, trainable: Trainable) -> Self {
        Self { tensors, trainable, variables: BTreeMap::new(), taken: BTreeMap::new(), problems: Vec::new() }
    }

    pub(crate) fn ignore(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// The tensor of this name and shape. A mismatch is remembered and a stand-in of no elements
    /// returned, so that all mismatches can be reported at once by [`Self::finish`].
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, CheckpointError> {
        let error = |error: candle_core::Error| CheckpointError::new(name, first_line(&error.to_string()));
        let tensor = match self.tensors.remove(name) {
            Some(tensor) if tensor.dims() == shape && tensor.dtype().is_float() => tensor,
            Some(tensor) => {
                let problem =
                    format!("`{name}` is {:?} {:?}, {shape:?} is expected", tensor.dtype(), tensor.dims());
                self.problems.push(problem);
                return Tensor::zeros(0, DType::F32, &Device::Cpu).map_err(error);
            }
            None => {
                self.problems.push(format!("`{name}` {shape:?} is missing"));
                return Tensor::zeros(0, DType::F32, &Device::Cpu).map_err(error);
            }
        };
        if self.trainable.contains(name) {
            let variable = Var::from_tensor(&tensor).map_err(error)?;
            let tensor = variable.as_tensor().clone();
            self.variables.insert(name.to_owned(), variable);
            Ok(tensor)
        } else {
            self.taken.insert(name.to_owned(), tensor.clone());
            Ok(tensor)
        }
    }

    /// The variables and the frozen tensors, if everything fitted and nothing was left over.
    pub(crate) fn finish(
        mut self,
    ) -> Result<(BTreeMap<String, Var>, BTreeMap<String, Tensor>), CheckpointError> {
        self.problems
            .extend(self.tensors.keys().map(|name| format!("`{name}` is not a tensor of this architecture")));
        if self.problems.is_empty() {
            Ok((self.variables, self.taken))
        } else {
            let reason =
                format!("{} tensors do not fit:\n  {}", self.problems.len(), self.problems.join("\n  "));
            Err(CheckpointError::new("model.safetensors", reason))
        }
    }
}
