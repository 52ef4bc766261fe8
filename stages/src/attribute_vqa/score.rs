//! The logit of an answer as a function of what the model is shown.

use std::collections::BTreeMap;

use candle_core::{Error, Result, Tensor, bail};
use pipe_attribution::{Joint, Score};
use pipe_engine::StageError;
use pipe_models::MaybeProbe;
use pipe_models::vqa::{AutoencoderInput, Batch, Images, Mode, QuestionType, Questions, TextStates, Words};

use super::shown::{Pictures, Piece, Reading, Sense, Texts};
use crate::model::DEVICE;
use crate::vqa::{Answerer, Readings, features};

/// Some questions that a model answers.
pub(super) struct Answers<'a> {
    pub(super) answerer: &'a Answerer,
    pub(super) pictures: &'a Pictures,
    pub(super) texts: &'a Texts<'a>,
    pub(super) readings: &'a Readings,
    /// Which question each sample is.
    pub(super) questions: Vec<usize>,
    /// The branch that each sample takes, whatever becomes of its question.
    pub(super) types: Option<Vec<QuestionType>>,
    /// The label of the answer of each sample that is explained.
    pub(super) targets: Vec<u32>,
}

/// What the model is shown of each sample: forms of the image and of the question.
#[derive(Clone)]
pub(super) struct Shown {
    /// `[samples, channels, side, side]`.
    pub(super) images: Vec<Tensor>,
    /// `[samples, tokens, width]`.
    pub(super) texts: Vec<Tensor>,
}

/// An error of a stage within a pass.
fn within(error: StageError) -> Error {
    Error::msg(error.to_string())
}

impl Answers<'_> {
    /// Images as the model takes them, from all their forms.
    fn see(&self, forms: &[Tensor]) -> Result<Images> {
        let mut images = Images::default();
        for (sense, form) in self.pictures.senses().zip(forms) {
            match sense {
                Sense::Encoder(_) => {
                    let Some(encoder) = &self.answerer.encoder else { bail!("the encoder is missing") };
                    let tower = encoder.image_tower().map_err(within)?;
                    images.features = Some(features(tower, self.answerer.description.tokens, form)?);
                }
                Sense::Meta => images.meta = Some(form.clone()),
                Sense::Autoencoder => images.autoencoder = Some(AutoencoderInput::Pixels(form.clone())),
            }
        }
        Ok(images)
    }

    /// The questions of these samples as the model takes them, from all their forms.
    fn read(&self, forms: &[Tensor], samples: &[usize]) -> Result<Questions> {
        let rows: Vec<usize> = samples.iter().map(|sample| self.questions[*sample]).collect();
        if forms.is_empty() {
            // Nothing is told of them.
            return self.readings.batch(&rows, self.answerer.tower()).map_err(within);
        }
        let (mut words, mut tokens) = (None, None);
        for (reading, form) in self.texts.forms().iter().zip(forms) {
            match reading {
                Reading::Words => words = Some(form.clone()),
                Reading::Tokens => tokens = Some(form),
            }
        }
        let tower = match (self.answerer.tower(), tokens) {
            (Some(tower), Some(tokens)) => Some((tower.text_tower().map_err(within)?, tokens)),
            _ => None,
        };
        self.readings.told(&rows, words, tower)
    }

    fn answer(
        &self,
        images: Images,
        questions: Questions,
        samples: &[usize],
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let types = self.types.as_ref().map(|types| samples.iter().map(|sample| types[*sample]).collect());
        let mode = probe.map_or(Mode::Evaluation, Mode::Observed);
        self.answerer.model.logits(&Batch { images, questions, types }, mode)
    }

    /// The logits of all answers, `[samples, answers]`.
    ///
    /// # Errors
    /// Whatever the model reports; likewise below.
    pub(super) fn logits(&self, shown: &Shown) -> Result<Tensor> {
        let samples: Vec<usize> = (0..self.questions.len()).collect();
        self.answer(self.see(&shown.images)?, self.read(&shown.texts, &samples)?, &samples, None)
    }

    fn score(
        &self,
        images: Images,
        questions: Questions,
        samples: &[usize],
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let targets: Vec<u32> = samples.iter().map(|sample| self.targets[*sample]).collect();
        let targets = Tensor::from_vec(targets, (samples.len(), 1), &DEVICE)?;
        self.answer(images, questions, samples, probe)?.gather(&targets, 1)?.squeeze(1)
    }
}

