//! The training itself, epoch by epoch.

use pipe_engine::{StageContext, StageError};
use pipe_models::train::{
    AdamW, Group, Schedule, WarmUp, add_gradients, clip_gradient_norm, layer_of, layer_wise,
};

use super::super::augment::Augmenter;
use super::super::class_loss::{Losses, pieces};
use super::super::training::{Best, Step, Training};
use super::super::{TrainingLog, epoch_order};
use super::head::{uniform_head, zero_head};
use super::params::{HeadInit, NormStatistics, Params};
use super::tower::{Gradients, Tower, training_pass};
use super::{Data, EMBED_BATCH, VAL};
use crate::classification::probabilities;
use crate::images::{FORWARD_PASSES, batches};
use crate::model::{Model, tensor_error};
use crate::statistics::{ClassifierScores, Task};

/// Trains `tower` with a head; leaves the model of the best epoch.
pub(super) fn train(
    params: &Params,
    model: &mut Model,
    tower: &Tower,
    data: &Data,
    context: &StageContext<'_>,
) -> Result<TrainingLog, StageError> {
    let images = data.images.pixels()?;
    let width = model.image_tower()?.embedding_width();
    let description = data.labels.description.clone();
    let (head, head_variables) = match params.head_init {
        HeadInit::Zeros => zero_head(description, width)?,
        HeadInit::Uniform => uniform_head(description, width, params.seed)?,
    };
    model.head = Some(head);
    let mut variables = tower.variables(model);
    variables.extend(head_variables);
    let steps_per_epoch = data.train.len().div_ceil(params.batch as usize) as u64;
    let total = steps_per_epoch * params.epochs as u64;
    let optimiser = &params.optimiser;
    let schedule = Schedule {
        rate: params.lr,
        warmup: (optimiser.warmup * total as f64).round() as u64,
        begin: WarmUp::FromOneStep,
        total,
        floor: optimiser.floor,
    };
    let head_rate = params.head_lr.unwrap_or(params.lr) / params.lr;
    let blocks =
        variables.keys().map(|name| layer_of(name, MOST_BLOCKS)).filter(|layer| *layer <= MOST_BLOCKS);
    let blocks = blocks.max().unwrap_or_default();
    if params.layer_decay < 1.0 && blocks == 0 {
        return Err(StageError::failed(
            "`layer_decay` is for transformers: this tower has no numbered blocks",
        ));
    }
    let adamw = AdamW::new(&variables, optimiser.options(), |name, variable| {
        let group = layer_wise(name, variable.rank(), blocks, params.layer_decay);
        Group { rate: if name.starts_with("head.") { head_rate } else { group.rate }, ..group }
    });
    let losses = Losses::new(params.class_weights, &data.labels.description, &data.targets_of(&data.train));

    let mut training = Training::begin_with(&variables, tower.running(model, params)?, adamw, context)?;
    while training.position.epoch < params.epochs {
        let epoch = training.position.epoch;
        let order = epoch_order(params.seed, epoch, &data.train);
        let augmenter = Augmenter::new(&params.augment, params.seed, epoch);
        let rate = |step: u64| match &params.milestones {
            Some(milestones) => schedule.warmed(step) * milestones.factor(epoch, params.epochs),
            None => schedule.at(step),
        };
        for rows in batches(&order, params.batch).skip(training.position.batch) {
            training.safe_point(context)?;
            // A volume of full size is a piece of its own.
            let at_a_time = images.at_a_time(params.batch).max(1) as usize;
            let least = rows.len().div_ceil(at_a_time);
            if least > 1 && params.batch_norm == NormStatistics::Batch {
                let reason = format!(
                    "the volumes are so large that a step holds {at_a_time} of them: `batch_norm = \"batch\"` needs a `batch` of no more"
                );
                return Err(StageError::failed(reason));
            }
            let (mut value, mut sum) = (0.0, None);
            for piece in pieces(rows.len(), least.max(params.pieces as usize)) {
                tower.update(model, Gradients::Wanted)?;
                let pixels = images.changed_batch(&rows[piece.clone()], Some(&augmenter))?;
                let pixels = params.compute().mixed(&pixels).map_err(tensor_error)?;
                let logits = model.logits(&pixels, training_pass(params))?;
                let loss = losses.of(&logits, piece, &data.targets_of(rows)).map_err(tensor_error)?;
                let own = loss.backward().map_err(tensor_error)?;
                value += f64::from(loss.to_scalar::<f32>().map_err(tensor_error)?);
                sum = Some(match sum {
                    None => own,
                    Some(sum) => add_gradients(&variables, sum, own).map_err(tensor_error)?,
                });
            }
            let Some(gradients) = sum else { continue };
            let (_, factor) =
                clip_gradient_norm(&variables, &gradients, optimiser.gradient_norm).map_err(tensor_error)?;
            let step = training.position.step;
            let weight = rows.len() as f64;
            training.follow(&gradients, Step { loss: value, weight, rate: rate(step), factor })?;
            context.progress(step + 1, total, "steps", &[("loss", value)]);
        }
        let (epoch, step) = training.end_epoch();
        if !data.val.is_empty() {
            tower.update(model, Gradients::None)?;
            let (auroc, accuracy) = figures(model, data, &data.val)?;
            training.log.add(epoch, step, "val", "accuracy", accuracy);
            if let Some(auroc) = auroc {
                training.log.add(epoch, step, "val", "auroc", auroc);
            }
            let score = auroc.unwrap_or(accuracy);
            if training.best.as_ref().is_none_or(|best| score > best.score) {
                training.best = Some(Best { score, values: training.values()? });
            }
        }
        if params.patience.is_some_and(|patience| epochs_without_gain(&training.log) >= patience) {
            break;
        }
    }
    // The epoch of best validation AUROC is kept (of best accuracy, where a class is missing there), the
    // last one where there is no validation split.
    let seen = data.train.len() + data.val.len();
    context.host().count(FORWARD_PASSES, training.position.epoch as u64 * seen as u64);
    let log = training.finish(context)?;
    tower.update(model, Gradients::None)?;
    Ok(log)
}

