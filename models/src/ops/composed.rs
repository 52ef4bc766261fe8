//! The same operations composed of candle's differentiable ones: the path of other devices, of
//! probes that look inside, and the twin that tests compare the kernels with.

use candle_core::{D, Result, Tensor};

use super::{Padding3, RunningStatistics, Scores, Window, is_half, wide};
use crate::Activation;

/// As [`super::linear()`].
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.broadcast_matmul(&weight.to_dtype(x.dtype())?.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?),
        None => Ok(y),
    }
}

/// As [`super::scaled()`].
///
/// # Errors
/// If the factor is no scalar.
pub fn scaled(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(factor)
}

/// As [`super::layer_norm()`].
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normalised = centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?;
    normalised.broadcast_mul(gamma)?.broadcast_add(beta)
}

/// As [`fn@super::batch_norm`].
///
/// # Errors
/// If the shapes do not fit.
pub fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    statistics: &RunningStatistics,
) -> Result<Tensor> {
    let scale = (gamma * statistics.inverse_deviation()?)?;
    x.broadcast_sub(&statistics.mean)?.broadcast_mul(&scale)?.broadcast_add(beta)
}

/// As [`super::batch_norm_of_batch`].
///
/// # Errors
/// If the shapes do not fit.
pub fn batch_norm_of_batch(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    epsilon: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let rows = x.reshape(((), gamma.elem_count()))?;
    let mean = rows.mean_keepdim(0)?;
    let centred = rows.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(0)?;
    let scale = (&variance + epsilon)?.sqrt()?.recip()?.broadcast_mul(gamma)?;
    let y = centred.broadcast_mul(&scale)?.broadcast_add(beta)?.reshape(x.shape())?;
    Ok((y, mean.detach().squeeze(0)?, variance.detach().squeeze(0)?))
}

/// As [`super::conv2d()`]: a sum over the places of the kernel.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(x: &Tensor, kernel: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    let (_, rows, columns, _) = x.dims4()?;
    let (_, kernel_rows, kernel_columns, _) = kernel.dims4()?;
    let positions = [window.positions(rows, kernel_rows)?, window.positions(columns, kernel_columns)?];
    let padded = x.pad_with_zeros(1, window.padding, window.padding)?.pad_with_zeros(
        2,
        window.padding,
        window.padding,
    )?;
    let mut sum: Option<Tensor> = None;
    for row in 0..kernel_rows {
        for column in 0..kernel_columns {
            let seen = strided(
                &strided(&padded, 1, row, window.stride, positions[0])?,
                2,
                column,
                window.stride,
                positions[1],
            )?;
            let weight =
                kernel.narrow(1, row, 1)?.narrow(2, column, 1)?.squeeze(2)?.squeeze(1)?.contiguous()?;
            let part = linear(&seen, &weight, None)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    let Some(sum) = sum else { candle_core::bail!("a kernel of {:?} has no place", kernel.dims()) };
    match bias {
        Some(bias) => sum.broadcast_add(&bias.to_dtype(sum.dtype())?),
        None => Ok(sum),
    }
}

/// As [`super::stack_steps`].
///
/// # Errors
/// If the window does not fit.
pub fn stack_steps(x: &Tensor, kernel: usize, window: Window) -> Result<Tensor> {
    let (batch, steps, rows, columns, channels) = x.dims5()?;
    let positions = window.positions(steps, kernel)?;
    let padded = x.pad_with_zeros(1, window.padding, window.padding)?;
    let taps = (0..kernel).map(|tap| strided(&padded, 1, tap, window.stride, positions));
    let stacked = Tensor::cat(&taps.collect::<Result<Vec<_>>>()?, 4)?;
    stacked.reshape((batch * positions, rows, columns, kernel * channels))
}

/// As [`super::conv_transpose2d()`]: a convolution over images between whose pixels there are zeros.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv_transpose2d(
    x: &Tensor,
    kernel: &Tensor,
    bias: &Tensor,
    window: Window,
    [out_rows, out_columns]: [usize; 2],
) -> Result<Tensor> {
    let (batch, rows, columns, channels) = x.dims4()?;
    let (_, kernel_rows, kernel_columns, _) = kernel.dims4()?;
    let Window { stride, padding } = window;
    // A pixel and the zeros behind it, along both axes.
    let spread = x
        .reshape((batch, rows, 1, columns * channels))?
        .pad_with_zeros(2, 0, stride - 1)?
        .reshape((batch, rows * stride, columns, 1, channels))?
        .pad_with_zeros(3, 0, stride - 1)?
        .reshape((batch, rows * stride, columns * stride, channels))?;
    let around = |kernel: usize, pixels: usize, out: usize| -> Result<[usize; 2]> {
        let (Some(front), Some(back)) =
            ((kernel - 1).checked_sub(padding), (out + padding).checked_sub(pixels * stride))
        else {
            candle_core::bail!("a padding of {padding} does not fit a kernel of {kernel}");
        };
        Ok([front, back])
    };
    let [above, below] = around(kernel_rows, rows, out_rows)?;
    let [left, right] = around(kernel_columns, columns, out_columns)?;
    let padded = spread.pad_with_zeros(1, above, below)?.pad_with_zeros(2, left, right)?;
    let flipped = flip(&flip(kernel, 1)?, 2)?.permute((3, 1, 2, 0))?.contiguous()?;
    conv2d(&padded, &flipped, Some(bias), Window { stride: 1, padding: 0 })
}

