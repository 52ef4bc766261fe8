//! CLIP's ResNet (Radford et al. 2021, section 2.4).

use candle_core::{Result, Tensor};

use super::attention_pool::AttentionPool;
use super::trunk::{ResNetConfig, STRIDE, Trunk, Variant};
use crate::checkpoint::CheckpointError;
use crate::device::leave;
use crate::model::{ActivationLayout, AttentionHook, AttentionScope, CamHook};
use crate::probe::observe;
use crate::weights::Weights;
use crate::{ImageTower, MaybeProbe, PatchGeometry};

/// A residual network with three convolutions in its stem, average pooling for strides, and attention
/// pooling. Batch norm uses its stored statistics, in training too.
#[derive(Debug)]
pub struct ModifiedResNet {
    config: ResNetConfig,
    trunk: Trunk,
    pool: AttentionPool,
}

const POOL: &str = "vision.attention_pool";

impl ModifiedResNet {
    /// Takes the tensors of `prefix` (`visual.`); `heads` are those of the attention pool.
    pub(crate) fn load(
        weights: &mut Weights,
        prefix: &str,
        config: &ResNetConfig,
        projection: usize,
        heads: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let cells = config.grid() * config.grid();
        Ok(Self {
            trunk: Trunk::load(weights, prefix, Variant::Modified, config)?,
            pool: AttentionPool::load(
                weights,
                &format!("{prefix}attnpool"),
                cells,
                config.features(),
                projection,
                heads,
            )?,
            config: config.clone(),
        })
    }

    /// The sizes.
    pub fn config(&self) -> &ResNetConfig {
        &self.config
    }
}

impl ImageTower for ModifiedResNet {
    fn geometry(&self) -> PatchGeometry {
        geometry(&self.config)
    }

    fn embedding_width(&self) -> usize {
        self.pool.width()
    }

    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let map = self.trunk.forward(pixels, probe)?;
        leave(&observe(probe, "vision.pooled", self.pool.forward(&map, POOL, probe)?)?)
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
        vec![AttentionHook { name: POOL.to_owned(), scope: AttentionScope::Pool }]
    }
}

pub(super) fn geometry(config: &ResNetConfig) -> PatchGeometry {
    PatchGeometry { channels: 3, depth: None, image: [config.image; 2], patch: [STRIDE; 2], prefix_tokens: 0 }
}
