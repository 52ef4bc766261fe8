//! CLIP's causal text transformer.

use candle_core::{DType, Result, Tensor, bail};

use super::config::{EotRule, TextConfig};
use crate::checkpoint::CheckpointError;
use crate::device::{enter, leave};
use crate::layers::{Block, BlockLayout, BlockShape, LayerNorm, Projection};
use crate::model::{AttentionHook, AttentionScope};
use crate::probe::observe;
use crate::weights::Weights;
use crate::{MaybeProbe, TextTower};

/// The text tower of a CLIP.
#[derive(Debug)]
pub struct TextTransformer {
    config: TextConfig,
    /// `[vocabulary, width]`.
    embedding: Tensor,
    /// `[positions, width]`.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    projection: Projection,
}

impl TextTransformer {
    /// The tower in the Hugging Face layout: `text_model` and `text_projection`.
    pub(crate) fn hugging_face(
        weights: &mut Weights,
        config: &TextConfig,
        projection: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let TextConfig { width, vocabulary, positions, epsilon, .. } = *config;
        Ok(Self {
            embedding: weights.take("text_model.embeddings.token_embedding.weight", &[vocabulary, width])?,
            positions: weights
                .take("text_model.embeddings.position_embedding.weight", &[positions, width])?,
            blocks: blocks(weights, "text_model.encoder.layers", BlockLayout::HuggingFace, config)?,
            norm: LayerNorm::load(weights, "text_model.final_layer_norm", width, epsilon)?,
            projection: Projection::Rows(weights.take("text_projection.weight", &[projection, width])?),
            config: config.clone(),
        })
    }

    /// The tower in OpenAI's layout, whose names have no prefix.
    pub(crate) fn open_ai(
        weights: &mut Weights,
        config: &TextConfig,
        projection: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let TextConfig { width, vocabulary, positions, epsilon, .. } = *config;
        Ok(Self {
            embedding: weights.take("token_embedding.weight", &[vocabulary, width])?,
            positions: weights.take("positional_embedding", &[positions, width])?,
            blocks: blocks(weights, "transformer.resblocks", BlockLayout::OpenAi, config)?,
            norm: LayerNorm::load(weights, "ln_final", width, epsilon)?,
            projection: Projection::Columns(weights.take("text_projection", &[width, projection])?),
            config: config.clone(),
        })
    }

    /// The sizes.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The residual stream after all blocks and the last norm, `[batch, tokens, width]`, from token
    /// embeddings.
    ///
    /// # Errors
    /// If there are more tokens than positions, or the probe fails.
    pub fn hidden(&self, embeddings: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        self.norm.forward(&self.stream(embeddings, &self.blocks, probe)?)
    }

    /// The residual stream after the first blocks, which these are.
    fn stream(&self, embeddings: &Tensor, blocks: &[Block], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let tokens = embeddings.dim(1)?;
        if tokens > self.config.positions {
            bail!("{tokens} tokens do not fit into {} positions", self.config.positions);
        }
        let positions = self.positions.narrow(0, 0, tokens)?.to_dtype(embeddings.dtype())?;
        let x = embeddings.broadcast_add(&positions)?;
        let mut x = observe(probe, "text.embeddings", x)?;
        for (layer, block) in blocks.iter().enumerate() {
            x = block.forward(&x, &layer_name(layer), probe)?;
        }
        Ok(x)
    }

    /// The hidden state at the end of each text, `[batch, width]`.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn pool(&self, hidden: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = hidden.dims3()?;
        check_ids(ids, hidden)?;
        let ends = self.pooled_positions(ids)?;
        let places: Vec<u32> =
            ends.iter().enumerate().map(|(row, end)| (row * tokens + end) as u32).collect();
        let places = Tensor::from_vec(places, batch, hidden.device())?;
        hidden.reshape(((), width))?.index_select(&places, 0)
    }
}

