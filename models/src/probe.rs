//! Hook points: what an observer may do inside a forward pass.
//!
//! A model calls the probe at named places. Without a probe a forward pass may take a fused, faster
//! path; with one it takes the path on which every activation exists. Attribution methods are
//! written once, over this trait, for every architecture.
//!
//! Names, for any tower: `vision.embeddings`, `vision.layers.3.layer_norm1`, `vision.layers.3`
//! (the block's output), `vision.layers.3.attention` (attention maps), `text.layers.0`, ...

use candle_core::{Result, Tensor};

/// The nonlinearities whose backward rule a probe may replace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x * sigmoid(1.702 x).
    QuickGelu,
    /// x * Phi(x), with the exact error function.
    Gelu,
}

/// An observer of a forward pass. Every method's default observes nothing.
pub trait Probe {
    /// Sees the activation `name` and returns what the model goes on with: the same tensor, the
    /// tensor plus a zero-valued variable (whose gradient is then the activation's), or a variable
    /// that cuts the graph there.
    ///
    /// # Errors
    /// Whatever tensor operation the probe does.
    fn activation(&self, _name: &str, value: Tensor) -> Result<Tensor> {
        Ok(value)
    }

    /// Whether attention maps are wanted; if so attention is computed unfused.
    fn wants_attention(&self) -> bool {
        false
    }

    /// Sees the attention probabilities of a layer, `[batch, heads, queries, keys]`, and returns
    /// what the model goes on with.
    ///
    /// # Errors
    /// Whatever tensor operation the probe does.
    fn attention(&self, _name: &str, probabilities: Tensor) -> Result<Tensor> {
        Ok(probabilities)
    }

    /// Replaces a nonlinearity (forward and backward) at `name`; `None` keeps the model's own.
    ///
    /// # Errors
    /// Whatever tensor operation the probe does.
    fn nonlinearity(&self, _name: &str, _kind: Activation, _input: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

/// A probe, or none: none is the fast path.
pub type MaybeProbe<'a> = Option<&'a dyn Probe>;
