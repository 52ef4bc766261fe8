//! Pooling over channels-last images.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::elementwise::vectorised;
use super::{Window, borrow, composed, contiguous, is_half, on_cpu, wide};

/// The means of squares of `side` pixels that do not overlap: `[batch, rows, columns, channels]` to
/// `[batch, rows / side, columns / side, channels]`. Pixels that fill no square are left out.
///
/// # Errors
/// If the image is smaller than a square.
pub fn average_pool2d(x: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, rows, columns, channels) = x.dims4()?;
    if side == 0 || rows < side || columns < side {
        bail!("squares of {side} do not fit images of {:?}", x.dims());
    }
    if side == 1 {
        return Ok(x.clone());
    }
    if is_half(x) {
        return average_pool2d(&wide(x)?, side)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::average_pool2d(x, side);
    }
    x.contiguous()?.apply_op1(Average { batch, rows, columns, channels, side })
}

struct Average {
    batch: usize,
    rows: usize,
    columns: usize,
    channels: usize,
    side: usize,
}

impl Average {
    fn out(&self) -> [usize; 2] {
        [self.rows / self.side, self.columns / self.side]
    }

    /// Calls `visit(output pixel, input pixel)` for all pairs of one image, in order of the output.
    fn pairs(&self, mut visit: impl FnMut(usize, usize)) {
        let [out_rows, out_columns] = self.out();
        for row in 0..out_rows * self.side {
            for column in 0..out_columns * self.side {
                let out = row / self.side * out_columns + column / self.side;
                visit(out, row * self.columns + column);
            }
        }
    }
}

impl CustomOp1 for Average {
    fn name(&self) -> &'static str {
        "average pooling"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        let [out_rows, out_columns] = self.out();
        let channels = self.channels;
        let mut y = vec![0.0f32; self.batch * out_rows * out_columns * channels];
        let factor = 1.0 / (self.side * self.side) as f32;
        x.par_chunks_exact((self.rows * self.columns * channels).max(1))
            .zip(y.par_chunks_exact_mut((out_rows * out_columns * channels).max(1)))
            .for_each(|(x, y)| {
                vectorised(|| {
                    self.pairs(|out, pixel| {
                        let sums = y[out * channels..(out + 1) * channels].iter_mut();
                        let x = &x[pixel * channels..(pixel + 1) * channels];
                        sums.zip(x).for_each(|(sum, value)| *sum += value);
                    });
                    y.iter_mut().for_each(|value| *value *= factor);
                });
            });
        Ok((CpuStorage::F32(y), Shape::from((self.batch, out_rows, out_columns, channels))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dy: &[f32] = &borrow(&grad)?;
        let [out_rows, out_columns] = self.out();
        let channels = self.channels;
        let mut dx = vec![0.0f32; x.elem_count()];
        let factor = 1.0 / (self.side * self.side) as f32;
        dx.par_chunks_exact_mut((self.rows * self.columns * channels).max(1))
            .zip(dy.par_chunks_exact((out_rows * out_columns * channels).max(1)))
            .for_each(|(dx, dy)| {
                vectorised(|| {
                    self.pairs(|out, pixel| {
                        let dx = dx[pixel * channels..(pixel + 1) * channels].iter_mut();
                        let dy = &dy[out * channels..(out + 1) * channels];
                        dx.zip(dy).for_each(|(dx, dy)| *dx = dy * factor);
                    });
                });
            });
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

/// The greatest values of windows of `side` pixels: `[batch, rows, columns, channels]` to
/// `[batch, out rows, out columns, channels]`. The gradient goes to the first of equal values, as in
/// PyTorch; padding is never the greatest.
///
/// # Errors
/// If the window does not fit, or its padding is more than half of it.
pub fn max_pool2d(x: &Tensor, side: usize, window: Window) -> Result<Tensor> {
    let (batch, rows, columns, channels) = x.dims4()?;
    if 2 * window.padding > side {
        bail!("a padding of {} is more than half of a window of {side}", window.padding);
    }
    let out = [window.positions(rows, side)?, window.positions(columns, side)?];
    if is_half(x) {
        return max_pool2d(&wide(x)?, side, window)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::max_pool2d(x, side, window);
    }
    x.contiguous()?.apply_op1(Greatest { batch, rows, columns, channels, side, window, out })
}

struct Greatest {
    batch: usize,
    rows: usize,
    columns: usize,
    channels: usize,
    side: usize,
    window: Window,
    out: [usize; 2],
}

impl Greatest {
    /// The rows and columns of an image that the window of an output pixel sees.
    #[inline(always)]
    fn seen(&self, row: usize, column: usize) -> [Range<usize>; 2] {
        let Window { stride, padding } = self.window;
        [(row, self.rows), (column, self.columns)].map(|(place, size)| {
            let (first, last) = (place * stride, (place * stride + self.side).min(size + padding));
            first.saturating_sub(padding)..last - padding
        })
    }
}

// Methods of named types, not closures: only a method can be forced into the caller that is compiled for the machine's
// vectors.

/// The greatest values of one image.
struct Values<'a> {
    op: &'a Greatest,
    x: &'a [f32],
    y: &'a mut [f32],
}

/// Like PyTorch, a NaN is the greatest; of equal values the first is.
#[inline(always)]
fn is_greater(x: f32, value: f32) -> bool {
    (x > value) | x.is_nan()
}

impl NullaryFnOnce for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { op, x, y } = self;
        for (place, values) in y.chunks_exact_mut(op.channels).enumerate() {
            values.fill(f32::NEG_INFINITY);
            let [rows, columns] = op.seen(place / op.out[1], place % op.out[1]);
            for pixel in rows.flat_map(|row| columns.clone().map(move |column| row * op.columns + column)) {
                let input = &x[pixel * op.channels..][..op.channels];
                for (value, x) in values.iter_mut().zip(input) {
                    *value = if is_greater(*x, *value) { *x } else { *value };
                }
            }
        }
    }
}

