//! Batch normalisation with stored statistics (Ioffe and Szegedy 2015, at inference).

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::elementwise::vectorised;
use super::rows::{for_each_block, sum_blocks};
use super::{borrow, composed, contiguous, is_half, on_cpu, values, wide};

/// The statistics that a batch norm was trained with.
#[derive(Clone, Debug)]
pub struct RunningStatistics {
    /// `[channels]`.
    pub mean: Tensor,
    /// `[channels]`.
    pub variance: Tensor,
    /// Added to the variance.
    pub epsilon: f64,
}

impl RunningStatistics {
    /// `1 / sqrt(variance + epsilon)`, `[channels]`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn inverse_deviation(&self) -> Result<Tensor> {
        (&self.variance + self.epsilon)?.sqrt()?.recip()
    }
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` over the last dimension of `x`
/// `[..., channels]`; `gamma` and `beta` `[channels]`. The statistics are constants.
///
/// # Errors
/// If the shapes do not fit.
pub fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    statistics: &RunningStatistics,
) -> Result<Tensor> {
    let channels = x.dims().last().copied().unwrap_or_default();
    let fits = |tensor: &Tensor| tensor.dims() == [channels];
    if ![gamma, beta, &statistics.mean, &statistics.variance].into_iter().all(fits) || channels == 0 {
        bail!("a batch norm of {:?} cannot take {:?}", gamma.dims(), x.dims());
    }
    if is_half(x) {
        return batch_norm(&wide(x)?, &wide(gamma)?, &wide(beta)?, statistics)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::batch_norm(x, gamma, beta, statistics);
    }
    let op =
        BatchNorm { mean: values(&statistics.mean)?, inverse: values(&statistics.inverse_deviation()?)? };
    x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)
}

/// As [`fn@batch_norm`], with mean and variance (biased) of `x` itself over all but the last dimension, which
/// gradients reach; with both, `[channels]`, detached.
///
/// # Errors
/// If the shapes do not fit.
pub fn batch_norm_of_batch(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    epsilon: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let channels = x.dims().last().copied().unwrap_or_default();
    if x.elem_count() == 0 || gamma.dims() != [channels] || beta.dims() != [channels] {
        bail!("a batch norm of {:?} cannot take {:?}", gamma.dims(), x.dims());
    }
    let rows = x.reshape(((), channels))?;
    let mean = rows.mean_keepdim(0)?;
    let centred = rows.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(0)?;
    let scale = (&variance + epsilon)?.sqrt()?.recip()?.broadcast_mul(gamma)?;
    let y = centred.broadcast_mul(&scale)?.broadcast_add(beta)?.reshape(x.shape())?;
    Ok((y, mean.detach().squeeze(0)?, variance.detach().squeeze(0)?))
}

struct BatchNorm {
    mean: Vec<f32>,
    /// 1 / standard deviation.
    inverse: Vec<f32>,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch norm"
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
        let channels = self.mean.len();
        let scale: Vec<f32> =
            gamma.iter().zip(&self.inverse).map(|(gamma, inverse)| gamma * inverse).collect();
        let mut y = vec![0.0f32; x.len()];
        for_each_block(x, channels, &mut y, channels, |_, x, y| {
            vectorised(|| {
                for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    for (((y, x), mean), (scale, beta)) in
                        y.iter_mut().zip(x).zip(&self.mean).zip(scale.iter().zip(beta))
                    {
                        *y = (x - mean) * scale + beta;
                    }
                }
            });
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
        let dy: &[f32] = &borrow(&grad)?;
        let channels = self.mean.len();
        let rows = dy.len() / channels;
        let dx = if x.track_op() {
            let gamma = borrow(gamma)?;
            let scale: Vec<f32> =
                gamma.iter().zip(&self.inverse).map(|(gamma, inverse)| gamma * inverse).collect();
            let mut dx = vec![0.0f32; dy.len()];
            for_each_block(dy, channels, &mut dx, channels, |_, dy, dx| {
                vectorised(|| {
                    for (dx, dy) in dx.chunks_exact_mut(channels).zip(dy.chunks_exact(channels)) {
                        dx.iter_mut().zip(dy).zip(&scale).for_each(|((dx, dy), scale)| *dx = dy * scale);
                    }
                });
            });
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        } else {
            None
        };
        let dgamma = if gamma.track_op() {
            let x: &[f32] = &borrow(x)?;
            let mut sum = sum_blocks(rows, channels, |first, last, sum| {
                let place = first * channels..last * channels;
                vectorised(|| {
                    for (x, dy) in
                        x[place.clone()].chunks_exact(channels).zip(dy[place].chunks_exact(channels))
                    {
                        for (((sum, x), dy), mean) in sum.iter_mut().zip(x).zip(dy).zip(&self.mean) {
                            *sum += dy * (x - mean);
                        }
                    }
                });
            });
            sum.iter_mut().zip(&self.inverse).for_each(|(sum, inverse)| *sum *= inverse);
            Some(Tensor::from_vec(sum, gamma.shape(), gamma.device())?)
        } else {
            None
        };
        let dbeta = if beta.track_op() {
            Some(Tensor::from_vec(super::rows::column_sums(dy, channels), beta.shape(), beta.device())?)
        } else {
            None
        };
        Ok((dx, dgamma, dbeta))
    }
}
