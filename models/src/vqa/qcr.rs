//! Medical visual question answering via conditional reasoning (Zhan et al. 2020).

use std::collections::BTreeMap;

use candle_core::{D, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use super::answer_model::AnswerModel;
use super::bilinear::{Bilinear, BilinearSizes};
use super::classifier::AnswerClassifier;
use super::conditioned::QuestionConditioning;
use super::image::{ImageBranch, PartNames, Seen};
use super::loss::{AnswerLoss, RECONSTRUCTION, soft_cross_entropy_mean};
use super::mevf::default_reconstruction;
use super::question::{QuestionConfig, QuestionEncoder, QuestionStates};
use super::recurrent::Cell;
use super::words::WordsConfig;
use super::{Batch, ImageConfig, JointAttention, Mode, QuestionType};
use crate::Trainable;
use crate::checkpoint::CheckpointError;
use crate::weights::{Parameters, Weights};

/// A model of the QCR line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QcrConfig {
    /// Answers to closed questions: the first columns.
    pub closed: usize,
    /// Answers to open questions: the columns behind them.
    pub open: usize,
    /// The image side.
    #[serde(default)]
    pub image: ImageConfig,
    /// The question side.
    pub question: QuestionConfig,
    /// The words whose attention conditions the reasoning; one table of them counts.
    pub conditioning: WordsConfig,
    /// Attention maps of each branch.
    #[serde(default = "default_glimpses")]
    pub glimpses: usize,
    /// The weight of the mean squared error of reconstructions.
    #[serde(default = "default_reconstruction")]
    pub reconstruction: f64,
}

fn default_glimpses() -> usize {
    2
}

impl QcrConfig {
    /// The published model for so many closed and open answers and words.
    pub fn new(closed: usize, open: usize, words: usize) -> Self {
        Self {
            closed,
            open,
            image: ImageConfig::default(),
            question: QuestionConfig::words(words, Cell::Gru),
            conditioning: WordsConfig::new(words),
            glimpses: default_glimpses(),
            reconstruction: default_reconstruction(),
        }
    }

    fn answers(&self, kind: QuestionType) -> usize {
        match kind {
            QuestionType::Closed => self.closed,
            QuestionType::Open => self.open,
        }
    }
}

const NAMES: PartNames = PartNames { meta: "maml", autoencoder: "ae" };

/// The model: one fusion and one classifier for each type of question, and one attention to the question that
/// conditions both. Which branch a question takes is part of the batch.
#[derive(Clone, Debug)]
pub struct Qcr {
    config: QcrConfig,
    image: ImageBranch,
    question: QuestionEncoder,
    conditioning: QuestionConditioning,
    branches: [Branch; 2],
    parameters: Parameters,
}

#[derive(Clone, Debug)]
struct Branch {
    kind: QuestionType,
    fusion: Bilinear,
    classifier: AnswerClassifier,
}

/// What one branch makes of the questions that take it.
#[derive(Clone, Debug)]
pub struct BranchAnswers {
    /// The branch.
    pub kind: QuestionType,
    /// Which rows of the batch take it, in order.
    pub rows: Vec<u32>,
    /// The conditioned joint vectors, `[rows, hidden]`.
    pub joint: Tensor,
    /// The logits of the branch's own answers, `[rows, answers of the branch]`.
    pub logits: Tensor,
}

impl Qcr {
    /// The model of a state dict by the names of the authors' code.
    ///
    /// # Errors
    /// If tensors are missing, left over or of another shape.
    pub fn from_tensors(
        config: QcrConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(config, Weights::new(tensors, trainable))
    }

    /// A model that begins at random, but for what is given by name: word tables (`w_emb.emb.weight`,
    /// `w_emb.emb_.weight`, `typeatt.w_emb.emb.weight`), published weights of the image side
    /// ([`super::published`]).
    ///
    /// # Errors
    /// If a tensor that is given is none of the model's or of another shape.
    pub fn random(
        config: QcrConfig,
        seed: u64,
        given: BTreeMap<String, Tensor>,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(config, Weights::seeded(seed, given, Trainable::All))
    }

    pub(super) fn load(
        config: QcrConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        let (visual, hidden) = (config.image.width(), config.question.hidden);
        let image = ImageBranch::load(&mut weights, NAMES, &config.image)?;
        let question = QuestionEncoder::load(&mut weights, &config.question)?;
        let conditioning = QuestionConditioning::load(&mut weights, "typeatt", &config.conditioning, hidden)?;
        let sizes = BilinearSizes { visual, hidden, glimpses: config.glimpses };
        let mut branch = |kind, name: &str| -> std::result::Result<_, CheckpointError> {
            let (attention, residual) = (format!("{name}_att"), format!("{name}_resnet."));
            Ok(Branch {
                kind,
                fusion: Bilinear::load(&mut weights, &attention, &residual, sizes)?,
                classifier: AnswerClassifier::load(
                    &mut weights,
                    &format!("{name}_classifier"),
                    hidden,
                    config.answers(kind),
                )?,
            })
        };
        let branches = [branch(QuestionType::Closed, "close")?, branch(QuestionType::Open, "open")?];
        Ok(Self { image, question, conditioning, branches, parameters: weights.finish()?, config })
    }

    /// What the model is.
    pub fn config(&self) -> &QcrConfig {
        &self.config
    }

    /// What each branch that a question takes makes of its questions, closed before open.
    ///
    /// # Errors
    /// As [`AnswerModel::logits`].
    pub fn branches(&self, batch: &Batch, mode: Mode<'_>) -> Result<Vec<BranchAnswers>> {
        Ok(self.see(batch, false, mode)?.0)
    }

