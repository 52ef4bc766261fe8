//! A training between two steps: everything that the rest of it depends on, kept and restored to the bit.
//!
//! The order of the data and the changes of images are functions of seed, epoch and row, so a position says
//! all there is to say of them.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use pipe_engine::{StageContext, StageError};
use pipe_models::CheckpointFiles;
use pipe_models::checkpoint::{read_tensors, write_tensors};
use pipe_models::train::Moments;
use serde::{Deserialize, Serialize};

use super::TrainingLog;
use super::update::Update;
use crate::model::{DEVICE, checkpoint_error, tensor_error};

const TENSORS: &str = "state.safetensors";
const FACTS: &str = "state.json";
/// The version of both files.
const FORMAT: u32 = 2;

/// Where a training stands.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Position {
    pub(super) epoch: i64,
    /// Batches of this epoch that are done.
    pub(super) batch: usize,
    /// Steps in all.
    pub(super) step: u64,
    /// The sum of the losses of this epoch, and what it is divided by.
    pub(super) sum: f64,
    pub(super) count: f64,
}

/// The parameters of the best epoch so far.
#[derive(Clone, Debug)]
pub(super) struct Best {
    pub(super) score: f64,
    pub(super) values: BTreeMap<String, Tensor>,
}

/// One step of a training, beside its gradients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) loss: f64,
    /// What the loss counts in the mean of its epoch: the samples that it is a mean of.
    pub(super) weight: f64,
    /// The learning rate.
    pub(super) rate: f64,
    /// What gradients are multiplied with: below 1 where their norm is clipped.
    pub(super) factor: f64,
}

/// The state of a training.
pub(super) struct Training<'a> {
    pub(super) variables: &'a BTreeMap<String, Var>,
    /// Running statistics, which passes change and no gradient reaches.
    running: BTreeMap<String, Var>,
    pub(super) update: Update,
    /// It goes on where an earlier attempt stood.
    pub(super) is_resumed: bool,
    pub(super) position: Position,
    pub(super) best: Option<Best>,
    pub(super) log: TrainingLog,
}

/// What is kept beside tensors. Floats are kept as their bits: JSON would round them.
#[derive(Serialize, Deserialize)]
struct Facts {
    format: u32,
    epoch: i64,
    batch: usize,
    step: u64,
    sum: u64,
    count: u64,
    best: Option<u64>,
    /// Epoch, step, split, metric and value of each row.
    log: Vec<(i64, i64, String, String, u64)>,
    /// Steps in which each parameter had a gradient.
    steps: BTreeMap<String, i32>,
}

impl<'a> Training<'a> {
    /// A training of `variables` that begins, or goes on where an earlier attempt stood.
    pub(super) fn begin(
        variables: &'a BTreeMap<String, Var>,
        update: impl Into<Update>,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        Self::begin_with(variables, BTreeMap::new(), update, context)
    }

    /// As [`Self::begin`], of a model that keeps running statistics.
    pub(super) fn begin_with(
        variables: &'a BTreeMap<String, Var>,
        running: BTreeMap<String, Var>,
        update: impl Into<Update>,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let parameters: usize = variables.values().map(|variable| variable.elem_count()).sum();
        context.host().count("trainable_parameters", parameters as u64);
        let (position, log) = (Position::default(), TrainingLog::default());
        let update = update.into();
        let mut training = Self { variables, running, update, is_resumed: false, position, best: None, log };
        if let Some(resumed) = context.resume()? {
            training.is_resumed = training.restore(&resumed.folder)?;
            if !training.is_resumed {
                context.host().log("the state that was kept is of another format: training begins again");
            }
        }
        Ok(training)
    }

    /// A point between two steps: the state is kept if that is due, and the stage stops if it is asked to.
    pub(super) fn safe_point(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        context.safe_point(self.position.step, |folder| self.keep(folder))
    }

    /// Follows `gradients` for one step.
    ///
    /// # Errors
    ///
    /// If the loss is not finite; the parameters are then as they were.
    pub(super) fn follow(&mut self, gradients: &GradStore, step: Step) -> Result<(), StageError> {
        let Step { loss, weight, rate, factor } = step;
        if !loss.is_finite() {
            let step = self.position.step;
            let message = format!("the loss is {loss} in step {step}: lower `lr` (the rate is {rate} here)");
            return Err(StageError::failed(message));
        }
        self.update.step(gradients, rate, factor).map_err(tensor_error)?;
        let position = &mut self.position;
        position.sum += loss * weight;
        position.count += weight;
        position.step += 1;
        position.batch += 1;
        Ok(())
    }

    /// Writes the mean loss of an epoch that is over into the log; its number from 1, and the steps so far.
    pub(super) fn end_epoch(&mut self) -> (i64, i64) {
        let Position { epoch, step, sum, count, .. } = self.position;
        self.position = Position { epoch: epoch + 1, step, ..Position::default() };
        self.log.add(epoch + 1, step as i64, "train", "loss", sum / count);
        (epoch + 1, step as i64)
    }

