//! What a training of a classifier may be told.

use pipe_engine::ParameterProblem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::Optimiser;
use super::super::augment::Augment;
use super::super::class_loss::ClassWeights;
use super::super::subset::Scarcity;
use crate::compute::{self, Compute, Precision, auto};

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

/// What batch norms take while they learn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormStatistics {
    /// Mean and variance that are stored with the model, which stay as they are: how a published network is
    /// fine-tuned on few images.
    #[default]
    Stored,
    /// Those of the batch, which the stored ones follow (a tenth of each batch): how a network is trained from
    /// random weights.
    Batch,
}

/// How the head begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeadInit {
    /// With zeros: every class is as likely as the others.
    #[default]
    Zeros,
    /// As PyTorch's linear layers do: uniform up to one over the root of the embedding's width, drawn from the seed.
    Uniform,
}

/// A learning rate that falls in steps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Milestones {
    /// When it falls: shares of the epochs, ascending. An epoch that such a share lies in is learned from at the old rate.
    pub at: Vec<f64>,
    /// What it is multiplied by each time.
    #[schemars(range(min = 1e-6, max = 1.0))]
    pub factor: f64,
}

impl Default for Milestones {
    fn default() -> Self {
        Self { at: vec![0.5, 0.75], factor: 0.1 }
    }
}

impl Milestones {
    /// What the rate is multiplied by in epoch `epoch`, from 0, of so many.
    pub(super) fn factor(&self, epoch: i64, epochs: i64) -> f64 {
        let begin = |share: &f64| (share * epochs as f64).ceil() as i64;
        let falls = self.at.iter().filter(|share| begin(share) <= epoch).count();
        (0..falls).fold(1.0, |product, _| product * self.factor)
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
    /// Full: what batch norms take while they learn. With those of the batch a step is one piece.
    pub batch_norm: NormStatistics,
    /// Adapters and full: how the head begins.
    pub head_init: HeadInit,
    /// Adapters and full: the learning rate falls in steps behind its warm-up, as `{ at = [0.5, 0.75], factor = 0.1 }`,
    /// instead of along a cosine.
    pub milestones: Option<Milestones>,
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
    /// Decides the order of training, the changes of images, and adapters and head before training.
    pub seed: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// Adapters and full: the data type in which the tower computes while it learns, `f32` or `bf16` (mixed precision:
    /// weights, their gradients, norms, sums and losses are of f32). Of CPUs those with AVX512-BF16 gain by `bf16`.
    pub precision: Precision,
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
        Compute::new(&self.device, self.precision)
    }

    /// What is wrong with them together.
    pub(super) fn problems(&self) -> Vec<ParameterProblem> {
        let problem = |path: &str, message: &str, help: &str| ParameterProblem {
            path: path.to_owned(),
            message: message.to_owned(),
            help: Some(help.to_owned()),
        };
        let mut problems: Vec<ParameterProblem> = compute::check(&self.device).into_iter().collect();
        problems.extend(compute::check_mixed(self.precision));
        if self.mode == Mode::LinearProbe && self.precision != Precision::F32 {
            let help = "let `embed` compute in it, and give the probe the `embeddings`";
            problems.push(problem("precision", "no tower learns under a linear probe", help));
        }
        problems.extend(Scarcity::check(self.shots, self.share));
        if self.batch_norm == NormStatistics::Batch {
            if self.mode != Mode::Full {
                let help = "`mode = \"full\"`: what is frozen keeps its statistics";
                problems.push(problem(
                    "batch_norm",
                    "nothing but a whole tower learns its batch norms",
                    help,
                ));
            }
            if self.pieces > 1 {
                let message = "the statistics of a batch are not those of its pieces";
                problems.push(problem("pieces", message, "leave it out, and make `batch` smaller"));
            }
        }
        if let Some(Milestones { at, .. }) = &self.milestones
            && !(at.iter().all(|share| *share > 0.0 && *share < 1.0) && at.is_sorted_by(|a, b| a < b))
        {
            let message = format!("{at:?} are no ascending shares of the epochs");
            problems.push(problem("milestones.at", &message, "numbers between 0 and 1, as `[0.5, 0.75]`"));
        }
        problems
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
            batch_norm: NormStatistics::Stored,
            head_init: HeadInit::Zeros,
            milestones: None,
            class_weights: ClassWeights::Equal,
            patience: None,
            layer_decay: 1.0,
            lr: 1e-4,
            head_lr: None,
            seed: 0,
            device: auto(),
            precision: Precision::F32,
            augment: Augment::default(),
            lora: Lora::default(),
            optimiser: Optimiser::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_fall_at_the_beginning_of_epochs() {
        let factor = |epoch, epochs| Milestones::default().factor(epoch, epochs);
        assert_eq!([0, 49, 50, 74].map(|epoch| factor(epoch, 100)), [1.0, 1.0, 0.1, 0.1]);
        assert!([75, 99].iter().all(|epoch| (factor(*epoch, 100) - 0.01).abs() < 1e-15));
        // Half of three epochs lies in the second, which is learned from at the old rate.
        assert_eq!([0, 1, 2].map(|epoch| factor(epoch, 3)), [1.0, 1.0, 0.1]);
    }
}
