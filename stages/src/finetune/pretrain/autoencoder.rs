//! The stage kind `pretrain.autoencoder`: MEVF's denoising auto-encoder (Nguyen et al. 2019; Masci et al. 2011) on the
//! images of any tables.

use std::collections::BTreeMap;

use pipe_engine::{
    Artifact, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, PortAxes, StageContext,
    StageError, StageKind,
};
use pipe_models::random::Key;
use pipe_models::vqa::{Autoencoder, AutoencoderConfig, with_noise};
use pipe_models::{Trainable, Weights};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::epoch_order;
use super::super::training::{Step, Training};
use super::grey::GreySquares;
use super::{adam, save};
use crate::artifact;
use crate::images::batches;
use crate::model::{checkpoint_error, tensor_error};
use crate::vqa::AUTOENCODER_WEIGHTS;

/// Parameters of `pretrain.autoencoder`. Its sizes are the published ones: images of 128 x 128 grey values, codes of
/// 16 x 32 x 32.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The splits whose images it learns from. Those of `val` tell after each epoch how far it is, if there are any.
    pub splits: Vec<String>,
    /// Passes over the images.
    #[schemars(range(min = 1, max = 100_000))]
    pub epochs: i64,
    /// Images per step.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: i64,
    /// The learning rate of Adam.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub lr: f64,
    /// The deviation of the noise that is added to values in 0..1.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub noise: f64,
    /// Decides the first weights, the order and the noise.
    pub seed: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { splits: vec!["train".to_owned()], epochs: 20, batch: 64, lr: 1e-3, noise: 0.1, seed: 0 }
    }
}

/// Trains an auto-encoder.
pub struct PretrainAutoencoder;

impl StageKind for PretrainAutoencoder {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "pretrain.autoencoder",
            summary: "trains the denoising auto-encoder of MEVF on images alone",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort {
                axes: PortAxes::Ignored,
                ..InputPort::fan_in("images", &[artifact::IMAGES], "the images; labels are not needed")
            }],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("weights", artifact::IMAGE_WEIGHTS, "the auto-encoder, for `finetune.vqa`"),
            OutputPort::new("log", artifact::TRAINING_LOG, "learning curves"),
            OutputPort::new("tensorboard", artifact::TENSORBOARD, "the same for TensorBoard"),
        ]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let config = AutoencoderConfig::default();
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let tables: Vec<Artifact> =
            context.inputs("images").iter().map(|input| input.artifact.clone()).collect();
        let images = GreySquares::read(&tables, &splits, config.image, context)?;
        if images.len() == 0 {
            let splits = params.splits.join("`, `");
            return Err(StageError::failed(format!("there are no images of split `{splits}` to learn from")));
        }
        let held = match splits.contains(&VAL) {
            true => None,
            false => Some(GreySquares::read(&tables, &[VAL], config.image, context)?),
        };
        let mut weights = Weights::seeded(params.seed as u64, BTreeMap::new(), Trainable::All);
        let autoencoder = Autoencoder::load(&mut weights, "", &config).map_err(checkpoint_error)?;
        let parameters = weights.finish().map_err(checkpoint_error)?;
        let variables = parameters.variables();
        let noise = |which: &str, step: u64| {
            Key::derive("pipe noise of images/1", params.seed as u64, &[which.into(), step.into()])
        };
        let loss = |images: &GreySquares, rows: &[usize], key: Key| {
            let clean = images.pick(rows)?;
            with_noise(&clean, params.noise, key)
                .and_then(|noisy| autoencoder.denoising_loss(&noisy, &clean))
                .map_err(tensor_error)
        };
        let rows: Vec<usize> = (0..images.len()).collect();
        let total = rows.len().div_ceil(params.batch as usize) as u64 * params.epochs as u64;
        let mut training = Training::begin(variables, adam(variables), context)?;
        while training.position.epoch < params.epochs {
            let epoch = training.position.epoch;
            let order = epoch_order(params.seed, epoch, &rows);
            for rows in batches(&order, params.batch).skip(training.position.batch) {
                training.safe_point(context)?;
                let step = training.position.step;
                let loss = loss(&images, rows, noise("train", step))?;
                let gradients = loss.backward().map_err(tensor_error)?;
                let value = f64::from(loss.to_scalar::<f32>().map_err(tensor_error)?);
                let weight = rows.len() as f64;
                training.follow(&gradients, Step { loss: value, weight, rate: params.lr, factor: 1.0 })?;
                context.progress(step + 1, total, "steps", &[("loss", value)]);
            }
            let (epoch, step) = training.end_epoch();
            if let Some(held) = held.as_ref().filter(|held| held.len() > 0) {
                let rows: Vec<usize> = (0..held.len()).collect();
                let mut sum = 0.0;
                for (part, rows) in batches(&rows, params.batch).enumerate() {
                    context.check_cancelled()?;
                    // The same noise in every epoch.
                    let loss = loss(held, rows, noise("val", part as u64))?;
                    let value = loss.detach().to_scalar::<f32>().map_err(tensor_error)?;
                    sum += f64::from(value) * rows.len() as f64;
                }
                training.log.add(epoch, step, "val", "loss", sum / held.len() as f64);
            }
        }
        let log = training.finish(context)?;
        save(AUTOENCODER_WEIGHTS, &parameters.tensors(), context)?;
        log.write(context)
    }
}

const VAL: &str = "val";
