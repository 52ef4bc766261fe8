//! Residual networks of torchvision and of MedMNIST's experiments.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::form::PlainResNetConfig;
use super::trunk::{ResNetConfig, Trunk, Variant};
use crate::checkpoint::CheckpointError;
use crate::device::leave;
use crate::model::{ActivationLayout, AttentionHook, CamHook, Depth};
use crate::probe::observe;
use crate::weights::{Parameters, Side, Trainable, Weights};
use crate::{FoundationModel, ImageTower, Layer, MaybeProbe, ModelConfig, PatchGeometry};

/// A ResNet of torchvision or MedMNIST, of images or of volumes. Its embedding is the mean of the last feature map;
/// the classifier of its pre-training is carried along unused. Batch norm uses its stored statistics, in training
/// too, unless a probe trains norms ([`crate::Probe::trains_norms`]).
#[derive(Debug)]
pub struct ResNet {
    config: PlainResNetConfig,
    trunk: Trunk,
    parameters: Parameters,
}

impl ResNet {
    /// A network of `config` with these tensors, by torchvision's names.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: PlainResNetConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(
        config: PlainResNetConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        config.check()?;
        weights.sides(|_| Side::Image);
        // torchvision's and MedMNIST's name.
        weights.carry_all("fc.");
        weights.carry_all("linear.");
        let PlainResNetConfig { width, blocks, image, form } = config;
        let sizes = ResNetConfig { width, blocks, image };
        let trunk = Trunk::load(&mut weights, "", Variant::Plain(form), &sizes)?;
        Ok(Self { config, trunk, parameters: weights.finish()? })
    }

    #[cfg(test)]
    pub(super) fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    /// The sizes and the form.
    pub fn config(&self) -> &PlainResNetConfig {
        &self.config
    }
}

impl ImageTower for ResNet {
    fn geometry(&self) -> PatchGeometry {
        let PlainResNetConfig { image, form, .. } = self.config;
        let cell = |pixels: usize| self.config.cell(pixels);
        PatchGeometry {
            channels: if form.slices.is_some() { 1 } else { 3 },
            depth: form.slices.map(|slices| Depth { slices, patch: cell(slices) }),
            image: [image; 2],
            patch: [cell(image); 2],
            prefix_tokens: 0,
        }
    }

    fn embedding_width(&self) -> usize {
        self.config.features()
    }

    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let map = self.trunk.forward(pixels, probe)?;
        // The mean over a volume is that over an image of all its rows.
        let map = if map.rank() == 5 { map.flatten(1, 2)? } else { map };
        leave(&observe(probe, "vision.pooled", Layer::GlobalMean.apply(&map, "vision.mean", probe)?)?)
    }

    fn feature_width(&self) -> usize {
        self.config.features()
    }

    fn features(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let map = self.trunk.forward(pixels, probe)?;
        leave(&map.flatten(1, map.rank() - 2)?)
    }

    fn cam_hook(&self) -> CamHook {
        let layout = match self.config.form.slices {
            Some(_) => ActivationLayout::SliceMap,
            None => ActivationLayout::Map,
        };
        CamHook { name: "vision.layer4".to_owned(), layout }
    }

    fn pools_by_mean(&self) -> bool {
        true
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
