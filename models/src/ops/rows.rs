//! Work on the rows of a matrix, in parallel blocks of fixed size.

use rayon::prelude::*;

/// Rows per block: sums over rows are made within blocks, then over blocks in their order.
const BLOCK: usize = 512;

/// Calls `work(first row, rows of x, rows of y)` for blocks of rows; `x` and `y` have rows of these
/// widths.
pub(super) fn for_each_block(
    x: &[f32],
    x_width: usize,
    y: &mut [f32],
    y_width: usize,
    work: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) {
    if x_width == 0 || y_width == 0 {
        return;
    }
    x.par_chunks(BLOCK * x_width)
        .zip(y.par_chunks_mut(BLOCK * y_width))
        .enumerate()
        .for_each(|(block, (x, y))| work(block * BLOCK, x, y));
}

/// The sum of rows that `add(first row, last row, sum)` adds to a row of zeros per block.
pub(super) fn sum_blocks(
    rows: usize,
    width: usize,
    add: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = (0..rows.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let mut sum = vec![0.0; width];
            add(block * BLOCK, ((block + 1) * BLOCK).min(rows), &mut sum);
            sum
        })
        .collect();
    let mut total = vec![0.0; width];
    for partial in partial {
        total.iter_mut().zip(partial).for_each(|(total, value)| *total += value);
    }
    total
}

/// The sums of the columns of `[rows, width]`.
pub(super) fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let rows = values.len() / width.max(1);
    sum_blocks(rows, width, |first, last, sum| {
        super::elementwise::vectorised(|| {
            for row in values[first * width..last * width].chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        });
    })
}

/// The sums of `term(column, value)` over the columns of `[rows, width]`, in double precision.
pub(super) fn column_sums_of(
    values: &[f32],
    width: usize,
    term: impl Fn(usize, f32) -> f64 + Sync,
) -> Vec<f64> {
    let partial: Vec<Vec<f64>> = values
        .par_chunks((BLOCK * width).max(1))
        .map(|block| {
            let mut sums = vec![0.0; width];
            for row in block.chunks_exact(width) {
                for (column, (sum, value)) in sums.iter_mut().zip(row).enumerate() {
                    *sum += term(column, *value);
                }
            }
            sums
        })
        .collect();
    let mut total = vec![0.0; width];
    for partial in partial {
        total.iter_mut().zip(partial).for_each(|(total, sum)| *total += sum);
    }
    total
}
