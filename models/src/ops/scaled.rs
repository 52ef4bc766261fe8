//! One factor for all values and a bias per column: the end of a weight-normalised layer.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elementwise::dot;
use super::rows::column_sums;
use super::{borrow, composed, contiguous, is_half, on_cpu, wide};

/// `x * factor + bias`: `x` `[..., width]`, `factor` `[]`, `bias` `[width]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn scaled_with_bias(x: &Tensor, factor: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or_default();
    if width == 0 || bias.dims() != [width] || factor.rank() != 0 {
        bail!("a factor of {:?} and a bias of {:?} cannot take {:?}", factor.dims(), bias.dims(), x.dims());
    }
    if is_half(x) {
        return scaled_with_bias(&wide(x)?, &wide(factor)?, &wide(bias)?)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::scaled_with_bias(x, factor, bias);
    }
    x.contiguous()?.apply_op3(&factor.contiguous()?, &bias.contiguous()?, ScaledWithBias)
}

struct ScaledWithBias;

/// Values of a part that one thread takes, about.
const BLOCK: usize = 1 << 14;

impl CustomOp3 for ScaledWithBias {
    fn name(&self) -> &'static str {
        "factor and bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        factor: &CpuStorage,
        factor_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = (contiguous(x, x_layout, "x")?, contiguous(bias, bias_layout, "bias")?);
        let factor = contiguous(factor, factor_layout, "factor")?[0];
        let rows = (BLOCK / bias.len()).max(1);
        let mut y = x.to_vec();
        y.par_chunks_mut(rows * bias.len()).for_each(|block| {
            for row in block.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value = *value * factor + bias);
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        factor: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let given: &[f32] = &borrow(&grad)?;
        let dx = match x.track_op() {
            true => {
                let value = factor.to_scalar::<f32>()?;
                let dx: Vec<f32> = given.par_iter().with_min_len(BLOCK).map(|grad| grad * value).collect();
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
        let dbias = match bias.track_op() {
            true => {
                Some(Tensor::from_vec(column_sums(given, bias.elem_count()), bias.shape(), bias.device())?)
            }
            false => None,
        };
        Ok((dx, dfactor, dbias))
    }
}
