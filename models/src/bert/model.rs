//! BERT without an image tower.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Bert, BertConfig, BertPooling, BertProjection, BertTower, Padding};
use crate::checkpoint::CheckpointError;
use crate::weights::{Parameters, Side, Trainable, Weights};
use crate::{FoundationModel, ModelConfig, TextTower};

/// A BERT in the Hugging Face layout, with padding masked. Its embedding is the last hidden state of
/// \[CLS\]; the heads of its pre-training (with CXR-BERT, its projection too) are carried along unused.
#[derive(Debug)]
pub struct BertModel {
    tower: BertTower,
    parameters: Parameters,
}

impl BertModel {
    /// A model of `config` with these tensors, by their Hugging Face names, those of the encoder with or
    /// without the prefix `bert.`.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: &BertConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(
        config: &BertConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        config.check()?;
        weights.sides(|_| Side::Text);
        let prefix = if weights.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        weights.carry_all("cls.");
        weights.carry_all("cls_projection_head.");
        let bert = Bert::load(&mut weights, prefix, config, false)?;
        let tower = BertTower {
            bert,
            context: config.max_position_embeddings,
            padding: Padding::Masked,
            pooling: BertPooling::Cls,
            projection: BertProjection::Identity,
        };
        Ok(Self { tower, parameters: weights.finish()? })
    }

    /// The text tower.
    pub fn tower(&self) -> &BertTower {
        &self.tower
    }
}

impl FoundationModel for BertModel {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::Bert(self.tower.bert.config().clone())
    }

    fn as_text_tower(&self) -> Option<&dyn TextTower> {
        Some(&self.tower)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
