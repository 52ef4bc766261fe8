//! Vectors of unit length with a factor per dimension: the queries and keys of cosine attention.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::elementwise::{dot, vectorised};
use super::rows::{for_each_block, sum_blocks};
use super::{borrow, composed, contiguous, is_half, on_cpu, wide};

/// Lengths below this count as this.
pub(super) const SHORTEST: f32 = 1e-12;

/// `x / max(|x|, 1e-12) * scale` over the last dimension of `x` `[..., width]`; `scale` `[width]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn scaled_unit(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or_default();
    if width == 0 || scale.dims() != [width] {
        bail!("a scale of {:?} cannot take {:?}", scale.dims(), x.dims());
    }
    if is_half(x) {
        return scaled_unit(&wide(x)?, &wide(scale)?)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return composed::scaled_unit(x, scale);
    }
    x.contiguous()?.apply_op2(&scale.contiguous()?, ScaledUnit)
}

struct ScaledUnit;

/// 1 / max(|row|, 1e-12), and whether the length counts.
#[inline(always)]
fn inverse_length(row: &[f32]) -> (f32, bool) {
    let length = dot(row, row).sqrt();
    (1.0 / length.max(SHORTEST), length > SHORTEST)
}

impl CustomOp2 for ScaledUnit {
    fn name(&self) -> &'static str {
        "scaled unit vectors"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, scale) = (contiguous(x, x_layout, "x")?, contiguous(scale, scale_layout, "scale")?);
        let width = scale.len();
        let mut y = vec![0.0f32; x.len()];
        for_each_block(x, width, &mut y, width, |_, x, y| {
            vectorised(|| {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let (inverse, _) = inverse_length(x);
                    for ((y, x), scale) in y.iter_mut().zip(x).zip(scale) {
                        *y = x * inverse * scale;
                    }
                }
            });
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (x_values, dy): (&[f32], &[f32]) = (&borrow(x)?, &borrow(&grad)?);
        let width = scale.elem_count();
        let dx = if x.track_op() {
            let scale: &[f32] = &borrow(scale)?;
            let mut dx = vec![0.0f32; x_values.len()];
            // With u = x / |x| and g = dy scale: (g - u (u.g)) / |x|.
            for_each_block(dy, width, &mut dx, width, |first, dy, dx| {
                let x = &x_values[first * width..];
                vectorised(|| {
                    for ((dx, dy), x) in
                        dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width))
                    {
                        let (inverse, counts) = inverse_length(x);
                        for ((dx, dy), scale) in dx.iter_mut().zip(dy).zip(scale) {
                            *dx = dy * scale * inverse;
                        }
                        if counts {
                            let along = dot(dx, x) * inverse * inverse;
                            for (dx, x) in dx.iter_mut().zip(x) {
                                *dx -= x * along;
                            }
                        }
                    }
                });
            });
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        } else {
            None
        };
        let dscale = if scale.track_op() {
            let sums = sum_blocks(x_values.len() / width, width, |first, last, sum| {
                let place = first * width..last * width;
                vectorised(|| {
                    for (x, dy) in
                        x_values[place.clone()].chunks_exact(width).zip(dy[place].chunks_exact(width))
                    {
                        let (inverse, _) = inverse_length(x);
                        for ((sum, x), dy) in sum.iter_mut().zip(x).zip(dy) {
                            *sum += x * inverse * dy;
                        }
                    }
                });
            });
            Some(Tensor::from_vec(sums, scale.shape(), scale.device())?)
        } else {
            None
        };
        Ok((dx, dscale))
    }
}
