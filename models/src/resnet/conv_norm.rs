//! A convolution and the batch norm behind it.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::layers::BatchNorm;
use crate::ops::{Window, conv2d, conv3d, stack_steps, wide};
use crate::probe::seen;
use crate::weights::Weights;
use crate::{Layer, MaybeProbe};

/// What a batch counts in running statistics: PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// Who looks into a pass, and what batch norms take.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) probe: MaybeProbe<'a>,
    /// Whether norms that learn take the statistics of the batch, which the running ones follow.
    of_batch: bool,
}

impl<'a> Pass<'a> {
    /// A probe that trains norms has nothing to look at.
    pub(crate) fn new(probe: MaybeProbe<'a>) -> Self {
        match probe {
            Some(probe) if probe.trains_norms() => Self { probe: None, of_batch: true },
            _ => Self { probe, of_batch: false },
        }
    }
}

/// The sizes of a convolution, and how its weights begin where they are drawn.
#[derive(Clone, Copy)]
pub(crate) struct Convolution {
    /// Channels behind and before it, and pixels of the kernel along each axis.
    pub(crate) sizes: [usize; 3],
    pub(crate) window: Window,
    /// 2 of images, 3 of volumes.
    pub(crate) axes: usize,
    /// As the name says, if nothing.
    pub(crate) start: Option<Start>,
}

/// Convolution without bias, then batch norm, over channels-last images or volumes.
#[derive(Debug)]
pub(crate) struct ConvNorm {
    /// `[out, in, kernel, kernel]`, as stored; of volumes one more.
    weight: Tensor,
    norm: BatchNorm,
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
        convolution: Convolution,
    ) -> std::result::Result<Self, CheckpointError> {
        let Convolution { sizes: [out, channels, kernel], window, axes, start } = convolution;
        let shape: Vec<usize> =
            [out, channels].into_iter().chain(std::iter::repeat_n(kernel, axes)).collect();
        let name = format!("{conv}.weight");
        Ok(Self {
            weight: match start {
                Some(start) => weights.begin(&name, &shape, start)?,
                None => weights.take(&name, &shape)?,
            },
            norm: BatchNorm::load_as_found(weights, norm, out, MOMENTUM)?,
            window,
            folded: OnceLock::new(),
        })
    }

    /// `[out, in, kernel, kernel]`; of volumes one more.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[batch, rows, columns, in]` to `[batch, out rows, out columns, out]`, of volumes with steps before the rows;
    /// `name` is that of the norm for probes.
    pub(crate) fn forward(&self, x: &Tensor, name: &str, pass: Pass<'_>) -> Result<Tensor> {
        if let Some(probe) = pass.probe.filter(|probe| probe.wants_layers()) {
            let norm = Layer::BatchNorm {
                gamma: self.norm.gamma.clone(),
                beta: self.norm.beta.clone(),
                statistics: self.norm.statistics(),
            };
            let y = self.convolved_by(probe, x, &convolution_name(name))?;
            return observe_map(Some(probe), name, norm.apply(&y, name, Some(probe))?);
        }
        let norm = &self.norm;
        let trained = [&self.weight, &norm.gamma, &norm.beta].into_iter().any(Tensor::track_op);
        let y = if trained {
            norm.forward(&self.convolved(x, &self.kernel()?, None)?, pass.of_batch)?
        } else {
            let (kernel, bias) = match self.folded.get() {
                Some(folded) => folded,
                None => {
                    let folded = self.fold()?;
                    self.folded.get_or_init(|| folded)
                }
            };
            self.convolved(x, kernel, Some(bias))?
        };
        observe_map(pass.probe, name, y)
    }

    /// The weight as kernels are: channels last.
    fn kernel(&self) -> Result<Tensor> {
        match self.weight.rank() {
            5 => self.weight.permute((0, 2, 3, 4, 1))?.contiguous(),
            _ => self.weight.permute((0, 2, 3, 1))?.contiguous(),
        }
    }

    fn convolved(&self, x: &Tensor, kernel: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match kernel.rank() {
            5 => conv3d(x, kernel, bias, self.window),
            _ => conv2d(x, kernel, bias, self.window),
        }
    }

    /// The convolution as a layer that a probe sees: that of volumes over images whose pixels hold several steps.
    fn convolved_by(&self, probe: &dyn crate::Probe, x: &Tensor, name: &str) -> Result<Tensor> {
        let kernel = self.kernel()?;
        let layer = |kernel: Tensor| Layer::Convolution { kernel, bias: None, window: self.window };
        if kernel.rank() == 4 {
            return layer(kernel).apply(x, name, Some(probe));
        }
        let (out, steps, rows, columns, channels) = kernel.dims5()?;
        let flat = kernel.permute((0, 2, 3, 1, 4))?.contiguous()?;
        let flat = flat.reshape((out, rows, columns, steps * channels))?;
        let images = stack_steps(x, steps, self.window)?;
        let y = layer(flat).apply(&images, name, Some(probe))?;
        let (images, rows, columns, out) = y.dims4()?;
        let batch = x.dim(0)?;
        y.reshape((batch, images / batch.max(1), rows, columns, out))
    }

    /// W gamma / sigma, and beta - mean gamma / sigma.
    fn fold(&self) -> Result<(Tensor, Tensor)> {
        let statistics = self.norm.statistics();
        let scale = (wide(&self.norm.gamma)? * statistics.inverse_deviation()?)?;
        let kernel = wide(&self.kernel()?)?;
        let along_outputs: Vec<usize> =
            std::iter::once(scale.elem_count()).chain(std::iter::repeat_n(1, kernel.rank() - 1)).collect();
        let kernel = kernel.broadcast_mul(&scale.reshape(along_outputs)?)?.to_dtype(self.weight.dtype())?;
        let bias = (wide(&self.norm.beta)? - (&statistics.mean * &scale)?)?;
        Ok((kernel, bias))
    }
}

/// The name of the convolution before the norm `name`: `conv3` before `bn3`.
fn convolution_name(name: &str) -> String {
    let (block, last) = name.rsplit_once('.').unwrap_or(("", name));
    format!("{block}.{}", last.replacen("bn", "conv", 1))
}

/// Shows a channels-last map to the probe as `[batch, channels, rows, columns]`, of volumes as `[batch * steps,
/// channels, rows, columns]`.
pub(crate) fn observe_map(probe: MaybeProbe<'_>, name: &str, map: Tensor) -> Result<Tensor> {
    match probe {
        Some(probe) if probe.looks_into(name) => {
            let images = if map.rank() == 5 { map.flatten(0, 1)? } else { map.clone() };
            let shown = images.permute((0, 3, 1, 2))?.contiguous()?;
            let shown = seen(&shown, |map| probe.activation(name, map))?;
            shown.permute((0, 2, 3, 1))?.contiguous()?.reshape(map.shape())
        }
        _ => Ok(map),
    }
}
