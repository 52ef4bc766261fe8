//! Texts of images as token ids: encoded here from captions, or taken from a table of tokens.

use pipe_engine::cache::Digest;
use pipe_engine::{Artifact, StageError};

use crate::artifact;
use crate::model::{Model, checkpoint_error};
use crate::table::{Table, read, read_columns};
use pipe_models::Tokenizer;

/// Texts of some splits, each with its image.
pub(crate) struct TextSet {
    pub(crate) image_ids: Vec<String>,
    pub(crate) splits: Vec<String>,
    /// Ids of each text, as many as the model has positions.
    pub(crate) ids: Vec<Vec<u32>>,
}

impl TextSet {
    /// Reads captions, tokens, or questions with their answers, whose split is one of `splits` (all if empty).
    pub(crate) fn read(artifact: &Artifact, splits: &[&str], model: &Model) -> Result<Self, StageError> {
        let is = |other: pipe_engine::ArtifactType| artifact.artifact_type == other.0;
        let columns: &[&str] = match is(artifact::QUESTIONS) {
            true => &["image_id", "split", "question", "answer"],
            false => &["image_id", "split", "caption"],
        };
        let table = if is(artifact::TOKENS) { read(artifact)? } else { read_columns(artifact, columns)? };
        let rows = table.select(&table.rows_of_splits(splits));
        let ids = match () {
            () if is(artifact::TOKENS) => ids_of(&rows, model)?,
            () if is(artifact::QUESTIONS) => encode_answered(&rows, model)?,
            () => encode(&rows, model)?,
        };
        let owned = |column: &str| -> Result<Vec<String>, StageError> {
            Ok(rows.strings(column)?.into_iter().map(str::to_owned).collect())
        };
        Ok(Self { image_ids: owned("image_id")?, splits: owned("split")?, ids })
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}

/// `question answer`: what an image-text model can learn of questions.
fn encode_answered(rows: &Table, model: &Model) -> Result<Vec<Vec<u32>>, StageError> {
    let pairs = rows.strings("question")?.into_iter().zip(rows.strings("answer")?);
    pairs.map(|(question, answer)| model.encode(&format!("{} {}", question.trim(), answer.trim()))).collect()
}

fn encode(rows: &Table, model: &Model) -> Result<Vec<Vec<u32>>, StageError> {
    rows.strings("caption")?.into_iter().map(|caption| model.encode(caption)).collect()
}

/// The name of a tokeniser: the digest of its files.
///
/// # Errors
/// If it cannot be written as JSON.
pub(crate) fn tokenizer_name(tokenizer: &Tokenizer) -> Result<String, StageError> {
    let json = tokenizer.to_json().map_err(checkpoint_error)?;
    Ok(Digest::of(format!("{json}\n{}", tokenizer.config_json()).as_bytes()).to_hex())
}

/// Ids as they stand in a table of tokens, which has to be made by the model's own tokeniser.
fn ids_of(rows: &Table, model: &Model) -> Result<Vec<Vec<u32>>, StageError> {
    let wrong = |reason: String| StageError::input("tokens", reason);
    let tower = model.text_tower()?;
    let (positions, vocabulary) = (tower.context_length(), tower.vocabulary());
    if let (Some(tokenizer), Some(name)) = (&model.tokenizer, rows.metadata.get("tokenizer"))
        && tokenizer_name(tokenizer)? != *name
    {
        return Err(wrong("they were made by another tokeniser than the checkpoint's".to_owned()));
    }
    let mut all = Vec::with_capacity(rows.rows());
    for (row, ids) in rows.list_int32("ids")?.iter().enumerate() {
        let ids = ids.as_deref().unwrap_or_default();
        if ids.len() != positions {
            let reason = format!(
                "row {row} has {} ids, the model has {} positions; `tokenize` takes them from the checkpoint",
                ids.len(),
                positions
            );
            return Err(wrong(reason));
        }
        let known = |id: &i32| u32::try_from(*id).ok().filter(|id| (*id as usize) < vocabulary);
        let ids: Option<Vec<u32>> = ids.iter().map(known).collect();
        all.push(ids.ok_or_else(|| {
            wrong(format!("row {row} has an id outside of the model's {} ids", vocabulary))
        })?);
    }
    Ok(all)
}
