//! Weights as the right side of a product, in the type of its terms.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, WithDType, bail};

use super::is_half_on_cpu;
use super::panels::{Panels, has_half_products};
use super::product::Matrix;

/// What a product multiplies; its sums are of f32 either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Terms {
    /// f32.
    Full,
    /// bf16, to which both sides are rounded: twice as fast where a machine has an instruction for it.
    Half,
}

impl Terms {
    /// Those of a layer that is given `x`: of bf16 where that is its type and the machine multiplies it.
    pub(super) fn of(x: &Tensor) -> Self {
        match is_half_on_cpu(x) && x.dtype() == DType::BF16 && has_half_products() {
            true => Self::Half,
            false => Self::Full,
        }
    }

    /// Packs the right side of a product, on this thread.
    pub(super) fn pack(self, b: Matrix<'_>) -> Panels {
        match self {
            Self::Full => Panels::pack(b, false),
            Self::Half => Panels::pack_half(b, false),
        }
    }

    /// Whether a weight of this type can be packed.
    pub(super) fn take(self, weight: &Tensor) -> bool {
        let has_type = match self {
            Self::Full => weight.dtype() == DType::F32,
            Self::Half => matches!(weight.dtype(), DType::F32 | DType::BF16),
        };
        weight.device().is_cpu() && has_type
    }
}

/// A matrix among the values of a weight.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// The place of its first value.
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// From one row to the next.
    pub(super) row_stride: usize,
    /// Whether its transpose is meant.
    pub(super) is_turned: bool,
}

impl View {
    /// All of a weight `[rows, columns]`.
    pub(super) fn whole(rows: usize, columns: usize) -> Self {
        Self { first: 0, rows, columns, row_stride: columns, is_turned: false }
    }

    /// The transpose.
    pub(super) fn turned(self) -> Self {
        Self { is_turned: !self.is_turned, ..self }
    }

    fn of<T>(self, values: &[T]) -> Matrix<'_, T> {
        let matrix = Matrix::new(&values[self.first..], self.rows, self.columns, self.row_stride);
        if self.is_turned { matrix.transposed() } else { matrix }
    }
}

/// Packs a part of a contiguous weight.
///
/// # Errors
/// If [`Terms::take`] says no, or the weight is not contiguous.
pub(super) fn pack(storage: &CpuStorage, layout: &Layout, view: View, terms: Terms) -> Result<Panels> {
    fn values<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("a weight has to be contiguous") };
        Ok(&storage.as_slice::<T>()?[start..end])
    }
    match (terms, storage) {
        (Terms::Full, _) => Ok(Panels::pack(view.of(values::<f32>(storage, layout)?), true)),
        (Terms::Half, CpuStorage::BF16(_)) => {
            Ok(Panels::pack_half(view.of(values::<half::bf16>(storage, layout)?), true))
        }
        (Terms::Half, _) => Ok(Panels::pack_half(view.of(values::<f32>(storage, layout)?), true)),
    }
}

/// As [`pack`], of a tensor.
///
/// # Errors
/// As [`pack`], and if the tensor is not on the CPU.
pub(super) fn pack_tensor(weight: &Tensor, view: View, terms: Terms) -> Result<Panels> {
    let (storage, layout) = weight.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => pack(storage, layout, view, terms),
        _ => bail!("a kernel takes weights on the CPU"),
    }
}
