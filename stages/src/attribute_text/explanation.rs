//! From captions to the values of their words, chunk by chunk.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use candle_core::Tensor;
use pipe_attribution::{
    AttentionRelevance, AttentionRule, Attribution, AttributionError, Baseline, Coalitions, Deviation,
    Evaluator, FeatureAblation, Features, InputXGradient, Inputs, KernelShap, Method, Passes, ShapleyValues,
    TextSimilarity, Word, absent_ids, token_values, word_values, words,
};
use pipe_engine::{StageContext, StageError};
use pipe_models::Encoded;
use pipe_models::random::Key;

use super::file::{Row, WordFile, WordValues};
use super::{Absent, Params, WordMethod};
use crate::attribute::{attribution_error, first_layer, noise_of_words, wrapped};
use crate::images::Pixels;
use crate::model::{DEVICE, Model, checkpoint_error, tensor_error};
use crate::table::read_columns;

/// How BERT spells an absent word.
const MASK: &str = "[MASK]";

/// The captions that are explained.
pub(super) struct Captions {
    ids: Vec<String>,
    images: Vec<String>,
    texts: Vec<String>,
    encoded: Vec<Encoded>,
}

impl Captions {
    pub(super) fn read(
        params: &Params,
        model: &Model,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let table =
            read_columns(context.input("captions")?, &["caption_id", "image_id", "split", "caption"])?;
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let mut rows = table.rows_of_splits(&splits);
        rows.truncate(params.limit.map_or(usize::MAX, |limit| limit as usize));
        let table = table.select(&rows);
        let owned = |column: &str| -> Result<Vec<String>, StageError> {
            Ok(table.strings(column)?.into_iter().map(str::to_owned).collect())
        };
        let texts = owned("caption")?;
        let (tower, tokenizer) = (model.text_tower()?, model.tokenizer()?);
        let encode = |text: &String| tokenizer.encode(text, tower.context_length(), tower.pad_id());
        let encoded = texts.iter().map(encode).collect::<Result<_, _>>().map_err(checkpoint_error)?;
        let ids = table.int64("caption_id")?.iter();
        let ids = ids.map(|id| id.map(|id| id.to_string()).unwrap_or_default()).collect();
        Ok(Self { ids, images: owned("image_id")?, texts, encoded })
    }

    /// The images that the captions belong to.
    pub(super) fn image_ids(&self) -> BTreeSet<&str> {
        self.images.iter().map(String::as_str).collect()
    }
}

/// What was counted on the way.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) passes: Passes,
    pub(super) captions: usize,
    pub(super) not_applicable: usize,
    pub(super) truncated: usize,
}

/// Everything that values are made from.
pub(super) struct Explanation<'a, 'c> {
    pub(super) params: &'a Params,
    pub(super) model: &'a Model,
    pub(super) captions: &'a Captions,
    pub(super) images: &'a dyn Pixels,
    pub(super) context: &'a StageContext<'c>,
}

/// The values of a caption's words, or why there are none.
type Outcome = Result<WordValues, String>;

impl Explanation<'_, '_> {
    /// Writes a row per caption, in their order.
    pub(super) fn write(&self, file: &mut WordFile) -> Result<Counts, StageError> {
        let mut counts = Counts::default();
        let places = self.images.places();
        let absent = absent_id(self.model, self.params.absent)?;
        let all: Vec<usize> = (0..self.captions.ids.len()).collect();
        for chunk in all.chunks(self.images.at_a_time(self.params.batch).max(1) as usize) {
            self.context.check_cancelled()?;
            let outcomes = self.outcomes(chunk, &places, absent, &mut counts)?;
            for (caption, outcome) in chunk.iter().zip(outcomes) {
                match &outcome {
                    Ok(_) => counts.captions += 1,
                    Err(_) => counts.not_applicable += 1,
                }
                counts.truncated += usize::from(self.captions.encoded[*caption].truncated);
                file.add(Row {
                    id: self.captions.ids[*caption].clone(),
                    target: Some(self.captions.images[*caption].clone()),
                    index: None,
                    caption: self.captions.texts[*caption].clone(),
                    outcome,
                })?;
            }
            let done = (counts.captions + counts.not_applicable) as u64;
            let figures = [("forward passes", counts.passes.forward as f64)];
            self.context.progress(done, all.len() as u64, "captions", &figures);
        }
        Ok(counts)
    }

    fn outcomes(
        &self,
        chunk: &[usize],
        places: &BTreeMap<&str, usize>,
        absent: u32,
        counts: &mut Counts,
    ) -> Result<Vec<Outcome>, StageError> {
        let captions = self.captions;
        let found: Vec<Option<usize>> =
            chunk.iter().map(|caption| places.get(captions.images[*caption].as_str()).copied()).collect();
        let explained: Vec<usize> =
            chunk.iter().zip(&found).filter_map(|(caption, image)| image.map(|_| *caption)).collect();
        let images: Vec<usize> = found.iter().flatten().copied().collect();
        let mut computed = if explained.is_empty() {
            Vec::new()
        } else {
            self.explain(&explained, &images, absent, counts)?
        }
        .into_iter();
        let missing = || Err("the caption's image is not in the table of images".to_owned());
        Ok(found
            .into_iter()
            .map(|image| match image {
                Some(_) => computed.next().unwrap_or_else(missing),
                None => missing(),
            })
            .collect())
    }

