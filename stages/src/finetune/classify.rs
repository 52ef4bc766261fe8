//! The stage kind `finetune.classify`: a linear probe on frozen embeddings, adapters of the image tower, or
//! the whole of it.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use pipe_models::train::{
    AdamW, Group, LoraOptions, Schedule, WarmUp, add_gradients, clip_gradient_norm, layer_of, layer_wise,
};
use pipe_models::{ModelConfig, Trainable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::augment::{Augment, Augmenter};
use super::class_loss::{ClassWeights, Losses, pieces};
use super::probe::linear_probe;
use super::subset::Scarcity;
use super::training::{Best, Position, Training};
use super::{Optimiser, TrainingLog, epoch_order};
use crate::artifact;
use crate::classification::probabilities;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::features::{EMBEDDINGS, Features};
use crate::images::batches;
use crate::labels::Labels;
use crate::model::{Model, checkpoint_error, tensor_error, zero_head};
use crate::statistics::{ClassifierScores, Task};

/// What learns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A linear classifier on the frozen, projected embedding.
    LinearProbe,
    /// Changes of low rank (Hu et al. 2022) to the query and value weights of the image tower's attention,
    /// which stays as it is otherwise, with a linear head. The checkpoint that is written has them merged
    /// into the weights.
    Lora,
    /// The image tower with a linear head.
    Full,
}

/// How much an adapter can change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// The rank of a change.
    #[schemars(range(min = 1, max = 1024))]
    pub rank: i64,
    /// A change is multiplied by `alpha / rank`.
    #[schemars(range(min = 1e-3, max = 1e4))]
    pub alpha: f64,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0 }
    }
}

/// Parameters of `finetune.classify`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// What learns.
    pub mode: Mode,
    /// Few-shot: so many training images of each class are learned from, drawn by seed and image id. The
    /// validation split stays whole.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub shots: Option<i64>,
    /// This share of the training images of each class is learned from, at least one, drawn as `shots`.
    #[schemars(range(min = 1e-6, max = 1.0))]
    pub share: Option<f64>,
    /// Linear probe: inverse strength of regularisation; without it the value of best accuracy on the
    /// validation split (or on every fifth training row, if there is none) is taken.
    #[schemars(range(min = 1e-9, max = 1e9))]
    pub c: Option<f64>,
    /// Adapters and full: passes over the training split.
    #[schemars(range(min = 1, max = 10_000))]
    pub epochs: i64,
    /// Adapters and full: images per step.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: i64,
    /// Adapters and full: each step is computed in so many pieces, which bounds memory; the gradient is that of
    /// the whole batch.
    #[schemars(range(min = 1, max = 65_536))]
    pub pieces: i64,
    /// Adapters and full: how much the samples of a class count.
    pub class_weights: ClassWeights,
    /// Adapters and full: training ends when validation has not been better for so many epochs.
    #[schemars(range(min = 1, max = 10_000))]
    pub patience: Option<i64>,
    /// Adapters and full: the learning rate of each block of a transformer is that of the next one times this (Clark et al.
    /// 2020).
    #[schemars(range(min = 1e-3, max = 1.0))]
    pub layer_decay: f64,
    /// Adapters and full: highest learning rate of the tower.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub lr: f64,
    /// Adapters and full: highest learning rate of the head; by default the tower's.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub head_lr: Option<f64>,
    /// Decides the order of training, the changes of images and the adapters before training.
    pub seed: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// Adapters and full: changes of training images.
    pub augment: Augment,
    /// The adapters.
    pub lora: Lora,
    /// AdamW and its schedule.
    pub optimiser: Optimiser,
}

impl Params {
    /// Where and how precisely the model computes.
    pub(crate) fn compute(&self) -> Compute {
        Compute::new(&self.device, Precision::F32)
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            mode: Mode::LinearProbe,
            shots: None,
            share: None,
            c: None,
            epochs: 5,
            batch: 32,
            pieces: 1,
            class_weights: ClassWeights::Equal,
            patience: None,
            layer_decay: 1.0,
            lr: 1e-4,
            head_lr: None,
            seed: 0,
            device: auto(),
            augment: Augment::default(),
            lora: Lora::default(),
            optimiser: Optimiser::default(),
        }
    }
}

/// Trains a classifier on images or volumes.
pub struct FinetuneClassify;

const TRAIN: &str = "train";
const VAL: &str = "val";

