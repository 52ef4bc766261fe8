//! The weights that the authors of MEVF published: of the meta-learned network, and of the auto-encoder.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::checkpoint::{CheckpointError, TensorFile, first_line};

/// The state dict of a meta-learned network from `pretrained_maml.weights`, a pickle of NumPy arrays in
/// TensorFlow's layout: `conv1` `[rows, columns, in, out]` and `b1` become `{name}.conv1.weight`
/// `[out, in, rows, columns]` and `{name}.conv1.bias`. Its batch norms are not in the file: they begin as the
/// identity.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub fn meta_cnn_weights(path: &Path, name: &str) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    from_tensorflow(read(path)?, name).map_err(|error| error.of_file(&path.display().to_string()))
}

/// The same, from the arrays themselves.
///
/// # Errors
/// If an array is none of the network's.
pub fn from_tensorflow(
    arrays: BTreeMap<String, Tensor>,
    name: &str,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let mut tensors = BTreeMap::new();
    for (own, array) in arrays {
        let number = |prefix: &str| -> Option<usize> { own.strip_prefix(prefix)?.parse().ok() };
        let (name, tensor) = match (number("conv"), number("b"), array.rank()) {
            (Some(block), None, 4) => {
                let tensor = array
                    .permute((3, 2, 0, 1))
                    .and_then(|tensor| tensor.contiguous())
                    .map_err(|error| CheckpointError::new(&own, first_line(&error)))?;
                (format!("{name}.conv{block}.weight"), tensor)
            }
            (None, Some(block), 1) => (format!("{name}.conv{block}.bias"), array),
            _ => {
                let reason = format!(
                    "`{own}` {:?} is no array of a meta-learned network; `conv1` of 4 dimensions, `b1` of one \
                     and so on are expected",
                    array.dims()
                );
                return Err(CheckpointError::in_weights(reason));
            }
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The state dict of an auto-encoder from `pretrained_ae.pth`, its names under `{name}.`.
///
/// # Errors
/// If the file cannot be read.
pub fn autoencoder_weights(path: &Path, name: &str) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    Ok(read(path)?.into_iter().map(|(own, tensor)| (format!("{name}.{own}"), tensor)).collect())
}

fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    TensorFile::open(path, &path.display().to_string())?.read(&Device::Cpu, |_| true)
}
