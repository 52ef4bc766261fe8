//! The question attention of QCR (Zhan et al. 2020) and its two readers: what is asked for, and of which type.

use std::collections::BTreeMap;

use candle_core::{D, DType, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::layers::{dropped_rectified, linear_layer, xavier_layer};
use super::recurrent::{Cell, Recurrent};
use super::words::{SecondTable, WordTables, WordsConfig};
use super::{Mode, QuestionType};
use crate::checkpoint::CheckpointError;
use crate::layers::Linear;
use crate::ops::activate;
use crate::ops::composed::{sigmoid, softmax};
use crate::weights::{Parameters, Weights};
use crate::{Activation, Trainable};

/// A question as the mean of its states, each weighted by how much it and its word are attended to.
#[derive(Clone, Debug)]
pub struct QuestionAttention {
    words: WordTables,
    network: Recurrent,
    tanh_gate: Linear,
    sigmoid_gate: Linear,
    attention: Linear,
}

/// Tables of one vector for each word, never shared with other readers.
fn own_tables(words: &WordsConfig) -> WordsConfig {
    WordsConfig { second: SecondTable::None, ..words.clone() }
}

impl QuestionAttention {
    /// Takes `{name}.w_emb.emb.weight`, `{name}.q_emb.rnn.*` and `{name}.q_final.{tanh_gate,sigmoid_gate,attn}`;
    /// of `words`, one table counts.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        words: &WordsConfig,
        hidden: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let words = own_tables(words);
        let both = words.width + hidden;
        Ok(Self {
            words: WordTables::load(weights, &format!("{name}w_emb"), &words)?,
            network: Recurrent::load(weights, &format!("{name}q_emb"), Cell::Gru, words.width, hidden)?,
            tanh_gate: linear_layer(weights, &format!("{name}q_final.tanh_gate"), hidden, both)?,
            sigmoid_gate: linear_layer(weights, &format!("{name}q_final.sigmoid_gate"), hidden, both)?,
            attention: linear_layer(weights, &format!("{name}q_final.attn"), 1, hidden)?,
        })
    }

    /// The vectors of words `[batch, length]` (u32), `[batch, length, width]`.
    ///
    /// # Errors
    /// If an id has no row.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        self.words.forward(tokens)
    }

    /// Embedded questions `[batch, length, width]` to `[batch, hidden]`. Padding is attended to like words.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, embedded: &Tensor) -> Result<Tensor> {
        let states = self.network.forward(embedded)?;
        let both = Tensor::cat(&[embedded, &states], D::Minus1)?;
        let gate = sigmoid(&self.sigmoid_gate.forward(&both)?)?;
        let gated = (self.tanh_gate.forward(&both)?.tanh()? * gate)?;
        // Only the last axis goes: a batch may be one question.
        let map = softmax(&self.attention.forward(&gated)?.squeeze(D::Minus1)?)?;
        map.unsqueeze(1)?.matmul(&states)?.squeeze(1)
    }
}

/// Makes of a question the factors of a joint vector.
#[derive(Clone, Debug)]
pub struct QuestionConditioning {
    name: String,
    attention: QuestionAttention,
    layers: [Linear; 3],
}

impl QuestionConditioning {
    /// Takes what [`QuestionAttention::load`] does under `{name}.`, and `{name}.f_fc1` to `f_fc3`.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        words: &WordsConfig,
        hidden: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(Self {
            name: name.to_owned(),
            attention: QuestionAttention::load(weights, &format!("{name}."), words, hidden)?,
            layers: [
                xavier_layer(weights, &format!("{name}.f_fc1"), 2 * hidden, hidden)?,
                xavier_layer(weights, &format!("{name}.f_fc2"), hidden, 2 * hidden)?,
                xavier_layer(weights, &format!("{name}.f_fc3"), hidden, hidden)?,
            ],
        })
    }

    /// What attends to the question.
    pub fn attention(&self) -> &QuestionAttention {
        &self.attention
    }

    /// Embedded questions `[batch, length, width]` to factors `[batch, hidden]`, of any sign.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, embedded: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        let [first, second, third] = &self.layers;
        let x = activate(&first.forward(&self.attention.forward(embedded)?)?, Activation::Relu)?;
        third.forward(&dropped_rectified(second, &self.name, &x, mode)?)
    }
}