    fn explain(
        &self,
        captions: &[usize],
        images: &[usize],
        absent: u32,
        counts: &mut Counts,
    ) -> Result<Vec<Outcome>, StageError> {
        let encoder = self.model.dual_encoder()?;
        let pixels = self.images.batch(images)?;
        let embeddings = encoder.image_tower().embed_images(&pixels, None).map_err(tensor_error)?;
        let encoded: Vec<&Encoded> =
            captions.iter().map(|caption| &self.captions.encoded[*caption]).collect();
        let of_captions: Vec<Vec<Word>> = captions
            .iter()
            .zip(&encoded)
            .map(|(caption, encoded)| words(&self.captions.texts[*caption], &encoded.offsets))
            .collect();
        let positions = encoder.text_tower().context_length();
        let ids: Vec<u32> = encoded.iter().flat_map(|encoded| encoded.ids.iter().copied()).collect();
        let without: Vec<u32> = encoded
            .iter()
            .zip(&of_captions)
            .flat_map(|(encoded, words)| absent_ids(&encoded.ids, words, absent))
            .collect();
        let tensor = |ids: Vec<u32>| Tensor::from_vec(ids, (captions.len(), positions), &DEVICE);
        let prepared = || {
            let score = TextSimilarity::new(encoder, &tensor(ids.clone())?, &embeddings)?;
            let tokens = score.embeddings()?;
            let baseline = match self.params.absent {
                Absent::Zero => tokens.zeros_like()?,
                Absent::Word | Absent::Padding => score.embeddings_of(&tensor(without)?)?,
            };
            Ok((score, tokens, baseline))
        };
        let (score, tokens, baseline) = prepared().map_err(tensor_error)?;
        let observer = |_: Passes| match self.context.check_cancelled() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let evaluator = Evaluator::new(&score, self.params.batch.max(1) as usize).observed(&observer);
        let baseline = Baseline::Tensor(baseline);
        let outcomes = match (self.params.method, self.gradients(&baseline)) {
            (WordMethod::AttentionRelevance, _) => {
                let pooled = tensor(ids).and_then(|ids| encoder.text_tower().pooled_positions(&ids));
                let pooled = pooled.map_err(tensor_error)?;
                self.along_attention(&evaluator, &tokens, &pooled, captions, &of_captions)
            }
            (_, Some(method)) => {
                let method = self.wrapped(method, captions);
                self.together(method.as_ref(), &evaluator, &tokens, captions, &of_captions)
            }
            (_, None) => self.one_by_one(&evaluator, &tokens, &baseline, captions, &of_captions),
        };
        let passes = evaluator.passes();
        counts.passes.forward += passes.forward;
        counts.passes.backward += passes.backward;
        outcomes
    }

    /// A method with what is wrapped around it.
    fn wrapped(&self, method: Box<dyn Method>, captions: &[usize]) -> Box<dyn Method> {
        let params = self.params;
        let noise = || {
            noise_of_words(
                params.draws,
                params.noise,
                Deviation::OfRange,
                captions.iter().map(|caption| self.key(*caption)),
            )
        };
        // Words are not smoothed: the deviation of a blur means nothing.
        wrapped(method, &params.wrap, &noise, 1.0)
    }

    /// The method, if it is one on token embeddings that knows nothing of words.
    fn gradients(&self, baseline: &Baseline) -> Option<Box<dyn Method>> {
        let baseline = baseline.clone();
        match self.params.method {
            WordMethod::InputXGradient => Some(Box::new(InputXGradient { baseline })),
            WordMethod::IntegratedGradients => Some(self.params.integration().method(baseline)),
            WordMethod::Occlusion
            | WordMethod::ShapleyValues
            | WordMethod::KernelShap
            | WordMethod::AttentionRelevance => None,
        }
    }

    /// All captions of a chunk in shared batches; the values of a word's tokens are added up.
    fn together(
        &self,
        method: &dyn Method,
        evaluator: &Evaluator<'_>,
        tokens: &Tensor,
        captions: &[usize],
        of_captions: &[Vec<Word>],
    ) -> Result<Vec<Outcome>, StageError> {
        let inputs = Inputs::new(tokens).map_err(attribution_error)?;
        let attribution = method.attribute(evaluator, &inputs).map_err(attribution_error)?;
        let rows = rows_of(&attribution)?;
        let width = tokens.dims()[2];
        Ok(rows
            .iter()
            .enumerate()
            .map(|(row, values)| {
                let values = word_values(&token_values(values, width), &of_captions[row]);
                self.words(captions[row], &of_captions[row], values, &attribution, row)
            })
            .collect())
    }

