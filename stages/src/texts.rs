//! Texts of images as token ids: encoded here from captions, or taken from a table of tokens.

use pipe_engine::cache::Digest;
use pipe_engine::{Artifact, StageError};

use crate::artifact;
use crate::model::{Model, checkpoint_error};
use crate::table::{Column, Table, read, read_columns};
use pipe_models::Tokenizer;

/// Texts of some splits, each with its image.
pub(crate) struct TextSet {
    pub(crate) image_ids: Vec<String>,
    pub(crate) splits: Vec<String>,
    /// Ids of each text, as many as the model has positions.
    pub(crate) ids: Vec<Vec<u32>>,
}

/// What of a table of captions is taken for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wording<'a> {
    /// Another column than `caption`: of texts, or of lists of them.
    pub(crate) column: Option<&'a str>,
    /// So many words from the beginning.
    pub(crate) words: Option<usize>,
}

impl TextSet {
    /// Reads captions, tokens, or questions with their answers, whose split is one of `splits` (all if empty).
    pub(crate) fn read(artifact: &Artifact, splits: &[&str], model: &Model) -> Result<Self, StageError> {
        Self::worded(artifact, splits, model, Wording::default())
    }

    /// As [`Self::read`], of captions that are worded otherwise. Rows without a text in the wanted column are left out.
    pub(crate) fn worded(
        artifact: &Artifact,
        splits: &[&str],
        model: &Model,
        wording: Wording<'_>,
    ) -> Result<Self, StageError> {
        let is = |other: pipe_engine::ArtifactType| artifact.artifact_type == other.0;
        let column = wording.column.unwrap_or("caption");
        let columns: &[&str] = match is(artifact::QUESTIONS) {
            true => &["image_id", "split", "question", "answer"],
            false => &["image_id", "split", column],
        };
        if wording != Wording::default() && !is(artifact::CAPTIONS) {
            let reason = "`words` and `column` are for a table of captions; tokens are taken as they are";
            return Err(StageError::failed(reason));
        }
        let table = if is(artifact::TOKENS) { read(artifact)? } else { read_columns(artifact, columns)? };
        let mut rows = table.select(&table.rows_of_splits(splits));
        if wording != Wording::default() {
            rows = reworded(&rows, column, wording.words)?;
        }
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

/// The table with other texts as its captions.
fn reworded(rows: &Table, column: &str, words: Option<usize>) -> Result<Table, StageError> {
    let texts: Vec<Option<String>> = match rows.column(column) {
        Some(Column::ListUtf8(lists)) => lists.iter().map(|list| Some(list.as_ref()?.join(", "))).collect(),
        _ => rows.utf8(column)?.to_vec(),
    };
    let first = |text: &String| match words {
        Some(words) => text.split_whitespace().take(words).collect::<Vec<_>>().join(" "),
        None => text.clone(),
    };
    let texts: Vec<Option<String>> = texts.iter().map(|text| text.as_ref().map(first)).collect();
    let told: Vec<usize> =
        (0..texts.len()).filter(|row| texts[*row].as_ref().is_some_and(|text| !text.is_empty())).collect();
    let others = Table::new()
        .with("image_id", Column::Utf8(rows.utf8("image_id")?.to_vec()))
        .with("split", Column::Utf8(rows.utf8("split")?.to_vec()))
        .with("caption", Column::Utf8(texts));
    Ok(others.select(&told))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_cut_and_taken_from_other_columns() {
        let texts = |values: &[&str]| Column::texts(values.iter().copied());
        let keywords = [Some(vec!["chest", "effusion"]), None, Some(Vec::new())];
        let keywords = keywords.map(|list| list.map(|words| words.into_iter().map(str::to_owned).collect()));
        let table = Table::new()
            .with("image_id", texts(&["a", "b", "c"]))
            .with("split", texts(&["test", "test", "test"]))
            .with("caption", texts(&["a large  effusion on the left", "normal", "two nodules"]))
            .with("keywords", Column::ListUtf8(keywords.to_vec()));
        let read = |column: &str, words: Option<usize>| -> Vec<(String, String)> {
            let rows = reworded(&table, column, words).unwrap();
            let (ids, captions) = (rows.strings("image_id").unwrap(), rows.strings("caption").unwrap());
            ids.into_iter().map(str::to_owned).zip(captions.into_iter().map(str::to_owned)).collect()
        };
        let pair = |id: &str, text: &str| (id.to_owned(), text.to_owned());
        let cut = [pair("a", "a large effusion"), pair("b", "normal"), pair("c", "two nodules")];
        assert_eq!(read("caption", Some(3)), cut);
        assert_eq!(read("keywords", None), [pair("a", "chest, effusion")]);
        let error = reworded(&table, "report", None).unwrap_err().to_string();
        assert!(error.contains("no column `report`"), "{error}");
    }
}
