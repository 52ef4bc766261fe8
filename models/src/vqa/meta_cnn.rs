//! The small convolutional network of MEVF whose weights come from meta-learning.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::Mode;
use super::images::channels_last;
use crate::Activation;
use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::layers::BatchNorm;
use crate::ops::{Window, activate, conv2d};
use crate::weights::Weights;

/// The sizes of the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetaCnnConfig {
    /// Channels of every block, and values of the feature.
    pub filters: usize,
    /// Blocks, each of which halves the size.
    pub blocks: usize,
    /// Rows and columns of an image.
    pub image: usize,
}

impl Default for MetaCnnConfig {
    fn default() -> Self {
        Self { filters: 64, blocks: 4, image: 84 }
    }
}

pub(super) const KERNEL: usize = 3;
pub(super) const HALVE: Window = Window { stride: 2, padding: 1 };
/// What a batch counts in the running statistics.
const MOMENTUM: f64 = 0.05;

/// Blocks of a convolution, a rectifier and, behind it, a batch norm; then the mean over the map.
#[derive(Clone, Debug)]
pub struct MetaCnn {
    blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
struct Block {
    /// `[out, in, rows, columns]`.
    weight: Tensor,
    bias: Tensor,
    norm: BatchNorm,
}

impl MetaCnn {
    /// Takes `{name}.conv1`, `{name}.conv1_bn` and so on.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        config: &MetaCnnConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let filters = config.filters;
        let blocks = (1..=config.blocks)
            .map(|block| {
                let channels = if block == 1 { 1 } else { filters };
                let start = Start::of_inputs(channels * KERNEL * KERNEL);
                let name = format!("{name}.conv{block}");
                let shape = [filters, channels, KERNEL, KERNEL];
                Ok(Block {
                    weight: weights.begin(&format!("{name}.weight"), &shape, start)?,
                    bias: weights.begin(&format!("{name}.bias"), &[filters], start)?,
                    norm: BatchNorm::load(weights, &format!("{name}_bn"), filters, MOMENTUM)?,
                })
            })
            .collect::<std::result::Result<_, CheckpointError>>()?;
        Ok(Self { blocks })
    }

    /// Grey images in 0..1 `[batch, 1, rows, columns]` to features `[batch, filters]`.
    ///
    /// # Errors
    /// If the images are no grey ones.
    pub fn forward(&self, images: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        match self.maps(images, mode)?.last() {
            Some(map) => spatial_mean(map),
            None => candle_core::bail!("the network has no blocks"),
        }
    }

    /// What each block makes of the images, `[batch, rows, columns, filters]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn maps(&self, images: &Tensor, mode: Mode<'_>) -> Result<Vec<Tensor>> {
        let mut x = channels_last(images)?;
        let mut maps = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let convolved = conv2d(&x, &channels_last(&block.weight)?, Some(&block.bias), HALVE)?;
            x = block.norm.forward(&activate(&convolved, Activation::Relu)?, mode.is_training())?;
            maps.push(x.clone());
        }
        Ok(maps)
    }
}

/// The mean over rows and columns of `[batch, rows, columns, channels]`.
pub(super) fn spatial_mean(map: &Tensor) -> Result<Tensor> {
    let (batch, rows, columns, channels) = map.dims4()?;
    map.reshape((batch, rows * columns, channels))?.mean(1)
}
