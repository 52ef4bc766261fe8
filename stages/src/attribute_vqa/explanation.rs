//! From questions to maps, words and shares, chunk by chunk.

use std::ops::ControlFlow;

use candle_core::Tensor;
use pipe_attribution::{
    AttentionRule, Attribution, Baseline, Deviation, Evaluator, InputXGradient, Inputs, Method as _, Passes,
    Score, token_values,
};
use pipe_engine::cache::Digest;
use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;

use super::canvas::spread;
use super::removal::{Removed, Values, removed};
use super::score::{Answers, JointScore, Layout, PresenceScore, Shown};
use super::shares::{Shares, shares};
use super::shown::{Pictures, Piece, Pieces, Texts};
use super::{AnswerMethod, Params, Target};
use crate::attribute::{
    About, GREAT_GAP, Reduction, SaliencyMap, attribution_error, maps, noise_of_words, wrapped,
};
use crate::attribute_text::WordValues;
use crate::model::tensor_error;
use crate::vqa::{Answerer, Examples, Readings};

/// What was counted on the way.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) passes: Passes,
    pub(super) questions: usize,
    pub(super) not_applicable: usize,
    pub(super) all_zero: usize,
    /// Questions whose attributions miss the difference of scores by more than [`GREAT_GAP`].
    pub(super) incomplete: usize,
}

/// A question, explained.
pub(super) struct Explained {
    /// Which question of the examples.
    pub(super) question: usize,
    /// The label of the answer that is explained, if there is one.
    pub(super) target: Option<usize>,
    /// Whether the model answers it right.
    pub(super) correct: bool,
    pub(super) map: Result<SaliencyMap, String>,
    pub(super) words: Result<WordValues, String>,
    /// The share of the question in the absolute attribution of pixels and token vectors: Integrated Gradients only.
    pub(super) gradient_share: Option<Result<f64, String>>,
    /// Shapley values, if they are asked for.
    pub(super) shares: Option<Result<Shares, String>>,
    /// Scores of map and words, if they are asked for; none where nothing is explained.
    pub(super) removed: Option<Vec<Removed>>,
}

/// A question with the answer that is explained.
struct Chosen {
    question: usize,
    correct: bool,
    target: Result<usize, String>,
}

/// Everything that explanations are made from.
pub(super) struct Explanation<'a, 'c> {
    pub(super) params: &'a Params,
    /// Answers the questions.
    pub(super) answerer: &'a Answerer,
    /// Is explained: the same, or one with random weights.
    pub(super) explained: &'a Answerer,
    pub(super) examples: &'a Examples,
    /// The digest of each question's row.
    pub(super) digests: &'a [Digest],
    pub(super) pictures: &'a Pictures,
    pub(super) readings: &'a Readings,
    pub(super) context: &'a StageContext<'c>,
}

impl Explanation<'_, '_> {
    /// Explains all chosen questions, in their order.
    pub(super) fn explain(
        &self,
        mut take: impl FnMut(Explained) -> Result<(), StageError>,
    ) -> Result<Counts, StageError> {
        let mut counts = Counts::default();
        let labels = self.answerer.description.labels(self.examples);
        let all: Vec<usize> = (0..self.examples.asked.len()).collect();
        let mut left = self.params.limit.map_or(usize::MAX, |limit| limit.max(1) as usize);
        for chunk in all.chunks(self.params.batch.max(1) as usize) {
            self.context.check_cancelled()?;
            if left == 0 {
                break;
            }
            let mut chosen = self.choose(chunk, &labels)?;
            chosen.truncate(left);
            left -= chosen.len();
            for explained in self.chunk(chosen, &mut counts)? {
                match &explained.map {
                    Ok(map) => {
                        counts.questions += 1;
                        counts.all_zero += usize::from(map.is_all_zero());
                        let gap = map.relative_gap();
                        counts.incomplete += usize::from(gap.is_some_and(|gap| gap > GREAT_GAP));
                    }
                    Err(_) => counts.not_applicable += 1,
                }
                take(explained)?;
            }
            let done = chunk.last().map_or(0, |last| last + 1) as u64;
            let figures = [("forward passes", counts.passes.forward as f64)];
            self.context.progress(done, all.len() as u64, "questions", &figures);
        }
        Ok(counts)
    }

