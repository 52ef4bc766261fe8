//! The parameters of `finetune.vqa`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compute::{Compute, Precision, auto};
use crate::vqa::{AnswerSource, Design, Fusing, Matching, Method, Modality, Reading, VisualTokens};

/// What happens to the image encoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoder {
    /// It stays as it is, and sees every image once.
    Frozen,
    /// It learns with the rest.
    Tuned,
}

/// The denoising auto-encoder of MEVF beside the image encoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AutoencoderUse {
    /// There is none.
    None,
    /// It stays as it begins, and sees every image once; the layer above it learns.
    Frozen,
    /// As `frozen`, but its codes are centred on those of the training images and of length one on average while the layer
    /// above learns: as they are, they are too large for the published learning rates.
    Standardised,
    /// Its encoder learns.
    Trained,
    /// It learns, and its reconstruction counts in the loss, as published.
    Reconstructing,
}

/// Which parameters are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Those of the last epoch, as published.
    Last,
    /// Those of best accuracy on the validation questions; so too of QCR's classifier of question types.
    Best,
}

/// How word tables mix the vectors of words that occur together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mixture {
    /// By inverse frequency, as the authors describe it.
    Intended,
    /// As their code computes it, and every published figure was made.
    Reference,
    /// Not at all: beside a word's vector stands the same one, which does not learn (BAN without the mixture).
    None,
}

/// What words begin as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WordVectors {
    /// The vectors of the input `glove`; without it they begin at random.
    Glove,
    /// The token embeddings of the checkpoint's text tower: the mean over the pieces of each word, along the first
    /// `word_width` principal axes of the words, scaled to a mean length of 6.3, that of GloVe's.
    ClipToken,
}

/// By which rule an encoder that learns is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncoderRule {
    /// AdamW with a decay of 0.01 of matrices.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// Adamax, like what answers, as in the code of PubMedCLIP, whose `encoder_lr` is the rate of the rest too: at 0.001
    /// and more a pre-trained tower is lost within an epoch, unless `gradient_norm` holds it.
    Adamax,
}

/// Parameters of `finetune.vqa`. What a method publishes is the default: MEVF 20 epochs of 32 questions with Adamax
/// at 0.005 warmed up to 0.01; QCR 200 epochs of 64 with Adamax at 0.002; the cross-modal transformer 30 epochs of 32
/// with AdamW at 1e-4.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The method.
    pub method: Method,
    /// MEVF: how image and question are joined.
    pub fusion: Fusing,
    /// Attention maps of bilinear attention, or times that stacked attention looks at the image.
    #[schemars(range(min = 1, max = 32))]
    pub glimpses: i64,
    /// Values of a state of the question, and of the joint vector; of the cross-modal transformer, of a token.
    #[schemars(range(min = 1, max = 8192))]
    pub hidden: i64,
    /// Cross-modal: blocks.
    #[schemars(range(min = 1, max = 64))]
    pub layers: i64,
    /// Cross-modal: heads of a block.
    #[schemars(range(min = 1, max = 64))]
    pub heads: i64,
    /// What it learns from: image and question, or one of them alone.
    pub modality: Modality,
    /// Which tokens of the image encoder are seen.
    pub visual_tokens: VisualTokens,
    /// Whether the image encoder learns.
    pub encoder: Encoder,
    /// The auto-encoder beside it.
    pub autoencoder: AutoencoderUse,
    /// How MEVF and QCR read questions.
    pub reader: Reading,
    /// What words begin as.
    pub word_vectors: WordVectors,
    /// The table of mixed word vectors beside that of the words; needs the input `glove`, or `word_vectors = "clip_token"`.
    pub mixture: Mixture,
    /// Values of a word's vector, if there is no input `glove`: they begin at random, or at most so many are taken of the
    /// text tower.
    #[schemars(range(min = 1, max = 4096))]
    pub word_width: i64,
    /// Words that no training question has are the last word of the list, as in the authors' code; else they
    /// have a vector of their own.
    pub unknown_is_last: bool,
    /// The image encoder sees the values of an image in another order, and not normalised, as in the code of PubMedCLIP;
    /// else as it was trained to see them.
    pub scrambled_pixels: bool,
    /// Whether padding is no part of a question. The published models read it like words.
    pub mask_padding: bool,
    /// Which questions tell the answers and the words: those of training, or, only to reproduce the protocol of PubMedCLIP,
    /// those of the test too. The protocol of such figures ends in `+test-answers`.
    pub vocabulary: AnswerSource,
    /// How answers are compared: which of them are one.
    pub matching: Matching,
    /// Answers that occur less often in training are not in the list.
    #[schemars(range(min = 1, max = 1000))]
    pub min_occurrence: i64,
    /// Passes over the training questions; by default the method's.
    #[schemars(range(min = 1, max = 100_000))]
    pub epochs: Option<i64>,
    /// Questions per step; by default the method's.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: Option<i64>,
    /// The base learning rate; by default the method's.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub lr: Option<f64>,
    /// The learning rate of an encoder that learns, at the base rate's peak.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub encoder_lr: f64,
    /// The rule of an encoder that learns.
    pub encoder_rule: EncoderRule,
    /// Gradients are scaled down to this norm.
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub gradient_norm: f64,
    /// QCR: passes of the classifier of question types, which is trained first.
    #[schemars(range(min = 1, max = 10_000))]
    pub type_epochs: i64,
    /// QCR: the learning rate of that classifier.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub type_lr: f64,
    /// Which parameters are kept. Without a split `val`, `best` needs `validation`.
    pub keep: Keep,
    /// Without a split `val`: the share of training images whose questions are held out to choose the epoch.
    #[schemars(range(min = 0.0, max = 0.5))]
    pub validation: f64,
    /// Decides the first weights, the order of training and what is dropped.
    pub seed: i64,
    /// Where the models compute: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type in which the image encoder computes, `f32` or `bf16`; while it learns, its weights, their gradients,
    /// norms and sums are of f32 (mixed precision). What answers is of f32. Of CPUs those with AVX512-BF16 gain by `bf16`.
    pub precision: Precision,
}

