//! The model: towers, fusion and losses.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

use super::config::PmcClipConfig;
use super::fusion::{Fusion, masked_word_loss};
use crate::bert::{Bert, BertPooling, BertProjection, BertTower, Padding};
use crate::checkpoint::CheckpointError;
use crate::layers::Projection;
use crate::model::{DualEncoder, FoundationModel, ImageTower, TextTower, WordPredictor};
use crate::resnet::ModifiedResNet;
use crate::train::loss::info_nce;
use crate::weights::{Parameters, Side, Trainable, Weights};
use crate::{MaybeProbe, ModelConfig};

/// The learned logarithm of the logit scale, for the split form, which has none.
const LOGIT_SCALE: f32 = 4.4292;

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
        config.check()?;
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
        self.fusion()?.word_log_probabilities(fused)
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

    fn as_word_predictor(&self) -> Option<&dyn WordPredictor> {
        self.fusion.as_ref().map(|fusion| fusion as &dyn WordPredictor)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
