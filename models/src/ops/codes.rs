//! Vector quantisation by cosine similarity, with the straight-through gradient.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elementwise::{dot, vectorised};
use super::product::{Matrix, product};
use super::unit::SHORTEST;
use super::{contiguous, is_half_on_cpu, on_cpu, values, wide};

/// Tokens that are compared with all codes at a time.
const STRIP: usize = 512;

/// For each row of `x` `[..., width]` the index of the row of `codes` `[codes, width]` with the greatest
/// cosine, the first of equal ones: `[...]` (u32). No gradient.
///
/// # Errors
/// If the widths differ or there is no code.
pub fn nearest_codes(x: &Tensor, codes: &Tensor) -> Result<Tensor> {
    let (count, width) = codes.dims2()?;
    let Some((last, rows)) = x.dims().split_last() else { bail!("a scalar is no vector") };
    if *last != width || count == 0 || width == 0 {
        bail!("codes of {:?} do not fit vectors of {:?}", codes.dims(), x.dims());
    }
    let (vectors, table) = (unit_rows(values(x)?, width), unit_rows(values(codes)?, width));
    let table = Matrix::new(&table, count, width, width).transposed();
    let mut nearest = vec![0u32; vectors.len() / width];
    let mut cosines = vec![0.0f32; STRIP.min(nearest.len()) * count];
    for (vectors, nearest) in vectors.chunks(STRIP * width).zip(nearest.chunks_mut(STRIP)) {
        let rows = nearest.len();
        product(Matrix::new(vectors, rows, width, width), table, 1.0, false, &mut cosines, count, true);
        nearest.par_iter_mut().zip(cosines.par_chunks_exact(count)).for_each(|(nearest, cosines)| {
            let mut greatest = f32::NEG_INFINITY;
            for (index, cosine) in cosines.iter().enumerate() {
                if *cosine > greatest {
                    (greatest, *nearest) = (*cosine, index as u32);
                }
            }
        });
    }
    Tensor::from_vec(nearest, rows, x.device())
}

fn unit_rows(mut values: Vec<f32>, width: usize) -> Vec<f32> {
    values.par_chunks_exact_mut(width).for_each(|row| {
        vectorised(|| {
            let inverse = 1.0 / dot(row, row).sqrt().max(SHORTEST);
            row.iter_mut().for_each(|value| *value *= inverse);
        });
    });
    values
}

/// The values of `value` with the gradient of the identity to `x`, both of one shape (Bengio, Leonard
/// and Courville 2013).
///
/// # Errors
/// If the shapes differ.
pub fn straight_through(x: &Tensor, value: &Tensor) -> Result<Tensor> {
    if x.dims() != value.dims() {
        bail!("{:?} cannot stand for {:?}", value.dims(), x.dims());
    }
    let value = value.to_dtype(x.dtype())?;
    if is_half_on_cpu(x) {
        return straight_through(&wide(x)?, &wide(&value)?)?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return x + (&value - x)?.detach();
    }
    x.apply_op2(&value.contiguous()?, StraightThrough)
}

struct StraightThrough;

impl CustomOp2 for StraightThrough {
    fn name(&self) -> &'static str {
        "straight through"
    }

    fn cpu_fwd(
        &self,
        _x: &CpuStorage,
        _x_layout: &Layout,
        value: &CpuStorage,
        value_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let value = contiguous(value, value_layout, "value")?;
        Ok((CpuStorage::F32(value.to_vec()), value_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _value: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((x.track_op().then(|| grad.clone()), None))
    }
}
