//! What a model of visual question answering is shown.

use candle_core::{DType, Device, Result, Tensor, bail};

/// Which kind of answer a question asks for, the branches of QCR.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum QuestionType {
    /// Yes, no, or one of the alternatives that the question names.
    Closed,
    /// Anything else.
    Open,
}

impl QuestionType {
    /// Both, by class: 0 is closed, 1 open.
    pub const ALL: [Self; 2] = [Self::Closed, Self::Open];
}

/// Images and the questions about them, pair by pair.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The images.
    pub images: Images,
    /// The questions.
    pub questions: Questions,
    /// Of which type each question is, where a model has a branch for each (QCR): annotated in training, as
    /// [`super::QuestionTypeClassifier`] says in evaluation.
    pub types: Option<Vec<QuestionType>>,
}

impl Batch {
    /// The same on a device. Gradients pass.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let there = |x: &Tensor| x.to_device(device);
        let maybe = |x: &Option<Tensor>| x.as_ref().map(there).transpose();
        let Images { meta, autoencoder, features } = &self.images;
        let autoencoder = match autoencoder {
            None => None,
            Some(AutoencoderInput::Pixels(pixels)) => Some(AutoencoderInput::Pixels(there(pixels)?)),
            Some(AutoencoderInput::Codes(codes)) => Some(AutoencoderInput::Codes(there(codes)?)),
        };
        let words = match &self.questions.words {
            None => None,
            Some(Words { tokens, embedded }) => {
                Some(Words { tokens: there(tokens)?, embedded: maybe(embedded)? })
            }
        };
        let states = match &self.questions.states {
            None => None,
            Some(TextStates { hidden, mask, pooled }) => {
                Some(TextStates { hidden: there(hidden)?, mask: there(mask)?, pooled: there(pooled)? })
            }
        };
        Ok(Self {
            images: Images { meta: maybe(meta)?, autoencoder, features: maybe(features)? },
            questions: Questions { words, states },
            types: self.types.clone(),
        })
    }
}

/// Images in the forms that the parts of an image branch look at; each part needs its own alone.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// Grey values in 0..1 for the meta-learned network, `[batch, 1, 84, 84]`.
    pub meta: Option<Tensor>,
    /// For the auto-encoder.
    pub autoencoder: Option<AutoencoderInput>,
    /// What an image encoder made of them, `[batch, tokens, width]`: one token of the pooled embedding, or a
    /// grid. Gradients flow through to whatever made it.
    pub features: Option<Tensor>,
}

/// What the auto-encoder is given.
#[derive(Clone, Debug)]
pub enum AutoencoderInput {
    /// Grey values in 0..1, `[batch, 1, 128, 128]`.
    Pixels(Tensor),
    /// The codes that [`super::Autoencoder::encode`] made earlier, `[batch, channels, 32, 32]`: an encoder
    /// that does not change need not run again. There is no reconstruction then.
    Codes(Tensor),
}

/// Questions in the forms that a model reads.
#[derive(Clone, Debug, Default)]
pub struct Questions {
    /// As words of a vocabulary.
    pub words: Option<Words>,
    /// As the hidden states of a text tower.
    pub states: Option<TextStates>,
}

/// Questions as words.
#[derive(Clone, Debug)]
pub struct Words {
    /// Word ids (u32), `[batch, length]`.
    pub tokens: Tensor,
    /// The vectors of the words where they are not those of the tables, as
    /// [`super::AnswerModel::embed_words`] gives them: an attribution method moves them.
    pub embedded: Option<Tensor>,
}

/// Questions as a text tower read them.
#[derive(Clone, Debug)]
pub struct TextStates {
    /// Hidden states after the final norm, `[batch, length, width]`.
    pub hidden: Tensor,
    /// Which positions are text and no padding, 1 or 0 (f32), `[batch, length]`.
    pub mask: Tensor,
    /// The position of each text that stands for it (`[CLS]`, end of text), `[batch]` (u32).
    pub pooled: Tensor,
}

impl Questions {
    /// Questions as word ids (u32), `[batch, length]`.
    pub fn tokens(tokens: Tensor) -> Self {
        Self { words: Some(Words { tokens, embedded: None }), states: None }
    }

    /// The same word ids, whose vectors are `embedded` `[batch, length, width]`.
    pub fn embedded(tokens: Tensor, embedded: Tensor) -> Self {
        Self { words: Some(Words { tokens, embedded: Some(embedded) }), states: None }
    }

    /// Questions of which nothing is told: padding alone. The control that sees images only.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn padding(batch: usize, length: usize, padding: u32) -> Result<Self> {
        let tokens = Tensor::full(padding, (batch, length), &Device::Cpu)?;
        Ok(Self::tokens(tokens))
    }

    pub(super) fn words(&self) -> Result<&Words> {
        match &self.words {
            Some(words) => Ok(words),
            None => bail!("the questions of the batch have no words"),
        }
    }

    pub(super) fn states(&self) -> Result<&TextStates> {
        match &self.states {
            Some(states) => Ok(states),
            None => bail!("the questions of the batch have no hidden states of a text tower"),
        }
    }

    /// How many there are.
    ///
    /// # Errors
    /// If they are told in no form.
    pub fn count(&self) -> Result<usize> {
        match (&self.words, &self.states) {
            (Some(words), _) => words.tokens.dim(0),
            (None, Some(states)) => states.hidden.dim(0),
            (None, None) => bail!("the batch has no questions"),
        }
    }
}

impl TextStates {
    /// The states that stand for the texts, `[batch, width]`.
    pub(super) fn pool(&self) -> Result<Tensor> {
        pick(&self.hidden, &self.pooled)
    }
}

/// Row `places[b]` of each sample of `x` `[batch, rows, width]`, `[batch, width]`.
pub(super) fn pick(x: &Tensor, places: &Tensor) -> Result<Tensor> {
    let (batch, rows, width) = x.dims3()?;
    let places = places.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    if places.len() != batch || places.iter().any(|place| *place as usize >= rows) {
        bail!("places {places:?} do not fit [{batch}, {rows}]");
    }
    let flat: Vec<u32> =
        places.into_iter().enumerate().map(|(sample, place)| (sample * rows) as u32 + place).collect();
    x.contiguous()?
        .reshape((batch * rows, width))?
        .index_select(&Tensor::from_vec(flat, batch, x.device())?, 0)
}
