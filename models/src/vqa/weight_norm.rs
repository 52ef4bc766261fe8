//! Linear layers with weight normalisation (Salimans and Kingma 2016), with one factor for the whole matrix,
//! as the code of BAN, MEVF and QCR has it (`dim=None`).

use candle_core::{Result, Tensor};

use super::Mode;
use crate::Activation;
use crate::checkpoint::{CheckpointError, first_line};
use crate::initial::Start;
use crate::ops::{activate, frobenius_norm, weight_normed};
use crate::weights::Weights;

/// y = x W^T + b with W = g V / |V|, |V| the Frobenius norm of the whole matrix.
#[derive(Clone, Debug)]
pub struct WeightNormLinear {
    /// `[out, in]`.
    direction: Tensor,
    /// `[]`.
    factor: Tensor,
    /// `[out]`.
    bias: Tensor,
}

/// Takes the factor of a direction; one that is drawn makes the product what the direction was.
pub(super) fn take_factor(
    weights: &mut Weights,
    name: &str,
    direction: &Tensor,
) -> std::result::Result<Tensor, CheckpointError> {
    let norm = frobenius_norm(&direction.detach())
        .and_then(|norm| norm.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>())
        .map_err(|error| CheckpointError::new(name, first_line(&error)))?;
    weights.begin(name, &[], Start::Constant(norm))
}

impl WeightNormLinear {
    /// Takes `{name}.weight_v` `[out, in]`, `{name}.weight_g` `[]` and `{name}.bias` `[out]`.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        out: usize,
        width: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let direction = weights.begin(&format!("{name}.weight_v"), &[out, width], Start::of_inputs(width))?;
        Ok(Self {
            factor: take_factor(weights, &format!("{name}.weight_g"), &direction)?,
            direction,
            bias: weights.begin(&format!("{name}.bias"), &[out], Start::of_inputs(width))?,
        })
    }

    /// `[..., in]` to `[..., out]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        weight_normed(x, &self.direction, &self.factor, &self.bias)
    }
}

/// Dropout, a weight-normalised layer, and a rectifier unless it is left out: one layer of BAN's `FCNet`.
#[derive(Clone, Debug)]
pub(super) struct FullyConnected {
    name: String,
    linear: WeightNormLinear,
    rectified: bool,
}

/// Share of values that are dropped before a layer.
const DROPOUT: f64 = 0.2;

impl FullyConnected {
    /// Takes the tensors of `{name}.main.1`.
    pub(super) fn load(
        weights: &mut Weights,
        name: &str,
        out: usize,
        width: usize,
        rectified: bool,
    ) -> std::result::Result<Self, CheckpointError> {
        let linear = WeightNormLinear::load(weights, &format!("{name}.main.1"), out, width)?;
        Ok(Self { name: name.to_owned(), linear, rectified })
    }

    /// `[..., in]` to `[..., out]`.
    pub(super) fn forward(&self, x: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        let y = self.linear.forward(&mode.dropout(&self.name, DROPOUT, x.clone())?)?;
        if self.rectified { activate(&y, Activation::Relu) } else { Ok(y) }
    }
}
