//! Dot-product attention on packed queries, keys and values.
//!
//! One task per sample: its heads one after another, so that tasks write to disjoint memory and no sum
//! depends on the number of threads. The probabilities are computed again in the backward pass
//! instead of being kept.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elementwise::{dot, softmax_rows, vectorised};
#[cfg(feature = "cuda")]
use super::gpu;
use super::panels::{Panels, Start, multiply};
use super::product::{self, Matrix};
use super::weight::Terms;
use super::{borrow, composed, contiguous, is_half_on_cpu, on_cpu, values, wide};

/// How the scores of attention are made of queries and keys, and which of them count.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// Number of heads.
    pub heads: usize,
    /// Factor on the products; 1/sqrt(head width) if there is none.
    pub scale: Option<f64>,
    /// Whether token i sees tokens 0 to i only; not together with a mask.
    pub causal: bool,
    /// 1 where a key is seen and 0 where it is not, `[batch, tokens]`. A sample of which nothing is seen
    /// weights all keys alike.
    pub mask: Option<&'a Tensor>,
    /// Added to the scaled products, `[heads, tokens, tokens]`.
    pub bias: Option<&'a Tensor>,
}

impl Scores<'_> {
    /// Every token sees every token, as in Vaswani et al. 2017.
    pub fn new(heads: usize) -> Self {
        Self { heads, scale: None, causal: false, mask: None, bias: None }
    }

    /// Fails unless the options fit packed values of `[batch, tokens, triple]`.
    pub(super) fn check(&self, batch: usize, tokens: usize, triple: usize) -> Result<()> {
        let Self { heads, .. } = *self;
        if heads == 0 || !triple.is_multiple_of(3 * heads) {
            bail!("{triple} packed values cannot be split into {heads} heads");
        }
        if self.causal && self.mask.is_some() {
            bail!("attention is causal or masked, not both");
        }
        if let Some(mask) = self.mask
            && mask.dims() != [batch, tokens]
        {
            bail!("a mask of {:?} does not fit [{batch}, {tokens}]", mask.dims());
        }
        if let Some(bias) = self.bias
            && bias.dims() != [heads, tokens, tokens]
        {
            bail!("a bias of {:?} does not fit [{heads}, {tokens}, {tokens}]", bias.dims());
        }
        Ok(())
    }
}

/// Attention over packed `[batch, tokens, 3 width]` (queries, keys, values), giving
/// `[batch, tokens, width]`.
///
/// # Errors
/// If the width is no multiple of the number of heads, or mask or bias do not fit.
pub fn attention(packed: &Tensor, scores: &Scores<'_>) -> Result<Tensor> {
    let (batch, tokens, triple) = packed.dims3()?;
    scores.check(batch, tokens, triple)?;
    if is_half_on_cpu(packed) {
        return on_cpu_with(&wide(packed)?, scores, None, Terms::of(packed))?.to_dtype(packed.dtype());
    }
    if !on_cpu(packed) {
        #[cfg(feature = "cuda")]
        if gpu::takes(packed) && scores.bias.is_none() {
            return gpu::attention(packed, scores);
        }
        return composed::attention(packed, scores).map(|(out, _)| out);
    }
    on_cpu_with(packed, scores, None, Terms::Full)
}

/// [`attention`] of one token of each sample, `[batch, width]`, with the bits that it gives it among others.
///
/// # Errors
/// As [`attention`], or if a sample has no token there.
pub fn attention_at(packed: &Tensor, scores: &Scores<'_>, tokens: &[usize]) -> Result<Tensor> {
    let (batch, count, triple) = packed.dims3()?;
    scores.check(batch, count, triple)?;
    check_asked(tokens, batch, count)?;
    if is_half_on_cpu(packed) {
        let values = on_cpu_with(&wide(packed)?, scores, Some(tokens), Terms::of(packed))?;
        return values.to_dtype(packed.dtype());
    }
    if on_cpu(packed) {
        return on_cpu_with(packed, scores, Some(tokens), Terms::Full);
    }
    let rows: Vec<u32> = tokens.iter().enumerate().map(|(row, token)| (row * count + token) as u32).collect();
    let rows = Tensor::from_vec(rows, batch, packed.device())?;
    attention(packed, scores)?.reshape(((), triple / 3))?.index_select(&rows, 0)
}

