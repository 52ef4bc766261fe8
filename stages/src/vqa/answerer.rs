//! A model that answers questions, as an artifact: what it is (`answers.json`), its tensors
//! (`model.safetensors`), those of its question-type classifier (`types.safetensors`), and the files of its image
//! encoder (`encoder/`).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use pipe_engine::{Artifact, ArtifactFile, ArtifactFiles, OutputWriter, StageContext, StageError};
use pipe_models::checkpoint::{read_tensors, write_tensors};
use pipe_models::vqa::{AnswerModel, Autoencoder, Mode, QuestionTypeClassifier, QuestionTypeConfig};
use pipe_models::{Trainable, Weights};
use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, moved};
use super::senses::{Modality, Readings, Sight, Sights, Standard, VisualTokens};
use super::{AnswerSource, Asked, Examples, QuestionVocabulary, UnknownWord, normalise};
use crate::compute::Compute;
use crate::ingest::exact;
use crate::model::{DEVICE, Model, checkpoint_error, files, tensor_error, write_text};

const DESCRIPTION: &str = "answers.json";
const WEIGHTS: &str = "model.safetensors";
const TYPES: &str = "types.safetensors";
/// The layer over the codes of the auto-encoder.
const CONVERT: [&str; 2] = ["convert.weight", "convert.bias"];
/// The folder of the encoder's files.
pub(crate) const ENCODER: &str = "encoder";
/// The version of the description.
const FORMAT: u32 = 1;

/// How two answers are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Matching {
    /// In the normal form of the VQA challenge: without articles and punctuation, numbers as digits.
    #[default]
    Normalised,
    /// Trimmed and in lower case.
    Exact,
}

impl Matching {
    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Normalised => "normalised",
            Self::Exact => "exact",
        }
    }

    /// The form in which answers are compared.
    pub(crate) fn form(self, answer: &str) -> String {
        match self {
            Self::Normalised => normalise(answer),
            Self::Exact => exact(answer),
        }
    }
}

/// What `answers.json` says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    format: u32,
    pub(crate) architecture: Architecture,
    /// The answers by label; with branches, closed ones first.
    pub(crate) answers: Vec<String>,
    /// With branches: how many answers are closed.
    pub(crate) closed: Option<usize>,
    pub(crate) matching: Matching,
    /// Whose answers they are.
    #[serde(default, skip_serializing_if = "AnswerSource::is_train")]
    pub(crate) source: AnswerSource,
    /// The words of questions by id.
    pub(crate) words: Vec<String>,
    /// Whether an unknown word has an id of its own; else it is the last word.
    pub(crate) own_unknown: bool,
    pub(crate) tokens: VisualTokens,
    pub(crate) modality: Modality,
    /// Whether the image encoder sees scrambled pixels.
    #[serde(default)]
    pub(crate) scrambled_pixels: bool,
    /// Whether the auto-encoder stays as it began.
    pub(crate) frozen_autoencoder: bool,
    pub(crate) types: Option<QuestionTypeConfig>,
}

impl Description {
    #[expect(clippy::too_many_arguments, reason = "one argument per field of the file")]
    pub(crate) fn new(
        architecture: Architecture,
        answers: Vec<String>,
        closed: Option<usize>,
        (source, matching): (AnswerSource, Matching),
        vocabulary: &QuestionVocabulary,
        own_unknown: bool,
        tokens: VisualTokens,
        modality: Modality,
        scrambled_pixels: bool,
        frozen_autoencoder: bool,
        types: Option<QuestionTypeConfig>,
    ) -> Self {
        let words = vocabulary.words().to_vec();
        Self {
            format: FORMAT,
            architecture,
            answers,
            closed,
            matching,
            source,
            words,
            own_unknown,
            tokens,
            modality,
            scrambled_pixels,
            frozen_autoencoder,
            types,
        }
    }

    /// The words of questions.
    pub(crate) fn vocabulary(&self) -> QuestionVocabulary {
        let unknown = if self.own_unknown { UnknownWord::Own } else { UnknownWord::LastWord };
        QuestionVocabulary::of_words(self.words.clone(), unknown)
    }

