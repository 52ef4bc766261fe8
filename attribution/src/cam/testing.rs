//! A small model with a layer of any layout.

use candle_core::{Result as TensorResult, Tensor};
use pipe_models::MaybeProbe;
use pipe_models::model::{ActivationLayout, CamHook};

use super::{Cam, CamWeights};
use crate::Score;

/// A global mean and a linear layer over activations `x * gain`, shown as a map or as tokens behind
/// one prefix token, all at once or line by line as slices.
pub(super) struct Pooled {
    pub(super) classifier: Tensor,
    pub(super) layout: ActivationLayout,
}

impl Score for Pooled {
    fn score(&self, x: &Tensor, _: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
        let activation = (x * 2.0)?.relu()?;
        let (batch, channels, height, width) = activation.dims4()?;
        let shown = match self.layout {
            ActivationLayout::Tokens => {
                let cells = activation.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
                let prefix = Tensor::ones((batch, 1, channels), x.dtype(), x.device())?;
                Tensor::cat(&[&prefix, &cells], 1)?
            }
            ActivationLayout::SliceTokens => {
                let cells = activation.permute((0, 2, 3, 1))?.contiguous()?;
                let cells = cells.reshape((batch * height, width, channels))?;
                let prefix = Tensor::ones((batch * height, 1, channels), x.dtype(), x.device())?;
                Tensor::cat(&[&prefix, &cells], 1)?
            }
            ActivationLayout::SliceMap => {
                let slices = activation.transpose(1, 2)?.contiguous()?;
                slices.reshape((batch * height, channels, 1, width))?
            }
            _ => activation,
        };
        let shown = match probe {
            Some(probe) => probe.activation("layer", shown)?,
            None => shown,
        };
        let pooled = match self.layout {
            ActivationLayout::Tokens => shown.narrow(1, 1, height * width)?.mean(1)?,
            ActivationLayout::SliceTokens => {
                shown.narrow(1, 1, width)?.mean(1)?.reshape((batch, height, channels))?.mean(1)?
            }
            ActivationLayout::SliceMap => shown.mean((2, 3))?.reshape((batch, height, channels))?.mean(1)?,
            _ => shown.mean((2, 3))?,
        };
        pooled.broadcast_mul(&self.classifier)?.sum(1)
    }
}

/// A map of the layer, of 3 x 4 cells.
pub(super) fn cam(layout: ActivationLayout, weights: CamWeights) -> Cam {
    let hook = CamHook { name: "layer".to_owned(), layout };
    let prefix = usize::from(matches!(layout, ActivationLayout::Tokens | ActivationLayout::SliceTokens));
    let sliced = matches!(layout, ActivationLayout::SliceTokens | ActivationLayout::SliceMap);
    Cam { hook, grid: if sliced { vec![3, 1, 4] } else { vec![3, 4] }, prefix, weights, channels: None }
}
