//! A transformer block whose weights are frozen, as one operation.
//!
//! Rows of the residual stream go through norm, product, activation and product while they are in the cache, and the
//! graph sees one node: of a block that a gradient goes through are kept its input, queries, keys and values, what
//! attention gave, the stream between the halves and the perceptron's argument. Every sum is made in the order of the
//! separate operations, so that the bits are those of the path on which a probe sees every activation.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::{apply, times_slope};
use super::attention::{Attention, Scores, check_asked};
use super::elementwise::vectorised;
use super::layer_norm::{normalise_rows, rows_gradient};
use super::panels::{DEPTH, Panels, Start, multiply, task_rows};
use super::product::Matrix;
use super::weight::{Terms, View, pack_tensor};
use super::{borrow, contiguous, on_cpu, wide};
use crate::Activation;

/// The parameters of a block that norms before its halves:
/// `x += out attention(qkv norm1 x)`, `x += fc2 activation(fc1 norm2 x)`.
#[derive(Clone, Debug)]
pub struct BlockWeights {
    /// Gamma and beta, `[width]` each.
    pub norm1: [Tensor; 2],
    /// Weight `[3 width, width]` and bias `[3 width]` of queries, keys and values.
    pub qkv: [Tensor; 2],
    /// Weight `[width, width]` and bias `[width]`.
    pub out: [Tensor; 2],
    /// Gamma and beta, `[width]` each.
    pub norm2: [Tensor; 2],
    /// Weight `[hidden, width]` and bias `[hidden]`.
    pub fc1: [Tensor; 2],
    /// Weight `[width, hidden]` and bias `[width]`.
    pub fc2: [Tensor; 2],
    /// The nonlinearity of the perceptron.
    pub activation: Activation,
    /// Of both norms.
    pub epsilon: f64,
}

impl BlockWeights {
    fn all(&self) -> impl Iterator<Item = &Tensor> {
        [&self.norm1, &self.qkv, &self.out, &self.norm2, &self.fc1, &self.fc2].into_iter().flatten()
    }

    /// The same, what is one row long in f32.
    fn with_wide_rows(&self) -> Result<Self> {
        let norm = |[gamma, beta]: &[Tensor; 2]| Ok::<_, candle_core::Error>([wide(gamma)?, wide(beta)?]);
        let linear =
            |[weight, bias]: &[Tensor; 2]| Ok::<_, candle_core::Error>([weight.clone(), wide(bias)?]);
        Ok(Self {
            norm1: norm(&self.norm1)?,
            qkv: linear(&self.qkv)?,
            out: linear(&self.out)?,
            norm2: norm(&self.norm2)?,
            fc1: linear(&self.fc1)?,
            fc2: linear(&self.fc2)?,
            ..*self
        })
    }
}

/// Whether [`frozen_block`] takes this input: f32 on a CPU, as all weights are, of which none is a variable; or bf16,
/// where the machine multiplies that. (There probes see values that are rounded after each operation, and the block rounds
/// what goes into its products, and its result.)
pub fn takes_block(x: &Tensor, weights: &BlockWeights) -> bool {
    let terms = Terms::of(x);
    let takes = |weight: &Tensor| terms.take(weight) && !weight.track_op() && weight.is_contiguous();
    (on_cpu(x) || terms == Terms::Half) && weights.all().all(takes)
}

/// The block's output for `x` `[batch, tokens, width]`; its gradient is that of `x` alone. Scores have no bias.
///
/// # Errors
/// If the shapes do not fit, or [`takes_block`] says no.
pub fn frozen_block(x: &Tensor, weights: &BlockWeights, scores: &Scores<'_>) -> Result<Tensor> {
    block_at(x, weights, scores, None)
}

/// The block's output `[batch, width]` for one token of each sample, as [`frozen_block`] gives it among others: all that is
/// wanted of a tower's last block if one token stands for all. What only other tokens need is not computed.
///
/// # Errors
/// As [`frozen_block`], or if a sample has no token there.
pub fn frozen_block_at(
    x: &Tensor,
    weights: &BlockWeights,
    scores: &Scores<'_>,
    tokens: &[usize],
) -> Result<Tensor> {
    block_at(x, weights, scores, Some(tokens))
}

