//! The hyperbolic tangent, by vectors.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::written::written;
use super::{contiguous, elementwise, is_half_on_cpu, on_cpu, wide};

/// Values per task.
const BLOCK: usize = 1 << 14;

/// tanh(x) elementwise, with a relative error of about 2e-7 on a CPU.
///
/// # Errors
/// Whatever the device reports.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    if is_half_on_cpu(x) {
        return tanh(&wide(x)?)?.to_dtype(x.dtype());
    }
    if on_cpu(x) { x.contiguous()?.apply_op1(Tanh) } else { x.tanh() }
}

struct Tanh;

/// y = tanh(x).
struct Values<'a> {
    x: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

impl NullaryFnOnce for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            y.write(elementwise::tanh(*x));
        }
    }
}

impl CustomOp1 for Tanh {
    fn name(&self) -> &'static str {
        "tanh"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        // SAFETY: the chunks cover all values, and each is written.
        let y = unsafe {
            written(x.len(), |y| {
                y.par_chunks_mut(BLOCK)
                    .zip(x.par_chunks(BLOCK))
                    .for_each(|(y, x)| Arch::new().dispatch(Values { x, y }));
            })
        };
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (gradient * y.sqr()?.affine(-1.0, 1.0)?).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn values_and_slopes_are_those_of_the_exact_function() {
        let values: Vec<f32> = (-400..=400).map(|step| step as f32 / 37.0).collect();
        let x = Var::from_slice(&values, values.len(), &Device::Cpu).unwrap();
        let y = tanh(&x).unwrap();
        let slopes = y.backward().unwrap().get(&x).unwrap().to_vec1::<f32>().unwrap();
        for ((x, y), slope) in values.iter().zip(y.to_vec1::<f32>().unwrap()).zip(slopes) {
            let exact = f64::from(*x).tanh();
            assert!((f64::from(y) - exact).abs() <= 4e-7 * exact.abs(), "{x}: {y} {exact}");
            assert!((f64::from(slope) - (1.0 - exact * exact)).abs() < 1e-6, "{x}: {slope}");
        }
    }
}
