//! CLIP's attention pooling: the mean of all cells asks, the cells answer.

use candle_core::{Result, Tensor, bail};

use crate::MaybeProbe;
use crate::checkpoint::CheckpointError;
use crate::layers::{Linear, pooling_attention};
use crate::ops::mean_keepdim;
use crate::weights::Weights;

/// One round of attention from the mean token.
#[derive(Debug)]
pub(crate) struct AttentionPool {
    /// `[1 + cells, width]`.
    positions: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
}

impl AttentionPool {
    /// Takes the tensors of `prefix` (`visual.attnpool`).
    pub(crate) fn load(
        weights: &mut Weights,
        prefix: &str,
        cells: usize,
        width: usize,
        out: usize,
        heads: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let positions = weights.take(&format!("{prefix}.positional_embedding"), &[cells + 1, width])?;
        let mut layer =
            |name: &str, out: usize| Linear::load(weights, &format!("{prefix}.{name}_proj"), out, width);
        Ok(Self {
            positions,
            query: layer("q", width)?,
            key: layer("k", width)?,
            value: layer("v", width)?,
            out: layer("c", out)?,
            heads,
        })
    }

    /// The width of the result.
    pub(crate) fn width(&self) -> usize {
        self.out.weight.dims()[0]
    }

    /// `[batch, rows, columns, width]` to `[batch, out]`.
    pub(crate) fn forward(&self, map: &Tensor, name: &str, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let (batch, rows, columns, width) = map.dims4()?;
        if 1 + rows * columns != self.positions.dim(0)? {
            bail!("{rows} x {columns} cells do not fit {} positions", self.positions.dim(0)?);
        }
        let cells = map.reshape((batch, rows * columns, width))?;
        let tokens = Tensor::cat(&[&mean_keepdim(&cells, 1)?, &cells], 1)?;
        let tokens = tokens.broadcast_add(&self.positions.to_dtype(tokens.dtype())?)?;
        let query = self.query.forward(&tokens.narrow(1, 0, 1)?)?;
        let (keys, values) = (self.key.forward(&tokens)?, self.value.forward(&tokens)?);
        let pooled = pooling_attention(&query, &keys, &values, self.heads, name, probe)?;
        self.out.forward(&pooled.squeeze(1)?)
    }
}
