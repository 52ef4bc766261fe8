//! The kernel against three loops, and its variants against each other.

use super::*;
use crate::random::Key;

fn random(count: usize, key: u64) -> Vec<f32> {
    (1..=count).map(|counter| Key(key).normal(counter as u64) as f32).collect()
}

/// `first + scale * a b` by three loops, `a` `[rows, depth]` and `b` `[depth, columns]` row-major: blocks of terms in
/// order, as stated above.
fn reference(a: &[f32], b: &[f32], sizes: [usize; 3], scale: f32, first: &[f32]) -> Vec<f32> {
    let [rows, depth, columns] = sizes;
    let mut out = first.to_vec();
    for from in (0..depth.max(1)).step_by(DEPTH) {
        for row in 0..rows {
            for column in 0..columns {
                let mut sum = 0.0f32;
                for place in from..(from + DEPTH).min(depth) {
                    let (a, b) = (a[row * depth + place], b[place * columns + column]);
                    sum = if Level::of_machine() == Level::Plain { a * b + sum } else { a.mul_add(b, sum) };
                }
                out[row * columns + column] += scale * sum;
            }
        }
    }
    out
}

/// The matrix `[columns, rows]` of one `[rows, columns]`.
fn turned(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|place| values[place % rows * columns + place / rows]).collect()
}

#[test]
fn products_are_those_of_three_loops_to_the_bit() {
    let shapes =
        [[1, 1, 1], [12, 64, 32], [13, 7, 33], [97, 100, 31], [5, 0, 3], [3, 1600, 65], [203, 40, 16]];
    for [rows, depth, columns] in shapes {
        let (a, b) = (random(rows * depth, 1), random(depth * columns, 2));
        let (bias, kept) = (random(columns, 3), random(rows * columns, 4));
        let (a_turned, b_turned) = (turned(&a, rows, depth), turned(&b, depth, columns));
        let starts = [
            (Start::Zero, vec![0.0; rows * columns]),
            (Start::Row(&bias), bias.repeat(rows)),
            (Start::Kept, kept.clone()),
        ];
        for (start, first) in starts {
            let wanted = reference(&a, &b, [rows, depth, columns], 0.5, &first);
            for (a, b) in [
                (Matrix::new(&a, rows, depth, depth), Matrix::new(&b, depth, columns, columns)),
                (
                    Matrix::new(&a_turned, depth, rows, rows).transposed(),
                    Matrix::new(&b_turned, columns, depth, depth).transposed(),
                ),
            ] {
                for parallel in [false, true] {
                    let multiply = if parallel { multiply_parallel } else { multiply };
                    let (panels, stride) = (Panels::pack(b, parallel), columns + 3);
                    let mut out = vec![7.0; rows * stride];
                    for (out, kept) in out.chunks_mut(stride).zip(kept.chunks(columns)) {
                        out[..columns].copy_from_slice(kept);
                    }
                    multiply(a, &panels, 0.5, start, &mut out, stride);
                    for (out, wanted) in out.chunks(stride).zip(wanted.chunks(columns)) {
                        assert_eq!(&out[..columns], wanted, "{rows} {depth} {columns}");
                        assert_eq!(out[columns..], [7.0; 3], "what lies between rows is untouched");
                    }
                }
            }
        }
    }
}

#[test]
fn tiles_of_other_machines_agree_to_the_bit() {
    const A_STRIDE: usize = 517;
    let (a, b, kept) = (random(12 * A_STRIDE, 1), random(DEPTH * COLUMNS, 2), random(12 * 40, 3));
    let b: Vec<Line> = b.as_chunks::<STRIP>().0.iter().map(|values| Line(*values)).collect();
    let run = |level: Level, height: usize, columns: usize, runs: Runs| {
        let mut out = kept.clone();
        for (row, first) in (0..12)
            .step_by(height)
            .flat_map(|row| (0..columns).step_by(level.width()).map(move |first| (row, first)))
        {
            let (height, columns) = (height.min(12 - row), (columns - first).min(level.width()));
            let out = out[row * 40 + first..].as_mut_ptr();
            let tile = Tile {
                a: &a[row * A_STRIDE..],
                a_stride: A_STRIDE,
                runs,
                strips: strips(&b, DEPTH, first, columns, 0..500),
                to: Target { columns, scale: 0.3, start: Start::Kept, out, row_stride: 40 },
            };
            // SAFETY: `out` has 12 rows of 40 values, and the level is one of this machine.
            unsafe { level.run(height, tile) };
        }
        out
    };
    for runs in [Runs::one(500), Runs { length: 15, stride: 10 }, Runs { length: 1, stride: 1 }] {
        for columns in [1, 6, 8, 9, 15, 16, 17, 24, 31, 32] {
            let loops = run(Level::Fused, 3, columns, runs);
            assert_eq!(loops, run(Level::Fused, 1, columns, runs));
            let plain = run(Level::Plain, 2, columns, runs);
            assert!(loops.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-3), "{columns}");
            for level in Level::all_of_machine() {
                for height in 1..=level.height(columns.min(level.width())) {
                    let found = run(level, height, columns, runs);
                    assert_eq!(loops, found, "{level:?}: {height} rows, {columns} columns");
                }
            }
        }
    }
}