/// The logit of each sample's answer as a function of all that the model is shown, laid out in one row.
pub(super) struct JointScore<'a> {
    answers: &'a Answers<'a>,
    pub(super) joint: Joint,
}

impl<'a> JointScore<'a> {
    pub(super) fn new(answers: &'a Answers<'a>, shown: &Shown) -> Self {
        let shapes: Vec<&[usize]> =
            shown.images.iter().chain(&shown.texts).map(|form| &form.dims()[1..]).collect();
        Self { answers, joint: Joint::new(&shapes) }
    }
}

impl Score for JointScore<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let forms = self.joint.split(input)?;
        let (images, texts) = forms.split_at(forms.len() - self.answers.texts.forms().len());
        self.answers.score(self.answers.see(images)?, self.answers.read(texts, samples)?, samples, probe)
    }
}

/// What may be absent of a sample, in the order of a row: the cells of a grid over the image, row by row, then pieces
/// of the question.
#[derive(Clone)]
pub(super) struct Layout {
    /// Rows and columns.
    pub(super) grid: [usize; 2],
    pub(super) pieces: Vec<Piece>,
}

impl Layout {
    pub(super) fn cells(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    pub(super) fn len(&self) -> usize {
        self.cells() + self.pieces.len()
    }
}

/// The logit of each sample's answer as a function of what is present, 1 or 0 for each element of its [`Layout`]; what
/// a row does not tell is present. Each image and each question that several rows of a batch share is encoded once.
pub(super) struct PresenceScore<'a> {
    answers: &'a Answers<'a>,
    shown: Forms,
    absent: Forms,
    layouts: Vec<Layout>,
}

/// Values of all forms, with their shapes.
struct Forms {
    images: Vec<(Vec<f32>, Vec<usize>)>,
    texts: Vec<(Vec<f32>, Vec<usize>)>,
}

impl Forms {
    fn new(shown: &Shown) -> Result<Self> {
        let host = |forms: &[Tensor]| {
            let form = |form: &Tensor| Ok((form.flatten_all()?.to_vec1::<f32>()?, form.dims().to_vec()));
            forms.iter().map(form).collect::<Result<_>>()
        };
        Ok(Self { images: host(&shown.images)?, texts: host(&shown.texts)? })
    }
}

/// What of a sample is present.
type Part = (usize, Vec<bool>);

impl<'a> PresenceScore<'a> {
    pub(super) fn new(
        answers: &'a Answers<'a>,
        shown: &Shown,
        absent: &Shown,
        layouts: Vec<Layout>,
    ) -> Result<Self> {
        Ok(Self { answers, shown: Forms::new(shown)?, absent: Forms::new(absent)?, layouts })
    }

    /// Each form of the images with some of their cells, `[parts, channels, side, side]`.
    fn images(&self, parts: &[Part]) -> Result<Vec<Tensor>> {
        let form = |((shown, shape), (absent, _)): (&(Vec<f32>, Vec<usize>), &(Vec<f32>, Vec<usize>))| {
            let [_, channels, height, width] = shape[..] else { bail!("an image of {shape:?}") };
            let length = channels * height * width;
            let mut values = Vec::with_capacity(parts.len() * length);
            for (sample, present) in parts {
                let [rows, columns] = self.layouts[*sample].grid;
                let own = sample * length..(sample + 1) * length;
                let pixels = shown[own.clone()].iter().zip(&absent[own]).enumerate();
                values.extend(pixels.map(|(place, (shown, absent))| {
                    let (y, x) = (place / width % height, place % width);
                    // The cell that the middle of the pixel lies in.
                    let cell =
                        (2 * y + 1) * rows / (2 * height) * columns + (2 * x + 1) * columns / (2 * width);
                    if present[cell] { *shown } else { *absent }
                }));
            }
            Tensor::from_vec(values, (parts.len(), channels, height, width), &DEVICE)
        };
        self.shown.images.iter().zip(&self.absent.images).map(form).collect()
    }

