//! Convolution over channels-last images, as products over pixels.
//!
//! A strip of output pixels is a matrix `[pixels, kernel rows * kernel columns * channels]`, which is multiplied by the
//! kernel: read where it lies in the image, or else copied while it is in the cache. Channels last, a row of it is a
//! few runs of the image, a 1 x 1 convolution is a linear layer, and batch norm, pooling and attention pooling see rows
//! of channels.

use std::cell::Cell;
use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::gpu;
use super::panels::{Panels, SMALL_PRODUCT, Start, Windows, multiply, multiply_parallel, sums_in_place};
use super::product::{self, Matrix};
use super::rows::column_sums;
use super::written::written;
use super::{borrow, composed, contiguous, is_half_on_cpu, linear, on_cpu, wide};

/// How a window moves over an image: stride and zero padding, the same in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Pixels between two positions.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
}

impl Window {
    /// Number of positions of a kernel of `kernel` pixels along an axis of `pixels`.
    ///
    /// # Errors
    /// If the kernel is larger than the padded axis.
    pub fn positions(self, pixels: usize, kernel: usize) -> Result<usize> {
        let padded = pixels + 2 * self.padding;
        if kernel == 0 || self.stride == 0 || padded < kernel {
            bail!("a kernel of {kernel} at stride {} does not fit {padded} pixels", self.stride);
        }
        Ok((padded - kernel) / self.stride + 1)
    }
}

/// Convolution of `x` `[batch, rows, columns, in]` with `kernel` `[out, kernel rows, kernel columns, in]`
/// and `bias` `[out]`, giving `[batch, out rows, out columns, out]`. No gradient is computed for
/// arguments that no variable reaches.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(x: &Tensor, kernel: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    let (batch, rows, columns, channels) = x.dims4()?;
    let (out, kernel_rows, kernel_columns, kernel_channels) = kernel.dims4()?;
    if channels != kernel_channels || bias.is_some_and(|bias| bias.dims() != [out]) {
        bail!(
            "a kernel of {:?} with bias {:?} does not fit images of {:?}",
            kernel.dims(),
            bias.map(Tensor::dims),
            x.dims()
        );
    }
    let sizes = Sizes {
        batch,
        rows,
        columns,
        channels,
        kernel: [kernel_rows, kernel_columns],
        window,
        out_rows: window.positions(rows, kernel_rows)?,
        out_columns: window.positions(columns, kernel_columns)?,
        out,
    };
    if sizes.kernel == [1, 1] && window == (Window { stride: 1, padding: 0 }) {
        return linear(x, &kernel.reshape((out, channels))?, bias);
    }
    if is_half_on_cpu(x) {
        return conv2d(&wide(x)?, kernel, bias, window)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        #[cfg(feature = "cuda")]
        if gpu::takes(x) {
            return gpu::conv2d(x, kernel, bias, sizes);
        }
        return composed::conv2d(x, kernel, bias, window);
    }
    let (x, kernel) = (x.contiguous()?, wide(kernel)?.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&kernel, &wide(bias)?.contiguous()?, Convolution { sizes }),
        None => x.apply_op2(&kernel, Convolution { sizes }),
    }
}

#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) channels: usize,
    pub(super) kernel: [usize; 2],
    pub(super) window: Window,
    pub(super) out_rows: usize,
    pub(super) out_columns: usize,
    pub(super) out: usize,
}

/// Values of a strip's matrix, if that makes enough pixels for a product to be worth packing the kernel.
const STRIP_VALUES: usize = 1 << 18;
const STRIP_PIXELS: [usize; 2] = [256, 4096];
/// The same of the pass forward, whose strips lie in the cache of the second level, if a panel is used for two blocks of rows.
const FORWARD_VALUES: usize = 1 << 15;
const FORWARD_PIXELS: [usize; 2] = [288, 4096];

impl Sizes {
    /// Output pixels of one image.
    fn pixels(self) -> usize {
        self.out_rows * self.out_columns
    }

    /// Values of one image.
    fn image(self) -> usize {
        self.rows * self.columns * self.channels
    }

    /// Length of a row of a strip's matrix.
    fn patch(self) -> usize {
        self.kernel[0] * self.kernel[1] * self.channels
    }

