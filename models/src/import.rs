//! Published checkpoints in the layouts that they come in, as everything that a model is made of.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde_json::Value as Json;

use crate::checkpoint::{
    self, CheckpointError, CheckpointFiles, Prefer, check_finite, has_transformers_weights, read_tensors,
    tensors_preferring,
};
use crate::clip::OpenAiImage;
use crate::device::Precision;
use crate::preprocess::{Filter, Fit, Pipeline, Slices};
use crate::resnet::StemForm;
use crate::tokenizer::Cleaning;
use crate::{FoundationModel, ModelConfig, Preprocessor, Tokenizer, Trainable, open_clip, positions};

/// The split form of PMC-CLIP: file, and what its names lack.
const PMC_SPLIT: [(&str, &str); 3] = [
    ("image_encoder(resnet50).pth", "visual."),
    ("text_encoder.pth", "text_encoder."),
    ("text_projection_layer.pth", "text_projection"),
];
/// What CT-LiPro's files put before the names of CT-CLIP.
const FINE_TUNED: &str = "trained_model.";
/// The endings of files of weights.
const WEIGHTS: [&str; 6] = [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".weights"];
/// Of torchvision's and timm's training.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// How the files of a checkpoint lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// A folder with the `config.json` of transformers, or of our own.
    HuggingFace,
    /// A folder with `open_clip_config.json`.
    OpenClip,
    /// A folder with timm's `config.json`.
    Timm,
    /// The three files of PMC-CLIP.
    PmcClipSplit,
    /// Weights without a description.
    Weights,
}

/// What the files of a checkpoint do not say, or say wrongly.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Fields of the configuration that replace those found; `null` changes nothing.
    pub config: Json,
    /// The order of preprocessing steps.
    pub pipeline: Option<Pipeline>,
    /// The cleaning of texts.
    pub cleaning: Option<Cleaning>,
    /// The values of a 16-bit image that become black and white.
    pub window: Option<[f64; 2]>,
    /// What is seen of a volume by a model of flat images.
    pub slices: Option<Slices>,
    /// The Hounsfield units that become black and white then.
    pub hounsfield: Option<[f64; 2]>,
    /// The tokeniser of a model that reads text, if the files have none.
    pub tokenizer: Option<Tokenizer>,
    /// Whether weights that are no finite numbers are refused.
    pub finite: bool,
}

/// A checkpoint as it was found.
pub struct Imported {
    /// How its files lay.
    pub layout: Layout,
    /// The architecture with its sizes.
    pub config: ModelConfig,
    /// The weights by the names that the architecture knows, floats in f32.
    pub tensors: BTreeMap<String, Tensor>,
    /// What happens to an image first; `None` for a model without an image tower.
    pub preprocessor: Option<Preprocessor>,
    /// The tokeniser, if the files hold one or one was given.
    pub tokenizer: Option<Tokenizer>,
    /// open_clip's description, which an export keeps.
    pub open_clip: Option<Json>,
    /// The file of weights, or the first of several.
    weights: String,
}

impl Imported {
    /// The model of these tensors. They are moved out of the checkpoint.
    ///
    /// # Errors
    /// If names and shapes do not fit; all that do not are listed.
    pub fn build(&mut self, trainable: Trainable) -> Result<Box<dyn FoundationModel>, CheckpointError> {
        let tensors = std::mem::take(&mut self.tensors);
        self.config.build(tensors, trainable).map_err(|error| error.of_file(&self.weights))
    }

    /// As [`Self::build`], frozen and in this precision.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_frozen(
        &mut self,
        precision: Precision,
    ) -> Result<Box<dyn FoundationModel>, CheckpointError> {
        let tensors = std::mem::take(&mut self.tensors);
        self.config.build_frozen(tensors, precision).map_err(|error| error.of_file(&self.weights))
    }
}

