//! Layers that begin as PyTorch's do.

use candle_core::{D, Result, Tensor};

use super::Mode;
use crate::Activation;
use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::layers::{LayerNorm, Linear};
use crate::ops::activate;
use crate::weights::Weights;

type Loaded<T> = std::result::Result<T, CheckpointError>;

/// A linear layer `{name}.weight` `[out, in]` and `{name}.bias`.
pub(super) fn linear_layer(weights: &mut Weights, name: &str, out: usize, width: usize) -> Loaded<Linear> {
    let start = Start::of_inputs(width);
    Ok(Linear {
        weight: weights.begin(&format!("{name}.weight"), &[out, width], start)?,
        bias: Some(weights.begin(&format!("{name}.bias"), &[out], start)?),
    })
}

/// As [`linear_layer`], without a bias.
pub(super) fn linear_without_bias(
    weights: &mut Weights,
    name: &str,
    out: usize,
    width: usize,
) -> Loaded<Linear> {
    let weight = weights.begin(&format!("{name}.weight"), &[out, width], Start::of_inputs(width))?;
    Ok(Linear { weight, bias: None })
}

/// As [`linear_layer`], uniform by Glorot and Bengio's rule and without an offset at the beginning.
pub(super) fn xavier_layer(weights: &mut Weights, name: &str, out: usize, width: usize) -> Loaded<Linear> {
    Ok(Linear {
        weight: weights.begin(&format!("{name}.weight"), &[out, width], Start::xavier(width, out))?,
        bias: Some(weights.begin(&format!("{name}.bias"), &[out], Start::Constant(0.0))?),
    })
}

/// A layer norm `{name}.weight` and `{name}.bias` of this width, the identity at the beginning.
pub(super) fn norm_layer(weights: &mut Weights, name: &str, width: usize, epsilon: f64) -> Loaded<LayerNorm> {
    Ok(LayerNorm {
        weight: weights.begin(&format!("{name}.weight"), &[width], Start::Constant(1.0))?,
        bias: weights.begin(&format!("{name}.bias"), &[width], Start::Constant(0.0))?,
        epsilon,
    })
}

/// Which rows of `x` `[batch, rows, width]` are all zero, `[batch][rows]`. Where all rows of a sample are, none
/// is told: something has to be looked at.
pub(super) fn hidden_rows(x: &Tensor) -> Result<Vec<Vec<bool>>> {
    let greatest = x.detach().abs()?.max(D::Minus1)?.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
    Ok(greatest
        .into_iter()
        .map(|rows| {
            let nothing = rows.iter().all(|value| *value == 0.0);
            rows.into_iter().map(|value| value == 0.0 && !nothing).collect()
        })
        .collect())
}

/// Dropout before a rectifier at the place `name`: half of the values.
pub(super) const HALF: f64 = 0.5;

/// A linear layer, dropout of half of its results, and a rectifier.
pub(super) fn dropped_rectified(layer: &Linear, name: &str, x: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
    activate(&mode.dropout(name, HALF, layer.forward(x)?)?, Activation::Relu)
}