/// Fails unless each sample has the token that is asked for.
pub(super) fn check_asked(asked: &[usize], batch: usize, tokens: usize) -> Result<()> {
    if asked.len() != batch || asked.iter().any(|token| *token >= tokens) {
        bail!("{batch} samples of {tokens} tokens do not have the tokens {asked:?}");
    }
    Ok(())
}

/// [`attention`] for f32 on a CPU.
fn on_cpu_with(
    packed: &Tensor,
    scores: &Scores<'_>,
    asked: Option<&[usize]>,
    terms: Terms,
) -> Result<Tensor> {
    let op = Attention::new(scores, asked, packed.dim(2)? / 3, terms)?;
    match scores.bias {
        Some(bias) => packed.contiguous()?.apply_op2(&wide(bias)?.contiguous()?, op),
        None => packed.contiguous()?.apply_op1(op),
    }
}

/// Attention without its bias, over slices and as an operation.
#[derive(Clone)]
pub(super) struct Attention {
    /// The token of each sample whose result is wanted; none if all are.
    pub(super) asked: Option<Vec<usize>>,
    heads: usize,
    scale: f32,
    causal: bool,
    /// `[batch, tokens]`.
    seen: Option<Arc<[bool]>>,
    /// Of the products of the pass forward; back they are of f32.
    terms: Terms,
}

/// `out = start + scale * a b`.
fn product(a: Matrix<'_>, b: Matrix<'_>, scale: f32, start: Start<'_>, out: &mut [f32], row_stride: usize) {
    multiply(a, &Panels::pack(b, false), scale, start, out, row_stride);
}

/// `out = scale * a^T b`, a sum over queries. Of one query the result is what it is among others that add nothing.
fn over_queries(a: Matrix<'_>, b: Matrix<'_>, scale: f32, out: &mut [f32], row_stride: usize) {
    if a.rows != 1 {
        return product::product(a.transposed(), b, scale, false, out, row_stride, false);
    }
    for (a, out) in a.values.iter().take(a.columns).zip(out.chunks_mut(row_stride)) {
        for (out, b) in out.iter_mut().zip(&b.values[..b.columns]) {
            *out = scale * (a * b);
        }
    }
}

/// Queries whose scores are held at a time, in the cache.
const QUERIES: usize = 96;

/// One sample: its sizes and what its scores are made of.
#[derive(Clone, Copy)]
struct Sample<'a> {
    tokens: usize,
    width: usize,
    heads: usize,
    scale: f32,
    causal: bool,
    seen: Option<&'a [bool]>,
    bias: Option<&'a [f32]>,
    terms: Terms,
}

impl<'a> Sample<'a> {
    fn head(self) -> usize {
        self.width / self.heads
    }

