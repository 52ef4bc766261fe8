//! From a joint vector to answers.

use candle_core::{Result, Tensor};

use super::Mode;
use super::layers::HALF;
use super::weight_norm::WeightNormLinear;
use crate::Activation;
use crate::checkpoint::CheckpointError;
use crate::ops::activate;
use crate::sizes::check_sizes;
use crate::weights::Weights;

/// A weight-normalised layer of twice the width, a rectifier, and a weight-normalised layer of answers.
#[derive(Clone, Debug)]
pub struct AnswerClassifier {
    name: String,
    hidden: WeightNormLinear,
    answers: WeightNormLinear,
}

impl AnswerClassifier {
    /// Takes `{name}.main.0` and `{name}.main.3`.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        width: usize,
        answers: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        check_sizes(&[("answers", answers)])?;
        Ok(Self {
            name: name.to_owned(),
            hidden: WeightNormLinear::load(weights, &format!("{name}.main.0"), 2 * width, width)?,
            answers: WeightNormLinear::load(weights, &format!("{name}.main.3"), answers, 2 * width)?,
        })
    }

    /// `[batch, width]` to logits `[batch, answers]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, joint: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        let hidden = activate(&self.hidden.forward(joint)?, Activation::Relu)?;
        self.answers.forward(&mode.dropout(&self.name, HALF, hidden)?)
    }
}
