//! A linear probe as the head of a model.

use candle_core::Tensor;
use pipe_engine::{StageContext, StageError};

use super::TrainingLog;
use super::classify::{Data, EMBED_BATCH, Params};
use crate::linear_probe::{Labelled, LinearProbe};
use crate::model::{DEVICE, Head, HeadInput, Model, tensor_error};

/// Fits a linear classifier to the embeddings of the training rows.
pub(super) fn linear_probe(
    params: &Params,
    model: &Model,
    data: &Data,
    log: &mut TrainingLog,
    context: &StageContext<'_>,
) -> Result<Head, StageError> {
    let width = model.image_tower()?.embedding_width();
    let embed = |rows: &[usize]| data.images.embed(model, rows, EMBED_BATCH, context);
    let (train, val) = (embed(&data.train)?, embed(&data.val)?);
    data.images.log(data.train.len() + data.val.len(), context);
    let description = data.labels.description.clone();
    let (train_targets, val_targets) = (data.targets_of(&data.train), data.targets_of(&data.val));
    let train = Labelled { features: &train, width, targets: &train_targets };
    let val = Labelled { features: &val, width, targets: &val_targets };
    let probe = LinearProbe::train(train, val, &description, params.c)?;
    for fit in &probe.fits {
        log.add(1, 1, "train", "accuracy", fit.train_accuracy);
        log.add(1, 1, "train", "c", fit.c);
        if let Some(accuracy) = fit.val_accuracy {
            log.add(1, 1, "val", "accuracy", accuracy);
        }
    }
    let classes = description.classes.len();
    Ok(Head {
        input: HeadInput::Embedding,
        weight: Tensor::from_vec(probe.weight, (classes, width), &DEVICE).map_err(tensor_error)?,
        bias: Tensor::from_vec(probe.bias, classes, &DEVICE).map_err(tensor_error)?,
        description,
    })
}
