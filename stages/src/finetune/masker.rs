//! The stage kind `masker`: the network of real-time image saliency (Dabkowski and Gal 2017), trained for one classifier.

use candle_core::Tensor;
use pipe_attribution::{Asked, Masker, MaskerPrices, Passes, enlarged, without};
use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use pipe_models::random::Key;
use pipe_models::train::loss::binary_cross_entropy;
use pipe_models::train::{AdamW, AdamWOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::epoch_order;
use super::training::{Step, Training};
use crate::artifact;
use crate::attribute::attribution_error;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::images::{ImageSet, batches, count_passes};
use crate::labels::Labels;
use crate::masker;
use crate::model::{DEVICE, Model, tensor_error};

/// Parameters of `masker`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The splits whose images it learns from.
    pub splits: Vec<String>,
    /// Passes over the images in which it learns which places speak for a class.
    #[schemars(range(min = 0, max = 10_000))]
    pub selector_epochs: i64,
    /// Passes over the images after these, in which it learns masks.
    #[schemars(range(min = 1, max = 10_000))]
    pub epochs: i64,
    /// Images per step.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// The learning rate.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub lr: f64,
    /// Channels between the layers of the network.
    #[schemars(range(min = 1, max = 1024))]
    pub width: i64,
    /// The price of the area that a mask keeps.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub area: f64,
    /// The price of differences between neighbours of a mask.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub smoothness: f64,
    /// The weight of what is kept, where that of what is left is 1.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub preserver: f64,
    /// Decides the first weights, the order, the classes that are asked for, and noise.
    pub seed: i64,
    /// Where the classifier computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the classifier's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
}

impl Default for Params {
    fn default() -> Self {
        let MaskerPrices { area, smoothness, preserver } = MaskerPrices::default();
        Self {
            splits: vec!["train".to_owned()],
            selector_epochs: 5,
            epochs: 10,
            batch: 32,
            lr: 1e-3,
            width: 32,
            area,
            smoothness,
            preserver,
            seed: 0,
            device: auto(),
            precision: Precision::F32,
        }
    }
}

impl Params {
    fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }
}

/// The share of images that are asked for a class that they do not show, while the selector learns and afterwards.
const FAKES: [f64; 2] = [0.5, 0.3];
/// Of matrices, as in the authors' repository.
const WEIGHT_DECAY: f64 = 1e-4;

/// Trains a masker.
pub struct TrainMasker;

impl StageKind for TrainMasker {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "masker",
            summary: "trains a network that finds in one pass what a classifier sees a class by (real-time image saliency)",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("images", &[artifact::IMAGES], "the images"),
                InputPort::required("labels", &[artifact::LABELS], "their classes"),
                InputPort::required(
                    "checkpoint",
                    &[artifact::CHECKPOINT],
                    "the classifier, with a head; it does not change",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("masker", artifact::MASKER, "the network, for `trained_saliency` of `attribute`"),
            OutputPort::new("log", artifact::TRAINING_LOG, "learning curves"),
            OutputPort::new("tensorboard", artifact::TENSORBOARD, "the same for TensorBoard"),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        compute::check(&params.device).into_iter().collect()
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
        let model = Model::load(context.input("checkpoint")?, params.compute())?;
        let sizes = masker::sizes(&model, params.width as usize)?;
        let sizes = sizes.map_err(|reason| StageError::input("checkpoint", reason))?;
        let labels = Labels::read(context.input("labels")?)?;
        let own = &model.head()?.description.classes;
        if labels.description.classes != *own {
            let found = &labels.description.classes;
            let reason = format!("its classes are {own:?}, those of the labels {found:?}");
            return Err(StageError::input("head.json", reason));
        }
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let images = ImageSet::read(context.input("images")?, &splits, model.preprocessor()?, context)?;
        if images.len() == 0 {
            let splits = params.splits.join("`, `");
            return Err(StageError::failed(format!("there are no images of split `{splits}` to learn from")));
        }
        let classes = labels.of(&images.ids)?.into_iter().map(|label| label[0] as u32).collect();
        let key = Key::derive("pipe masker/1", params.seed as u64, &[]);
        let masker = Masker::random(sizes, key).map_err(attribution_error)?;
        let log =
            Lesson { params, model: &model, masker: &masker, images: &images, classes }.learn(context)?;
        masker::save(&masker, &model, context.output("masker")?)?;
        log.write(context)
    }
}

/// Everything that a masker learns from.
struct Lesson<'a> {
    params: &'a Params,
    model: &'a Model,
    masker: &'a Masker,
    images: &'a ImageSet,
    /// The class of each image.
    classes: Vec<u32>,
}

