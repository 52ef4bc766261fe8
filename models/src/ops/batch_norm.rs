//! Batch normalisation (Ioffe and Szegedy 2015), with stored statistics or those of the batch.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::elementwise::vectorised;
use super::rows::{column_sums_of, for_each_block, sum_blocks};
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
    let op = BatchNorm {
        mean: values(&statistics.mean)?,
        inverse: values(&statistics.inverse_deviation()?)?,
        of_batch: false,
    };
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
    if is_half(x) {
        let (y, mean, variance) = batch_norm_of_batch(&wide(x)?, &wide(gamma)?, &wide(beta)?, epsilon)?;
        return Ok((y.to_dtype(x.dtype())?, mean, variance));
    }
    if !on_cpu(x) {
        return composed::batch_norm_of_batch(x, gamma, beta, epsilon);
    }
    let x = x.contiguous()?;
    let (mean, variance) = channel_statistics(&borrow(&x)?, channels);
    let inverse = variance.iter().map(|variance| (1.0 / (variance + epsilon).sqrt()) as f32).collect();
    let single = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<f32>>();
    let tensor = |values: &[f64]| Tensor::from_vec(single(values), channels, x.device());
    let op = BatchNorm { mean: single(&mean), inverse, of_batch: true };
    let y = x.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)?;
    Ok((y, tensor(&mean)?, tensor(&variance)?))
}

/// Mean and biased variance of each column of `[rows, channels]`, in double precision.
fn channel_statistics(x: &[f32], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = (x.len() / channels.max(1)) as f64;
    let mut mean = column_sums_of(x, channels, |_, value| f64::from(value));
    mean.iter_mut().for_each(|sum| *sum /= rows);
    let mut variance =
        column_sums_of(x, channels, |channel, value| (f64::from(value) - mean[channel]).powi(2));
    variance.iter_mut().for_each(|sum| *sum /= rows);
    (mean, variance)
}

struct BatchNorm {
    mean: Vec<f32>,
    /// 1 / standard deviation.
    inverse: Vec<f32>,
    /// Whether both are those of the argument, and gradients reach it through them.
    of_batch: bool,
}

impl BatchNorm {
    /// Takes from the gradient of `x` what its mean and variance carry away:
    /// scale / rows * (sum of dy + normalised x * sum of dy * normalised x).
    fn through_statistics(&self, x: &[f32], scale: &[f32], [dy, along]: [&[f32]; 2], dx: &mut [f32]) {
        let channels = self.mean.len();
        let share = 1.0 / (x.len() / channels) as f32;
        for_each_block(x, channels, dx, channels, |_, x, dx| {
            vectorised(|| {
                for (dx, x) in dx.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    for channel in 0..channels {
                        let normalised = (x[channel] - self.mean[channel]) * self.inverse[channel];
                        dx[channel] -= scale[channel] * share * (dy[channel] + normalised * along[channel]);
                    }
                }
            });
        });
    }
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
        // The sums of gradients, alone and times the normalised values: those of beta and gamma.
        let dbeta = super::rows::column_sums(dy, channels);
        let dgamma = || -> Result<Vec<f32>> {
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
            Ok(sum)
        };
        let through_batch = self.of_batch && x.track_op();
        let dgamma = if gamma.track_op() || through_batch { Some(dgamma()?) } else { None };
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
            if let (true, Some(dgamma)) = (self.of_batch, &dgamma) {
                self.through_statistics(&borrow(x)?, &scale, [&dbeta, dgamma], &mut dx);
            }
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        } else {
            None
        };
        let of = |parameter: &Tensor, values: Vec<f32>| {
            Tensor::from_vec(values, parameter.shape(), parameter.device())
        };
        let dgamma = match dgamma.filter(|_| gamma.track_op()) {
            Some(values) => Some(of(gamma, values)?),
            None => None,
        };
        let dbeta = if beta.track_op() { Some(of(beta, dbeta)?) } else { None };
        Ok((dx, dgamma, dbeta))
    }
}