    /// Part 0, 1 or 2 (queries, keys, values) of one head.
    fn part<'b>(self, packed: &'b [f32], part: usize, head: usize) -> Matrix<'b> {
        let start = part * self.width + head * self.head();
        Matrix::new(&packed[start..], self.tokens, self.head(), 3 * self.width)
    }

    /// The probabilities of one head for the queries from `first` on, `[queries, tokens]`.
    fn probabilities(self, packed: &[f32], keys: &Panels, head: usize, first: usize, out: &mut [f32]) {
        let Self { tokens, width, .. } = self;
        let start = match self.bias {
            Some(bias) => {
                let place = (head * tokens + first) * tokens;
                out.copy_from_slice(&bias[place..place + out.len()]);
                Start::Kept
            }
            None => Start::Zero,
        };
        let queries = &packed[first * 3 * width + head * self.head()..];
        let queries = Matrix::new(queries, out.len() / tokens, self.head(), 3 * width);
        multiply(queries, keys, self.scale, start, out, tokens);
        softmax_rows(out, tokens, self.causal.then_some(first), self.seen);
    }

    /// What these queries attend to, `[queries, width]`.
    fn forward(self, packed: &[f32], queries: Range<usize>, out: &mut [f32]) {
        let Self { tokens, width, .. } = self;
        let mut scores = vec![0.0f32; QUERIES.min(queries.len()) * tokens];
        for head in 0..self.heads {
            let keys = self.terms.pack(self.part(packed, 1, head).transposed());
            let values = self.terms.pack(self.part(packed, 2, head));
            for first in queries.clone().step_by(QUERIES) {
                let count = QUERIES.min(queries.end - first);
                let scores = &mut scores[..count * tokens];
                self.probabilities(packed, &keys, head, first, scores);
                let scores = Matrix::new(scores, count, tokens, tokens);
                let place = (first - queries.start) * width + head * self.head();
                multiply(scores, &values, 1.0, Start::Zero, &mut out[place..], width);
            }
        }
    }

    /// Writes the gradient of the packed values, those of queries that nobody asked for left at zero, and adds that of the
    /// scores to `dbias`, if it is wanted. `out` and `dout` are of `asked`.
    fn backward(
        self,
        packed: &[f32],
        asked: Range<usize>,
        out: &[f32],
        dout: &[f32],
        dpacked: &mut [f32],
        mut dbias: Option<&mut [f32]>,
    ) {
        let Self { tokens, width, .. } = self;
        let (head_width, triple, count) = (self.head(), 3 * width, asked.len());
        let mut probabilities = vec![0.0f32; count * tokens];
        let mut dscores = vec![0.0f32; count * tokens];
        for head in 0..self.heads {
            let start = head * head_width;
            let keys = Panels::pack(self.part(packed, 1, head).transposed(), false);
            self.probabilities(packed, &keys, head, asked.start, &mut probabilities);
            let p = Matrix::new(&probabilities, count, tokens, tokens);
            let dout_head = Matrix::new(&dout[start..], count, head_width, width);
            // dV = P^T dO.
            let dvalues = &mut dpacked[2 * width + start..];
            over_queries(p, dout_head, 1.0, dvalues, triple);
            // dP = dO V^T, then dS = P * (dP - rowsum(dO * O)).
            let values = self.part(packed, 2, head);
            product(dout_head, values.transposed(), 1.0, Start::Zero, &mut dscores, tokens);
            vectorised(|| {
                for token in 0..count {
                    let place = token * width + start..token * width + start + head_width;
                    let correction = dot(&dout[place.clone()], &out[place]);
                    let row = token * tokens..(token + 1) * tokens;
                    for (ds, p) in dscores[row.clone()].iter_mut().zip(&probabilities[row]) {
                        *ds = p * (*ds - correction);
                    }
                }
            });
            if let Some(dbias) = &mut dbias {
                let area = (head * tokens + asked.start) * tokens;
                dbias[area..area + count * tokens].iter_mut().zip(&dscores).for_each(|(sum, ds)| *sum += ds);
            }
            let ds = Matrix::new(&dscores, count, tokens, tokens);
            // dQ = scale dS K, dK = scale dS^T Q.
            let first = asked.start * triple + start;
            let queries = Matrix::new(&packed[first..], count, head_width, triple);
            let keys = self.part(packed, 1, head);
            product(ds, keys, self.scale, Start::Zero, &mut dpacked[first..], triple);
            let dkeys = &mut dpacked[width + start..];
            over_queries(ds, queries, self.scale, dkeys, triple);
        }
    }
}

/// Samples whose gradients of the bias are held at a time; they are added in order.
const GROUP: usize = 8;

impl Attention {
    /// What `scores` say of values of this width.
    pub(super) fn new(
        scores: &Scores<'_>,
        asked: Option<&[usize]>,
        width: usize,
        terms: Terms,
    ) -> Result<Self> {
        let seen = match scores.mask {
            Some(mask) => Some(values(mask)?.into_iter().map(|value| value != 0.0).collect()),
            None => None,
        };
        let scale = scores.scale.unwrap_or_else(|| ((width / scores.heads) as f64).powf(-0.5)) as f32;
        Ok(Self {
            asked: asked.map(<[usize]>::to_vec),
            heads: scores.heads,
            scale,
            causal: scores.causal,
            seen,
            terms,
        })
    }

