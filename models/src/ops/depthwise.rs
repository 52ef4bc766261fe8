//! Depthwise convolution over channels-last volumes.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elementwise::vectorised;
use super::rows::column_sums;
use super::{borrow, composed, contiguous, is_half_on_cpu, on_cpu, wide};

/// Zeros before and behind each axis of a volume: steps, rows, columns.
pub type Padding3 = [[usize; 2]; 3];

/// Convolution of each channel with a kernel of its own at stride 1: `x` `[batch, steps, rows, columns,
/// channels]`, `kernel` `[channels, 1, kernel steps, kernel rows, kernel columns]` as PyTorch stores it,
/// `bias` `[channels]`. No gradient is computed for arguments that no variable reaches.
///
/// # Errors
/// If the shapes do not fit.
pub fn depthwise_conv3d(x: &Tensor, kernel: &Tensor, bias: &Tensor, padding: Padding3) -> Result<Tensor> {
    let (batch, steps, rows, columns, channels) = x.dims5()?;
    let (kernel_channels, one, kernel_steps, kernel_rows, kernel_columns) = kernel.dims5()?;
    if kernel_channels != channels || one != 1 || bias.dims() != [channels] {
        bail!(
            "a depthwise kernel of {:?} with bias {:?} does not fit {:?}",
            kernel.dims(),
            bias.dims(),
            x.dims()
        );
    }
    let size = [steps, rows, columns];
    let kernel_size = [kernel_steps, kernel_rows, kernel_columns];
    let mut out = [0; 3];
    for axis in 0..3 {
        let padded = size[axis] + padding[axis][0] + padding[axis][1];
        if kernel_size[axis] == 0 || padded < kernel_size[axis] {
            bail!("a kernel of {kernel_size:?} does not fit a volume of {size:?} padded by {padding:?}");
        }
        out[axis] = padded - kernel_size[axis] + 1;
    }
    if is_half_on_cpu(x) {
        return depthwise_conv3d(&wide(x)?, &wide(kernel)?, &wide(bias)?, padding)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::depthwise_conv3d(x, kernel, bias, padding);
    }
    let front = padding.map(|[front, _]| front);
    let op = Depthwise { batch, size, kernel: kernel_size, front, out, channels };
    x.contiguous()?.apply_op3(&kernel.contiguous()?, &bias.contiguous()?, op)
}

struct Depthwise {
    batch: usize,
    size: [usize; 3],
    kernel: [usize; 3],
    front: [usize; 3],
    out: [usize; 3],
    channels: usize,
}

/// The taps of one axis that reach from a place to another axis: `(tap, place there)`.
fn taps(place: usize, kernel: usize, reach: impl Fn(usize, usize) -> Option<usize>) -> Vec<(usize, usize)> {
    (0..kernel).filter_map(|tap| Some((tap, reach(place, tap)?))).collect()
}

impl Depthwise {
    /// From `[channels, taps]` to `[taps, channels]`.
    fn by_tap(&self, kernel: &[f32]) -> Vec<f32> {
        let taps = kernel.len() / self.channels.max(1);
        let mut by_tap = vec![0.0; kernel.len()];
        for (channel, values) in kernel.chunks_exact(taps.max(1)).enumerate() {
            for (tap, value) in values.iter().enumerate() {
                by_tap[tap * self.channels + channel] = *value;
            }
        }
        by_tap
    }

    /// The input place that output place `out` sees through `tap`.
    fn source(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        (out + tap).checked_sub(self.front[axis]).filter(|place| *place < self.size[axis])
    }

    /// The output place that sees input place `place` through `tap`.
    fn target(&self, axis: usize, place: usize, tap: usize) -> Option<usize> {
        (place + self.front[axis]).checked_sub(tap).filter(|out| *out < self.out[axis])
    }

