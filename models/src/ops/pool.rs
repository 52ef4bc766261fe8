//! Pooling over channels-last images.

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::written::written;
use super::{Window, borrow, composed, contiguous, is_half, on_cpu, wide};

/// What is computed of the channels of an output pixel, so many from one on at a time that they stay in registers.
trait Piece {
    fn piece<const CHANNELS: usize>(&mut self, first: usize);
}

/// Computes all channels, in pieces as large as there are.
#[inline(always)]
fn in_pieces(channels: usize, of: &mut impl Piece) {
    let mut first = 0;
    while channels - first >= 16 {
        of.piece::<16>(first);
        first += 16;
    }
    let rest = channels - first;
    if rest & 8 != 0 {
        of.piece::<8>(first);
        first += 8;
    }
    if rest & 4 != 0 {
        of.piece::<4>(first);
        first += 4;
    }
    if rest & 2 != 0 {
        of.piece::<2>(first);
        first += 2;
    }
    if rest & 1 != 0 {
        of.piece::<1>(first);
    }
}

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

    /// Values of an image, and of its output.
    fn lengths(&self) -> [usize; 2] {
        let [out_rows, out_columns] = self.out();
        [self.rows * self.columns * self.channels, out_rows * out_columns * self.channels]
    }

    /// Values of a row of the image, and from one square to the next.
    #[inline(always)]
    fn steps(&self) -> [usize; 2] {
        [self.columns * self.channels, self.side * self.channels]
    }

    fn factor(&self) -> f32 {
        1.0 / (self.side * self.side) as f32
    }
}

// Methods of named types, not closures: only a method can be forced into the caller that is compiled for the machine's
// vectors.

/// The means of one image.
struct Means<'a> {
    op: &'a Average,
    x: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

/// The mean of one square, which begins `x`.
struct Mean<'a> {
    op: &'a Average,
    factor: f32,
    x: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

impl NullaryFnOnce for Means<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { op, x, y } = self;
        let ([line, step], factor) = (op.steps(), op.factor());
        let rows = y.chunks_exact_mut(op.out()[1] * op.channels);
        for (y, x) in rows.zip(x.chunks_exact(op.side * line)) {
            for (column, y) in y.chunks_exact_mut(op.channels).enumerate() {
                in_pieces(op.channels, &mut Mean { op, factor, x: &x[column * step..], y });
            }
        }
    }
}

impl Piece for Mean<'_> {
    #[inline(always)]
    fn piece<const CHANNELS: usize>(&mut self, first: usize) {
        let mut sums = [0.0; CHANNELS];
        let ([line, _], side) = (self.op.steps(), self.op.side);
        for row in 0..side {
            for column in 0..side {
                let x = &self.x[row * line + column * self.op.channels + first..][..CHANNELS];
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
            }
        }
        for (y, sum) in self.y[first..][..CHANNELS].iter_mut().zip(sums) {
            y.write(sum * self.factor);
        }
    }
}

/// Gives the pixels of one image their part of the gradients of the means.
struct MeansBack<'a> {
    op: &'a Average,
    dy: &'a [f32],
    dx: &'a mut [f32],
}

/// The same of one square, which begins `dx`.
struct MeanBack<'a> {
    op: &'a Average,
    factor: f32,
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl NullaryFnOnce for MeansBack<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { op, dy, dx } = self;
        let ([line, step], factor) = (op.steps(), op.factor());
        let rows = dy.chunks_exact(op.out()[1] * op.channels);
        for (dy, dx) in rows.zip(dx.chunks_exact_mut(op.side * line)) {
            for (column, dy) in dy.chunks_exact(op.channels).enumerate() {
                in_pieces(op.channels, &mut MeanBack { op, factor, dy, dx: &mut dx[column * step..] });
            }
        }
    }
}

impl Piece for MeanBack<'_> {
    #[inline(always)]
    fn piece<const CHANNELS: usize>(&mut self, first: usize) {
        let dy: [f32; CHANNELS] = std::array::from_fn(|place| self.dy[first + place] * self.factor);
        let ([line, _], side) = (self.op.steps(), self.op.side);
        for row in 0..side {
            for column in 0..side {
                let place = row * line + column * self.op.channels + first;
                self.dx[place..][..CHANNELS].copy_from_slice(&dy);
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
        let ([out_rows, out_columns], [image, out]) = (self.out(), self.lengths());
        // SAFETY: each image has its output, and each square its mean in all channels.
        let y = unsafe {
            written(self.batch * out, |y| {
                y.par_chunks_exact_mut(out.max(1)).enumerate().for_each(|(index, y)| {
                    Arch::new().dispatch(Means { op: self, x: &x[index * image..][..image], y });
                });
            })
        };
        Ok((CpuStorage::F32(y), Shape::from((self.batch, out_rows, out_columns, self.channels))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dy: &[f32] = &borrow(&grad)?;
        let [image, out] = self.lengths();
        let mut dx = vec![0.0f32; x.elem_count()];
        dx.par_chunks_exact_mut(image.max(1))
            .zip(dy.par_chunks_exact(out.max(1)))
            .for_each(|(dx, dy)| Arch::new().dispatch(MeansBack { op: self, dy, dx }));
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

/// The greatest values of one image.
struct Values<'a> {
    op: &'a Greatest,
    x: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

/// The greatest values of one window of an image.
struct Value<'a> {
    channels: usize,
    x: &'a [f32],
    /// The pixels of the window.
    pixels: [Range<usize>; 2],
    columns: usize,
    y: &'a mut [MaybeUninit<f32>],
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
        for (place, y) in y.chunks_exact_mut(op.channels).enumerate() {
            let pixels = op.seen(place / op.out[1], place % op.out[1]);
            let mut value = Value { channels: op.channels, x, pixels, columns: op.columns, y };
            in_pieces(op.channels, &mut value);
        }
    }
}

impl Piece for Value<'_> {
    #[inline(always)]
    fn piece<const CHANNELS: usize>(&mut self, first: usize) {
        let mut values = [f32::NEG_INFINITY; CHANNELS];
        let [rows, columns] = self.pixels.clone();
        for row in rows {
            for column in columns.clone() {
                let x = &self.x[(row * self.columns + column) * self.channels + first..][..CHANNELS];
                for (value, x) in values.iter_mut().zip(x) {
                    *value = if is_greater(*x, *value) { *x } else { *value };
                }
            }
        }
        for (y, value) in self.y[first..][..CHANNELS].iter_mut().zip(values) {
            y.write(value);
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
        let (image, out) = (self.rows * self.columns * channels, out_rows * out_columns * channels);
        // SAFETY: each image has its output, and each window its value in all channels.
        let y = unsafe {
            written(self.batch * out, |y| {
                y.par_chunks_exact_mut(out.max(1)).enumerate().for_each(|(index, y)| {
                    Arch::new().dispatch(Values { op: self, x: &x[index * image..][..image], y });
                });
            })
        };
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