fn block_at(
    x: &Tensor,
    weights: &BlockWeights,
    scores: &Scores<'_>,
    asked: Option<&[usize]>,
) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    if let Some(asked) = asked {
        check_asked(asked, batch, tokens)?;
    }
    let hidden = weights.fc1[1].elem_count();
    scores.check(batch, tokens, 3 * width)?;
    let shapes = [
        (&weights.norm1, vec![width], width),
        (&weights.qkv, vec![3 * width, width], 3 * width),
        (&weights.out, vec![width, width], width),
        (&weights.norm2, vec![width], width),
        (&weights.fc1, vec![hidden, width], hidden),
        (&weights.fc2, vec![width, hidden], width),
    ];
    for ([weight, bias], shape, out) in shapes {
        if weight.dims() != shape || bias.dims() != [out] {
            bail!("a block of width {width} cannot have {:?} and {:?}", weight.dims(), bias.dims());
        }
    }
    if !takes_block(x, weights) || scores.bias.is_some() || width == 0 || hidden == 0 {
        bail!("this block is computed by its parts");
    }
    let attention = Attention::new(scores, asked, width, Terms::of(x))?;
    let kept = if x.track_op() { Some(OnceLock::new()) } else { None };
    let block = Block { weights: weights.with_wide_rows()?, attention, terms: Terms::of(x), kept };
    wide(x)?.contiguous()?.apply_op1(block)?.to_dtype(x.dtype())
}

struct Block {
    weights: BlockWeights,
    attention: Attention,
    terms: Terms,
    /// What the backward pass needs, if there will be one.
    kept: Option<OnceLock<Kept>>,
}

/// Values of rows; behind the first product only of those whose output is wanted.
struct Kept {
    /// Queries, keys and values, `[rows, 3 width]`.
    packed: Vec<f32>,
    /// What attention made of them, `[wanted, width]`.
    attended: Vec<f32>,
    /// The residual stream between the halves, `[wanted, width]`.
    middle: Vec<f32>,
    /// The argument of the nonlinearity, `[wanted, hidden]`.
    hidden: Vec<f32>,
}

/// sums += values.
fn add(sums: &mut [f32], values: &[f32]) {
    vectorised(|| {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    });
}

/// Rows of `width` values, one after another.
fn rows_of(x: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    rows.iter().flat_map(|row| &x[row * width..(row + 1) * width]).copied().collect()
}

/// The parts of the hidden layer that are computed one after another: as long as a product's partial sums.
fn slices(hidden: usize) -> impl Iterator<Item = Range<usize>> {
    (0..hidden).step_by(DEPTH).map(move |first| first..(first + DEPTH).min(hidden))
}

impl Block {
    /// The parts of the perceptron, packed: its first layer's and its second's; of the pass back, turned.
    fn perceptron(&self, width: usize, is_turned: bool) -> Result<Vec<(Range<usize>, Panels, Panels)>> {
        let ([fc1, _], [fc2, _]) = (&self.weights.fc1, &self.weights.fc2);
        let hidden = fc1.dims()[0];
        let pack = |slice: Range<usize>| {
            let (first, length) = (slice.start, slice.len());
            let first_layer =
                View { first: first * width, rows: length, columns: width, row_stride: width, is_turned };
            let second_layer = View { first, rows: width, columns: length, row_stride: hidden, is_turned };
            let first_layer = pack_tensor(fc1, first_layer, self.terms)?;
            Ok((slice, first_layer, pack_tensor(fc2, second_layer, self.terms)?))
        };
        slices(hidden).map(pack).collect()
    }

    /// The rows whose output is wanted, of all `[samples, tokens]`; none if all are.
    fn wanted(&self, tokens: usize) -> Option<Vec<usize>> {
        let asked = self.attention.asked.as_ref()?;
        Some(asked.iter().enumerate().map(|(sample, token)| sample * tokens + token).collect())
    }

    /// Queries, keys and values of rows, `[rows, 3 width]`, no queries of rows that are not wanted.
    fn packed(&self, x: &[f32], wanted: Option<&[usize]>, width: usize) -> Result<Vec<f32>> {
        let epsilon = self.weights.epsilon as f32;
        let (gamma, beta) = (borrow(&self.weights.norm1[0])?, borrow(&self.weights.norm1[1])?);
        let bias = borrow(&self.weights.qkv[1])?;
        let (gamma, beta, bias): (&[f32], &[f32], &[f32]) = (&gamma, &beta, &bias);
        let pack = |parts: Range<usize>| {
            let view = View { first: parts.start * width * width, ..View::whole(parts.len() * width, width) };
            pack_tensor(&self.weights.qkv[0], view.turned(), self.terms)
        };
        let product = |x: &[f32], weight: &Panels, bias: &[f32], out: &mut [f32], row_stride: usize| {
            let mut normed = vec![0.0f32; x.len()];
            normalise_rows(x, gamma, beta, epsilon, &mut normed);
            let normed = Matrix::new(&normed, x.len() / width, width, width);
            multiply(normed, weight, 1.0, Start::Row(bias), out, row_stride);
        };
        let first = if wanted.is_some() { 1 } else { 0 };
        let (weight, place) = (pack(first..3)?, first * width);
        let mut packed = vec![0.0f32; 3 * x.len()];
        let block = task_rows(x.len() / width);
        packed.par_chunks_mut(block * 3 * width).zip(x.par_chunks(block * width)).for_each(|(packed, x)| {
            product(x, &weight, &bias[place..], &mut packed[place..], 3 * width);
        });
        if let Some(wanted) = wanted {
            let mut queries = vec![0.0f32; wanted.len() * width];
            product(&rows_of(x, wanted, width), &pack(0..1)?, &bias[..width], &mut queries, width);
            for (row, queries) in wanted.iter().zip(queries.chunks_exact(width)) {
                packed[row * 3 * width..][..width].copy_from_slice(queries);
            }
        }
        Ok(packed)
    }