    /// The questions of a chunk that pass the filter, with the answers that are explained.
    fn choose(&self, questions: &[usize], labels: &[Option<usize>]) -> Result<Vec<Chosen>, StageError> {
        let texts = Texts::new(self.answerer, self.readings);
        let answers = self.answers(self.answerer, &texts, questions.to_vec(), Vec::new())?;
        let logits = answers.logits(&self.shown(&texts, questions)?);
        let logits = logits.and_then(|logits| logits.detach().to_vec2::<f32>()).map_err(tensor_error)?;
        let chosen = questions.iter().zip(logits).map(|(question, logits)| {
            // The first of equal ones; an answer of the other branch is minus infinity.
            let mut predicted = 0;
            for (label, logit) in logits.iter().enumerate() {
                if *logit > logits[predicted] {
                    predicted = label;
                }
            }
            let truth = labels[*question];
            let target = match (self.params.target, truth) {
                (Target::Predicted, _) => Ok(predicted),
                (Target::True, None) => Err("the answer is not in the model's list".to_owned()),
                (Target::True, Some(truth)) if logits[truth] == f32::NEG_INFINITY => {
                    Err("the answer is of the branch that the question does not take".to_owned())
                }
                (Target::True, Some(truth)) => Ok(truth),
            };
            Chosen { question: *question, correct: truth == Some(predicted), target }
        });
        Ok(chosen.filter(|one| one.correct || !self.params.only_correct).collect())
    }

    fn answers<'b>(
        &'b self,
        answerer: &'b Answerer,
        texts: &'b Texts<'b>,
        questions: Vec<usize>,
        targets: Vec<u32>,
    ) -> Result<Answers<'b>, StageError> {
        let types = match &self.answerer.types {
            None => None,
            Some(types) => Some(types.classify(&self.readings.tokens(&questions)?).map_err(tensor_error)?),
        };
        let (pictures, readings) = (self.pictures, self.readings);
        Ok(Answers { answerer, pictures, texts, readings, questions, types, targets })
    }

    fn shown(&self, texts: &Texts<'_>, questions: &[usize]) -> Result<Shown, StageError> {
        let images: Vec<usize> =
            questions.iter().map(|question| self.examples.asked[*question].image).collect();
        Ok(Shown {
            images: self.pictures.batch(&images).map_err(tensor_error)?,
            texts: texts.batch(questions)?,
        })
    }

    fn chunk(&self, chosen: Vec<Chosen>, counts: &mut Counts) -> Result<Vec<Explained>, StageError> {
        let applicable: Vec<(usize, u32)> = chosen
            .iter()
            .filter_map(|one| one.target.as_ref().ok().map(|target| (one.question, *target as u32)))
            .collect();
        let (questions, targets) = applicable.into_iter().unzip();
        let mut parts = self.parts(questions, targets, counts)?.into_iter();
        let explained = |Chosen { question, correct, target }| {
            let parts = match &target {
                Ok(_) => parts.next().ok_or_else(|| "the method gave nothing".to_owned()),
                Err(reason) => Err(reason.clone()),
            };
            let target: Option<usize> = target.ok();
            match parts {
                Ok(Parts { map, words, gradient_share, shares, removed }) => {
                    let shares = shares.map(Ok);
                    Explained { question, target, correct, map, words, gradient_share, shares, removed }
                }
                Err(reason) => Explained {
                    question,
                    target,
                    correct,
                    map: Err(reason.clone()),
                    words: Err(reason.clone()),
                    gradient_share: self.has_gradient_share().then(|| Err(reason.clone())),
                    shares: self.params.modality_share.as_ref().map(|_| Err(reason)),
                    removed: None,
                },
            }
        };
        Ok(chosen.into_iter().map(explained).collect())
    }

    /// Of Integrated Gradients alone: both modalities then go from nothing to all on one path.
    fn has_gradient_share(&self) -> bool {
        self.params.method == AnswerMethod::IntegratedGradients && self.params.wrap.is_empty()
    }

    fn parts(
        &self,
        questions: Vec<usize>,
        targets: Vec<u32>,
        counts: &mut Counts,
    ) -> Result<Vec<Parts>, StageError> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let texts = Texts::new(self.explained, self.readings);
        let pieces: Vec<Pieces> = questions
            .iter()
            .map(|question| texts.pieces(&self.examples.asked[*question].question))
            .collect::<Result<_, _>>()?;
        let shown = self.shown(&texts, &questions)?;
        let absent = Shown {
            images: self.pictures.absent(self.params, &shown.images)?,
            texts: texts.absent(self.params.absent, &questions, &pieces)?,
        };
        let keys: Vec<Key> = questions.iter().map(|question| self.key(*question)).collect();
        let answers = self.answers(self.explained, &texts, questions, targets)?;
        let sample = Samples {
            explanation: self,
            answers: &answers,
            shown: &shown,
            absent: &absent,
            pieces: &pieces,
            keys: &keys,
        };
        let mut parts = match self.params.method {
            AnswerMethod::InputXGradient | AnswerMethod::IntegratedGradients => sample.gradients(counts)?,
            AnswerMethod::Occlusion => sample.occlusion(counts)?,
            AnswerMethod::Attention => sample.attention(AttentionRule::Rollout, counts)?,
            AnswerMethod::AttentionRelevance => sample.attention(AttentionRule::Gradient, counts)?,
        };
        if let Some(settings) = &self.params.modality_share {
            let layouts: Vec<Layout> = pieces
                .iter()
                .map(|pieces| Layout {
                    grid: settings.grid(pieces.tokens.len()),
                    pieces: pieces.tokens.clone(),
                })
                .collect();
            let score = sample.presence(layouts.clone())?;
            let found =
                sample.counted(&score, counts, |evaluator| shares(settings, evaluator, &layouts, &keys))?;
            parts.iter_mut().zip(found).for_each(|(parts, shares)| parts.shares = Some(shares));
        }
        if let Some(settings) = &self.params.removal {
            let layout = |pieces: &Pieces| Layout { grid: settings.grid(), pieces: pieces.words.clone() };
            let layouts: Vec<Layout> = pieces.iter().map(layout).collect();
            let values: Vec<Values> = parts.iter().map(Parts::values).collect();
            let (score, method) = (sample.presence(layouts.clone())?, self.params.method.name());
            let found = sample.counted(&score, counts, |evaluator| {
                removed(method, evaluator, &layouts, &values, self.pictures.side, &keys)
            })?;
            parts.iter_mut().zip(found).for_each(|(parts, removed)| parts.removed = Some(removed));
        }
        Ok(parts)
    }

    /// Permutations are a function of the question's row alone: neither of its place nor of those beside it.
    fn key(&self, question: usize) -> Key {
        let digest = self.digests[question].to_hex();
        Key::derive("pipe modality share/1", self.params.seed as u64, &[digest.as_str().into()])
    }

    /// What a question is about.
    pub(super) fn about(&self, question: usize) -> About {
        let asked = &self.examples.asked[question];
        About { image: self.examples.images[asked.image].id.clone(), question: Some(asked.question.clone()) }
    }
}

