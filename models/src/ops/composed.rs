//! The same operations composed of candle's differentiable ones: the path of other devices, of
//! probes that look inside, and the twin that tests compare the kernels with.

use candle_core::{D, Result, Tensor};

use crate::Activation;

/// As [`super::linear()`].
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.broadcast_matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
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
        Activation::Relu => x.relu(),
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
/// If the width is no multiple of the number of heads.
pub fn attention(packed: &Tensor, heads: usize, causal: bool) -> Result<(Tensor, Tensor)> {
    let probabilities = attention_probabilities(packed, heads, causal)?;
    Ok((attend(packed, &probabilities)?, probabilities))
}

/// The probabilities `[batch, heads, tokens, tokens]` of packed queries and keys.
///
/// # Errors
/// As [`attention()`].
pub fn attention_probabilities(packed: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (queries, keys) = (head_part(packed, heads, 0)?, head_part(packed, heads, 1)?);
    let head_width = queries.dim(D::Minus1)? as f64;
    let mut scores = (queries.matmul(&keys.t()?.contiguous()?)? * (1.0 / head_width.sqrt()))?;
    if causal {
        let tokens = scores.dim(D::Minus1)?;
        let mask: Vec<f32> = (0..tokens * tokens)
            .map(|index| if index % tokens > index / tokens { f32::MIN } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (tokens, tokens), packed.device())?.to_dtype(packed.dtype())?;
        scores = scores.broadcast_add(&mask)?;
    }
    softmax(&scores)
}

/// Values weighted by `probabilities` `[batch, heads, tokens, tokens]`, heads merged.
///
/// # Errors
/// As [`attention()`].
pub fn attend(packed: &Tensor, probabilities: &Tensor) -> Result<Tensor> {
    let (batch, tokens, triple) = packed.dims3()?;
    let heads = probabilities.dim(1)?;
    let values = head_part(packed, heads, 2)?;
    probabilities.matmul(&values)?.transpose(1, 2)?.contiguous()?.reshape((batch, tokens, triple / 3))
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