/// More blocks than any transformer has.
const MOST_BLOCKS: usize = 1 << 20;

/// Epochs since the best of validation: what the log says, so that a training that goes on knows it too.
fn epochs_without_gain(log: &TrainingLog) -> i64 {
    let score = |metric: &str| -> Vec<(i64, f64)> {
        let rows = log.rows().filter(|(_, _, split, name, _)| *split == VAL && *name == metric);
        rows.map(|(epoch, _, _, _, value)| (epoch, value)).collect()
    };
    // As the best epoch is chosen: by AUROC, by accuracy where a class is missing.
    let scores = match score("auroc") {
        aurocs if aurocs.is_empty() => score("accuracy"),
        aurocs => aurocs,
    };
    let mut best: Option<(i64, f64)> = None;
    for (epoch, value) in &scores {
        if best.is_none_or(|(_, greatest)| *value > greatest) {
            best = Some((*epoch, *value));
        }
    }
    match (best, scores.last()) {
        (Some((best, _)), Some((last, _))) => last - best,
        _ => 0,
    }
}

/// AUROC, if it is defined, and accuracy of `rows`, as the MedMNIST evaluator has them.
fn figures(model: &Model, data: &Data, rows: &[usize]) -> Result<(Option<f64>, f64), StageError> {
    let images = data.images.pixels()?;
    let mut logits = Vec::with_capacity(rows.len());
    for rows in batches(rows, images.at_a_time(EMBED_BATCH)) {
        let batch = model.logits(&images.batch(rows)?, None)?.detach();
        logits.extend(batch.to_vec2::<f32>().map_err(tensor_error)?);
    }
    let description = &data.labels.description;
    let scores = ClassifierScores::new(
        Task::parse(&description.task),
        logits.iter().map(|logits| probabilities(logits, description)).collect(),
        rows.iter().map(|row| data.targets[*row].clone()).collect(),
    );
    let weights = vec![1.0; rows.len()];
    Ok((scores.auroc(&weights), scores.accuracy(&weights).unwrap_or_default()))
}