/// What is made of one question.
pub(super) struct Parts {
    pub(super) map: Result<SaliencyMap, String>,
    pub(super) words: Result<WordValues, String>,
    pub(super) gradient_share: Option<Result<f64, String>>,
    pub(super) shares: Option<Shares>,
    pub(super) removed: Option<Vec<Removed>>,
}

impl Parts {
    /// Neither a map nor words, for this reason.
    pub(super) fn none(reason: &str) -> Self {
        let reason = || reason.to_owned();
        Self { map: Err(reason()), words: Err(reason()), gradient_share: None, shares: None, removed: None }
    }

    /// The values that are scored.
    fn values(&self) -> Values {
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
        Values {
            words: self.words.as_ref().map(|words| wide(words.values())).map_err(String::clone),
            pixels: self.map.as_ref().map(|map| wide(map.values())).map_err(String::clone),
        }
    }
}

/// A chunk of questions with all that is put in and taken away.
pub(super) struct Samples<'a, 'c> {
    pub(super) explanation: &'a Explanation<'a, 'c>,
    pub(super) answers: &'a Answers<'a>,
    pub(super) shown: &'a Shown,
    absent: &'a Shown,
    pub(super) pieces: &'a [Pieces],
    /// One per question.
    keys: &'a [Key],
}

impl Samples<'_, '_> {
    pub(super) fn params(&self) -> &Params {
        self.explanation.params
    }

    /// Runs `work` and adds up the passes that it made.
    pub(super) fn counted<T>(
        &self,
        score: &dyn Score,
        counts: &mut Counts,
        work: impl FnOnce(&Evaluator<'_>) -> Result<T, StageError>,
    ) -> Result<T, StageError> {
        let context = self.explanation.context;
        let observer = |_: Passes| match context.check_cancelled() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let evaluator = Evaluator::new(score, self.params().batch.max(1) as usize).observed(&observer);
        let done = work(&evaluator);
        let passes = evaluator.passes();
        counts.passes.forward += passes.forward;
        counts.passes.backward += passes.backward;
        done
    }

    pub(super) fn presence(&self, layouts: Vec<Layout>) -> Result<PresenceScore<'_>, StageError> {
        PresenceScore::new(self.answers, self.shown, self.absent, layouts).map_err(tensor_error)
    }

