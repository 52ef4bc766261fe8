//! The nonlinearities.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::{Argument, Element, by_element, elements, elsewhere, launch, room, threads};
use crate::Activation;

/// As [`fn@crate::ops::activate`].
pub(in crate::ops) fn activate(x: &Tensor, kind: Activation) -> Result<Tensor> {
    let kind = match kind {
        Activation::Relu => 0,
        Activation::Gelu => 1,
        Activation::QuickGelu => 2,
    };
    x.contiguous()?.apply_op1(Activate { kind })
}

struct Activate {
    kind: u32,
}

fn forward<T: Element>(kind: u32, x: Argument<'_>) -> Result<(CudaStorage, Shape)> {
    let (device, length) = (x.0.device(), x.1.shape().elem_count());
    let y = room::<T>(device, length)?;
    let values = elements::<T>(x)?;
    launch!(device, T, "activate", threads(length), &values, &y, &length, &kind);
    Ok((T::wrap_cuda_slice(y, device.clone()), x.1.shape().clone()))
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_element!(x, forward(self.kind, (x, layout)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        x.apply_op2_no_bwd(&gradient.contiguous()?, &Backward { kind: self.kind }).map(Some)
    }
}

struct Backward {
    kind: u32,
}

fn backward<T: Element>(kind: u32, x: Argument<'_>, gradient: Argument<'_>) -> Result<(CudaStorage, Shape)> {
    let (device, length) = (x.0.device(), x.1.shape().elem_count());
    let dx = room::<T>(device, length)?;
    let (values, gradient) = (elements::<T>(x)?, elements::<T>(gradient)?);
    launch!(device, T, "activate_backward", threads(length), &values, &gradient, &dx, &length, &kind);
    Ok((T::wrap_cuda_slice(dx, device.clone()), x.1.shape().clone()))
}

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        "gradient of an activation on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        gradient: &CudaStorage,
        gradient_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_element!(x, backward(self.kind, (x, layout), (gradient, gradient_layout)))
    }
}
