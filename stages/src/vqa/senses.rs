//! What a model of visual question answering is shown: images and questions in the forms that its parts take, made
//! once for all steps, but for what passes through an encoder that learns.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{D, DType, Tensor};
use pipe_engine::{StageContext, StageError};
use pipe_models::preprocess::Fit;
use pipe_models::vqa::{Autoencoder, AutoencoderInput, Batch, Images, QuestionType, Questions, TextStates};
use pipe_models::{ImageTower, Preprocessor, TextTower};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Examples, QuestionVocabulary};
use crate::model::{DEVICE, Model, tensor_error};

/// Words of a question; what is longer is cut (MEVF, QCR).
pub(crate) const QUESTION_LENGTH: usize = 12;

/// Which tokens of an image encoder are seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VisualTokens {
    /// The projected embedding, one token.
    #[default]
    Pooled,
    /// The cells of the last layer, before the projection: what makes attention to places meaningful.
    Grid,
}

/// What a model learns from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// Image and question.
    #[default]
    Both,
    /// The question alone: a learned vector stands in the place of every image.
    Question,
    /// The image alone: every question is padding.
    Image,
}

impl Modality {
    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Question => "question",
            Self::Image => "image",
        }
    }
}

/// Forms of images that a model takes.
#[derive(Clone, Copy)]
pub(crate) struct Sight<'a> {
    /// The encoder whose features are seen.
    pub(crate) encoder: Option<&'a Model>,
    pub(crate) tokens: VisualTokens,
    /// Whether the encoder sees scrambled pixels.
    pub(crate) scrambled: bool,
    /// The encoder learns: its features are made anew for every batch.
    pub(crate) live: bool,
    /// The side of images for the meta-learned network.
    pub(crate) meta: Option<usize>,
    /// The side of images for the auto-encoder.
    pub(crate) autoencoder: Option<usize>,
    /// The auto-encoder, if it stays as it is: its codes are made once.
    pub(crate) frozen: Option<&'a Autoencoder>,
}

/// Values in rows of one shape.
struct Rows {
    values: Vec<f32>,
    /// `[tokens, width]` or `[channels, rows, columns]`.
    shape: Vec<usize>,
}

impl Rows {
    /// Some rows, `[rows, ...shape]`.
    fn pick(&self, rows: &[usize]) -> candle_core::Result<Tensor> {
        let length: usize = self.shape.iter().product();
        let values: Vec<f32> =
            rows.iter().flat_map(|row| &self.values[row * length..(row + 1) * length]).copied().collect();
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(self.shape.iter().copied()).collect();
        Tensor::from_vec(values, shape, &DEVICE)
    }
}

/// Eight-bit grey squares.
struct Squares {
    side: usize,
    values: Vec<u8>,
}

impl Squares {
    /// Some of them in 0..1, `[rows, 1, side, side]`.
    fn pick(&self, rows: &[usize]) -> candle_core::Result<Tensor> {
        let length = self.side * self.side;
        let values = rows.iter().flat_map(|row| &self.values[row * length..(row + 1) * length]);
        let values: Vec<f32> = values.map(|value| f32::from(*value) / 255.0).collect();
        Tensor::from_vec(values, (rows.len(), 1, self.side, self.side), &DEVICE)
    }
}

enum Features {
    None,
    Made(Rows),
    /// Squares of the encoder's preprocessing, to be encoded when they are seen.
    Live(Preprocessor, Vec<u8>),
}

/// The images of [`Examples`] in all forms.
pub(crate) struct Sights {
    features: Features,
    meta: Option<Squares>,
    grey: Option<Squares>,
    codes: Option<Rows>,
    tokens: VisualTokens,
}

/// Images of a forward pass that trains nothing.
const BATCH: usize = 64;

/// The encoder's preprocessing, but that the whole image is seen: it is stretched to the square.
pub(crate) fn preprocessing(encoder: &Model) -> Result<Preprocessor, StageError> {
    Ok(Preprocessor { fit: Fit::Stretch, ..encoder.preprocessor()?.clone() })
}

/// Squares whose values are read in another order than they were written in: rows, columns and colours as colours,
/// rows and columns. PubMedCLIP's code shows them so, in 0..1, to its encoders.
fn scrambled(squares: &[u8], side: usize) -> Vec<u8> {
    let plane = side * side;
    let pixel = |square: &[u8], pixel: usize| [0, 1, 2].map(|colour| square[colour * plane + pixel]);
    let squares = squares.chunks_exact((3 * plane).max(1));
    squares.flat_map(|square| (0..plane).flat_map(move |place| pixel(square, place))).collect()
}

