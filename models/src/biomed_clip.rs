//! BiomedCLIP (Zhang et al. 2023): timm's ViT and PubMedBERT, in open_clip's layout.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::ModelConfig;
use crate::bert::{Bert, BertConfig, BertPooling, BertProjection, BertTower, Padding};
use crate::checkpoint::CheckpointError;
use crate::layers::Linear;
use crate::model::{DualEncoder, FoundationModel, ImageTower, TextTower};
use crate::shapes::Shapes;
use crate::sizes::{check_fits, check_sizes};
use crate::vit::{VisionConfig, VisionTransformer};
use crate::weights::{Parameters, Side, Trainable, Weights};

/// The sizes of a BiomedCLIP.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiomedClipConfig {
    /// The image tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: BertConfig,
    /// Tokens of a text.
    pub context: usize,
    /// Width of the common space.
    pub projection: usize,
}

/// Tokens of a text in the published model.
const CONTEXT: usize = 256;

impl BiomedClipConfig {
    /// The sizes of a checkpoint, from names and shapes; heads have 64 values and texts 256 tokens, as
    /// published.
    ///
    /// # Errors
    /// If a tensor that tells a size is missing.
    pub fn infer(tensors: &BTreeMap<String, Tensor>) -> Result<Self, CheckpointError> {
        let shapes = Shapes(tensors);
        let text = shapes.bert("text.transformer.")?;
        Ok(Self {
            vision: VisionConfig::infer_timm(tensors, "visual.trunk.")?,
            context: CONTEXT.min(text.max_position_embeddings),
            text,
            projection: shapes.dim("visual.head.proj.weight", 0)?,
        })
    }

    /// Fails, naming the field, unless the sizes make sense.
    fn check(&self) -> Result<(), CheckpointError> {
        self.vision.check()?;
        self.text.check()?;
        check_sizes(&[("context", self.context), ("projection", self.projection)])?;
        check_fits(("context", self.context), ("max_position_embeddings", self.text.max_position_embeddings))
    }

    /// Width between the two products of the text projection: open_clip's rule.
    fn projection_hidden(&self) -> usize {
        (self.text.hidden_size + self.projection) / 2
    }
}

/// A BiomedCLIP.
#[derive(Debug)]
pub struct BiomedClip {
    config: BiomedClipConfig,
    vision: VisionTransformer,
    text: BertTower,
    logit_scale: Tensor,
    parameters: Parameters,
}

fn side(name: &str) -> Side {
    match name {
        "logit_scale" => Side::Both,
        name if name.starts_with("visual.") => Side::Image,
        _ => Side::Text,
    }
}

impl BiomedClip {
    /// A model of `config` with these tensors, by open_clip's names.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: BiomedClipConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(
        config: BiomedClipConfig,
        mut weights: Weights,
    ) -> Result<Self, CheckpointError> {
        config.check()?;
        weights.sides(side);
        let vision = VisionTransformer::timm(
            &mut weights,
            "visual.trunk.",
            &config.vision,
            Some(("visual.head.proj.weight", config.projection)),
        )?;
        let (width, hidden) = (config.text.hidden_size, config.projection_hidden());
        let text = BertTower {
            bert: Bert::load(&mut weights, "text.transformer.", &config.text, false)?,
            context: config.context,
            padding: Padding::Masked,
            pooling: BertPooling::Cls,
            projection: BertProjection::Perceptron(
                Linear::load_without_bias(&mut weights, "text.proj.0", hidden, width)?,
                Linear::load_without_bias(&mut weights, "text.proj.2", config.projection, hidden)?,
            ),
        };
        let logit_scale = weights.take("logit_scale", &[])?;
        Ok(Self { vision, text, logit_scale, config, parameters: weights.finish()? })
    }

    /// The sizes.
    pub fn config(&self) -> &BiomedClipConfig {
        &self.config
    }

    /// The image tower.
    pub fn vision(&self) -> &VisionTransformer {
        &self.vision
    }

    /// The text tower.
    pub fn text(&self) -> &BertTower {
        &self.text
    }
}

impl DualEncoder for BiomedClip {
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

impl FoundationModel for BiomedClip {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::BiomedClip(self.config.clone())
    }

    fn as_dual_encoder(&self) -> Option<&dyn DualEncoder> {
        Some(self)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