    /// The answer to a question as it stands in the list, if it does.
    pub(crate) fn form(&self, one: &Asked) -> String {
        self.form_of(&one.answer, one.closed)
    }

    fn form_of(&self, answer: &str, closed: bool) -> String {
        if self.source == AnswerSource::Train {
            return self.matching.form(answer);
        }
        // As the authors' code does: runs of white space become one here, and not in the list.
        let form = answer.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
        let marked = format!("{form}#");
        if !closed && self.answers.contains(&marked) { marked } else { form }
    }

    /// The name of a protocol under which the model learned from these answers.
    pub(crate) fn protocol(&self, protocol: Option<&str>) -> Option<String> {
        match self.source {
            AnswerSource::Train => protocol.map(str::to_owned),
            AnswerSource::TrainAndTest => Some(format!("{}+test-answers", protocol.unwrap_or("train"))),
        }
    }

    /// The label of an answer to a question of this type; none if it is not in the list.
    pub(crate) fn label(&self, answer: &str, closed: bool) -> Option<usize> {
        let form = self.form_of(answer, closed);
        let (first, list) = match self.closed {
            None => (0, &self.answers[..]),
            Some(count) if closed => (0, &self.answers[..count]),
            Some(count) => (count, &self.answers[count..]),
        };
        list.iter().position(|one| *one == form).map(|place| first + place)
    }

    /// In what a model of one modality is no counterpart of this one: they may differ in what they see of images,
    /// and in weights. Nothing if it is one.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        if self.matching != other.matching {
            let names = [self, other].map(|one| one.matching.name());
            return Some(format!("answers are compared as `{}` and `{}`", names[0], names[1]));
        }
        if self.answers != other.answers || self.closed != other.closed {
            let place = self.answers.iter().zip(&other.answers).position(|(a, b)| a != b);
            let first = place.map_or(String::new(), |place| {
                format!(", which first differ in `{}` and `{}`", self.answers[place], other.answers[place])
            });
            let counts = [self, other].map(|one| one.answers.len());
            return Some(format!("their lists have {} and {} answers{first}", counts[0], counts[1]));
        }
        if self.words != other.words || self.own_unknown != other.own_unknown {
            let counts = [self, other].map(|one| one.words.len());
            return Some(format!("their vocabularies of {} and {} words differ", counts[0], counts[1]));
        }
        if self.architecture.head() != other.architecture.head() || self.types != other.types {
            let names = [self, other].map(|one| one.architecture.name());
            return Some(format!("their heads, of `{}` and `{}`, are built differently", names[0], names[1]));
        }
        None
    }

    /// The labels among which a question that took a branch is answered; all, without branches. Those of the other
    /// branch have no logit.
    pub(crate) fn branch(&self, closed: Option<bool>) -> std::ops::Range<usize> {
        match (self.closed, closed) {
            (Some(count), Some(true)) => 0..count,
            (Some(count), Some(false)) => count..self.answers.len(),
            _ => 0..self.answers.len(),
        }
    }

    /// The labels of questions.
    pub(crate) fn labels(&self, examples: &Examples) -> Vec<Option<usize>> {
        let mut known: BTreeMap<(&str, bool), Option<usize>> = BTreeMap::new();
        let asked = examples.asked.iter();
        asked
            .map(|one| {
                *known
                    .entry((one.answer.as_str(), one.closed))
                    .or_insert_with(|| self.label(&one.answer, one.closed))
            })
            .collect()
    }
}

/// A model that answers.
pub(crate) struct Answerer {
    pub(crate) description: Description,
    pub(crate) model: Box<dyn AnswerModel>,
    pub(crate) types: Option<QuestionTypeClassifier>,
    pub(crate) encoder: Option<Model>,
}

impl Description {
    /// What the artifact says of itself.
    ///
    /// # Errors
    /// If the file is missing, damaged or of another format.
    pub(crate) fn read(artifact: &Artifact) -> Result<Self, StageError> {
        let json = files(artifact).text(DESCRIPTION).map_err(checkpoint_error)?;
        let description: Self =
            serde_json::from_str(&json).map_err(|error| StageError::input(DESCRIPTION, error.to_string()))?;
        if description.format != FORMAT {
            let reason = format!("its format is {}, this program reads {FORMAT}", description.format);
            return Err(StageError::input(DESCRIPTION, reason));
        }
        Ok(description)
    }
}

