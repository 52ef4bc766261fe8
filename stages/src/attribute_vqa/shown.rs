//! What a model is shown of questions and their images: tensors that an explanation may change.

use std::ops::Range;

use candle_core::{Result as TensorResult, Tensor};
use pipe_attribution::{Baseline, Inputs, Word, words};
use pipe_engine::StageError;
use pipe_models::Preprocessor;

use super::{Blank, Params};
use crate::attribute::attribution_error;
use crate::attribute_text::{Absent, absent_id};
use crate::model::{DEVICE, checkpoint_error, tensor_error};
use crate::vqa::{Answerer, Examples, Modality, QUESTION_LENGTH, Readings, placed_words, preprocessing};

/// Which part of a model looks at a form of the image.
pub(super) enum Sense {
    /// The image encoder, at colours of its own normalised space.
    Encoder(Preprocessor),
    /// The meta-learned network, at grey values in 0..1.
    Meta,
    /// The auto-encoder, at grey values in 0..1.
    Autoencoder,
}

/// The images that are asked about, in one of the forms that a model looks at.
struct Form {
    sense: Sense,
    side: usize,
    /// Eight-bit squares: three channels, last, for an encoder; else one.
    squares: Vec<u8>,
}

/// All images that are asked about, in all forms that a model looks at: none, if it looks at none.
pub(super) struct Pictures {
    forms: Vec<Form>,
    /// The side of maps, and of a patch that no window should cut.
    pub(super) side: usize,
    pub(super) patch: usize,
}

/// The side of maps of a model that has nothing to look at images with.
const BLIND_SIDE: usize = 224;

impl Pictures {
    /// Decodes all images.
    ///
    /// # Errors
    /// If one cannot be decoded.
    pub(super) fn read(answerer: &Answerer, examples: &Examples) -> Result<Self, StageError> {
        if answerer.description.scrambled_pixels {
            let reason = "the model was trained with `scrambled_pixels`: what it sees has no places to be shown on a map";
            return Err(StageError::failed(reason));
        }
        let image = answerer.description.architecture.image();
        let mut forms = Vec::new();
        let mut patch = 1;
        if let (Some(encoder), Some(_)) = (&answerer.encoder, image.features) {
            let preprocessor = preprocessing(encoder)?;
            patch = encoder.image_tower()?.geometry().patch[0];
            let squares = examples.squares(&preprocessor)?;
            forms.push(Form { side: preprocessor.side, sense: Sense::Encoder(preprocessor), squares });
        }
        let grey = [
            (Sense::Meta, image.meta.as_ref().map(|meta| meta.image)),
            (Sense::Autoencoder, image.autoencoder.as_ref().map(|autoencoder| autoencoder.image)),
        ];
        for (sense, side) in grey {
            if let Some(side) = side {
                forms.push(Form { sense, side, squares: examples.grey(side)? });
            }
        }
        // The encoder's maps if there is one; else what sees most.
        let encoder = forms.iter().find(|form| matches!(form.sense, Sense::Encoder(_)));
        let side = encoder.map(|form| form.side).or_else(|| forms.iter().map(|form| form.side).max());
        let blind = || match &answerer.encoder {
            Some(encoder) => encoder.preprocessor().map_or(BLIND_SIDE, |preprocessor| preprocessor.side),
            None => BLIND_SIDE,
        };
        let side = side.unwrap_or_else(blind);
        Ok(Self { forms, side, patch })
    }

    /// What each form is looked at by.
    pub(super) fn senses(&self) -> impl Iterator<Item = &Sense> {
        self.forms.iter().map(|form| &form.sense)
    }

    /// Whether the model looks at images.
    pub(super) fn are_seen(&self) -> bool {
        !self.forms.is_empty()
    }

    /// Some images in each form, `[images, channels, side, side]`.
    pub(super) fn batch(&self, images: &[usize]) -> TensorResult<Vec<Tensor>> {
        let form = |form: &Form| {
            let plane = form.side * form.side;
            let squares = |length: usize| -> Vec<u8> {
                let square = |image: &usize| &form.squares[image * length..(image + 1) * length];
                images.iter().flat_map(square).copied().collect()
            };
            match &form.sense {
                Sense::Encoder(preprocessor) => preprocessor.tensor(&squares(3 * plane), &DEVICE),
                Sense::Meta | Sense::Autoencoder => {
                    let values: Vec<f32> =
                        squares(plane).into_iter().map(|value| f32::from(value) / 255.0).collect();
                    Tensor::from_vec(values, (images.len(), 1, form.side, form.side), &DEVICE)
                }
            }
        };
        self.forms.iter().map(form).collect()
    }

