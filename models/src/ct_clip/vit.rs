//! The image tower: patches, spatial layers, temporal layers, codes.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::config::{Adaptation, CtClipConfig, CtVitConfig, QuantiserGradient};
use super::layer::{EPSILON, Transformer};
use super::position_bias::PositionBias;
use crate::checkpoint::CheckpointError;
use crate::device::{enter, leave};
use crate::model::{ActivationLayout, AttentionHook, AttentionScope, CamHook, Depth};
use crate::ops::{
    layer_norm, linear, linear_of_images, mean_keepdim, nearest_codes, recompute, straight_through,
};
use crate::probe::observe;
use crate::weights::Weights;
use crate::{ImageTower, MaybeProbe, PatchGeometry};

/// The shares of red, green and blue in grey (ITU-R 601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// CT-ViT with the projection of CT-CLIP.
#[derive(Debug)]
pub struct CtVit {
    config: CtVitConfig,
    adaptation: Adaptation,
    gradient: QuantiserGradient,
    /// Norm of a patch's voxels, product with bias, norm of the token.
    patches: [Tensor; 6],
    bias: PositionBias,
    spatial: Transformer,
    temporal: Transformer,
    /// `[1, codes, width]`.
    codes: Tensor,
    /// `[latent, grid * grid * width]`.
    latent: Tensor,
}

impl CtVit {
    pub(super) fn load(
        weights: &mut Weights,
        config: &CtClipConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let vision = &config.vision;
        let (width, voxels, grid) = (vision.width, vision.voxels(), vision.grid());
        let prefix = "visual_transformer";
        let mut take =
            |name: &str, shape: &[usize]| weights.take(&format!("{prefix}.to_patch_emb.{name}"), shape);
        let patches = [
            take("1.weight", &[voxels])?,
            take("1.bias", &[voxels])?,
            take("2.weight", &[width, voxels])?,
            take("2.bias", &[width])?,
            take("3.weight", &[width])?,
            take("3.bias", &[width])?,
        ];
        let bias = format!("{prefix}.spatial_rel_pos_bias");
        let mut transformer = |kind: &str, layers: usize, name: &'static str| {
            Transformer::load(weights, &format!("{prefix}.enc_{kind}_transformer"), layers, vision, name)
        };
        let spatial = transformer("spatial", vision.spatial_layers, "vision.spatial")?;
        let temporal = transformer("temporal", vision.temporal_layers, "vision.temporal")?;
        let tower = Self {
            patches,
            bias: PositionBias::load(weights, &bias, width, vision.heads, grid)?,
            spatial,
            temporal,
            codes: weights.buffer(&format!("{prefix}.vq._codebook.embed"), &[1, vision.codes, width])?,
            latent: weights.take("to_visual_latent.weight", &[config.projection, grid * grid * width])?,
            config: vision.clone(),
            adaptation: config.adaptation,
            gradient: config.quantiser,
        };
        // The statistics of the codebook, and the parts of the autoencoder that CT-CLIP does not use.
        for unused in ["vq.", "to_patch_emb_first_frame.", "to_pixels.", "to_pixels_first_frame."] {
            weights.carry_all(&format!("{prefix}.{unused}"));
        }
        Ok(tower)
    }

    /// The sizes.
    pub fn config(&self) -> &CtVitConfig {
        &self.config
    }

    /// Volumes `[batch, 1, slices, height, width]` to `[batch, steps, rows, columns, width]`: one token per
    /// patch, before any layer.
    ///
    /// # Errors
    /// If the volume has another height or width, or its depth is no multiple of a patch's.
    pub fn patch_tokens(&self, volumes: &Tensor) -> Result<Tensor> {
        let CtVitConfig { image, patch, patch_slices, .. } = self.config;
        let (batch, channels, slices, height, columns) = volumes.dims5()?;
        if (channels, height, columns) != (1, image, image)
            || slices == 0
            || !slices.is_multiple_of(patch_slices)
        {
            bail!(
                "the image tower takes [batch, 1, a multiple of {patch_slices}, {image}, {image}], not {:?}",
                volumes.dims()
            );
        }
        let (steps, grid, voxels) = (slices / patch_slices, self.config.grid(), self.config.voxels());
        let part = move |volumes: &Tensor, parameters: &[Tensor]| {
            let [norm, norm_bias, weight, bias, out_norm, out_bias] = parameters else {
                bail!("patches have six parameters")
            };
            let patches = volumes
                .reshape(&[batch, steps, patch_slices, grid, patch, grid, patch])?
                .permute([0, 1, 3, 5, 2, 4, 6])?
                .contiguous()?
                .reshape((batch, steps * grid * grid, voxels))?;
            let normed = layer_norm(&patches, norm, norm_bias, EPSILON)?;
            let tokens = linear_of_images(&normed, weight, Some(bias))?;
            let tokens = layer_norm(&tokens, out_norm, out_bias, EPSILON)?;
            tokens.reshape((batch, steps, grid, grid, tokens.dim(2)?))
        };
        recompute(volumes, &self.patches, Arc::new(part))
    }

    /// The bias on the scores of spatial attention, `[heads, rows * columns, rows * columns]`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn position_bias(&self) -> Result<Tensor> {
        self.bias.forward()
    }

    /// Volumes to tokens behind all layers, `[batch, steps, rows, columns, width]`.
    ///
    /// # Errors
    /// As [`Self::patch_tokens`], or if the probe fails.
    pub fn encode(&self, volumes: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let tokens = observe(probe, "vision.embeddings", self.patch_tokens(volumes)?)?;
        let (batch, steps, rows, columns, width) = tokens.dims5()?;
        let volume = [batch, steps, rows, columns];
        let x = tokens.reshape((batch * steps, rows * columns, width))?;
        let x = self.spatial.forward(&x, volume, Some(&self.position_bias()?), probe)?;
        let x = x.reshape((batch, steps, rows, columns, width))?.permute((0, 2, 3, 1, 4))?.contiguous()?;
        let x = x.reshape((batch * rows * columns, steps, width))?;
        let x = self.temporal.forward(&x, volume, None, probe)?;
        let x = x.reshape((batch, rows, columns, steps, width))?.permute((0, 3, 1, 2, 4))?.contiguous()?;
        observe(probe, "vision.encoded", x)
    }

    /// The index of the code nearest to each token, `[batch, steps, rows, columns]` (u32).
    ///
    /// # Errors
    /// If the width differs.
    pub fn code_indices(&self, encoded: &Tensor) -> Result<Tensor> {
        nearest_codes(encoded, &self.codes.squeeze(0)?)
    }

    /// Tokens replaced by their codes, with the gradient that the configuration says.
    ///
    /// # Errors
    /// If the width differs.
    pub fn quantise(&self, encoded: &Tensor) -> Result<Tensor> {
        let indices = self.code_indices(encoded)?.flatten_all()?;
        let codes = self.codes.squeeze(0)?.index_select(&indices, 0)?.reshape(encoded.shape())?;
        let codes = codes.to_dtype(encoded.dtype())?;
        match self.gradient {
            QuantiserGradient::StraightThrough => straight_through(encoded, &codes),
            QuantiserGradient::Absent => Ok(codes),
        }
    }

    /// The mean over steps, flat in the order row, column, width: `[batch, rows * columns * width]`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn flatten(&self, quantised: &Tensor) -> Result<Tensor> {
        mean_keepdim(quantised, 1)?.squeeze(1)?.flatten_from(1)
    }

    /// The tokens of what the adaptation takes, quantised.
    fn tokens(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let [.., weight, _, _, _] = &self.patches;
        let pixels = enter(pixels, weight)?;
        let encoded = match self.adaptation {
            Adaptation::Native => self.encode(&pixels, probe)?,
            Adaptation::Flat => {
                let (batch, _, height, width) = pixels.dims4()?;
                let luma = Tensor::new(&LUMA, pixels.device())?.reshape((1, 3, 1, 1))?;
                let luma = luma.to_dtype(pixels.dtype())?;
                let grey = pixels.broadcast_mul(&luma)?.sum_keepdim(1)?;
                let shape = (batch, 1, self.config.patch_slices, height, width);
                self.encode(&grey.unsqueeze(2)?.broadcast_as(shape)?.contiguous()?, probe)?
            }
        };
        observe(probe, "vision.quantised", self.quantise(&encoded)?)
    }
}

