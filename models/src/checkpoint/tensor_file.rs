//! One file of tensors, whatever its format.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::error::{CheckpointError, first_line};
use super::stored::StoredTensor;
use super::{safetensors, torch};

/// Tensors may share what is stored, and half precision doubles when read; all tensors of a file
/// together take at most this many times its length.
const GROWTH_LIMIT: u64 = 8;

/// The tensors of a file, listed but not yet read. The format is told by the content: safetensors,
/// the zip archives of `torch.save` and `torch.jit.save`, the stream of `torch.save` before PyTorch
/// 1.6, or a pickle of NumPy arrays.
///
/// A pickle is read as data. Nothing in it is executed, and a class that no state dict needs is refused
/// by name. Weights that a training program wrapped (`state_dict`, `model`) are found, and the
/// `module.` of a distributed wrapper is taken off the names.
#[derive(Debug)]
pub struct TensorFile {
    name: String,
    file: File,
    tensors: BTreeMap<String, StoredTensor>,
}

impl TensorFile {
    /// Lists the tensors of a file, which errors call `name`.
    ///
    /// # Errors
    /// If it cannot be opened, has none of the formats, is incomplete, or refers to classes beyond
    /// those of a state dict.
    pub fn open(path: &Path, name: &str) -> Result<Self, CheckpointError> {
        let error = |reason: String| CheckpointError::new(name, reason);
        let file = File::open(path).map_err(|problem| error(problem.to_string()))?;
        let length = file.metadata().map_err(|problem| error(problem.to_string()))?.len();
        let listing = list(&file, length).map_err(error)?;
        let tensors: BTreeMap<String, StoredTensor> = listing.into_iter().collect();
        let mut views: Vec<&StoredTensor> = tensors.values().collect();
        views.sort_unstable();
        views.dedup();
        let bytes = views.iter().fold(0u64, |sum, view| sum.saturating_add(view.bytes()));
        if bytes > length.saturating_mul(GROWTH_LIMIT) {
            return Err(error(format!("its tensors would take {bytes} bytes, the file has {length}")));
        }
        Ok(Self { name: name.to_owned(), file, tensors })
    }

    /// Names and shapes, sorted by name.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape()))
    }

    /// Reads the tensors whose name `wanted` accepts: floats as f32, those of 64 bits as they are (no
    /// weights are: a model refuses them), truth values as u8, other integers as they are. What two names
    /// share is read once.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(
        &self,
        device: &Device,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
        let mut read: HashMap<&StoredTensor, Tensor> = HashMap::new();
        let mut tensors = BTreeMap::new();
        for (name, stored) in self.tensors.iter().filter(|(name, _)| wanted(name)) {
            let tensor = match read.get(stored) {
                Some(tensor) => tensor.clone(),
                None => {
                    let tensor = stored.read(&self.file, device).map_err(|reason| {
                        CheckpointError::new(&self.name, format!("tensor `{name}`: {reason}"))
                    })?;
                    read.insert(stored, tensor.clone());
                    tensor
                }
            };
            tensors.insert(name.clone(), tensor);
        }
        Ok(tensors)
    }
}

fn list(file: &File, length: u64) -> Result<torch::Listing, String> {
    let mut start = [0; 9];
    let start = &mut start[..length.min(9) as usize];
    file.read_exact_at(start, 0).map_err(|error| error.to_string())?;
    if start.starts_with(b"PK\x03\x04") {
        return torch::list_archive(file, length);
    }
    if let Some(header) = safetensors::header_length(start, length) {
        return safetensors::list(file, length, header);
    }
    // The protocol instruction of a pickle.
    if start.first() == Some(&0x80) && start.get(1).is_some_and(|protocol| *protocol <= 5) {
        return torch::list_stream(file, length);
    }
    Err("it is neither safetensors, nor written by PyTorch, nor a pickle".to_owned())
}

/// Refuses weights that are no numbers.
///
/// # Errors
/// Naming every tensor of `file` that holds a NaN or an infinity.
pub fn check_finite(file: &str, tensors: &BTreeMap<String, Tensor>) -> Result<(), CheckpointError> {
    let mut problems = Vec::new();
    for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.dtype().is_float()) {
        if tensor.elem_count() == 0 {
            continue;
        }
        // 0 * x is 0 exactly for finite x, and a sum of zeros with a NaN is NaN.
        let sum = tensor
            .affine(0.0, 0.0)
            .and_then(|zeros| zeros.sum_all())
            .and_then(|sum| sum.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>());
        match sum {
            Ok(0.0) => {}
            Ok(_) => problems.push(format!("tensor `{name}` holds values that are no finite numbers")),
            Err(error) => {
                return Err(CheckpointError::new(file, format!("tensor `{name}`: {}", first_line(&error))));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(CheckpointError::new(file, problems.join("; "))) }
}
