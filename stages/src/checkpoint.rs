//! The stage kind `checkpoint`: a verified model, from files or with random weights.

#[cfg(test)]
mod tests;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use pipe_models::clip::{ClipConfig, EotRule, TextConfig, VisionConfig};
use pipe_models::import::ImportOptions;
use pipe_models::preprocess::{Pipeline, Slices};
use pipe_models::tokenizer::Cleaning;
use pipe_models::{Activation, ModelConfig, PUBLISHED, Preprocessor, Tokenizer, Trainable, published};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::compute::Compute;
use crate::model::{DEVICE, Model, checkpoint_error, files};
use crate::weight_noise::noisy;

/// Where the weights come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// From the files of the input `source`, in any published layout.
    Files,
    /// Drawn from the seed, for `architecture`, or for the sizes of `vision` and `text`.
    Random,
}

/// The order of the steps from an image to pixels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Steps {
    /// OpenAI's and open_clip's: resized in the mode of the file, then made RGB.
    OpenClip,
    /// torchvision's and timm's: made RGB first.
    Torchvision,
    /// transformers' with Pillow.
    HuggingFace,
    /// transformers' with torchvision.
    HuggingFaceTorch,
}

impl From<Steps> for Pipeline {
    fn from(steps: Steps) -> Self {
        match steps {
            Steps::OpenClip => Self::OpenClip,
            Steps::Torchvision => Self::Torchvision,
            Steps::HuggingFace => Self::HuggingFace,
            Steps::HuggingFaceTorch => Self::HuggingFaceTorch,
        }
    }
}

/// What happens to a text before it is cut into pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextCleaning {
    /// What the tokeniser's own file says.
    AsStored,
    /// OpenAI's and open_clip's.
    OpenClip,
}

impl From<TextCleaning> for Cleaning {
    fn from(cleaning: TextCleaning) -> Self {
        match cleaning {
            TextCleaning::AsStored => Self::AsStored,
            TextCleaning::OpenClip => Self::OpenClip,
        }
    }
}

/// A transformer's sizes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TowerSize {
    /// Width of the residual stream.
    #[schemars(range(min = 1, max = 8192))]
    pub width: i64,
    /// Number of blocks.
    #[schemars(range(min = 1, max = 128))]
    pub layers: i64,
    /// Number of attention heads.
    #[schemars(range(min = 1, max = 128))]
    pub heads: i64,
    /// Width inside the perceptrons; by default four times the width.
    #[schemars(range(min = 1, max = 32768))]
    pub hidden: Option<i64>,
}

impl Default for TowerSize {
    fn default() -> Self {
        Self { width: 64, layers: 4, heads: 2, hidden: None }
    }
}

impl TowerSize {
    fn hidden(&self) -> usize {
        self.hidden.unwrap_or(4 * self.width) as usize
    }
}

/// Which slices of a volume a model of flat images sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SliceChoice {
    /// The central one, as a grey image.
    #[default]
    Central,
    /// The central one and its neighbours, as red, green and blue (2.5-D).
    Triplet,
    /// `count` of them, spread evenly: the embedding of a volume is the mean of theirs.
    Mean,
}

/// How a model of flat images sees volumes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Volumes {
    /// Which slices it sees.
    pub slices: SliceChoice,
    /// `slices = "mean"`: how many; as many as a volume has are all of them.
    #[schemars(range(min = 2, max = 1024))]
    pub count: i64,
    /// The Hounsfield units that become black and white; volumes of bytes are left alone.
    pub window: [f64; 2],
}

impl Default for Volumes {
    fn default() -> Self {
        Self { slices: SliceChoice::Central, count: 16, window: [-1000.0, 1000.0] }
    }
}

impl From<&Volumes> for Slices {
    fn from(volumes: &Volumes) -> Self {
        match volumes.slices {
            SliceChoice::Central => Self::Central,
            SliceChoice::Triplet => Self::Triplet,
            SliceChoice::Mean => Self::Mean(volumes.count as usize),
        }
    }
}