    /// The output of rows, and what is kept of them.
    fn forward(&self, x: &[f32], tokens: usize, width: usize) -> Result<(Vec<f32>, Kept)> {
        let Self { weights, attention, terms, .. } = self;
        let (epsilon, hidden) = (weights.epsilon as f32, weights.fc1[1].elem_count());
        let wanted = self.wanted(tokens);
        let packed = self.packed(x, wanted.as_deref(), width)?;
        let attended = attention.forward(&packed, tokens, width, None);
        let x: &[f32] = &wanted.map_or(Cow::Borrowed(x), |wanted| Cow::Owned(rows_of(x, &wanted, width)));
        let rows = x.len() / width;
        let block = task_rows(rows);
        let keeps = self.kept.is_some();
        let kept_rows = if keeps { rows } else { 0 };
        let (mut middle, mut arguments) = (vec![0.0f32; kept_rows * width], vec![0.0f32; kept_rows * hidden]);
        let mut y = vec![0.0f32; x.len()];
        let out_bias = borrow(&weights.out[1])?;
        let (gamma, beta) = (borrow(&weights.norm2[0])?, borrow(&weights.norm2[1])?);
        let (fc1_bias, fc2_bias) = (borrow(&weights.fc1[1])?, borrow(&weights.fc2[1])?);
        let (out_bias, gamma, beta): (&[f32], &[f32], &[f32]) = (&out_bias, &gamma, &beta);
        let (fc1_bias, fc2_bias): (&[f32], &[f32]) = (&fc1_bias, &fc2_bias);
        let out = pack_tensor(&weights.out[0], View::whole(width, width).turned(), *terms)?;
        let perceptron = self.perceptron(width, true)?;
        let work = |x: &[f32], attended: &[f32], y: &mut [f32], middle: &mut [f32], arguments: &mut [f32]| {
            let rows = x.len() / width;
            multiply(
                Matrix::new(attended, rows, width, width),
                &out,
                1.0,
                Start::Row(out_bias),
                middle,
                width,
            );
            add(middle, x);
            let mut normed = vec![0.0f32; x.len()];
            normalise_rows(middle, gamma, beta, epsilon, &mut normed);
            let mut activated = vec![0.0f32; rows * DEPTH.min(hidden)];
            for (slice, fc1, fc2) in &perceptron {
                let (first, length) = (slice.start, slice.len());
                let place = if keeps { first } else { 0 };
                let stride = if keeps { hidden } else { DEPTH.min(hidden) };
                let normed = Matrix::new(&normed, rows, width, width);
                let bias = Start::Row(&fc1_bias[slice.clone()]);
                multiply(normed, fc1, 1.0, bias, &mut arguments[place..], stride);
                for (row, activated) in activated.chunks_exact_mut(length).take(rows).enumerate() {
                    let argument = &arguments[row * stride + place..][..length];
                    apply(weights.activation, argument, activated);
                }
                let start = if first == 0 { Start::Row(fc2_bias) } else { Start::Kept };
                multiply(Matrix::new(&activated, rows, length, length), fc2, 1.0, start, y, width);
            }
            add(y, middle);
        };
        let tasks = y
            .par_chunks_mut(block * width)
            .zip(x.par_chunks(block * width).zip(attended.par_chunks(block * width)));
        if keeps {
            let kept = middle.par_chunks_mut(block * width).zip(arguments.par_chunks_mut(block * hidden));
            tasks.zip(kept).for_each(|((y, (x, attended)), (middle, arguments))| {
                work(x, attended, y, middle, arguments);
            });
        } else {
            tasks.for_each(|(y, (x, attended))| {
                let rows = x.len() / width;
                let (mut middle, mut arguments) =
                    (vec![0.0f32; x.len()], vec![0.0f32; rows * DEPTH.min(hidden)]);
                work(x, attended, y, &mut middle, &mut arguments);
            });
        }
        Ok((y, Kept { packed, attended, middle, hidden: arguments }))
    }

