//! Linear layers with weight normalisation (Salimans and Kingma 2016), one factor for the whole matrix.
//!
//! The product is taken with the direction itself and scaled, so that no other matrix is made on the way forward, and
//! one on the way back: the gradient.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elementwise::dot;
use super::norm::length;
use super::panels::{Panels, Start, multiply_parallel};
use super::product::{Matrix, product};
use super::rows::column_sums;
use super::{borrow, contiguous, frobenius_norm, linear, on_cpu, scaled};

/// `x W^T + bias` with `W = factor direction / |direction|`, the norm that of the whole matrix: `x` `[..., in]`,
/// `direction` `[out, in]`, `factor` `[]`, `bias` `[out]`, giving `[..., out]`. Gradients as [`linear()`].
///
/// # Errors
/// If the shapes do not fit.
pub fn weight_normed(x: &Tensor, direction: &Tensor, factor: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if [x, direction, factor, bias].iter().any(|tensor| !on_cpu(tensor)) {
        let scale = (factor / frobenius_norm(direction)?)?;
        return linear(x, &scaled(direction, &scale)?, Some(bias));
    }
    let (out, width) = direction.dims2()?;
    if x.dims().last() != Some(&width) || bias.dims() != [out] || factor.rank() != 0 {
        bail!("a weight-normalised layer of [{out}, {width}] cannot take {:?}", x.dims());
    }
    let direction = direction.contiguous()?;
    let norm = length(&borrow(&direction)?);
    let op = WeightNormed { norm, scale: factor.to_scalar::<f32>()? / norm };
    // An operation has three arguments: the factor stands behind the bias.
    let offsets = Tensor::cat(&[bias, &factor.reshape(1)?], 0)?;
    x.contiguous()?.apply_op3(&direction, &offsets, op)
}

struct WeightNormed {
    norm: f32,
    /// factor / norm.
    scale: f32,
}

/// Values of a part that one thread takes.
const BLOCK: usize = 1 << 14;

impl WeightNormed {
    /// From the gradient of the scaled direction to that of the direction, in its place; gives that of the factor.
    fn through_norm(&self, direction: &[f32], gradient: &mut [f32]) -> f32 {
        // Sums of blocks, added in order.
        let parts: Vec<f64> = direction
            .par_chunks(BLOCK)
            .zip(gradient.par_chunks(BLOCK))
            .map(|(direction, gradient)| f64::from(dot(direction, gradient)))
            .collect();
        let along = parts.iter().sum::<f64>();
        // At 0 the norm has no gradient.
        let inverse = if self.norm > 0.0 { 1.0 / f64::from(self.norm) } else { 0.0 };
        let scale = self.scale;
        let away = (f64::from(scale) * along * inverse * inverse) as f32;
        gradient.par_chunks_mut(BLOCK).zip(direction.par_chunks(BLOCK)).for_each(|(gradient, direction)| {
            for (gradient, direction) in gradient.iter_mut().zip(direction) {
                *gradient = *gradient * scale - direction * away;
            }
        });
        (along * inverse) as f32
    }
}

impl CustomOp3 for WeightNormed {
    fn name(&self) -> &'static str {
        "weight-normalised linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        direction: &CpuStorage,
        direction_layout: &Layout,
        offsets: &CpuStorage,
        offsets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, width) = direction_layout.shape().dims2()?;
        let x = contiguous(x, x_layout, "x")?;
        let direction = contiguous(direction, direction_layout, "direction")?;
        let bias = &contiguous(offsets, offsets_layout, "offsets")?[..out];
        let rows = x.len() / width.max(1);
        let packed = Panels::pack(Matrix::new(direction, out, width, width).transposed(), true);
        let mut y = vec![0.0f32; rows * out];
        let x = Matrix::new(x, rows, width, width);
        multiply_parallel(x, &packed, self.scale, Start::Row(bias), &mut y, out);
        let mut dims = x_layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = out;
        }
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        direction: &Tensor,
        offsets: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (out, width) = direction.dims2()?;
        let grad = grad.contiguous()?;
        let dy: &[f32] = &borrow(&grad)?;
        let values: &[f32] = &borrow(direction)?;
        let rows = dy.len() / out.max(1);
        let dy_matrix = Matrix::new(dy, rows, out, out);
        let dx = match x.track_op() {
            true => {
                let packed = Panels::pack(Matrix::new(values, out, width, width), true);
                let mut dx = vec![0.0f32; rows * width];
                multiply_parallel(dy_matrix, &packed, self.scale, Start::Zero, &mut dx, width);
                Some(Tensor::from_vec(dx, x.shape(), x.device())?)
            }
            false => None,
        };
        if !direction.track_op() && !offsets.track_op() {
            return Ok((dx, None, None));
        }
        let mut gradient = vec![0.0f32; out * width];
        let x: &[f32] = &borrow(x)?;
        let right = Matrix::new(x, rows, width, width);
        product(dy_matrix.transposed(), right, 1.0, false, &mut gradient, width, true);
        let dfactor = self.through_norm(values, &mut gradient);
        let doffsets = match offsets.track_op() {
            true => {
                let mut sums = column_sums(dy, out);
                sums.push(dfactor);
                Some(Tensor::from_vec(sums, offsets.shape(), offsets.device())?)
            }
            false => None,
        };
        let ddirection = match direction.track_op() {
            true => Some(Tensor::from_vec(gradient, direction.shape(), direction.device())?),
            false => None,
        };
        Ok((dx, ddirection, doffsets))
    }
}
