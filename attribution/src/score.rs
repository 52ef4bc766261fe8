//! What is attributed: a differentiable number per sample.

use candle_core::{Result, Tensor};
use pipe_models::MaybeProbe;

/// A differentiable score: one number per sample of a batch. A class logit, a margin between two
/// logits, or an image-text similarity; attribution methods know nothing else of a model.
pub trait Score: Sync {
    /// The scores `[batch]` of `input` `[batch, ...]`, in f32, with the graph to the input kept.
    /// `samples[i]` is the index, within the set that is explained, of the sample that row i of
    /// `input` was made from (methods expand one sample into many rows), so that a score can hold
    /// a target per sample.
    ///
    /// # Errors
    /// Whatever the model's forward pass reports.
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor>;
}
