//! The architectures of models that answer, with their sizes.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use pipe_engine::StageError;
use pipe_models::Trainable;
use pipe_models::vqa::{
    AnswerModel, AutoencoderConfig, CrossModal, CrossModalConfig, ImageConfig, Mevf, MevfConfig, OnDevice,
    Qcr, QcrConfig, Reader,
};
use serde::{Deserialize, Serialize};

use crate::model::{checkpoint_error, tensor_error};

/// The architecture with its sizes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Architecture {
    Mevf(MevfConfig),
    Qcr(QcrConfig),
    CrossModal(CrossModalConfig),
}

impl Architecture {
    /// A name for tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Mevf(config) => match config.fusion {
                pipe_models::vqa::Fusion::Ban { .. } => "mevf-ban",
                pipe_models::vqa::Fusion::San { .. } => "mevf-san",
            },
            Self::Qcr(_) => "qcr",
            Self::CrossModal(_) => "cross-modal",
        }
    }

    pub(crate) fn image(&self) -> &ImageConfig {
        match self {
            Self::Mevf(config) => &config.image,
            Self::Qcr(config) => &config.image,
            Self::CrossModal(config) => &config.image,
        }
    }

    /// All but what it sees of images, of which only the width of the vectors is kept.
    pub(super) fn head(&self) -> Self {
        let mut head = self.clone();
        let image = match &mut head {
            Self::Mevf(config) => &mut config.image,
            Self::Qcr(config) => &mut config.image,
            Self::CrossModal(config) => &mut config.image,
        };
        *image = ImageConfig::constant(image.width());
        head
    }

    /// Whether questions are read as hidden states of a text tower.
    pub(crate) fn reads_states(&self) -> bool {
        let states = |reader: &Reader| matches!(reader, Reader::States { .. });
        match self {
            Self::Mevf(config) => states(&config.question.reader),
            Self::Qcr(config) => states(&config.question.reader),
            Self::CrossModal(_) => true,
        }
    }

    /// Whether questions are read as words of the vocabulary, alone or beside hidden states.
    pub(crate) fn reads_words(&self) -> bool {
        match self {
            Self::Mevf(_) => !self.reads_states(),
            // The attention that conditions its reasoning reads words, whatever its fusion does.
            Self::Qcr(_) => true,
            Self::CrossModal(_) => false,
        }
    }

    /// The auto-encoder, with what its tensors are called.
    pub(super) fn autoencoder(&self) -> Option<(&'static str, &AutoencoderConfig)> {
        let name = match self {
            Self::Mevf(_) => "ae_v_emb",
            Self::Qcr(_) | Self::CrossModal(_) => "ae",
        };
        self.image().autoencoder.as_ref().map(|config| (name, config))
    }

    /// What the tensors of the meta-learned network and of the auto-encoder are called.
    pub(crate) fn image_names(&self) -> [&'static str; 2] {
        match self {
            Self::Mevf(_) => ["maml_v_emb", "ae_v_emb"],
            Self::Qcr(_) | Self::CrossModal(_) => ["maml", "ae"],
        }
    }

    /// A model that begins at random but for what is given.
    pub(crate) fn random(
        &self,
        seed: u64,
        given: BTreeMap<String, Tensor>,
    ) -> Result<Box<dyn AnswerModel>, StageError> {
        Ok(match self {
            Self::Mevf(config) => {
                Box::new(Mevf::random(config.clone(), seed, given).map_err(checkpoint_error)?)
            }
            Self::Qcr(config) => {
                Box::new(Qcr::random(config.clone(), seed, given).map_err(checkpoint_error)?)
            }
            Self::CrossModal(config) => {
                Box::new(CrossModal::random(config.clone(), seed, given).map_err(checkpoint_error)?)
            }
        })
    }

    /// The model of a state dict.
    pub(super) fn load(
        &self,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> Result<Box<dyn AnswerModel>, StageError> {
        Ok(match self {
            Self::Mevf(config) => {
                Box::new(Mevf::from_tensors(config.clone(), tensors, trainable).map_err(checkpoint_error)?)
            }
            Self::Qcr(config) => {
                Box::new(Qcr::from_tensors(config.clone(), tensors, trainable).map_err(checkpoint_error)?)
            }
            Self::CrossModal(config) => Box::new(
                CrossModal::from_tensors(config.clone(), tensors, trainable).map_err(checkpoint_error)?,
            ),
        })
    }

    /// A model of this architecture where `device` is.
    pub(crate) fn moved(
        &self,
        model: Box<dyn AnswerModel>,
        trainable: Trainable,
        device: &Device,
    ) -> Result<Box<dyn AnswerModel>, StageError> {
        if device.is_cpu() {
            return Ok(model);
        }
        let tensors = moved(model.parameters().tensors(), device)?;
        Ok(Box::new(OnDevice::new(self.load(tensors, trainable)?, device.clone())))
    }
}

/// Tensors where `device` is.
pub(crate) fn moved(
    tensors: BTreeMap<String, Tensor>,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, StageError> {
    let there = tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_device(device)?)));
    there.collect::<candle_core::Result<_>>().map_err(tensor_error)
}
