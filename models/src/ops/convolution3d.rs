//! Convolution over channels-last volumes, as one over images whose pixels hold several steps.
//!
//! The steps that a kernel sees at once become channels of one image, and its own steps channels of a flat kernel:
//! the rest is [`conv2d`].

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{Window, borrow, composed, contiguous, conv2d, on_cpu};

/// Convolution of `x` `[batch, steps, rows, columns, in]` with `kernel` `[out, kernel steps, kernel rows, kernel
/// columns, in]`, giving `[batch, out steps, out rows, out columns, out]`. Stride and padding are the same along
/// the three axes. No gradient is computed for arguments that no variable reaches.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv3d(x: &Tensor, kernel: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    let (batch, _, _, _, channels) = x.dims5()?;
    let (out, steps, rows, columns, kernel_channels) = kernel.dims5()?;
    if channels != kernel_channels {
        bail!("a kernel of {:?} does not fit volumes of {:?}", kernel.dims(), x.dims());
    }
    let kernel = kernel.permute((0, 2, 3, 1, 4))?.contiguous()?;
    let kernel = kernel.reshape((out, rows, columns, steps * channels))?;
    let y = conv2d(&stack_steps(x, steps, window)?, &kernel, bias, window)?;
    let (images, out_rows, out_columns, out) = y.dims4()?;
    y.reshape((batch, images / batch.max(1), out_rows, out_columns, out))
}

/// The `kernel` steps that each position of a window along the steps sees, as channels of one image: `x` `[batch,
/// steps, rows, columns, channels]` to `[batch * positions, rows, columns, kernel * channels]`, the first step's
/// channels first. Padding is zero.
///
/// # Errors
/// If the window does not fit.
pub fn stack_steps(x: &Tensor, kernel: usize, window: Window) -> Result<Tensor> {
    let (batch, steps, rows, columns, channels) = x.dims5()?;
    let positions = window.positions(steps, kernel)?;
    if kernel == 1 && window == (Window { stride: 1, padding: 0 }) {
        return x.flatten(0, 1);
    }
    if !on_cpu(x) {
        return composed::stack_steps(x, kernel, window);
    }
    let plane = rows * columns;
    x.contiguous()?.apply_op1(Stack { batch, steps, plane, channels, kernel, window, positions })?.reshape((
        batch * positions,
        rows,
        columns,
        kernel * channels,
    ))
}

struct Stack {
    batch: usize,
    steps: usize,
    /// Pixels of a step.
    plane: usize,
    channels: usize,
    kernel: usize,
    window: Window,
    positions: usize,
}

impl Stack {
    /// The step that `position` sees through `tap` of the kernel, if it is no padding.
    fn source(&self, position: usize, tap: usize) -> Option<usize> {
        let place = position * self.window.stride + tap;
        place.checked_sub(self.window.padding).filter(|step| *step < self.steps)
    }

    /// The position that sees `step` through `tap`, if there is one.
    fn target(&self, step: usize, tap: usize) -> Option<usize> {
        let place = (step + self.window.padding).checked_sub(tap)?;
        let position = place / self.window.stride;
        (place % self.window.stride == 0 && position < self.positions).then_some(position)
    }

    /// Values of a step, and of a position.
    fn widths(&self) -> (usize, usize) {
        (self.plane * self.channels, self.plane * self.channels * self.kernel)
    }
}

impl CustomOp1 for Stack {
    fn name(&self) -> &'static str {
        "steps as channels"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        let (step_width, width) = self.widths();
        let (channels, row) = (self.channels, self.channels * self.kernel);
        let images = self.batch * self.positions;
        let mut y = vec![0.0f32; images * width];
        y.par_chunks_exact_mut(width.max(1)).enumerate().for_each(|(image, y)| {
            let (sample, position) = (image / self.positions, image % self.positions);
            for tap in 0..self.kernel {
                let Some(step) = self.source(position, tap) else { continue };
                let x = &x[(sample * self.steps + step) * step_width..][..step_width];
                for (y, x) in y.chunks_exact_mut(row).zip(x.chunks_exact(channels)) {
                    y[tap * channels..(tap + 1) * channels].copy_from_slice(x);
                }
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((images, self.plane, row))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dy: &[f32] = &borrow(&grad)?;
        let (step_width, width) = self.widths();
        let (channels, row) = (self.channels, self.channels * self.kernel);
        let mut dx = vec![0.0f32; x.elem_count()];
        dx.par_chunks_exact_mut(step_width.max(1)).enumerate().for_each(|(place, dx)| {
            let (sample, step) = (place / self.steps, place % self.steps);
            for tap in 0..self.kernel {
                let Some(position) = self.target(step, tap) else { continue };
                let dy = &dy[(sample * self.positions + position) * width..][..width];
                for (dx, dy) in dx.chunks_exact_mut(channels).zip(dy.chunks_exact(row)) {
                    let seen = &dy[tap * channels..(tap + 1) * channels];
                    dx.iter_mut().zip(seen).for_each(|(sum, value)| *sum += value);
                }
            }
        });
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
