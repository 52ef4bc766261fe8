//! The model's own attention over the cells of the image and the words of the question, as a map and as words.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipe_attribution::{AttentionRule, Attribution, Inputs, attention_maps};
use pipe_engine::StageError;
use pipe_models::vqa::{JointAttention, QuestionType};

use super::explanation::{Counts, Parts, Samples};
use super::score::JointScore;
use super::shown::{Piece, Reading};
use crate::attribute::{Reduction, attribution_error, maps};
use crate::model::{DEVICE, tensor_error};
use crate::vqa::VisualTokens;

/// What a model attends to in one question.
struct Attended {
    /// By visual token.
    tokens: Vec<f32>,
    /// By position of the question, if it attends to words.
    words: Option<Vec<f32>>,
    /// The logit of the answer.
    score: f32,
}

impl Samples<'_, '_> {
    /// The mean over glimpses, or over the times that the image is looked at; of pairs of cells and words the sum over
    /// words, or over cells. By [`AttentionRule::Gradient`] (Chefer et al. 2021, with the image as the context of the
    /// question) the positive part of attention times the gradient of the answer's logit. One pass per question, and a
    /// gradient.
    ///
    /// # Errors
    /// If the model fails or the run is stopped.
    pub(super) fn attention(
        &self,
        rule: AttentionRule,
        counts: &mut Counts,
    ) -> Result<Vec<Parts>, StageError> {
        let mut branches: BTreeMap<Option<QuestionType>, Vec<usize>> = BTreeMap::new();
        for sample in 0..self.pieces.len() {
            branches.entry(self.answers.types.as_ref().map(|types| types[sample])).or_default().push(sample);
        }
        let mut parts: Vec<Option<Parts>> = self.pieces.iter().map(|_| None).collect();
        for (branch, samples) in branches {
            let own = match self.answers.answerer.model.joint_attention(branch) {
                Some(attention) => {
                    let attended = self.attended(&attention, rule, &samples, counts)?;
                    samples
                        .iter()
                        .zip(attended)
                        .map(|(sample, attended)| self.shown_as(*sample, attended))
                        .collect::<Result<Vec<_>, _>>()?
                }
                None => samples.iter().map(|_| Parts::none(NOWHERE)).collect(),
            };
            samples.iter().zip(own).for_each(|(sample, own)| parts[*sample] = Some(own));
        }
        Ok(parts.into_iter().map(|own| own.unwrap_or_else(|| Parts::none(NOWHERE))).collect())
    }

    /// What the model attends to in some samples, which take one branch.
    fn attended(
        &self,
        attention: &JointAttention,
        rule: AttentionRule,
        samples: &[usize],
        counts: &mut Counts,
    ) -> Result<Vec<Attended>, StageError> {
        let score = JointScore::new(self.answers, self.shown);
        let forms: Vec<&Tensor> = self.shown.images.iter().chain(&self.shown.texts).collect();
        let all = score.joint.join(&forms).map_err(attribution_error)?;
        let rows: Vec<u32> = samples.iter().map(|sample| *sample as u32).collect();
        let own = Tensor::from_vec(rows, samples.len(), &DEVICE).and_then(|rows| all.index_select(&rows, 0));
        let inputs =
            Inputs::of_samples(&own.map_err(tensor_error)?, samples.to_vec()).map_err(attribution_error)?;
        let names = match attention {
            JointAttention::Stacked(names) => names.clone(),
            JointAttention::Pairs(name) => vec![name.clone()],
        };
        let (seen, scores) = self.counted(&score, counts, |evaluator| {
            attention_maps(evaluator, &inputs, &names, rule).map_err(attribution_error)
        })?;
        let scores = scores.to_vec1::<f32>().map_err(tensor_error)?;
        let mut attended: Vec<Attended> =
            scores.into_iter().map(|score| Attended { tokens: Vec::new(), words: None, score }).collect();
        for map in &seen {
            let (_, _, queries, keys) = map.probabilities.dims4().map_err(tensor_error)?;
            let weighted = map.weighted(rule).map_err(attribution_error)?;
            for (own, values) in attended.iter_mut().zip(weighted.chunks_exact((queries * keys).max(1))) {
                match attention {
                    JointAttention::Stacked(_) => {
                        own.tokens.resize(keys, 0.0);
                        let share = 1.0 / seen.len() as f32;
                        own.tokens.iter_mut().zip(values).for_each(|(sum, value)| *sum += share * value);
                    }
                    JointAttention::Pairs(_) => {
                        own.tokens = values.chunks_exact(keys.max(1)).map(sum).collect();
                        let word = |word: usize| sum_of(values[word..].iter().step_by(keys));
                        own.words = Some((0..keys).map(word).collect());
                    }
                }
            }
        }
        Ok(attended)
    }

    /// A sample's attention as a map and as words.
    fn shown_as(&self, sample: usize, attended: Attended) -> Result<Parts, StageError> {
        let Attended { tokens, words, score } = attended;
        let attribution = |values: Tensor| Attribution {
            values,
            scores: vec![score],
            baseline_scores: None,
            completeness_gaps: None,
        };
        let map = match self.grid()? {
            Some([rows, columns]) if rows * columns == tokens.len() => {
                let values =
                    Tensor::from_vec(tokens, (1, 1, rows, columns), &DEVICE).map_err(tensor_error)?;
                let side = self.explanation.pictures.side;
                let map = maps(&attribution(values), Reduction::Grid, &[side; 2]).map_err(tensor_error)?;
                map.into_iter().next().unwrap_or_else(|| Err(NO_CELLS.to_owned()))
            }
            _ => Err(NO_CELLS.to_owned()),
        };
        let none = Tensor::zeros((1, 1), candle_core::DType::F32, &DEVICE).map_err(tensor_error)?;
        let words = match words {
            None => {
                Err("the model attends to the image by the question as a whole, not to its words".to_owned())
            }
            Some(words) => match self.reader() {
                Some(form) => {
                    let of = |piece: &Piece| {
                        sum_of(piece.tokens[form].iter().filter_map(|token| words.get(*token)))
                    };
                    let values = self.pieces[sample].words.iter().map(of).collect();
                    self.words_of(sample, values, &attribution(none), 0)
                }
                None => Err("the model is told nothing of the question".to_owned()),
            },
        };
        Ok(Parts { map, words, gradient_share: None, shares: None, removed: None })
    }

    /// Rows and columns of the cells that visual tokens are, if they are any.
    fn grid(&self) -> Result<Option<[usize; 2]>, StageError> {
        let answerer = self.answers.answerer;
        match &answerer.encoder {
            Some(encoder) if answerer.description.tokens == VisualTokens::Grid => {
                Ok(Some(encoder.image_tower()?.geometry().grid()))
            }
            _ => Ok(None),
        }
    }

    /// The form of the question that attention is paid to.
    fn reader(&self) -> Option<usize> {
        let reads_states = self.answers.answerer.description.architecture.reads_states();
        let form = if reads_states { Reading::Tokens } else { Reading::Words };
        self.answers.texts.forms().iter().position(|own| *own == form)
    }
}

const NOWHERE: &str = "the model has no one attention over image and question: its layers mix all tokens";

const NO_CELLS: &str = "the model sees the image as one token, so that attention says nothing of its places; `visual_tokens = \
                        \"grid\"` of `finetune.vqa` shows it cells";

fn sum(values: &[f32]) -> f32 {
    sum_of(values.iter())
}

fn sum_of<'a>(values: impl Iterator<Item = &'a f32>) -> f32 {
    values.map(|value| f64::from(*value)).sum::<f64>() as f32
}