impl Answerer {
    /// Loads the artifact, frozen.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub(crate) fn load(artifact: &Artifact, compute: Compute) -> Result<Self, StageError> {
        let own = files(artifact);
        let description = Description::read(artifact)?;
        let tensors = read_tensors(&own, WEIGHTS, &DEVICE).map_err(checkpoint_error)?;
        let device = compute.open()?;
        let model = description.architecture.load(tensors, Trainable::Frozen)?;
        let model = description.architecture.moved(model, Trainable::Frozen, &device)?;
        if model.answers() != description.answers.len() {
            let reason = format!(
                "it names {} answers, and the model gives {}",
                description.answers.len(),
                model.answers()
            );
            return Err(StageError::input(DESCRIPTION, reason));
        }
        let types = match &description.types {
            None => None,
            Some(config) => {
                let tensors = moved(read_tensors(&own, TYPES, &DEVICE).map_err(checkpoint_error)?, &device)?;
                let types = QuestionTypeClassifier::from_tensors(config.clone(), tensors, Trainable::Frozen);
                Some(types.map_err(checkpoint_error)?)
            }
        };
        let encoder = encoder_files(artifact).map(|files| Model::load(&files, compute)).transpose()?;
        Ok(Self { description, model, types, encoder })
    }

    /// The same architecture with random weights, a pure function of `seed`, in the model and its encoder: the
    /// control that no explanation may resemble (Adebayo et al. 2018). Questions still take the branches that the
    /// trained classifier of types sends them into.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn randomised(self, seed: i64) -> Result<Self, StageError> {
        let architecture = &self.description.architecture;
        let drawn = architecture.random(seed as u64, BTreeMap::new())?.parameters().tensors();
        let model = architecture.load(drawn, Trainable::Frozen)?;
        let model = architecture.moved(model, Trainable::Frozen, &self.model.parameters().device())?;
        let encoder = self.encoder.map(|encoder| encoder.randomised(seed)).transpose()?;
        Ok(Self { model, encoder, ..self })
    }

    /// Writes all but the encoder's files.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn save(&self, output: &mut OutputWriter) -> Result<(), StageError> {
        let folder = output.folder().to_owned();
        let write = |name: &str, tensors: &BTreeMap<String, Tensor>| {
            write_tensors(&folder.join(name), tensors).map_err(|error| {
                StageError::environment(format!("writing `{name}`"), std::io::Error::other(error.reason))
            })
        };
        write(WEIGHTS, &self.model.parameters().tensors())?;
        if let Some(types) = &self.types {
            write(TYPES, &types.parameters().tensors())?;
        }
        let json = serde_json::to_string_pretty(&self.description)
            .map_err(|error| StageError::because("writing answers.json", error))?;
        write_text(&folder.join(DESCRIPTION), &format!("{json}\n"))
    }

    /// Lets the layer over the codes of the auto-encoder, which learned on standardised ones, see them as they are.
    ///
    /// # Errors
    /// If the model has no such layer.
    pub(crate) fn see_codes_as_they_are(&self, standard: &Standard) -> Result<(), StageError> {
        let variables = self.model.parameters().variables();
        let [Some(weight), Some(bias)] = CONVERT.map(|name| variables.get(name)) else {
            return Err(StageError::failed("the model has no layer over the codes of its auto-encoder"));
        };
        let changed = standard.over_codes(&weight.as_detached_tensor(), &bias.as_detached_tensor());
        let set = changed.and_then(|(over, constant)| weight.set(&over).and_then(|()| bias.set(&constant)));
        set.map_err(tensor_error)
    }

    /// Everything that the model is shown of `examples`.
    ///
    /// # Errors
    /// If an image is damaged, or the stage is cancelled.
    pub(crate) fn prepare(
        &self,
        examples: &Examples,
        live: bool,
        context: &StageContext<'_>,
    ) -> Result<(Sights, Readings), StageError> {
        let description = &self.description;
        let image = description.architecture.image();
        let autoencoder = if description.frozen_autoencoder { self.autoencoder()? } else { None };
        let sight = Sight {
            encoder: self.encoder.as_ref().filter(|_| image.features.is_some()),
            tokens: description.tokens,
            scrambled: description.scrambled_pixels,
            live,
            meta: image.meta.as_ref().map(|meta| meta.image),
            autoencoder: image.autoencoder.as_ref().map(|config| config.image),
            frozen: autoencoder.as_ref(),
        };
        let sights = Sights::new(examples, sight, context)?;
        let tower = self.tower();
        let vocabulary = description.vocabulary();
        let readings = Readings::new(examples, &vocabulary, tower, live, description.modality, context)?;
        Ok((sights, readings))
    }

    /// The encoder, if its text tower reads the questions.
    pub(crate) fn tower(&self) -> Option<&Model> {
        self.encoder.as_ref().filter(|_| self.description.architecture.reads_states())
    }

    /// The auto-encoder of the model as it is now.
    fn autoencoder(&self) -> Result<Option<Autoencoder>, StageError> {
        let Some((name, config)) = self.description.architecture.autoencoder() else { return Ok(None) };
        let mut tensors = self.model.parameters().tensors();
        tensors.retain(|tensor, _| tensor.starts_with(&format!("{name}.")));
        let mut weights = Weights::new(moved(tensors, &DEVICE)?, Trainable::Frozen);
        Autoencoder::load(&mut weights, name, config).map(Some).map_err(checkpoint_error)
    }

    /// The logits of some questions, one row each, and the branch that each took, if there are branches.
    ///
    /// # Errors
    /// Whatever the model reports.
    pub(crate) fn logits(
        &self,
        sights: &Sights,
        readings: &Readings,
        examples: &Examples,
        rows: &[usize],
    ) -> Result<(Vec<Vec<f32>>, Option<Vec<bool>>), StageError> {
        let images: Vec<usize> = rows.iter().map(|row| examples.asked[*row].image).collect();
        self.logits_of(sights, readings, &images, rows)
    }

    /// As [`Self::logits`], of questions `rows` about the images at `images`.
    ///
    /// # Errors
    /// Whatever the model reports.
    pub(crate) fn logits_of(
        &self,
        sights: &Sights,
        readings: &Readings,
        images: &[usize],
        rows: &[usize],
    ) -> Result<(Vec<Vec<f32>>, Option<Vec<bool>>), StageError> {
        let sight = sights.batch(images, self.encoder.as_ref())?;
        let mut batch = super::senses::batch(sight, readings.batch(rows, self.tower())?);
        let routed = match &self.types {
            None => None,
            Some(types) => Some(types.classify(&readings.tokens(rows)?).map_err(tensor_error)?),
        };
        batch.types.clone_from(&routed);
        let logits = self.model.logits(&batch, Mode::Evaluation).map_err(tensor_error)?;
        let closed = |types: Vec<pipe_models::vqa::QuestionType>| {
            types.into_iter().map(|one| one == pipe_models::vqa::QuestionType::Closed).collect()
        };
        Ok((logits.detach().to_vec2::<f32>().map_err(tensor_error)?, routed.map(closed)))
    }
}

/// The encoder's files as an artifact of their own, if there are any.
fn encoder_files(artifact: &Artifact) -> Option<Artifact> {
    let prefix = format!("{ENCODER}/");
    let files: ArtifactFiles = artifact
        .files
        .iter()
        .filter_map(|file| {
            let path = file.path.strip_prefix(&prefix)?.to_owned();
            Some(ArtifactFile { path, ..file })
        })
        .collect();
    (!files.is_empty()).then(|| Artifact { files, ..artifact.clone() })
}

/// Copies the files of an encoder that has not changed: equal bytes are stored once.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn copy_encoder(artifact: &Artifact, folder: &Path) -> Result<(), StageError> {
    for file in &artifact.files {
        let target = folder.join(ENCODER).join(&file.path);
        let copied = target.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
            pipe_engine::cache::reflink_or_copy(&file.location, &target)
                .map(drop)
                .map_err(|error| error.source)
        });
        copied.map_err(|error| StageError::environment(format!("writing `{}`", target.display()), error))?;
    }
    Ok(())
}