/// How codes became standardised ones: `(code - mean) * scale`.
pub(crate) struct Standard {
    mean: Vec<f32>,
    scale: f64,
}

impl Standard {
    /// The weight `[out, code]` and the bias `[out]` of a linear layer over codes as they are that gives what these give
    /// over standardised ones.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub(crate) fn over_codes(&self, weight: &Tensor, bias: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        let weight = (weight * self.scale)?;
        let mean = Tensor::from_slice(&self.mean, (self.mean.len(), 1), weight.device())?;
        let bias = (bias - weight.matmul(&mean)?.squeeze(1)?)?;
        Ok((weight, bias))
    }
}

impl Sights {
    /// Centres the codes of a frozen auto-encoder on the mean of those of `images`, and scales them so that these are of
    /// length one on average. None without codes.
    pub(crate) fn standardise(&mut self, images: &BTreeSet<usize>) -> Option<Standard> {
        let codes = self.codes.as_mut()?;
        let length: usize = codes.shape.iter().product();
        let mut mean = vec![0.0; length];
        for image in images {
            let code = &codes.values[image * length..(image + 1) * length];
            mean.iter_mut().zip(code).for_each(|(mean, value)| *mean += f64::from(*value));
        }
        let mean: Vec<f32> = mean.iter().map(|sum| (sum / images.len() as f64) as f32).collect();
        for code in codes.values.chunks_exact_mut(length.max(1)) {
            code.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
        }
        let lengths = images.iter().map(|image| {
            let code = &codes.values[image * length..(image + 1) * length];
            code.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
        });
        let average = lengths.sum::<f64>() / images.len() as f64;
        // Such codes tell nothing, centred or not.
        let scale = if average > 0.0 { average.recip() } else { 1.0 };
        codes.values.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        Some(Standard { mean, scale })
    }

    /// Looks at all images.
    ///
    /// # Errors
    /// If an image is damaged, or the stage is cancelled.
    pub(crate) fn new(
        examples: &Examples,
        sight: Sight<'_>,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let features = match sight.encoder {
            None => Features::None,
            Some(encoder) => {
                let mut preprocessor = preprocessing(encoder)?;
                let mut squares = examples.squares(&preprocessor)?;
                if sight.scrambled {
                    (preprocessor.mean, preprocessor.std) = ([0.0; 3], [1.0; 3]);
                    squares = scrambled(&squares, preprocessor.side);
                }
                match sight.live {
                    true => Features::Live(preprocessor, squares),
                    false => Features::Made(encode(encoder, sight.tokens, &preprocessor, &squares, context)?),
                }
            }
        };
        let squares = |side: usize| Ok::<_, StageError>(Squares { side, values: examples.grey(side)? });
        let meta = sight.meta.map(squares).transpose()?;
        let mut grey = sight.autoencoder.map(squares).transpose()?;
        let codes = match (sight.frozen, &grey) {
            (Some(autoencoder), Some(squares)) => Some(codes(autoencoder, squares, context)?),
            _ => None,
        };
        if codes.is_some() {
            grey = None;
        }
        Ok(Self { features, meta, grey, codes, tokens: sight.tokens })
    }

    /// Some images, seen by `encoder` if it learns.
    pub(crate) fn batch(&self, rows: &[usize], encoder: Option<&Model>) -> Result<Images, StageError> {
        let features = match (&self.features, encoder) {
            (Features::None, _) => None,
            (Features::Made(made), _) => Some(made.pick(rows).map_err(tensor_error)?),
            (Features::Live(preprocessor, squares), Some(encoder)) => {
                let length = preprocessor.side * preprocessor.side * 3;
                let chosen: Vec<u8> =
                    rows.iter().flat_map(|row| &squares[row * length..(row + 1) * length]).copied().collect();
                let pixels = preprocessor.tensor(&chosen, &DEVICE).map_err(tensor_error)?;
                let tower = encoder.image_tower()?;
                let made = encoder.mixed(&pixels).and_then(|pixels| features(tower, self.tokens, &pixels));
                Some(made.map_err(tensor_error)?)
            }
            (Features::Live(..), None) => return Err(StageError::failed("the images need their encoder")),
        };
        let autoencoder = match (&self.codes, &self.grey) {
            (Some(codes), _) => Some(AutoencoderInput::Codes(codes.pick(rows).map_err(tensor_error)?)),
            (None, Some(grey)) => Some(AutoencoderInput::Pixels(grey.pick(rows).map_err(tensor_error)?)),
            (None, None) => None,
        };
        let meta = self.meta.as_ref().map(|meta| meta.pick(rows)).transpose().map_err(tensor_error)?;
        Ok(Images { meta, autoencoder, features })
    }
}