/// The sizes of a question-type classifier.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionTypeConfig {
    /// The words; one table of them counts.
    pub words: WordsConfig,
    /// Values of a state, and of the two layers before the types.
    #[serde(default = "default_widths")]
    pub widths: [usize; 3],
}

fn default_widths() -> [usize; 3] {
    [1024, 256, 64]
}

impl QuestionTypeConfig {
    /// The published classifier for so many words.
    pub fn new(words: usize) -> Self {
        Self { words: own_tables(&WordsConfig::new(words)), widths: default_widths() }
    }
}

/// Tells closed questions from open ones. It is trained alone, by cross entropy, and decides in evaluation which
/// branch of QCR answers.
#[derive(Clone, Debug)]
pub struct QuestionTypeClassifier {
    config: QuestionTypeConfig,
    attention: QuestionAttention,
    layers: [Linear; 3],
    parameters: Parameters,
}

/// Where the classifier drops values.
const TYPE_DROPOUT: &str = "f_fc2";

impl QuestionTypeClassifier {
    /// The classifier of a state dict by the names of the authors' code.
    ///
    /// # Errors
    /// If tensors are missing, left over or of another shape.
    pub fn from_tensors(
        config: QuestionTypeConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(config, Weights::new(tensors, trainable))
    }

    /// A classifier that begins at random, but for what is given by name (`w_emb.emb.weight`).
    ///
    /// # Errors
    /// If a tensor that is given is none of the classifier's or of another shape.
    pub fn random(
        config: QuestionTypeConfig,
        seed: u64,
        given: BTreeMap<String, Tensor>,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(config, Weights::seeded(seed, given, Trainable::All))
    }

    pub(super) fn load(
        config: QuestionTypeConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        let [hidden, second, third] = config.widths;
        let attention = QuestionAttention::load(&mut weights, "", &config.words, hidden)?;
        let layers = [
            xavier_layer(&mut weights, "f_fc1", second, hidden)?,
            xavier_layer(&mut weights, "f_fc2", third, second)?,
            xavier_layer(&mut weights, "f_fc3", QuestionType::ALL.len(), third)?,
        ];
        Ok(Self { config, attention, layers, parameters: weights.finish()? })
    }

    /// What the classifier is.
    pub fn config(&self) -> &QuestionTypeConfig {
        &self.config
    }

    /// What attends to the question.
    pub fn attention(&self) -> &QuestionAttention {
        &self.attention
    }

    /// The parameters: for the optimiser, and to keep and restore.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Word ids `[batch, length]` (u32) to logits `[batch, 2]`, closed before open.
    ///
    /// # Errors
    /// If an id has no row.
    pub fn logits(&self, tokens: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        let [first, second, third] = &self.layers;
        let tokens = tokens.to_device(&self.parameters.device())?;
        let x = first.forward(&self.attention.forward(&self.attention.embed(&tokens)?)?)?;
        let x = activate(&x, Activation::Relu)?;
        third.forward(&dropped_rectified(second, TYPE_DROPOUT, &x, mode)?)
    }

    /// The softmax cross entropy against the annotated types, mean over the batch.
    ///
    /// # Errors
    /// As [`Self::logits`], or if the numbers of questions and types differ.
    pub fn loss(&self, tokens: &Tensor, types: &[QuestionType], mode: Mode<'_>) -> Result<Tensor> {
        let classes: Vec<u32> = types.iter().map(|one| *one as u32).collect();
        let logits = self.logits(tokens, mode)?;
        let classes = Tensor::from_vec(classes, types.len(), logits.device())?;
        crate::train::loss::cross_entropy(&logits, &classes)
    }

    /// The type of each question, the first of equals.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn classify(&self, tokens: &Tensor) -> Result<Vec<QuestionType>> {
        let logits = self.logits(tokens, Mode::Evaluation)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        Ok(logits
            .into_iter()
            .map(|row| if row[1] > row[0] { QuestionType::Open } else { QuestionType::Closed })
            .collect())
    }
}