impl ImageTower for CtVit {
    fn geometry(&self) -> PatchGeometry {
        let CtVitConfig { image, slices, patch, patch_slices, .. } = self.config;
        PatchGeometry {
            channels: match self.adaptation {
                Adaptation::Native => 1,
                Adaptation::Flat => 3,
            },
            depth: match self.adaptation {
                Adaptation::Native => Some(Depth { slices, patch: patch_slices }),
                Adaptation::Flat => None,
            },
            image: [image; 2],
            patch: [patch; 2],
            prefix_tokens: 0,
        }
    }

    fn embedding_width(&self) -> usize {
        self.latent.dims()[0]
    }

    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let flat = observe(probe, "vision.pooled", self.flatten(&self.tokens(pixels, probe)?)?)?;
        leave(&linear(&flat, &self.latent, None)?)
    }

    fn feature_width(&self) -> usize {
        self.config.width
    }

    fn features(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        leave(&self.tokens(pixels, probe)?.flatten(1, 3)?)
    }

    fn cam_hook(&self) -> CamHook {
        let last = self.config.temporal_layers.saturating_sub(1);
        CamHook { name: format!("vision.temporal.{last}.layer_norm1"), layout: ActivationLayout::Sequences }
    }

    fn attention_hooks(&self) -> Vec<AttentionHook> {
        let hook = |scope: AttentionScope| move |name: String| AttentionHook { name, scope };
        let spatial = self.spatial.attention_names().map(hook(AttentionScope::Step));
        spatial.chain(self.temporal.attention_names().map(hook(AttentionScope::Cell))).collect()
    }
}
