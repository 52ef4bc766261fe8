//! The pre-norm transformer block of both towers.

use candle_core::{Result, Tensor};

use crate::checkpoint::{CheckpointError, Weights};
use crate::ops::{activate, attention, composed, layer_norm, linear};
use crate::{Activation, MaybeProbe};

/// What all blocks of a tower have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockShape {
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) activation: Activation,
    pub(crate) epsilon: f64,
    pub(crate) causal: bool,
}

/// x += attention(norm1 x); x += fc2 activation(fc1 norm2 x).
#[derive(Debug)]
pub(crate) struct Block {
    shape: BlockShape,
    norm1: [Tensor; 2],
    /// Queries, keys, values: weights `[width, width]` and biases `[width]`.
    qkv: [[Tensor; 2]; 3],
    out: [Tensor; 2],
    norm2: [Tensor; 2],
    fc1: [Tensor; 2],
    fc2: [Tensor; 2],
}

impl Block {
    /// Takes the tensors of `prefix` (`text_model.encoder.layers.0`) from `weights`.
    pub(crate) fn load(
        weights: &mut Weights,
        prefix: &str,
        shape: BlockShape,
    ) -> std::result::Result<Self, CheckpointError> {
        let BlockShape { width, hidden, .. } = shape;
        let mut pair = |name: &str, rows: usize, columns: Option<usize>| {
            let weight = match columns {
                Some(columns) => weights.take(&format!("{prefix}.{name}.weight"), &[rows, columns])?,
                None => weights.take(&format!("{prefix}.{name}.weight"), &[rows])?,
            };
            Ok::<_, CheckpointError>([weight, weights.take(&format!("{prefix}.{name}.bias"), &[rows])?])
        };
        Ok(Self {
            shape,
            norm1: pair("layer_norm1", width, None)?,
            qkv: [
                pair("self_attn.q_proj", width, Some(width))?,
                pair("self_attn.k_proj", width, Some(width))?,
                pair("self_attn.v_proj", width, Some(width))?,
            ],
            out: pair("self_attn.out_proj", width, Some(width))?,
            norm2: pair("layer_norm2", width, None)?,
            fc1: pair("mlp.fc1", hidden, Some(width))?,
            fc2: pair("mlp.fc2", width, Some(hidden))?,
        })
    }

    /// `[batch, tokens, width]` to the same shape; `name` is that of the block for probes.
    pub(crate) fn forward(&self, x: &Tensor, name: &str, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let observe = |part: &str, value: Tensor| match probe {
            Some(probe) => probe.activation(&format!("{name}{part}"), value),
            None => Ok(value),
        };
        let normed = observe(".layer_norm1", self.norm(x, &self.norm1)?)?;
        let packed = self.packed(&normed)?;
        let attended = match probe {
            Some(probe) if probe.wants_attention() => {
                let probabilities =
                    composed::attention_probabilities(&packed, self.shape.heads, self.shape.causal)?;
                let probabilities = probe.attention(&format!("{name}.attention"), probabilities)?;
                composed::attend(&packed, &probabilities)?
            }
            _ => attention(&packed, self.shape.heads, self.shape.causal)?,
        };
        let x = (x + linear(&attended, &self.out[0], Some(&self.out[1]))?)?;
        let normed = observe(".layer_norm2", self.norm(&x, &self.norm2)?)?;
        let hidden = linear(&normed, &self.fc1[0], Some(&self.fc1[1]))?;
        let replaced = match probe {
            Some(probe) => {
                probe.nonlinearity(&format!("{name}.activation"), self.shape.activation, &hidden)?
            }
            None => None,
        };
        let activated = match replaced {
            Some(replaced) => replaced,
            None => activate(&hidden, self.shape.activation)?,
        };
        observe("", (x + linear(&activated, &self.fc2[0], Some(&self.fc2[1]))?)?)
    }

    fn norm(&self, x: &Tensor, norm: &[Tensor; 2]) -> Result<Tensor> {
        layer_norm(x, &norm[0], &norm[1], self.shape.epsilon)
    }

    /// Queries, keys and values beside each other, by one product: `[batch, tokens, 3 width]`.
    fn packed(&self, x: &Tensor) -> Result<Tensor> {
        let weights: Vec<&Tensor> = self.qkv.iter().map(|pair| &pair[0]).collect();
        let biases: Vec<&Tensor> = self.qkv.iter().map(|pair| &pair[1]).collect();
        linear(x, &Tensor::cat(&weights, 0)?, Some(&Tensor::cat(&biases, 0)?))
    }
}