impl Lesson<'_> {
    fn learn(&self, context: &StageContext<'_>) -> Result<super::TrainingLog, StageError> {
        let params = self.params;
        let variables = self.masker.variables();
        let options = AdamWOptions { weight_decay: WEIGHT_DECAY, ..AdamWOptions::default() };
        let rows: Vec<usize> = (0..self.images.len()).collect();
        let epochs = params.selector_epochs + params.epochs;
        let total = rows.len().div_ceil(params.batch.max(1) as usize) as u64 * epochs as u64;
        let rule = AdamW::new(variables, options, AdamW::matrices_decay);
        let mut training = Training::begin(variables, rule, context)?;
        while training.position.epoch < epochs {
            let epoch = training.position.epoch;
            let is_selecting = epoch < params.selector_epochs;
            let order = epoch_order(params.seed, epoch, &rows);
            for rows in batches(&order, params.batch).skip(training.position.batch) {
                training.safe_point(context)?;
                let asked = self.asked(rows, epoch, FAKES[usize::from(!is_selecting)]);
                let loss = match is_selecting {
                    true => self.presence(rows, &asked)?,
                    false => self.objective(rows, &asked, epoch)?,
                };
                let seen = rows.len() as u64;
                let passes = if is_selecting { [seen, 0] } else { [3 * seen, 2 * seen] };
                count_passes(context, Passes { forward: passes[0], backward: passes[1] });
                let gradients = loss.backward().map_err(tensor_error)?;
                let value = f64::from(loss.to_scalar::<f32>().map_err(tensor_error)?);
                let weight = rows.len() as f64;
                training.follow(&gradients, Step { loss: value, weight, rate: params.lr, factor: 1.0 })?;
                context.progress(training.position.step, total, "steps", &[("loss", value)]);
            }
            training.end_epoch();
        }
        training.finish(context)
    }

    /// A key of an image in an epoch, whatever stands beside it.
    fn key(&self, row: usize, epoch: i64) -> Key {
        let id = self.images.ids[row].as_str();
        Key::derive("pipe masker images/1", self.params.seed as u64, &[id.into(), (epoch as u64).into()])
    }

    /// What the network is asked for of some images: their class, or for a share of them another.
    fn asked(&self, rows: &[usize], epoch: i64, fakes: f64) -> Vec<Asked> {
        let count = self.masker.sizes().classes as u32;
        let ask = |row: &usize| {
            let (key, own) = (self.key(*row, epoch), self.classes[*row]);
            match key.uniform(1) < fakes {
                true => {
                    let other = key.below(2, u64::from(count - 1)) as u32;
                    Asked { class: if other < own { other } else { other + 1 }, is_fake: true }
                }
                false => Asked { class: own, is_fake: false },
            }
        };
        rows.iter().map(ask).collect()
    }

    /// The cross entropy of whether the classes that are asked for are there.
    fn presence(&self, rows: &[usize], asked: &[Asked]) -> Result<Tensor, StageError> {
        let features = self.features(&self.images.batch(rows)?)?;
        let there: Vec<f32> = asked.iter().map(|asked| f32::from(u8::from(!asked.is_fake))).collect();
        let loss = || {
            let logits = self.masker.presence(&features, &classes(asked))?.unsqueeze(1)?;
            binary_cross_entropy(&logits, &Tensor::from_vec(there, (asked.len(), 1), &DEVICE)?)
        };
        loss().map_err(tensor_error)
    }

    /// The objective of masks.
    fn objective(&self, rows: &[usize], asked: &[Asked], epoch: i64) -> Result<Tensor, StageError> {
        let keys: Vec<Key> = rows.iter().map(|row| self.key(*row, epoch).sub(1)).collect();
        let [shown, gone] = without(&self.images.batch(rows)?, &keys).map_err(attribution_error)?;
        let features = self.features(&shown)?;
        let Params { area, smoothness, preserver, .. } = *self.params;
        let prices = MaskerPrices { area, smoothness, preserver };
        let (tower, head) = (self.model.image_tower()?, self.model.head()?);
        let logits = |pixels: &Tensor| head.logits(&tower.embed_images(pixels, None)?);
        let loss = || {
            let masks = self.masker.masks(&features, &classes(asked))?;
            let masks = enlarged(&masks, self.masker.sizes().image)?;
            prices.loss(&masks, [&shown, &gone], asked, &logits)
        };
        loss().map_err(tensor_error)
    }

    /// What the classifier's layers have of images.
    fn features(&self, pixels: &Tensor) -> Result<Vec<Tensor>, StageError> {
        let probe = self.masker.probe();
        self.model.image_tower()?.embed_images(pixels, Some(&probe)).map_err(tensor_error)?;
        probe.features().map_err(tensor_error)
    }
}

fn classes(asked: &[Asked]) -> Vec<u32> {
    asked.iter().map(|asked| asked.class).collect()
}