/// An axis in reverse.
fn flip(x: &Tensor, axis: usize) -> Result<Tensor> {
    let length = x.dim(axis)?;
    let places: Vec<u32> = (0..length as u32).rev().collect();
    x.contiguous()?.index_select(&Tensor::from_vec(places, length, x.device())?, axis)
}

/// Every `stride`-th of an axis from `first` on, `count` of them.
fn strided(x: &Tensor, axis: usize, first: usize, stride: usize, count: usize) -> Result<Tensor> {
    if stride == 1 {
        return x.narrow(axis, first, count)?.contiguous();
    }
    let places: Vec<u32> = (0..count).map(|place| (first + place * stride) as u32).collect();
    x.contiguous()?.index_select(&Tensor::from_vec(places, count, x.device())?, axis)
}

/// As [`super::average_pool2d`].
///
/// # Errors
/// If the image is smaller than a square.
pub fn average_pool2d(x: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, rows, columns, channels) = x.dims4()?;
    let (rows, columns) = (rows / side, columns / side);
    x.narrow(1, 0, rows * side)?
        .narrow(2, 0, columns * side)?
        .contiguous()?
        .reshape((batch, rows, side, columns, side * channels))?
        .mean(2)?
        .reshape((batch, rows, columns, side, channels))?
        .mean(3)
}

/// As [`super::max_pool2d`]; equal values share the gradient.
///
/// # Errors
/// If the window does not fit.
pub fn max_pool2d(x: &Tensor, side: usize, window: Window) -> Result<Tensor> {
    let (_, rows, columns, _) = x.dims4()?;
    let positions = [window.positions(rows, side)?, window.positions(columns, side)?];
    // Padding lies below every value.
    let lowest = (x.min_all()?.detach() - 1.0)?;
    let padded = x
        .broadcast_sub(&lowest)?
        .pad_with_zeros(1, window.padding, window.padding)?
        .pad_with_zeros(2, window.padding, window.padding)?;
    let mut greatest: Option<Tensor> = None;
    for row in 0..side {
        for column in 0..side {
            let seen = strided(
                &strided(&padded, 1, row, window.stride, positions[0])?,
                2,
                column,
                window.stride,
                positions[1],
            )?;
            greatest = Some(match greatest {
                Some(greatest) => greatest.maximum(&seen)?,
                None => seen,
            });
        }
    }
    let Some(greatest) = greatest else { candle_core::bail!("a window of {side} has no place") };
    greatest.broadcast_add(&lowest)
}

