//! From patches to a class token.

use candle_core::{Result, Tensor, bail};

use crate::checkpoint::CheckpointError;
use crate::device::{enter, leave};
use crate::layers::{Block, BlockLayout, BlockShape, LayerNorm, Projection};
use crate::model::{ActivationLayout, AttentionHook, AttentionScope, CamHook};
use crate::ops::linear_of_images;
use crate::probe::observe;
use crate::sizes::{check_epsilon, check_fits, check_heads, check_layers, check_sizes};
use crate::weights::Weights;
use crate::{Activation, ImageTower, MaybeProbe, PatchGeometry};

/// The sizes of a vision transformer.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the perceptrons.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Side of the image, in pixels.
    pub image: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Channels of the image.
    pub channels: usize,
    /// The nonlinearity.
    pub activation: Activation,
    /// Epsilon of layer norms.
    pub epsilon: f64,
}

impl VisionConfig {
    /// Number of patches.
    pub fn patches(&self) -> usize {
        (self.image / self.patch).pow(2)
    }

    /// Fails, naming the field, unless the sizes make sense.
    pub(crate) fn check(&self) -> std::result::Result<(), CheckpointError> {
        check_sizes(&[
            ("width", self.width),
            ("hidden", self.hidden),
            ("image", self.image),
            ("patch", self.patch),
            ("channels", self.channels),
        ])?;
        check_layers(&[("layers", self.layers)])?;
        check_heads("width", self.width, self.heads)?;
        check_epsilon("epsilon", self.epsilon)?;
        check_fits(("patch", self.patch), ("image", self.image))
    }

    fn block(&self) -> BlockShape {
        BlockShape {
            width: self.width,
            hidden: self.hidden,
            heads: self.heads,
            activation: self.activation,
            epsilon: self.epsilon,
            causal: false,
        }
    }

    fn patch_shape(&self) -> [usize; 4] {
        [self.width, self.channels, self.patch, self.patch]
    }
}

/// A vision transformer, with the projection of a CLIP or without.
#[derive(Debug)]
pub struct VisionTransformer {
    config: VisionConfig,
    /// `[width]` in CLIP's files, `[1, 1, width]` in timm's.
    class: Tensor,
    /// `[width, channels, patch, patch]`.
    patch: Tensor,
    /// `[width]`; CLIP's patches have none.
    patch_bias: Option<Tensor>,
    /// `[1 + patches, width]`, in timm's files with a first axis of 1.
    positions: Tensor,
    /// CLIP's only.
    pre_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    projection: Option<Projection>,
}

impl VisionTransformer {
    /// The tower of a CLIP in the Hugging Face layout: `vision_model` and `visual_projection`.
    pub(crate) fn hugging_face(
        weights: &mut Weights,
        config: &VisionConfig,
        projection: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let VisionConfig { width, epsilon, .. } = *config;
        let embeddings = "vision_model.embeddings";
        Ok(Self {
            class: weights.take(&format!("{embeddings}.class_embedding"), &[width])?,
            patch: weights.take(&format!("{embeddings}.patch_embedding.weight"), &config.patch_shape())?,
            patch_bias: None,
            positions: weights
                .take(&format!("{embeddings}.position_embedding.weight"), &[config.patches() + 1, width])?,
            // Spelled so in every published file.
            pre_norm: Some(LayerNorm::load(weights, "vision_model.pre_layrnorm", width, epsilon)?),
            blocks: blocks(weights, "vision_model.encoder.layers", BlockLayout::HuggingFace, config)?,
            norm: LayerNorm::load(weights, "vision_model.post_layernorm", width, epsilon)?,
            projection: Some(Projection::Rows(
                weights.take("visual_projection.weight", &[projection, width])?,
            )),
            config: config.clone(),
        })
    }

    /// The tower of a CLIP in OpenAI's layout: `visual`.
    pub(crate) fn open_ai(
        weights: &mut Weights,
        config: &VisionConfig,
        projection: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let VisionConfig { width, epsilon, .. } = *config;
        Ok(Self {
            class: weights.take("visual.class_embedding", &[width])?,
            patch: weights.take("visual.conv1.weight", &config.patch_shape())?,
            patch_bias: None,
            positions: weights.take("visual.positional_embedding", &[config.patches() + 1, width])?,
            pre_norm: Some(LayerNorm::load(weights, "visual.ln_pre", width, epsilon)?),
            blocks: blocks(weights, "visual.transformer.resblocks", BlockLayout::OpenAi, config)?,
            norm: LayerNorm::load(weights, "visual.ln_post", width, epsilon)?,
            projection: Some(Projection::Columns(weights.take("visual.proj", &[width, projection])?)),
            config: config.clone(),
        })
    }

    /// timm's ViT at `prefix` (empty or ending in a dot): no norm before the blocks, a bias on patches.
    /// The projection is that of open_clip's `timm_proj = "linear"`, stored beside the trunk.
    pub(crate) fn timm(
        weights: &mut Weights,
        prefix: &str,
        config: &VisionConfig,
        projection: Option<(&str, usize)>,
    ) -> std::result::Result<Self, CheckpointError> {
        let VisionConfig { width, epsilon, .. } = *config;
        let name = |part: &str| format!("{prefix}{part}");
        Ok(Self {
            class: weights.take(&name("cls_token"), &[1, 1, width])?,
            patch: weights.take(&name("patch_embed.proj.weight"), &config.patch_shape())?,
            patch_bias: Some(weights.take(&name("patch_embed.proj.bias"), &[width])?),
            positions: weights.take(&name("pos_embed"), &[1, config.patches() + 1, width])?,
            pre_norm: None,
            blocks: blocks(weights, &name("blocks"), BlockLayout::Timm, config)?,
            norm: LayerNorm::load(weights, &name("norm"), width, epsilon)?,
            projection: match projection {
                Some((name, out)) => Some(Projection::Rows(weights.take(name, &[out, width])?)),
                None => None,
            },
            config: config.clone(),
        })
    }