/// What an encoder knows of images, `[images, tokens, width]`; gradients flow through.
pub(crate) fn features(
    tower: &dyn ImageTower,
    tokens: VisualTokens,
    pixels: &Tensor,
) -> candle_core::Result<Tensor> {
    match tokens {
        VisualTokens::Pooled => tower.embed_images(pixels, None)?.unsqueeze(1),
        VisualTokens::Grid => tower.features(pixels, None),
    }
}

fn encode(
    encoder: &Model,
    tokens: VisualTokens,
    preprocessor: &Preprocessor,
    squares: &[u8],
    context: &StageContext<'_>,
) -> Result<Rows, StageError> {
    let length = preprocessor.side * preprocessor.side * 3;
    let total = squares.len() / length;
    let (mut values, mut shape) = (Vec::new(), vec![1, 0]);
    for (done, part) in squares.chunks(length * BATCH).enumerate() {
        context.check_cancelled()?;
        context.progress((done * BATCH) as u64, total as u64, "images", &[]);
        let pixels = preprocessor.tensor(part, &DEVICE).map_err(tensor_error)?;
        let made = features(encoder.image_tower()?, tokens, &pixels).map_err(tensor_error)?.detach();
        shape = made.dims()[1..].to_vec();
        values.extend(made.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(tensor_error)?);
    }
    Ok(Rows { values, shape })
}

fn codes(
    autoencoder: &Autoencoder,
    squares: &Squares,
    context: &StageContext<'_>,
) -> Result<Rows, StageError> {
    let total = squares.values.len() / (squares.side * squares.side);
    let all: Vec<usize> = (0..total).collect();
    let (mut values, mut shape) = (Vec::new(), vec![0]);
    for rows in all.chunks(BATCH) {
        context.check_cancelled()?;
        context.progress(rows[0] as u64, total as u64, "images", &[]);
        let made = squares.pick(rows).and_then(|pixels| autoencoder.encode(&pixels)).map_err(tensor_error)?;
        shape = made.dims()[1..].to_vec();
        let flat = made.detach().flatten_all().and_then(|flat| flat.to_vec1::<f32>());
        values.extend(flat.map_err(tensor_error)?);
    }
    Ok(Rows { values, shape })
}

/// The questions of [`Examples`] in the forms that a model reads.
pub(crate) struct Readings {
    /// Word ids of each question.
    words: Vec<Vec<u32>>,
    /// Ids of each question for the text tower.
    ids: Option<Vec<Vec<u32>>>,
    /// The states of the tower, by text; none while it learns.
    states: BTreeMap<Vec<u32>, Vec<f32>>,
    /// Nothing is told of them.
    hidden: bool,
}

impl Readings {
    /// Reads all questions; with a `tower`, as its hidden states too, made once unless it is `live`.
    ///
    /// # Errors
    /// If the tower has no tokeniser, or the stage is cancelled.
    pub(crate) fn new(
        examples: &Examples,
        vocabulary: &QuestionVocabulary,
        tower: Option<&Model>,
        live: bool,
        modality: Modality,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let hidden = modality == Modality::Image;
        let encode = |text: &str| match hidden {
            true => vec![vocabulary.padding(); QUESTION_LENGTH],
            false => vocabulary.encode(text, QUESTION_LENGTH),
        };
        let words = examples.asked.iter().map(|one| encode(&one.question)).collect();
        let mut states = BTreeMap::new();
        let ids = match tower {
            None => None,
            Some(tower) => {
                let ids: Vec<Vec<u32>> = examples
                    .asked
                    .iter()
                    .map(|one| tower.encode(if hidden { "" } else { &one.question }))
                    .collect::<Result<_, _>>()?;
                if !live {
                    let mut distinct: Vec<&Vec<u32>> = ids.iter().collect();
                    distinct.sort_unstable();
                    distinct.dedup();
                    for (done, part) in distinct.chunks(BATCH).enumerate() {
                        context.check_cancelled()?;
                        context.progress((done * BATCH) as u64, distinct.len() as u64, "questions", &[]);
                        let made = hidden_states(tower, part)?.detach();
                        let rows = made.flatten_from(1).and_then(|flat| flat.to_vec2::<f32>());
                        let rows = rows.map_err(tensor_error)?;
                        states.extend(part.iter().map(|ids| (*ids).clone()).zip(rows));
                    }
                }
                Some(ids)
            }
        };
        Ok(Self { words, ids, states, hidden })
    }