/// Adds the gradients of one image's greatest values to those of where they came from.
struct Back<'a> {
    op: &'a Greatest,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    /// The values of an output pixel, and the input pixels that they come from.
    values: Vec<f32>,
    from: Vec<u32>,
}

impl NullaryFnOnce for Back<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { op, x, dy, dx, mut values, mut from } = self;
        for (place, dy) in dy.chunks_exact(op.channels).enumerate() {
            values.fill(f32::NEG_INFINITY);
            let [rows, columns] = op.seen(place / op.out[1], place % op.out[1]);
            let pixels = rows.flat_map(|row| columns.clone().map(move |column| row * op.columns + column));
            // Where all are the least there is, the first counts.
            from.fill(pixels.clone().next().unwrap_or(0) as u32);
            for pixel in pixels.clone() {
                let input = &x[pixel * op.channels..][..op.channels];
                for ((value, from), x) in values.iter_mut().zip(&mut from).zip(input) {
                    let greater = is_greater(*x, *value);
                    *value = if greater { *x } else { *value };
                    *from = if greater { pixel as u32 } else { *from };
                }
            }
            for pixel in pixels {
                let dx = &mut dx[pixel * op.channels..][..op.channels];
                for ((dx, dy), from) in dx.iter_mut().zip(dy).zip(&from) {
                    *dx = if *from == pixel as u32 { *dx + dy } else { *dx };
                }
            }
        }
    }
}

impl CustomOp1 for Greatest {
    fn name(&self) -> &'static str {
        "max pooling"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        let [out_rows, out_columns] = self.out;
        let channels = self.channels;
        let mut y = vec![0.0f32; self.batch * out_rows * out_columns * channels];
        x.par_chunks_exact((self.rows * self.columns * channels).max(1))
            .zip(y.par_chunks_exact_mut((out_rows * out_columns * channels).max(1)))
            .for_each(|(x, y)| Arch::new().dispatch(Values { op: self, x, y }));
        Ok((CpuStorage::F32(y), Shape::from((self.batch, out_rows, out_columns, channels))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (dy, x_values): (&[f32], &[f32]) = (&borrow(&grad)?, &borrow(x)?);
        let [out_rows, out_columns] = self.out;
        let channels = self.channels;
        let mut dx = vec![0.0f32; x_values.len()];
        let image = (self.rows * self.columns * channels).max(1);
        dx.par_chunks_exact_mut(image)
            .zip(x_values.par_chunks_exact(image))
            .zip(dy.par_chunks_exact((out_rows * out_columns * channels).max(1)))
            .for_each(|((dx, x), dy)| {
                let (values, from) = (vec![0.0; channels], vec![0; channels]);
                Arch::new().dispatch(Back { op: self, x, dy, dx, values, from });
            });
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
