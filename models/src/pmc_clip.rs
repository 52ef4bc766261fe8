//! PMC-CLIP (Lin et al. 2023): CLIP's ResNet, PubMedBERT, and a fusion transformer over both.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::bert::{Bert, BertConfig, BertPooling, BertProjection, BertTower, Padding};
use crate::checkpoint::CheckpointError;
use crate::layers::{Block, BlockLayout, BlockShape, Projection};
use crate::model::{DualEncoder, FoundationModel, ImageTower, TextTower, normalise};
use crate::ops::composed::log_softmax;
use crate::probe::observe;
use crate::resnet::{ModifiedResNet, ResNetConfig};
use crate::shapes::Shapes;
use crate::train::loss::info_nce;
use crate::weights::{Parameters, Side, Trainable, Weights};
use crate::{Activation, MaybeProbe, ModelConfig};

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
/// The learned logarithm of the logit scale, for the split form, which has none.
const LOGIT_SCALE: f32 = 4.4292;
/// Labels of tokens whose prediction does not count.
const IGNORED_LABEL: u32 = 0;

impl PmcClipConfig {
    /// The sizes of a checkpoint, from names and shapes; what they do not tell is as published.
    ///
    /// # Errors
    /// If a tensor that tells a size is missing.
    pub fn infer(tensors: &BTreeMap<String, Tensor>) -> std::result::Result<Self, CheckpointError> {
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

/// A PMC-CLIP.
#[derive(Debug)]
pub struct PmcClip {
    config: PmcClipConfig,
    image: ModifiedResNet,
    text: BertTower,
    fusion: Option<Fusion>,
    logit_scale: Tensor,
    parameters: Parameters,
}

/// Blocks over the hidden states of a text, a learned token, and the image.
#[derive(Debug)]
struct Fusion {
    /// `[1, 1, width]`.
    image_token: Tensor,
    blocks: Vec<Block>,
    /// `[width, vocabulary]`.
    vocabulary: Projection,
}

/// The shares of both losses in the total; the published training takes a half of each.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LossWeights {
    /// Of the contrastive loss.
    pub matching: f64,
    /// Of the loss of masked words.
    pub masked_words: f64,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self { matching: 0.5, masked_words: 0.5 }
    }
}

/// The losses of a batch, scalars.
#[derive(Clone, Debug)]
pub struct PmcLosses {
    /// The contrastive loss.
    pub matching: Tensor,
    /// The mean negative log-probability of the words behind the masks.
    pub masked_words: Tensor,
    /// Their weighted sum.
    pub total: Tensor,
}

fn side(name: &str) -> Side {
    match name {
        name if name.starts_with("visual.") => Side::Image,
        name if name.starts_with("text_encoder.") || name == "text_projection" => Side::Text,
        _ => Side::Both,
    }
}

