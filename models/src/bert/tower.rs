//! A BERT with the pooling, padding and projection of a CLIP.

use candle_core::{Result, Tensor, bail};

use super::encoder::{Bert, first};
use crate::device::{enter, leave};
use crate::layers::{Linear, Projection};
use crate::model::{AttentionHook, AttentionScope};
use crate::probe::{nonlinearity, observe};
use crate::{Activation, MaybeProbe, TextTower};

/// Which vector stands for a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BertPooling {
    /// The last hidden state of \[CLS\].
    #[default]
    Cls,
    /// The output of the original's pooler.
    Pooler,
}

/// What happens to padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Padding {
    /// It is masked, so that the length of a row does not matter.
    Masked,
    /// It is attended like any token, so that rows need exactly the context length (PMC-CLIP).
    Attended,
}

/// From the pooled vector to the common space.
#[derive(Debug)]
pub(crate) enum BertProjection {
    /// None: the pooled vector itself.
    Identity,
    /// One product.
    Linear(Projection),
    /// open_clip's `mlp`: two products without biases and a GELU between them.
    Perceptron(Linear, Linear),
}

/// BERT as a text tower.
#[derive(Debug)]
pub struct BertTower {
    pub(crate) bert: Bert,
    pub(crate) context: usize,
    pub(crate) padding: Padding,
    pub(crate) pooling: BertPooling,
    pub(crate) projection: BertProjection,
}

impl BertTower {
    /// The encoder.
    pub fn bert(&self) -> &Bert {
        &self.bert
    }

    /// The vector that stands for each text, `[batch, width]`: the input of the projection.
    ///
    /// # Errors
    /// If the pooler is wanted and the checkpoint has none.
    pub fn pool(&self, hidden: &Tensor) -> Result<Tensor> {
        self.pool_first(first(hidden)?)
    }

    /// [`Self::pool`] of the first hidden state itself, `[batch, width]`.
    fn pool_first(&self, first: Tensor) -> Result<Tensor> {
        match self.pooling {
            BertPooling::Cls => Ok(first),
            BertPooling::Pooler => self.bert.pool_first(&first),
        }
    }

    /// The mask of padding on the device of the tower, for token embeddings that fit.
    fn mask_of(&self, embeddings: &Tensor, ids: &Tensor) -> Result<Option<Tensor>> {
        let (batch, tokens, _) = embeddings.dims3()?;
        if ids.dims() != [batch, tokens] {
            bail!("ids of {:?} do not fit token embeddings of {:?}", ids.dims(), embeddings.dims());
        }
        if self.padding == Padding::Attended && tokens != self.context {
            bail!("this tower attends padding: rows need {} ids, not {tokens}", self.context);
        }
        self.attention_mask(ids)?.map(|mask| mask.to_device(self.bert.words().device())).transpose()
    }

    /// The projection of pooled vectors `[batch, width]`.
    ///
    /// # Errors
    /// If the probe fails.
    pub fn project(&self, pooled: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        match &self.projection {
            BertProjection::Identity => Ok(pooled.clone()),
            BertProjection::Linear(projection) => projection.forward(pooled),
            BertProjection::Perceptron(first, second) => {
                let hidden = first.forward(pooled)?;
                let hidden = nonlinearity(probe, "text.projection.activation", Activation::Gelu, &hidden)?;
                second.forward(&hidden)
            }
        }
    }
}

impl TextTower for BertTower {
    fn context_length(&self) -> usize {
        self.context
    }

    fn vocabulary(&self) -> usize {
        self.bert.config().vocab_size
    }

    fn pad_id(&self) -> u32 {
        self.bert.config().pad_token_id
    }

    fn embedding_width(&self) -> usize {
        match &self.projection {
            BertProjection::Identity => self.hidden_width(),
            BertProjection::Linear(projection) => projection.width(),
            BertProjection::Perceptron(_, second) => second.weight.dims()[0],
        }
    }

    fn hidden_width(&self) -> usize {
        self.bert.config().hidden_size
    }

    fn token_embeddings(&self, ids: &Tensor) -> Result<Tensor> {
        leave(&self.bert.word_embeddings(ids)?)
    }

    fn hidden_states(&self, embeddings: &Tensor, ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let mask = self.mask_of(embeddings, ids)?;
        leave(&self.bert.hidden(&enter(embeddings, self.bert.words())?, mask.as_ref(), None, probe)?)
    }

    /// Of the last layer only what the first token needs.
    fn embed_token_embeddings(
        &self,
        embeddings: &Tensor,
        ids: &Tensor,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let mask = self.mask_of(embeddings, ids)?;
        let first = self.bert.first_hidden(&enter(embeddings, self.bert.words())?, mask.as_ref(), probe)?;
        let pooled = observe(probe, "text.pooled", self.pool_first(first)?)?;
        leave(&self.project(&pooled, probe)?)
    }

    fn embed_hidden_states(&self, hidden: &Tensor, _ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let pooled = self.pool(&enter(hidden, self.bert.words())?)?;
        leave(&self.project(&observe(probe, "text.pooled", pooled)?, probe)?)
    }

    fn pooled_positions(&self, ids: &Tensor) -> Result<Vec<usize>> {
        Ok(vec![0; ids.dims2()?.0])
    }

    fn seen_columns(&self, ids: &Tensor) -> Result<usize> {
        match self.padding {
            Padding::Attended => Ok(ids.dims2()?.1),
            Padding::Masked => {
                let rows = ids.to_dtype(candle_core::DType::U32)?.to_vec2::<u32>()?;
                let ends = rows.iter().map(|ids| {
                    // A row of nothing but padding is seen whole.
                    ids.iter().rposition(|id| *id != self.pad_id()).map_or(ids.len(), |last| last + 1)
                });
                Ok(ends.max().unwrap_or(0))
            }
        }
    }

    fn attention_mask(&self, ids: &Tensor) -> Result<Option<Tensor>> {
        match self.padding {
            Padding::Attended => Ok(None),
            Padding::Masked => {
                let seen = ids.to_dtype(candle_core::DType::U32)?.ne(self.pad_id())?;
                Ok(Some(seen.to_dtype(candle_core::DType::F32)?))
            }
        }
    }

    fn attention_hooks(&self) -> Vec<AttentionHook> {
        (0..self.bert.config().num_hidden_layers)
            .map(|layer| AttentionHook {
                name: format!("text.layers.{layer}.attention"),
                scope: AttentionScope::Tokens,
            })
            .collect()
    }
}
