//! How a model that answers learns: first what tells types of questions apart, then the answers.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use pipe_engine::{StageContext, StageError};
use pipe_models::train::{
    AdamW, AdamWOptions, Adamax, AdamaxOptions, Dropout, EpochSchedule, Group, Schedule, WarmUp,
    clip_gradient_norm,
};
use pipe_models::vqa::{Mode, QuestionTypeClassifier};

use super::super::training::{Best, Step, Training};
use super::super::update::Update;
use super::super::{TrainingLog, epoch_order};
use super::params::EncoderRule;
use super::{Keep, Params};
use crate::images::batches;
use crate::model::{DEVICE, Model, tensor_error};
use crate::vqa::{Answerer, ENCODER, Examples, Method, Readings, Sights, annotated, batch, given};

/// What a model learns from.
pub(super) struct Data {
    pub(super) examples: Examples,
    pub(super) labels: Vec<Option<usize>>,
    pub(super) sights: Sights,
    pub(super) readings: Readings,
    pub(super) train: Vec<usize>,
    pub(super) val: Vec<usize>,
}

/// Before the names of its parameters in the state of a training.
const TYPES: &str = "types";

/// Questions per step of the classifier of question types (QCR).
const TYPE_BATCH: i64 = 32;

/// Trains the classifier that tells closed questions from open ones.
fn train_types(
    params: &Params,
    types: &QuestionTypeClassifier,
    Data { examples, readings, train, val, .. }: &Data,
    log: &mut TrainingLog,
    context: &StageContext<'_>,
) -> Result<(), StageError> {
    let variables = types.parameters().variables().clone();
    let options = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
    let mut rule = AdamW::new(&variables, options, |_, _| Group { rate: 1.0, decay: false });
    let kinds = |rows: &[usize]| -> Vec<_> {
        rows.iter().map(|row| annotated(examples.asked[*row].closed)).collect()
    };
    let mut best: Option<(f64, Vec<Tensor>)> = None;
    let mut step = 0;
    let total = train.len().div_ceil(TYPE_BATCH as usize) as u64 * params.type_epochs as u64;
    for epoch in 0..params.type_epochs {
        let (mut sum, order) = (0.0, epoch_order(params.seed, epoch, train));
        for rows in batches(&order, TYPE_BATCH) {
            context.check_cancelled()?;
            let dropout = Dropout::new(params.seed as u64, step);
            let loss = types
                .loss(&readings.tokens(rows)?, &kinds(rows), Mode::Training(Some(&dropout)))
                .map_err(tensor_error)?;
            let gradients = loss.backward().map_err(tensor_error)?;
            rule.step(&gradients, params.type_lr, 1.0).map_err(tensor_error)?;
            let value = f64::from(loss.to_scalar::<f32>().map_err(tensor_error)?);
            sum += value * rows.len() as f64;
            step += 1;
            context.progress(step, total, "steps of question types", &[("loss", value)]);
        }
        log.add(epoch + 1, step as i64, "train", "type_loss", sum / train.len() as f64);
        if val.is_empty() {
            continue;
        }
        let mut right = 0;
        for rows in batches(val, 64) {
            let found = types.classify(&readings.tokens(rows)?).map_err(tensor_error)?;
            right += found.iter().zip(kinds(rows)).filter(|(found, kind)| *found == kind).count();
        }
        let accuracy = right as f64 / val.len() as f64;
        log.add(epoch + 1, step as i64, "val", "type_accuracy", accuracy);
        if params.keep == Keep::Best && best.as_ref().is_none_or(|(before, _)| accuracy > *before) {
            let values = variables.values().map(|variable| variable.as_detached_tensor().copy());
            best = Some((accuracy, values.collect::<candle_core::Result<_>>().map_err(tensor_error)?));
        }
    }
    if let Some((_, values)) = best {
        for (variable, value) in variables.values().zip(&values) {
            variable.set(value).map_err(tensor_error)?;
        }
    }
    Ok(())
}

/// The rate of each step.
enum Rates {
    Epochs(EpochSchedule),
    Steps(Schedule),
}

impl Rates {
    fn at(&self, epoch: i64, step: u64) -> f64 {
        match self {
            Self::Epochs(schedule) => schedule.at(epoch as usize),
            Self::Steps(schedule) => schedule.at(step),
        }
    }
}

fn rates(params: &Params, total: u64) -> Rates {
    let base = params.lr();
    match params.method {
        Method::Mevf => Rates::Epochs(EpochSchedule::mevf(base)),
        Method::Qcr => Rates::Epochs(EpochSchedule::constant(base)),
        Method::CrossModal => Rates::Steps(Schedule {
            rate: base,
            warmup: (0.1 * total as f64).round() as u64,
            begin: WarmUp::FromOneStep,
            total,
            floor: 0.0,
        }),
    }
}

