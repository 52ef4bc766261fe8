//! The model in the Hugging Face layout.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use super::config::ClipConfig;
use super::text::TextTransformer;
use crate::ModelConfig;
use crate::checkpoint::{self, CheckpointError, CheckpointFiles, Prefer};
use crate::model::{DualEncoder, FoundationModel, ImageTower, TextTower};
use crate::vit::VisionTransformer;
use crate::weights::{Parameters, Side, Trainable, Weights};

/// A CLIP with a vision transformer, both towers.
#[derive(Debug)]
pub struct ClipModel {
    config: ClipConfig,
    vision: VisionTransformer,
    text: TextTransformer,
    logit_scale: Tensor,
    parameters: Parameters,
}

fn side(name: &str) -> Side {
    match name {
        "logit_scale" => Side::Both,
        name if name.starts_with("vision_model.") || name.starts_with("visual_projection.") => Side::Image,
        _ => Side::Text,
    }
}

impl ClipModel {
    /// Loads a model from the files of a checkpoint; frozen, or with variables to train.
    ///
    /// # Errors
    /// If a file is missing or damaged, or names and shapes do not fit the configuration; all tensors
    /// that do not are listed.
    pub fn load(
        files: &CheckpointFiles,
        device: &Device,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        let config = ClipConfig::from_json(&files.text("config.json")?)?;
        let (name, _) = checkpoint::weights_name(files, Prefer::Transformers)?;
        let tensors = checkpoint::tensors(files, device)?;
        Self::from_tensors(config, tensors, trainable).map_err(|error| error.of_file(name))
    }

    /// A model of `config` with random weights (see [`super::random`]).
    ///
    /// # Errors
    /// If the configuration asks for more memory than there is.
    pub fn random(
        config: &ClipConfig,
        seed: u64,
        device: &Device,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        let tensors = super::random::tensors(config, seed, device)?;
        Self::from_tensors(config.clone(), tensors, trainable)
    }

    /// A model of `config` with these tensors, by their Hugging Face names.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: ClipConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(
        config: ClipConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        config.vision.check()?;
        config.text.check()?;
        weights.sides(side);
        // Published files carry these buffers; they hold 0, 1, 2, ...
        weights.ignore("text_model.embeddings.position_ids");
        weights.ignore("vision_model.embeddings.position_ids");
        let vision = VisionTransformer::hugging_face(&mut weights, &config.vision, config.projection)?;
        let text = TextTransformer::hugging_face(&mut weights, &config.text, config.projection)?;
        let logit_scale = weights.take("logit_scale", &[])?;
        Ok(Self { vision, text, logit_scale, config, parameters: weights.finish()? })
    }

    /// The configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The image tower.
    pub fn vision(&self) -> &VisionTransformer {
        &self.vision
    }

    /// The text tower.
    pub fn text(&self) -> &TextTransformer {
        &self.text
    }

    /// The variables by name; empty if the model is frozen.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        self.parameters.variables()
    }

    /// The current values by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.parameters.tensors()
    }
}

impl DualEncoder for ClipModel {
    fn image_tower(&self) -> &dyn ImageTower {
        &self.vision
    }

    fn text_tower(&self) -> &dyn TextTower {
        &self.text
    }

    fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }
}

impl FoundationModel for ClipModel {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::Clip(self.config.clone())
    }

    fn as_dual_encoder(&self) -> Option<&dyn DualEncoder> {
        Some(self)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
