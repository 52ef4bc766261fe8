//! A positive definite matrix as the product of a triangular one with its transpose, in f64, and equations with it. Every
//! sum has one order on every machine.

use crate::ops::vectorised;

/// Partial sums of a dot product.
pub(super) const LANES: usize = 8;
/// Products with one vector that are computed at a time.
pub(super) const TOGETHER: usize = 4;

/// The products of a vector with several; all have the same length, a multiple of [`LANES`].
#[inline(always)]
pub(super) fn dots<const N: usize>(x: &[f64], others: [&[f64]; N]) -> [f64; N] {
    let x = x.as_chunks::<LANES>().0;
    let others = others.map(|other| &other.as_chunks::<LANES>().0[..x.len()]);
    let mut sums = [[0.0f64; LANES]; N];
    for (place, x) in x.iter().enumerate() {
        for (sums, other) in sums.iter_mut().zip(&others) {
            // Values of their own stay in registers.
            let (other, mut lanes) = (other[place], *sums);
            for lane in 0..LANES {
                lanes[lane] = x[lane].mul_add(other[lane], lanes[lane]);
            }
            *sums = lanes;
        }
    }
    sums.map(|lanes| lanes.iter().sum())
}

/// The lower triangle L of M = L L'.
#[derive(Clone, Debug)]
pub(super) struct Cholesky {
    /// `[size, stride]`, zero above the diagonal and behind `size`.
    rows: Vec<f64>,
    size: usize,
    stride: usize,
}

impl Cholesky {
    /// Of a matrix `[size, stride]`, of which the lower triangle is read; `stride` is a multiple of [`LANES`]. Nothing, if
    /// it is not positive definite.
    pub(super) fn new(matrix: &[f64], size: usize, stride: usize) -> Option<Self> {
        let mut this = Self { rows: vec![0.0; size * stride], size, stride };
        vectorised(
            #[inline(always)]
            || this.factor(matrix),
        )
        .then_some(this)
    }

    /// Column by column; what is still zero lets sums run over whole lanes.
    #[inline(always)]
    fn factor(&mut self, matrix: &[f64]) -> bool {
        let Self { size, stride, .. } = *self;
        for column in 0..size {
            let length = column.next_multiple_of(LANES);
            let (above, below) = self.rows.split_at_mut((column + 1) * stride);
            let own = &mut above[column * stride..];
            let [square] = dots(&own[..length], [&own[..length]]);
            let rest = matrix[column * stride + column] - square;
            if rest.is_nan() || rest <= 0.0 {
                return false;
            }
            let pivot = rest.sqrt();
            let given = |row: usize| matrix[(column + 1 + row) * stride + column];
            let mut blocks = below.chunks_exact_mut(TOGETHER * stride);
            let mut row = 0;
            for block in blocks.by_ref() {
                let products = dots(
                    &own[..length],
                    std::array::from_fn::<_, TOGETHER, _>(|place| &block[place * stride..][..length]),
                );
                for (place, product) in products.into_iter().enumerate() {
                    block[place * stride + column] = (given(row + place) - product) / pivot;
                }
                row += TOGETHER;
            }
            for other in blocks.into_remainder().chunks_exact_mut(stride) {
                let [product] = dots(&own[..length], [&other[..length]]);
                other[column] = (given(row) - product) / pivot;
                row += 1;
            }
            own[column] = pivot;
        }
        true
    }

    /// Solves M x = b for several b: `[count, stride]`, in place; what lies behind `size` has to be 0 and stays so.
    pub(super) fn solve(&self, vectors: &mut [f64]) {
        vectorised(
            #[inline(always)]
            || {
                for vector in vectors.chunks_exact_mut(self.stride) {
                    self.solve_one(vector);
                }
            },
        );
    }

    #[inline(always)]
    fn solve_one(&self, vector: &mut [f64]) {
        for row in 0..self.size {
            let own = &self.rows[row * self.stride..];
            // Behind the row's diagonal the vector is not solved yet, and the row is zero.
            let whole = row / LANES * LANES;
            let [product] = dots(&own[..whole], [&vector[..whole]]);
            let rest: f64 = (whole..row).map(|place| own[place] * vector[place]).sum();
            vector[row] = (vector[row] - product - rest) / own[row];
        }
        for row in (0..self.size).rev() {
            let own = &self.rows[row * self.stride..];
            let value = vector[row] / own[row];
            vector[row] = value;
            for (rest, own) in vector[..row].iter_mut().zip(own) {
                *rest = (-own).mul_add(value, *rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    #[test]
    fn equations_are_solved() {
        for size in [1usize, 7, 8, 13, 24] {
            let stride = (size + 1).next_multiple_of(LANES);
            let factor = |row: usize, column: usize| Key(3).normal((row * size + column + 1) as u64);
            let mut matrix = vec![0.0; size * stride];
            for row in 0..size {
                for column in 0..size {
                    let product: f64 = (0..size).map(|k| factor(row, k) * factor(column, k)).sum();
                    matrix[row * stride + column] = product + f64::from(u8::from(row == column));
                }
            }
            let wanted: Vec<f64> = (0..2 * stride)
                .map(|place| if place % stride < size { (place as f64).sin() } else { 0.0 })
                .collect();
            let mut vectors: Vec<f64> = (0..2 * stride)
                .map(|place| match place % stride {
                    row if row < size => (0..size)
                        .map(|k| matrix[row * stride + k] * wanted[place / stride * stride + k])
                        .sum(),
                    _ => 0.0,
                })
                .collect();
            Cholesky::new(&matrix, size, stride).unwrap().solve(&mut vectors);
            for (found, wanted) in vectors.iter().zip(&wanted) {
                assert!((found - wanted).abs() < 1e-9, "{size}: {found}, {wanted}");
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        let mut matrix = vec![0.0; 16];
        (matrix[0], matrix[8], matrix[9]) = (1.0, 2.0, 4.0);
        assert!(Cholesky::new(&matrix, 2, 8).is_none());
        matrix[9] = f64::NAN;
        assert!(Cholesky::new(&matrix, 2, 8).is_none());
        matrix[9] = 4.5;
        assert!(Cholesky::new(&matrix, 2, 8).is_some());
    }
}