    fn see(
        &self,
        batch: &Batch,
        reconstruct: bool,
        mode: Mode<'_>,
    ) -> Result<(Vec<BranchAnswers>, Option<Tensor>)> {
        let count = batch.questions.count()?;
        let Some(types) = batch.types.as_ref().filter(|types| types.len() == count) else {
            bail!("the batch has {:?} types for {count} questions", batch.types.as_ref().map(Vec::len));
        };
        let Seen { tokens, reconstruction } = self.image.forward(&batch.images, count, reconstruct, mode)?;
        let words = batch.questions.words()?;
        let (own, conditioning) = match &words.embedded {
            Some(embedded) => {
                let (first, rest) = (self.config.question.embedded(), self.config.conditioning.width);
                let part = |start, width| embedded.narrow(D::Minus1, start, width)?.contiguous();
                let own = if first > 0 { Some(part(0, first)?) } else { None };
                (own, part(first, rest)?)
            }
            None => (None, self.conditioning.attention().embed(&words.tokens)?),
        };
        let QuestionStates { all, seen, .. } = self.question.forward(&batch.questions, own.as_ref())?;
        let factors = self.conditioning.forward(&conditioning, mode)?;
        let mut answers = Vec::with_capacity(self.branches.len());
        for branch in &self.branches {
            let rows: Vec<u32> =
                (0..count as u32).filter(|row| types[*row as usize] == branch.kind).collect();
            if rows.is_empty() {
                continue;
            }
            let places = Tensor::from_slice(&rows, rows.len(), tokens.device())?;
            let of = |x: &Tensor| x.contiguous()?.index_select(&places, 0);
            let seen = match &seen {
                Some(seen) => Some(of(seen)?),
                None => None,
            };
            let fused = branch.fusion.forward(&of(&tokens)?, &of(&all)?, seen.as_ref(), mode)?;
            let joint = (fused.joint * of(&factors)?)?;
            let logits = branch.classifier.forward(&joint, mode)?;
            answers.push(BranchAnswers { kind: branch.kind, rows, joint, logits });
        }
        Ok((answers, reconstruction))
    }

    /// The first column of a branch, and how many it has.
    fn columns(&self, kind: QuestionType) -> (usize, usize) {
        match kind {
            QuestionType::Closed => (0, self.config.closed),
            QuestionType::Open => (self.config.closed, self.config.open),
        }
    }
}

impl AnswerModel for Qcr {
    fn answers(&self) -> usize {
        self.config.closed + self.config.open
    }

    /// Closed answers before open ones; those of the branch that a question does not take have minus infinity.
    fn logits(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor> {
        let (answers, _) = self.see(batch, false, mode)?;
        let count = batch.questions.count()?;
        let mut rows: Vec<Option<Tensor>> = vec![None; count];
        for branch in &answers {
            let (first, own) = self.columns(branch.kind);
            // A GPU makes no tensor without elements.
            let rest = |columns: usize| {
                let shape = (branch.rows.len(), columns);
                let full = || Tensor::full(f32::NEG_INFINITY, shape, branch.logits.device());
                (columns > 0).then(|| full()?.to_dtype(branch.logits.dtype())).transpose()
            };
            let (before, behind) = (rest(first)?, rest(self.answers() - first - own)?);
            let all: Vec<&Tensor> = before.iter().chain([&branch.logits]).chain(&behind).collect();
            let all = Tensor::cat(&all, 1)?;
            for (place, row) in branch.rows.iter().enumerate() {
                rows[*row as usize] = Some(all.narrow(0, place, 1)?);
            }
        }
        let rows: Vec<Tensor> = rows.into_iter().flatten().collect();
        Tensor::cat(&rows, 0)
    }

    /// The mean cross entropy over the closed questions and answers, plus that over the open ones, plus weight *
    /// reconstruction; parts `closed`, `open` (as far as the batch has such questions) and `reconstruction`.
    fn loss(&self, batch: &Batch, targets: &Tensor, mode: Mode<'_>) -> Result<AnswerLoss> {
        let (answers, reconstruction) = self.see(batch, true, mode)?;
        let mut total: Option<Tensor> = None;
        let mut add = |part: Tensor| -> Result<()> {
            total = Some(match total.take() {
                Some(sum) => (sum + part)?,
                None => part,
            });
            Ok(())
        };
        let mut parts = Vec::with_capacity(3);
        for branch in &answers {
            let (first, own) = self.columns(branch.kind);
            let places = Tensor::from_slice(&branch.rows, branch.rows.len(), targets.device())?;
            let targets = targets.narrow(1, first, own)?.contiguous()?.index_select(&places, 0)?;
            let part = soft_cross_entropy_mean(&branch.logits, &targets)?;
            add(part.clone())?;
            let name = if branch.kind == QuestionType::Closed { "closed" } else { "open" };
            parts.push((name, part));
        }
        if let Some(reconstruction) = reconstruction {
            add((&reconstruction * self.config.reconstruction)?)?;
            parts.push((RECONSTRUCTION, reconstruction));
        }
        match total {
            Some(total) => Ok(AnswerLoss { total, parts }),
            None => bail!("the batch has no questions"),
        }
    }

    /// The vectors of the question side, and behind them those of the words that condition.
    fn embed_words(&self, tokens: &Tensor) -> Result<Tensor> {
        let conditioning = self.conditioning.attention().embed(tokens)?;
        if self.config.question.embedded() == 0 {
            return Ok(conditioning);
        }
        Tensor::cat(&[&self.question.embed(tokens)?, &conditioning], D::Minus1)
    }

    fn joint_attention(&self, kind: Option<QuestionType>) -> Option<JointAttention> {
        let branch = self.branches.iter().find(|branch| Some(branch.kind) == kind)?;
        Some(JointAttention::Pairs(branch.fusion.map_name().to_owned()))
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
