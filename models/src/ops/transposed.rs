//! Transposed convolution over channels-last images: the gradient of a convolution, as a layer.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use rayon::prelude::*;

use super::convolution::{Convolution, Sizes};
use super::rows::column_sums;
use super::{Window, borrow, composed, contiguous, is_half_on_cpu, on_cpu, wide};

/// The transposed convolution of `x` `[batch, rows, columns, in]` with `kernel`
/// `[in, kernel rows, kernel columns, out]` and `bias` `[out]`, giving `[batch, out rows, out columns, out]`.
/// `extra` is PyTorch's `output_padding`: rows and columns that are added at the end, fewer than the stride.
/// No gradient is computed for arguments that no variable reaches.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv_transpose2d(
    x: &Tensor,
    kernel: &Tensor,
    bias: &Tensor,
    window: Window,
    extra: usize,
) -> Result<Tensor> {
    let (batch, rows, columns, channels) = x.dims4()?;
    let (kernel_channels, kernel_rows, kernel_columns, out) = kernel.dims4()?;
    let Window { stride, padding } = window;
    let pixels = |pixels: usize, kernel: usize| match pixels {
        0 => 0,
        _ => ((pixels - 1) * stride + kernel + extra).saturating_sub(2 * padding),
    };
    let (out_rows, out_columns) = (pixels(rows, kernel_rows), pixels(columns, kernel_columns));
    let fits = channels == kernel_channels && bias.dims() == [out] && extra < stride.max(1);
    if !fits || out_rows == 0 || out_columns == 0 {
        bail!(
            "a transposed kernel of {:?} with bias {:?} and {extra} extra does not fit images of {:?}",
            kernel.dims(),
            bias.dims(),
            x.dims()
        );
    }
    if is_half_on_cpu(x) {
        return conv_transpose2d(&wide(x)?, kernel, bias, window, extra)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        let kernel = kernel.to_dtype(x.dtype())?;
        return composed::conv_transpose2d(x, &kernel, bias, window, [out_rows, out_columns]);
    }
    // The convolution that this is the gradient of goes from the result to the argument.
    let sizes = Sizes {
        batch,
        rows: out_rows,
        columns: out_columns,
        channels: out,
        kernel: [kernel_rows, kernel_columns],
        window,
        out_rows: rows,
        out_columns: columns,
        out: channels,
    };
    let op = Transposed { convolution: Convolution { sizes } };
    x.contiguous()?.apply_op3(&wide(kernel)?.contiguous()?, &wide(bias)?.contiguous()?, op)
}

/// Pixels of a part that one thread takes.
const ROWS: usize = 512;

struct Transposed {
    convolution: Convolution,
}

impl CustomOp3 for Transposed {
    fn name(&self) -> &'static str {
        "transposed convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        kernel: &CpuStorage,
        kernel_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let kernel = contiguous(kernel, kernel_layout, "kernel")?;
        let bias = contiguous(bias, bias_layout, "bias")?;
        let mut y = self.convolution.image_gradient(kernel, contiguous(x, x_layout, "x")?);
        let width = bias.len().max(1);
        y.par_chunks_mut(ROWS * width).for_each(|rows| {
            for pixel in rows.chunks_exact_mut(width) {
                pixel.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        });
        let Sizes { batch, rows, columns, channels, .. } = self.convolution.sizes;
        Ok((CpuStorage::F32(y), Shape::from((batch, rows, columns, channels))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dy: &[f32] = &borrow(&grad)?;
        let gradient = |of: &Tensor, values: Vec<f32>| Tensor::from_vec(values, of.shape(), of.device());
        let dx = match x.track_op() {
            true => Some(gradient(x, self.convolution.values(dy, &borrow(kernel)?, None))?),
            false => None,
        };
        let dkernel = match kernel.track_op() {
            true => Some(gradient(kernel, self.convolution.kernel_gradient(dy, &borrow(x)?))?),
            false => None,
        };
        let dbias = match bias.track_op() {
            true => Some(gradient(bias, column_sums(dy, self.convolution.sizes.channels))?),
            false => None,
        };
        Ok((dx, dkernel, dbias))
    }
}