#[test]
fn windows_are_multiplied_as_by_loops_to_the_bit() {
    let fused = Level::of_machine() != Level::Plain;
    // Columns and channels of an image; stride; rows and columns of the window; outputs.
    for [columns, channels, stride, kernel_rows, kernel_columns, outputs] in [
        [28, 1, 1, 5, 5, 6],
        [12, 6, 1, 5, 5, 16],
        [9, 3, 2, 3, 3, 8],
        [17, 2, 3, 1, 4, 70],
        [200, 1, 1, 2, 3, 33],
        [5, 7, 1, 3, 5, 1],
        // Several partial sums: two rows of the window in each, one row, half a row.
        [10, 128, 1, 3, 3, 17],
        [9, 256, 2, 3, 3, 33],
        [5, 512, 1, 2, 3, 3],
    ] {
        let (out_rows, out_columns) = (7, (columns - kernel_columns) / stride + 1);
        let (line, run) = (columns * channels, kernel_columns * channels);
        let depth = kernel_rows * run;
        let image = random(((out_rows - 1) * stride + kernel_rows) * line, 1);
        let (kernel, bias) = (random(depth * outputs, 2), random(outputs, 3));
        let windows = Windows {
            values: &image,
            columns: out_columns,
            step: stride * channels,
            row_step: stride * line,
            run,
            run_step: line,
        };
        for (start, first) in [(Start::Zero, &vec![0.0; outputs]), (Start::Row(&bias), &bias)] {
            let panels = Panels::pack(Matrix::new(&kernel, depth, outputs, outputs), false);
            let mut out = vec![MaybeUninit::new(f32::NAN); out_rows * out_columns * outputs];
            windows.multiply(&panels, start, &mut out);
            for (place, out) in out.iter().enumerate() {
                let (pixel, output) = (place / outputs, place % outputs);
                let corner = (pixel / out_columns * columns + pixel % out_columns) * stride * channels;
                let wanted = (0..depth).step_by(DEPTH).fold(first[output], |value, from| {
                    let terms = (from..(from + DEPTH).min(depth)).map(|term| {
                        (image[corner + term / run * line + term % run], kernel[term * outputs + output])
                    });
                    value
                        + terms
                            .fold(0.0f32, |sum, (a, b)| if fused { a.mul_add(b, sum) } else { a * b + sum })
                });
                // SAFETY: it was a number from the beginning.
                assert_eq!(unsafe { out.assume_init() }, wanted, "{columns} {outputs} {place}");
            }
        }
    }
}

/// `first + scale * a b` of operands that are rounded to bf16: by three loops in f64.
fn reference_in_half(a: &[f32], b: &[f32], sizes: [usize; 3], scale: f32, first: &[f32]) -> Vec<f64> {
    let [rows, depth, columns] = sizes;
    let narrow = |value: f32| f64::from(bf16::from_f32(value).to_f32());
    let value = |place: usize| {
        let (row, column) = (place / columns, place % columns);
        let terms = (0..depth).map(|term| narrow(a[row * depth + term]) * narrow(b[term * columns + column]));
        f64::from(first[place]) + f64::from(scale) * terms.sum::<f64>()
    };
    (0..rows * columns).map(value).collect()
}

#[test]
fn products_of_bf16_are_those_of_three_loops_over_rounded_terms() {
    if !has_half_products() {
        println!("skipped: this machine does not multiply bf16");
        return;
    }
    let shapes =
        [[1, 1, 1], [12, 64, 32], [13, 7, 33], [97, 101, 31], [5, 0, 3], [3, 1601, 65], [203, 40, 16]];
    for [rows, depth, columns] in shapes {
        let (a, b) = (random(rows * depth, 1), random(depth * columns, 2));
        let (bias, kept) = (random(columns, 3), random(rows * columns, 4));
        let (a_turned, b_turned) = (turned(&a, rows, depth), turned(&b, depth, columns));
        let narrow = |values: &[f32]| values.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>();
        let (half, half_turned) = (narrow(&b), narrow(&b_turned));
        let starts = [
            (Start::Zero, vec![0.0; rows * columns]),
            (Start::Row(&bias), bias.repeat(rows)),
            (Start::Kept, kept.clone()),
        ];
        for (start, first) in starts {
            let wanted = reference_in_half(&a, &b, [rows, depth, columns], 0.5, &first);
            let mut results = Vec::new();
            for parallel in [false, true] {
                for panels in [
                    Panels::pack_half(Matrix::new(&b, depth, columns, columns), parallel),
                    Panels::pack_half(Matrix::new(&b_turned, columns, depth, depth).transposed(), parallel),
                    Panels::pack_half(Matrix::new(&half, depth, columns, columns), parallel),
                    Panels::pack_half(
                        Matrix::new(&half_turned, columns, depth, depth).transposed(),
                        parallel,
                    ),
                ] {
                    for a in [
                        Matrix::new(&a, rows, depth, depth),
                        Matrix::new(&a_turned, depth, rows, rows).transposed(),
                    ] {
                        let multiply = if parallel { multiply_parallel } else { multiply };
                        let mut out = kept.clone();
                        multiply(a, &panels, 0.5, start, &mut out, columns);
                        results.push(out);
                    }
                }
            }
            // The order of the terms is one, whatever lies how and whoever computes.
            assert!(results.iter().all(|result| *result == results[0]), "{rows} {depth} {columns}");
            for (found, wanted) in results[0].iter().zip(&wanted) {
                let limit = 1e-5 * (1.0 + wanted.abs()) * (1.0 + depth as f64).sqrt();
                assert!((f64::from(*found) - wanted).abs() < limit, "{found} {wanted}");
            }
            // A row alone has the bits that it has among others.
            let panels = Panels::pack_half(Matrix::new(&b, depth, columns, columns), false);
            let row = rows - 1;
            let mut alone = kept[row * columns..].to_vec();
            multiply(
                Matrix::new(&a[row * depth..], 1, depth, depth),
                &panels,
                0.5,
                start,
                &mut alone,
                columns,
            );
            assert_eq!(alone, results[0][row * columns..]);
        }
    }
}
