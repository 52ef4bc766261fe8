//! A convolution and the batch norm behind it.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use crate::checkpoint::CheckpointError;
use crate::ops::{RunningStatistics, Window, batch_norm, conv2d, wide};
use crate::probe::seen;
use crate::weights::Weights;
use crate::{Layer, MaybeProbe};

/// Epsilon of every batch norm here, PyTorch's default.
const EPSILON: f64 = 1e-5;

/// Convolution without bias, then batch norm with stored statistics, over channels-last images.
#[derive(Debug)]
pub(crate) struct ConvNorm {
    /// `[out, in, kernel, kernel]`, as stored.
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: RunningStatistics,
    window: Window,
    /// Kernel and bias of both in one, kept if no variable reaches them.
    folded: OnceLock<(Tensor, Tensor)>,
}

impl ConvNorm {
    /// Takes `{conv}.weight`, and weight, bias and statistics of `{norm}`.
    pub(crate) fn load(
        weights: &mut Weights,
        conv: &str,
        norm: &str,
        [out, channels, kernel]: [usize; 3],
        window: Window,
    ) -> std::result::Result<Self, CheckpointError> {
        weights.carry(&format!("{norm}.num_batches_tracked"));
        Ok(Self {
            weight: weights.take(&format!("{conv}.weight"), &[out, channels, kernel, kernel])?,
            gamma: weights.take(&format!("{norm}.weight"), &[out])?,
            beta: weights.take(&format!("{norm}.bias"), &[out])?,
            statistics: RunningStatistics {
                mean: weights.buffer(&format!("{norm}.running_mean"), &[out])?,
                variance: weights.buffer(&format!("{norm}.running_var"), &[out])?,
                epsilon: EPSILON,
            },
            window,
            folded: OnceLock::new(),
        })
    }

    /// `[out, in, kernel, kernel]`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[batch, rows, columns, in]` to `[batch, out rows, out columns, out]`; `name` is that of the norm
    /// for probes.
    pub(crate) fn forward(&self, x: &Tensor, name: &str, probe: MaybeProbe<'_>) -> Result<Tensor> {
        if let Some(probe) = probe.filter(|probe| probe.wants_layers()) {
            let convolution = Layer::Convolution {
                kernel: self.weight.permute((0, 2, 3, 1))?.contiguous()?,
                bias: None,
                window: self.window,
            };
            let norm = Layer::BatchNorm {
                gamma: self.gamma.clone(),
                beta: self.beta.clone(),
                statistics: self.statistics.clone(),
            };
            let y = convolution.apply(x, &convolution_name(name), Some(probe))?;
            return observe_map(Some(probe), name, norm.apply(&y, name, Some(probe))?);
        }
        let trained = [&self.weight, &self.gamma, &self.beta].into_iter().any(Tensor::track_op);
        let y = if trained {
            let kernel = self.weight.permute((0, 2, 3, 1))?.contiguous()?;
            batch_norm(&conv2d(x, &kernel, None, self.window)?, &self.gamma, &self.beta, &self.statistics)?
        } else {
            let (kernel, bias) = match self.folded.get() {
                Some(folded) => folded,
                None => {
                    let folded = self.fold()?;
                    self.folded.get_or_init(|| folded)
                }
            };
            conv2d(x, kernel, Some(bias), self.window)?
        };
        observe_map(probe, name, y)
    }

    /// W gamma / sigma, and beta - mean gamma / sigma.
    fn fold(&self) -> Result<(Tensor, Tensor)> {
        let scale = (wide(&self.gamma)? * self.statistics.inverse_deviation()?)?;
        let kernel = wide(&self.weight.permute((0, 2, 3, 1))?.contiguous()?)?;
        let kernel = kernel.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?.to_dtype(self.weight.dtype())?;
        let bias = (wide(&self.beta)? - (&self.statistics.mean * &scale)?)?;
        Ok((kernel, bias))
    }
}

/// The name of the convolution before the norm `name`: `conv3` before `bn3`.
fn convolution_name(name: &str) -> String {
    let (block, last) = name.rsplit_once('.').unwrap_or(("", name));
    format!("{block}.{}", last.replacen("bn", "conv", 1))
}

/// Shows a channels-last map to the probe as `[batch, channels, rows, columns]`.
pub(crate) fn observe_map(probe: MaybeProbe<'_>, name: &str, map: Tensor) -> Result<Tensor> {
    match probe {
        Some(probe) if probe.looks_into(name) => {
            let map = seen(&map.permute((0, 3, 1, 2))?.contiguous()?, |map| probe.activation(name, map))?;
            map.permute((0, 2, 3, 1))?.contiguous()
        }
        _ => Ok(map),
    }
}
