//! y = x W^T + b. The gradients of arguments that no variable reaches are not computed.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{Argument, Element, by_element, count, elements, elsewhere, launch, warps};
use crate::ops::wide;

/// As [`crate::ops::linear()`].
pub(in crate::ops) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, width) = weight.dims2()?;
    if x.dims().last() != Some(&width) {
        bail!("a linear layer of [{out}, {width}] cannot take {:?}", x.dims());
    }
    let (x, weight) = (x.contiguous()?, weight.to_dtype(x.dtype())?.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.to_dtype(x.dtype())?.contiguous()?, Linear),
        None => x.apply_op2(&weight, Linear),
    }
}

/// `x W^T`, with a bias or without; `x` `[..., in]`, `W` `[out, in]`, both contiguous.
struct Linear;

impl Linear {
    fn product(
        (x, x_layout): Argument<'_>,
        (weight, weight_layout): Argument<'_>,
    ) -> Result<(CudaStorage, Shape)> {
        let (out, width) = weight_layout.shape().dims2()?;
        let mut dims = x_layout.dims().to_vec();
        let rows = x_layout.shape().elem_count() / width.max(1);
        let rows_layout = Layout::contiguous_with_offset((rows, width), x_layout.start_offset());
        let y = x.matmul(weight, (1, rows, out, width), &rows_layout, &weight_layout.transpose(0, 1)?)?;
        if let Some(last) = dims.last_mut() {
            *last = out;
        }
        Ok((y, Shape::from(dims)))
    }

    /// The gradients of what a variable reaches.
    fn backward(x: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out, width) = weight.dims2()?;
        let rows = gradient.detach().reshape(((), out))?;
        let dx = match x.track_op() {
            true => Some(rows.matmul(&weight.detach())?.reshape(x.shape())?),
            false => None,
        };
        let dw = match weight.track_op() {
            true => Some(rows.t()?.matmul(&x.detach().reshape(((), width))?)?),
            false => None,
        };
        Ok((dx, dw))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Self::product((x, x_layout), (weight, weight_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Self::backward(x, weight, &gradient.contiguous()?)
    }
}

fn add_bias<T: Element>(y: &CudaStorage, rows: usize, bias: Argument<'_>) -> Result<()> {
    let device = y.device();
    let (rows, columns) = (count(rows)?, count(bias.1.shape().elem_count())?);
    let (y, bias) = (T::as_cuda_slice(y)?, elements::<T>(bias)?);
    launch!(device, T, "add_bias", warps(rows), y, &bias, &rows, &columns);
    Ok(())
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear with bias on a GPU"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (y, shape) = Self::product((x, x_layout), (weight, weight_layout))?;
        let columns = bias_layout.shape().elem_count();
        let rows = shape.elem_count() / columns.max(1);
        if shape.dims().last() != Some(&columns) {
            bail!("a bias of {:?} cannot belong to outputs of {shape:?}", bias_layout.dims());
        }
        // Nothing else knows of the product yet, so it may be changed in place.
        by_element!(y, add_bias(&y, rows, (bias, bias_layout)))?;
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (dx, dw) = Self::backward(x, weight, &gradient)?;
        let db = match bias.track_op() {
            true => Some(wide(&gradient.reshape(((), bias.elem_count()))?)?.sum(0)?.to_dtype(bias.dtype())?),
            false => None,
        };
        Ok((dx, dw, db))
    }
}
