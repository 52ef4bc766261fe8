//! The pre-norm transformer block of CLIP's towers, timm's ViT and PMC-CLIP's fusion module.

use candle_core::{Result, Tensor};

use super::attention::{Qkv, observed_attention};
use super::{LayerNorm, Linear};
use crate::checkpoint::CheckpointError;
use crate::ops::{BlockWeights, Scores, frozen_block, frozen_block_at, takes_block};
use crate::probe::{dropout, inside, nonlinearity, observe};
use crate::weights::Weights;
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

/// How a checkpoint names the parts of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockLayout {
    /// `layer_norm1`, `self_attn.q_proj`, `mlp.fc1`, ...
    HuggingFace,
    /// `ln_1`, `attn.in_proj_weight`, `mlp.c_fc`, ...
    OpenAi,
    /// `norm1`, `attn.qkv`, `mlp.fc1`, ...
    Timm,
}

/// x += attention(norm1 x); x += fc2 activation(fc1 norm2 x).
#[derive(Debug)]
pub(crate) struct Block {
    shape: BlockShape,
    norm1: LayerNorm,
    qkv: Qkv,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    /// Takes the tensors of `prefix` (`text_model.encoder.layers.0`) from `weights`.
    pub(crate) fn load(
        weights: &mut Weights,
        prefix: &str,
        layout: BlockLayout,
        shape: BlockShape,
    ) -> std::result::Result<Self, CheckpointError> {
        let BlockShape { width, hidden, epsilon, .. } = shape;
        let [norm1, norm2, out, fc1, fc2] = match layout {
            BlockLayout::HuggingFace => {
                ["layer_norm1", "layer_norm2", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
            }
            BlockLayout::OpenAi => ["ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"],
            BlockLayout::Timm => ["norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"],
        }
        .map(|name| format!("{prefix}.{name}"));
        let qkv = match layout {
            BlockLayout::HuggingFace => {
                let mut part = |name: &str| {
                    Linear::load(weights, &format!("{prefix}.self_attn.{name}_proj"), width, width)
                };
                Qkv::separate([part("q")?, part("k")?, part("v")?])
            }
            BlockLayout::OpenAi => Qkv::Packed(Linear {
                weight: weights.take(&format!("{prefix}.attn.in_proj_weight"), &[3 * width, width])?,
                bias: Some(weights.take(&format!("{prefix}.attn.in_proj_bias"), &[3 * width])?),
            }),
            BlockLayout::Timm => {
                Qkv::Packed(Linear::load(weights, &format!("{prefix}.attn.qkv"), 3 * width, width)?)
            }
        };
        Ok(Self {
            shape,
            norm1: LayerNorm::load(weights, &norm1, width, epsilon)?,
            qkv,
            out: Linear::load(weights, &out, width, width)?,
            norm2: LayerNorm::load(weights, &norm2, width, epsilon)?,
            fc1: Linear::load(weights, &fc1, hidden, width)?,
            fc2: Linear::load(weights, &fc2, width, hidden)?,
        })
    }

    /// `[batch, tokens, width]` to the same shape; `name` is that of the block for probes.
    pub(crate) fn forward(&self, x: &Tensor, name: &str, probe: MaybeProbe<'_>) -> Result<Tensor> {
        self.forward_masked(x, None, 0.0, name, probe)
    }

    /// What [`Self::forward`] gives for one token of each sample, `[batch, width]`, without what only other tokens need: enough
    /// of a last block of which a tower reads no more. None where it is not to be had alone: parameters are trained, or a
    /// probe looks.
    pub(crate) fn frozen_at(
        &self,
        x: &Tensor,
        tokens: &[usize],
        probe: MaybeProbe<'_>,
    ) -> Result<Option<Tensor>> {
        let Some(weights) = self.weights()?.filter(|weights| probe.is_none() && takes_block(x, weights))
        else {
            return Ok(None);
        };
        let scores = Scores { causal: self.shape.causal, ..Scores::new(self.shape.heads) };
        frozen_block_at(x, &weights, &scores, tokens).map(Some)
    }

    /// [`Self::forward`], seeing only tokens where `mask` `[batch, tokens]` is not 0; while training, attention and the
    /// results of both halves lose values at `rate`.
    pub(crate) fn forward_masked(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        rate: f64,
        name: &str,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let outside = probe;
        let probe = inside(probe, name);
        let scores = Scores { causal: self.shape.causal, mask, ..Scores::new(self.shape.heads) };
        if probe.is_none()
            && let Some(weights) = self.weights()?
            && takes_block(x, &weights)
        {
            return observe(outside, name, frozen_block(x, &weights, &scores)?);
        }
        let normed = observe(probe, &format!("{name}.layer_norm1"), self.norm1.forward(x)?)?;
        let packed = self.qkv.forward(&normed)?;
        let attended = observed_attention(&packed, &scores, &format!("{name}.attention"), rate, probe)?;
        let x = (x + dropout(probe, &format!("{name}.out"), rate, self.out.forward(&attended)?)?)?;
        let normed = observe(probe, &format!("{name}.layer_norm2"), self.norm2.forward(&x)?)?;
        let hidden = self.fc1.forward(&normed)?;
        let hidden = nonlinearity(probe, &format!("{name}.activation"), self.shape.activation, &hidden)?;
        let added = dropout(probe, &format!("{name}.mlp"), rate, self.fc2.forward(&hidden)?)?;
        observe(outside, name, (x + added)?)
    }

    /// The parameters as one operation takes them; none if they are trained or a layer has no bias.
    fn weights(&self) -> Result<Option<BlockWeights>> {
        if !self.qkv.is_frozen() {
            return Ok(None);
        }
        let norm = |norm: &LayerNorm| [norm.weight.clone(), norm.bias.clone()];
        let linear = |linear: &Linear| linear.bias.clone().map(|bias| [linear.weight.clone(), bias]);
        let linears = [linear(&self.qkv.packed()?), linear(&self.out), linear(&self.fc1), linear(&self.fc2)];
        let [Some(qkv), Some(out), Some(fc1), Some(fc2)] = linears else { return Ok(None) };
        let (norm1, norm2) = (norm(&self.norm1), norm(&self.norm2));
        let BlockShape { activation, epsilon, .. } = self.shape;
        Ok(Some(BlockWeights { norm1, qkv, out, norm2, fc1, fc2, activation, epsilon }))
    }
}
