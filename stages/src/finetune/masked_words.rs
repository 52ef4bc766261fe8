//! Captions with some words hidden, for the loss that predicts them.

#[cfg(test)]
mod tests;

use pipe_engine::{Artifact, StageError};
use pipe_models::Tokenizer;
use pipe_models::pmc_clip::{MaskedCaption, is_asked, mask_words};
use pipe_models::random::Key;

use crate::artifact;
use crate::model::{Model, checkpoint_error};
use crate::table::read_columns;

/// What hides a word, and what stands in a label where nothing is asked.
const MARKS: [&str; 2] = ["[MASK]", "[PAD]"];

/// The captions whose words are hidden, in the order of the pairs.
pub(super) struct MaskedWords<'a> {
    tokenizer: &'a Tokenizer,
    positions: usize,
    pad: u32,
    /// What replaced words are drawn from: whole words, one piece each.
    vocabulary: Vec<String>,
    /// Ids of the rows with their captions.
    rows: Vec<(String, String)>,
    seed: u64,
}

/// A caption with hidden words.
pub(super) struct Hidden {
    /// The ids that the model sees.
    pub(super) ids: Vec<u32>,
    /// The ids that it is asked for; 0 where nothing is.
    pub(super) labels: Vec<u32>,
}

impl Hidden {
    /// Number of labels that count.
    pub(super) fn asked(&self) -> usize {
        self.labels.iter().filter(|label| is_asked(**label)).count()
    }
}

impl<'a> MaskedWords<'a> {
    /// The captions of `splits`.
    ///
    /// # Errors
    /// If the model predicts no words or cannot mask them, or `artifact` holds no words.
    pub(super) fn read(
        artifact: &Artifact,
        splits: &[&str],
        model: &'a Model,
        seed: i64,
    ) -> Result<Self, StageError> {
        if model.network.as_word_predictor().is_none() {
            let reason = format!(
                "`mlm` trains a fusion transformer that predicts words, which the checkpoint (`{}`) has not: PMC-CLIP's \
                 whole checkpoint has one, its split form and other models do not",
                model.network.model_config().name()
            );
            return Err(StageError::input("config.json", reason));
        }
        if artifact.artifact_type != artifact::CAPTIONS.0 {
            let reason = "`mlm` hides words of captions; tokens and questions have none: give `captions`";
            return Err(StageError::input("captions", reason));
        }
        let (tokenizer, tower) = (model.tokenizer()?, model.text_tower()?);
        let (positions, pad) = (tower.context_length(), tower.pad_id());
        for mark in MARKS {
            // Begin mark, the mark, end mark.
            let encoded = tokenizer.encode(mark, 3, pad).map_err(checkpoint_error)?;
            if encoded.truncated || tokenizer.token(encoded.ids[1]) != mark {
                let reason = format!("it has no mark `{mark}`, by which `mlm` hides words");
                return Err(StageError::input("tokenizer.json", reason));
            }
            if mark == "[PAD]" && is_asked(encoded.ids[1]) {
                let reason = format!("`[PAD]` is {}; `mlm` takes 0 for what is not asked", encoded.ids[1]);
                return Err(StageError::input("tokenizer.json", reason));
            }
        }
        let vocabulary = tokenizer.words().into_iter().map(|id| tokenizer.token(id)).collect();
        let table = read_columns(artifact, &["caption_id", "split", "caption"])?;
        let table = table.select(&table.rows_of_splits(splits));
        let ids = table.int64("caption_id")?.iter().map(|id| id.map(|id| id.to_string()).unwrap_or_default());
        let rows = ids.zip(table.strings("caption")?.into_iter().map(str::to_owned)).collect();
        Ok(Self { tokenizer, positions, pad, vocabulary, rows, seed: seed as u64 })
    }

    /// A caption as an epoch sees it: a function of the seed, the caption's id and the epoch.
    ///
    /// # Errors
    /// If the tokeniser refuses the text.
    pub(super) fn of(&self, row: usize, epoch: i64) -> Result<Hidden, StageError> {
        let (id, caption) = &self.rows[row];
        let key = Key::derive("pipe masked words/1", self.seed, &[id.as_str().into()]).sub(epoch as u64);
        let vocabulary: Vec<&str> = self.vocabulary.iter().map(String::as_str).collect();
        let encode =
            |text: &str, pad: u32| self.tokenizer.encode(text, self.positions, pad).map_err(checkpoint_error);
        // Begin and end mark are no pieces of a word.
        let pieces = |word: &str| {
            self.tokenizer.encode(word, self.positions, self.pad).map_or(1, |encoded| encoded.length - 2)
        };
        let MaskedCaption { text, labels } = mask_words(caption, &vocabulary, pieces, key);
        Ok(Hidden { ids: encode(&text, self.pad)?.ids, labels: encode(&labels, 0)?.ids })
    }
}
