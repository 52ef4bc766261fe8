//! Which images are explained, and which class of each.

use std::collections::BTreeSet;

use pipe_engine::{StageContext, StageError};

use super::Params;
use crate::images::{Pixels, batches};
use crate::labels::Labels;
use crate::model::{HeadDescription, Model, tensor_error};
use crate::statistics::argmax;
use crate::target::{ClassTarget, class_index};

/// A row of the result: an image, and the class of it that is explained, or the text.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Explained {
    /// Its place in the image set.
    pub(super) image: usize,
    /// The id of the caption, if it is one that is explained.
    pub(super) caption: Option<String>,
    /// The class, if there is one.
    pub(super) class: Option<usize>,
    /// What is explained of it, or why nothing can be.
    pub(super) target: Result<ClassTarget, String>,
    /// Whether the model classifies the image right, where the labels tell: of independent labels, whether it
    /// is right about the one that is explained.
    pub(super) correct: Option<bool>,
}

/// The chosen rows.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Selection {
    pub(super) rows: Vec<Explained>,
    /// Number of images among them.
    pub(super) images: usize,
    /// Forward passes that choosing took.
    pub(super) passes: usize,
}

/// Which class of an image is explained.
enum Choice {
    Predicted,
    True,
    Class(usize),
}

/// Chooses images in the order of the table.
///
/// # Errors
/// If a class is unknown, or labels are needed and missing.
pub(super) fn select(
    params: &Params,
    model: &Model,
    images: &dyn Pixels,
    labels: Option<&Labels>,
    context: &StageContext<'_>,
) -> Result<Selection, StageError> {
    let description = &model.head()?.description;
    let choice = match params.target.as_str() {
        "predicted" => Choice::Predicted,
        "true" => Choice::True,
        name => Choice::Class(class_index(description, name)?),
    };
    let against = params.against.as_deref().map(|name| class_index(description, name)).transpose()?;
    let truths = truths(params, &choice, description, images, labels)?;
    let classes = params
        .classes
        .iter()
        .map(|name| class_index(description, name))
        .collect::<Result<BTreeSet<_>, _>>()?;
    let truth = |image: usize| truths.as_ref().map_or(&[][..], |truths| truths[image].as_slice());
    let candidates: Vec<usize> = (0..images.ids().len())
        .filter(|image| classes.is_empty() || truth(*image).iter().any(|class| classes.contains(class)))
        .collect();
    // Where labels are known, every row says whether the model is right.
    let needs_prediction = truths.is_some() || matches!(choice, Choice::Predicted);
    let limit = params.limit.map_or(usize::MAX, |limit| limit.max(1) as usize);
    let mut selection = Selection::default();
    for chunk in batches(&candidates, images.at_a_time(params.batch)) {
        context.check_cancelled()?;
        let predictions = match needs_prediction {
            true => predictions(model, images, chunk, description)?.into_iter().map(Some).collect(),
            false => vec![None; chunk.len()],
        };
        selection.passes += if needs_prediction { chunk.len() } else { 0 };
        for (image, prediction) in chunk.iter().zip(predictions) {
            if selection.images == limit {
                return Ok(selection);
            }
            let is_correct =
                prediction.as_ref().is_some_and(|prediction| prediction.classes == truth(*image));
            if params.only_correct && !is_correct {
                continue;
            }
            selection.images += 1;
            let explained = match (&choice, &prediction) {
                (Choice::Class(class), _) => vec![*class],
                (Choice::Predicted, Some(prediction)) => prediction.clone().explained(),
                (Choice::True | Choice::Predicted, _) => truth(*image).to_vec(),
            };
            let correct = |class: Option<usize>| {
                let predicted = &prediction.as_ref().filter(|_| truths.is_some())?.classes;
                Some(match class.filter(|_| description.is_multi_label()) {
                    Some(class) => predicted.contains(&class) == truth(*image).contains(&class),
                    None => predicted == truth(*image),
                })
            };
            let own = rows(*image, &explained, against, description).into_iter();
            selection.rows.extend(own.map(|row| Explained { correct: correct(row.class), ..row }));
        }
    }
    Ok(selection)
}

/// The rows of one image; whether the model is right about them is said elsewhere.
fn rows(
    image: usize,
    classes: &[usize],
    against: Option<usize>,
    description: &HeadDescription,
) -> Vec<Explained> {
    if classes.is_empty() {
        let reason = "no label of this image is set, so there is no true class".to_owned();
        return vec![Explained { image, caption: None, class: None, target: Err(reason), correct: None }];
    }
    let row = |class: &usize| {
        let target = match against {
            Some(against) if against == *class => Err(format!(
                "the class is `{}`, which it would be measured against",
                description.classes[against]
            )),
            _ => Ok(ClassTarget { class: *class, against }),
        };
        Explained { image, caption: None, class: Some(*class), target, correct: None }
    };
    classes.iter().map(row).collect()
}

/// The true classes of each image, where they are needed or known anyhow.
fn truths(
    params: &Params,
    choice: &Choice,
    description: &HeadDescription,
    images: &dyn Pixels,
    labels: Option<&Labels>,
) -> Result<Option<Vec<Vec<usize>>>, StageError> {
    let needed = [
        (matches!(choice, Choice::True), "target = \"true\""),
        (!params.classes.is_empty(), "classes"),
        (params.only_correct, "only_correct"),
    ];
    let classes = |label: Vec<i64>| -> Vec<usize> {
        if description.is_multi_label() {
            (0..label.len()).filter(|class| label[*class] == 1).collect()
        } else {
            label.into_iter().map(|class| class as usize).collect()
        }
    };
    let Some((_, why)) = needed.iter().find(|(needed, _)| *needed) else {
        // Labels of other classes, or of other images, are no reason to stop where nothing asks for them.
        let fits = |labels: &&Labels| labels.description.classes == description.classes;
        let known = labels.filter(fits).and_then(|labels| labels.of(images.ids()).ok());
        return Ok(known.map(|labels| labels.into_iter().map(classes).collect()));
    };
    let labels = labels.ok_or_else(|| StageError::failed(format!("`{why}` needs the input `labels`")))?;
    if labels.description.classes != description.classes {
        let reason = format!(
            "its classes are {:?}, those of the labels {:?}",
            description.classes, labels.description.classes
        );
        return Err(StageError::input("head.json", reason));
    }
    Ok(Some(labels.of(images.ids())?.into_iter().map(classes).collect()))
}

/// What the model says of an image.
#[derive(Clone)]
struct Prediction {
    /// The classes it predicts; for independent labels perhaps none.
    classes: Vec<usize>,
    /// The class of the greatest logit.
    likeliest: usize,
}

impl Prediction {
    /// The classes to explain: there is always one.
    fn explained(self) -> Vec<usize> {
        if self.classes.is_empty() { vec![self.likeliest] } else { self.classes }
    }
}

fn predictions(
    model: &Model,
    images: &dyn Pixels,
    rows: &[usize],
    description: &HeadDescription,
) -> Result<Vec<Prediction>, StageError> {
    let logits = model.logits(&images.batch(rows)?, None)?.detach().to_vec2::<f32>().map_err(tensor_error)?;
    Ok(logits
        .into_iter()
        .map(|logits| {
            let values: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
            let likeliest = argmax(&values);
            let classes = match description.is_multi_label() {
                // A probability above one half.
                true => (0..logits.len()).filter(|class| logits[*class] > 0.0).collect(),
                false => vec![likeliest],
            };
            Prediction { classes, likeliest }
        })
        .collect())
}
