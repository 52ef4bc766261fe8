//! The losses of models that answer by classification.

use candle_core::{Result, Tensor};

/// A loss and what it is made of, each `[]`.
#[derive(Clone, Debug)]
pub struct AnswerLoss {
    /// What is minimised.
    pub total: Tensor,
    /// The parts before their weights, by name.
    pub parts: Vec<(&'static str, Tensor)>,
}

/// The name of the part that reconstructs images.
pub(super) const RECONSTRUCTION: &str = "reconstruction";

/// The sigmoid cross entropy of each answer: `logits` and `targets` `[batch, answers]`, targets in 0..1.
/// max(z, 0) - z t + ln(1 + e^-|z|), which never overflows.
fn cross_entropies(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let targets = targets.to_dtype(logits.dtype())?;
    let linear = (logits.relu()? - (logits * targets)?)?;
    linear + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// Sigmoid cross entropy with soft targets, the sum over all questions and answers: `logits` and `targets`
/// `[batch, answers]`. MEVF divides it by the batch.
///
/// # Errors
/// If the shapes differ.
pub fn soft_cross_entropy_sum(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    cross_entropies(logits, targets)?.sum_all()
}

/// As [`soft_cross_entropy_sum`], the mean over all questions and answers (QCR).
///
/// # Errors
/// If the shapes differ.
pub fn soft_cross_entropy_mean(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    cross_entropies(logits, targets)?.mean_all()
}