    /// The gradient of the input.
    fn backward(&self, x: &[f32], kept: &Kept, dy: &[f32], tokens: usize, width: usize) -> Result<Vec<f32>> {
        let Self { weights, attention, terms, .. } = self;
        let epsilon = weights.epsilon as f32;
        let hidden = weights.fc1[1].elem_count();
        let block = task_rows(dy.len() / width);
        let mut dmiddle = vec![0.0f32; dy.len()];
        let mut dattended = vec![0.0f32; dy.len()];
        {
            let gamma = borrow(&weights.norm2[0])?;
            let gamma: &[f32] = &gamma;
            let out = pack_tensor(&weights.out[0], View::whole(width, width), *terms)?;
            let perceptron = self.perceptron(width, false)?;
            let chunk = block * width;
            let saved = kept.middle.par_chunks(chunk).zip(kept.hidden.par_chunks(block * hidden));
            let results = dmiddle.par_chunks_mut(chunk).zip(dattended.par_chunks_mut(chunk));
            results.zip(dy.par_chunks(chunk)).zip(saved).for_each(
                |(((dmiddle, dattended), dy), (middle, arguments))| {
                    let rows = dy.len() / width;
                    let dy_rows = Matrix::new(dy, rows, width, width);
                    let mut dnormed = vec![0.0f32; dy.len()];
                    let mut dactivated = vec![0.0f32; rows * DEPTH.min(hidden)];
                    for (slice, fc1, fc2) in &perceptron {
                        let length = slice.len();
                        multiply(dy_rows, fc2, 1.0, Start::Zero, &mut dactivated, length);
                        for (row, dactivated) in dactivated.chunks_exact_mut(length).take(rows).enumerate() {
                            let argument = &arguments[row * hidden + slice.start..][..length];
                            times_slope(weights.activation, argument, dactivated);
                        }
                        let start = if slice.start == 0 { Start::Zero } else { Start::Kept };
                        let dactivated = Matrix::new(&dactivated, rows, length, length);
                        multiply(dactivated, fc1, 1.0, start, &mut dnormed, width);
                    }
                    rows_gradient(middle, gamma, epsilon, &dnormed, dmiddle);
                    add(dmiddle, dy);
                    let dmiddle = Matrix::new(dmiddle, rows, width, width);
                    multiply(dmiddle, &out, 1.0, Start::Zero, dattended, width);
                },
            );
        }
        let values = [kept.packed.as_slice(), &kept.attended, &dattended];
        let (dpacked, _) = attention.backward(values, tokens, width, None, false);
        // Of the stream between the halves, which is the input's too.
        let mut dx = match self.wanted(tokens) {
            None => dmiddle,
            Some(wanted) => {
                let mut dx = vec![0.0f32; x.len()];
                for (row, dmiddle) in wanted.into_iter().zip(dmiddle.chunks_exact(width)) {
                    dx[row * width..(row + 1) * width].copy_from_slice(dmiddle);
                }
                dx
            }
        };
        let block = task_rows(x.len() / width);
        let gamma = borrow(&weights.norm1[0])?;
        let gamma: &[f32] = &gamma;
        let qkv = pack_tensor(&weights.qkv[0], View::whole(3 * width, width), *terms)?;
        let rows = dpacked.par_chunks(block * 3 * width).zip(x.par_chunks(block * width));
        dx.par_chunks_mut(block * width).zip(rows).for_each(|(dx, (dpacked, x))| {
            let rows = x.len() / width;
            let (mut dnormed, mut added) = (vec![0.0f32; x.len()], vec![0.0f32; x.len()]);
            let dpacked = Matrix::new(dpacked, rows, 3 * width, 3 * width);
            multiply(dpacked, &qkv, 1.0, Start::Zero, &mut dnormed, width);
            rows_gradient(x, gamma, epsilon, &dnormed, &mut added);
            add(dx, &added);
        });
        Ok(dx)
    }
}

impl CustomOp1 for Block {
    fn name(&self) -> &'static str {
        "frozen block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, tokens, width) = layout.shape().dims3()?;
        let (y, values) = self.forward(contiguous(x, layout, "x")?, tokens, width)?;
        if let Some(kept) = &self.kept {
            // The operation is applied once.
            kept.get_or_init(|| values);
        }
        let shape = match &self.attention.asked {
            Some(asked) => Shape::from((asked.len(), width)),
            None => layout.shape().clone(),
        };
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(kept) = self.kept.as_ref().and_then(OnceLock::get) else {
            bail!("a block without a gradient has none to give");
        };
        let (_, tokens, width) = x.dims3()?;
        let grad = grad.contiguous()?;
        let dx = self.backward(&borrow(x)?, kept, &borrow(&grad)?, tokens, width)?;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