/// Reads a checkpoint of any layout: Hugging Face (one file or shards), open_clip, timm, OpenAI's `.pt`,
/// PMC-CLIP's whole and split files, CT-CLIP's `.pt`, torchvision's and MedMNIST's `.pth`.
///
/// # Errors
/// If the layout or the architecture is not known, a file is missing or damaged, or a description
/// contradicts the weights.
pub fn import(
    files: &CheckpointFiles,
    options: &ImportOptions,
    device: &Device,
) -> Result<Imported, CheckpointError> {
    let layout = layout(files)?;
    let description = match layout {
        Layout::OpenClip => files.json_if_any(open_clip::FILE)?,
        Layout::HuggingFace | Layout::Timm => files.json_if_any("config.json")?,
        Layout::PmcClipSplit | Layout::Weights => Json::Null,
    };
    let weights = name_of_weights(files, layout)?;
    let of_file = |error: CheckpointError| error.of_file(&weights);
    let mut tensors = read_weights(files, layout, device).and_then(canonical).map_err(of_file)?;
    if options.finite {
        check_finite(&weights, &tensors)?;
    }
    let found = read_config(files, layout, &description, &tensors).map_err(of_file)?;
    let config = found.with_overrides(&options.config)?;
    let mut open_clip = Some(files.json_if_any(open_clip::FILE)?).filter(Json::is_object);
    let preprocessor = match (found.image_side(), config.image_side()) {
        (Some(own), Some(side)) => {
            if side != own {
                positions::fit(&config, side, &mut tensors).map_err(of_file)?;
                if let Some(size) =
                    open_clip.as_mut().and_then(|json| json.pointer_mut("/model_cfg/vision_cfg/image_size"))
                {
                    *size = side.into();
                }
            }
            let mut found = preprocessor(files, layout, &description, &config, [own, side])?;
            found.pipeline = options.pipeline.unwrap_or(found.pipeline);
            found.window = options.window.unwrap_or(found.window);
            found.slices = options.slices.unwrap_or(found.slices);
            found.hounsfield = options.hounsfield.unwrap_or(found.hounsfield);
            Some(found)
        }
        _ => None,
    };
    // A given one is cleaned as one of the files is: the authors' code knows no difference.
    let own = Tokenizer::of_checkpoint(files)?;
    let default = cleaning(layout, own.is_some(), &config);
    let tokenizer = own
        .or_else(|| options.tokenizer.clone().filter(|_| config.text_length().is_some()))
        .map(|tokenizer| match options.cleaning.or(default) {
            Some(cleaning) => tokenizer.with_cleaning(cleaning),
            None => Ok(tokenizer),
        })
        .transpose()?;
    Ok(Imported { layout, config, tensors, preprocessor, tokenizer, open_clip, weights })
}

fn layout(files: &CheckpointFiles) -> Result<Layout, CheckpointError> {
    let has = |name: &str| files.get(name).is_some();
    let config = files.json_if_any("config.json")?;
    let kind = config["model_type"].as_str();
    // open_clip's folders may hold the same model for transformers too.
    if kind.is_some_and(ModelConfig::is_our_own) || kind.is_some() && has_transformers_weights(files) {
        Ok(Layout::HuggingFace)
    } else if has(open_clip::FILE) {
        Ok(Layout::OpenClip)
    } else if config["architecture"].is_string() {
        Ok(Layout::Timm)
    } else if has("config.json") {
        Ok(Layout::HuggingFace)
    } else if PMC_SPLIT.iter().all(|(file, _)| has(file)) {
        Ok(Layout::PmcClipSplit)
    } else {
        weights_alone(files).map(|_| Layout::Weights)
    }
}

/// The one file of weights.
fn weights_alone(files: &CheckpointFiles) -> Result<&str, CheckpointError> {
    let weights: Vec<&str> =
        files.names().filter(|name| WEIGHTS.iter().any(|ending| name.ends_with(ending))).collect();
    match weights[..] {
        [one] => Ok(one),
        [] => Err(CheckpointError::new(
            "config.json",
            "the checkpoint has no such file, no `open_clip_config.json`, and no file of weights",
        )),
        _ => Err(CheckpointError::new(
            weights[0],
            format!(
                "there are several files of weights (`{}`) and no `config.json`; name one of them",
                weights.join("`, `")
            ),
        )),
    }
}

