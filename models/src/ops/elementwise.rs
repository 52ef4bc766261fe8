//! Exponential and sums over slices, written so that the compiler vectorises them; [`pulp`]
//! dispatches at run time to the widest instructions of the machine.
//!
//! A fused multiply-add rounds once on every machine that has it, and `f32::mul_add` falls back to an
//! exact software version elsewhere: the result is the same.

use pulp::Arch;

/// Number of partial sums: the order of every sum here is fixed by it, not by the machine.
const LANES: usize = 16;

/// Runs `body` compiled for the widest instructions of this machine.
#[inline(always)]
pub(super) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Op<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Op(body))
}

/// e^x with a relative error of about 1e-7: Cody and Waite's reduction and a polynomial of degree 5.
/// Arguments are clamped to [-87, 88], where f32 is normal.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let exponential = p.mul_add(r * r, r) + 1.0;
    // 2^n by its exponent bits: n lies in [-126, 127].
    let scale = f32::from_bits((((n as i32) + 127) << 23) as u32);
    exponential * scale
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The sum, in sixteen interleaved partial sums that are added in order.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    fold(values, values, |a, _| a)
}

/// The sum of products, in the order of [`sum`].
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    fold(a, b, |a, b| a * b)
}

/// The sum of `term(a, b)`, in the order of [`sum`].
#[inline(always)]
pub(super) fn fold(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut partial = [0.0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            partial[lane] += term(a[lane], b[lane]);
        }
    }
    let mut sum = 0.0;
    for value in partial {
        sum += value;
    }
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += term(*a, *b);
    }
    sum
}

/// Softmax of each row of `[rows, width]`, of which row i has `seen(i)` values and then zeros.
pub(super) fn softmax_rows(values: &mut [f32], width: usize, causal: bool) {
    struct Rows<'a> {
        values: &'a mut [f32],
        width: usize,
        causal: bool,
    }
    // A named type instead of a closure: only a method can be forced into the vectorised caller.
    impl pulp::NullaryFnOnce for Rows<'_> {
        type Output = ();
        #[inline(always)]
        fn call(self) {
            for (index, row) in self.values.chunks_exact_mut(self.width).enumerate() {
                let seen = if self.causal { index % self.width + 1 } else { self.width };
                softmax_row(&mut row[..seen]);
                row[seen..].fill(0.0);
            }
        }
    }
    Arch::new().dispatch(Rows { values, width, causal });
}

/// Softmax of a row in place.
#[inline(always)]
fn softmax_row(row: &mut [f32]) {
    let mut greatest = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            greatest[lane] = if block[lane] > greatest[lane] { block[lane] } else { greatest[lane] };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for value in greatest.iter().chain(rest) {
        max = if *value > max { *value } else { max };
    }
    for value in &mut *row {
        *value = exp(*value - max);
    }
    let scale = 1.0 / sum(row);
    for value in &mut *row {
        *value *= scale;
    }
}
