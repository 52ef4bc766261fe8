//! Tensors as they lie in a file: element type, place, shape and strides; checked before anything is
//! allocated, and read straight into tensors.

use std::fs::File;
use std::os::unix::fs::FileExt;

use candle_core::{Device, Tensor, WithDType};
use half::{bf16, f16};

use super::error::first_line;

/// More dimensions than any weight has.
pub(super) const RANK_LIMIT: usize = 16;
/// Bytes read at once.
const BLOCK: usize = 1 << 20;

/// The type of the stored elements, little endian.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Element {
    Bool,
    U8,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }
}

/// A run of elements of one type in the file, which tensors are views of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Storage {
    pub(super) element: Element,
    /// The first byte in the file.
    pub(super) start: u64,
    pub(super) elements: u64,
}

/// A tensor as a view of a storage. All its elements lie in the storage, and it has no more elements
/// than the storage.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct StoredTensor {
    storage: Storage,
    /// The first element in the storage.
    offset: u64,
    shape: Vec<usize>,
    /// Elements from one index to the next, per dimension.
    strides: Vec<u64>,
}

/// Strides of a row-major tensor.
pub(super) fn row_major(shape: &[usize]) -> Vec<u64> {
    let mut strides = vec![1u64; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension].saturating_mul(shape[dimension].max(1) as u64);
    }
    strides
}

impl StoredTensor {
    /// A view of `storage`; the error says in what it does not fit.
    pub(super) fn new(
        storage: Storage,
        offset: u64,
        shape: Vec<usize>,
        strides: Vec<u64>,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() || shape.len() > RANK_LIMIT {
            return Err(format!("{} dimensions with {} strides", shape.len(), strides.len()));
        }
        let count = shape.iter().try_fold(1u64, |count, &size| count.checked_mul(size as u64));
        // The last element of all; an overflow is beyond any storage.
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (&size, &stride)| {
            last.checked_add((size as u64).saturating_sub(1).checked_mul(stride)?)
        });
        match (count, last) {
            (Some(0), _) => {}
            (Some(count), Some(last)) if count <= storage.elements && last < storage.elements => {}
            _ => {
                return Err(format!(
                    "shape {shape:?} from element {offset} does not lie in its storage of {} elements",
                    storage.elements
                ));
            }
        }
        Ok(Self { storage, offset, shape, strides })
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in memory, at least those in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.count() as u64 * self.storage.element.bytes().max(2)
    }

    /// Reads the elements: floats as f32 (those of 64 bits, which that would round, as they are), truth
    /// values as bytes, other integers as they are (8 and 16 bits widened where candle has no such type).
    pub(super) fn read(&self, file: &File, device: &Device) -> Result<Tensor, String> {
        match self.storage.element {
            Element::Bool => self.read_as(file, device, |[byte]| u8::from(byte != 0)),
            Element::U8 => self.read_as(file, device, |[byte]| byte),
            Element::I8 => self.read_as(file, device, |bytes| i16::from(i8::from_le_bytes(bytes))),
            Element::I16 => self.read_as(file, device, i16::from_le_bytes),
            Element::U16 => self.read_as(file, device, |bytes| u32::from(u16::from_le_bytes(bytes))),
            Element::I32 => self.read_as(file, device, i32::from_le_bytes),
            Element::U32 => self.read_as(file, device, u32::from_le_bytes),
            Element::I64 => self.read_as(file, device, i64::from_le_bytes),
            Element::F16 => self.read_as(file, device, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Element::Bf16 => self.read_as(file, device, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Element::F32 => self.read_as(file, device, f32::from_le_bytes),
            Element::F64 => self.read_as(file, device, f64::from_le_bytes),
        }
    }

    fn read_as<const N: usize, T: WithDType>(
        &self,
        file: &File,
        device: &Device,
        value: impl Fn([u8; N]) -> T,
    ) -> Result<Tensor, String> {
        let count = self.count();
        let values = if count == 0 {
            Vec::new()
        } else if self.strides_of_long_axes().eq(row_major(&self.shape)
            .into_iter()
            .zip(&self.shape)
            .filter_map(|(stride, &size)| (size > 1).then_some(stride)))
        {
            self.read_run(file, count, value)?
        } else {
            let last: u64 =
                self.shape.iter().zip(&self.strides).map(|(&size, stride)| (size as u64 - 1) * stride).sum();
            let run = self.read_run(file, last as usize + 1, value)?;
            gather(&run, &self.shape, &self.strides)
        };
        Tensor::from_vec(values, self.shape.clone(), device).map_err(|error| first_line(&error))
    }

    /// The stride of an axis of length 1 means nothing.
    fn strides_of_long_axes(&self) -> impl Iterator<Item = u64> {
        self.strides.iter().zip(&self.shape).filter_map(|(&stride, &size)| (size > 1).then_some(stride))
    }

    /// Consecutive elements from the first one on.
    fn read_run<const N: usize, T>(
        &self,
        file: &File,
        count: usize,
        value: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, String> {
        let mut values = Vec::with_capacity(count);
        let mut place = self.storage.start + self.offset * N as u64;
        let mut left = count * N;
        let mut block = vec![0u8; left.min(BLOCK)];
        while left > 0 {
            let bytes = &mut block[..left.min(BLOCK)];
            file.read_exact_at(bytes, place).map_err(|error| error.to_string())?;
            values.extend(bytes.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)));
            place += bytes.len() as u64;
            left -= bytes.len();
        }
        Ok(values)
    }
}

/// The elements of a strided view in row-major order.
fn gather<T: Copy>(run: &[T], shape: &[usize], strides: &[u64]) -> Vec<T> {
    let mut places = vec![0usize];
    for (&size, &stride) in shape.iter().zip(strides) {
        places = places
            .into_iter()
            .flat_map(|place| (0..size).map(move |index| place + index * stride as usize))
            .collect();
    }
    places.into_iter().map(|place| run[place]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(elements: u64) -> Storage {
        Storage { element: Element::F32, start: 0, elements }
    }

    #[test]
    fn views_have_to_lie_in_their_storage() {
        let view = |offset, shape: &[usize], strides: &[u64]| {
            StoredTensor::new(storage(12), offset, shape.to_vec(), strides.to_vec())
        };
        assert!(view(0, &[3, 4], &[4, 1]).is_ok());
        assert!(view(0, &[4, 3], &[1, 4]).is_ok());
        assert!(view(0, &[], &[]).is_ok());
        // No elements need no place.
        assert!(view(99, &[8, 0, 1], &[8, 8, 1]).is_ok());
        assert!(view(1, &[3, 4], &[4, 1]).is_err());
        assert!(view(0, &[13], &[0]).is_err(), "more elements than are stored");
        assert!(view(0, &[2], &[u64::MAX]).is_err());
        assert!(view(u64::MAX, &[2], &[2]).is_err());
        assert!(view(0, &[1 << 30, 1 << 30], &[0, 0]).is_err());
        assert!(view(0, &[2], &[1, 1]).is_err());
    }

    #[test]
    fn gathers_any_strides() {
        let run: Vec<u32> = (0..12).collect();
        assert_eq!(gather(&run, &[4, 3], &[1, 4]), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(gather(&run, &[2, 2], &[6, 2]), [0, 2, 6, 8]);
        assert_eq!(gather(&run, &[], &[]), [0]);
    }
}
