//! The safetensors format: a length, a header in JSON, the elements.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use candle_core::Tensor;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::error::CheckpointError;
use super::files::write;
use super::stored::{Element, Storage, StoredTensor, row_major};
use super::torch::Listing;

/// The format's own limit of its header.
const HEADER_LIMIT: u64 = 100_000_000;

/// The length of the header, if the file begins like one of this format.
pub(super) fn header_length(start: &[u8], length: u64) -> Option<u64> {
    let header = u64::from_le_bytes(*start.first_chunk()?);
    (start.get(8) == Some(&b'{') && header <= HEADER_LIMIT.min(length.checked_sub(8)?)).then_some(header)
}

/// Lists the tensors of a file of `length` bytes whose header has `header` bytes.
pub(super) fn list(file: &File, length: u64, header: u64) -> Result<Listing, String> {
    let mut bytes = vec![0; header as usize];
    file.read_exact_at(&mut bytes, 8).map_err(|error| error.to_string())?;
    // This checks that the tensors lie one after another and have the lengths of their shapes.
    let metadata: Metadata =
        serde_json::from_slice(&bytes).map_err(|error| format!("its header is not usable: {error}"))?;
    let expected = 8 + header + metadata.data_len() as u64;
    if length != expected {
        return Err(format!("it has {length} bytes where its header describes {expected}"));
    }
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let element = element_of(info.dtype)
            .ok_or_else(|| format!("tensor `{name}` has elements of type {:?}", info.dtype))?;
        let start = 8 + header + info.data_offsets.0 as u64;
        let elements = (info.data_offsets.1 - info.data_offsets.0) as u64 / element.bytes();
        let storage = Storage { element, start, elements };
        let tensor = StoredTensor::new(storage, 0, info.shape.clone(), row_major(&info.shape))
            .map_err(|reason| format!("tensor `{name}`: {reason}"))?;
        tensors.push((name, tensor));
    }
    Ok(tensors)
}

fn element_of(dtype: Dtype) -> Option<Element> {
    Some(match dtype {
        Dtype::BOOL => Element::Bool,
        Dtype::U8 => Element::U8,
        Dtype::I8 => Element::I8,
        Dtype::I16 => Element::I16,
        Dtype::U16 => Element::U16,
        Dtype::I32 => Element::I32,
        Dtype::U32 => Element::U32,
        Dtype::I64 => Element::I64,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        Dtype::F32 => Element::F32,
        Dtype::F64 => Element::F64,
        _ => return None,
    })
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