/// Fails unless each token of the states has its id.
fn check_ids(ids: &Tensor, states: &Tensor) -> Result<()> {
    if states.dims().get(..2) != Some(ids.dims()) {
        bail!("ids of {:?} do not fit hidden states of {:?}", ids.dims(), states.dims());
    }
    Ok(())
}

/// What probes know a block by.
fn layer_name(layer: usize) -> String {
    format!("text.layers.{layer}")
}

fn blocks(
    weights: &mut Weights,
    prefix: &str,
    layout: BlockLayout,
    config: &TextConfig,
) -> std::result::Result<Vec<Block>, CheckpointError> {
    let shape = BlockShape {
        width: config.width,
        hidden: config.hidden,
        heads: config.heads,
        activation: config.activation,
        epsilon: config.epsilon,
        causal: true,
    };
    (0..config.layers)
        .map(|layer| Block::load(weights, &format!("{prefix}.{layer}"), layout, shape))
        .collect()
}

/// The pooled position of a row of ids.
fn end_of_text(ids: &[u32], rule: EotRule) -> usize {
    match rule {
        EotRule::Greatest => {
            let greatest = ids.iter().max();
            ids.iter().position(|id| Some(id) == greatest).unwrap_or(0)
        }
        EotRule::First(eot) => ids.iter().position(|id| *id == eot).unwrap_or(0),
    }
}

impl TextTower for TextTransformer {
    fn context_length(&self) -> usize {
        self.config.positions
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn pad_id(&self) -> u32 {
        self.config.pad
    }

    fn embedding_width(&self) -> usize {
        self.projection.width()
    }

    fn hidden_width(&self) -> usize {
        self.config.width
    }

    fn token_embeddings(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let flat = ids.to_dtype(DType::U32)?.flatten_all()?.to_device(self.embedding.device())?;
        leave(&self.embedding.index_select(&flat, 0)?.reshape((batch, tokens, self.config.width))?)
    }

    /// Of the last block only what the ends of the texts need.
    fn embed_token_embeddings(
        &self,
        embeddings: &Tensor,
        ids: &Tensor,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        check_ids(ids, embeddings)?;
        let embeddings = enter(embeddings, &self.embedding)?;
        let pooled = match self.blocks.split_last() {
            None => self.pool(&self.hidden(&embeddings, probe)?, ids)?,
            Some((last, before)) => {
                let x = self.stream(&embeddings, before, probe)?;
                match last.frozen_at(&x, &self.pooled_positions(ids)?, probe)? {
                    Some(ends) => self.norm.forward(&ends)?,
                    None => {
                        let x = last.forward(&x, &layer_name(before.len()), probe)?;
                        self.pool(&self.norm.forward(&x)?, ids)?
                    }
                }
            }
        };
        leave(&self.projection.forward(&observe(probe, "text.pooled", pooled)?)?)
    }

    fn hidden_states(&self, embeddings: &Tensor, _ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        leave(&self.hidden(&enter(embeddings, &self.embedding)?, probe)?)
    }

    fn embed_hidden_states(&self, hidden: &Tensor, ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let pooled = self.pool(&enter(hidden, &self.embedding)?, ids)?;
        leave(&self.projection.forward(&observe(probe, "text.pooled", pooled)?)?)
    }

    fn pooled_positions(&self, ids: &Tensor) -> Result<Vec<usize>> {
        let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        Ok(rows.iter().map(|ids| end_of_text(ids, self.config.eot)).collect())
    }

    /// Up to the last end mark.
    fn seen_columns(&self, ids: &Tensor) -> Result<usize> {
        Ok(self.pooled_positions(ids)?.into_iter().max().map_or(0, |last| last + 1))
    }

    /// None: what stands behind the end mark is invisible to it.
    fn attention_mask(&self, _ids: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn attention_hooks(&self) -> Vec<AttentionHook> {
        (0..self.config.layers)
            .map(|layer| AttentionHook {
                name: format!("text.layers.{layer}.attention"),
                scope: AttentionScope::Tokens,
            })
            .collect()
    }
}