    /// Output pixels of a strip: depends on sizes only.
    fn strip(self) -> usize {
        (STRIP_VALUES / self.patch().max(1)).clamp(STRIP_PIXELS[0], STRIP_PIXELS[1])
    }

    /// As [`Self::strip`], of the pass forward, whose bits no strip decides.
    fn forward_strip(self) -> usize {
        (FORWARD_VALUES / self.patch().max(1)).clamp(FORWARD_PIXELS[0], FORWARD_PIXELS[1])
    }

    /// Whether the pass forward reads patches where they lie. Either way gives the same bits. A matrix of patches is for
    /// partial sums that end between, for patches that do not overlap, whose copy is no larger than the image, and for rows of
    /// so few pixels that tiles would be half empty.
    fn is_read_in_place(self) -> bool {
        const FEW: usize = 8;
        self.patch() > 0
            && sums_in_place(self.kernel[1] * self.channels, self.patch())
            && self.window.stride < self.kernel[1]
            && self.out_columns >= FEW
            && self.out > 0
            && self.image() > 0
    }

    /// Output rows of an image that are computed at a time, as [`Self::forward_strip`].
    fn forward_rows(self) -> usize {
        self.forward_strip().div_ceil(self.out_columns).min(self.out_rows)
    }

    /// Calls `work` with what the window sees of output rows of an image from `first` on. Padding is copied around the
    /// rows.
    fn seen<R>(self, image: &[f32], first: usize, rows: usize, work: impl FnOnce(Windows<'_>) -> R) -> R {
        let Window { stride, padding } = self.window;
        let windows = |values, columns: usize| Windows {
            values,
            columns: self.out_columns,
            step: stride * self.channels,
            row_step: stride * columns * self.channels,
            run: self.kernel[1] * self.channels,
            run_step: columns * self.channels,
        };
        let row = self.columns * self.channels;
        if padding == 0 {
            return work(windows(&image[first * stride * row..], self.columns));
        }
        let (columns, side) = (self.columns + 2 * padding, padding * self.channels);
        let padded_rows = (rows - 1) * stride + self.kernel[0];
        let mut kept = PATCHES.take();
        kept.clear();
        kept.reserve(padded_rows * columns * self.channels);
        for padded in first * stride..first * stride + padded_rows {
            match padded.checked_sub(padding).filter(|row| *row < self.rows) {
                Some(place) => {
                    kept.resize(kept.len() + side, 0.0);
                    kept.extend_from_slice(&image[place * row..(place + 1) * row]);
                    kept.resize(kept.len() + side, 0.0);
                }
                None => kept.resize(kept.len() + columns * self.channels, 0.0),
            }
        }
        let result = work(windows(&kept, columns));
        PATCHES.set(kept);
        result
    }

    /// Image, row and column of the output pixels from one on, counted over the batch.
    fn positions(self, first: usize) -> impl Iterator<Item = [usize; 3]> {
        let within = first % self.pixels();
        let mut next = [first / self.pixels(), within / self.out_columns, within % self.out_columns];
        std::iter::from_fn(move || {
            let position = next;
            next[2] += 1;
            if next[2] == self.out_columns {
                next = [next[0], next[1] + 1, 0];
            }
            if next[1] == self.out_rows {
                next = [next[0] + 1, 0, 0];
            }
            Some(position)
        })
    }

    /// Calls `visit(place in the patch, place in the images, length)` for the runs of values that an output pixel
    /// sees, given by image, row and column; what it does not call for is padding.
    #[inline(always)]
    fn runs(self, [image, out_row, out_column]: [usize; 3], mut visit: impl FnMut(usize, usize, usize)) {
        let [kernel_rows, kernel_columns] = self.kernel;
        let Window { stride, padding } = self.window;
        // The columns of the kernel that lie on the image: `first..last`.
        let left = out_column * stride;
        let first = padding.saturating_sub(left).min(kernel_columns);
        let last = (self.columns + padding).saturating_sub(left).clamp(first, kernel_columns);
        for kernel_row in 0..kernel_rows {
            let row = out_row * stride + kernel_row;
            if row < padding || row >= self.rows + padding || first == last {
                continue;
            }
            let source = (image * self.rows + row - padding) * self.columns + left + first - padding;
            visit(
                (kernel_row * kernel_columns + first) * self.channels,
                source * self.channels,
                (last - first) * self.channels,
            );
        }
    }

    /// Writes the patches of output pixels from `first` on as the rows of `patches`.
    fn gather(self, x: &[f32], first: usize, patches: &mut [f32]) {
        for (patch, position) in patches.chunks_exact_mut(self.patch()).zip(self.positions(first)) {
            if self.window.padding > 0 {
                patch.fill(0.0);
            }
            self.runs(position, |to, from, length| {
                copy_short(&x[from..from + length], &mut patch[to..to + length]);
            });
        }
    }

    /// Adds the rows of `patches`, those of output pixels from `first` on, to the images `dx`.
    fn scatter(self, patches: &[f32], first: usize, dx: &mut [f32]) {
        for (patch, position) in patches.chunks_exact(self.patch()).zip(self.positions(first)) {
            self.runs(position, |from, to, length| {
                let sums = dx[to..to + length].iter_mut();
                sums.zip(&patch[from..from + length]).for_each(|(sum, value)| *sum += value);
            });
        }
    }
}

/// Copies a few values: of images with few channels most runs are shorter than a call takes.
#[inline(always)]
fn copy_short(from: &[f32], to: &mut [f32]) {
    const LONG: usize = 64;
    if from.len() >= LONG {
        return to.copy_from_slice(from);
    }
    let ((eights, from), (to_eights, to)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (to, from) in to_eights.iter_mut().zip(eights) {
        *to = *from;
    }
    let ((fours, from), (to_fours, to)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    for (to, from) in to_fours.iter_mut().zip(fours) {
        *to = *from;
    }
    // Three at most: not a loop that becomes a call.
    if let ([a, rest @ ..], [to, to_rest @ ..]) = (from, to) {
        *to = *a;
        if let ([b, rest @ ..], [to, to_rest @ ..]) = (rest, to_rest) {
            *to = *b;
            if let ([c], [to]) = (rest, to_rest) {
                *to = *c;
            }
        }
    }
}

thread_local! {
    /// The patches of a strip, kept for the next one. They are taken out while they are used, so that nothing is borrowed.
    static PATCHES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

pub(super) struct Convolution {
    pub(super) sizes: Sizes,
}

impl Convolution {
    fn forward(&self, x: &[f32], kernel: &[f32], bias: Option<&[f32]>) -> (CpuStorage, Shape) {
        let Sizes { batch, out_rows, out_columns, out, .. } = self.sizes;
        (CpuStorage::F32(self.values(x, kernel, bias)), Shape::from((batch, out_rows, out_columns, out)))
    }

    /// The result, row-major.
    pub(super) fn values(&self, x: &[f32], kernel: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (sizes, patch) = (self.sizes, self.sizes.patch());
        let length = sizes.batch * sizes.pixels() * sizes.out;
        let kernel = Panels::pack(Matrix::new(kernel, sizes.out, patch, patch).transposed(), true);
        let start = bias.map_or(Start::Zero, Start::Row);
        if sizes.is_read_in_place() {
            assert_eq!(x.len(), sizes.batch * sizes.image(), "an image for each result");
            // SAFETY: the strips cover all output rows of all images, and each value of a strip is written.
            return unsafe { written(length, |y| self.in_place(x, &kernel, start, y)) };
        }
        let mut y = vec![0.0; length];
        self.by_patches(x, &kernel, start, &mut y);
        y
    }

    /// [`Self::values`] without a matrix of patches.
    fn in_place(&self, x: &[f32], kernel: &Panels, start: Start<'_>, y: &mut [MaybeUninit<f32>]) {
        let (sizes, rows) = (self.sizes, self.sizes.forward_rows());
        let row = sizes.out_columns * sizes.out;
        let strips: Vec<_> = y
            .chunks_exact_mut(sizes.pixels() * sizes.out)
            .zip(x.chunks_exact(sizes.image()))
            .flat_map(|(y, image)| {
                y.chunks_mut(rows * row).enumerate().map(move |(strip, y)| (image, strip * rows, y))
            })
            .collect();
        let few = sizes.batch * sizes.pixels() * sizes.patch() * sizes.out < SMALL_PRODUCT;
        let work = |(image, first, y): (&[f32], usize, &mut [MaybeUninit<f32>])| {
            sizes.seen(image, first, y.len() / row, |windows| windows.multiply(kernel, start, y));
        };
        match few {
            true => strips.into_iter().for_each(work),
            false => strips.into_par_iter().for_each(work),
        }
    }

    /// [`Self::values`] by products over strips of patches.
    fn by_patches(&self, x: &[f32], kernel: &Panels, start: Start<'_>, y: &mut [f32]) {
        let sizes = self.sizes;
        let (out, patch, strip) = (sizes.out, sizes.patch(), sizes.forward_strip());
        let pixels = sizes.batch * sizes.pixels();
        // Few strips: the threads share each product instead. The bits are the same.
        let few = pixels.div_ceil(strip) < rayon::current_num_threads();
        let work = |(index, y): (usize, &mut [f32])| {
            let rows = y.len() / out;
            let mut kept = PATCHES.take();
            kept.resize(kept.len().max(rows * patch), 0.0);
            let patches = &mut kept[..rows * patch];
            sizes.gather(x, index * strip, patches);
            let multiply = if few { multiply_parallel } else { multiply };
            multiply(Matrix::new(patches, rows, patch, patch), kernel, 1.0, start, y, out);
            PATCHES.set(kept);
        };
        if out > 0 && few {
            y.chunks_mut(strip * out).enumerate().for_each(work);
        } else if out > 0 {
            y.par_chunks_mut(strip * out).enumerate().for_each(work);
        }
    }

    /// The gradient of the images: per image, strips of gradient patches are added to where they came
    /// from, in order.
    pub(super) fn image_gradient(&self, kernel: &[f32], dy: &[f32]) -> Vec<f32> {
        let sizes = self.sizes;
        let (out, patch, strip, pixels) = (sizes.out, sizes.patch(), sizes.strip(), sizes.pixels());
        let mut dx = vec![0.0f32; sizes.batch * sizes.image()];
        let kernel = Panels::pack(Matrix::new(kernel, out, patch, patch), true);
        let few = sizes.batch < rayon::current_num_threads();
        let one = Sizes { batch: 1, ..sizes };
        let work = |(dx, dy): (&mut [f32], &[f32])| {
            let mut patches = vec![0.0f32; strip.min(pixels) * patch];
            for (index, dy) in dy.chunks(strip * out).enumerate() {
                let rows = dy.len() / out;
                let patches = &mut patches[..rows * patch];
                let multiply = if few { multiply_parallel } else { multiply };
                multiply(Matrix::new(dy, rows, out, out), &kernel, 1.0, Start::Zero, patches, patch);
                one.scatter(patches, index * strip, dx);
            }
        };
        let image = sizes.image().max(1);
        if few {
            dx.chunks_exact_mut(image).zip(dy.chunks_exact((pixels * out).max(1))).for_each(work);
        } else {
            dx.par_chunks_exact_mut(image).zip(dy.par_chunks_exact((pixels * out).max(1))).for_each(work);
        }
        dx
    }

    /// The gradient of the kernel, strip by strip in order.
    pub(super) fn kernel_gradient(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let sizes = self.sizes;
        let (out, patch, strip) = (sizes.out, sizes.patch(), sizes.strip());
        let mut dkernel = vec![0.0f32; out * patch];
        let mut patches = vec![0.0f32; strip * patch];
        for (index, dy) in dy.chunks((strip * out).max(1)).enumerate() {
            let rows = dy.len() / out;
            let patches = &mut patches[..rows * patch];
            // Pieces of a strip are gathered side by side.
            const PIECE: usize = 64;
            patches.par_chunks_mut(PIECE * patch).enumerate().for_each(|(piece, patches)| {
                sizes.gather(x, index * strip + piece * PIECE, patches);
            });
            let patches = Matrix::new(patches, rows, patch, patch);
            let dy = Matrix::new(dy, rows, out, out).transposed();
            // Transposed on the left, which `gemm` packs best.
            product::product(dy, patches, 1.0, true, &mut dkernel, patch, true);
        }
        dkernel
    }

    fn backward(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dy: &[f32] = &borrow(&grad)?;
        let gradient = |of: &Tensor, values: Vec<f32>| Tensor::from_vec(values, of.shape(), of.device());
        let dx = match x.track_op() {
            true => Some(gradient(x, self.image_gradient(&borrow(kernel)?, dy))?),
            false => None,
        };
        let dkernel = match kernel.track_op() {
            true => Some(gradient(kernel, self.kernel_gradient(&borrow(x)?, dy))?),
            false => None,
        };
        let dbias = match bias {
            Some(bias) if bias.track_op() => Some(gradient(bias, column_sums(dy, self.sizes.out))?),
            _ => None,
        };
        Ok((dx, dkernel, dbias))
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        kernel: &CpuStorage,
        kernel_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(self.forward(contiguous(x, x_layout, "x")?, contiguous(kernel, kernel_layout, "kernel")?, None))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dkernel, _) = self.backward(x, kernel, None, grad)?;
        Ok((dx, dkernel))
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "convolution with bias"
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
        let bias = contiguous(bias, bias_layout, "bias")?;
        let kernel = contiguous(kernel, kernel_layout, "kernel")?;
        Ok(self.forward(contiguous(x, x_layout, "x")?, kernel, Some(bias)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.backward(x, kernel, Some(bias), grad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    fn random(count: usize, key: u64) -> Vec<f32> {
        (1..=count).map(|counter| Key(key).normal(counter as u64) as f32).collect()
    }

    /// By a matrix of patches.
    fn by_patches(convolution: &Convolution, x: &[f32], kernel: &[f32], bias: &[f32]) -> Vec<f32> {
        let (sizes, patch) = (convolution.sizes, convolution.sizes.patch());
        let kernel = Panels::pack(Matrix::new(kernel, sizes.out, patch, patch).transposed(), false);
        let mut y = vec![0.0; sizes.batch * sizes.pixels() * sizes.out];
        convolution.by_patches(x, &kernel, Start::Row(bias), &mut y);
        y
    }

    #[test]
    fn patches_read_in_place_give_the_bits_of_a_matrix_of_patches() {
        let mut read_in_place = 0;
        for draw in 0..120 {
            let pick = |place: u64, choices: usize| {
                1 + (Key(draw).uniform(place) * choices as f64).min(choices as f64 - 1.0) as usize
            };
            // A few with several partial sums.
            let is_deep = draw % 30 == 7;
            let kernel = if is_deep { [3, 3] } else { [pick(1, 5), pick(2, 5)] };
            let window = Window { stride: pick(3, 3), padding: pick(4, 3) - 1 };
            let (rows, columns) = (kernel[0] + pick(5, 20), kernel[1] + pick(6, 30));
            let sizes = Sizes {
                batch: pick(7, 3),
                rows,
                columns,
                channels: if is_deep { 128 * pick(8, 2) } else { pick(8, 9) },
                kernel,
                window,
                out_rows: window.positions(rows, kernel[0]).unwrap(),
                out_columns: window.positions(columns, kernel[1]).unwrap(),
                out: pick(9, 40),
            };
            read_in_place += usize::from(sizes.is_read_in_place());
            let convolution = Convolution { sizes };
            let x = random(sizes.batch * sizes.image(), 1);
            let (kernel, bias) = (random(sizes.out * sizes.patch(), 2), random(sizes.out, 3));
            let wanted = by_patches(&convolution, &x, &kernel, &bias);
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| convolution.values(&x, &kernel, Some(&bias)));
                assert_eq!(found, wanted, "{threads} threads, {draw}");
            }
            // An image alone has the bits that it has among others.
            let alone = Convolution { sizes: Sizes { batch: 1, ..sizes } };
            let last = &x[(sizes.batch - 1) * sizes.image()..];
            let found = alone.values(last, &kernel, Some(&bias));
            assert_eq!(found, wanted[(sizes.batch - 1) * sizes.pixels() * sizes.out..], "{draw}");
        }
        assert!(read_in_place > 30, "only {read_in_place} were read in place");
    }
}
