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

/// As [`cross_entropy`], each sample weighted by its class: the weighted sum over `total`. With the weights of
/// a batch as `total` it is the weighted mean (PyTorch's `CrossEntropyLoss(weight=...)`); a batch in pieces
/// has their sum.
///
/// # Errors
/// If a target is no class, or has no weight.
pub fn weighted_cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    class_weights: &Tensor,
    total: f64,
) -> Result<Tensor> {
    let targets = targets.to_dtype(DType::U32)?.contiguous()?;
    let picked = log_softmax(logits)?.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
    (picked * class_weights.index_select(&targets, 0)?)?.sum_all()?.affine(-1.0 / total, 0.0)
}

/// As [`binary_cross_entropy`], positives weighted by their label, `[labels]` (PyTorch's
/// `BCEWithLogitsLoss(pos_weight=...)`): (1 - t) z + (1 + (w - 1) t) (ln(1 + e^-|z|) + max(-z, 0)).
///
/// # Errors
/// If the shapes differ.
pub fn weighted_binary_cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    positive_weights: &Tensor,
) -> Result<Tensor> {
    // max(-z, 0) as max(z, 0) - z: candle's slopes of |z| and max(z, 0) at 0 are 1 both, and only so is the slope of the
    // sum -1/2 there, where new heads begin.
    let softplus = (((logits.abs()?.neg()?.exp()? + 1.0)?.log()? + logits.relu()?)? - logits)?;
    let weights = (targets.broadcast_mul(&(positive_weights - 1.0)?)? + 1.0)?;
    let linear = (logits * (1.0 - targets)?)?;
    (linear + (weights * softplus)?)?.mean_all()
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
/// `[pairs, pairs]` (image, caption): [margin + S_ij - S_ii]+ and [margin + S_ij - S_jj]+, 0 on the
/// diagonal and for `excluded`.
fn hinge_costs(similarities: &Tensor, margin: f64, excluded: &[(usize, usize)]) -> Result<(Tensor, Tensor)> {
    let (rows, columns) = similarities.dims2()?;
    if rows != columns {
        candle_core::bail!("similarities of pairs are square, not [{rows}, {columns}]");
    }
    let (dtype, device) = (similarities.dtype(), similarities.device());
    let identity = Tensor::eye(rows, dtype, device)?;
    let mut negatives = vec![1.0f32; rows * rows];
    let diagonal = (0..rows).map(|row| (row, row));
    for (row, column) in excluded.iter().copied().chain(diagonal) {
        negatives[row * rows + column] = 0.0;
    }
    let negatives = Tensor::from_vec(negatives, (rows, rows), device)?.to_dtype(dtype)?;
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

/// As [`row_maxima`], of columns.
fn column_maxima(costs: &Tensor) -> Result<Tensor> {
    row_maxima(&costs.t()?.contiguous()?)
}

/// The hinge loss of image-text retrieval over `similarities` `[pairs, pairs]` (rows: images), matching
/// pairs on the diagonal, summed over queries and both directions. Entries of `excluded` (row, column),
/// pairs that are no true negatives, cost nothing.
///
/// # Errors
/// If the similarities are not square.
pub fn hinge(similarities: &Tensor, margin: f64, kind: Hinge, excluded: &[(usize, usize)]) -> Result<Tensor> {
    let (captions, images) = hinge_costs(similarities, margin, excluded)?;
    let (captions, images) = match kind {
        Hinge::Max => (row_maxima(&captions)?, column_maxima(&images)?),
        Hinge::Sum | Hinge::Mean => (captions, images),
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
    let (captions, images) = hinge_costs(similarities, margin, &[])?;
    Ok((row_maxima(&captions)?, column_maxima(&images)?))
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn similarities() -> Var {
        let values = [0.9f64, 0.4, 0.1, 0.8, 0.5, 0.3, -0.2, 0.6, 0.7];
        Var::from_tensor(&Tensor::from_slice(&values, (3, 3), &Device::Cpu).unwrap()).unwrap()
    }

    fn scalar(loss: &Tensor) -> f64 {
        loss.to_scalar().unwrap()
    }

    /// A head that begins at zero gives logits of exactly 0, where |z| and max(z, 0) have kinks that must cancel.
    #[test]
    fn at_zero_the_slopes_are_those_of_the_sigmoid() {
        let logits = Var::from_tensor(&Tensor::zeros((1, 2), DType::F64, &Device::Cpu).unwrap()).unwrap();
        let targets = Tensor::from_slice(&[1.0f64, 0.0], (1, 2), &Device::Cpu).unwrap();
        let weights = Tensor::from_slice(&[3.0f64, 3.0], 2, &Device::Cpu).unwrap();
        let slopes = |loss: Tensor| -> Vec<f64> {
            let gradients = loss.backward().unwrap();
            gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        // sigmoid(0) - t over two bits; the positive one weighs three times as much.
        assert_eq!(slopes(binary_cross_entropy(&logits, &targets).unwrap()), [-0.25, 0.25]);
        assert_eq!(
            slopes(weighted_binary_cross_entropy(&logits, &targets, &weights).unwrap()),
            [-0.75, 0.25]
        );
    }

    #[test]
    fn weights_of_one_change_nothing_and_others_weigh() {
        let values = [0.9f64, -0.4, 2.1, 0.8, -1.5, 0.3];
        let at = |values: &[f64]| Tensor::from_slice(values, (3, 2), &Device::Cpu).unwrap();
        let logits = Var::from_tensor(&at(&values)).unwrap();
        let classes = Tensor::from_slice(&[1u32, 0, 1], 3, &Device::Cpu).unwrap();
        let bits = at(&[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        let weights = |weights: [f64; 2]| Tensor::from_slice(&weights, 2, &Device::Cpu).unwrap();
        let plain = scalar(&cross_entropy(&logits, &classes).unwrap());
        let ones = weighted_cross_entropy(&logits, &classes, &weights([1.0, 1.0]), 3.0).unwrap();
        assert!((scalar(&ones) - plain).abs() < 1e-12);
        let losses: Vec<f64> = (0..3)
            .map(|row| {
                let logits = logits.narrow(0, row, 1).unwrap();
                scalar(&cross_entropy(&logits, &classes.narrow(0, row, 1).unwrap()).unwrap())
            })
            .collect();
        let expected = (2.0 * losses[0] + 0.5 * losses[1] + 2.0 * losses[2]) / 4.5;
        let weighted = weighted_cross_entropy(&logits, &classes, &weights([0.5, 2.0]), 4.5).unwrap();
        assert!((scalar(&weighted) - expected).abs() < 1e-12);

        let plain = scalar(&binary_cross_entropy(&logits, &bits).unwrap());
        let ones = weighted_binary_cross_entropy(&logits, &bits, &weights([1.0, 1.0])).unwrap();
        assert!((scalar(&ones) - plain).abs() < 1e-12);
        let loss =
            |logits: &Tensor| weighted_binary_cross_entropy(logits, &bits, &weights([3.0, 0.5])).unwrap();
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        let expected = 3.0 * softplus(-0.9)
            + softplus(-0.4)
            + softplus(2.1)
            + 0.5 * softplus(-0.8)
            + 3.0 * softplus(1.5)
            + softplus(0.3);
        assert!((scalar(&loss(&logits)) - expected / 6.0).abs() < 1e-12);
        let gradients = loss(&logits).backward().unwrap();
        let gradients = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (place, gradient) in gradients.iter().enumerate() {
            let moved = |by: f64| {
                let mut values = values;
                values[place] += by;
                scalar(&loss(&at(&values)))
            };
            assert!(((moved(1e-6) - moved(-1e-6)) / 2e-6 - gradient).abs() < 1e-8, "{place}");
        }
    }

    #[test]
    fn hinges_by_hand() {
        let s = similarities();
        // Rows: 0, {0.8 + 0.2 - 0.5, 0.3 + 0.2 - 0.5}, {0.6 + 0.2 - 0.7};
        // columns: {0.8 + 0.2 - 0.9}, {0.4 + 0.2 - 0.5, 0.6 + 0.2 - 0.5}, 0.
        let sum = scalar(&hinge(&s, 0.2, Hinge::Sum, &[]).unwrap());
        assert!((sum - (0.5 + 0.1 + 0.1 + 0.1 + 0.3)).abs() < 1e-12, "{sum}");
        let max = scalar(&hinge(&s, 0.2, Hinge::Max, &[]).unwrap());
        assert!((max - (0.5 + 0.1 + 0.1 + 0.3)).abs() < 1e-12, "{max}");
        let mean = scalar(&hinge(&s, 0.2, Hinge::Mean, &[]).unwrap());
        assert!((mean - sum / 3.0).abs() < 1e-12);
        let without = scalar(&hinge(&s, 0.2, Hinge::Sum, &[(1, 0)]).unwrap());
        assert!((without - (sum - 0.6)).abs() < 1e-12, "{without}");
    }

    #[test]
    fn gradients_of_hinges_are_those_of_the_losses() {
        for kind in [Hinge::Max, Hinge::Sum, Hinge::Mean] {
            let s = similarities();
            let gradients = hinge(&s, 0.23, kind, &[(0, 1)]).unwrap().backward().unwrap();
            let gradient = gradients.get(&s).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let values = s.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for (place, gradient) in gradient.iter().enumerate() {
                let moved = |by: f64| {
                    let mut values = values.clone();
                    values[place] += by;
                    let s = Tensor::from_vec(values, (3, 3), &Device::Cpu).unwrap();
                    scalar(&hinge(&s, 0.23, kind, &[(0, 1)]).unwrap())
                };
                let numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((numeric - gradient).abs() < 1e-6, "{kind:?} {place}: {numeric} {gradient}");
            }
        }
    }
}
