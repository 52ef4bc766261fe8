//! One factor for all values: the length of a weight-normalised matrix.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elementwise::dot;
use super::{borrow, composed, contiguous, is_half, on_cpu, wide};

/// `x * factor` for `factor` `[]`.
///
/// # Errors
/// If the factor is no scalar.
pub fn scaled(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    if factor.rank() != 0 {
        bail!("a factor is a scalar, not {:?}", factor.dims());
    }
    if is_half(x) {
        return scaled(&wide(x)?, &wide(factor)?)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::scaled(x, factor);
    }
    x.contiguous()?.apply_op2(&factor.contiguous()?, Scaled)
}

struct Scaled;

/// Values of a part that one thread takes.
const BLOCK: usize = 1 << 14;

fn times(values: &[f32], factor: f32) -> Vec<f32> {
    values.par_iter().with_min_len(BLOCK).map(|value| value * factor).collect()
}

impl CustomOp2 for Scaled {
    fn name(&self) -> &'static str {
        "factor"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        factor: &CpuStorage,
        factor_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let factor = contiguous(factor, factor_layout, "factor")?[0];
        let y = times(contiguous(x, x_layout, "x")?, factor);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        factor: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let given: &[f32] = &borrow(&grad)?;
        let dx = match x.track_op() {
            true => {
                let dx = times(given, factor.to_scalar::<f32>()?);
                Some(Tensor::from_vec(dx, x.shape(), x.device())?)
            }
            false => None,
        };
        let dfactor = match factor.track_op() {
            true => {
                let values: &[f32] = &borrow(x)?;
                // Sums of blocks, added in order.
                let parts: Vec<f64> = values
                    .par_chunks(BLOCK)
                    .zip(given.par_chunks(BLOCK))
                    .map(|(values, grad)| f64::from(dot(values, grad)))
                    .collect();
                Some(Tensor::from_vec(vec![parts.iter().sum::<f64>() as f32], (), x.device())?)
            }
            false => None,
        };
        Ok((dx, dfactor))
    }
}
