//! The length of a tensor.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{borrow, composed, contiguous, on_cpu, values};

/// The root of the sum of squares of all values (the Frobenius norm of a matrix), `[]`. The gradient at 0
/// is 0.
///
/// # Errors
/// Whatever the device reports.
pub fn frobenius_norm(x: &Tensor) -> Result<Tensor> {
    if !on_cpu(x) {
        return composed::frobenius_norm(x);
    }
    x.contiguous()?.apply_op1(Norm)
}

/// The root of the sum of squares.
pub(super) fn length(x: &[f32]) -> f32 {
    squares(x).sqrt() as f32
}

/// The sum of squares of all values: sums of blocks, in double precision, added in order.
fn squares(x: &[f32]) -> f64 {
    let sums: Vec<f64> = x
        .par_chunks(BLOCK)
        .map(|block| {
            let mut lanes = [0.0f64; 16];
            let (rows, rest) = block.as_chunks::<16>();
            for row in rows {
                for (lane, value) in lanes.iter_mut().zip(row) {
                    *lane += f64::from(*value) * f64::from(*value);
                }
            }
            let rest: f64 = rest.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
            lanes.iter().sum::<f64>() + rest
        })
        .collect();
    sums.iter().sum()
}

/// The sum of squares of all values of a tensor: in double precision on the CPU, in f32 on a GPU.
///
/// # Errors
/// Whatever the device reports.
pub(crate) fn sum_of_squares(x: &Tensor) -> Result<f64> {
    match on_cpu(x) {
        true => Ok(squares(&borrow(&x.contiguous()?)?)),
        false if x.device().is_cpu() => Ok(squares(&values(x)?)),
        // Summed there: the values stay where they are.
        false => Ok(f64::from(x.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()?)),
    }
}

struct Norm;

/// Values of a partial sum.
const BLOCK: usize = 1 << 14;

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "Frobenius norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        Ok((CpuStorage::F32(vec![length(x)]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, norm: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (norm, grad) = (norm.to_scalar::<f32>()?, grad.to_scalar::<f32>()?);
        let factor = if norm > 0.0 { grad / norm } else { 0.0 };
        let values: &[f32] = &borrow(x)?;
        let gradient: Vec<f32> = values.par_iter().with_min_len(BLOCK).map(|value| value * factor).collect();
        Tensor::from_vec(gradient, x.shape(), x.device()).map(Some)
    }
}
