//! Differentiable operations with kernels of our own.
//!
//! candle's fused layer norm and softmax cut the gradient silently, and its products compute the
//! gradients of frozen weights too. These operations do neither. On a CPU each is one kernel with a
//! backward pass; elsewhere each is composed of candle's differentiable operations. Every kernel has
//! its composed twin in [`composed`], and a test compares the two and their gradients.
//!
//! Results do not depend on the number of threads: parallel parts share nothing, and every sum has a
//! stated order.

mod activation;
mod attention;
pub mod composed;
mod elementwise;
mod layer_norm;
mod linear;
mod product;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, Layout, Result, Tensor, bail};

pub use activation::activate;
pub use attention::attention;
pub use layer_norm::layer_norm;
pub use linear::linear;

/// The values of a contiguous f32 tensor.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout, what: &str) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{what} has to be contiguous"),
    }
}

/// The values of a tensor as a vector, whatever its layout.
fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Whether the kernels here apply: f32 on a CPU.
fn on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32
}
