//! The stage kind `finetune.vqa`: trains a model that answers questions about images.

mod learning;

use std::collections::BTreeSet;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, OutputWriter,
    ParameterProblem, StageContext, StageError, StageKind,
};
use pipe_models::Trainable;
use pipe_models::random::Key;
use pipe_models::vqa::{QuestionTypeClassifier, QuestionTypeConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::learning::{Data, TypeRows, learn, train_types};
use super::TrainingLog;
use crate::artifact;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::model::{Model, checkpoint_error};
use crate::vqa::{
    Answerer, Description, Design, ENCODER, Examples, Fusing, Matching, Method, Modality, QuestionVocabulary,
    Reading, Tables, UnknownWord, VisualTokens, Weighting, answer_list, copy_encoder, known_weights,
    word_tables,
};

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
    /// The table of mixed word vectors beside that of the words; needs the input `glove`.
    pub mixture: Mixture,
    /// Values of a word's vector, if there is no input `glove`: they begin at random.
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
    /// Where the image encoder computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
}

impl Params {
    /// Where and how precisely the encoder computes.
    pub(crate) fn compute(&self) -> Compute {
        Compute::new(&self.device, Precision::F32)
    }

    fn epochs(&self) -> i64 {
        self.epochs.unwrap_or(match self.method {
            Method::Mevf => 20,
            Method::Qcr => 200,
            Method::CrossModal => 30,
        })
    }

    fn batch(&self) -> i64 {
        self.batch.unwrap_or(if self.method == Method::Qcr { 64 } else { 32 })
    }

    fn lr(&self) -> f64 {
        self.lr.unwrap_or(match self.method {
            Method::Mevf => 0.005,
            Method::Qcr => 0.002,
            Method::CrossModal => 1e-4,
        })
    }

    fn design(&self) -> Design {
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
            mixture: Mixture::Intended,
            word_width: 300,
            unknown_is_last: false,
            scrambled_pixels: false,
            mask_padding: false,
            matching: Matching::Normalised,
            min_occurrence: 1,
            epochs: None,
            batch: None,
            lr: None,
            encoder_lr: 1e-5,
            gradient_norm: 0.25,
            type_epochs: 20,
            type_lr: 1e-4,
            keep: Keep::Last,
            validation: 0.0,
            seed: 0,
            device: auto(),
        }
    }
}

/// Trains a model that answers questions.
pub struct FinetuneVqa;

const TRAIN: &str = "train";
const VAL: &str = "val";

impl StageKind for FinetuneVqa {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "finetune.vqa",
            summary: "trains a model that answers questions about images: MEVF, QCR or a cross-modal transformer",
            implementation: 3,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("images", &[artifact::IMAGES], "the images"),
                InputPort::required(
                    "questions",
                    &[artifact::QUESTIONS],
                    "questions about them, with answers",
                ),
                InputPort::optional(
                    "checkpoint",
                    &[artifact::CHECKPOINT],
                    "the image encoder; without it the meta-learned network of MEVF sees the images",
                ),
                InputPort::optional(
                    "glove",
                    &[ArtifactType::FILE],
                    "vectors of words: a text file `word value value ...`",
                ),
                InputPort {
                    many: true,
                    ..InputPort::optional(
                        "weights",
                        &[ArtifactType::FILE, artifact::IMAGE_WEIGHTS],
                        "what the small image networks begin with: a folder with the published `pretrained_ae.pth` and \
                         `pretrained_maml.weights`, or what `pretrain.autoencoder` and `pretrain.meta` give",
                    )
                },
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("model", artifact::ANSWER_MODEL, "the model with its encoder"),
            OutputPort::new("log", artifact::TRAINING_LOG, "learning curves"),
            OutputPort::new("tensorboard", artifact::TENSORBOARD, "the same for TensorBoard"),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems: Vec<ParameterProblem> = compute::check(&params.device).into_iter().collect();
        if params.method == Method::CrossModal && params.hidden % params.heads != 0 {
            problems.push(ParameterProblem {
                path: "heads".to_owned(),
                message: format!("{} heads do not divide `hidden`, which is {}", params.heads, params.hidden),
                help: None,
            });
        }
        problems
    }

    fn outside_key(&self) -> &'static [&'static str] {
        &OUTSIDE_KEY
    }

    fn numerics(&self, params: &Params) -> Option<String> {
        params.compute().numerics()
    }

    fn take_devices(&self, params: &mut Params, gpus: &[usize]) {
        compute::take_gpu(&mut params.device, gpus);
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let examples = Examples::read(context.input("questions")?, context.input("images")?, &[TRAIN, VAL])?;
        let (train, val) = split(params, &examples)?;
        let trainable = match params.encoder {
            Encoder::Frozen => Trainable::Frozen,
            Encoder::Tuned if params.method == Method::CrossModal || params.reader == Reading::Tower => {
                Trainable::All
            }
            Encoder::Tuned => Trainable::Image,
        };
        let encoder = match context.optional_input("checkpoint") {
            Some(checkpoint) => Some(Model::trainable(checkpoint, trainable, params.compute())?),
            None => None,
        };
        let answerer = begin(params, &examples, &train, encoder, context)?;
        let live = params.encoder == Encoder::Tuned && answerer.encoder.is_some();
        let (sights, readings) = answerer.prepare(&examples, live, context)?;
        let mut log = TrainingLog::default();
        if let Some(types) = &answerer.types {
            let rows = TypeRows { train: &train, val: &val };
            train_types(params, types, &examples, &readings, rows, &mut log, context)?;
        }
        let data =
            Data { labels: answerer.description.labels(&examples), examples, sights, readings, train, val };
        let log = learn(params, &answerer, live, &data, log, context)?;
        let checkpoint = context.optional_input("checkpoint").cloned();
        let output = context.output("model")?;
        if let (Some(encoder), Some(checkpoint)) = (&answerer.encoder, &checkpoint) {
            if live {
                let folder = output.folder().join(ENCODER);
                std::fs::create_dir_all(&folder).map_err(|error| {
                    StageError::environment(format!("making `{}`", folder.display()), error)
                })?;
                encoder.save(&mut OutputWriter::new(folder))?;
            } else {
                copy_encoder(checkpoint, output.folder())?;
            }
        }
        answerer.save(output)?;
        log.write(context)
    }
}

