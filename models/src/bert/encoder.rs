//! Embeddings and the post-norm layers.

use candle_core::{DType, Result, Tensor, bail};

use super::BertConfig;
use crate::checkpoint::CheckpointError;
use crate::layers::{LayerNorm, Linear, Qkv, observed_attention};
use crate::ops::{Scores, activate, attention_at};
use crate::probe::{dropout, inside, nonlinearity, observe};
use crate::weights::Weights;
use crate::{Activation, MaybeProbe};

/// The encoder, with the dense layer of the original's pooler if there is one.
#[derive(Debug)]
pub struct Bert {
    config: BertConfig,
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Option<Linear>,
}

/// x = norm(x + attention x); x = norm(x + output gelu(intermediate x)).
#[derive(Debug)]
struct Layer {
    qkv: Qkv,
    attended: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Layer {
    fn load(
        weights: &mut Weights,
        prefix: &str,
        config: &BertConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let (width, hidden) = (config.hidden_size, config.intermediate_size);
        let mut part =
            |name: &str| Linear::load(weights, &format!("{prefix}.attention.self.{name}"), width, width);
        let qkv = Qkv::separate([part("query")?, part("key")?, part("value")?]);
        let epsilon = config.layer_norm_eps;
        let name = |part: &str| format!("{prefix}.{part}");
        Ok(Self {
            qkv,
            attended: Linear::load(weights, &name("attention.output.dense"), width, width)?,
            attention_norm: LayerNorm::load(weights, &name("attention.output.LayerNorm"), width, epsilon)?,
            intermediate: Linear::load(weights, &name("intermediate.dense"), hidden, width)?,
            output: Linear::load(weights, &name("output.dense"), width, hidden)?,
            output_norm: LayerNorm::load(weights, &name("output.LayerNorm"), width, epsilon)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        config: &BertConfig,
        mask: Option<&Tensor>,
        name: &str,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let outside = probe;
        let probe = inside(probe, name);
        let rate = config.hidden_dropout_prob;
        let scores = Scores { mask, ..Scores::new(config.num_attention_heads) };
        let attended = observed_attention(
            &self.qkv.forward(x)?,
            &scores,
            &format!("{name}.attention"),
            config.attention_probs_dropout_prob,
            probe,
        )?;
        let attended = dropout(probe, &format!("{name}.attended"), rate, self.attended.forward(&attended)?)?;
        let x = self.attention_norm.forward(&(attended + x)?)?;
        let x = observe(probe, &format!("{name}.layer_norm1"), x)?;
        let hidden = self.intermediate.forward(&x)?;
        let hidden = nonlinearity(probe, &format!("{name}.activation"), Activation::Gelu, &hidden)?;
        let hidden = dropout(probe, &format!("{name}.output"), rate, self.output.forward(&hidden)?)?;
        observe(outside, name, self.output_norm.forward(&(hidden + x)?)?)
    }

    /// What [`Self::forward`] gives for the first token of each sample, `[batch, width]`, without what only other tokens need.
    /// None where it is not to be had alone: parameters are trained, or a probe looks.
    fn frozen_first(
        &self,
        x: &Tensor,
        config: &BertConfig,
        mask: Option<&Tensor>,
        probe: MaybeProbe<'_>,
    ) -> Result<Option<Tensor>> {
        let is_frozen = self.qkv.is_frozen()
            && [&self.attention_norm, &self.output_norm].into_iter().all(LayerNorm::is_frozen)
            && [&self.attended, &self.intermediate, &self.output].into_iter().all(Linear::is_frozen);
        // A GPU's products have other bits with other numbers of rows.
        if probe.is_some() || !is_frozen || !x.device().is_cpu() {
            return Ok(None);
        }
        let scores = Scores { mask, ..Scores::new(config.num_attention_heads) };
        let attended = attention_at(&self.qkv.forward(x)?, &scores, &vec![0; x.dim(0)?])?;
        let x = self.attention_norm.forward(&(self.attended.forward(&attended)? + first(x)?)?)?;
        let hidden = activate(&self.intermediate.forward(&x)?, Activation::Gelu)?;
        self.output_norm.forward(&(self.output.forward(&hidden)? + x)?).map(Some)
    }
}

impl Bert {
    /// Takes the tensors of `prefix` (empty or ending in a dot). The pooler is taken if it is there and
    /// `with_pooler` says so; else it is carried along.
    pub(crate) fn load(
        weights: &mut Weights,
        prefix: &str,
        config: &BertConfig,
        with_pooler: bool,
    ) -> std::result::Result<Self, CheckpointError> {
        let width = config.hidden_size;
        let name = |part: &str| format!("{prefix}{part}");
        // Buffers of 0, 1, 2, ... and of zeros, in files of older versions.
        weights.ignore(&name("embeddings.position_ids"));
        weights.ignore(&name("embeddings.token_type_ids"));
        let mut table = |table: &str, rows: usize| {
            weights.take(&format!("{prefix}embeddings.{table}_embeddings.weight"), &[rows, width])
        };
        let words = table("word", config.vocab_size)?;
        let positions = table("position", config.max_position_embeddings)?;
        let types = table("token_type", config.type_vocab_size)?;
        let norm = LayerNorm::load(weights, &name("embeddings.LayerNorm"), width, config.layer_norm_eps)?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Layer::load(weights, &name(&format!("encoder.layer.{layer}")), config))
            .collect::<std::result::Result<_, _>>()?;
        let pooler = if with_pooler && weights.has(&name("pooler.dense.weight")) {
            Some(Linear::load(weights, &name("pooler.dense"), width, width)?)
        } else {
            weights.carry_all(&name("pooler."));
            None
        };
        Ok(Self { config: config.clone(), words, positions, types, norm, layers, pooler })
    }

    /// The sizes.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// The word embedding table, `[vocabulary, width]`.
    pub(super) fn words(&self) -> &Tensor {
        &self.words
    }

    /// Rows of the word embedding table: ids `[batch, tokens]` to `[batch, tokens, width]`. As in the
    /// original, the row of the padding id is not trained.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn word_embeddings(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = lookup(&self.words, ids)?;
        if !rows.track_op() {
            return Ok(rows);
        }
        let words = ids.to_device(rows.device())?.to_dtype(DType::U32)?.ne(self.config.pad_token_id)?;
        words.unsqueeze(2)?.broadcast_as(rows.shape())?.contiguous()?.where_cond(&rows, &rows.detach())
    }

    /// The last hidden states `[batch, tokens, width]`, from word embeddings. `mask` `[batch, tokens]` is
    /// 1 where a token is seen; without one all are. `types` are the segments of the tokens; without
    /// them all are of segment 0.
    ///
    /// # Errors
    /// If there are more tokens than positions, the shapes differ, or the probe fails.
    pub fn hidden(
        &self,
        embeddings: &Tensor,
        mask: Option<&Tensor>,
        types: Option<&Tensor>,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let x = self.embedded(embeddings, types, probe)?;
        self.behind(x, &self.layers, mask, probe)
    }

    /// The first of the [last hidden states](Self::hidden) of each text, `[batch, width]`; all tokens are of segment 0.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn first_hidden(
        &self,
        embeddings: &Tensor,
        mask: Option<&Tensor>,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let x = self.embedded(embeddings, None, probe)?;
        let Some((last, before)) = self.layers.split_last() else { return first(&x) };
        let x = self.behind(x, before, mask, probe)?;
        match last.frozen_first(&x, &self.config, mask, probe)? {
            Some(x) => Ok(x),
            None => first(&last.forward(&x, &self.config, mask, &layer_name(before.len()), probe)?),
        }
    }

