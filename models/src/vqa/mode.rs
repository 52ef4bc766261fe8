//! What a pass is for.

use std::fmt;

use candle_core::{Result, Tensor};

use crate::train::Dropout;
use crate::{MaybeProbe, Probe};

/// What a forward pass is for: batch norms and dropout differ.
#[derive(Clone, Copy, Default)]
pub enum Mode<'a> {
    /// Running statistics, nothing dropped, nothing changed.
    #[default]
    Evaluation,
    /// The same, with a probe that sees the model's attention and may change it.
    Observed(&'a dyn Probe),
    /// Statistics of the batch, which the running ones follow; values are dropped, if there is a dropout.
    Training(Option<&'a Dropout>),
}

impl fmt::Debug for Mode<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Evaluation => "Evaluation",
            Self::Observed(_) => "Observed",
            Self::Training(_) => "Training",
        })
    }
}

impl<'a> Mode<'a> {
    /// Whether batch norms take the statistics of the batch.
    pub fn is_training(self) -> bool {
        matches!(self, Self::Training(_))
    }

    /// The dropout as a probe of a pass.
    pub(crate) fn probe(self) -> MaybeProbe<'a> {
        match self {
            Self::Training(Some(dropout)) => Some(dropout),
            Self::Observed(probe) => Some(probe),
            _ => None,
        }
    }

    /// Shows attention maps `[batch, heads, queries, keys]` of the place `name`; what the model goes on with.
    pub(crate) fn attention(self, name: &str, maps: Tensor) -> Result<Tensor> {
        match self {
            Self::Observed(probe) => probe.attention(name, maps),
            _ => Ok(maps),
        }
    }

    /// Drops values at `rate` at the place `name`, if the pass drops any.
    pub(crate) fn dropout(self, name: &str, rate: f64, value: Tensor) -> Result<Tensor> {
        match self {
            Self::Training(Some(dropout)) if rate > 0.0 => dropout.dropout(name, rate, value),
            _ => Ok(value),
        }
    }
}