    /// Each form of the questions with some of their pieces, `[parts, tokens, width]`.
    fn texts(&self, parts: &[Part]) -> Result<Vec<Tensor>> {
        let form = |(index, (shown, shape)): (usize, &(Vec<f32>, Vec<usize>))| {
            let [_, tokens, width] = shape[..] else { bail!("a question of {shape:?}") };
            let (absent, _) = &self.absent.texts[index];
            let mut values = Vec::with_capacity(parts.len() * tokens * width);
            for (sample, present) in parts {
                let start = values.len();
                let first = sample * tokens * width;
                values.extend_from_slice(&shown[first..first + tokens * width]);
                for (piece, _) in
                    self.layouts[*sample].pieces.iter().zip(present).filter(|(_, present)| !**present)
                {
                    for token in &piece.tokens[index] {
                        let own = token * width..(token + 1) * width;
                        values[start + own.start..start + own.end]
                            .copy_from_slice(&absent[first + own.start..first + own.end]);
                    }
                }
            }
            Tensor::from_vec(values, (parts.len(), tokens, width), &DEVICE)
        };
        self.shown.texts.iter().enumerate().map(form).collect()
    }
}

impl Score for PresenceScore<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], _: MaybeProbe<'_>) -> Result<Tensor> {
        let rows = input.flatten_from(1)?.to_vec2::<f32>()?;
        let (mut images, mut texts) = (Distinct::default(), Distinct::default());
        for (row, sample) in rows.iter().zip(samples) {
            let layout = &self.layouts[*sample];
            let is_present = |place: usize| row.get(place).is_none_or(|value| *value > 0.5);
            let cells = layout.cells();
            images.add((*sample, (0..cells).map(is_present).collect()));
            texts.add((*sample, (cells..layout.len()).map(is_present).collect()));
        }
        let seen = self.answers.see(&self.images(&images.parts)?)?;
        let own: Vec<usize> = texts.parts.iter().map(|(sample, _)| *sample).collect();
        let read = self.answers.read(&self.texts(&texts.parts)?, &own)?;
        let seen = images_at(&seen, &images.places()?)?;
        let read = questions_at(&read, &texts.places()?)?;
        self.answers.score(seen, read, samples, None)
    }
}

/// Parts, each once, and which of them each row has.
#[derive(Default)]
struct Distinct {
    parts: Vec<Part>,
    known: BTreeMap<Part, u32>,
    rows: Vec<u32>,
}

impl Distinct {
    fn add(&mut self, part: Part) {
        let next = self.parts.len() as u32;
        let place = *self.known.entry(part).or_insert_with_key(|part| {
            self.parts.push(part.clone());
            next
        });
        self.rows.push(place);
    }

    fn places(&self) -> Result<Tensor> {
        Tensor::new(self.rows.as_slice(), &DEVICE)
    }
}

fn at(form: &Option<Tensor>, places: &Tensor) -> Result<Option<Tensor>> {
    form.as_ref().map(|form| form.contiguous()?.index_select(places, 0)).transpose()
}

fn images_at(images: &Images, places: &Tensor) -> Result<Images> {
    let autoencoder = match &images.autoencoder {
        Some(AutoencoderInput::Pixels(pixels)) => {
            Some(AutoencoderInput::Pixels(pixels.index_select(places, 0)?))
        }
        Some(AutoencoderInput::Codes(codes)) => Some(AutoencoderInput::Codes(codes.index_select(places, 0)?)),
        None => None,
    };
    Ok(Images { meta: at(&images.meta, places)?, autoencoder, features: at(&images.features, places)? })
}

fn questions_at(questions: &Questions, places: &Tensor) -> Result<Questions> {
    let words = match &questions.words {
        Some(words) => Some(Words {
            tokens: words.tokens.index_select(places, 0)?,
            embedded: at(&words.embedded, places)?,
        }),
        None => None,
    };
    let states = match &questions.states {
        Some(TextStates { hidden, mask, pooled }) => Some(TextStates {
            hidden: hidden.contiguous()?.index_select(places, 0)?,
            mask: mask.index_select(places, 0)?,
            pooled: pooled.index_select(places, 0)?,
        }),
        None => None,
    };
    Ok(Questions { words, states })
}
