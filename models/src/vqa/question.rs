//! Questions as states of a recurrent network, or of a text tower.

use candle_core::{D, DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use super::batch::{Questions, pick};
use super::layers::linear_layer;
use super::recurrent::{Cell, Recurrent};
use super::words::{WordTables, WordsConfig, seen_words};
use crate::checkpoint::CheckpointError;
use crate::layers::Linear;
use crate::sizes::check_sizes;
use crate::weights::Weights;

/// How questions are read.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionConfig {
    /// Values of a state.
    #[serde(default = "default_hidden")]
    pub hidden: usize,
    /// What a question is read as.
    pub reader: Reader,
    /// Whether padding is no part of a question. The published models read it like words.
    #[serde(default)]
    pub mask_padding: bool,
}

/// What a question is read as.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reader {
    /// Words of a vocabulary, by a recurrent network.
    Words {
        /// The tables.
        tables: WordsConfig,
        /// The network.
        cell: Cell,
    },
    /// The hidden states of a text tower, by one layer and tanh.
    States {
        /// Values of a hidden state.
        width: usize,
    },
}

fn default_hidden() -> usize {
    1024
}

impl QuestionConfig {
    /// Words by the published sizes.
    pub fn words(words: usize, cell: Cell) -> Self {
        let reader = Reader::Words { tables: WordsConfig::new(words), cell };
        Self { hidden: default_hidden(), reader, mask_padding: false }
    }

    /// States of a text tower of this width.
    pub fn states(width: usize) -> Self {
        Self { hidden: default_hidden(), reader: Reader::States { width }, mask_padding: false }
    }

    /// Values of an embedded word; 0 where no words are read.
    pub fn embedded(&self) -> usize {
        match &self.reader {
            Reader::Words { tables, .. } => tables.embedded(),
            Reader::States { .. } => 0,
        }
    }
}

/// What was read of questions.
#[derive(Clone, Debug)]
pub struct QuestionStates {
    /// After each word, `[batch, length, hidden]`.
    pub all: Tensor,
    /// That of the whole question, `[batch, hidden]`.
    pub last: Tensor,
    /// Which positions count, 1 or 0 (f32), `[batch, length]`; `None` if all do.
    pub seen: Option<Tensor>,
}

/// Reads questions.
#[derive(Clone, Debug)]
pub struct QuestionEncoder {
    reading: Reading,
    mask_padding: bool,
}

#[derive(Clone, Debug)]
enum Reading {
    Words { tables: WordTables, network: Recurrent, padding: u32 },
    States(Linear),
}

impl QuestionEncoder {
    /// Takes `w_emb.*` and `q_emb.rnn.*`, or `q_states.*`.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        config: &QuestionConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        check_sizes(&[("question.hidden", config.hidden)])?;
        let reading = match &config.reader {
            Reader::Words { tables, cell } => Reading::Words {
                tables: WordTables::load(weights, "w_emb", tables)?,
                network: Recurrent::load(weights, "q_emb", *cell, tables.embedded(), config.hidden)?,
                padding: tables.padding(),
            },
            Reader::States { width } => {
                Reading::States(linear_layer(weights, "q_states", config.hidden, *width)?)
            }
        };
        Ok(Self { reading, mask_padding: config.mask_padding })
    }

    /// The vectors of words `[batch, length]` (u32), `[batch, length, width]`.
    ///
    /// # Errors
    /// If an id has no row, or no words are read.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.reading {
            Reading::Words { tables, .. } => tables.forward(tokens),
            Reading::States(_) => bail!("the model reads the states of a text tower, not words"),
        }
    }

    /// Reads the questions; `embedded` stands for the vectors of their words.
    ///
    /// # Errors
    /// If the questions are not told in the form that is read.
    pub fn forward(&self, questions: &Questions, embedded: Option<&Tensor>) -> Result<QuestionStates> {
        match &self.reading {
            Reading::Words { tables, network, padding } => {
                let tokens = &questions.words()?.tokens;
                let all = match embedded {
                    Some(embedded) => network.forward(embedded)?,
                    None => network.forward(&tables.forward(tokens)?)?,
                };
                let length = all.dim(1)?;
                if !self.mask_padding {
                    let last = all.narrow(1, length - 1, 1)?.squeeze(1)?;
                    return Ok(QuestionStates { all, last, seen: None });
                }
                let seen = seen_words(tokens, *padding)?;
                let last = pick(&all, &last_seen(&seen)?)?;
                Ok(QuestionStates { all, last, seen: Some(seen) })
            }
            Reading::States(layer) => {
                let states = questions.states()?;
                let read = |x: &Tensor| layer.forward(x)?.tanh();
                let shown = states.mask.to_dtype(states.hidden.dtype())?.unsqueeze(D::Minus1)?;
                let all = read(&states.hidden)?.broadcast_mul(&shown)?;
                let last = read(&states.pool()?)?;
                let seen = self.mask_padding.then(|| states.mask.clone());
                Ok(QuestionStates { all, last, seen })
            }
        }
    }
}

/// The last position of each row that counts; the last of all where none does.
fn last_seen(seen: &Tensor) -> Result<Tensor> {
    let rows = seen.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let places: Vec<u32> = rows
        .iter()
        .map(|row| row.iter().rposition(|seen| *seen != 0.0).unwrap_or(row.len().saturating_sub(1)) as u32)
        .collect();
    let count = places.len();
    Tensor::from_vec(places, count, seen.device())
}
