//! The stage kind `finetune.classify`: a linear probe on frozen embeddings, adapters of the image tower, or
//! the whole of it.

mod head;
mod learning;
mod params;
mod tower;

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use pipe_models::Trainable;

use self::learning::train;
pub(super) use self::params::{Mode, Params};
use self::tower::Tower;
use super::TrainingLog;
use super::probe::linear_probe;
use super::subset::Scarcity;
use crate::artifact;
use crate::compute::{self, OUTSIDE_KEY};
use crate::features::{EMBEDDINGS, Features};
use crate::labels::Labels;
use crate::model::Model;

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
            implementation: 6,
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
        params.problems()
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &[
            "lora",
            "shots",
            "share",
            "pieces",
            "class_weights",
            "patience",
            "layer_decay",
            "batch_norm",
            "head_init",
            "milestones",
        ]
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