    /// For each row of columns of a volume of size `to`, adds `from` times the kernel through the taps
    /// that `reach` gives.
    fn accumulate(
        &self,
        from: &[f32],
        from_size: [usize; 3],
        to: &mut [f32],
        to_size: [usize; 3],
        by_tap: &[f32],
        reach: impl Fn(usize, usize, usize) -> Option<usize> + Sync,
    ) {
        let channels = self.channels;
        let [_, kernel_rows, kernel_columns] = self.kernel;
        to.par_chunks_exact_mut((to_size[2] * channels).max(1)).enumerate().for_each(|(index, line)| {
            let (row, rest) = (index % to_size[1], index / to_size[1]);
            let (step, sample) = (rest % to_size[0], rest / to_size[0]);
            let steps = taps(step, self.kernel[0], |place, tap| reach(0, place, tap));
            let rows = taps(row, kernel_rows, |place, tap| reach(1, place, tap));
            for (column, sum) in line.chunks_exact_mut(channels).enumerate() {
                let columns = taps(column, kernel_columns, |place, tap| reach(2, place, tap));
                vectorised(|| {
                    for (step_tap, step) in &steps {
                        for (row_tap, row) in &rows {
                            for (column_tap, column) in &columns {
                                let place = ((sample * from_size[0] + step) * from_size[1] + row)
                                    * from_size[2]
                                    + column;
                                let tap = (step_tap * kernel_rows + row_tap) * kernel_columns + column_tap;
                                let x = &from[place * channels..(place + 1) * channels];
                                let k = &by_tap[tap * channels..(tap + 1) * channels];
                                for ((sum, x), k) in sum.iter_mut().zip(x).zip(k) {
                                    *sum = x.mul_add(*k, *sum);
                                }
                            }
                        }
                    }
                });
            }
        });
    }

    /// The gradient of the kernel, `[channels, taps]`: a task per tap, each over all places in order.
    fn kernel_gradient(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let channels = self.channels;
        let [kernel_steps, kernel_rows, kernel_columns] = self.kernel;
        let [out_steps, out_rows, out_columns] = self.out;
        let [steps, rows, columns] = self.size;
        let by_tap: Vec<Vec<f32>> = (0..kernel_steps * kernel_rows * kernel_columns)
            .into_par_iter()
            .map(|tap| {
                let (column_tap, rest) = (tap % kernel_columns, tap / kernel_columns);
                let (row_tap, step_tap) = (rest % kernel_rows, rest / kernel_rows);
                let mut sum = vec![0.0f32; channels];
                for line in 0..self.batch * out_steps * out_rows {
                    let (row, rest) = (line % out_rows, line / out_rows);
                    let (step, sample) = (rest % out_steps, rest / out_steps);
                    let Some(step) = self.source(0, step, step_tap) else { continue };
                    let Some(row) = self.source(1, row, row_tap) else { continue };
                    vectorised(|| {
                        for out_column in 0..out_columns {
                            let Some(column) = self.source(2, out_column, column_tap) else { continue };
                            let place = ((sample * steps + step) * rows + row) * columns + column;
                            let x = &x[place * channels..(place + 1) * channels];
                            let out = line * out_columns + out_column;
                            let dy = &dy[out * channels..(out + 1) * channels];
                            for ((sum, x), dy) in sum.iter_mut().zip(x).zip(dy) {
                                *sum = x.mul_add(*dy, *sum);
                            }
                        }
                    });
                }
                sum
            })
            .collect();
        (0..channels).flat_map(|channel| by_tap.iter().map(move |sum| sum[channel])).collect()
    }
}

impl CustomOp3 for Depthwise {
    fn name(&self) -> &'static str {
        "depthwise convolution"
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
        let x = contiguous(x, x_layout, "x")?;
        let by_tap = self.by_tap(contiguous(kernel, kernel_layout, "kernel")?);
        let bias = contiguous(bias, bias_layout, "bias")?;
        let mut y = bias.repeat(self.batch * self.out.iter().product::<usize>());
        self.accumulate(x, self.size, &mut y, self.out, &by_tap, |axis, out, tap| {
            self.source(axis, out, tap)
        });
        let [steps, rows, columns] = self.out;
        Ok((CpuStorage::F32(y), Shape::from((self.batch, steps, rows, columns, self.channels))))
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
        let dx = if x.track_op() {
            let by_tap = self.by_tap(&borrow(kernel)?);
            let mut dx = vec![0.0f32; x.elem_count()];
            let reach = |axis, place, tap| self.target(axis, place, tap);
            self.accumulate(dy, self.out, &mut dx, self.size, &by_tap, reach);
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        } else {
            None
        };
        let dkernel = if kernel.track_op() {
            let dkernel = self.kernel_gradient(&borrow(x)?, dy);
            Some(Tensor::from_vec(dkernel, kernel.shape(), kernel.device())?)
        } else {
            None
        };
        let dbias = if bias.track_op() {
            Some(Tensor::from_vec(column_sums(dy, self.channels), bias.shape(), bias.device())?)
        } else {
            None
        };
        Ok((dx, dkernel, dbias))
    }
}