    /// Some questions, read by `tower` if there is one.
    pub(crate) fn batch(&self, rows: &[usize], tower: Option<&Model>) -> Result<Questions, StageError> {
        let tokens: Vec<u32> = rows.iter().flat_map(|row| &self.words[*row]).copied().collect();
        let tokens =
            Tensor::from_vec(tokens, (rows.len(), QUESTION_LENGTH), &DEVICE).map_err(tensor_error)?;
        let mut questions = Questions::tokens(tokens);
        if let (Some(ids), Some(tower)) = (&self.ids, tower) {
            let ids: Vec<&Vec<u32>> = rows.iter().map(|row| &ids[*row]).collect();
            questions.states = Some(self.states(&ids, tower)?);
        }
        Ok(questions)
    }

    /// Ids of some questions for the text tower, `[rows, positions]`, if it reads them.
    pub(crate) fn ids(&self, rows: &[usize]) -> candle_core::Result<Option<Tensor>> {
        let Some(ids) = &self.ids else { return Ok(None) };
        let flat: Vec<u32> = rows.iter().flat_map(|row| &ids[*row]).copied().collect();
        Tensor::from_vec(flat, (rows.len(), ids.first().map_or(0, Vec::len)), &DEVICE).map(Some)
    }

    /// Some questions, told by other vectors: those of their words, and those of the tower's tokens. Which of them
    /// are padding, and where they end, stays as it is.
    ///
    /// # Errors
    /// Whatever the tower reports.
    pub(crate) fn told(
        &self,
        rows: &[usize],
        words: Option<Tensor>,
        tokens: Option<(&dyn TextTower, &Tensor)>,
    ) -> candle_core::Result<Questions> {
        let own: Vec<u32> = rows.iter().flat_map(|row| &self.words[*row]).copied().collect();
        let own = Tensor::from_vec(own, (rows.len(), QUESTION_LENGTH), &DEVICE)?;
        let mut questions = match words {
            Some(embedded) => Questions::embedded(own, embedded),
            None => Questions::tokens(own),
        };
        if let (Some((tower, embeddings)), Some(ids)) = (tokens, &self.ids) {
            let tensor = self.ids(rows)?.unwrap_or_else(|| embeddings.clone());
            let hidden = tower.hidden_states(embeddings, &tensor, None)?.to_dtype(DType::F32)?;
            let ids: Vec<&Vec<u32>> = rows.iter().map(|row| &ids[*row]).collect();
            questions.states = Some(self.text_states(&ids, hidden, tower)?);
        }
        Ok(questions)
    }

    /// Word ids of some questions, `[rows, length]`.
    pub(crate) fn tokens(&self, rows: &[usize]) -> Result<Tensor, StageError> {
        let tokens: Vec<u32> = rows.iter().flat_map(|row| &self.words[*row]).copied().collect();
        Tensor::from_vec(tokens, (rows.len(), QUESTION_LENGTH), &DEVICE).map_err(tensor_error)
    }

    fn states(&self, ids: &[&Vec<u32>], tower: &Model) -> Result<TextStates, StageError> {
        let hidden = match self.states.is_empty() {
            true => hidden_states(tower, ids)?,
            false => {
                let values: Vec<f32> = ids.iter().flat_map(|ids| &self.states[*ids]).copied().collect();
                let shape =
                    (ids.len(), tower.text_tower()?.context_length(), tower.text_tower()?.hidden_width());
                Tensor::from_vec(values, shape, &DEVICE).map_err(tensor_error)?
            }
        };
        self.text_states(ids, hidden, tower.text_tower()?).map_err(tensor_error)
    }

    /// Hidden states with what the ids say of them.
    fn text_states(
        &self,
        ids: &[&Vec<u32>],
        hidden: Tensor,
        tower: &dyn TextTower,
    ) -> candle_core::Result<TextStates> {
        let tokens = hidden.dim(D::Minus2)?;
        let flat: Vec<u32> = ids.iter().flat_map(|ids| ids.iter().copied()).collect();
        let pooled = tower.pooled_positions(&Tensor::from_vec(flat, (ids.len(), tokens), &DEVICE)?)?;
        let padding = tower.pad_id();
        // A text ends at the position that stands for it; where that is the first, padding is told by its id.
        let is_text = |row: usize, position: usize| match pooled[row] {
            0 => ids[row][position] != padding || position == 0,
            end => position <= end,
        };
        let mask: Vec<f32> = (0..ids.len() * tokens)
            .map(|cell| f32::from(u8::from(!self.hidden && is_text(cell / tokens, cell % tokens))))
            .collect();
        let hidden = if self.hidden { hidden.zeros_like()? } else { hidden };
        let pooled: Vec<u32> = pooled.into_iter().map(|position| position as u32).collect();
        Ok(TextStates {
            hidden,
            mask: Tensor::from_vec(mask, (ids.len(), tokens), &DEVICE)?,
            pooled: Tensor::from_vec(pooled, ids.len(), &DEVICE)?,
        })
    }
}

