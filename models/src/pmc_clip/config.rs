//! The sizes of a PMC-CLIP.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::bert::{BertConfig, BertPooling};
use crate::checkpoint::CheckpointError;
use crate::resnet::ResNetConfig;
use crate::shapes::Shapes;
use crate::sizes::{check_fits, check_heads, check_layers, check_sizes};

/// The sizes of a PMC-CLIP.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmcClipConfig {
    /// The image tower.
    pub image: ResNetConfig,
    /// Heads of the attention pool. The weights do not tell: they were trained with 32 (the width times
    /// 32 over 64); a notebook of the authors takes 8.
    pub pool_heads: usize,
    /// The text tower.
    pub text: BertConfig,
    /// Tokens of a text. Padding is attended, so every text has exactly this length.
    pub context: usize,
    /// Which vector stands for a text.
    pub pooling: BertPooling,
    /// Width of the common space.
    pub projection: usize,
    /// The fusion transformer, which the split form of the checkpoint leaves out.
    pub fusion: Option<FusionConfig>,
}

/// The sizes of the fusion transformer; its width is that of the text tower.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusionConfig {
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width inside the perceptrons.
    pub hidden: usize,
}

/// Tokens of a text in the published model.
const CONTEXT: usize = 77;
/// Heads of the published fusion transformer.
const FUSION_HEADS: usize = 8;

impl PmcClipConfig {
    /// Fails, naming the field, unless the sizes make sense.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        self.image.check()?;
        check_heads("pool_heads", self.image.features(), self.pool_heads)?;
        self.text.check()?;
        check_sizes(&[("context", self.context), ("projection", self.projection)])?;
        check_fits(
            ("context", self.context),
            ("max_position_embeddings", self.text.max_position_embeddings),
        )?;
        if let Some(fusion) = &self.fusion {
            check_layers(&[("fusion.layers", fusion.layers)])?;
            check_sizes(&[("fusion.hidden", fusion.hidden)])?;
            check_heads("fusion.heads", self.text.hidden_size, fusion.heads)?;
        }
        Ok(())
    }

    /// The sizes of a checkpoint, from names and shapes; what they do not tell is as published.
    ///
    /// # Errors
    /// If a tensor that tells a size is missing.
    pub fn infer(tensors: &BTreeMap<String, Tensor>) -> Result<Self, CheckpointError> {
        let shapes = Shapes(tensors);
        let image = shapes.modified_resnet("visual.")?;
        let text = shapes.bert("text_encoder.")?;
        let layers = shapes.count("fusion_module.resblocks.");
        Ok(Self {
            pool_heads: (image.width * 32 / 64).max(1),
            image,
            context: CONTEXT.min(text.max_position_embeddings),
            text,
            pooling: BertPooling::Cls,
            projection: shapes.dim("text_projection", 1)?,
            fusion: match layers {
                0 => None,
                _ => Some(FusionConfig {
                    layers,
                    heads: FUSION_HEADS,
                    hidden: shapes.dim("fusion_module.resblocks.0.mlp.c_fc.weight", 0)?,
                }),
            },
        })
    }
}
