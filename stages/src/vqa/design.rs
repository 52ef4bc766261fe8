//! From the words that a person chooses to an architecture with all its sizes.

use pipe_engine::StageError;
use pipe_models::vqa::{
    AutoencoderConfig, Cell, CrossModalConfig, Fusion, ImageConfig, MetaCnnConfig, MevfConfig, QcrConfig,
    QuestionConfig, Reader,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::architecture::Architecture;
use super::senses::{Modality, VisualTokens};
use super::tables::Tables;
use super::{Asked, Matching, QuestionVocabulary, TrainAndTestVocabulary};
use crate::model::Model;

/// A method of visual question answering.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Mixture of enhanced visual features (Nguyen et al. 2019).
    Mevf,
    /// Question-conditioned reasoning, with a branch for closed and one for open questions (Zhan et al. 2020).
    Qcr,
    /// A transformer over the tokens of both towers (after Shen et al. 2021 and Lin et al. 2023).
    CrossModal,
}

/// How MEVF joins image and question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fusing {
    /// A bilinear attention network (Kim et al. 2018).
    Ban,
    /// A stacked attention network (Yang et al. 2016).
    San,
}

/// How questions are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// As words of the training questions, by a recurrent network.
    Words,
    /// As the hidden states of the checkpoint's text tower.
    Tower,
}

/// Which questions tell the answers that a model can give, and the words that it knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum AnswerSource {
    /// Those of training.
    #[default]
    #[serde(rename = "train")]
    Train,
    /// Those of the test too, as the code of PubMedCLIP has it: what it reports can only be compared with figures made so.
    /// Answers are compared in lower case, closed ones come first, and an open answer that is also a closed one is another.
    #[serde(rename = "train+test")]
    TrainAndTest,
}

impl AnswerSource {
    /// Whether only training tells them; a description leaves that out.
    pub(crate) fn is_train(&self) -> bool {
        *self == Self::Train
    }
}

/// What is chosen of an architecture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Design {
    pub(crate) method: Method,
    pub(crate) fusion: Fusing,
    pub(crate) glimpses: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) modality: Modality,
    pub(crate) reader: Reading,
    pub(crate) mask_padding: bool,
    pub(crate) autoencoder: bool,
    pub(crate) reconstruct: bool,
}

impl Design {
    /// The architecture for so many answers and words.
    ///
    /// # Errors
    /// If it needs a checkpoint, or one with a text tower, and there is none.
    pub(crate) fn architecture(
        &self,
        encoder: Option<&Model>,
        tokens: VisualTokens,
        answers: usize,
        closed: Option<usize>,
        vocabulary: &QuestionVocabulary,
        tables: &Tables,
    ) -> Result<Architecture, StageError> {
        let image = self.image(encoder, tokens)?;
        let words = vocabulary.words().len();
        let config = tables.config(words, vocabulary.has_own_unknown());
        let text_width = || -> Result<usize, StageError> {
            let encoder = encoder.ok_or_else(|| {
                StageError::failed(
                    "the questions are read by a text tower: the input `checkpoint` is missing",
                )
            })?;
            Ok(encoder.text_tower()?.hidden_width())
        };
        let question = |cell: Cell| -> Result<QuestionConfig, StageError> {
            let reader = match self.reader {
                Reading::Words => Reader::Words { tables: config.clone(), cell },
                Reading::Tower => Reader::States { width: text_width()? },
            };
            Ok(QuestionConfig { hidden: self.hidden, reader, mask_padding: self.mask_padding })
        };
        Ok(match (self.method, closed) {
            (Method::Mevf, _) => {
                let fusion = match self.fusion {
                    Fusing::Ban => Fusion::Ban { glimpses: self.glimpses },
                    Fusing::San => Fusion::San { stacks: self.glimpses },
                };
                let question = question(Cell::Lstm)?;
                Architecture::Mevf(MevfConfig { image, question, ..MevfConfig::new(answers, words, fusion) })
            }
            (Method::Qcr, Some(closed)) => Architecture::Qcr(QcrConfig {
                image,
                question: question(Cell::Gru)?,
                conditioning: config.clone(),
                glimpses: self.glimpses,
                ..QcrConfig::new(closed, answers - closed, words)
            }),
            (Method::Qcr, None) => return Err(StageError::failed("QCR needs its answers by branch")),
            (Method::CrossModal, _) => {
                let text = text_width()?;
                let transformer = CrossModalConfig::new(answers, text, 0);
                Architecture::CrossModal(CrossModalConfig {
                    image,
                    width: self.hidden,
                    layers: self.layers,
                    heads: self.heads,
                    ..transformer
                })
            }
        })
    }

    /// The image side: the encoder or the meta-learned network, and perhaps the auto-encoder; for a model of the
    /// question alone, a learned vector of the same width.
    fn image(&self, encoder: Option<&Model>, tokens: VisualTokens) -> Result<ImageConfig, StageError> {
        let features = match encoder {
            None => None,
            Some(encoder) => {
                let tower = encoder.image_tower()?;
                Some(match tokens {
                    VisualTokens::Pooled => tower.embedding_width(),
                    VisualTokens::Grid => tower.feature_width(),
                })
            }
        };
        let autoencoder = self
            .autoencoder
            .then(|| AutoencoderConfig { reconstruct: self.reconstruct, ..AutoencoderConfig::default() });
        let meta = features.is_none().then(MetaCnnConfig::default);
        let seen = ImageConfig { features, meta, autoencoder, constant: None };
        Ok(match self.modality {
            Modality::Both | Modality::Image => seen,
            Modality::Question => ImageConfig::constant(seen.width()),
        })
    }
}

/// The answers of the questions in the order of their first occurrence, and with branches how many of them are
/// closed: those come first. An answer to questions of both types is then in both parts.
pub(crate) fn answer_list(
    asked: &[&Asked],
    source: AnswerSource,
    matching: Matching,
    min_occurrence: usize,
    branches: bool,
) -> (Vec<String>, Option<usize>) {
    if source == AnswerSource::TrainAndTest {
        let records = asked.iter().map(|one| (one.answer.as_str(), one.answer_type()));
        let known = TrainAndTestVocabulary::new(records);
        return (known.answers().to_vec(), branches.then(|| known.closed()));
    }
    let list = |wanted: &dyn Fn(&Asked) -> bool| -> Vec<String> {
        let mut counts = std::collections::HashMap::new();
        let mut order = Vec::new();
        for one in asked.iter().filter(|one| wanted(one)) {
            let form = matching.form(&one.answer);
            let count = counts.entry(form.clone()).or_insert(0usize);
            if *count == 0 {
                order.push(form);
            }
            *count += 1;
        }
        order.retain(|answer| counts[answer] >= min_occurrence);
        order
    };
    if !branches {
        return (list(&|_| true), None);
    }
    let mut answers = list(&|one| one.closed);
    let closed = answers.len();
    answers.extend(list(&|one| !one.closed));
    (answers, Some(closed))
}
