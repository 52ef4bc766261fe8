//! What every model that answers questions about images offers.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};

use super::{AnswerLoss, Batch, JointAttention, Mode, QuestionType};
use crate::weights::Parameters;

/// A model that answers by classification over a list of answers.
pub trait AnswerModel: Send + Sync {
    /// How many answers it can give.
    fn answers(&self) -> usize;

    /// The logits of all answers, `[batch, answers]`. Answers that cannot be given to a question, those of the
    /// branch that QCR does not take, have minus infinity. Gradients reach whatever in the batch is tracked.
    ///
    /// # Errors
    /// If the batch lacks what the model looks at, or shapes do not fit.
    fn logits(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor>;

    /// The loss against `targets` `[batch, answers]` (in 0..1; a row of zeros for an answer that is not in the
    /// list).
    ///
    /// # Errors
    /// As [`Self::logits`].
    fn loss(&self, batch: &Batch, targets: &Tensor, mode: Mode<'_>) -> Result<AnswerLoss>;

    /// The vectors of word ids `[batch, length]` (u32), `[batch, length, width]`, as
    /// [`super::Words::embedded`] takes them.
    ///
    /// # Errors
    /// If an id has no vector, or the model reads no words.
    fn embed_words(&self, tokens: &Tensor) -> Result<Tensor>;

    /// Where it attends to the image by a question of this type (of models with branches; others ignore it), if it does
    /// so in one place.
    fn joint_attention(&self, _kind: Option<QuestionType>) -> Option<JointAttention> {
        None
    }

    /// The parameters: for the optimiser, and to keep and restore.
    fn parameters(&self) -> &Parameters;

    /// What an optimiser changes, by name.
    fn variables(&self) -> &BTreeMap<String, Var> {
        self.parameters().variables()
    }
}