impl StageKind for FinetuneClassify {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "finetune.classify",
            summary: "trains a classifier: a linear probe on embeddings, adapters of the image tower, or the whole of it",
            implementation: 5,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images or volumes",
                ),
                InputPort::required("labels", &[artifact::LABELS], "their classes"),
                InputPort::required("checkpoint", &[artifact::CHECKPOINT], "the model to start from"),
                InputPort::optional(
                    EMBEDDINGS,
                    &[artifact::EMBEDDINGS],
                    "linear probe: the images as `embed` has embedded them by the checkpoint, so that it does not see them again",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("checkpoint", artifact::CHECKPOINT, "the model with its head"),
            OutputPort::new("log", artifact::TRAINING_LOG, "learning curves"),
            OutputPort::new("tensorboard", artifact::TENSORBOARD, "the same for TensorBoard"),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        compute::check(&params.device)
            .into_iter()
            .chain(Scarcity::check(params.shots, params.share))
            .collect()
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["lora", "shots", "share", "pieces", "class_weights", "patience", "layer_decay"]
    }

    fn outside_key(&self) -> &'static [&'static str] {
        &OUTSIDE_KEY
    }

    fn numerics(&self, params: &Params) -> Option<String> {
        params.compute().numerics()
    }

    fn take_devices(&self, params: &mut Params, gpus: &[usize]) {
        compute::take_gpu(&mut params.device, gpus);
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let trainable = match params.mode {
            Mode::LinearProbe => Trainable::Frozen,
            Mode::Lora | Mode::Full => Trainable::Image,
        };
        let mut model = Model::trainable(context.input("checkpoint")?, trainable, params.compute())?;
        let labels = Labels::read(context.input("labels")?)?;
        let images = Features::read(context, &[TRAIN, VAL], &model)?;
        let targets = labels.of(images.ids())?;
        let scarcity = Scarcity::of(params.shots, params.share);
        let train_rows = images.rows(TRAIN);
        let data = Data {
            train: scarcity.select(params.seed, &train_rows, images.ids(), &targets, &labels.description),
            targets,
            val: images.rows(VAL),
            images,
            labels,
        };
        if data.train.is_empty() {
            return Err(StageError::failed("there are no images of split `train` to learn from"));
        }
        if params.patience.is_some() && params.mode != Mode::LinearProbe && data.val.is_empty() {
            let reason = "`patience` waits for a better validation, and there are no images of split `val`";
            return Err(StageError::failed(reason));
        }
        let mut log = TrainingLog::default();
        match params.mode {
            Mode::LinearProbe => model.head = Some(linear_probe(params, &model, &data, &mut log, context)?),
            Mode::Lora => {
                let tower = Tower::adapted(params, &model)?;
                log = train(params, &mut model, &tower, &data, context)?;
            }
            Mode::Full => log = train(params, &mut model, &Tower::Whole, &data, context)?,
        }
        model.save(context.output("checkpoint")?)?;
        log.write(context)
    }
}

/// Embeddings are computed in batches of this many images.
pub(super) const EMBED_BATCH: i64 = 64;

pub(super) struct Data {
    pub(super) images: Features,
    pub(super) labels: Labels,
    targets: Vec<Vec<i64>>,
    pub(super) train: Vec<usize>,
    pub(super) val: Vec<usize>,
}

impl Data {
    pub(super) fn targets_of(&self, rows: &[usize]) -> Vec<&Vec<i64>> {
        rows.iter().map(|row| &self.targets[*row]).collect()
    }
}

/// What of the image tower learns.
enum Tower {
    /// All of it: the variables of the model.
    Whole,
    /// Adapters of a frozen model.
    Adapted(Box<Adapted>),
}

/// Adapters, and the model that they change.
struct Adapted {
    lora: pipe_models::train::Lora,
    config: ModelConfig,
    /// The tensors of the frozen model.
    frozen: BTreeMap<String, Tensor>,
}

impl Tower {
    /// Adapters of the image tower of `model`.
    fn adapted(params: &Params, model: &Model) -> Result<Self, StageError> {
        let Lora { rank, alpha } = params.lora;
        let options = LoraOptions { rank: rank as usize, alpha };
        let frozen = model.network.tensors();
        let image_side = |name: &str| model.network.variables().contains_key(name);
        let lora = pipe_models::train::Lora::new(&frozen, options, image_side, params.seed as u64)
            .map_err(tensor_error)?;
        Ok(Self::Adapted(Box::new(Adapted { lora, config: model.network.model_config(), frozen })))
    }

