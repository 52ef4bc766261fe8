//! Mixture of enhanced visual features (Nguyen et al. 2019).

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::answer_model::AnswerModel;
use super::bilinear::{Bilinear, BilinearSizes};
use super::classifier::AnswerClassifier;
use super::image::{ImageBranch, PartNames, Seen};
use super::loss::{AnswerLoss, RECONSTRUCTION, soft_cross_entropy_sum};
use super::question::{QuestionConfig, QuestionEncoder, QuestionStates};
use super::recurrent::Cell;
use super::stacked_attention::{StackedAttention, StackedSizes};
use super::{Batch, ImageConfig, JointAttention, Mode, QuestionType};
use crate::Trainable;
use crate::checkpoint::CheckpointError;
use crate::weights::{Parameters, Weights};

/// A model of the MEVF line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MevfConfig {
    /// Answers in the list.
    pub answers: usize,
    /// The image side.
    #[serde(default)]
    pub image: ImageConfig,
    /// The question side.
    pub question: QuestionConfig,
    /// How both are joined.
    #[serde(default)]
    pub fusion: Fusion,
    /// The weight of the mean squared error of reconstructions, before the division by the batch.
    #[serde(default = "default_reconstruction")]
    pub reconstruction: f64,
}

/// How image and question are joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fusion {
    /// A bilinear attention network.
    Ban {
        /// Attention maps.
        glimpses: usize,
    },
    /// A stacked attention network.
    San {
        /// Times that the image is looked at.
        stacks: usize,
    },
}

impl Default for Fusion {
    fn default() -> Self {
        Self::Ban { glimpses: 2 }
    }
}

pub(super) fn default_reconstruction() -> f64 {
    0.001
}

impl MevfConfig {
    /// The published model for so many answers and words.
    pub fn new(answers: usize, words: usize, fusion: Fusion) -> Self {
        Self {
            answers,
            image: ImageConfig::default(),
            question: QuestionConfig::words(words, Cell::Lstm),
            fusion,
            reconstruction: default_reconstruction(),
        }
    }
}

const NAMES: PartNames = PartNames { meta: "maml_v_emb", autoencoder: "ae_v_emb" };

/// The model.
#[derive(Clone, Debug)]
pub struct Mevf {
    config: MevfConfig,
    image: ImageBranch,
    question: QuestionEncoder,
    fusion: Joined,
    classifier: AnswerClassifier,
    parameters: Parameters,
}

#[derive(Clone, Debug)]
enum Joined {
    Ban(Bilinear),
    San(StackedAttention),
}

impl Mevf {
    /// The model of a state dict by the names of the authors' code.
    ///
    /// # Errors
    /// If tensors are missing, left over or of another shape.
    pub fn from_tensors(
        config: MevfConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(config, Weights::new(tensors, trainable))
    }

    /// A model that begins at random, but for what is given by name: word tables (`w_emb.emb.weight`,
    /// `w_emb.emb_.weight`), published weights of the image side ([`super::published`]).
    ///
    /// # Errors
    /// If a tensor that is given is none of the model's or of another shape.
    pub fn random(
        config: MevfConfig,
        seed: u64,
        given: BTreeMap<String, Tensor>,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(config, Weights::seeded(seed, given, Trainable::All))
    }

    pub(super) fn load(
        config: MevfConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        let (visual, hidden) = (config.image.width(), config.question.hidden);
        let image = ImageBranch::load(&mut weights, NAMES, &config.image)?;
        let question = QuestionEncoder::load(&mut weights, &config.question)?;
        let fusion = match config.fusion {
            Fusion::Ban { glimpses } => {
                let sizes = BilinearSizes { visual, hidden, glimpses };
                Joined::Ban(Bilinear::load(&mut weights, "v_att", "", sizes)?)
            }
            Fusion::San { stacks } => {
                let sizes = StackedSizes { visual, hidden, stacks };
                Joined::San(StackedAttention::load(&mut weights, "v_att", sizes)?)
            }
        };
        let classifier = AnswerClassifier::load(&mut weights, "classifier", hidden, config.answers)?;
        Ok(Self { config, image, question, fusion, classifier, parameters: weights.finish()? })
    }

    /// What the model is.
    pub fn config(&self) -> &MevfConfig {
        &self.config
    }

    /// The joint vectors before the classifier, `[batch, hidden]`.
    ///
    /// # Errors
    /// As [`AnswerModel::logits`].
    pub fn joint(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor> {
        Ok(self.see(batch, false, mode)?.0)
    }

    fn see(&self, batch: &Batch, reconstruct: bool, mode: Mode<'_>) -> Result<(Tensor, Option<Tensor>)> {
        let count = batch.questions.count()?;
        let Seen { tokens, reconstruction } = self.image.forward(&batch.images, count, reconstruct, mode)?;
        let embedded = batch.questions.words.as_ref().and_then(|words| words.embedded.as_ref());
        let QuestionStates { all, last, seen } = self.question.forward(&batch.questions, embedded)?;
        let joint = match &self.fusion {
            Joined::Ban(ban) => ban.forward(&tokens, &all, seen.as_ref(), mode)?.joint,
            Joined::San(san) => san.forward(&tokens, &last, mode)?.0,
        };
        Ok((joint, reconstruction))
    }
}

impl AnswerModel for Mevf {
    fn answers(&self) -> usize {
        self.config.answers
    }

    fn logits(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor> {
        self.classifier.forward(&self.joint(batch, mode)?, mode)
    }

    /// (sum of the cross entropies + weight * reconstruction) / batch; parts `answers` (the sum) and
    /// `reconstruction`.
    fn loss(&self, batch: &Batch, targets: &Tensor, mode: Mode<'_>) -> Result<AnswerLoss> {
        let (joint, reconstruction) = self.see(batch, true, mode)?;
        let answers = soft_cross_entropy_sum(&self.classifier.forward(&joint, mode)?, targets)?;
        let mut total = answers.clone();
        let mut parts = vec![("answers", answers)];
        if let Some(reconstruction) = reconstruction {
            total = (total + (&reconstruction * self.config.reconstruction)?)?;
            parts.push((RECONSTRUCTION, reconstruction));
        }
        Ok(AnswerLoss { total: (total / batch.questions.count()? as f64)?, parts })
    }

    fn embed_words(&self, tokens: &Tensor) -> Result<Tensor> {
        self.question.embed(tokens)
    }

    fn joint_attention(&self, _kind: Option<QuestionType>) -> Option<JointAttention> {
        Some(match &self.fusion {
            Joined::Ban(ban) => JointAttention::Pairs(ban.map_name().to_owned()),
            Joined::San(san) => JointAttention::Stacked(san.map_names()),
        })
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
