//! The nonlinearities of transformers and convolutional networks, and their derivatives.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::elementwise::{exp, normal_cdf, sigmoid, vectorised};
#[cfg(feature = "cuda")]
use super::gpu;
use super::{borrow, composed, contiguous, is_half_on_cpu, on_cpu, values, wide};
use crate::Activation;

/// Applies `kind` elementwise.
///
/// # Errors
/// Whatever the device reports.
pub fn activate(x: &Tensor, kind: Activation) -> Result<Tensor> {
    if is_half_on_cpu(x) {
        return activate(&wide(x)?, kind)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        #[cfg(feature = "cuda")]
        if gpu::takes(x) {
            return gpu::activate(x, kind);
        }
        return composed::activate(x, kind);
    }
    x.contiguous()?.apply_op1(Activate { kind })
}

struct Activate {
    kind: Activation,
}

/// Values per task.
const BLOCK: usize = 1 << 14;
const QUICK: f32 = 1.702;
const INVERSE_SQRT_TAU: f32 = 0.398_942_3;

/// x Phi(x).
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    x * normal_cdf(x)
}

/// The derivative of [`gelu`]: Phi(x) + x phi(x).
#[inline(always)]
pub(super) fn gelu_slope(x: f32) -> f32 {
    normal_cdf(x) + x * INVERSE_SQRT_TAU * exp(-0.5 * x * x)
}

impl Activate {
    fn values(&self, x: &[f32], y: &mut [f32]) {
        let pairs = y.iter_mut().zip(x);
        match self.kind {
            Activation::Relu => vectorised(|| pairs.for_each(|(y, x)| *y = x.max(0.0))),
            Activation::QuickGelu => vectorised(|| pairs.for_each(|(y, x)| *y = x * sigmoid(QUICK * x))),
            Activation::Gelu => vectorised(|| pairs.for_each(|(y, x)| *y = gelu(*x))),
        }
    }

    /// Multiplies `dy` by the derivative at `x`.
    fn derivative(&self, x: &[f32], dy: &mut [f32]) {
        let pairs = dy.iter_mut().zip(x);
        match self.kind {
            // 0 at 0, as in PyTorch.
            Activation::Relu => {
                vectorised(|| pairs.for_each(|(dy, x)| *dy = if *x > 0.0 { *dy } else { 0.0 }));
            }
            Activation::QuickGelu => vectorised(|| {
                pairs.for_each(|(dy, x)| {
                    let s = sigmoid(QUICK * x);
                    *dy *= s * (1.0 + QUICK * x * (1.0 - s));
                });
            }),
            Activation::Gelu => vectorised(|| {
                pairs.for_each(|(dy, x)| *dy *= gelu_slope(*x));
            }),
        }
    }
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        let mut y = vec![0.0f32; x.len()];
        y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(y, x)| self.values(x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let x_values: &[f32] = &borrow(x)?;
        let mut dx = values(grad)?;
        dx.par_chunks_mut(BLOCK).zip(x_values.par_chunks(BLOCK)).for_each(|(dx, x)| self.derivative(x, dx));
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
