//! A positive definite matrix as the product of a triangular one with its transpose, in f64, and equations with it. Every
//! sum has one order on every machine.

use super::lanes::{LANES, Lanes, TOGETHER, add_multiples, at, at_mut, pieces, products, values};
use crate::ops::vectorised;

/// The lower triangle L of M = L L'.
#[derive(Clone, Debug)]
pub(super) struct Cholesky {
    /// Row by row, zero above the diagonal and behind `size`.
    rows: Vec<Lanes>,
    size: usize,
    /// Pieces of a row.
    length: usize,
}

impl Cholesky {
    /// Of a matrix `[size, length]`, of which the lower triangle is read. Nothing, if it is not positive definite.
    pub(super) fn new(matrix: &[Lanes], size: usize, length: usize) -> Option<Self> {
        let mut this = Self { rows: vec![Lanes::default(); size * length], size, length };
        vectorised(
            #[inline(always)]
            || this.factor(matrix),
        )
        .then_some(this)
    }

    /// Column by column; what is still zero lets sums run over whole pieces.
    #[inline(always)]
    fn factor(&mut self, matrix: &[Lanes]) -> bool {
        let Self { size, length, .. } = *self;
        for column in 0..size {
            let done = column.div_ceil(LANES);
            let (above, below) = self.rows.split_at_mut((column + 1) * length);
            let own = &mut above[column * length..];
            let [[square]] = products([&own[..done]], [&own[..done]]);
            let rest = at(&matrix[column * length..], column) - square;
            if rest.is_nan() || rest <= 0.0 {
                return false;
            }
            let pivot = rest.sqrt();
            let given = |row: usize| at(&matrix[(column + 1 + row) * length..], column);
            let mut blocks = below.chunks_exact_mut(TOGETHER * length);
            let mut row = 0;
            for block in blocks.by_ref() {
                let four = std::array::from_fn::<_, TOGETHER, _>(|place| &block[place * length..][..done]);
                let [found] = products([&own[..done]], four);
                for (place, product) in found.into_iter().enumerate() {
                    *at_mut(&mut block[place * length..], column) = (given(row + place) - product) / pivot;
                }
                row += TOGETHER;
            }
            for other in blocks.into_remainder().chunks_exact_mut(length) {
                let [[product]] = products([&own[..done]], [&other[..done]]);
                *at_mut(other, column) = (given(row) - product) / pivot;
                row += 1;
            }
            *at_mut(own, column) = pivot;
        }
        true
    }

    /// Solves M x = b for several b: `[count, length x LANES]`, in place; what lies behind `size` has to be 0 and stays
    /// so.
    pub(super) fn solve(&self, vectors: &mut [f64]) {
        let mut solved = pieces(vectors);
        vectorised(
            #[inline(always)]
            || {
                let mut groups = solved.chunks_exact_mut(TOGETHER * self.length);
                for group in groups.by_ref() {
                    self.solve_some::<TOGETHER>(group);
                }
                for vector in groups.into_remainder().chunks_exact_mut(self.length) {
                    self.solve_some::<1>(vector);
                }
            },
        );
        vectors.iter_mut().zip(values(&solved)).for_each(|(vector, solved)| *vector = solved);
    }

    /// The same for N of them, each of which reads the factor as it passes once.
    #[inline(always)]
    fn solve_some<const N: usize>(&self, vectors: &mut [Lanes]) {
        let mut each = vectors.chunks_exact_mut(self.length);
        let mut vectors: [&mut [Lanes]; N] = std::array::from_fn(|_| each.next().expect("as many as N"));
        for row in 0..self.size {
            let own = &self.rows[row * self.length..];
            // Behind the row's diagonal the vectors are not solved yet, and the row is zero.
            let whole = row / LANES;
            let [found] = products([&own[..whole]], vectors.each_ref().map(|vector| &vector[..whole]));
            for (vector, product) in vectors.iter_mut().zip(found) {
                let mut rest = 0.0;
                for place in whole * LANES..row {
                    rest += at(own, place) * at(vector, place);
                }
                let value = at_mut(vector, row);
                *value = (*value - product - rest) / at(own, row);
            }
        }
        for row in (0..self.size).rev() {
            let own = &self.rows[row * self.length..];
            let whole = row / LANES;
            let mut found = [[0.0]; N];
            for (vector, [found]) in vectors.iter_mut().zip(&mut found) {
                let value = at(vector, row) / at(own, row);
                *at_mut(vector, row) = value;
                for place in whole * LANES..row {
                    let rest = at_mut(vector, place);
                    *rest = (-value).mul_add(at(own, place), *rest);
                }
                *found = -value;
            }
            add_multiples(vectors.each_mut().map(|vector| &mut vector[..whole]), [&own[..whole]], found);
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
            let stride = usize::next_multiple_of(size + 1, LANES);
            let factor = |row: usize, column: usize| Key(3).normal((row * size + column + 1) as u64);
            let mut matrix = vec![0.0; size * stride];
            for row in 0..size {
                for column in 0..size {
                    let product: f64 = (0..size).map(|k| factor(row, k) * factor(column, k)).sum();
                    matrix[row * stride + column] = product + f64::from(u8::from(row == column));
                }
            }
            let wanted: Vec<f64> = (0..6 * stride)
                .map(|place| if place % stride < size { (place as f64).sin() } else { 0.0 })
                .collect();
            let mut vectors: Vec<f64> = (0..6 * stride)
                .map(|place| match place % stride {
                    row if row < size => (0..size)
                        .map(|k| matrix[row * stride + k] * wanted[place / stride * stride + k])
                        .sum(),
                    _ => 0.0,
                })
                .collect();
            Cholesky::new(&pieces(&matrix), size, stride / LANES).unwrap().solve(&mut vectors);
            for (found, wanted) in vectors.iter().zip(&wanted) {
                assert!((found - wanted).abs() < 1e-9, "{size}: {found}, {wanted}");
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        let mut matrix = vec![0.0; 16];
        (matrix[0], matrix[8], matrix[9]) = (1.0, 2.0, 4.0);
        assert!(Cholesky::new(&pieces(&matrix), 2, 1).is_none());
        matrix[9] = f64::NAN;
        assert!(Cholesky::new(&pieces(&matrix), 2, 1).is_none());
        matrix[9] = 4.5;
        assert!(Cholesky::new(&pieces(&matrix), 2, 1).is_some());
    }
}
