//! A constant factor for each value: dropout's mask.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{borrow, contiguous, on_cpu};

/// `x * factors`, with as many factors as `x` has values. candle's product would make the gradient of the
/// factors too.
///
/// # Errors
/// If there are more factors than values, or fewer.
pub fn masked(x: &Tensor, factors: Vec<f32>) -> Result<Tensor> {
    if factors.len() != x.elem_count() {
        bail!("{} factors cannot take {:?}", factors.len(), x.dims());
    }
    if on_cpu(x) {
        return x.contiguous()?.apply_op1(Masked { factors });
    }
    x * Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?
}

struct Masked {
    factors: Vec<f32>,
}

/// Values of a part that one thread takes.
const BLOCK: usize = 1 << 14;

impl Masked {
    fn apply(&self, values: &[f32]) -> Vec<f32> {
        let pairs = values.par_iter().zip(&self.factors).with_min_len(BLOCK);
        pairs.map(|(value, factor)| value * factor).collect()
    }
}

impl CustomOp1 for Masked {
    fn name(&self) -> &'static str {
        "mask"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(contiguous(x, layout, "x")?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dx = self.apply(&borrow(&grad)?);
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
