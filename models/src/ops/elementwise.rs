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
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
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
    // 2^n by its exponent bits; n lies in [-126, 127] and in the low bits of `shifted`. A conversion to an
    // integer would saturate, which no vector instruction does.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    exponential * scale
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh(x) with a relative error of about 2e-7: the polynomial of Moshier's Cephes near 0, elsewhere by the
/// exponential.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3f32;
    p = p.mul_add(square, 2.063_909e-2);
    p = p.mul_add(square, -5.373_971_6e-2);
    p = p.mul_add(square, 0.133_314_42);
    p = p.mul_add(square, -0.333_332_8);
    let near = (p * square).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { near } else { far.copysign(x) }
}

/// Phi(x), the distribution function of the normal: erfc(-x / sqrt 2) / 2 with erfc by the Chebyshev
/// fit of Press et al., Numerical Recipes, 6.2; its relative error is about 1e-7 everywhere.
#[inline(always)]
pub(super) fn normal_cdf(x: f32) -> f32 {
    let z = (x * std::f32::consts::FRAC_1_SQRT_2).abs();
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = 0.170_872_77f32;
    p = p.mul_add(t, -0.822_152_23);
    p = p.mul_add(t, 1.488_515_9);
    p = p.mul_add(t, -1.135_204);
    p = p.mul_add(t, 0.278_868_07);
    p = p.mul_add(t, -0.186_288_06);
    p = p.mul_add(t, 0.096_784_18);
    p = p.mul_add(t, 0.374_091_96);
    p = p.mul_add(t, 1.000_023_7);
    p = p.mul_add(t, -1.265_512_2);
    let tail = 0.5 * t * exp(p - z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
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

/// Softmax of each row of `[rows, width]`, with zeros where nothing is seen: with `causal`, behind
/// column i of row i, rows counted from there on; and in the columns where `seen` is false. A row that sees nothing
/// is uniform.
pub(super) fn softmax_rows(values: &mut [f32], width: usize, causal: Option<usize>, seen: Option<&[bool]>) {
    struct Rows<'a> {
        values: &'a mut [f32],
        width: usize,
        causal: Option<usize>,
        seen: Option<&'a [bool]>,
    }
    // A named type instead of a closure: only a method can be forced into the vectorised caller.
    impl pulp::NullaryFnOnce for Rows<'_> {
        type Output = ();
        #[inline(always)]
        fn call(self) {
            for (index, row) in self.values.chunks_exact_mut(self.width).enumerate() {
                let end = self.causal.map_or(self.width, |first| first + index + 1);
                row[end..].fill(0.0);
                match self.seen {
                    None => softmax_row(&mut row[..end]),
                    Some(seen) => masked_softmax_row(&mut row[..end], &seen[..end]),
                }
            }
        }
    }
    if width > 0 {
        Arch::new().dispatch(Rows { values, width, causal, seen });
    }
}

/// Softmax over the seen values of a row in place, zeros elsewhere.
#[inline(always)]
fn masked_softmax_row(row: &mut [f32], seen: &[bool]) {
    if !seen.contains(&true) {
        row.fill(1.0 / row.len() as f32);
        return;
    }
    for (value, seen) in row.iter_mut().zip(seen) {
        *value = if *seen { *value } else { f32::NEG_INFINITY };
    }
    let max = greatest(row);
    for (value, seen) in row.iter_mut().zip(seen) {
        *value = if *seen { exp(*value - max) } else { 0.0 };
    }
    let scale = 1.0 / sum(row);
    for value in &mut *row {
        *value *= scale;
    }
}

/// The greatest value of a row.
#[inline(always)]
fn greatest(row: &[f32]) -> f32 {
    let mut partial = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            partial[lane] = if block[lane] > partial[lane] { block[lane] } else { partial[lane] };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for value in partial.iter().chain(rest) {
        max = if *value > max { *value } else { max };
    }
    max
}

/// Softmax of a row in place.
#[inline(always)]
fn softmax_row(row: &mut [f32]) {
    let max = greatest(row);
    for value in &mut *row {
        *value = exp(*value - max);
    }
    let scale = 1.0 / sum(row);
    for value in &mut *row {
        *value *= scale;
    }
}
