//! Checkpoint files: finding them, reading the formats they come in, and handing tensors out by name.

mod archive;
mod error;
mod files;
mod numpy;
mod pickle;
mod safetensors;
mod state_dict;
mod stored;
mod tensor_file;
#[cfg(test)]
mod tests;
mod torch;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

pub use error::CheckpointError;
pub(crate) use error::first_line;
pub(crate) use files::write;
pub use files::{CheckpointFiles, read_tensors, tensors};
pub use safetensors::write_tensors;
pub use tensor_file::{TensorFile, check_finite};

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
        let error = |error: candle_core::Error| CheckpointError::new(name, first_line(&error));
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