impl PmcClip {
    /// A model of `config` with these tensors, by the names of `checkpoint.pt` without `module.`.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: PmcClipConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(
        config: PmcClipConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        config.text.check()?;
        weights.sides(side);
        weights.fill_in("logit_scale", LOGIT_SCALE)?;
        // Leftovers of CLIP's text tower.
        weights.carry("positional_embedding");
        weights.carry_all("ln_final.");
        let image = ModifiedResNet::load(
            &mut weights,
            "visual.",
            &config.image,
            config.projection,
            config.pool_heads,
        )?;
        let width = config.text.hidden_size;
        let with_pooler = config.pooling == BertPooling::Pooler;
        let text = BertTower {
            bert: Bert::load(&mut weights, "text_encoder.", &config.text, with_pooler)?,
            context: config.context,
            padding: Padding::Attended,
            pooling: config.pooling,
            projection: BertProjection::Linear(Projection::Columns(
                weights.take("text_projection", &[width, config.projection])?,
            )),
        };
        let fusion = match &config.fusion {
            Some(fusion) => Some(Fusion::load(&mut weights, fusion, &config.text)?),
            None => None,
        };
        let logit_scale = weights.take("logit_scale", &[])?;
        Ok(Self { image, text, fusion, logit_scale, config, parameters: weights.finish()? })
    }

    /// The sizes.
    pub fn config(&self) -> &PmcClipConfig {
        &self.config
    }

    /// The text tower.
    pub fn text(&self) -> &BertTower {
        &self.text
    }

    /// The fusion transformer over hidden states `[batch, tokens, width]` and image embeddings
    /// `[batch, width]` (normalised here): `[batch, tokens + 2, width]`. The last two tokens are a
    /// learned one and the image.
    ///
    /// # Errors
    /// If the checkpoint has no fusion transformer, or the widths differ.
    pub fn fuse(&self, hidden: &Tensor, images: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        self.fusion()?.forward(hidden, images, probe)
    }

    /// The logarithms of the probabilities of words, `[batch, tokens, vocabulary]`, from the result of
    /// [`Self::fuse`].
    ///
    /// # Errors
    /// If the checkpoint has no fusion transformer.
    pub fn word_log_probabilities(&self, fused: &Tensor) -> Result<Tensor> {
        let tokens = fused.dim(1)?.saturating_sub(2);
        let words = fused.narrow(1, 0, tokens)?.contiguous()?;
        log_softmax(&self.fusion()?.vocabulary.forward(&words)?)
    }

    /// The losses of pre-training: `pixels` and `ids` of which some are masked are pairs; `labels`
    /// `[batch, tokens]` hold the ids behind the masks and 0 where nothing is asked.
    ///
    /// # Errors
    /// If the checkpoint has no fusion transformer, no label counts, or shapes do not fit.
    pub fn losses(
        &self,
        pixels: &Tensor,
        ids: &Tensor,
        labels: &Tensor,
        weights: LossWeights,
        probe: MaybeProbe<'_>,
    ) -> Result<PmcLosses> {
        let images = self.image.embed_images(pixels, probe)?;
        let hidden = self.text.hidden_states(&self.text.token_embeddings(ids)?, ids, probe)?;
        let texts = self.text.embed_hidden_states(&hidden, ids, probe)?;
        let matching = info_nce(&self.logits(&images, &texts)?, &[])?;
        let fused = self.fuse(&hidden, &images, probe)?;
        let masked_words = masked_word_loss(&self.word_log_probabilities(&fused)?, labels)?;
        let total = ((&matching * weights.matching)? + (&masked_words * weights.masked_words)?)?;
        Ok(PmcLosses { matching, masked_words, total })
    }

    fn fusion(&self) -> Result<&Fusion> {
        match &self.fusion {
            Some(fusion) => Ok(fusion),
            None => bail!("the split form of PMC-CLIP has no fusion transformer"),
        }
    }
}

/// The mean negative log-probability of the labels that are not 0, over `[batch, tokens, vocabulary]`.
///
/// # Errors
/// If no label counts, or one is outside the vocabulary.
pub fn masked_word_loss(log_probabilities: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let vocabulary = log_probabilities.dim(2)?;
    let labels = labels.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
    let places: Vec<u32> =
        (0..labels.len() as u32).filter(|place| labels[*place as usize] != IGNORED_LABEL).collect();
    if places.is_empty() {
        bail!("no label of the batch counts");
    }
    let asked: Vec<u32> = places.iter().map(|place| labels[*place as usize]).collect();
    let device = log_probabilities.device();
    let rows = log_probabilities
        .reshape(((), vocabulary))?
        .index_select(&Tensor::from_vec(places, asked.len(), device)?, 0)?;
    let asked = Tensor::from_vec(asked, (rows.dim(0)?, 1), device)?;
    rows.gather(&asked, 1)?.mean_all()?.neg()
}

impl Fusion {
    fn load(
        weights: &mut Weights,
        config: &FusionConfig,
        text: &BertConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let width = text.hidden_size;
        let shape = BlockShape {
            width,
            hidden: config.hidden,
            heads: config.heads,
            activation: Activation::Gelu,
            epsilon: 1e-5,
            causal: false,
        };
        Ok(Self {
            image_token: weights.take("img_special_token", &[1, 1, width])?,
            blocks: (0..config.layers)
                .map(|layer| {
                    let prefix = format!("fusion_module.resblocks.{layer}");
                    Block::load(weights, &prefix, BlockLayout::OpenAi, shape)
                })
                .collect::<std::result::Result<_, _>>()?,
            vocabulary: Projection::Columns(weights.take("mlm_projection", &[width, text.vocab_size])?),
        })
    }

    fn forward(&self, hidden: &Tensor, images: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let (batch, _, width) = hidden.dims3()?;
        let token = self.image_token.broadcast_as((batch, 1, width))?;
        let images = normalise(images)?.unsqueeze(1)?;
        let mut x = observe(probe, "fusion.embeddings", Tensor::cat(&[hidden, &token, &images], 1)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &format!("fusion.layers.{layer}"), probe)?;
        }
        Ok(x)
    }
}

impl DualEncoder for PmcClip {
    fn image_tower(&self) -> &dyn ImageTower {
        &self.image
    }

    fn text_tower(&self) -> &dyn TextTower {
        &self.text
    }

    fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }
}

impl FoundationModel for PmcClip {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::PmcClip(self.config.clone())
    }

    fn as_dual_encoder(&self) -> Option<&dyn DualEncoder> {
        Some(self)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
