//! The gated GELU of Shazeer 2020.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::activation::{gelu, gelu_slope};
use super::elementwise::vectorised;
use super::rows::for_each_block;
use super::{borrow, composed, contiguous, is_half_on_cpu, on_cpu, wide};

/// The first half of the last dimension times the GELU (exact error function) of the second half:
/// `[..., 2 width]` to `[..., width]`.
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let double = x.dims().last().copied().unwrap_or_default();
    if double == 0 || !double.is_multiple_of(2) {
        bail!("{double} values have no halves");
    }
    if is_half_on_cpu(x) {
        return geglu(&wide(x)?)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::geglu(x);
    }
    x.contiguous()?.apply_op1(Gated { width: double / 2 })
}

struct Gated {
    width: usize,
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated GELU"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "x")?;
        let width = self.width;
        let mut y = vec![0.0f32; x.len() / 2];
        for_each_block(x, 2 * width, &mut y, width, |_, x, y| {
            vectorised(|| {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                    let (value, gate) = x.split_at(width);
                    for ((y, value), gate) in y.iter_mut().zip(value).zip(gate) {
                        *y = value * gelu(*gate);
                    }
                }
            });
        });
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = width;
        }
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x_values, dy): (&[f32], &[f32]) = (&borrow(x)?, &borrow(&grad)?);
        let width = self.width;
        let mut dx = vec![0.0f32; x_values.len()];
        for_each_block(dy, width, &mut dx, 2 * width, |first, dy, dx| {
            let x = &x_values[first * 2 * width..];
            vectorised(|| {
                for ((dx, dy), x) in
                    dx.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(2 * width))
                {
                    let (value, gate) = x.split_at(width);
                    let (dvalue, dgate) = dx.split_at_mut(width);
                    for ((dvalue, dy), gate) in dvalue.iter_mut().zip(dy).zip(gate) {
                        *dvalue = dy * gelu(*gate);
                    }
                    for (((dgate, dy), value), gate) in dgate.iter_mut().zip(dy).zip(value).zip(gate) {
                        *dgate = dy * value * gelu_slope(*gate);
                    }
                }
            });
        });
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