    /// What stands for the absence of each of these images.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn absent(&self, params: &Params, shown: &[Tensor]) -> Result<Vec<Tensor>, StageError> {
        let form = |(form, shown): (&Form, &Tensor)| {
            let baseline = match (params.baseline, &form.sense) {
                (Blank::Black, Sense::Encoder(preprocessor)) => {
                    Baseline::PerChannel(preprocessor.black().to_vec())
                }
                // Zero is black where values are grey.
                (Blank::Zero, _) | (Blank::Black, _) => Baseline::Zero,
                (Blank::Blur, _) => Baseline::Blur(params.blur_sigma * form.side as f64 / 224.0),
            };
            let inputs = Inputs::new(shown)?;
            Ok(baseline.of(&inputs)?.inputs(&inputs)?.values().clone())
        };
        self.forms.iter().zip(shown).map(form).collect::<Result<_, _>>().map_err(attribution_error)
    }
}

/// In which form questions are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// As words of the vocabulary.
    Words,
    /// As tokens of the encoder's text tower.
    Tokens,
}

/// A stretch of a question with its tokens in each form that the question is read in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Where it stands in the question, in bytes.
    pub(super) place: Range<usize>,
    pub(super) tokens: Vec<Vec<usize>>,
}

/// How a question falls apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pieces {
    /// At white space.
    pub(super) words: Vec<Piece>,
    /// Into its tokens. Tokens of two forms that overlap are one.
    pub(super) tokens: Vec<Piece>,
}

/// Questions in all forms that a model reads.
pub(super) struct Texts<'a> {
    answerer: &'a Answerer,
    readings: &'a Readings,
    forms: Vec<Reading>,
}

impl<'a> Texts<'a> {
    /// The forms that the model reads; none, if it is told nothing of the question.
    pub(super) fn new(answerer: &'a Answerer, readings: &'a Readings) -> Self {
        let description = &answerer.description;
        let mut forms = Vec::new();
        if description.modality != Modality::Image {
            forms.extend(description.architecture.reads_words().then_some(Reading::Words));
            forms.extend(answerer.tower().map(|_| Reading::Tokens));
        }
        Self { answerer, readings, forms }
    }

    /// The forms.
    pub(super) fn forms(&self) -> &[Reading] {
        &self.forms
    }

    /// The pieces of a question.
    ///
    /// # Errors
    /// If the encoder has no tokeniser.
    pub(super) fn pieces(&self, question: &str) -> Result<Pieces, StageError> {
        let (mut of_words, mut of_tokens) = (Vec::new(), Vec::new());
        for form in &self.forms {
            let offsets = match form {
                Reading::Words => placed_words(question)
                    .into_iter()
                    .take(QUESTION_LENGTH)
                    .map(|(_, place)| [place.start, place.end])
                    .collect(),
                Reading::Tokens => {
                    let encoder = self.encoder()?;
                    let (tower, tokenizer) = (encoder.text_tower()?, encoder.tokenizer()?);
                    let encoded = tokenizer.encode(question, tower.context_length(), tower.pad_id());
                    encoded.map_err(checkpoint_error)?.offsets
                }
            };
            of_words.push(words(question, &offsets));
            // Each token as if it stood alone.
            let alone = |token: usize| {
                let own: Vec<[usize; 2]> =
                    (0..=token).map(|place| if place == token { offsets[place] } else { [0, 0] }).collect();
                words(question, &own)
            };
            of_tokens.push((0..offsets.len()).flat_map(alone).collect());
        }
        Ok(Pieces { words: merged(&of_words), tokens: merged(&of_tokens) })
    }

    /// The vectors of some questions in each form, `[questions, tokens, width]`.
    ///
    /// # Errors
    /// If the encoder reads no text.
    pub(super) fn batch(&self, questions: &[usize]) -> Result<Vec<Tensor>, StageError> {
        self.forms.iter().map(|form| self.embed(*form, &self.ids(*form, questions)?)).collect()
    }