    /// What the first layer sees.
    fn embedded(&self, embeddings: &Tensor, types: Option<&Tensor>, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let tokens = embeddings.dim(1)?;
        let positions = self.config.max_position_embeddings;
        if tokens > positions {
            bail!("{tokens} tokens do not fit into {positions} positions");
        }
        let dtype = embeddings.dtype();
        let x = embeddings.broadcast_add(&self.positions.narrow(0, 0, tokens)?.to_dtype(dtype)?)?;
        let x = match types {
            Some(types) => (x + lookup(&self.types, types)?.to_dtype(dtype)?)?,
            None => x.broadcast_add(&self.types.narrow(0, 0, 1)?.to_dtype(dtype)?)?,
        };
        let x = observe(probe, "text.embeddings", self.norm.forward(&x)?)?;
        dropout(probe, "text.embeddings", self.config.hidden_dropout_prob, x)
    }

    /// The hidden states behind the first layers, which these are.
    fn behind(
        &self,
        mut x: Tensor,
        layers: &[Layer],
        mask: Option<&Tensor>,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        for (layer, block) in layers.iter().enumerate() {
            x = block.forward(&x, &self.config, mask, &layer_name(layer), probe)?;
        }
        Ok(x)
    }

    /// tanh of the dense layer on the first hidden state, `[batch, width]`: the original's pooler.
    ///
    /// # Errors
    /// If the checkpoint has no pooler.
    pub fn pool(&self, hidden: &Tensor) -> Result<Tensor> {
        self.pool_first(&first(hidden)?)
    }

    /// [`Self::pool`] of the first hidden state itself, `[batch, width]`.
    pub(super) fn pool_first(&self, first: &Tensor) -> Result<Tensor> {
        let Some(pooler) = &self.pooler else { bail!("the checkpoint has no pooler") };
        pooler.forward(first)?.tanh()
    }
}

/// The hidden state of the first token, \[CLS\]: `[batch, tokens, width]` to `[batch, width]`.
pub(super) fn first(hidden: &Tensor) -> Result<Tensor> {
    hidden.narrow(1, 0, 1)?.squeeze(1)
}

/// What probes know a layer by.
fn layer_name(layer: usize) -> String {
    format!("text.layers.{layer}")
}

fn lookup(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (batch, tokens) = ids.dims2()?;
    let flat = ids.to_dtype(DType::U32)?.flatten_all()?.to_device(table.device())?;
    table.index_select(&flat, 0)?.reshape((batch, tokens, table.dim(1)?))
}
