//! Differentiable operations with kernels of our own.
//!
//! candle's fused layer norm and softmax cut the gradient silently, and its products compute the
//! gradients of frozen weights too. These operations do neither. On a CPU each is one kernel with a
//! backward pass; elsewhere each is composed of candle's differentiable operations. Every kernel has
//! its composed twin in [`composed`], and a test compares the two and their gradients.
//!
//! Kernels are of f32. Of half types a CPU's operations widen their arguments and round the result; what
//! sums over many values (norms, softmax, means) does so on every device. Linear layers and frozen blocks of bf16
//! multiply bf16 where the machine has an instruction for it, and sum in f32. Parameters of another type than
//! the input's are taken in the input's.
//!
//! Results do not depend on the number of threads: parallel parts share nothing, and every sum has a
//! stated order.

mod activation;
mod attention;
mod batch_norm;
mod block;
mod codes;
pub mod composed;
mod convolution;
mod convolution3d;
mod depthwise;
mod elementwise;
mod gated;
#[cfg(feature = "cuda")]
mod gpu;
mod layer_norm;
mod linear;
mod masked;
mod norm;
mod panels;
mod pool;
mod product;
mod recompute;
mod recurrent;
mod rows;
mod scaled;
mod shared_rows;
mod tanh;
#[cfg(test)]
mod tests;
mod transposed;
mod unit;
mod weight;
mod weight_norm;
mod written;

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

pub use activation::activate;
pub use attention::{Scores, attention, attention_at};
pub use batch_norm::{RunningStatistics, batch_norm, batch_norm_of_batch};
pub use block::{BlockWeights, frozen_block, frozen_block_at, takes_block};
pub use codes::{nearest_codes, straight_through};
pub use convolution::{Window, conv2d};
pub use convolution3d::{conv3d, stack_steps};
pub use depthwise::{Padding3, depthwise_conv3d};
pub(crate) use elementwise::vectorised;
pub use gated::geglu;
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_of_images, project};
pub use masked::masked;
pub use norm::frobenius_norm;
pub(crate) use norm::sum_of_squares;
pub(crate) use panels::has_half_products;
pub use pool::{average_pool2d, max_pool2d};
pub use recompute::{Part, recompute};
pub use recurrent::{gru, lstm};
pub use scaled::scaled;
pub use tanh::tanh;
pub use transposed::conv_transpose2d;
pub use unit::scaled_unit;
pub use weight_norm::weight_normed;

/// The values of a contiguous f32 tensor.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout, what: &str) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{what} has to be contiguous"),
    }
}

/// The values of a contiguous f32 tensor on the CPU, while `storage` guards them.
struct Borrowed<G> {
    storage: G,
    range: Range<usize>,
}

impl<G: Deref<Target = Storage>> Deref for Borrowed<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("`borrow` admits only f32 on the CPU"),
        }
    }
}

/// Borrows the values of a tensor.
fn borrow(tensor: &Tensor) -> Result<Borrowed<impl Deref<Target = Storage> + '_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a kernel takes contiguous tensors, not strides of {:?}", layout.stride());
    };
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        bail!("a kernel takes f32 on the CPU, not {:?} on {:?}", tensor.dtype(), tensor.device());
    }
    Ok(Borrowed { storage, range: start..end })
}

/// The values of a tensor as a vector, whatever its layout and float type.
fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    wide(tensor)?.flatten_all()?.to_vec1()
}

/// Whether the kernels here apply: f32 on a CPU.
fn on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// Whether a tensor is of a type with too few digits to sum in.
fn is_half(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::BF16 | DType::F16)
}

/// Whether a product widens its arguments: those of a GPU sum half types in f32 by themselves.
fn is_half_on_cpu(tensor: &Tensor) -> bool {
    is_half(tensor) && tensor.device().is_cpu()
}

/// The tensor in f32.
pub(crate) fn wide(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F32)
}

/// The mean over an axis, which stays with length 1.
///
/// # Errors
/// If there is no such axis.
pub fn mean_keepdim(x: &Tensor, axis: usize) -> Result<Tensor> {
    match is_half(x) {
        true => wide(x)?.mean_keepdim(axis)?.to_dtype(x.dtype()),
        false => x.mean_keepdim(axis),
    }
}