/// As [`super::depthwise_conv3d`]: a sum over the taps of the kernel.
///
/// # Errors
/// If the shapes do not fit.
pub fn depthwise_conv3d(x: &Tensor, kernel: &Tensor, bias: &Tensor, padding: Padding3) -> Result<Tensor> {
    let mut padded = x.clone();
    for (axis, [front, back]) in padding.into_iter().enumerate() {
        padded = padded.pad_with_zeros(axis + 1, front, back)?;
    }
    let (_, steps, rows, columns, _) = padded.dims5()?;
    let (channels, _, kernel_steps, kernel_rows, kernel_columns) = kernel.dims5()?;
    let (kernel, bias) = (kernel.to_dtype(x.dtype())?, bias.to_dtype(x.dtype())?);
    let mut sum = bias.reshape((1, 1, 1, 1, channels))?;
    for step in 0..kernel_steps {
        for row in 0..kernel_rows {
            for column in 0..kernel_columns {
                let seen = padded
                    .narrow(1, step, steps + 1 - kernel_steps)?
                    .narrow(2, row, rows + 1 - kernel_rows)?
                    .narrow(3, column, columns + 1 - kernel_columns)?;
                let weight = kernel.narrow(2, step, 1)?.narrow(3, row, 1)?.narrow(4, column, 1)?;
                sum = sum.broadcast_add(&seen.broadcast_mul(&weight.reshape(channels)?)?)?;
            }
        }
    }
    Ok(sum)
}

/// As [`super::geglu`].
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)? / 2;
    x.narrow(D::Minus1, 0, width)?
        * activate(&x.narrow(D::Minus1, width, width)?.contiguous()?, Activation::Gelu)?
}

/// As [`super::scaled_unit`].
///
/// # Errors
/// If the shapes do not fit.
pub fn scaled_unit(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let lengths = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    // A sum instead of the maximum: at any length that counts, both round to the same.
    x.broadcast_div(&(lengths + 1e-12)?)?.broadcast_mul(scale)
}

/// As [`super::frobenius_norm`].
///
/// # Errors
/// Whatever the device reports.
pub fn frobenius_norm(x: &Tensor) -> Result<Tensor> {
    // The smallest normal number of f32: the root has a gradient at 0.
    (x.sqr()?.sum_all()? + f64::from(f32::MIN_POSITIVE))?.sqrt()
}

/// 1 / (1 + e^-x), without overflow.
///
/// # Errors
/// Whatever the device reports.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x * 0.5)?.tanh()?.affine(0.5, 0.5)
}

/// As [`super::lstm`].
///
/// # Errors
/// If the shapes do not fit.
pub fn lstm(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, length, _) = inputs.dims3()?;
    let hidden = weight.dim(1)?;
    let mut state = Tensor::zeros((batch, hidden), inputs.dtype(), inputs.device())?;
    let mut cell = state.clone();
    let mut states = Vec::with_capacity(length);
    for place in 0..length {
        let gates = (inputs.narrow(1, place, 1)?.squeeze(1)? + super::linear(&state, weight, Some(bias))?)?;
        let part = |index: usize| gates.narrow(1, index * hidden, hidden);
        let kept = (sigmoid(&part(1)?)? * cell)?;
        cell = (kept + (sigmoid(&part(0)?)? * part(2)?.tanh()?)?)?;
        state = (sigmoid(&part(3)?)? * cell.tanh()?)?;
        states.push(state.clone());
    }
    Tensor::stack(&states, 1)
}

/// As [`super::gru`].
///
/// # Errors
/// If the shapes do not fit.
pub fn gru(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, length, _) = inputs.dims3()?;
    let hidden = weight.dim(1)?;
    let mut state = Tensor::zeros((batch, hidden), inputs.dtype(), inputs.device())?;
    let mut states = Vec::with_capacity(length);
    for place in 0..length {
        let added = inputs.narrow(1, place, 1)?.squeeze(1)?;
        let own = super::linear(&state, weight, Some(bias))?;
        let gate = |index: usize| -> Result<Tensor> {
            let [added, own] = [&added, &own].map(|x| x.narrow(1, index * hidden, hidden));
            sigmoid(&(added? + own?)?)
        };
        let (reset, update) = (gate(0)?, gate(1)?);
        let own = (reset * own.narrow(1, 2 * hidden, hidden)?)?;
        let new = (added.narrow(1, 2 * hidden, hidden)? + own)?.tanh()?;
        state = (&new + (update * (state - &new)?)?)?;
        states.push(state.clone());
    }
    Tensor::stack(&states, 1)
}

