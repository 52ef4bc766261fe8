//! Sizes of an architecture, read from the names and shapes of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use crate::bert::BertConfig;
use crate::checkpoint::CheckpointError;
use crate::resnet::ResNetConfig;

/// The tensors of a checkpoint, asked for sizes.
#[derive(Clone, Copy)]
pub(crate) struct Shapes<'a>(pub(crate) &'a BTreeMap<String, Tensor>);

impl Shapes<'_> {
    /// One dimension of a tensor.
    pub(crate) fn dim(self, name: &str, axis: usize) -> Result<usize, CheckpointError> {
        let tensor = self
            .0
            .get(name)
            .ok_or_else(|| CheckpointError::in_weights(format!("`{name}` is missing, which tells a size")))?;
        tensor.dims().get(axis).copied().filter(|size| *size > 0).ok_or_else(|| {
            let reason = format!("`{name}` is {:?}, which does not tell a size", tensor.dims());
            CheckpointError::in_weights(reason)
        })
    }

    /// How many different numbers stand behind `prefix` in the names (`layers.0.`, `layers.1.`, ...).
    pub(crate) fn count(self, prefix: &str) -> usize {
        let numbers: BTreeSet<&str> = self
            .0
            .keys()
            .filter_map(|name| name.strip_prefix(prefix)?.split('.').next())
            .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()) && !number.is_empty())
            .collect();
        numbers.len()
    }

    /// The side of a square grid of which each cell has a position, and one token more.
    pub(crate) fn grid(self, name: &str, axis: usize) -> Result<usize, CheckpointError> {
        Ok(((self.dim(name, axis)? - 1) as f64).sqrt().round() as usize)
    }

    /// The sizes of CLIP's ResNet at `prefix` (`visual.`).
    pub(crate) fn modified_resnet(self, prefix: &str) -> Result<ResNetConfig, CheckpointError> {
        Ok(ResNetConfig {
            width: self.dim(&format!("{prefix}layer1.0.conv1.weight"), 0)?,
            blocks: [1, 2, 3, 4].map(|layer| self.count(&format!("{prefix}layer{layer}."))),
            image: 32 * self.grid(&format!("{prefix}attnpool.positional_embedding"), 0)?,
        })
    }

    /// The sizes of a BERT at `prefix` (empty or ending in a dot), with heads of 64 values as in every
    /// published one.
    pub(crate) fn bert(self, prefix: &str) -> Result<BertConfig, CheckpointError> {
        let dim = |name: &str, axis: usize| self.dim(&format!("{prefix}{name}"), axis);
        let width = dim("embeddings.word_embeddings.weight", 1)?;
        Ok(BertConfig {
            vocab_size: dim("embeddings.word_embeddings.weight", 0)?,
            hidden_size: width,
            num_hidden_layers: self.count(&format!("{prefix}encoder.layer.")),
            num_attention_heads: (width / 64).max(1),
            intermediate_size: dim("encoder.layer.0.intermediate.dense.weight", 0)?,
            max_position_embeddings: dim("embeddings.position_embeddings.weight", 0)?,
            type_vocab_size: dim("embeddings.token_type_embeddings.weight", 0)?,
            ..BertConfig::default()
        })
    }
}
