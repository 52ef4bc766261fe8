//! Convolution over channels-last images: what each place of the kernel sees, times the kernel.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{Argument, Element, by_element, count, elements, elsewhere, launch, linear, room, warps};
use crate::ops::convolution::Sizes;

/// As [`crate::ops::conv2d()`].
pub(in crate::ops) fn conv2d(
    x: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    sizes: Sizes,
) -> Result<Tensor> {
    let [kernel_rows, kernel_columns] = sizes.kernel;
    let seen = x.contiguous()?.apply_op1(Unfold(sizes))?;
    let kernel = kernel.reshape((sizes.out, kernel_rows * kernel_columns * sizes.channels))?;
    linear(&seen, &kernel, bias)?.reshape((sizes.batch, sizes.out_rows, sizes.out_columns, sizes.out))
}

/// What each place of the kernel sees, as a matrix
/// `[batch * out rows * out columns, kernel rows * kernel columns * channels]`.
struct Unfold(Sizes);

/// The gradient of [`Unfold`].
struct Fold(Sizes);

/// The numbers of the kernels' `Window`.
fn window(sizes: &Sizes) -> Result<[u32; 9]> {
    let numbers = [
        sizes.rows,
        sizes.columns,
        sizes.channels,
        sizes.kernel[0],
        sizes.kernel[1],
        sizes.window.stride,
        sizes.window.padding,
        sizes.out_rows,
        sizes.out_columns,
    ];
    let mut counts = [0; 9];
    for (count_of, number) in counts.iter_mut().zip(numbers) {
        *count_of = count(number)?;
    }
    Ok(counts)
}

fn unfolded<T: Element>(sizes: Sizes, x: Argument<'_>) -> Result<(CudaStorage, Shape)> {
    let device = x.0.device();
    let pixels = sizes.batch * sizes.out_rows * sizes.out_columns;
    let places = sizes.kernel[0] * sizes.kernel[1];
    let shape = Shape::from((pixels, places * sizes.channels));
    let y = room::<T>(device, shape.elem_count())?;
    let (x, rows) = (elements::<T>(x)?, count(pixels * places)?);
    let [a, b, c, d, e, f, g, h, i] = window(&sizes)?;
    launch!(device, T, "unfold", warps(rows), &x, &y, &rows, &a, &b, &c, &d, &e, &f, &g, &h, &i);
    Ok((T::wrap_cuda_slice(y, device.clone()), shape))
}

fn folded<T: Element>(sizes: Sizes, gradient: Argument<'_>) -> Result<(CudaStorage, Shape)> {
    let device = gradient.0.device();
    let shape = Shape::from((sizes.batch, sizes.rows, sizes.columns, sizes.channels));
    let dx = room::<T>(device, shape.elem_count())?;
    let (gradient, rows) = (elements::<T>(gradient)?, count(sizes.batch * sizes.rows * sizes.columns)?);
    let [a, b, c, d, e, f, g, h, i] = window(&sizes)?;
    launch!(device, T, "fold", warps(rows), &gradient, &dx, &rows, &a, &b, &c, &d, &e, &f, &g, &h, &i);
    Ok((T::wrap_cuda_slice(dx, device.clone()), shape))
}

impl CustomOp1 for Unfold {
    fn name(&self) -> &'static str {
        "unfold on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_element!(x, unfolded(self.0, (x, layout)))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        gradient.contiguous()?.apply_op1_no_bwd(&Fold(self.0)).map(Some)
    }
}

impl CustomOp1 for Fold {
    fn name(&self) -> &'static str {
        "fold on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, gradient: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_element!(gradient, folded(self.0, (gradient, layout)))
    }
}