/// The hidden states of texts, `[texts, positions, width]`; gradients flow through.
fn hidden_states(tower: &Model, ids: &[&Vec<u32>]) -> Result<Tensor, StageError> {
    let text = tower.text_tower()?;
    let flat: Vec<u32> = ids.iter().flat_map(|ids| ids.iter().copied()).collect();
    let made = || {
        let ids = Tensor::from_vec(flat, (ids.len(), text.context_length()), &DEVICE)?;
        text.hidden_states(&tower.mixed(&text.token_embeddings(&ids)?)?, &ids, None)?.to_dtype(DType::F32)
    };
    made().map_err(tensor_error)
}

/// The annotated type of a question.
pub(crate) fn annotated(closed: bool) -> QuestionType {
    if closed { QuestionType::Closed } else { QuestionType::Open }
}

/// A batch of questions whose types are not told.
pub(crate) fn batch(images: Images, questions: Questions) -> Batch {
    Batch { images, questions, types: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrambled_pixels_are_the_same_values_in_another_order() {
        // Two pixels by two: red 0 to 9, green 10 to 19, blue 20 to 29.
        let square = [0, 10, 20, 1, 11, 21, 2, 12, 22, 3, 13, 23];
        let seen = scrambled(&[square, square].concat(), 2);
        // The red plane is the first third of the values as they were written, and so on.
        let red: Vec<u8> = seen[..12].iter().step_by(3).copied().collect();
        assert_eq!(red, square[..4]);
        assert_eq!(seen[..3], [square[0], square[4], square[8]]);
        assert_eq!(seen[12..], seen[..12]);
    }

    #[test]
    fn a_layer_over_standardised_codes_says_the_same_over_codes_as_they_are() {
        let values: Vec<f32> = (0..24).map(|value| 100.0 + (value * value % 17) as f32).collect();
        let codes = |values: &[f32]| Sights {
            features: Features::None,
            meta: None,
            grey: None,
            codes: Some(Rows { values: values.to_vec(), shape: vec![2, 3] }),
            tokens: VisualTokens::Pooled,
        };
        let (raw, mut standard) = (codes(&values), codes(&values));
        // The last image is none of training.
        let told = standard.standardise(&BTreeSet::from([0, 1, 2])).unwrap();
        let pick = |sights: &Sights, rows: &[usize]| {
            sights.codes.as_ref().unwrap().pick(rows).unwrap().flatten_from(1).unwrap()
        };
        let trained = pick(&standard, &[0, 1, 2]).to_vec2::<f32>().unwrap();
        let mean = |column: usize| trained.iter().map(|row| row[column]).sum::<f32>() / 3.0;
        assert!((0..6).all(|column| mean(column).abs() < 1e-6));
        let length = |row: &Vec<f32>| row.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!((trained.iter().map(length).sum::<f32>() / 3.0 - 1.0).abs() < 1e-6);
        let weight =
            Tensor::from_vec((0..12).map(|value| value as f32 - 5.5).collect(), (2, 6), &DEVICE).unwrap();
        let bias = Tensor::new(&[0.25f32, -3.0], &DEVICE).unwrap();
        let all = [0, 1, 2, 3];
        let layer = |sights: &Sights, weight: &Tensor, bias: &Tensor| {
            let product = pick(sights, &all).matmul(&weight.t().unwrap()).unwrap();
            product.broadcast_add(bias).unwrap().to_vec2::<f32>().unwrap()
        };
        let expected = layer(&standard, &weight, &bias);
        let (weight, bias) = told.over_codes(&weight, &bias).unwrap();
        for (found, expected) in layer(&raw, &weight, &bias).iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
        // Codes that are all alike stay finite.
        let mut alike = codes(&[7.0; 24]);
        alike.standardise(&BTreeSet::from([0, 3])).unwrap();
        assert!(pick(&alike, &all).to_vec2::<f32>().unwrap().iter().flatten().all(|value| *value == 0.0));
    }
}
