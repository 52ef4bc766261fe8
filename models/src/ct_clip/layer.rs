//! A layer of the spatial and temporal transformers: position by convolution, cosine attention, gated
//! perceptron.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::config::CtVitConfig;
use crate::MaybeProbe;
use crate::checkpoint::CheckpointError;
use crate::layers::{LayerNorm, observed_attention};
use crate::ops::{Padding3, Scores, depthwise_conv3d, geglu, linear, recompute, scaled_unit};
use crate::probe::{inside, observe};
use crate::weights::Weights;

/// Epsilon of every layer norm of the image tower.
pub(super) const EPSILON: f64 = 1e-5;
/// The factor on cosines.
const SCALE: f64 = 8.0;
/// Both zeros of the kernel's depth stand in front: a step sees itself and the two before.
const CAUSAL: Padding3 = [[2, 0], [1, 1], [1, 1]];
const KERNEL: usize = 3;

/// Takes `{name}.gamma`, and `{name}.beta`, which is a buffer of zeros.
pub(super) fn norm(
    weights: &mut Weights,
    name: &str,
    width: usize,
) -> std::result::Result<LayerNorm, CheckpointError> {
    Ok(LayerNorm {
        weight: weights.take(&format!("{name}.gamma"), &[width])?,
        bias: weights.buffer(&format!("{name}.beta"), &[width])?,
        epsilon: EPSILON,
    })
}

/// x += position x; x += attention x; x += perceptron x.
#[derive(Clone, Debug)]
struct Layer {
    /// `[width, 1, 3, 3, 3]`.
    position: Tensor,
    position_bias: Tensor,
    norm: LayerNorm,
    /// `[head width]`.
    query_scale: Tensor,
    key_scale: Tensor,
    /// `[heads * head width, width]`, of the normed input.
    query: Tensor,
    /// `[2 * heads * head width, width]`, of the input that is not normed.
    key_value: Tensor,
    out: Tensor,
    perceptron_norm: LayerNorm,
    /// `[2 * hidden, width]`: values, then gates.
    gated: Tensor,
    narrowed: Tensor,
}

/// Number of tensors of a layer.
const PARAMETERS: usize = 13;

impl Layer {
    fn load(
        weights: &mut Weights,
        prefix: &str,
        config: &CtVitConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let (width, inner) = (config.width, config.heads * config.head_width);
        // No key is added and nothing is attended across, so these do nothing.
        weights.carry(&format!("{prefix}.1.null_kv"));
        weights.carry_all(&format!("{prefix}.1.context_norm."));
        let norm = norm(weights, &format!("{prefix}.1.norm"), width)?;
        let perceptron_norm = LayerNorm::load(weights, &format!("{prefix}.3.0"), width, EPSILON)?;
        let mut take = |name: &str, shape: &[usize]| weights.take(&format!("{prefix}.{name}"), shape);
        Ok(Self {
            position: take("0.dsconv.weight", &[width, 1, KERNEL, KERNEL, KERNEL])?,
            position_bias: take("0.dsconv.bias", &[width])?,
            norm,
            query_scale: take("1.q_scale", &[config.head_width])?,
            key_scale: take("1.k_scale", &[config.head_width])?,
            query: take("1.to_q.weight", &[inner, width])?,
            key_value: take("1.to_kv.weight", &[2 * inner, width])?,
            out: take("1.to_out.weight", &[width, inner])?,
            perceptron_norm,
            gated: take("3.1.weight", &[2 * config.hidden, width])?,
            narrowed: take("3.4.weight", &[width, config.hidden])?,
        })
    }

    /// All tensors, in the order of [`Self::with`].
    fn parameters(&self) -> [Tensor; PARAMETERS] {
        [
            &self.position,
            &self.position_bias,
            &self.norm.weight,
            &self.norm.bias,
            &self.query_scale,
            &self.key_scale,
            &self.query,
            &self.key_value,
            &self.out,
            &self.perceptron_norm.weight,
            &self.perceptron_norm.bias,
            &self.gated,
            &self.narrowed,
        ]
        .map(Tensor::clone)
    }

