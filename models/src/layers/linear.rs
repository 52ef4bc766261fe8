//! Linear layers in the two orientations that checkpoints store.

use candle_core::{Result, Tensor};

use crate::checkpoint::CheckpointError;
use crate::ops::{linear, project};
use crate::weights::Weights;

/// x W^T + b.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Tensor,
    /// `[out]`.
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// Takes `{name}.weight` and `{name}.bias`.
    pub(crate) fn load(
        weights: &mut Weights,
        name: &str,
        out: usize,
        width: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(Self {
            weight: weights.take(&format!("{name}.weight"), &[out, width])?,
            bias: Some(weights.take(&format!("{name}.bias"), &[out])?),
        })
    }

    /// Takes `{name}.weight` only.
    pub(crate) fn load_without_bias(
        weights: &mut Weights,
        name: &str,
        out: usize,
        width: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(Self { weight: weights.take(&format!("{name}.weight"), &[out, width])?, bias: None })
    }

    /// Whether no variable reaches the parameters.
    pub(crate) fn is_frozen(&self) -> bool {
        !self.weight.track_op() && !self.bias.as_ref().is_some_and(Tensor::track_op)
    }

    /// `[..., in]` to `[..., out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// A projection without bias into the common space.
#[derive(Clone, Debug)]
pub(crate) enum Projection {
    /// `[out, in]`, as linear layers are stored.
    Rows(Tensor),
    /// `[in, out]`, as OpenAI's and PMC-CLIP's files store it.
    Columns(Tensor),
}

impl Projection {
    /// The width of the result.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Rows(weight) => weight.dims()[0],
            Self::Columns(weight) => weight.dims()[1],
        }
    }

    /// `[..., in]` to `[..., out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rows(weight) => linear(x, weight, None),
            Self::Columns(weight) => project(x, weight),
        }
    }
}
