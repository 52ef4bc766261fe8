//! The stage kind `finetune.vqa`: trains a model that answers questions about images.

mod held_out;
mod learning;
mod params;

use std::collections::BTreeSet;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, OutputWriter,
    ParameterProblem, StageContext, StageError, StageKind,
};
use pipe_models::Trainable;
use pipe_models::vqa::{QuestionTypeClassifier, QuestionTypeConfig};

use self::held_out::hold_out;
use self::learning::{Data, learn};
use self::params::{AutoencoderUse, Encoder, Keep, Mixture, Params, WordVectors};
use crate::artifact;
use crate::compute::{self, OUTSIDE_KEY};
use crate::model::{Model, checkpoint_error};
use crate::vqa::{
    AnswerSource, Answerer, Description, ENCODER, Examples, Matching, Method, QuestionVocabulary, Reading,
    Tables, UnknownWord, Weighting, answer_list, clip_tokens, copy_encoder, known_weights, moved,
    with_company, word_tables,
};

/// Trains a model that answers questions.
pub struct FinetuneVqa;

const TRAIN: &str = "train";
const VAL: &str = "val";
const TEST: &str = "test";

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
        let mut problems: Vec<ParameterProblem> = compute::check(&params.device)
            .into_iter()
            .chain(compute::check_mixed(params.precision))
            .collect();
        if params.vocabulary == AnswerSource::TrainAndTest && params.matching != Matching::Exact {
            problems.push(ParameterProblem {
                path: "matching".to_owned(),
                message: "answers of `vocabulary = \"train+test\"` are compared in lower case".to_owned(),
                help: Some("set `matching = \"exact\"`".to_owned()),
            });
        }
        if params.method == Method::CrossModal && params.hidden % params.heads != 0 {
            problems.push(ParameterProblem {
                path: "heads".to_owned(),
                message: format!("{} heads do not divide `hidden`, which is {}", params.heads, params.hidden),
                help: None,
            });
        }
        problems
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["encoder_rule", "vocabulary", "word_vectors"]
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
        let splits: &[&str] = match params.vocabulary {
            AnswerSource::Train => &[TRAIN, VAL],
            AnswerSource::TrainAndTest => &[TRAIN, VAL, TEST],
        };
        let examples = Examples::read(context.input("questions")?, context.input("images")?, splits)?;
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
        let (mut sights, readings) = answerer.prepare(&examples, live, context)?;
        let images: BTreeSet<usize> = train.iter().map(|row| examples.asked[*row].image).collect();
        let standard = match params.autoencoder {
            AutoencoderUse::Standardised => sights.standardise(&images),
            _ => None,
        };
        let data =
            Data { labels: answerer.description.labels(&examples), examples, sights, readings, train, val };
        let log = learn(params, &answerer, live, &data, context)?;
        if let Some(standard) = &standard {
            answerer.see_codes_as_they_are(standard)?;
        }
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
    Ok(hold_out(train, |row| examples.asked[row].image, params.validation, params.seed))
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
    // Nothing is read of the test but where its answers are to be known.
    let known: Vec<_> = train.iter().copied().chain(examples.rows(TEST)).collect();
    let asked: Vec<_> = known.iter().map(|row| &examples.asked[*row]).collect();
    let vocabulary = QuestionVocabulary::new(asked.iter().map(|one| one.question.as_str()), unknown);
    let branches = params.method == Method::Qcr;
    let (answers, closed) =
        answer_list(&asked, params.vocabulary, params.matching, params.min_occurrence as usize, branches);
    let weighting = match params.mixture {
        Mixture::Intended => Some(Weighting::Intended),
        Mixture::Reference => Some(Weighting::Reference),
        Mixture::None => None,
    };
    let (width, own_unknown) = (params.word_width as usize, !params.unknown_is_last);
    let tables = match (params.word_vectors, context.optional_input("glove")) {
        (WordVectors::Glove, Some(glove)) => {
            word_tables(glove, &vocabulary, questions(), weighting, own_unknown)?
        }
        (WordVectors::Glove, None) => Tables::random(width),
        (WordVectors::ClipToken, None) => {
            let missing = "`word_vectors = \"clip_token\"` takes them from a text tower: the input `checkpoint` is missing";
            let encoder = encoder.as_ref().ok_or_else(|| StageError::failed(missing))?;
            let vectors = clip_tokens(encoder, &vocabulary, width)?;
            with_company(vectors, &vocabulary, questions(), weighting, own_unknown)?
        }
        (WordVectors::ClipToken, Some(_)) => {
            let message = "words begin either as the vectors of the input `glove` or as the tower's tokens: leave out one";
            return Err(StageError::failed(message));
        }
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
    let device = params.compute().open()?;
    let model = architecture.random(params.seed as u64, given)?;
    let model = architecture.moved(model, Trainable::All, &device)?;
    let description = Description::new(
        architecture,
        answers,
        closed,
        (params.vocabulary, params.matching),
        &vocabulary,
        !params.unknown_is_last,
        params.visual_tokens,
        params.modality,
        params.scrambled_pixels,
        matches!(params.autoencoder, AutoencoderUse::Frozen | AutoencoderUse::Standardised),
        types,
    );
    let types = match &description.types {
        None => None,
        Some(config) => {
            let types = QuestionTypeClassifier::random(config.clone(), params.seed as u64, given_types)
                .map_err(checkpoint_error)?;
            let tensors = moved(types.parameters().tensors(), &device)?;
            let types = QuestionTypeClassifier::from_tensors(config.clone(), tensors, Trainable::All);
            Some(types.map_err(checkpoint_error)?)
        }
    };
    Ok(Answerer { description, model, types, encoder })
}
