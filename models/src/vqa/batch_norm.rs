//! Batch normalisation (Ioffe and Szegedy 2015) that is trained.

use candle_core::{Result, Tensor, Var};

use super::Mode;
use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::ops::{RunningStatistics, batch_norm, batch_norm_of_batch};
use crate::weights::Weights;

/// Added to variances.
pub(super) const EPSILON: f64 = 1e-5;

/// A batch norm over the last dimension.
#[derive(Clone, Debug)]
pub(super) struct BatchNorm {
    gamma: Tensor,
    beta: Tensor,
    mean: Var,
    variance: Var,
    /// Training passes so far.
    passes: Var,
    /// What a batch counts in the running statistics.
    momentum: f64,
}

impl BatchNorm {
    /// Takes `{name}.weight`, `bias`, `running_mean`, `running_var` and, if there is one, `num_batches_tracked`.
    pub(super) fn load(
        weights: &mut Weights,
        name: &str,
        channels: usize,
        momentum: f64,
    ) -> std::result::Result<Self, CheckpointError> {
        let shape = [channels];
        Ok(Self {
            gamma: weights.begin(&format!("{name}.weight"), &shape, Start::Constant(1.0))?,
            beta: weights.begin(&format!("{name}.bias"), &shape, Start::Constant(0.0))?,
            mean: weights.running(&format!("{name}.running_mean"), &shape, Start::Constant(0.0))?,
            variance: weights.running(&format!("{name}.running_var"), &shape, Start::Constant(1.0))?,
            passes: weights.count(&format!("{name}.num_batches_tracked"))?,
            momentum,
        })
    }

    /// `[..., channels]` to the same shape. A training pass normalises with the statistics of the batch, which
    /// the running ones follow.
    pub(super) fn forward(&self, x: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        if !mode.is_training() {
            let statistics = RunningStatistics {
                mean: self.mean.as_detached_tensor(),
                variance: self.variance.as_detached_tensor(),
                epsilon: EPSILON,
            };
            return batch_norm(x, &self.gamma, &self.beta, &statistics);
        }
        let (y, mean, variance) = batch_norm_of_batch(x, &self.gamma, &self.beta, EPSILON)?;
        let count = (x.elem_count() / x.dims().last().copied().unwrap_or(1).max(1)) as f64;
        // The running variance is that of the population: unbiased.
        let unbiased = (variance * (count / (count - 1.0).max(1.0)))?;
        self.follow(&self.mean, &mean)?;
        self.follow(&self.variance, &unbiased)?;
        let passes = self.passes.to_scalar::<i64>()? + 1;
        self.passes.set(&Tensor::new(passes, self.passes.device())?)?;
        Ok(y)
    }

    fn follow(&self, running: &Var, batch: &Tensor) -> Result<()> {
        let kept = (running.as_detached_tensor() * (1.0 - self.momentum))?;
        running.set(&(kept + (batch.detach() * self.momentum)?)?)
    }
}
