//! The nonlinearities of transformers and their derivatives.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::elementwise::{sigmoid, vectorised};
use super::{composed, contiguous, on_cpu, values};
use crate::Activation;

/// Applies `kind` elementwise.
///
/// # Errors
/// Whatever the device reports.
pub fn activate(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match kind {
        // candle's own rectifier is one pass and has a gradient.
        Activation::Relu => x.relu(),
        _ if !on_cpu(x) => composed::activate(x, kind),
        _ => x.contiguous()?.apply_op1(Activate { kind }),
    }
}

struct Activate {
    kind: Activation,
}

/// Phi(x), the distribution function of the normal: 0.5 erfc(-x / sqrt 2).
fn normal_cdf(x: f32) -> f32 {
    0.5 * libm::erfcf(-x * std::f32::consts::FRAC_1_SQRT_2)
}

const QUICK: f32 = 1.702;

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        let y: Vec<f32> = match self.kind {
            Activation::QuickGelu => {
                let mut y = vec![0.0f32; x.len()];
                vectorised(|| {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = x * sigmoid(QUICK * x);
                    }
                });
                y
            }
            Activation::Gelu => x.iter().map(|x| x * normal_cdf(*x)).collect(),
            Activation::Relu => x.iter().map(|x| x.max(0.0)).collect(),
        };
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let x_values = values(x)?;
        let mut dx = values(grad)?;
        match self.kind {
            Activation::QuickGelu => vectorised(|| {
                for (dx, x) in dx.iter_mut().zip(&x_values) {
                    let s = sigmoid(QUICK * x);
                    *dx *= s * (1.0 + QUICK * x * (1.0 - s));
                }
            }),
            Activation::Gelu => {
                const INVERSE_SQRT_TAU: f32 = 0.398_942_3;
                for (dx, x) in dx.iter_mut().zip(&x_values) {
                    *dx *= normal_cdf(*x) + x * INVERSE_SQRT_TAU * libm::expf(-0.5 * x * x);
                }
            }
            Activation::Relu => {
                for (dx, x) in dx.iter_mut().zip(&x_values) {
                    *dx = if *x > 0.0 { *dx } else { 0.0 };
                }
            }
        }
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
