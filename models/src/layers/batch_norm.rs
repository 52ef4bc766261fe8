//! Batch normalisation (Ioffe and Szegedy 2015) that is trained.

use candle_core::{Result, Tensor, Var};

use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::ops::{RunningStatistics, batch_norm, batch_norm_of_batch};
use crate::weights::Weights;

/// Added to variances: PyTorch's default.
pub(crate) const EPSILON: f64 = 1e-5;

/// A batch norm over the last dimension.
#[derive(Clone, Debug)]
pub(crate) struct BatchNorm {
    /// `[channels]`.
    pub(crate) gamma: Tensor,
    /// `[channels]`.
    pub(crate) beta: Tensor,
    mean: Var,
    variance: Var,
    /// Training passes so far, if they are counted.
    passes: Option<Var>,
    /// What a batch counts in the running statistics.
    momentum: f64,
}

impl BatchNorm {
    /// Takes `{name}.weight`, `bias`, `running_mean`, `running_var` and `num_batches_tracked`, which begins at 0 if
    /// there is none.
    pub(crate) fn load(
        weights: &mut Weights,
        name: &str,
        channels: usize,
        momentum: f64,
    ) -> std::result::Result<Self, CheckpointError> {
        let passes = weights.count(&format!("{name}.num_batches_tracked"))?;
        Ok(Self { passes: Some(passes), ..Self::load_as_found(weights, name, channels, momentum)? })
    }

    /// As [`Self::load`]; passes are counted only if there is a `num_batches_tracked`.
    pub(crate) fn load_as_found(
        weights: &mut Weights,
        name: &str,
        channels: usize,
        momentum: f64,
    ) -> std::result::Result<Self, CheckpointError> {
        let shape = [channels];
        let count = format!("{name}.num_batches_tracked");
        Ok(Self {
            gamma: weights.begin(&format!("{name}.weight"), &shape, Start::Constant(1.0))?,
            beta: weights.begin(&format!("{name}.bias"), &shape, Start::Constant(0.0))?,
            mean: weights.running(&format!("{name}.running_mean"), &shape, Start::Constant(0.0))?,
            variance: weights.running(&format!("{name}.running_var"), &shape, Start::Constant(1.0))?,
            passes: if weights.has(&count) { Some(weights.count(&count)?) } else { None },
            momentum,
        })
    }

    /// `[..., channels]` to the same shape. A pass `of_batch` normalises with mean and biased variance of the batch,
    /// which the running statistics follow; any other with the running ones.
    pub(crate) fn forward(&self, x: &Tensor, of_batch: bool) -> Result<Tensor> {
        if !of_batch {
            return batch_norm(x, &self.gamma, &self.beta, &self.statistics());
        }
        let (y, mean, variance) = batch_norm_of_batch(x, &self.gamma, &self.beta, EPSILON)?;
        let count = (x.elem_count() / x.dims().last().copied().unwrap_or(1).max(1)) as f64;
        // The running variance is that of the population: unbiased.
        let unbiased = (variance * (count / (count - 1.0).max(1.0)))?;
        self.follow(&self.mean, &mean)?;
        self.follow(&self.variance, &unbiased)?;
        if let Some(passes) = &self.passes {
            let counted = passes.to_scalar::<i64>()? + 1;
            passes.set(&Tensor::new(counted, passes.device())?)?;
        }
        Ok(y)
    }

    /// The running statistics as they are now.
    pub(crate) fn statistics(&self) -> RunningStatistics {
        RunningStatistics {
            mean: self.mean.as_detached_tensor(),
            variance: self.variance.as_detached_tensor(),
            epsilon: EPSILON,
        }
    }

    fn follow(&self, running: &Var, batch: &Tensor) -> Result<()> {
        let kept = (running.as_detached_tensor() * (1.0 - self.momentum))?;
        let batch = batch.detach().to_dtype(running.dtype())?;
        running.set(&(kept + (batch * self.momentum)?)?)
    }
}
