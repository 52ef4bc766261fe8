//! Hook points: what an observer may do inside a forward pass.
//!
//! A model calls the probe at named places. Without a probe a forward pass may take a fused, faster
//! path; with one it takes the path on which every activation exists. Attribution methods are
//! written once, over this trait, for every architecture.
//!
//! What a probe sees is f32 on the CPU, on whatever device and in whatever precision the model computes;
//! what it returns goes back there, and gradients flow through both ways.
//!
//! Names, for any tower: `vision.embeddings`, `vision.layers.3.layer_norm1`, `vision.layers.3`
//! (the block's output), `vision.layers.3.attention` (attention maps), `text.layers.0`, ... A residual
//! network has `vision.stem`, `vision.layer1` to `vision.layer4`, `vision.layer4.2` (a block's output),
//! `vision.layer4.2.bn3` (the output of a batch norm); a CT-ViT `vision.spatial.0`, `vision.temporal.0`.
//!
//! Training is a probe too: [`crate::train::Dropout`] drops values where the original does. So a model
//! has no mode that could be forgotten: a pass without a probe is inference.

use candle_core::{Result, Tensor};

use crate::device::{enter, leave};
use crate::layer::Layer;
use crate::ops::activate;

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

    /// Whether the layers between nonlinearities are wanted. A convolutional network then computes them
    /// one by one, nothing folded.
    fn wants_layers(&self) -> bool {
        false
    }

    /// Replaces a layer (forward and backward) at `name`; `None` keeps the model's own. Only called if
    /// layers are wanted.
    ///
    /// # Errors
    /// Whatever tensor operation the probe does.
    fn layer(&self, _name: &str, _layer: &Layer, _input: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Replaces the sum of a residual block's path and its identity; `None` keeps the model's own. Only
    /// called if layers are wanted.
    ///
    /// # Errors
    /// Whatever tensor operation the probe does.
    fn sum(&self, _name: &str, _path: &Tensor, _identity: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// What becomes of `value` where the original drops values at `rate` while it is trained. The
    /// default, inference, changes nothing.
    ///
    /// # Errors
    /// Whatever tensor operation the probe does.
    fn dropout(&self, _name: &str, _rate: f64, value: Tensor) -> Result<Tensor> {
        Ok(value)
    }

    /// Whether this pass drops values: attention whose probabilities are dropped is then computed
    /// unfused.
    fn drops_values(&self) -> bool {
        false
    }

    /// Whether batch norms whose parameters learn take the statistics of the batch, which their running ones
    /// follow. Such a probe sees nothing of a convolutional network.
    fn trains_norms(&self) -> bool {
        false
    }

    /// Whether the probe wants to be called inside the block `name`. A block of no interest may
    /// take the fused path, or be computed again in the backward pass instead of being kept.
    fn looks_into(&self, _name: &str) -> bool {
        true
    }
}

/// A probe, or none: none is the fast path.
pub type MaybeProbe<'a> = Option<&'a dyn Probe>;

/// Shows an activation to the probe, if there is one.
pub(crate) fn observe(probe: MaybeProbe<'_>, name: &str, value: Tensor) -> Result<Tensor> {
    match probe {
        Some(probe) => seen(&value, |value| probe.activation(name, value)),
        None => Ok(value),
    }
}

/// A value as `look` returns it, which sees it in f32 on the CPU, wherever and however the model computes.
pub(crate) fn seen(value: &Tensor, look: impl FnOnce(Tensor) -> Result<Tensor>) -> Result<Tensor> {
    enter(&look(leave(value)?)?, value)
}

/// Applies a nonlinearity, or what the probe puts in its place.
pub(crate) fn nonlinearity(
    probe: MaybeProbe<'_>,
    name: &str,
    kind: Activation,
    input: &Tensor,
) -> Result<Tensor> {
    match probe {
        Some(probe) => match probe.nonlinearity(name, kind, &leave(input)?)? {
            Some(replaced) => enter(&replaced, input),
            None => activate(input, kind),
        },
        None => activate(input, kind),
    }
}

/// The sum of a residual block, or what a probe that wants layers puts in its place.
pub(crate) fn residual_sum(
    probe: MaybeProbe<'_>,
    name: &str,
    path: &Tensor,
    identity: &Tensor,
) -> Result<Tensor> {
    let replaced = match probe.filter(|probe| probe.wants_layers()) {
        Some(probe) => probe.sum(name, &leave(path)?, &leave(identity)?)?,
        None => None,
    };
    match replaced {
        Some(sum) => enter(&sum, path),
        None => path + identity,
    }
}

/// Drops values while training, where the original has a rate above 0.
pub(crate) fn dropout(probe: MaybeProbe<'_>, name: &str, rate: f64, value: Tensor) -> Result<Tensor> {
    match probe {
        Some(probe) if rate > 0.0 => probe.dropout(name, rate, value),
        _ => Ok(value),
    }
}

/// The probe, if it wants to be called inside the block `name`.
pub(crate) fn inside<'a>(probe: MaybeProbe<'a>, name: &str) -> MaybeProbe<'a> {
    probe.filter(|probe| probe.looks_into(name) || probe.drops_values())
}