    /// What is trained beside the head.
    fn variables(&self, model: &Model) -> BTreeMap<String, Var> {
        match self {
            Self::Whole => model.network.variables().clone(),
            Self::Adapted(adapted) => adapted.lora.variables(),
        }
    }

    /// Makes the model one of the present values: of adapters its weights are computed anew.
    fn update(&self, model: &mut Model, gradients: Gradients) -> Result<(), StageError> {
        let Self::Adapted(adapted) = self else { return Ok(()) };
        let Adapted { lora, config, frozen } = adapted.as_ref();
        let tensors = match gradients {
            Gradients::Wanted => lora.apply(frozen),
            Gradients::None => lora.merge(frozen),
        };
        let tensors = tensors.map_err(tensor_error)?;
        model.replace_network(config.build(tensors, Trainable::Frozen).map_err(checkpoint_error)?);
        Ok(())
    }
}

/// Whether a pass is followed by one backwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradients {
    Wanted,
    None,
}

/// Trains `tower` with a head; leaves the model of the best epoch.
fn train(
    params: &Params,
    model: &mut Model,
    tower: &Tower,
    data: &Data,
    context: &StageContext<'_>,
) -> Result<TrainingLog, StageError> {
    let images = data.images.pixels()?;
    let width = model.image_tower()?.embedding_width();
    let (head, head_variables) = zero_head(data.labels.description.clone(), width)?;
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

    let mut training = Training::begin(&variables, adamw, context)?;
    while training.position.epoch < params.epochs {
        let epoch = training.position.epoch;
        let order = epoch_order(params.seed, epoch, &data.train);
        let augmenter = Augmenter::new(&params.augment, params.seed, epoch);
        for rows in batches(&order, params.batch).skip(training.position.batch) {
            training.safe_point(context)?;
            // A volume of full size is a piece of its own.
            let at_a_time = images.at_a_time(params.batch).max(1) as usize;
            let least = rows.len().div_ceil(at_a_time);
            let (mut value, mut sum) = (0.0, None);
            for piece in pieces(rows.len(), least.max(params.pieces as usize)) {
                tower.update(model, Gradients::Wanted)?;
                let pixels = images.changed_batch(&rows[piece.clone()], Some(&augmenter))?;
                let logits = model.logits(&pixels, None)?;
                let loss = losses.of(&logits, piece, &data.targets_of(rows)).map_err(tensor_error)?;
                let own = loss.backward().map_err(tensor_error)?;
                value += f64::from(loss.to_scalar::<f32>().map_err(tensor_error)?);
                sum = Some(match sum {
                    None => own,
                    Some(sum) => add_gradients(&variables, sum, &own).map_err(tensor_error)?,
                });
            }
            let Some(gradients) = sum else { continue };
            let (_, factor) =
                clip_gradient_norm(&variables, &gradients, optimiser.gradient_norm).map_err(tensor_error)?;
            let step = training.position.step;
            training.update.step(&gradients, schedule.at(step), factor).map_err(tensor_error)?;
            if !value.is_finite() {
                let message = format!("the loss is {value} in step {step}: lower `lr` (it is {})", params.lr);
                return Err(StageError::failed(message));
            }
            let position = &mut training.position;
            position.sum += value * rows.len() as f64;
            position.count += rows.len() as f64;
            position.step += 1;
            position.batch += 1;
            context.progress(step + 1, total, "steps", &[("loss", value)]);
        }
        let Position { step, sum, count, .. } = training.position;
        training.log.add(epoch + 1, step as i64, "train", "loss", sum / count);
        if !data.val.is_empty() {
            tower.update(model, Gradients::None)?;
            let (auroc, accuracy) = figures(model, data, &data.val)?;
            training.log.add(epoch + 1, step as i64, "val", "accuracy", accuracy);
            if let Some(auroc) = auroc {
                training.log.add(epoch + 1, step as i64, "val", "auroc", auroc);
            }
            let score = auroc.unwrap_or(accuracy);
            if training.best.as_ref().is_none_or(|best| score > best.score) {
                training.best = Some(Best { score, values: training.values()? });
            }
        }
        training.position = Position { epoch: epoch + 1, step, ..Position::default() };
        if params.patience.is_some_and(|patience| epochs_without_gain(&training.log) >= patience) {
            break;
        }
    }
    // The epoch of best validation AUROC is kept (of best accuracy, where a class is missing there), the
    // last one where there is no validation split.
    let log = training.finish()?;
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