    /// The same vectors without the words of the questions; marks and padding stay.
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub(super) fn absent(
        &self,
        absent: Absent,
        questions: &[usize],
        pieces: &[Pieces],
    ) -> Result<Vec<Tensor>, StageError> {
        let form = |(place, form): (usize, &Reading)| {
            let own = self.ids(*form, questions)?;
            let rows = own.to_vec2::<u32>().map_err(tensor_error)?;
            let without = match form {
                Reading::Words => self.answerer.description.vocabulary().padding(),
                Reading::Tokens => absent_id(self.encoder()?, absent)?,
            };
            let length = rows.first().map_or(0, Vec::len);
            let (mut ids, mut kept) = (rows.concat(), vec![1f32; rows.len() * length]);
            for (row, pieces) in pieces.iter().enumerate() {
                for token in pieces.tokens.iter().flat_map(|piece| &piece.tokens[place]) {
                    ids[row * length + token] = without;
                    kept[row * length + token] = 0.0;
                }
            }
            let ids = Tensor::from_vec(ids, (rows.len(), length), &DEVICE).map_err(tensor_error)?;
            let embedded = self.embed(*form, &ids)?;
            if absent != Absent::Zero {
                return Ok(embedded);
            }
            let kept = Tensor::from_vec(kept, (rows.len(), length, 1), &DEVICE).map_err(tensor_error)?;
            embedded.broadcast_mul(&kept).map_err(tensor_error)
        };
        self.forms.iter().enumerate().map(form).collect()
    }

    fn encoder(&self) -> Result<&crate::model::Model, StageError> {
        self.answerer.tower().ok_or_else(|| StageError::failed("the questions need their text tower"))
    }

    fn ids(&self, form: Reading, questions: &[usize]) -> Result<Tensor, StageError> {
        match form {
            Reading::Words => self.readings.tokens(questions),
            Reading::Tokens => {
                let ids = self.readings.ids(questions).map_err(tensor_error)?;
                ids.ok_or_else(|| StageError::failed("the questions have no ids for the text tower"))
            }
        }
    }

    fn embed(&self, form: Reading, ids: &Tensor) -> Result<Tensor, StageError> {
        let embedded = match form {
            Reading::Words => self.answerer.model.embed_words(ids),
            Reading::Tokens => self.encoder()?.text_tower()?.token_embeddings(ids),
        };
        Ok(embedded.map_err(tensor_error)?.detach())
    }
}

/// The words of all forms as pieces, in the order of the text: those that overlap are one.
fn merged(forms: &[Vec<Word>]) -> Vec<Piece> {
    let mut all: Vec<(usize, &Word)> = forms
        .iter()
        .enumerate()
        .flat_map(|(form, words)| words.iter().map(move |word| (form, word)))
        .collect();
    all.sort_by_key(|(_, word)| (word.place.start, word.place.end));
    let mut pieces: Vec<Piece> = Vec::new();
    for (form, word) in all {
        match pieces.last_mut().filter(|piece| word.place.start < piece.place.end) {
            Some(piece) => {
                piece.place.end = piece.place.end.max(word.place.end);
                piece.tokens[form].extend_from_slice(&word.tokens);
            }
            None => {
                let mut tokens = vec![Vec::new(); forms.len()];
                tokens[form].extend_from_slice(&word.tokens);
                pieces.push(Piece { place: word.place.clone(), tokens });
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_two_forms_that_overlap_are_one_piece() {
        let word = |place: Range<usize>, token: usize| Word { place, tokens: vec![token] };
        let first = vec![word(0..3, 0), word(4..10, 1)];
        let second = vec![word(0..3, 1), word(4..7, 2), word(7..10, 3), word(11..12, 4)];
        let piece =
            |place, tokens: [&[usize]; 2]| Piece { place, tokens: tokens.map(<[_]>::to_vec).to_vec() };
        let expected = [piece(0..3, [&[0], &[1]]), piece(4..10, [&[1], &[2, 3]]), piece(11..12, [&[], &[4]])];
        assert_eq!(merged(&[first.clone(), second]), expected);
        let alone = merged(&[first]);
        assert_eq!(alone.len(), 2);
        assert!(merged(&[]).is_empty() && merged(&[Vec::new()]).is_empty());
    }
}