/// Softmax over the last dimension.
///
/// # Errors
/// Whatever the device reports.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let max = x.max_keepdim(D::Minus1)?.detach();
    let exponentials = x.broadcast_sub(&max)?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// Logarithm of softmax over the last dimension.
///
/// # Errors
/// Whatever the device reports.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// As [`super::activate`].
///
/// # Errors
/// Whatever the device reports.
pub fn activate(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match kind {
        // candle's own has the slope 1 at 0.
        Activation::Relu => x.gt(0.0)?.where_cond(x, &x.zeros_like()?),
        Activation::Gelu => x.gelu_erf(),
        Activation::QuickGelu => {
            let sigmoid = ((x * -1.702)?.exp()? + 1.0)?.recip()?;
            x * sigmoid
        }
    }
}

/// As [`super::attention()`], with the probabilities `[batch, heads, tokens, tokens]` beside the result.
///
/// # Errors
/// If the width is no multiple of the number of heads, or mask or bias do not fit.
pub fn attention(packed: &Tensor, scores: &Scores<'_>) -> Result<(Tensor, Tensor)> {
    let probabilities = attention_probabilities(packed, scores)?;
    Ok((attend(packed, &probabilities)?, probabilities))
}

/// The probabilities `[batch, heads, tokens, tokens]` of packed queries and keys; of half types in f32.
///
/// # Errors
/// As [`attention()`].
pub fn attention_probabilities(packed: &Tensor, scores: &Scores<'_>) -> Result<Tensor> {
    let Scores { heads, .. } = *scores;
    let (queries, keys) = (head_part(packed, heads, 0)?, head_part(packed, heads, 1)?);
    let head_width = queries.dim(D::Minus1)? as f64;
    let scale = scores.scale.unwrap_or_else(|| head_width.powf(-0.5));
    let products = queries.matmul(&keys.t()?.contiguous()?)?;
    // A factor of 1/8 would not harm, but masks and sums want the range and the digits of f32.
    let products = if is_half(packed) { wide(&products)? } else { products };
    let mut products = (products * scale)?;
    let dtype = products.dtype();
    if let Some(bias) = scores.bias {
        products = products.broadcast_add(&bias.to_dtype(dtype)?)?;
    }
    if scores.causal {
        let tokens = products.dim(D::Minus1)?;
        let mask: Vec<f32> = (0..tokens * tokens)
            .map(|index| if index % tokens > index / tokens { HIDDEN } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (tokens, tokens), packed.device())?.to_dtype(dtype)?;
        products = products.broadcast_add(&mask)?;
    }
    if let Some(mask) = scores.mask {
        let (batch, tokens) = mask.dims2()?;
        let hidden = mask.ne(0.0)?.to_dtype(dtype)?.affine(-f64::from(HIDDEN), f64::from(HIDDEN))?;
        products = products.broadcast_add(&hidden.reshape((batch, 1, 1, tokens))?)?;
    }
    softmax(&products)
}

/// Added to the scores of what is not seen: finite, so that a row that sees nothing is uniform.
const HIDDEN: f32 = f32::MIN / 2.0;

/// Values weighted by `probabilities` `[batch, heads, tokens, tokens]`, heads merged.
///
/// # Errors
/// As [`attention()`].
pub fn attend(packed: &Tensor, probabilities: &Tensor) -> Result<Tensor> {
    let (batch, tokens, triple) = packed.dims3()?;
    let heads = probabilities.dim(1)?;
    let values = head_part(packed, heads, 2)?;
    let attended = probabilities.to_dtype(packed.dtype())?.matmul(&values)?;
    attended.transpose(1, 2)?.contiguous()?.reshape((batch, tokens, triple / 3))
}

/// Part 0, 1 or 2 of the packed tensor as `[batch, heads, tokens, head width]`.
fn head_part(packed: &Tensor, heads: usize, part: usize) -> Result<Tensor> {
    let (batch, tokens, triple) = packed.dims3()?;
    let width = triple / 3;
    packed
        .narrow(2, part * width, width)?
        .contiguous()?
        .reshape((batch, tokens, heads, width / heads))?
        .transpose(1, 2)?
        .contiguous()
}