/// Parameters of `checkpoint`. `config`, `preprocessing`, `cleaning`, `window` and `volumes` replace what files say or
/// leave open, `config` also the sizes of `architecture`; the others are those of random weights, whose defaults are the small CLIP of the study on
/// phantoms.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Where the weights come from.
    pub init: Init,
    /// Fields of the configuration that replace those found, as `{ adaptation = "ct-2d" }`.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// The order of preprocessing steps, if not that of the library that the files are made for.
    pub preprocessing: Option<Steps>,
    /// The cleaning of texts, if not that of the library that the files are made for.
    pub cleaning: Option<TextCleaning>,
    /// The values of a 16-bit grey image that become black and white, as `[1000.0, 3000.0]` for radiographs of 12
    /// bits, if not all 65,536 are to be seen. Images of 8 bits are left alone.
    pub window: Option<[f64; 2]>,
    /// How a model of flat images sees volumes; the central slice, if nothing says otherwise.
    pub volumes: Option<Volumes>,
    /// Whether weights that are no finite numbers (NaN, infinity) are refused, each tensor by name: it takes one
    /// more pass over the weights.
    pub finite: bool,
    /// Multiplies each weight by a draw of its own around 1 with this deviation, which `seed` decides: a model that is a
    /// little or much off, by which metrics of explanations are judged.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_noise: Option<f64>,
    /// Random weights of a published architecture in full size, instead of the sizes below:
    /// `clip-vit-b-32`, `clip-vit-b-16`, `clip-vit-l-14`, `clip-rn50`, `biomed-clip`, `pmc-clip`,
    /// `ct-clip`, `pubmed-bert`, `vit-b-16`, `resnet50`, `resnet18`, `medmnist-resnet18` or
    /// `medmnist-resnet18-3d`.
    pub architecture: Option<String>,
    /// Decides random weights and `weight_noise`.
    pub seed: i64,
    /// Side of the image, in pixels.
    #[schemars(range(min = 8, max = 1024))]
    pub image_size: i64,
    /// Side of a patch, in pixels.
    #[schemars(range(min = 1, max = 256))]
    pub patch: i64,
    /// The image tower.
    pub vision: TowerSize,
    /// The text tower.
    pub text: TowerSize,
    /// Number of positions of a text.
    #[schemars(range(min = 4, max = 1024))]
    pub context: i64,
    /// Width of the common space.
    #[schemars(range(min = 1, max = 4096))]
    pub projection: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            init: Init::Files,
            config: serde_json::Map::new(),
            preprocessing: None,
            cleaning: None,
            window: None,
            volumes: None,
            finite: false,
            weight_noise: None,
            architecture: None,
            seed: 0,
            image_size: 48,
            patch: 8,
            vision: TowerSize::default(),
            text: TowerSize { layers: 2, ..TowerSize::default() },
            context: 24,
            projection: 64,
        }
    }
}

/// Verifies a model's files, or makes a model with random weights.
pub struct Checkpoint;

