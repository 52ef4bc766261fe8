//! torchvision's ResNet with bottleneck blocks.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::modified::geometry;
use super::trunk::{ResNetConfig, Trunk, Variant};
use crate::checkpoint::CheckpointError;
use crate::device::leave;
use crate::model::{ActivationLayout, AttentionHook, CamHook};
use crate::probe::observe;
use crate::weights::{Parameters, Side, Trainable, Weights};
use crate::{FoundationModel, ImageTower, Layer, MaybeProbe, ModelConfig, PatchGeometry};

/// A ResNet-50, 101 or 152 of torchvision. Its embedding is the mean of the last feature map; the
/// classifier of its pre-training is carried along unused. Batch norm uses its stored statistics, in
/// training too.
#[derive(Debug)]
pub struct ResNet {
    config: ResNetConfig,
    trunk: Trunk,
    parameters: Parameters,
}

impl ResNet {
    /// A network of `config` with these tensors, by torchvision's names.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: ResNetConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(
        config: ResNetConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        config.check()?;
        weights.sides(|_| Side::Image);
        weights.carry_all("fc.");
        let trunk = Trunk::load(&mut weights, "", Variant::Plain, &config)?;
        Ok(Self { config, trunk, parameters: weights.finish()? })
    }

    /// The sizes.
    pub fn config(&self) -> &ResNetConfig {
        &self.config
    }
}

impl ImageTower for ResNet {
    fn geometry(&self) -> PatchGeometry {
        geometry(&self.config)
    }

    fn embedding_width(&self) -> usize {
        self.config.features()
    }

    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let map = self.trunk.forward(pixels, probe)?;
        leave(&observe(probe, "vision.pooled", Layer::GlobalMean.apply(&map, "vision.mean", probe)?)?)
    }

    fn feature_width(&self) -> usize {
        self.config.features()
    }

    fn features(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        leave(&self.trunk.forward(pixels, probe)?.flatten(1, 2)?)
    }

    fn cam_hook(&self) -> CamHook {
        CamHook { name: "vision.layer4".to_owned(), layout: ActivationLayout::Map }
    }

    fn attention_hooks(&self) -> Vec<AttentionHook> {
        Vec::new()
    }
}

impl FoundationModel for ResNet {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::ResNet(self.config.clone())
    }

    fn as_image_tower(&self) -> Option<&dyn ImageTower> {
        Some(self)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
