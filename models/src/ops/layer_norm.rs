//! Layer normalisation over the last dimension, with biased variance (Ba, Kiros and Hinton 2016).

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, NullaryFnOnce};

use super::elementwise::{fold, sum};
#[cfg(feature = "cuda")]
use super::gpu;
use super::rows::for_each_block;
use super::{borrow, composed, contiguous, is_half, on_cpu, wide};

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` over the last dimension of `x` `[..., width]`;
/// `gamma` and `beta` `[width]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gpu::takes(x) {
        return gpu::layer_norm(x, gamma, beta, epsilon);
    }
    if is_half(x) {
        return layer_norm(&wide(x)?, &wide(gamma)?, &wide(beta)?, epsilon)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::layer_norm(x, gamma, beta, epsilon);
    }
    let width = x.dims().last().copied().unwrap_or_default();
    if gamma.dims() != [width] || beta.dims() != [width] || width == 0 {
        bail!("a layer norm of {:?} cannot take {:?}", gamma.dims(), x.dims());
    }
    x.contiguous()?.apply_op3(
        &wide(gamma)?.contiguous()?,
        &wide(beta)?.contiguous()?,
        LayerNorm { epsilon: epsilon as f32 },
    )
}

struct LayerNorm {
    epsilon: f32,
}

/// Mean and 1 / standard deviation of a row.
#[inline(always)]
fn moments(row: &[f32], epsilon: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = sum(row) / count;
    let variance = fold(row, row, |value, _| (value - mean) * (value - mean)) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, x_layout, "x")?;
        let gamma = contiguous(gamma, gamma_layout, "gamma")?;
        let beta = contiguous(beta, beta_layout, "beta")?;
        let width = gamma.len();
        let mut y = vec![0.0f32; x.len()];
        for_each_block(x, width, &mut y, width, |_, x, y| {
            normalise_rows(x, gamma, beta, self.epsilon, y);
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (x_values, dy): (&[f32], &[f32]) = (&borrow(x)?, &borrow(&grad)?);
        let width = gamma.elem_count();
        let dx = if x.track_op() {
            let dx = self.input_gradient(x_values, &borrow(gamma)?, dy);
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        } else {
            None
        };
        if !gamma.track_op() && !beta.track_op() {
            return Ok((dx, None, None));
        }
        let sums = ParameterGradients { x: x_values, dy, epsilon: self.epsilon, width };
        let (dgamma, dbeta) = Arch::new().dispatch(sums);
        let device = x.device();
        Ok((
            dx,
            if gamma.track_op() { Some(Tensor::from_vec(dgamma, gamma.shape(), device)?) } else { None },
            if beta.track_op() { Some(Tensor::from_vec(dbeta, beta.shape(), device)?) } else { None },
        ))
    }
}

impl LayerNorm {
    fn input_gradient(&self, x: &[f32], gamma: &[f32], dy: &[f32]) -> Vec<f32> {
        let width = gamma.len();
        let mut dx = vec![0.0f32; x.len()];
        for_each_block(dy, width, &mut dx, width, |first, dy, dx| {
            let x = &x[first * width..];
            rows_gradient(x, gamma, self.epsilon, dy, dx);
        });
        dx
    }
}

/// Norms rows, each of the width of `gamma`.
pub(super) fn normalise_rows(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, y: &mut [f32]) {
    Arch::new().dispatch(Normalised { x, gamma, beta, epsilon, y });
}

/// The gradient of rows from that of their norms.
pub(super) fn rows_gradient(x: &[f32], gamma: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) {
    Arch::new().dispatch(InputGradient { x, gamma, dy, epsilon, dx });
}

// The loops over rows are methods of named types, not closures: only a method can be forced into the caller
// that is compiled for the machine's vectors.

/// y = n gamma + beta with n the normalised row.
struct Normalised<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
    y: &'a mut [f32],
}

impl NullaryFnOnce for Normalised<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.gamma.len();
        for (row, out) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let (mean, inverse) = moments(row, self.epsilon);
            for (((out, value), gamma), beta) in out.iter_mut().zip(row).zip(self.gamma).zip(self.beta) {
                *out = (value - mean) * inverse * gamma + beta;
            }
        }
    }
}

/// The sums of dy n and of dy over all rows.
struct ParameterGradients<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    epsilon: f32,
    width: usize,
}

impl NullaryFnOnce for ParameterGradients<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn call(self) -> Self::Output {
        let mut dgamma = vec![0.0f32; self.width];
        let mut dbeta = vec![0.0f32; self.width];
        for (row, dy) in self.x.chunks_exact(self.width).zip(self.dy.chunks_exact(self.width)) {
            let (mean, inverse) = moments(row, self.epsilon);
            for (((dgamma, dbeta), dy), value) in dgamma.iter_mut().zip(&mut dbeta).zip(dy).zip(row) {
                *dgamma += dy * ((value - mean) * inverse);
                *dbeta += dy;
            }
        }
        (dgamma, dbeta)
    }
}

/// With g = dy gamma and n the normalised row: (g - mean(g) - n mean(g n)) / deviation.
struct InputGradient<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    dy: &'a [f32],
    epsilon: f32,
    dx: &'a mut [f32],
}

impl NullaryFnOnce for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.gamma.len();
        let count = width as f32;
        let mut normalised = vec![0.0f32; width];
        let mut scaled = vec![0.0f32; width];
        let rows = self.dy.chunks_exact(width).zip(self.x.chunks_exact(width));
        for (out, (dy, row)) in self.dx.chunks_exact_mut(width).zip(rows) {
            let (mean, inverse) = moments(row, self.epsilon);
            for (normalised, value) in normalised.iter_mut().zip(row) {
                *normalised = (value - mean) * inverse;
            }
            for ((scaled, dy), gamma) in scaled.iter_mut().zip(dy).zip(self.gamma) {
                *scaled = dy * gamma;
            }
            let mean_scaled = sum(&scaled) / count;
            let mean_product = fold(&scaled, &normalised, |a, b| a * b) / count;
            for ((out, scaled), normalised) in out.iter_mut().zip(&scaled).zip(&normalised) {
                *out = inverse * (scaled - mean_scaled - normalised * mean_product);
            }
        }
    }
}
