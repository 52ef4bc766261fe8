//! Scaled dot-product attention on packed queries, keys and values.
//!
//! One task per image: its heads one after another, so that tasks write to disjoint memory and no sum
//! depends on the number of threads. The probabilities are computed again in the backward pass
//! instead of being kept.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elementwise::{dot, softmax_rows, vectorised};
use super::product::{Matrix, product};
use super::{composed, contiguous, on_cpu, values};

/// Attention over packed `[batch, tokens, 3 width]` (queries, keys, values), giving
/// `[batch, tokens, width]`. With `causal`, token i sees tokens 0 to i. Scores are scaled by
/// 1/sqrt(head width).
///
/// # Errors
/// If the width is no multiple of the number of heads.
pub fn attention(packed: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (_, _, triple) = packed.dims3()?;
    if heads == 0 || !triple.is_multiple_of(3 * heads) {
        bail!("{triple} packed values cannot be split into {heads} heads");
    }
    if !on_cpu(packed) {
        return composed::attention(packed, heads, causal).map(|(out, _)| out);
    }
    packed.contiguous()?.apply_op1(Attention { heads, causal })
}

struct Attention {
    heads: usize,
    causal: bool,
}

/// The sizes of one image.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    width: usize,
    heads: usize,
    causal: bool,
}

impl Sizes {
    fn head(self) -> usize {
        self.width / self.heads
    }

    fn scale(self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }

    /// Part 0, 1 or 2 (queries, keys, values) of one head of one image.
    fn part<'a>(self, packed: &'a [f32], part: usize, head: usize) -> Matrix<'a> {
        let start = part * self.width + head * self.head();
        Matrix::new(&packed[start..], self.tokens, self.head(), 3 * self.width)
    }

    /// The probabilities of one head, `[tokens, tokens]`.
    fn probabilities(self, packed: &[f32], head: usize, out: &mut [f32]) {
        let (queries, keys) = (self.part(packed, 0, head), self.part(packed, 1, head));
        product(queries, keys.transposed(), self.scale(), false, out, self.tokens, false);
        softmax_rows(out, self.tokens, self.causal);
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, packed: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, triple) = layout.shape().dims3()?;
        let sizes = Sizes { tokens, width: triple / 3, heads: self.heads, causal: self.causal };
        let packed = contiguous(packed, layout, "queries, keys and values")?;
        let mut out = vec![0.0f32; batch * tokens * sizes.width];
        let image = |(packed, out): (&[f32], &mut [f32])| {
            let mut probabilities = vec![0.0f32; tokens * tokens];
            for head in 0..sizes.heads {
                sizes.probabilities(packed, head, &mut probabilities);
                let start = head * sizes.head();
                product(
                    Matrix::new(&probabilities, tokens, tokens, tokens),
                    sizes.part(packed, 2, head),
                    1.0,
                    false,
                    &mut out[start..],
                    sizes.width,
                    false,
                );
            }
        };
        let images =
            packed.par_chunks_exact(tokens * triple).zip(out.par_chunks_exact_mut(tokens * sizes.width));
        images.for_each(image);
        Ok((CpuStorage::F32(out), Shape::from((batch, tokens, sizes.width))))
    }

    fn bwd(&self, packed: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, tokens, triple) = packed.dims3()?;
        let sizes = Sizes { tokens, width: triple / 3, heads: self.heads, causal: self.causal };
        let (width, head_width) = (sizes.width, sizes.head());
        let (packed_values, out_values, grad_values) = (values(packed)?, values(out)?, values(grad)?);
        let mut dpacked = vec![0.0f32; packed_values.len()];
        let image = |(((packed, out), dout), dpacked): (((&[f32], &[f32]), &[f32]), &mut [f32])| {
            let mut probabilities = vec![0.0f32; tokens * tokens];
            let mut dscores = vec![0.0f32; tokens * tokens];
            for head in 0..sizes.heads {
                let start = head * head_width;
                sizes.probabilities(packed, head, &mut probabilities);
                let p = Matrix::new(&probabilities, tokens, tokens, tokens);
                let dout_head = Matrix::new(&dout[start..], tokens, head_width, width);
                // dV = P^T dO.
                product(
                    p.transposed(),
                    dout_head,
                    1.0,
                    false,
                    &mut dpacked[2 * width + start..],
                    triple,
                    false,
                );
                // dP = dO V^T, then dS = P * (dP - rowsum(dO * O)).
                product(
                    dout_head,
                    sizes.part(packed, 2, head).transposed(),
                    1.0,
                    false,
                    &mut dscores,
                    tokens,
                    false,
                );
                vectorised(|| {
                    for token in 0..tokens {
                        let place = token * width + start..token * width + start + head_width;
                        let correction = dot(&dout[place.clone()], &out[place]);
                        let row = token * tokens..(token + 1) * tokens;
                        for (ds, p) in dscores[row.clone()].iter_mut().zip(&probabilities[row]) {
                            *ds = p * (*ds - correction);
                        }
                    }
                });
                let ds = Matrix::new(&dscores, tokens, tokens, tokens);
                // dQ = scale dS K, dK = scale dS^T Q.
                product(
                    ds,
                    sizes.part(packed, 1, head),
                    sizes.scale(),
                    false,
                    &mut dpacked[start..],
                    triple,
                    false,
                );
                let dkeys = &mut dpacked[width + start..];
                product(
                    ds.transposed(),
                    sizes.part(packed, 0, head),
                    sizes.scale(),
                    false,
                    dkeys,
                    triple,
                    false,
                );
            }
        };
        packed_values
            .par_chunks_exact(tokens * triple)
            .zip(out_values.par_chunks_exact(tokens * width))
            .zip(grad_values.par_chunks_exact(tokens * width))
            .zip(dpacked.par_chunks_exact_mut(tokens * triple))
            .for_each(image);
        Tensor::from_vec(dpacked, packed.shape(), packed.device()).map(Some)
    }
}
