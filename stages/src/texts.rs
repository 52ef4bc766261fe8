//! Texts of images as token ids: encoded here from captions, or taken from a table of tokens.

use pipe_engine::cache::Digest;
use pipe_engine::{Artifact, StageError};

use crate::artifact;
use crate::model::{Model, checkpoint_error};
use crate::table::{Table, read, read_columns};

/// Texts of some splits, each with its image.
pub(crate) struct TextSet {
    pub(crate) image_ids: Vec<String>,
    pub(crate) splits: Vec<String>,
    /// Ids of each text, as many as the model has positions.
    pub(crate) ids: Vec<Vec<u32>>,
}

impl TextSet {
    /// Reads captions or tokens whose split is one of `splits` (all if empty).
    pub(crate) fn read(artifact: &Artifact, splits: &[&str], model: &Model) -> Result<Self, StageError> {
        let tokens = artifact.artifact_type == artifact::TOKENS.0;
        let table =
            if tokens { read(artifact)? } else { read_columns(artifact, &["image_id", "split", "caption"])? };
        let rows = table.select(&table.rows_of_splits(splits));
        let ids = if tokens { ids_of(&rows, model)? } else { encode(&rows, model)? };
        let owned = |column: &str| -> Result<Vec<String>, StageError> {
            Ok(rows.strings(column)?.into_iter().map(str::to_owned).collect())
        };
        Ok(Self { image_ids: owned("image_id")?, splits: owned("split")?, ids })
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}

fn encode(rows: &Table, model: &Model) -> Result<Vec<Vec<u32>>, StageError> {
    let tokenizer = model.tokenizer()?;
    let text = &model.clip.config().text;
    rows.strings("caption")?
        .into_iter()
        .map(|caption| Ok(tokenizer.encode(caption, text.positions, text.pad).map_err(checkpoint_error)?.ids))
        .collect()
}

/// The name of a tokeniser: the digest of its `tokenizer.json`.
pub(crate) fn tokenizer_name(json: &str) -> String {
    Digest::of(json.as_bytes()).to_hex()
}

/// Ids as they stand in a table of tokens, which has to be made by the model's own tokeniser.
fn ids_of(rows: &Table, model: &Model) -> Result<Vec<Vec<u32>>, StageError> {
    let wrong = |reason: String| StageError::input("tokens", reason);
    let text = &model.clip.config().text;
    if let (Some(json), Some(name)) = (&model.tokenizer_json, rows.metadata.get("tokenizer"))
        && tokenizer_name(json) != *name
    {
        return Err(wrong("they were made by another tokeniser than the checkpoint's".to_owned()));
    }
    let mut all = Vec::with_capacity(rows.rows());
    for (row, ids) in rows.list_int32("ids")?.iter().enumerate() {
        let ids = ids.as_deref().unwrap_or_default();
        if ids.len() != text.positions {
            let reason = format!(
                "row {row} has {} ids, the model has {} positions; `tokenize` takes them from the checkpoint",
                ids.len(),
                text.positions
            );
            return Err(wrong(reason));
        }
        let known = |id: &i32| u32::try_from(*id).ok().filter(|id| (*id as usize) < text.vocabulary);
        let ids: Option<Vec<u32>> = ids.iter().map(known).collect();
        all.push(ids.ok_or_else(|| {
            wrong(format!("row {row} has an id outside of the model's {} ids", text.vocabulary))
        })?);
    }
    Ok(all)
}