    /// The relevance of each word for the pooled token along the text tower's attention, as a share of that of all
    /// words. Marks and padding have no part in it.
    fn along_attention(
        &self,
        evaluator: &Evaluator<'_>,
        tokens: &Tensor,
        pooled: &[usize],
        captions: &[usize],
        of_captions: &[Vec<Word>],
    ) -> Result<Vec<Outcome>, StageError> {
        let hooks = self.model.text_tower()?.attention_hooks();
        let layers = &hooks[first_layer(hooks.len(), self.params.last_layers)..];
        let method = AttentionRelevance {
            rule: AttentionRule::Gradient,
            layers: layers.iter().map(|hook| hook.name.clone()).collect(),
            pooled: 0,
            prefix: 0,
            grid: Vec::new(),
        };
        let inputs = Inputs::new(tokens).map_err(attribution_error)?;
        let (matrices, length, scores) = match method.matrices(evaluator, &inputs) {
            Err(AttributionError::NotApplicable(reason)) => return Ok(vec![Err(reason); captions.len()]),
            other => other.map_err(attribution_error)?,
        };
        let attribution =
            Attribution { values: tokens.clone(), scores, baseline_scores: None, completeness_gaps: None };
        let of_row = |row: usize| {
            let of_pooled = &matrices[(row * length + pooled[row]) * length..][..length];
            let values = word_values(of_pooled, &of_captions[row]);
            let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
            let share = |value: f32| if sum > 0.0 { (f64::from(value) / sum) as f32 } else { 0.0 };
            let values = values.into_iter().map(share).collect();
            self.words(captions[row], &of_captions[row], values, &attribution, row)
        };
        Ok((0..captions.len()).map(of_row).collect())
    }

    /// Words as features, which every caption has its own of.
    fn one_by_one(
        &self,
        evaluator: &Evaluator<'_>,
        tokens: &Tensor,
        baseline: &Baseline,
        captions: &[usize],
        of_captions: &[Vec<Word>],
    ) -> Result<Vec<Outcome>, StageError> {
        let (_, positions, width) = tokens.dims3().map_err(tensor_error)?;
        let keys: Vec<Key> = captions.iter().map(|caption| self.key(*caption)).collect();
        let mut outcomes = Vec::with_capacity(captions.len());
        for (row, words) in of_captions.iter().enumerate() {
            let explained = || -> pipe_attribution::Result<Attribution> {
                let features = Features::of_words(positions, width, words)?;
                let baseline = baseline.clone();
                let inputs = Inputs::of_samples(&tokens.narrow(0, row, 1)?, vec![row])?;
                let method: Box<dyn Method> = match self.params.method {
                    WordMethod::ShapleyValues => Box::new(ShapleyValues { features, baseline }),
                    WordMethod::KernelShap => {
                        let samples = (self.params.samples as usize).max(words.len() + 2);
                        let coalitions = Coalitions::Drawn { samples, keys: keys.clone() };
                        Box::new(KernelShap { features, baseline, coalitions })
                    }
                    _ => Box::new(FeatureAblation { features, baseline }),
                };
                self.wrapped(method, captions).attribute(evaluator, &inputs)
            };
            outcomes.push(match explained() {
                Ok(attribution) => {
                    let values = rows_of(&attribution)?;
                    let first = |word: &Word| values[0][word.tokens[0] * width];
                    self.words(captions[row], words, words.iter().map(first).collect(), &attribution, 0)
                }
                // Too many words for all subsets, or too few for a regression.
                Err(AttributionError::NotApplicable(reason) | AttributionError::Settings(reason)) => {
                    Err(reason)
                }
                Err(error) => return Err(attribution_error(error)),
            });
        }
        Ok(outcomes)
    }

    /// Subsets are a function of the caption alone: neither of its place nor of those beside it.
    fn key(&self, caption: usize) -> Key {
        let id = self.captions.ids[caption].as_str();
        Key::derive("pipe attribution words/1", self.params.seed as u64, &[id.into()])
    }

    fn words(
        &self,
        caption: usize,
        words: &[Word],
        values: Vec<f32>,
        attribution: &Attribution,
        row: usize,
    ) -> Outcome {
        let places = words.iter().map(|word| word.place.clone());
        WordValues::new(&self.captions.texts[caption], places, values, attribution, row)
    }
}

/// The id that stands for an absent word in the ids of a model's text tower.
///
/// # Errors
/// If the model reads no text.
pub(crate) fn absent_id(model: &Model, absent: Absent) -> Result<u32, StageError> {
    let (tower, tokenizer) = (model.text_tower()?, model.tokenizer()?);
    let mask = || (0..tower.vocabulary() as u32).find(|id| tokenizer.token(*id) == MASK);
    Ok(match absent {
        Absent::Word => mask().unwrap_or_else(|| tower.pad_id()),
        Absent::Padding | Absent::Zero => tower.pad_id(),
    })
}

/// The values of each row of an attribution.
fn rows_of(attribution: &Attribution) -> Result<Vec<Vec<f32>>, StageError> {
    attribution.values.flatten_from(1).and_then(|rows| rows.to_vec2()).map_err(tensor_error)
}
