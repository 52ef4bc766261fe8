//! A model as the files that it can be read from again: by this program, and, where another library
//! knows the architecture, by that library.

use std::path::Path;

use serde_json::{Value as Json, json};

use crate::checkpoint::{CheckpointError, write, write_tensors};
use crate::clip::{OpenAiClipConfig, OpenAiImage};
use crate::preprocess::{Filter, Fit};
use crate::{Activation, FoundationModel, ModelConfig, Preprocessor, Tokenizer};

/// What is written beside the weights.
#[derive(Clone, Copy, Default)]
pub struct Companions<'a> {
    /// What happens to an image first.
    pub preprocessor: Option<&'a Preprocessor>,
    /// The tokeniser.
    pub tokenizer: Option<&'a Tokenizer>,
    /// open_clip's description of the model, if it came from such a folder.
    pub open_clip: Option<&'a Json>,
}

/// Writes a model into a folder: `config.json`; the weights as safetensors by the names of the published
/// checkpoint; `preprocessor_config.json`; `tokenizer.json` with `tokenizer_config.json`. transformers
/// loads a CLIP or BERT in its layout, open_clip a CLIP in OpenAI's layout and a BiomedCLIP whose
/// description is known.
///
/// # Errors
/// If a file cannot be written.
pub fn export(
    folder: &Path,
    model: &dyn FoundationModel,
    companions: &Companions<'_>,
) -> Result<(), CheckpointError> {
    let config = model.model_config();
    let text = |name: &str, text: &str| write(&folder.join(name), text.as_bytes());
    text("config.json", &config.to_json())?;
    let open_clip = match (&config, companions.open_clip) {
        (ModelConfig::OpenAiClip(_) | ModelConfig::BiomedClip(_), Some(description)) => {
            Some(description.clone())
        }
        (ModelConfig::OpenAiClip(config), None) => Some(describe(config, companions.preprocessor)),
        _ => None,
    };
    match open_clip {
        Some(description) => {
            text("open_clip_config.json", &format!("{description:#}\n"))?;
            write_tensors(&folder.join("open_clip_model.safetensors"), &model.tensors())?;
        }
        None => write_tensors(&folder.join("model.safetensors"), &model.tensors())?,
    }
    if let Some(preprocessor) = companions.preprocessor {
        text("preprocessor_config.json", &preprocessor.to_json())?;
    }
    if let Some(tokenizer) = companions.tokenizer {
        text("tokenizer.json", &tokenizer.to_json()?)?;
        text("tokenizer_config.json", &tokenizer.config_json())?;
    }
    Ok(())
}

/// `open_clip_config.json` of a CLIP in OpenAI's layout.
fn describe(config: &OpenAiClipConfig, preprocessor: Option<&Preprocessor>) -> Json {
    let vision = match &config.image {
        OpenAiImage::Transformer(vision) => json!({
            "image_size": vision.image, "layers": vision.layers, "width": vision.width,
            "patch_size": vision.patch, "head_width": vision.width / vision.heads,
            "mlp_ratio": vision.hidden as f64 / vision.width as f64,
        }),
        OpenAiImage::ResNet { trunk, pool_heads } => json!({
            "image_size": trunk.image, "layers": trunk.blocks, "width": trunk.width, "patch_size": null,
            "head_width": trunk.width * 32 / pool_heads,
        }),
    };
    let text = &config.text;
    let mut description = json!({
        "model_cfg": {
            "embed_dim": config.projection,
            "quick_gelu": text.activation == Activation::QuickGelu,
            "vision_cfg": vision,
            "text_cfg": {
                "context_length": text.positions, "vocab_size": text.vocabulary, "width": text.width,
                "heads": text.heads, "layers": text.layers,
                "mlp_ratio": text.hidden as f64 / text.width as f64,
            },
        },
    });
    if let Some(preprocessor) = preprocessor {
        description["preprocess_cfg"] = json!({
            "mean": preprocessor.mean, "std": preprocessor.std,
            "interpolation": match preprocessor.filter {
                Filter::Nearest => "nearest",
                Filter::Bilinear => "bilinear",
                Filter::Bicubic => "bicubic",
            },
            "resize_mode": if preprocessor.fit == Fit::Stretch { "squash" } else { "shortest" },
        });
    }
    description
}
