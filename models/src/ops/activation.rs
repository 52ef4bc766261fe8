//! The nonlinearities of transformers and convolutional networks, and their derivatives.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::elementwise::{exp, normal_cdf, sigmoid};
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

/// y = f(x).
pub(super) fn apply(kind: Activation, x: &[f32], y: &mut [f32]) {
    Arch::new().dispatch(Values { kind, x, y });
}

/// dy *= f'(x).
pub(super) fn times_slope(kind: Activation, x: &[f32], dy: &mut [f32]) {
    Arch::new().dispatch(Derivative { kind, x, dy });
}

/// y = f(x).
struct Values<'a> {
    kind: Activation,
    x: &'a [f32],
    y: &'a mut [f32],
}

// Methods of named types, not closures: only a method can be forced into the caller that is compiled for the
// machine's vectors.
impl NullaryFnOnce for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let pairs = self.y.iter_mut().zip(self.x);
        match self.kind {
            Activation::Relu => {
                for (y, x) in pairs {
                    *y = x.max(0.0);
                }
            }
            Activation::QuickGelu => {
                for (y, x) in pairs {
                    *y = x * sigmoid(QUICK * x);
                }
            }
            Activation::Gelu => {
                for (y, x) in pairs {
                    *y = gelu(*x);
                }
            }
        }
    }
}

/// dy *= f'(x).
struct Derivative<'a> {
    kind: Activation,
    x: &'a [f32],
    dy: &'a mut [f32],
}

impl NullaryFnOnce for Derivative<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let pairs = self.dy.iter_mut().zip(self.x);
        match self.kind {
            // 0 at 0, as in PyTorch.
            Activation::Relu => {
                for (dy, x) in pairs {
                    *dy = if *x > 0.0 { *dy } else { 0.0 };
                }
            }
            Activation::QuickGelu => {
                for (dy, x) in pairs {
                    let s = sigmoid(QUICK * x);
                    *dy *= s * (1.0 + QUICK * x * (1.0 - s));
                }
            }
            Activation::Gelu => {
                for (dy, x) in pairs {
                    *dy *= gelu_slope(*x);
                }
            }
        }
    }
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        if self.kind == Activation::Relu {
            // Bound by memory: it is touched once.
            let y = x.par_iter().with_min_len(BLOCK).map(|x| x.max(0.0)).collect();
            return Ok((CpuStorage::F32(y), layout.shape().clone()));
        }
        let mut y = vec![0.0f32; x.len()];
        y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(y, x)| {
            apply(self.kind, x, y);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let x_values: &[f32] = &borrow(x)?;
        if self.kind == Activation::Relu && on_cpu(grad) {
            let grad = grad.contiguous()?;
            let dy: &[f32] = &borrow(&grad)?;
            let pairs = dy.par_iter().zip(x_values).with_min_len(BLOCK);
            let dx: Vec<f32> = pairs.map(|(dy, x)| if *x > 0.0 { *dy } else { 0.0 }).collect();
            return Tensor::from_vec(dx, x.shape(), x.device()).map(Some);
        }
        let mut dx = values(grad)?;
        dx.par_chunks_mut(BLOCK).zip(x_values.par_chunks(BLOCK)).for_each(|(dy, x)| {
            times_slope(self.kind, x, dy);
        });
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