    fn sample<'a>(
        &'a self,
        index: usize,
        tokens: usize,
        width: usize,
        bias: Option<&'a [f32]>,
    ) -> Sample<'a> {
        let seen = self.seen.as_deref().map(|seen| &seen[index * tokens..(index + 1) * tokens]);
        Sample {
            tokens,
            width,
            heads: self.heads,
            scale: self.scale,
            causal: self.causal,
            seen,
            bias,
            terms: self.terms,
        }
    }

    /// The queries of a sample.
    fn queries(&self, sample: usize, tokens: usize) -> Range<usize> {
        self.asked.as_ref().map_or(0..tokens, |asked| asked[sample]..asked[sample] + 1)
    }

    /// The result of packed `[batch, tokens, 3 width]`: `[batch, tokens, width]`, or `[batch, width]` of the tokens that were
    /// asked for.
    pub(super) fn forward(
        &self,
        packed: &[f32],
        tokens: usize,
        width: usize,
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        let samples = packed.len() / (tokens * 3 * width).max(1);
        let count = if self.asked.is_some() { 1 } else { tokens };
        let mut out = vec![0.0f32; samples * count * width];
        packed
            .par_chunks_exact((tokens * 3 * width).max(1))
            .zip(out.par_chunks_exact_mut((count * width).max(1)))
            .enumerate()
            .for_each(|(index, (packed, out))| {
                let sample = self.sample(index, tokens, width, bias);
                sample.forward(packed, self.queries(index, tokens), out);
            });
        out
    }

    /// The gradients of the packed values and, if it is wanted, of the bias.
    pub(super) fn backward(
        &self,
        [packed, out, dout]: [&[f32]; 3],
        tokens: usize,
        width: usize,
        bias: Option<&[f32]>,
        wants_bias: bool,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut dpacked = vec![0.0f32; packed.len()];
        let mut dbias = vec![0.0f32; if wants_bias { self.heads * tokens * tokens } else { 0 }];
        let count = if self.asked.is_some() { 1 } else { tokens };
        let (small, large) = ((count * width).max(1), (tokens * 3 * width).max(1));
        for (group, dpacked) in dpacked.chunks_mut(GROUP * large).enumerate() {
            let partial: Vec<Vec<f32>> = dpacked
                .par_chunks_exact_mut(large)
                .enumerate()
                .map(|(index, dpacked)| {
                    let index = group * GROUP + index;
                    let narrow = index * small..(index + 1) * small;
                    let mut dbias = vec![0.0f32; dbias.len()];
                    self.sample(index, tokens, width, bias).backward(
                        &packed[index * large..(index + 1) * large],
                        self.queries(index, tokens),
                        &out[narrow.clone()],
                        &dout[narrow],
                        dpacked,
                        wants_bias.then_some(&mut dbias),
                    );
                    dbias
                })
                .collect();
            for partial in partial {
                dbias.iter_mut().zip(partial).for_each(|(sum, value)| *sum += value);
            }
        }
        (dpacked, dbias)
    }

    fn run(&self, packed: &CpuStorage, layout: &Layout, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, triple) = layout.shape().dims3()?;
        let packed = contiguous(packed, layout, "queries, keys and values")?;
        let out = self.forward(packed, tokens, triple / 3, bias);
        let shape = match self.asked {
            Some(_) => Shape::from((batch, triple / 3)),
            None => Shape::from((batch, tokens, triple / 3)),
        };
        Ok((CpuStorage::F32(out), shape))
    }

    /// The gradients of the packed values and of the bias.
    fn gradients(
        &self,
        packed: &Tensor,
        bias: Option<&Tensor>,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, tokens, triple) = packed.dims3()?;
        let wants_bias = bias.is_some_and(Tensor::track_op);
        let bias_values = bias.map(borrow).transpose()?;
        let grad = grad.contiguous()?;
        let (packed_values, out_values): (&[f32], &[f32]) = (&borrow(packed)?, &borrow(out)?);
        let grad_values: &[f32] = &borrow(&grad)?;
        let (dpacked, dbias) = self.backward(
            [packed_values, out_values, grad_values],
            tokens,
            triple / 3,
            bias_values.as_deref(),
            wants_bias,
        );
        let dpacked = match packed.track_op() {
            true => Some(Tensor::from_vec(dpacked, packed.shape(), packed.device())?),
            false => None,
        };
        let dbias = match bias {
            Some(bias) if wants_bias => Some(Tensor::from_vec(dbias, bias.shape(), bias.device())?),
            _ => None,
        };
        Ok((dpacked, dbias))
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, packed: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(packed, layout, None)
    }

    fn bwd(&self, packed: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(packed, None, out, grad)?.0)
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention with bias"
    }

    fn cpu_fwd(
        &self,
        packed: &CpuStorage,
        packed_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run(packed, packed_layout, Some(contiguous(bias, bias_layout, "bias")?))
    }

    fn bwd(
        &self,
        packed: &Tensor,
        bias: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(packed, Some(bias), out, grad)
    }
}