impl Params {
    /// Where and how precisely the encoder computes.
    pub(crate) fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }

    pub(super) fn epochs(&self) -> i64 {
        self.epochs.unwrap_or(match self.method {
            Method::Mevf => 20,
            Method::Qcr => 200,
            Method::CrossModal => 30,
        })
    }

    pub(super) fn batch(&self) -> i64 {
        self.batch.unwrap_or(if self.method == Method::Qcr { 64 } else { 32 })
    }

    pub(super) fn lr(&self) -> f64 {
        self.lr.unwrap_or(match self.method {
            Method::Mevf => 0.005,
            Method::Qcr => 0.002,
            Method::CrossModal => 1e-4,
        })
    }

    pub(super) fn design(&self) -> Design {
        Design {
            method: self.method,
            fusion: self.fusion,
            glimpses: self.glimpses as usize,
            hidden: self.hidden as usize,
            layers: self.layers as usize,
            heads: self.heads as usize,
            modality: self.modality,
            reader: self.reader,
            mask_padding: self.mask_padding,
            autoencoder: self.autoencoder != AutoencoderUse::None,
            reconstruct: self.autoencoder == AutoencoderUse::Reconstructing,
        }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            method: Method::Mevf,
            fusion: Fusing::Ban,
            glimpses: 2,
            hidden: 1024,
            layers: 4,
            heads: 8,
            modality: Modality::Both,
            visual_tokens: VisualTokens::Pooled,
            encoder: Encoder::Frozen,
            autoencoder: AutoencoderUse::Reconstructing,
            reader: Reading::Words,
            word_vectors: WordVectors::Glove,
            mixture: Mixture::Intended,
            word_width: 300,
            unknown_is_last: false,
            scrambled_pixels: false,
            mask_padding: false,
            vocabulary: AnswerSource::Train,
            matching: Matching::Normalised,
            min_occurrence: 1,
            epochs: None,
            batch: None,
            lr: None,
            encoder_lr: 1e-5,
            encoder_rule: EncoderRule::AdamW,
            gradient_norm: 0.25,
            type_epochs: 20,
            type_lr: 1e-4,
            keep: Keep::Last,
            validation: 0.0,
            seed: 0,
            device: auto(),
            precision: Precision::F32,
        }
    }
}
