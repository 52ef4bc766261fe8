//! Losses: means over the batch, in f32.

use candle_core::{D, DType, Result, Tensor};

use crate::ops::composed::log_softmax;

/// Softmax cross entropy: `logits` `[batch, classes]`, `targets` `[batch]` (u32).
///
/// # Errors
/// If a target is no class.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let picked =
        log_softmax(logits)?.gather(&targets.to_dtype(DType::U32)?.unsqueeze(1)?.contiguous()?, 1)?;
    picked.mean_all()?.neg()
}

/// Sigmoid cross entropy, mean over all bits: `logits` and `targets` `[batch, labels]`, targets 0 or 1.
/// max(z, 0) - z t + ln(1 + e^-|z|), which never overflows.
///
/// # Errors
/// If the shapes differ.
pub fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let linear = (logits.relu()? - (logits * targets)?)?;
    let tail = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    (linear + tail)?.mean_all()
}

/// How the hinge losses of image-text retrieval add up their negatives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hinge {
    /// The hardest negative of each query (VSE++, Faghri et al. 2018).
    Max,
    /// All negatives (VSE0).
    Sum,
    /// Their mean, the pair itself counting as one of 0: the sum over the batch size.
    Mean,
}

/// Costs of the wrong captions of each image and of the wrong images of each caption, both
/// `[pairs, pairs]` (image, caption): [margin + S_ij - S_ii]+ and [margin + S_ij - S_jj]+, 0 on the diagonal.
fn hinge_costs(similarities: &Tensor, margin: f64) -> Result<(Tensor, Tensor)> {
    let (rows, columns) = similarities.dims2()?;
    if rows != columns {
        candle_core::bail!("similarities of pairs are square, not [{rows}, {columns}]");
    }
    let (dtype, device) = (similarities.dtype(), similarities.device());
    let identity = Tensor::eye(rows, dtype, device)?;
    let negatives = (Tensor::ones((rows, rows), dtype, device)? - &identity)?;
    let own = (similarities * &identity)?.sum_keepdim(D::Minus1)?;
    let cost =
        |own: &Tensor| ((similarities + margin)?.broadcast_sub(own)?.relu()? * &negatives)?.contiguous();
    Ok((cost(&own)?, cost(&own.t()?.contiguous()?)?))
}

/// The greatest entry of each row; the gradient goes to the first of equals alone.
fn row_maxima(costs: &Tensor) -> Result<Tensor> {
    let places = costs.detach().argmax_keepdim(D::Minus1)?;
    costs.gather(&places, D::Minus1)?.squeeze(D::Minus1)
}

/// The hinge loss of image-text retrieval over `similarities` `[pairs, pairs]` (rows: images), matching
/// pairs on the diagonal, summed over queries and both directions.
///
/// # Errors
/// If the similarities are not square.
pub fn hinge(similarities: &Tensor, margin: f64, kind: Hinge) -> Result<Tensor> {
    let (captions, images) = match kind {
        Hinge::Max => discriminability(similarities, margin)?,
        Hinge::Sum | Hinge::Mean => hinge_costs(similarities, margin)?,
    };
    let sum = (captions.sum_all()? + images.sum_all()?)?;
    if kind == Hinge::Mean { sum / similarities.dim(0)? as f64 } else { Ok(sum) }
}

/// The discriminability loss of each caption (Luo et al. 2018): how much less the caption suits its
/// image than the hardest other caption does, and how much less than the hardest other image; each
/// with the margin, at least 0, `[pairs]`.
///
/// # Errors
/// If the similarities are not square.
pub fn discriminability(similarities: &Tensor, margin: f64) -> Result<(Tensor, Tensor)> {
    let (captions, images) = hinge_costs(similarities, margin)?;
    Ok((row_maxima(&captions)?, row_maxima(&images.t()?.contiguous()?)?))
}

/// The symmetric contrastive loss of CLIP over `logits` `[pairs, pairs]`, scale applied. Entries of
/// `excluded` (row, column), pairs that are no true negatives, are left out of both softmaxes.
///
/// # Errors
/// If the logits are not square.
pub fn info_nce(logits: &Tensor, excluded: &[(usize, usize)]) -> Result<Tensor> {
    let (rows, columns) = logits.dims2()?;
    if rows != columns {
        candle_core::bail!("contrastive logits are square, not [{rows}, {columns}]");
    }
    let masked = if excluded.is_empty() {
        logits.clone()
    } else {
        let mut mask = vec![0.0f32; rows * rows];
        for (row, column) in excluded {
            if row != column {
                mask[row * rows + column] = -1e9;
            }
        }
        (logits + Tensor::from_vec(mask, (rows, rows), logits.device())?.to_dtype(logits.dtype())?)?
    };
    let diagonal: Vec<u32> = (0..rows as u32).collect();
    let diagonal = Tensor::from_vec(diagonal, (rows, 1), logits.device())?;
    let by_image = log_softmax(&masked)?.gather(&diagonal, D::Minus1)?.mean_all()?;
    let by_text = log_softmax(&masked.t()?.contiguous()?)?.gather(&diagonal, D::Minus1)?.mean_all()?;
    (by_image + by_text)? * -0.5
}
