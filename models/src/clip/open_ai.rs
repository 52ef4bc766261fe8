//! CLIP in OpenAI's layout, which open_clip shares: with a vision transformer or a residual network.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::config::{EotRule, TextConfig};
use super::text::TextTransformer;
use crate::checkpoint::CheckpointError;
use crate::model::{DualEncoder, FoundationModel, ImageTower, TextTower};
use crate::resnet::{ModifiedResNet, ResNetConfig};
use crate::shapes::Shapes;
use crate::sizes::{check_heads, check_sizes};
use crate::vit::{VisionConfig, VisionTransformer};
use crate::weights::{Parameters, Side, Trainable, Weights};
use crate::{Activation, ModelConfig};

/// The image tower of an [`OpenAiClipConfig`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenAiImage {
    /// A vision transformer.
    Transformer(VisionConfig),
    /// A residual network, with the heads of its attention pool.
    ResNet {
        /// The convolutions.
        trunk: ResNetConfig,
        /// Heads of the attention pool.
        pool_heads: usize,
    },
}

/// The sizes of a CLIP in OpenAI's layout.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenAiClipConfig {
    /// The image tower.
    pub image: OpenAiImage,
    /// The text tower.
    pub text: TextConfig,
    /// Width of the common space.
    pub projection: usize,
}

/// Every head of OpenAI's models has this width.
const HEAD: usize = 64;

impl OpenAiClipConfig {
    /// The sizes of a checkpoint, from names and shapes as OpenAI's loader does it. The activation is
    /// QuickGELU, that of OpenAI's weights: no shape tells it from the GELU of other weights.
    ///
    /// # Errors
    /// If a tensor that tells a size is missing.
    pub fn infer(tensors: &BTreeMap<String, Tensor>) -> Result<Self, CheckpointError> {
        let shapes = Shapes(tensors);
        let text_width = shapes.dim("ln_final.weight", 0)?;
        let vocabulary = shapes.dim("token_embedding.weight", 0)?;
        let text = TextConfig {
            vocabulary,
            width: text_width,
            hidden: shapes.dim("transformer.resblocks.0.mlp.c_fc.weight", 0)?,
            layers: shapes.count("transformer.resblocks."),
            heads: (text_width / HEAD).max(1),
            positions: shapes.dim("positional_embedding", 0)?,
            activation: Activation::QuickGelu,
            epsilon: 1e-5,
            eot: EotRule::Greatest,
            bos: vocabulary.saturating_sub(2) as u32,
            pad: 0,
        };
        let projection = shapes.dim("text_projection", 1)?;
        let image = if tensors.contains_key("visual.proj") {
            let width = shapes.dim("visual.conv1.weight", 0)?;
            let patch = shapes.dim("visual.conv1.weight", 3)?;
            OpenAiImage::Transformer(VisionConfig {
                width,
                hidden: shapes.dim("visual.transformer.resblocks.0.mlp.c_fc.weight", 0)?,
                layers: shapes.count("visual.transformer.resblocks."),
                heads: (width / HEAD).max(1),
                image: patch * shapes.grid("visual.positional_embedding", 0)?,
                patch,
                channels: shapes.dim("visual.conv1.weight", 1)?,
                activation: Activation::QuickGelu,
                epsilon: 1e-5,
            })
        } else {
            let trunk = shapes.modified_resnet("visual.")?;
            OpenAiImage::ResNet { pool_heads: (trunk.width * 32 / HEAD).max(1), trunk }
        };
        Ok(Self { image, text, projection })
    }

    /// Fails, naming the field, unless the sizes make sense.
    fn check(&self) -> Result<(), CheckpointError> {
        match &self.image {
            OpenAiImage::Transformer(vision) => vision.check()?,
            OpenAiImage::ResNet { trunk, pool_heads } => {
                trunk.check()?;
                check_heads("pool_heads", trunk.features(), *pool_heads)?;
            }
        }
        self.text.check()?;
        check_sizes(&[("projection", self.projection)])
    }

    /// The same sizes with another nonlinearity in both transformers: open_clip's own models use GELU.
    #[must_use]
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.text.activation = activation;
        if let OpenAiImage::Transformer(vision) = &mut self.image {
            vision.activation = activation;
        }
        self
    }
}

/// The image tower of an [`OpenAiClip`].
#[derive(Debug)]
enum ImageModel {
    Transformer(VisionTransformer),
    ResNet(ModifiedResNet),
}

/// A CLIP in OpenAI's layout.
#[derive(Debug)]
pub struct OpenAiClip {
    config: OpenAiClipConfig,
    image: ImageModel,
    text: TextTransformer,
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

impl OpenAiClip {
    /// A model of `config` with these tensors, by OpenAI's names.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: OpenAiClipConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(
        config: OpenAiClipConfig,
        mut weights: Weights,
    ) -> Result<Self, CheckpointError> {
        config.check()?;
        weights.sides(side);
        // TorchScript archives carry sizes and the causal mask as tensors.
        for name in ["input_resolution", "context_length", "vocab_size", "attn_mask"] {
            weights.ignore(name);
        }
        let image = match &config.image {
            OpenAiImage::Transformer(vision) => {
                ImageModel::Transformer(VisionTransformer::open_ai(&mut weights, vision, config.projection)?)
            }
            OpenAiImage::ResNet { trunk, pool_heads } => ImageModel::ResNet(ModifiedResNet::load(
                &mut weights,
                "visual.",
                trunk,
                config.projection,
                *pool_heads,
            )?),
        };
        let text = TextTransformer::open_ai(&mut weights, &config.text, config.projection)?;
        let logit_scale = weights.take("logit_scale", &[])?;
        Ok(Self { image, text, logit_scale, config, parameters: weights.finish()? })
    }

    /// The sizes.
    pub fn config(&self) -> &OpenAiClipConfig {
        &self.config
    }

    /// The image tower, if it is a transformer.
    pub fn vision_transformer(&self) -> Option<&VisionTransformer> {
        match &self.image {
            ImageModel::Transformer(vision) => Some(vision),
            ImageModel::ResNet(_) => None,
        }
    }

    /// The text tower.
    pub fn text(&self) -> &TextTransformer {
        &self.text
    }
}

impl DualEncoder for OpenAiClip {
    fn image_tower(&self) -> &dyn ImageTower {
        match &self.image {
            ImageModel::Transformer(vision) => vision,
            ImageModel::ResNet(vision) => vision,
        }
    }

    fn text_tower(&self) -> &dyn TextTower {
        &self.text
    }

    fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }
}

impl FoundationModel for OpenAiClip {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::OpenAiClip(self.config.clone())
    }

    fn as_dual_encoder(&self) -> Option<&dyn DualEncoder> {
        Some(self)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
