//! Layer normalisation over the last dimension.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{Argument, Element, by_element, elements, elsewhere, launch, matrix, room, warps};
use crate::ops::wide;

/// As [`crate::ops::layer_norm()`].
pub(in crate::ops) fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f64) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or_default();
    if gamma.dims() != [width] || beta.dims() != [width] || width == 0 {
        bail!("a layer norm of {:?} cannot take {:?}", gamma.dims(), x.dims());
    }
    let (gamma, beta) = (wide(gamma)?.contiguous()?, wide(beta)?.contiguous()?);
    x.contiguous()?.apply_op3(&gamma, &beta, LayerNorm { epsilon: epsilon as f32 })
}

struct LayerNorm {
    epsilon: f32,
}

fn forward<T: Element>(
    epsilon: f32,
    x: Argument<'_>,
    scale: Option<[Argument<'_>; 2]>,
) -> Result<(CudaStorage, Shape)> {
    let device = x.0.device();
    let (rows, columns) = matrix(x.1)?;
    let y = room::<T>(device, x.1.shape().elem_count())?;
    let (values, config) = (elements::<T>(x)?, warps(rows));
    match scale {
        Some([gamma, beta]) => {
            let (gamma, beta) = (elements::<f32>(gamma)?, elements::<f32>(beta)?);
            launch!(device, T, "layer_norm", config, &values, &gamma, &beta, &y, &rows, &columns, &epsilon);
        }
        None => {
            launch!(
                device,
                T,
                "layer_norm",
                config,
                &values,
                &0usize,
                &0usize,
                &y,
                &rows,
                &columns,
                &epsilon
            );
        }
    }
    Ok((T::wrap_cuda_slice(y, device.clone()), x.1.shape().clone()))
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer norm on a GPU"
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
        layout: &Layout,
        gamma: &CudaStorage,
        gamma_layout: &Layout,
        beta: &CudaStorage,
        beta_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let scale = Some([(gamma, gamma_layout), (beta, beta_layout)]);
        by_element!(x, forward(self.epsilon, (x, layout), scale))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let epsilon = self.epsilon;
        let dx = match x.track_op() {
            true => Some(x.apply_op3_no_bwd(gamma, &gradient, &Backward { epsilon })?),
            false => None,
        };
        let rows = |values: &Tensor| wide(values)?.reshape(((), gamma.elem_count()))?.sum(0);
        let dgamma = match gamma.track_op() {
            true => Some(rows(&(x.apply_op1_no_bwd(&Normalised { epsilon })? * &gradient)?)?),
            false => None,
        };
        let dbeta = if beta.track_op() { Some(rows(&gradient)?) } else { None };
        Ok((dx, dgamma, dbeta))
    }
}

/// A layer norm without its parameters.
struct Normalised {
    epsilon: f32,
}

impl CustomOp1 for Normalised {
    fn name(&self) -> &'static str {
        "normalised rows on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_element!(x, forward(self.epsilon, (x, layout), None))
    }
}

struct Backward {
    epsilon: f32,
}

fn backward<T: Element>(
    epsilon: f32,
    x: Argument<'_>,
    gamma: Argument<'_>,
    gradient: Argument<'_>,
) -> Result<(CudaStorage, Shape)> {
    let device = x.0.device();
    let (rows, columns) = matrix(x.1)?;
    let dx = room::<T>(device, x.1.shape().elem_count())?;
    let (values, gamma, gradient) = (elements::<T>(x)?, elements::<f32>(gamma)?, elements::<T>(gradient)?);
    let config = warps(rows);
    launch!(
        device,
        T,
        "layer_norm_backward",
        config,
        &values,
        &gamma,
        &gradient,
        &dx,
        &rows,
        &columns,
        &epsilon
    );
    Ok((T::wrap_cuda_slice(dx, device.clone()), x.1.shape().clone()))
}

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        "gradient of a layer norm on a GPU"
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
        layout: &Layout,
        gamma: &CudaStorage,
        gamma_layout: &Layout,
        gradient: &CudaStorage,
        gradient_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let arguments = ((x, layout), (gamma, gamma_layout), (gradient, gradient_layout));
        by_element!(x, backward(self.epsilon, arguments.0, arguments.1, arguments.2))
    }
}
