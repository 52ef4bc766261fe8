//! Both towers.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

use super::config::CtClipConfig;
use super::vit::CtVit;
use crate::bert::{Bert, BertPooling, BertProjection, BertTower, Padding};
use crate::checkpoint::CheckpointError;
use crate::device::{enter, leave};
use crate::layers::{Linear, Projection};
use crate::model::{DualEncoder, FoundationModel, ImageTower, TextTower, normalise};
use crate::probe::{dropout, nonlinearity};
use crate::weights::{Parameters, Side, Trainable, Weights};
use crate::{Activation, MaybeProbe, ModelConfig};

/// A CT-CLIP. Its logit scale is the original's `temperature`.
#[derive(Debug)]
pub struct CtClip {
    config: CtClipConfig,
    vision: CtVit,
    text: BertTower,
    temperature: Tensor,
    classifier: Option<Linear>,
    parameters: Parameters,
}

/// Share of values that CT-LiPro's classifier drops while it is trained.
const CLASSIFIER_DROPOUT: f64 = 0.3;

fn side(name: &str) -> Side {
    let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if is(&["visual_transformer.", "to_visual_latent.", "classifier."]) {
        Side::Image
    } else if is(&["text_transformer.", "to_text_latent."]) {
        Side::Text
    } else {
        Side::Both
    }
}

impl CtClip {
    /// A model of `config` with these tensors, by the names of `CT-CLIP_v2.pt`; those of `CT_LiPro_v2.pt`
    /// without `trained_model.`.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: CtClipConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::from_weights(config, Weights::new(tensors, trainable))
    }

    pub(crate) fn from_weights(
        config: CtClipConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        config.check()?;
        weights.sides(side);
        // Unused, and small, where its counterpart of volumes is not even read.
        weights.carry("to_text_latent_extra.weight");
        weights.ignore("to_visual_latent_extra.weight");
        let vision = CtVit::load(&mut weights, &config)?;
        let width = config.text.hidden_size;
        let text = BertTower {
            bert: Bert::load(&mut weights, "text_transformer.", &config.text, false)?,
            context: config.context,
            padding: Padding::Masked,
            pooling: BertPooling::Cls,
            projection: BertProjection::Linear(Projection::Rows(
                weights.take("to_text_latent.weight", &[config.projection, width])?,
            )),
        };
        let classifier = match config.classes {
            Some(classes) => Some(Linear::load(&mut weights, "classifier", classes, config.projection)?),
            None => None,
        };
        let temperature = weights.take("temperature", &[])?;
        Ok(Self { vision, text, temperature, classifier, config, parameters: weights.finish()? })
    }

    /// The sizes.
    pub fn config(&self) -> &CtClipConfig {
        &self.config
    }

    /// The image tower.
    pub fn vision(&self) -> &CtVit {
        &self.vision
    }

    /// The text tower.
    pub fn text(&self) -> &BertTower {
        &self.text
    }

    /// The logits of CT-LiPro's classifier, `[batch, classes]`, from image embeddings.
    ///
    /// # Errors
    /// If the checkpoint has no classifier.
    pub fn class_logits(&self, images: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let Some(classifier) = &self.classifier else { bail!("the checkpoint has no classifier") };
        let name = "classifier";
        let normed = enter(&normalise(images)?, &classifier.weight)?;
        let hidden = nonlinearity(probe, name, Activation::Relu, &normed)?;
        leave(&classifier.forward(&dropout(probe, name, CLASSIFIER_DROPOUT, hidden)?)?)
    }
}

impl DualEncoder for CtClip {
    fn image_tower(&self) -> &dyn ImageTower {
        &self.vision
    }

    fn text_tower(&self) -> &dyn TextTower {
        &self.text
    }

    fn logit_scale(&self) -> &Tensor {
        &self.temperature
    }
}

impl FoundationModel for CtClip {
    fn model_config(&self) -> ModelConfig {
        ModelConfig::CtClip(self.config.clone())
    }

    fn as_dual_encoder(&self) -> Option<&dyn DualEncoder> {
        Some(self)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
