//! timm's ViT without a text tower.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{VisionConfig, VisionTransformer};
use crate::checkpoint::CheckpointError;
use crate::shapes::Shapes;
use crate::weights::{Parameters, Side, Trainable, Weights};
use crate::{Activation, FoundationModel, ImageTower, ModelConfig};

/// A vision transformer by timm's names (`vit_base_patch16_224`). Its embedding is the normed class
/// token; the classifier of its pre-training is carried along unused.
#[derive(Debug)]
pub struct TimmVit {
    tower: VisionTransformer,
    parameters: Parameters,
}

impl VisionConfig {
    /// The sizes of timm's ViT at `prefix` (empty or ending in a dot), with heads of 64 values as in
    /// `vit_base` and `vit_large`, GELU and an epsilon of 1e-6.
    pub(crate) fn infer_timm(
        tensors: &BTreeMap<String, Tensor>,
        prefix: &str,
    ) -> Result<Self, CheckpointError> {
        let shapes = Shapes(tensors);
        let dim = |name: &str, axis: usize| shapes.dim(&format!("{prefix}{name}"), axis);
        let (width, patch) = (dim("patch_embed.proj.weight", 0)?, dim("patch_embed.proj.weight", 3)?);
        Ok(Self {
            width,
            hidden: dim("blocks.0.mlp.fc1.weight", 0)?,
            layers: shapes.count(&format!("{prefix}blocks.")),
            heads: (width / 64).max(1),
            image: patch * shapes.grid(&format!("{prefix}pos_embed"), 1)?,
            patch,
            channels: dim("patch_embed.proj.weight", 1)?,
            activation: Activation::Gelu,
            epsilon: 1e-6,
        })
    }
}

impl TimmVit {
    /// A tower of `config` with these tensors, by timm's names.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: &VisionConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(config: &VisionConfig, mut weights: Weights) -> Result<Self, CheckpointError> {
        config.check()?;
        weights.sides(|_| Side::Image);
        weights.carry_all("head.");
        let tower = VisionTransformer::timm(&mut weights, "", config, None)?;
        Ok(Self { tower, parameters: weights.finish()? })
    }

    /// The image tower.
    pub fn tower(&self) -> &VisionTransformer {
        &self.tower
    }
}

impl FoundationModel for TimmVit {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::TimmVit(self.tower.config().clone())
    }

    fn as_image_tower(&self) -> Option<&dyn ImageTower> {
        Some(&self.tower)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