/// The file that a mistake in the weights is reported for.
fn name_of_weights(files: &CheckpointFiles, layout: Layout) -> Result<String, CheckpointError> {
    Ok(match layout {
        Layout::PmcClipSplit => PMC_SPLIT[0].0,
        Layout::Weights => weights_alone(files)?,
        Layout::HuggingFace | Layout::Timm => checkpoint::weights_name(files, Prefer::Transformers)?.0,
        Layout::OpenClip => checkpoint::weights_name(files, Prefer::OpenClip)?.0,
    }
    .to_owned())
}

fn read_weights(
    files: &CheckpointFiles,
    layout: Layout,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    match layout {
        Layout::PmcClipSplit => {
            let mut all = BTreeMap::new();
            for (file, prefix) in PMC_SPLIT {
                let tensors = read_tensors(files, file, device)?;
                all.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
            }
            Ok(all)
        }
        Layout::Weights => {
            let name = weights_alone(files)?;
            read_tensors(files, name, device)
        }
        Layout::HuggingFace | Layout::Timm => checkpoint::tensors(files, device),
        Layout::OpenClip => tensors_preferring(files, Prefer::OpenClip, device),
    }
}

/// The names that the architectures know: without the wrapper of a fine-tuned CT-CLIP, with the names
/// that transformers gives to the parameters of norms today, and with torchvision's for what MedMNIST's
/// residual networks call otherwise.
fn canonical(tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let mut renamed = BTreeMap::new();
    for (name, tensor) in tensors {
        let mut new = name.strip_prefix(FINE_TUNED).unwrap_or(&name).to_owned();
        for (old, now) in [(".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")]
        {
            if let Some(stem) = new.strip_suffix(old) {
                new = format!("{stem}{now}");
            }
        }
        if new.starts_with("layer") {
            new = new.replace(".shortcut.", ".downsample.");
        }
        if renamed.insert(new.clone(), tensor).is_some() {
            return Err(CheckpointError::in_weights(format!("two tensors are called `{new}`")));
        }
    }
    Ok(renamed)
}

