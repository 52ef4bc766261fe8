//! Grey images between the reference's layout and that of the kernels.

use candle_core::{Result, Tensor};

/// `[batch, channels, rows, columns]` to channels last.
pub(super) fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// Channels last to `[batch, channels, rows, columns]`.
pub(super) fn channels_first(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))?.contiguous()
}
