//! Checkpoint files: finding them, reading the formats they come in, and writing safetensors.

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
pub(crate) mod tests;
mod torch;

pub use error::CheckpointError;
pub(crate) use error::first_line;
pub use files::{CheckpointFiles, read_tensors, tensors};
pub(crate) use files::{Prefer, has_transformers_weights, tensors_preferring, weights_name, write};
pub use safetensors::write_tensors;
pub use tensor_file::{TensorFile, check_finite};