/// The questions to learn from and those to choose on. Held-out questions are all those about some images.
fn split(params: &Params, examples: &Examples) -> Result<(Vec<usize>, Vec<usize>), StageError> {
    let (train, val) = (examples.rows(TRAIN), examples.rows(VAL));
    if train.is_empty() {
        return Err(StageError::failed("there are no questions of split `train` to learn from"));
    }
    if !val.is_empty() || params.validation == 0.0 {
        if val.is_empty() && params.keep == Keep::Best {
            return Err(StageError::failed(
                "`keep = \"best\"` needs questions to choose on: there is no split `val`; set `validation`",
            ));
        }
        return Ok((train, val));
    }
    let mut images: Vec<usize> = train.iter().map(|row| examples.asked[*row].image).collect();
    images.sort_unstable();
    images.dedup();
    let held = (images.len() as f64 * params.validation).round() as usize;
    let order = Key::derive("pipe held-out images/1", params.seed as u64, &[]).permutation(images.len());
    let held: BTreeSet<usize> = order.into_iter().take(held).map(|place| images[place]).collect();
    let (val, train) = train.into_iter().partition(|row| held.contains(&examples.asked[*row].image));
    Ok((train, val))
}

/// The model before training.
fn begin(
    params: &Params,
    examples: &Examples,
    train: &[usize],
    encoder: Option<Model>,
    context: &StageContext<'_>,
) -> Result<Answerer, StageError> {
    let unknown = if params.unknown_is_last { UnknownWord::LastWord } else { UnknownWord::Own };
    let questions = || train.iter().map(|row| examples.asked[*row].question.as_str());
    let vocabulary = QuestionVocabulary::new(questions(), unknown);
    let asked: Vec<_> = train.iter().map(|row| &examples.asked[*row]).collect();
    let branches = params.method == Method::Qcr;
    let (answers, closed) = answer_list(&asked, params.matching, params.min_occurrence as usize, branches);
    let weighting = match params.mixture {
        Mixture::Intended => Weighting::Intended,
        Mixture::Reference => Weighting::Reference,
    };
    let tables = match context.optional_input("glove") {
        Some(glove) => word_tables(glove, &vocabulary, questions(), weighting, !params.unknown_is_last)?,
        None => Tables::random(params.word_width as usize),
    };
    let design = params.design();
    let architecture = design.architecture(
        encoder.as_ref(),
        params.visual_tokens,
        answers.len(),
        closed,
        &vocabulary,
        &tables,
    )?;
    let given_types = tables.given_types();
    let types = closed.map(|_| QuestionTypeConfig {
        words: tables.config(vocabulary.words().len(), !params.unknown_is_last),
        widths: [design.hidden, 256, 64],
    });
    let mut given = tables.given(&architecture);
    for weights in context.inputs("weights") {
        given.extend(known_weights(&weights.artifact, &architecture)?);
    }
    let model = architecture.random(params.seed as u64, given)?;
    let description = Description::new(
        architecture,
        answers,
        closed,
        params.matching,
        &vocabulary,
        !params.unknown_is_last,
        params.visual_tokens,
        params.modality,
        params.scrambled_pixels,
        params.autoencoder == AutoencoderUse::Frozen,
        types,
    );
    let types = match &description.types {
        None => None,
        Some(config) => {
            let types = QuestionTypeClassifier::random(config.clone(), params.seed as u64, given_types);
            Some(types.map_err(checkpoint_error)?)
        }
    };
    Ok(Answerer { description, model, types, encoder })
}
