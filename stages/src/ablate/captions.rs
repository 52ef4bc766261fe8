//! The texts of retrieval, and their way through the text tower.

use pipe_engine::{StageContext, StageError};

use super::{Params, TRAIN};
use crate::images::ImageSet;
use crate::model::Model;
use crate::retrieval::Vectors;
use crate::table::{Column, read_columns};

/// The texts of both splits, in the order of their embeddings.
pub(super) struct Captions {
    /// Image id and text.
    pub(super) train: Vec<(String, String)>,
    /// Image id, text and keywords.
    pub(super) test: Vec<(String, String, Vec<String>)>,
}

/// Rows of values as unit vectors.
///
/// # Errors
/// If a value is not finite.
pub(super) fn vectors(ids: &[String], values: &[f32]) -> Result<Vectors, StageError> {
    let width = values.len() / ids.len().max(1);
    let mut vectors = Vectors::empty(width);
    for (id, vector) in ids.iter().zip(values.chunks_exact(width.max(1))) {
        vectors.push(id.clone(), vector)?;
    }
    Ok(vectors)
}

impl Captions {
    /// The captions table; `None` if it was left out.
    pub(super) fn read(params: &Params, context: &StageContext<'_>) -> Result<Option<Self>, StageError> {
        let Some(captions) = context.optional_input("captions") else { return Ok(None) };
        let table = read_columns(captions, &["image_id", "split", "caption", "keywords"])?;
        let (ids, splits, texts) =
            (table.strings("image_id")?, table.strings("split")?, table.strings("caption")?);
        let keywords = match table.column("keywords") {
            Some(Column::ListUtf8(lists)) => lists.clone(),
            _ => vec![None; ids.len()],
        };
        let (mut train, mut test) = (Vec::new(), Vec::new());
        for (row, keywords) in keywords.into_iter().enumerate() {
            let (id, text) = (ids[row].to_owned(), texts[row].to_owned());
            if splits[row] == params.split {
                test.push((id, text, keywords.unwrap_or_default()));
            } else if splits[row] == TRAIN {
                train.push((id, text));
            }
        }
        Ok(Some(Self { train, test }))
    }

    /// The ids and texts of a split.
    fn of(&self, split: &str, params: &Params) -> Vec<(&String, &str)> {
        if split == params.split {
            self.test.iter().map(|(id, text, _)| (id, text.as_str())).collect()
        } else {
            self.train.iter().map(|(id, text)| (id, text.as_str())).collect()
        }
    }

    /// Both sides of a split through the model.
    pub(super) fn embed(
        &self,
        model: &Model,
        split: &str,
        params: &Params,
        context: &StageContext<'_>,
    ) -> Result<(Vectors, Vectors), StageError> {
        let images = ImageSet::read(context.input("images")?, &[split], model.preprocessor()?, context)?;
        let rows: Vec<usize> = (0..images.len()).collect();
        let values = images.embed(model, &rows, params.batch, context)?;
        let (ids, texts): (Vec<&String>, Vec<&str>) = self.of(split, params).into_iter().unzip();
        let ids: Vec<String> = ids.into_iter().cloned().collect();
        let text_values = model.embed_texts(&texts, params.batch, context)?;
        Ok((vectors(&images.ids, &values)?, vectors(&ids, &text_values)?))
    }

    /// Embeddings of captions stand in the order of the captions table, or they are those of others.
    pub(super) fn check(&self, split: &str, params: &Params, texts: &Vectors) -> Result<(), StageError> {
        let same = self.of(split, params).iter().map(|(id, _)| *id).eq(&texts.ids);
        // A split that was not embedded at all is not used.
        if same || (texts.ids.is_empty() && split != params.split) {
            return Ok(());
        }
        let reason = format!("they are not those of the captions of split `{split}`, in their order");
        Err(StageError::input("text_embeddings", reason))
    }
}