    /// Image and question on one path, each complete with the other.
    fn gradients(&self, counts: &mut Counts) -> Result<Vec<Parts>, StageError> {
        let params = self.params();
        let score = JointScore::new(self.answers, self.shown);
        let join = |shown: &Shown| {
            let forms: Vec<&Tensor> = shown.images.iter().chain(&shown.texts).collect();
            score.joint.join(&forms).map_err(attribution_error)
        };
        let inputs = Inputs::new(&join(self.shown)?).map_err(attribution_error)?;
        let baseline = Baseline::Tensor(join(self.absent)?);
        let method: Box<dyn pipe_attribution::Method> = match params.method {
            AnswerMethod::IntegratedGradients => params.integration().method(baseline),
            _ => Box::new(InputXGradient { baseline }),
        };
        let noise = || {
            noise_of_words(
                params.draws,
                params.noise,
                |share| Deviation::OfRanges(share, score.joint.lengths()),
                self.keys.iter().copied(),
            )
        };
        // Neither words nor several images of one question are smoothed: the deviation of a blur means nothing.
        let method = wrapped(method, &params.wrap, &noise, 1.0);
        let attribution = self.counted(&score, counts, |evaluator| {
            method.attribute(evaluator, &inputs).map_err(attribution_error)
        })?;
        let shares = score.joint.shares(&attribution.values).map_err(attribution_error)?;
        let forms = score.joint.split(&attribution.values).map_err(tensor_error)?;
        let (images, texts) = forms.split_at(self.shown.images.len());
        let maps = self.maps(images, &attribution)?;
        let of_tokens =
            texts.iter().map(tokens_of).collect::<candle_core::Result<Vec<_>>>().map_err(tensor_error)?;
        let of_piece = |row: usize, piece: &Piece| {
            let tokens = piece.tokens.iter().zip(&of_tokens);
            let values =
                tokens.flat_map(|(tokens, of)| tokens.iter().map(|token| f64::from(of[row][*token])));
            values.sum::<f64>() as f32
        };
        Ok(maps
            .into_iter()
            .enumerate()
            .map(|(row, map)| {
                let values = self.pieces[row].words.iter().map(|piece| of_piece(row, piece)).collect();
                let gradient_share = self.explanation.has_gradient_share().then(|| {
                    let text: f32 = shares[row][images.len()..].iter().sum();
                    match shares[row].iter().any(|share| *share > 0.0) {
                        true => Ok(f64::from(text)),
                        false => Err(NOTHING.to_owned()),
                    }
                });
                let words = self.words(row, values, &attribution);
                Parts { map, words, gradient_share, shares: None, removed: None }
            })
            .collect())
    }

    /// The attributions of all forms of the images as maps of one size.
    fn maps(
        &self,
        forms: &[Tensor],
        attribution: &Attribution,
    ) -> Result<Vec<Result<SaliencyMap, String>>, StageError> {
        let (side, rows) = (self.explanation.pictures.side, self.pieces.len());
        let mut canvas = vec![0.0f64; rows * side * side];
        for form in forms {
            let (_, _, own, _) = form.dims4().map_err(tensor_error)?;
            let values =
                form.sum(1).and_then(|map| map.flatten_from(1)?.to_vec2::<f32>()).map_err(tensor_error)?;
            for (map, canvas) in values.iter().zip(canvas.chunks_exact_mut(side * side)) {
                spread(map, own, canvas, side);
            }
        }
        let values: Vec<f32> = canvas.into_iter().map(|value| value as f32).collect();
        let values =
            Tensor::from_vec(values, (rows, 1, side, side), &crate::model::DEVICE).map_err(tensor_error)?;
        maps(&Attribution { values, ..attribution.clone() }, Reduction::Sum, &[side; 2]).map_err(tensor_error)
    }

    pub(super) fn words(
        &self,
        row: usize,
        values: Vec<f32>,
        attribution: &Attribution,
    ) -> Result<WordValues, String> {
        self.words_of(row, values, attribution, row)
    }

    /// The words of a sample with their values, which explain the scores in a row of an attribution.
    pub(super) fn words_of(
        &self,
        sample: usize,
        values: Vec<f32>,
        attribution: &Attribution,
        row: usize,
    ) -> Result<WordValues, String> {
        if self.answers.texts.forms().is_empty() {
            return Err("the model is told nothing of the question".to_owned());
        }
        let question = &self.explanation.examples.asked[self.answers.questions[sample]].question;
        let places = self.pieces[sample].words.iter().map(|piece| piece.place.clone());
        WordValues::new(question, places, values, attribution, row)
    }
}

/// Why there is no share.
pub(super) const NOTHING: &str = "nothing of image and question changes the score";

/// The values of each token of each row of an attribution `[rows, tokens, width]`.
fn tokens_of(form: &Tensor) -> candle_core::Result<Vec<Vec<f32>>> {
    let (_, _, width) = form.dims3()?;
    let rows = form.flatten_from(1)?.to_vec2::<f32>()?;
    Ok(rows.iter().map(|row| token_values(row, width)).collect())
}
