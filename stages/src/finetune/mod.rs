//! Stage kinds that train: `finetune.contrastive`, `finetune.classify`, `finetune.vqa`, and what comes before the last:
//! `pretrain.autoencoder` and `pretrain.meta`.

mod augment;
mod class_loss;
mod classify;
mod contrastive;
mod events;
mod log;
mod masked_words;
mod masker;
mod pairs;
mod pretrain;
mod probe;
mod subset;
#[cfg(test)]
mod tests;
mod training;
mod update;
mod vqa;

pub use classify::FinetuneClassify;
pub use contrastive::FinetuneContrastive;
pub(crate) use log::TrainingLog;
pub use masker::TrainMasker;
pub use pretrain::{PretrainAutoencoder, PretrainMeta};
pub use vqa::FinetuneVqa;

use pipe_models::random::Key;
use pipe_models::train::AdamWOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// AdamW and its schedule.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Optimiser {
    /// Weight decay, on matrices only.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
    /// Decay of the first moment.
    #[schemars(range(min = 0.0, max = 0.9999))]
    pub beta1: f64,
    /// Decay of the second moment.
    #[schemars(range(min = 0.0, max = 0.99999))]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[schemars(range(min = 1e-12, max = 1.0))]
    pub epsilon: f64,
    /// Share of the steps that warm up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup: f64,
    /// The last learning rate as a share of the highest.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub floor: f64,
    /// Gradients are scaled down to this norm.
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub gradient_norm: f64,
}

impl Default for Optimiser {
    fn default() -> Self {
        Self {
            weight_decay: 0.05,
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-6,
            warmup: 0.08,
            floor: 0.02,
            gradient_norm: 1.0,
        }
    }
}

impl Optimiser {
    fn options(&self) -> AdamWOptions {
        AdamWOptions {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
        }
    }
}

/// The order of an epoch: a pure function of seed and epoch.
fn epoch_order(seed: i64, epoch: i64, rows: &[usize]) -> Vec<usize> {
    let key = Key::derive("pipe epoch order/1", seed as u64, &[(epoch as u64).into()]);
    key.permutation(rows.len()).into_iter().map(|place| rows[place]).collect()
}