fn read_config(
    files: &CheckpointFiles,
    layout: Layout,
    description: &Json,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<ModelConfig, CheckpointError> {
    match layout {
        Layout::HuggingFace => ModelConfig::from_json(&files.text("config.json")?),
        Layout::OpenClip => open_clip::config(&description["model_cfg"], tensors),
        Layout::Timm | Layout::PmcClipSplit | Layout::Weights => ModelConfig::infer(tensors),
    }
}

/// Replaces the fields of `base` that `overrides` has; a field that is not there is a mistake.
fn merge(base: &mut Json, overrides: &Json, path: &str) -> Result<(), String> {
    match (base, overrides) {
        (Json::Object(base), Json::Object(overrides)) => {
            for (key, value) in overrides {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let known: Vec<String> = base.keys().cloned().collect();
                let field = base.get_mut(key).ok_or_else(|| {
                    format!("it has no field `{path}` to replace; there are `{}`", known.join("`, `"))
                })?;
                merge(field, value, &path)?;
            }
            Ok(())
        }
        (base, value) => {
            *base = value.clone();
            Ok(())
        }
    }
}

impl ModelConfig {
    /// The configuration with fields of `overrides` in place of its own; `null` changes nothing.
    ///
    /// # Errors
    /// If there is no such field, or a value does not fit.
    pub fn with_overrides(&self, overrides: &Json) -> Result<Self, CheckpointError> {
        if overrides.is_null() {
            return Ok(self.clone());
        }
        let error = |reason: String| CheckpointError::new("config.json", reason);
        let mut json: Json =
            serde_json::from_str(&self.to_json()).map_err(|problem| error(problem.to_string()))?;
        merge(&mut json, overrides, "").map_err(error)?;
        Self::from_json(&json.to_string())
    }

    /// The side of the squares that the model takes; `None` if it reads no images.
    fn image_side(&self) -> Option<usize> {
        match self {
            Self::Clip(config) => Some(config.vision.image),
            Self::OpenAiClip(config) => Some(match &config.image {
                OpenAiImage::Transformer(vision) => vision.image,
                OpenAiImage::ResNet { trunk, .. } => trunk.image,
            }),
            Self::BiomedClip(config) => Some(config.vision.image),
            Self::PmcClip(config) => Some(config.image.image),
            Self::CtClip(config) => Some(config.vision.image),
            Self::TimmVit(config) => Some(config.image),
            Self::ResNet(config) => Some(config.image),
            Self::Bert(_) => None,
        }
    }

    /// What happens to an image first, where no file says it; `None` if the model reads no images.
    pub fn preprocessor(&self) -> Option<Preprocessor> {
        let side = self.image_side()?;
        Some(match self {
            // Grey from -1 to 1.
            Self::CtClip(_) => Preprocessor { mean: [0.5; 3], std: [0.5; 3], ..Preprocessor::clip(side) },
            // torchvision's weights are evaluated at 256 pixels, cut to 224, bilinear.
            // MedMNIST's images have the side already; any other is brought to it. Grey from -1 to 1.
            Self::ResNet(config) if config.form.stem == StemForm::Small => Preprocessor {
                pipeline: Pipeline::Torchvision,
                filter: Filter::Bilinear,
                mean: [0.5; 3],
                std: [0.5; 3],
                ..Preprocessor::clip(side)
            },
            Self::ResNet(_) | Self::TimmVit(_) => Preprocessor {
                pipeline: Pipeline::Torchvision,
                fit: Fit::Shortest(side * 256 / 224),
                filter: Filter::Bilinear,
                mean: IMAGENET_MEAN,
                std: IMAGENET_STD,
                ..Preprocessor::clip(side)
            },
            _ => Preprocessor::clip(side),
        })
    }
}

/// What happens to an image first: files tell it for squares of their `own` side, the model takes those of `side`.
fn preprocessor(
    files: &CheckpointFiles,
    layout: Layout,
    description: &Json,
    config: &ModelConfig,
    [own, side]: [usize; 2],
) -> Result<Preprocessor, CheckpointError> {
    match layout {
        Layout::OpenClip => Preprocessor::from_open_clip(&description["preprocess_cfg"], side),
        Layout::Timm => Preprocessor::from_timm(&description["pretrained_cfg"], side),
        _ if files.get("preprocessor_config.json").is_some() => {
            Ok(Preprocessor::from_json(&files.text("preprocessor_config.json")?, own)?.at(side))
        }
        Layout::HuggingFace if matches!(config, ModelConfig::Clip(_)) => {
            Ok(Preprocessor { pipeline: Pipeline::HuggingFace, ..Preprocessor::clip(side) })
        }
        _ => Ok(config.preprocessor().unwrap_or(Preprocessor::clip(side))),
    }
}

/// The cleaning that the authors' code does, where the tokeniser's own file does not say. A folder that `pipe` wrote
/// notes it beside its tokeniser, if it has one.
fn cleaning(layout: Layout, has_own: bool, config: &ModelConfig) -> Option<Cleaning> {
    let is_open = matches!(config, ModelConfig::OpenAiClip(_) | ModelConfig::BiomedClip(_));
    match layout {
        Layout::OpenClip => Some(Cleaning::OpenClip),
        Layout::Weights if is_open => Some(Cleaning::OpenClip),
        Layout::HuggingFace if is_open && !has_own => Some(Cleaning::OpenClip),
        _ => None,
    }
}
