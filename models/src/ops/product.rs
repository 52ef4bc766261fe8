//! Matrix products over slices with strides, by the `gemm` crate.
//!
//! gemm never splits the inner dimension among threads, so the bits do not depend on their number.

use gemm::Parallelism;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T = f32> {
    pub(super) values: &'a [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

/// The greatest index that a matrix of this shape and these strides touches, plus one.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}

impl<'a, T> Matrix<'a, T> {
    /// `rows x columns`, rows `row_stride` values apart.
    pub(super) fn new(values: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(values.len() >= extent(rows, columns, row_stride, 1), "a matrix lies inside its slice");
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = scale * a b`, or `out += scale * a b` with `accumulate`; `out` has rows `row_stride` apart.
pub(super) fn product(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    accumulate: bool,
    out: &mut [f32],
    row_stride: usize,
    parallel: bool,
) {
    assert_eq!(a.columns, b.rows, "inner dimensions agree");
    assert!(
        row_stride >= b.columns && out.len() >= extent(a.rows, b.columns, row_stride, 1),
        "the result fits"
    );
    #[cfg(test)]
    count();
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: `extent` was checked against the lengths of all three slices, so every element that gemm
    // reads or writes lies inside them; rows of `out` do not overlap since `row_stride >= columns`;
    // `out` is borrowed mutably and so distinct from `a` and `b`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            row_stride as isize,
            accumulate,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            // gemm computes alpha * out + beta * a b.
            if accumulate { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
thread_local! {
    /// How many products this thread has computed: tests assert that frozen weights cost none.
    static PRODUCTS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts one.
#[cfg(test)]
pub(super) fn count() {
    PRODUCTS.with(|products| products.set(products.get() + 1));
}

/// The number of products that `work` computes, on one thread.
#[cfg(test)]
pub(super) fn count_products(work: impl FnOnce() + Send) -> usize {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool starts");
    pool.install(|| {
        let before = PRODUCTS.get();
        work();
        PRODUCTS.get() - before
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    /// The safe twin: three loops.
    fn reference(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                out[i * n + j] = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            }
        }
        out
    }

    #[test]
    fn strides_and_transposes_agree_with_three_loops() {
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (37, 32, 37), (64, 100, 17)] {
            let a: Vec<f32> = (1..=m * k).map(|c| Key(1).normal(c as u64) as f32).collect();
            let b: Vec<f32> = (1..=k * n).map(|c| Key(2).normal(c as u64) as f32).collect();
            let expected = reference(&a, &b, m, k, n);
            let mut out = vec![1.0; m * (n + 3)];
            product(Matrix::new(&a, m, k, k), Matrix::new(&b, k, n, n), 1.0, false, &mut out, n + 3, false);
            let mut transposed = vec![0.0; n * m];
            let (at, bt) = (Matrix::new(&a, m, k, k).transposed(), Matrix::new(&b, k, n, n).transposed());
            product(bt, at, 2.0, false, &mut transposed, m, true);
            for i in 0..m {
                for j in 0..n {
                    assert!((out[i * (n + 3) + j] - expected[i * n + j]).abs() < 1e-4);
                    assert!((transposed[j * m + i] - 2.0 * expected[i * n + j]).abs() < 2e-4);
                }
                assert_eq!(
                    out[i * (n + 3) + n..].first().copied().unwrap_or(1.0),
                    1.0,
                    "padding is untouched"
                );
            }
        }
    }
}
