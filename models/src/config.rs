//! What the weights of a model do not say, for every architecture.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::Value as Json;

use crate::checkpoint::CheckpointError;
use crate::clip::{ClipConfig, ClipModel};
use crate::model::FoundationModel;
use crate::weights::Trainable;

/// The architecture of a model with its sizes. With the tensors of a checkpoint it makes the model;
/// as `config.json` it lies beside them.
#[derive(Clone, PartialEq, Debug)]
pub enum ModelConfig {
    /// CLIP in the Hugging Face layout.
    Clip(ClipConfig),
}

impl ModelConfig {
    /// Reads `config.json`, whose `model_type` names the architecture.
    ///
    /// # Errors
    /// If it is no JSON, the architecture is unknown, or a size is missing or out of range.
    pub fn from_json(text: &str) -> Result<Self, CheckpointError> {
        let error = |reason: String| CheckpointError::new("config.json", reason);
        let json: Json = serde_json::from_str(text).map_err(|problem| error(problem.to_string()))?;
        match json["model_type"].as_str() {
            Some("clip") | None => Ok(Self::Clip(ClipConfig::from_json(text)?)),
            Some(other) => Err(error(format!("`model_type` is `{other}`; `clip` is expected"))),
        }
    }

    /// `config.json`, with sorted keys.
    pub fn to_json(&self) -> String {
        match self {
            Self::Clip(config) => config.to_json(),
        }
    }

    /// The model of these tensors, by the names of its published checkpoint, in f32.
    ///
    /// # Errors
    /// If names and shapes do not fit; all that do not are listed.
    pub fn build(
        &self,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> Result<Box<dyn FoundationModel>, CheckpointError> {
        Ok(match self {
            Self::Clip(config) => Box::new(ClipModel::from_tensors(config.clone(), tensors, trainable)?),
        })
    }
}