/// Trains; leaves the parameters that are kept.
pub(super) fn learn(
    params: &Params,
    answerer: &Answerer,
    live: bool,
    data: &Data,
    context: &StageContext<'_>,
) -> Result<TrainingLog, StageError> {
    let own = answerer.model.variables().clone();
    let mut update: Update = match params.method {
        Method::Mevf | Method::Qcr => Adamax::new(&own, AdamaxOptions::default(), Adamax::alike).into(),
        Method::CrossModal => {
            let options = AdamWOptions { weight_decay: 0.01, ..AdamWOptions::default() };
            AdamW::new(&own, options, AdamW::matrices_decay).into()
        }
    };
    let mut variables = own;
    let encoder = answerer.encoder.as_ref().filter(|_| live);
    if let Some(encoder) = encoder {
        let tower: BTreeMap<String, Var> = encoder
            .network
            .variables()
            .iter()
            .map(|(name, variable)| (format!("{ENCODER}.{name}"), variable.clone()))
            .collect();
        let share = params.encoder_lr / params.lr();
        let options = AdamWOptions { weight_decay: 0.01, ..AdamWOptions::default() };
        update = match params.encoder_rule {
            EncoderRule::AdamW => update.and(AdamW::new(&tower, options, AdamW::matrices_decay), share),
            EncoderRule::Adamax => {
                update.and(Adamax::new(&tower, AdamaxOptions::default(), Adamax::alike), share)
            }
        };
        variables.extend(tower);
    }
    let epochs = params.epochs();
    let total = data.train.len().div_ceil(params.batch() as usize) as u64 * epochs as u64;
    let rates = rates(params, total);
    let mut running = answerer.model.parameters().buffers().clone();
    // What tells types apart has learned before the first step, and is kept with the state of those that follow.
    let of_types = answerer.types.iter().flat_map(|types| types.parameters().variables());
    running.extend(of_types.map(|(name, variable)| (format!("{TYPES}.{name}"), variable.clone())));
    let mut training = Training::begin_with(&variables, running, update, context)?;
    if let Some(types) = answerer.types.as_ref().filter(|_| !training.is_resumed) {
        train_types(params, types, data, &mut training.log, context)?;
    }
    while training.position.epoch < epochs {
        let epoch = training.position.epoch;
        let order = epoch_order(params.seed, epoch, &data.train);
        for rows in batches(&order, params.batch()).skip(training.position.batch) {
            training.safe_point(context)?;
            let step = training.position.step;
            let dropout = Dropout::new(params.seed as u64, step);
            let loss = loss(answerer, encoder, data, rows, Mode::Training(Some(&dropout)))?;
            let gradients = loss.backward().map_err(tensor_error)?;
            let (_, factor) =
                clip_gradient_norm(&variables, &gradients, params.gradient_norm).map_err(tensor_error)?;
            let value = f64::from(loss.to_scalar::<f32>().map_err(tensor_error)?);
            let (rate, weight) = (rates.at(epoch, step), rows.len() as f64);
            training.follow(&gradients, Step { loss: value, weight, rate, factor })?;
            context.progress(step + 1, total, "steps", &[("loss", value)]);
        }
        let (epoch, step) = training.end_epoch();
        if !data.val.is_empty() {
            let accuracy = accuracy(answerer, data)?;
            training.log.add(epoch, step, "val", "accuracy", accuracy);
            let better = training.best.as_ref().is_none_or(|best| accuracy > best.score);
            if params.keep == Keep::Best && better {
                training.best = Some(Best { score: accuracy, values: training.values()? });
            }
        }
    }
    training.finish(context)
}

fn loss(
    answerer: &Answerer,
    encoder: Option<&Model>,
    data: &Data,
    rows: &[usize],
    mode: Mode<'_>,
) -> Result<Tensor, StageError> {
    let asked = || rows.iter().map(|row| &data.examples.asked[*row]);
    let images: Vec<usize> = asked().map(|one| one.image).collect();
    let questions = data.readings.batch(rows, answerer.tower())?;
    let mut batch = batch(data.sights.batch(&images, encoder)?, questions);
    if answerer.description.closed.is_some() {
        batch.types = Some(asked().map(|one| annotated(one.closed)).collect());
    }
    let answers = answerer.description.answers.len();
    let mut targets = vec![0.0f32; rows.len() * answers];
    for (place, row) in rows.iter().enumerate() {
        if let Some(label) = data.labels[*row] {
            targets[place * answers + label] = 1.0;
        }
    }
    let targets = Tensor::from_vec(targets, (rows.len(), answers), &DEVICE).map_err(tensor_error)?;
    Ok(answerer.model.loss(&batch, &targets, mode).map_err(tensor_error)?.total)
}

/// The share of validation questions that are answered right.
fn accuracy(answerer: &Answerer, data: &Data) -> Result<f64, StageError> {
    let mut right = 0;
    for rows in batches(&data.val, 64) {
        let (logits, _) = answerer.logits(&data.sights, &data.readings, &data.examples, rows)?;
        let labels = rows.iter().map(|row| data.labels[*row]);
        right += logits.iter().zip(labels).filter(|(logits, label)| *label == Some(given(logits))).count();
    }
    Ok(right as f64 / data.val.len() as f64)
}