    /// The layer of these tensors.
    fn with(parameters: &[Tensor; PARAMETERS]) -> Self {
        let [
            position,
            position_bias,
            norm,
            norm_bias,
            query_scale,
            key_scale,
            query,
            key_value,
            out,
            perceptron_norm,
            perceptron_bias,
            gated,
            narrowed,
        ] = parameters.clone();
        let norm = LayerNorm { weight: norm, bias: norm_bias, epsilon: EPSILON };
        let perceptron_norm = LayerNorm { weight: perceptron_norm, bias: perceptron_bias, epsilon: EPSILON };
        Self {
            position,
            position_bias,
            norm,
            query_scale,
            key_scale,
            query,
            key_value,
            out,
            perceptron_norm,
            gated,
            narrowed,
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        volume: [usize; 4],
        bias: Option<&Tensor>,
        name: &str,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let (sequences, tokens, width) = x.dims3()?;
        let [batch, steps, rows, columns] = volume;
        // In the temporal transformer the buffer is ordered place by place, and seen here as if it were
        // step by step: so the published weights were trained.
        let positions = depthwise_conv3d(
            &x.reshape((batch, steps, rows, columns, width))?,
            &self.position,
            &self.position_bias,
            CAUSAL,
        )?;
        let x = (positions.reshape((sequences, tokens, width))? + x)?;
        let x = observe(probe, &format!("{name}.positioned"), x)?;
        let normed = observe(probe, &format!("{name}.layer_norm1"), self.norm.forward(&x)?)?;
        let head = self.query_scale.dim(0)?;
        let query = linear(&normed, &self.query, None)?;
        let key_value = linear(&x, &self.key_value, None)?;
        let inner = query.dim(2)?;
        let unit = |x: &Tensor, scale: &Tensor| {
            let heads = x.reshape((sequences, tokens, inner / head, head))?;
            scaled_unit(&heads, scale)?.reshape((sequences, tokens, inner))
        };
        let key = key_value.narrow(2, 0, inner)?.contiguous()?;
        let packed = Tensor::cat(
            &[
                &unit(&query, &self.query_scale)?,
                &unit(&key, &self.key_scale)?,
                &key_value.narrow(2, inner, inner)?,
            ],
            2,
        )?;
        let scores = Scores { scale: Some(SCALE), bias, ..Scores::new(inner / head) };
        let attended = observed_attention(&packed, &scores, &format!("{name}.attention"), 0.0, probe)?;
        let x = (linear(&attended, &self.out, None)? + x)?;
        let x = observe(probe, &format!("{name}.attended"), x)?;
        let hidden = geglu(&linear(&self.perceptron_norm.forward(&x)?, &self.gated, None)?)?;
        linear(&hidden, &self.narrowed, None)? + x
    }
}

/// The layers over one kind of sequences, and the norm behind them.
#[derive(Debug)]
pub(super) struct Transformer {
    layers: Vec<Layer>,
    norm: LayerNorm,
    /// The name for probes: `vision.spatial`.
    name: &'static str,
}

impl Transformer {
    pub(super) fn load(
        weights: &mut Weights,
        prefix: &str,
        layers: usize,
        config: &CtVitConfig,
        name: &'static str,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(Self {
            layers: (0..layers)
                .map(|layer| Layer::load(weights, &format!("{prefix}.layers.{layer}"), config))
                .collect::<std::result::Result<_, _>>()?,
            norm: norm(weights, &format!("{prefix}.norm_out"), config.width)?,
            name,
        })
    }

    /// `[sequences, tokens, width]` to the same shape; `volume` is batch, steps, rows and columns, in which
    /// the convolutions see the tokens; `bias` is added to scores.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        volume: [usize; 4],
        bias: Option<&Tensor>,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let name = format!("{}.{index}", self.name);
            x = match inside(probe, &name) {
                Some(probe) => layer.forward(&x, volume, bias, &name, Some(probe))?,
                None => {
                    let mut parameters = layer.parameters().to_vec();
                    parameters.extend(bias.cloned());
                    let part = move |x: &Tensor, parameters: &[Tensor]| {
                        let (layer, bias) = parameters
                            .split_first_chunk::<PARAMETERS>()
                            .expect("a layer has all its parameters");
                        Layer::with(layer).forward(x, volume, bias.first(), "", None)
                    };
                    recompute(&x, &parameters, Arc::new(part))?
                }
            };
            x = observe(probe, &name, x)?;
        }
        observe(probe, self.name, self.norm.forward(&x)?)
    }

    /// Names of the attention maps.
    pub(super) fn attention_names(&self) -> impl Iterator<Item = String> {
        (0..self.layers.len()).map(|layer| format!("{}.{layer}.attention", self.name))
    }
}
