//! The layers of a convolutional network as probes see them.

use candle_core::{Result, Tensor};

use crate::MaybeProbe;
use crate::device::{enter, leave};
use crate::ops::{RunningStatistics, Window, average_pool2d, batch_norm, conv2d, linear, max_pool2d};

/// One layer between two nonlinearities, with its parameters: what a rule that replaces its backward pass
/// has to know. Channels are the last axis.
#[derive(Clone, Debug)]
pub enum Layer {
    /// `[..., in]` to `[..., out]`.
    Linear {
        /// `[out, in]`.
        weight: Tensor,
        /// `[out]`.
        bias: Option<Tensor>,
    },
    /// `[batch, rows, columns, in]` to `[batch, out rows, out columns, out]`.
    Convolution {
        /// `[out, kernel rows, kernel columns, in]`.
        kernel: Tensor,
        /// `[out]`.
        bias: Option<Tensor>,
        /// How the kernel moves.
        window: Window,
    },
    /// Batch norm with stored statistics, over `[..., channels]`.
    BatchNorm {
        /// The factor of each channel, `[channels]`.
        gamma: Tensor,
        /// What is added to it, `[channels]`.
        beta: Tensor,
        /// Of the training data.
        statistics: RunningStatistics,
    },
    /// The means of squares that do not overlap.
    AveragePool {
        /// Of a square, in pixels.
        side: usize,
    },
    /// The mean over all pixels: `[batch, rows, columns, channels]` to `[batch, channels]`.
    GlobalMean,
    /// The greatest values of windows.
    MaxPool {
        /// Of a window, in pixels.
        side: usize,
        /// How it moves.
        window: Window,
    },
}

impl Layer {
    /// The layer's output.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear { weight, bias } => linear(x, weight, bias.as_ref()),
            Self::Convolution { kernel, bias, window } => conv2d(x, kernel, bias.as_ref(), *window),
            Self::BatchNorm { gamma, beta, statistics } => batch_norm(x, gamma, beta, statistics),
            Self::AveragePool { side } => average_pool2d(x, *side),
            Self::GlobalMean => x.flatten(1, 2)?.mean(1),
            Self::MaxPool { side, window } => max_pool2d(x, *side, *window),
        }
    }

    /// The layer as probes see it: in f32 on the CPU.
    fn plain(&self) -> Result<Self> {
        let optional = |bias: &Option<Tensor>| bias.as_ref().map(leave).transpose();
        Ok(match self {
            Self::Linear { weight, bias } => Self::Linear { weight: leave(weight)?, bias: optional(bias)? },
            Self::Convolution { kernel, bias, window } => {
                Self::Convolution { kernel: leave(kernel)?, bias: optional(bias)?, window: *window }
            }
            Self::BatchNorm { gamma, beta, statistics } => Self::BatchNorm {
                gamma: leave(gamma)?,
                beta: leave(beta)?,
                statistics: RunningStatistics {
                    mean: leave(&statistics.mean)?,
                    variance: leave(&statistics.variance)?,
                    epsilon: statistics.epsilon,
                },
            },
            Self::AveragePool { .. } | Self::GlobalMean | Self::MaxPool { .. } => self.clone(),
        })
    }

    /// The layer's output, or what a probe that wants layers puts in its place.
    ///
    /// # Errors
    /// As [`Self::forward`], or if the probe fails.
    pub fn apply(&self, x: &Tensor, name: &str, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let replaced = match probe.filter(|probe| probe.wants_layers()) {
            Some(probe) => probe.layer(name, &self.plain()?, &leave(x)?)?,
            None => None,
        };
        match replaced {
            Some(y) => enter(&y, x),
            None => self.forward(x),
        }
    }
}