impl StageKind for Checkpoint {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "checkpoint",
            summary: "a verified foundation model: from published files of any layout, or with random weights",
            implementation: 4,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![
                InputPort::optional(
                    "source",
                    &[ArtifactType::FILE, artifact::CHECKPOINT],
                    "a folder as published (Hugging Face, open_clip, timm, PMC-CLIP's files), one file of weights, or \
                     another stage's checkpoint",
                ),
                InputPort::optional(
                    "tokenizer",
                    &[artifact::TOKENIZER, ArtifactType::FILE],
                    "the tokeniser of a model with random weights, or of files that have none: of a stage, or published files (`tokenizer.json`, `vocab.txt`, `vocab.json` with `merges.txt`)",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("checkpoint", artifact::CHECKPOINT, "the model")]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems = Vec::new();
        if let Some(name) = &params.architecture
            && published(name).is_none()
        {
            problems.push(ParameterProblem {
                path: "architecture".to_owned(),
                message: format!("`{name}` is no published architecture"),
                help: Some(format!("`{}`", PUBLISHED.join("`, `"))),
            });
        }
        for (name, tower) in [("vision", &params.vision), ("text", &params.text)] {
            if tower.width % tower.heads != 0 {
                problems.push(ParameterProblem {
                    path: format!("{name}.heads"),
                    message: format!("{} heads do not divide a width of {}", tower.heads, tower.width),
                    help: None,
                });
            }
        }
        if params.image_size % params.patch != 0 {
            problems.push(ParameterProblem {
                path: "patch".to_owned(),
                message: format!(
                    "patches of {} do not divide an image of {}",
                    params.patch, params.image_size
                ),
                help: None,
            });
        }
        let windows = [
            ("window", params.window),
            ("volumes.window", params.volumes.as_ref().map(|volumes| volumes.window)),
        ];
        for (path, window) in windows {
            if let Some([black, white]) = window
                && !(black.is_finite() && white.is_finite() && black < white)
            {
                problems.push(ParameterProblem {
                    path: path.to_owned(),
                    message: format!("from {black} to {white} is no window"),
                    help: Some("two numbers, the value of black first".to_owned()),
                });
            }
        }
        problems
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["window", "volumes", "finite", "weight_noise"]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let given = match context.optional_input("tokenizer") {
            Some(artifact) => Tokenizer::of_checkpoint(&files(artifact)).map_err(checkpoint_error)?,
            None => None,
        };
        let model = match (params.init, context.optional_input("source")) {
            (Init::Files, Some(source)) => {
                let options = ImportOptions {
                    config: params.config.clone().into(),
                    pipeline: params.preprocessing.map(Pipeline::from),
                    cleaning: params.cleaning.map(Cleaning::from),
                    window: params.window,
                    slices: params.volumes.as_ref().map(Slices::from),
                    hounsfield: params.volumes.as_ref().map(|volumes| volumes.window),
                    tokenizer: given,
                    finite: params.finite,
                };
                Model::import(source, &options, Trainable::Frozen, Compute::exact())?
            }
            (Init::Files, None) => {
                let message =
                    "`init = \"files\"` needs the input `source`: `inputs = { source = \"file:FOLDER\" }`";
                return Err(StageError::failed(message));
            }
            (Init::Random, _) => {
                let cleaned = |tokenizer: Tokenizer| match params.cleaning {
                    Some(cleaning) => tokenizer.with_cleaning(cleaning.into()).map_err(checkpoint_error),
                    None => Ok(tokenizer),
                };
                random(params, given.map(cleaned).transpose()?.as_ref())?
            }
        };
        let model = match params.weight_noise {
            Some(deviation) => noisy(&model, deviation, params.seed)?,
            None => model,
        };
        if let (Some(tokenizer), Some(tower)) = (&model.tokenizer, model.network.as_text_tower())
            && tokenizer.vocabulary() > tower.vocabulary()
        {
            let reason = format!(
                "it has {} ids, the model's embedding table {} rows",
                tokenizer.vocabulary(),
                tower.vocabulary()
            );
            return Err(StageError::input("tokenizer.json", reason));
        }
        model.save(context.output("checkpoint")?)
    }
}

/// A model with random weights: of a published architecture, or a small CLIP.
fn random(params: &Params, tokenizer: Option<&Tokenizer>) -> Result<Model, StageError> {
    let config = match params.architecture.as_deref().and_then(published) {
        Some(config) => config,
        None => ModelConfig::Clip(small(
            params,
            tokenizer.ok_or_else(|| {
                StageError::failed("random weights need the input `tokenizer`: it decides the vocabulary")
            })?,
        )),
    };
    let config = config.with_overrides(&params.config.clone().into()).map_err(checkpoint_error)?;
    let network = config.random(params.seed as u64, &DEVICE, Trainable::Frozen).map_err(checkpoint_error)?;
    let preprocessor = config.preprocessor().map(|own| Preprocessor {
        pipeline: params.preprocessing.map_or(own.pipeline, Pipeline::from),
        window: params.window.unwrap_or(own.window),
        slices: params.volumes.as_ref().map_or(own.slices, Slices::from),
        hounsfield: params.volumes.as_ref().map_or(own.hounsfield, |volumes| volumes.window),
        ..own
    });
    Ok(Model::new(network, preprocessor, tokenizer.cloned()))
}

/// The CLIP of the given sizes, with as many embeddings as `tokenizer` has ids.
fn small(params: &Params, tokenizer: &Tokenizer) -> ClipConfig {
    let end = tokenizer.end();
    ClipConfig {
        text: TextConfig {
            vocabulary: tokenizer.vocabulary(),
            width: params.text.width as usize,
            hidden: params.text.hidden(),
            layers: params.text.layers as usize,
            heads: params.text.heads as usize,
            positions: params.context as usize,
            activation: Activation::QuickGelu,
            epsilon: 1e-5,
            eot: EotRule::First(end),
            bos: tokenizer.start().unwrap_or(end),
            // Padding with the end mark is invisible behind the first one.
            pad: end,
        },
        vision: VisionConfig {
            width: params.vision.width as usize,
            hidden: params.vision.hidden(),
            layers: params.vision.layers as usize,
            heads: params.vision.heads as usize,
            image: params.image_size as usize,
            patch: params.patch as usize,
            channels: 3,
            activation: Activation::QuickGelu,
            epsilon: 1e-5,
        },
        projection: params.projection as usize,
        logit_scale: (1.0f64 / 0.07).ln(),
    }
}
