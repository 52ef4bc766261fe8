//! Layer norms.

use candle_core::{Result, Tensor};

use crate::checkpoint::CheckpointError;
use crate::ops::layer_norm;
use crate::weights::Weights;

/// Layer norm over the last dimension.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    /// `[width]`.
    pub(crate) weight: Tensor,
    /// `[width]`.
    pub(crate) bias: Tensor,
    pub(crate) epsilon: f64,
}

impl LayerNorm {
    /// Whether no variable reaches the parameters.
    pub(crate) fn is_frozen(&self) -> bool {
        !self.weight.track_op() && !self.bias.track_op()
    }

    /// Takes `{name}.weight` and `{name}.bias`.
    pub(crate) fn load(
        weights: &mut Weights,
        name: &str,
        width: usize,
        epsilon: f64,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(Self {
            weight: weights.take(&format!("{name}.weight"), &[width])?,
            bias: weights.take(&format!("{name}.bias"), &[width])?,
            epsilon,
        })
    }

    /// `[..., width]` to the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}