    /// The values of all parameters and running statistics now.
    pub(super) fn values(&self) -> Result<BTreeMap<String, Tensor>, StageError> {
        let copy =
            |(name, variable): (&String, &Var)| Ok((name.clone(), variable.as_detached_tensor().copy()?));
        self.variables
            .iter()
            .chain(&self.running)
            .map(copy)
            .collect::<candle_core::Result<_>>()
            .map_err(tensor_error)
    }

    /// Leaves the values of the best epoch in the parameters, if there is one, and gives the learning curves.
    pub(super) fn finish(mut self, context: &StageContext<'_>) -> Result<TrainingLog, StageError> {
        context.host().count("training_steps", self.position.step);
        if let Some(best) = self.best.take() {
            self.set(best.values.iter().map(|(name, value)| (name.as_str(), value.clone())))?;
        }
        Ok(self.log)
    }

    fn set<'v>(&self, values: impl Iterator<Item = (&'v str, Tensor)>) -> Result<(), StageError> {
        for (name, value) in values {
            let variable = self.variables.get(name).or_else(|| self.running.get(name));
            let Some(variable) = variable else { continue };
            value
                .to_device(variable.device())
                .and_then(|value| variable.set(&value))
                .map_err(tensor_error)?;
        }
        Ok(())
    }

    fn keep(&self, folder: &Path) -> Result<(), StageError> {
        let mut tensors = BTreeMap::new();
        for (name, value) in self.values()? {
            tensors.insert(format!("value/{name}"), value);
        }
        for (name, value) in self.best.iter().flat_map(|best| &best.values) {
            tensors.insert(format!("best/{name}"), value.clone());
        }
        let mut steps = BTreeMap::new();
        for (name, Moments { first, second, steps: count }) in self.update.state().map_err(tensor_error)? {
            for (which, values) in [("first", first), ("second", second)] {
                let length = values.len();
                let tensor = Tensor::from_vec(values, length, &DEVICE).map_err(tensor_error)?;
                tensors.insert(format!("{which}/{name}"), tensor);
            }
            steps.insert(name, count);
        }
        let write = |error: String| {
            let doing = format!("writing `{}`", folder.display());
            StageError::environment(doing, std::io::Error::other(error))
        };
        write_tensors(&folder.join(TENSORS), &tensors).map_err(|error| write(error.reason))?;
        let Position { epoch, batch, step, sum, count } = self.position;
        let facts = Facts {
            format: FORMAT,
            epoch,
            batch,
            step,
            sum: sum.to_bits(),
            count: count.to_bits(),
            best: self.best.as_ref().map(|best| best.score.to_bits()),
            log: self
                .log
                .rows()
                .map(|(e, s, split, metric, v)| (e, s, split.into(), metric.into(), v.to_bits()))
                .collect(),
            steps,
        };
        let facts = serde_json::to_vec(&facts).map_err(|error| write(error.to_string()))?;
        std::fs::write(folder.join(FACTS), facts)
            .map_err(|error| StageError::environment(format!("writing `{}`", folder.display()), error))
    }

    /// Takes a state that was kept; whether it was one of this training.
    fn restore(&mut self, folder: &Path) -> Result<bool, StageError> {
        let facts = std::fs::read(folder.join(FACTS)).ok();
        let facts = facts.and_then(|bytes| serde_json::from_slice::<Facts>(&bytes).ok());
        let Some(facts) = facts.filter(|facts| facts.format == FORMAT) else { return Ok(false) };
        let files = CheckpointFiles::new([(TENSORS.to_owned(), folder.join(TENSORS))]);
        let Ok(mut tensors) = read_tensors(&files, TENSORS, &DEVICE).map_err(checkpoint_error) else {
            return Ok(false);
        };
        let mut values = BTreeMap::new();
        let mut best = BTreeMap::new();
        let mut state = BTreeMap::new();
        for (name, variable) in self.variables.iter().chain(&self.running) {
            let mut take = |which: &str| tensors.remove(&format!("{which}/{name}"));
            let Some(value) = take("value") else { return Ok(false) };
            if value.shape() != variable.shape() {
                return Ok(false);
            }
            if facts.best.is_some() {
                let Some(value) = take("best").filter(|value| value.shape() == variable.shape()) else {
                    return Ok(false);
                };
                best.insert(name.clone(), value);
            }
            values.insert(name, value);
            if self.running.contains_key(name) {
                continue;
            }
            let (Some(first), Some(second)) = (take("first"), take("second")) else { return Ok(false) };
            let vector = |tensor: Tensor| tensor.to_vec1::<f32>().map_err(tensor_error);
            let steps = facts.steps.get(name).copied().unwrap_or_default();
            state.insert(name.clone(), Moments { first: vector(first)?, second: vector(second)?, steps });
        }
        if !self.update.restore(state) {
            return Ok(false);
        }
        self.set(values.into_iter().map(|(name, value)| (name.as_str(), value)))?;
        self.best = facts.best.map(|score| Best { score: f64::from_bits(score), values: best });
        self.position = Position {
            epoch: facts.epoch,
            batch: facts.batch,
            step: facts.step,
            sum: f64::from_bits(facts.sum),
            count: f64::from_bits(facts.count),
        };
        for (epoch, step, split, metric, value) in facts.log {
            self.log.add(epoch, step, &split, &metric, f64::from_bits(value));
        }
        Ok(true)
    }
}
