//! Where the cells of a grid stand among a layer's values.

use candle_core::{Result as TensorResult, Tensor};
use pipe_models::model::ActivationLayout;

use super::Cam;

impl Cam {
    /// Steps of the grid, and cells of one.
    fn steps(&self) -> (usize, usize) {
        let steps = self.grid.first().copied().unwrap_or(1);
        (steps, self.cells() / steps)
    }

    /// A hook's values as `[batch, channels, cells]`.
    pub(super) fn laid_out(&self, value: &Tensor) -> TensorResult<Tensor> {
        match self.hook.layout {
            ActivationLayout::Tokens => {
                value.narrow(1, self.prefix, self.cells())?.transpose(1, 2)?.contiguous()
            }
            ActivationLayout::Map => value.flatten_from(2),
            ActivationLayout::SliceTokens => {
                let (rows, tokens, width) = value.dims3()?;
                let (steps, plane) = self.steps();
                value
                    .reshape((rows / steps, steps, tokens, width))?
                    .narrow(2, self.prefix, plane)?
                    .permute((0, 3, 1, 2))?
                    .contiguous()?
                    .flatten_from(2)
            }
            ActivationLayout::SliceMap => {
                let (rows, channels, _, _) = value.dims4()?;
                let (steps, plane) = self.steps();
                value
                    .reshape((rows / steps, steps, channels, plane))?
                    .transpose(1, 2)?
                    .contiguous()?
                    .flatten_from(2)
            }
            // `[batch * cells of a step, steps, width]`
            ActivationLayout::Sequences => {
                let (sequences, steps, width) = value.dims3()?;
                let plane = self.cells() / steps;
                value
                    .reshape((sequences / plane, plane, steps, width))?
                    .permute((0, 3, 2, 1))?
                    .contiguous()?
                    .flatten_from(2)
            }
        }
    }

    /// `[batch, channels, cells]` as a hook's values lie, `ones` at tokens before the first cell.
    pub(super) fn laid_back(&self, value: &Tensor, like: &Tensor) -> TensorResult<Tensor> {
        let (batch, channels, _) = value.dims3()?;
        match self.hook.layout {
            ActivationLayout::Tokens => {
                let cells = value.transpose(1, 2)?;
                let prefix = like.narrow(1, 0, self.prefix)?;
                if self.prefix == 0 { cells.contiguous() } else { Tensor::cat(&[&prefix, &cells], 1) }
            }
            ActivationLayout::Map => value.reshape(like.shape()),
            ActivationLayout::SliceTokens => {
                let (steps, plane) = self.steps();
                let cells = value.reshape((batch, channels, steps, plane))?.permute((0, 2, 3, 1))?;
                let cells = cells.contiguous()?.reshape((batch * steps, plane, channels))?;
                if self.prefix == 0 {
                    return Ok(cells);
                }
                Tensor::cat(&[&like.narrow(1, 0, self.prefix)?, &cells], 1)
            }
            ActivationLayout::SliceMap => {
                let (steps, plane) = self.steps();
                let cells = value.reshape((batch, channels, steps, plane))?.transpose(1, 2)?;
                cells.contiguous()?.reshape(like.shape())
            }
            ActivationLayout::Sequences => {
                let steps = like.dims()[1];
                value
                    .reshape((batch, channels, steps, self.cells() / steps))?
                    .permute((0, 3, 2, 1))?
                    .contiguous()?
                    .reshape(like.shape())
            }
        }
    }
}
