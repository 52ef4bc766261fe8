//! Maps of images with texts: the texts as classes of a head, so that all that follows classes follows similarities.

use std::collections::BTreeSet;

use pipe_engine::{StageContext, StageError};

use super::maps::Subject;
use crate::attribute::similarity_head;
use crate::model::Model;

/// What stands for the mean over the captions of other images, which are no texts of the maps.
pub(super) const OTHERS: &str = "others";

/// Gives `model` a class for each text that is explained or measured against. What one text has does not depend on the
/// others.
///
/// # Errors
/// If the model reads no text, or none like these.
pub(super) fn with_texts(
    model: &mut Model,
    subjects: &[Subject],
    against: &[Option<String>],
    batch: i64,
    context: &StageContext<'_>,
) -> Result<(), StageError> {
    let explained = subjects.iter().filter_map(|subject| subject.target.as_deref());
    let measured = against.iter().flatten().map(String::as_str).filter(|text| *text != OTHERS);
    let texts: BTreeSet<&str> = explained.chain(measured).collect();
    let texts: Vec<&str> = texts.into_iter().collect();
    model.head = Some(similarity_head(model, &texts, batch, context)?);
    Ok(())
}

/// The class of a text.
pub(super) fn class_of(model: &Model, text: &str) -> Option<usize> {
    model.head.as_ref()?.description.classes.iter().position(|class| class == text)
}