    /// The sizes.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Patches and class token with positions, after the first norm of CLIP's:
    /// `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the image has another size.
    pub fn embeddings(&self, pixels: &Tensor) -> Result<Tensor> {
        let VisionConfig { image, patch, channels, width, .. } = self.config;
        let (batch, c, h, w) = pixels.dims4()?;
        if (c, h, w) != (channels, image, image) {
            bail!("the image tower takes [batch, {channels}, {image}, {image}], not {:?}", pixels.dims());
        }
        let grid = image / patch;
        // A convolution whose stride is its kernel is one product over the patches.
        let pixels = if grid * patch == image {
            pixels.clone()
        } else {
            pixels.narrow(2, 0, grid * patch)?.narrow(3, 0, grid * patch)?
        };
        let patches = pixels
            .reshape((batch, channels, grid, patch, grid, patch))?
            .permute((0, 2, 4, 1, 3, 5))?
            .contiguous()?
            .reshape((batch, grid * grid, channels * patch * patch))?;
        let kernel = self.patch.reshape((width, channels * patch * patch))?;
        let patches = linear_of_images(&patches, &kernel, self.patch_bias.as_ref())?;
        let class =
            self.class.to_dtype(patches.dtype())?.reshape((1, 1, width))?.broadcast_as((batch, 1, width))?;
        let tokens =
            Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions.to_dtype(patches.dtype())?)?;
        match &self.pre_norm {
            Some(norm) => norm.forward(&tokens),
            None => Ok(tokens),
        }
    }

    /// The residual stream after all blocks, before the last norm: `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the image has another size, or the probe fails.
    pub fn hidden(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        self.stream(pixels, &self.blocks, probe)
    }

    /// The class token of [`Self::hidden`], `[batch, width]`.
    fn class_token(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let (x, last) = match self.blocks.split_last() {
            Some((last, before)) => (self.stream(pixels, before, probe)?, last),
            None => return class_of(&self.stream(pixels, &[], probe)?),
        };
        match last.frozen_at(&x, &vec![0; x.dim(0)?], probe)? {
            Some(class) => Ok(class),
            None => class_of(&last.forward(&x, &layer_name(self.blocks.len() - 1), probe)?),
        }
    }

    /// The residual stream after the first blocks, which these are.
    fn stream(&self, pixels: &Tensor, blocks: &[Block], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let mut x = observe(probe, "vision.embeddings", self.embeddings(pixels)?)?;
        for (layer, block) in blocks.iter().enumerate() {
            x = block.forward(&x, &layer_name(layer), probe)?;
        }
        Ok(x)
    }

    /// All tokens of the residual stream, normed: `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If a layer's shapes do not fit.
    pub fn normed(&self, hidden: &Tensor) -> Result<Tensor> {
        self.norm.forward(hidden)
    }

    /// The normed class token, `[batch, width]`: the input of the projection.
    ///
    /// # Errors
    /// If a layer's shapes do not fit.
    pub fn pool(&self, hidden: &Tensor) -> Result<Tensor> {
        self.norm.forward(&class_of(hidden)?)
    }
}

/// The first token, `[batch, width]`.
fn class_of(hidden: &Tensor) -> Result<Tensor> {
    hidden.narrow(1, 0, 1)?.squeeze(1)
}

/// What probes know a block by.
fn layer_name(layer: usize) -> String {
    format!("vision.layers.{layer}")
}

fn blocks(
    weights: &mut Weights,
    prefix: &str,
    layout: BlockLayout,
    config: &VisionConfig,
) -> std::result::Result<Vec<Block>, CheckpointError> {
    (0..config.layers)
        .map(|layer| Block::load(weights, &format!("{prefix}.{layer}"), layout, config.block()))
        .collect()
}

impl ImageTower for VisionTransformer {
    fn geometry(&self) -> PatchGeometry {
        PatchGeometry {
            channels: self.config.channels,
            depth: None,
            image: [self.config.image; 2],
            patch: [self.config.patch; 2],
            prefix_tokens: 1,
        }
    }

    fn embedding_width(&self) -> usize {
        self.projection.as_ref().map_or(self.config.width, Projection::width)
    }

    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let class = self.class_token(&enter(pixels, &self.patch)?, probe)?;
        let pooled = observe(probe, "vision.pooled", self.norm.forward(&class)?)?;
        match &self.projection {
            Some(projection) => leave(&projection.forward(&pooled)?),
            None => leave(&pooled),
        }
    }

    fn feature_width(&self) -> usize {
        self.config.width
    }

    fn features(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let hidden = self.hidden(&enter(pixels, &self.patch)?, probe)?;
        leave(&self.normed(&hidden.narrow(1, 1, self.config.patches())?)?)
    }

    fn cam_hook(&self) -> CamHook {
        CamHook {
            name: format!("vision.layers.{}.layer_norm1", self.config.layers.saturating_sub(1)),
            layout: ActivationLayout::Tokens,
        }
    }

    fn attention_hooks(&self) -> Vec<AttentionHook> {
        (0..self.config.layers)
            .map(|layer| AttentionHook {
                name: format!("vision.layers.{layer}.attention"),
                scope: AttentionScope::Tokens,
            })
            .collect()
    }
}
