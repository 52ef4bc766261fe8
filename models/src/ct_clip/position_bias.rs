//! Continuous relative position bias (Liu et al. 2022, section 3.3).

use std::sync::OnceLock;

use candle_core::{Device, Result, Tensor};

use crate::Activation;
use crate::checkpoint::CheckpointError;
use crate::layers::Linear;
use crate::ops::activate;
use crate::weights::Weights;

/// A perceptron from the distance of two patches to a number per head.
#[derive(Debug)]
pub(super) struct PositionBias {
    layers: [Linear; 3],
    grid: usize,
    /// The bias, kept if no variable reaches it.
    fixed: OnceLock<Tensor>,
}

impl PositionBias {
    pub(super) fn load(
        weights: &mut Weights,
        prefix: &str,
        width: usize,
        heads: usize,
        grid: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(Self {
            layers: [
                Linear::load(weights, &format!("{prefix}.net.0.0"), width, 2)?,
                Linear::load(weights, &format!("{prefix}.net.1.0"), width, width)?,
                Linear::load(weights, &format!("{prefix}.net.2"), heads, width)?,
            ],
            grid,
            fixed: OnceLock::new(),
        })
    }

    /// The bias of every pair of patches, rows first: `[heads, grid * grid, grid * grid]`.
    pub(super) fn forward(&self) -> Result<Tensor> {
        if let Some(fixed) = self.fixed.get() {
            return Ok(fixed.clone());
        }
        let bias = self.compute()?;
        if !bias.track_op() {
            self.fixed.get_or_init(|| bias.clone());
        }
        Ok(bias)
    }

    /// The perceptron sees each of the (2 grid - 1)^2 distances once, not each of the grid^4 pairs.
    fn compute(&self) -> Result<Tensor> {
        let device = self.layers[0].weight.device();
        let [first, second, last] = &self.layers;
        let hidden = leaky(&first.forward(&distances(self.grid, device)?)?)?;
        let hidden = leaky(&second.forward(&hidden)?)?;
        let by_distance = last.forward(&hidden)?.t()?.contiguous()?;
        let cells = self.grid * self.grid;
        by_distance.index_select(&pairs(self.grid, device)?, 1)?.reshape(((), cells, cells))
    }
}

/// max(x, 0.1 x).
fn leaky(x: &Tensor) -> Result<Tensor> {
    const SLOPE: f64 = 0.1;
    (activate(x, Activation::Relu)? * (1.0 - SLOPE))? + (x * SLOPE)?
}

/// sign(d) ln(|d| + 1) of rows and columns, d from 1 - grid to grid - 1: `[(2 grid - 1)^2, 2]`.
fn distances(grid: usize, device: &Device) -> Result<Tensor> {
    let side = 2 * grid - 1;
    let scaled = |place: usize| {
        let distance = place as f32 - (grid as f32 - 1.0);
        distance.signum() * libm::log1pf(distance.abs())
    };
    let values: Vec<f32> =
        (0..side * side).flat_map(|place| [scaled(place / side), scaled(place % side)]).collect();
    Tensor::from_vec(values, (side * side, 2), device)
}

/// For every ordered pair of patches (i, j) the place of its distance, i - j, in [`distances`].
fn pairs(grid: usize, device: &Device) -> Result<Tensor> {
    let side = 2 * grid - 1;
    let cells = grid * grid;
    let mut places = Vec::with_capacity(cells * cells);
    for i in 0..cells {
        for j in 0..cells {
            let rows = i / grid + grid - 1 - j / grid;
            let columns = i % grid + grid - 1 - j % grid;
            places.push((rows * side + columns) as u32);
        }
    }
    Tensor::from_vec(places, cells * cells, device)
}
