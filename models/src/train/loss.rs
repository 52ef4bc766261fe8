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
        (logits + Tensor::from_vec(mask, (rows, rows), logits.device())?)?
    };
    let diagonal: Vec<u32> = (0..rows as u32).collect();
    let diagonal = Tensor::from_vec(diagonal, (rows, 1), logits.device())?;
    let by_image = log_softmax(&masked)?.gather(&diagonal, D::Minus1)?.mean_all()?;
    let by_text = log_softmax(&masked.t()?.contiguous()?)?.gather(&diagonal, D::Minus1)?.mean_all()?;
    (by_image + by_text)? * -0.5
}
