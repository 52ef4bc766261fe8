//! Embeddings of images as they are, which classification without parts of them need not compute again.

use pipe_engine::{StageContext, StageError};

use super::Params;
use crate::features::{self, Embedded};
use crate::images::ImageSet;
use crate::model::Model;

/// Embeddings of the images as they are that were computed before, if they were.
pub(super) fn known(
    context: &StageContext<'_>,
    images: &ImageSet,
    splits: &[&str],
    model: &Model,
    params: &Params,
) -> Result<Option<Embedded>, StageError> {
    const PORT: &str = "image_embeddings";
    let Some(artifact) = context.optional_input(PORT) else { return Ok(None) };
    let of = features::model_of(artifact)?.unwrap_or_default();
    if of != features::name(model)? {
        let base =
            context.optional_input("base").map(|base| Model::load(base, params.compute())).transpose()?;
        if base.is_none_or(|base| features::name(&base).is_ok_and(|name| name != of)) {
            let reason =
                "they are neither of the input `checkpoint` nor of `base`, or of another `precision`";
            return Err(StageError::input(PORT, reason));
        }
    }
    let known = Embedded::read(artifact, context.input("images")?, splits, &of)?;
    if known.ids != images.ids {
        return Err(StageError::input(PORT, "they are not of the images that are tested, in their order"));
    }
    Ok(Some(known))
}

/// Embeddings of images as they are: those that were computed before, if they are of this model.
pub(super) fn embed(
    known: Option<&Embedded>,
    model: &Model,
    images: &ImageSet,
    rows: &[usize],
    params: &Params,
    context: &StageContext<'_>,
) -> Result<Vec<f32>, StageError> {
    if let Some(known) = known
        && known.model == features::name(model)?
    {
        features::log(rows.len(), 0, context);
        return Ok(known.of(rows));
    }
    features::log(rows.len(), rows.len(), context);
    images.embed(model, rows, params.batch, context)
}
