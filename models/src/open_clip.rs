//! What open_clip's configuration says of an architecture, held against the weights and against what is
//! computed here.
//!
//! Sizes are those of the weights, and a description with others is refused. Much else changes what a model
//! computes without any trace in its weights (how tokens are pooled, for one): what is not computed here is
//! refused by name, and so is a field that nobody here knows. Fields and defaults are those of open_clip's
//! `CLIPVisionCfg` and `CLIPTextCfg`.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Value as Json, json};

use crate::checkpoint::CheckpointError;
use crate::clip::OpenAiImage;
use crate::resnet::ResNetConfig;
use crate::vit::VisionConfig;
use crate::{Activation, ModelConfig};

/// What open_clip calls its configuration.
pub(crate) const FILE: &str = "open_clip_config.json";

/// Plain ViTs of timm whose heads have 64 values; the patch is the number behind `patch`.
const TIMM: [&str; 4] = ["vit_tiny_", "vit_small_", "vit_base_", "vit_large_"];
/// Relatives of BERT whose tensors have its names, and which compute otherwise.
const NOT_BERT: [&str; 7] =
    ["roberta", "camembert", "distilbert", "albert", "mobilebert", "convbert", "deberta"];

fn error(reason: String) -> CheckpointError {
    CheckpointError::new(FILE, reason)
}

/// The architecture of these tensors, with what no shape tells from `description`, the table `model_cfg`.
///
/// # Errors
/// If the description contradicts the weights, or asks for something else than is computed here.
pub(crate) fn config(
    description: &Json,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<ModelConfig, CheckpointError> {
    let mut config = ModelConfig::infer(tensors)?;
    let mut model = Section::of(description, "")?;
    let mut vision = Section::of(&description["vision_cfg"], "vision_cfg.")?;
    let mut text = Section::of(&description["text_cfg"], "text_cfg.")?;
    for section in ["vision_cfg", "text_cfg", "custom_text", "init_logit_scale", "cast_dtype", "output_dict"]
    {
        model.take(section);
    }
    let quick = model.only("quick_gelu", json!(false), &[json!(false), json!(true)])?;
    match &mut config {
        ModelConfig::BiomedClip(config) => {
            model.size("embed_dim", config.projection)?;
            timm(&mut vision, &config.vision)?;
            bert(&mut text)?;
            if let Some(context) = text.count("context_length")? {
                config.context = context;
            }
        }
        ModelConfig::OpenAiClip(config) => {
            model.size("embed_dim", config.projection)?;
            // open_clip's own models take GELU unless they say otherwise.
            let activation = if quick == json!(true) { Activation::QuickGelu } else { Activation::Gelu };
            *config = config.clone().with_activation(activation);
            text.size("context_length", config.text.positions)?;
            text.size("vocab_size", config.text.vocabulary)?;
            text.size("width", config.text.width)?;
            text.size("layers", config.text.layers)?;
            text.ratio("mlp_ratio", config.text.width, config.text.hidden)?;
            config.text.heads = text.count("heads")?.unwrap_or(config.text.heads);
            plain_text(&mut text)?;
            let head_width = vision.count("head_width")?.unwrap_or(64);
            match &mut config.image {
                OpenAiImage::Transformer(sizes) => {
                    transformer(&mut vision, sizes)?;
                    sizes.heads = (sizes.width / head_width).max(1);
                }
                OpenAiImage::ResNet { trunk, pool_heads } => {
                    residual(&mut vision, trunk)?;
                    *pool_heads = (trunk.width * 32 / head_width).max(1);
                }
            }
            plain_image(&mut vision)?;
        }
        _ => return Err(error("its weights are neither CLIP's nor BiomedCLIP's".to_owned())),
    }
    for section in [model, vision, text] {
        section.end()?;
    }
    Ok(config)
}

/// The image tower of timm.
fn timm(vision: &mut Section<'_>, sizes: &VisionConfig) -> Result<(), CheckpointError> {
    vision.image_size(sizes.image)?;
    if let Some(name) = vision.text("timm_model_name")? {
        let patch = name.split_once("patch").map(|(_, rest)| rest.split(['_', '.']).next().unwrap_or(rest));
        let fits = patch.is_some_and(|patch| patch == sizes.patch.to_string());
        if !fits || !TIMM.iter().any(|known| name.starts_with(known)) {
            let known = TIMM.map(|known| format!("{known}patch{}", sizes.patch)).join("`, `");
            return Err(vision.unsupported("timm_model_name", &json!(name), &format!("`{known}`")));
        }
    }
    vision.only("timm_pool", json!("avg"), &[json!(""), json!("token")])?;
    vision.only("timm_proj", json!("linear"), &[json!("linear")])?;
    vision.only("timm_proj_bias", json!(false), &[json!(false)])?;
    // How weights began, and what training alone does.
    for field in ["timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout", "output_tokens"] {
        vision.take(field);
    }
    // Sizes of open_clip's own tower, which is not built beside timm's.
    for field in ["layers", "width", "head_width", "mlp_ratio", "patch_size"] {
        vision.take(field);
    }
    Ok(())
}

/// The text tower of transformers.
fn bert(text: &mut Section<'_>) -> Result<(), CheckpointError> {
    // Each has an older name.
    let pooler = if text.has("pooler_type") { "pooler_type" } else { "hf_pooler_type" };
    text.only(pooler, json!("mean_pooler"), &[json!("cls_last_hidden_state_pooler")])?;
    let projection = if text.has("proj") { "proj" } else { "hf_proj_type" };
    text.only(projection, json!("mlp"), &[json!("mlp")])?;
    if let Some(name) = text.text("hf_model_name")? {
        let lower = name.to_lowercase();
        if !lower.contains("bert") || NOT_BERT.iter().any(|other| lower.contains(other)) {
            return Err(text.unsupported("hf_model_name", &json!(name), "a BERT"));
        }
    }
    tokenizer(text)?;
    for field in ["hf_model_pretrained", "output_tokens"] {
        text.take(field);
    }
    // Sizes of open_clip's own tower, which is not built beside that of transformers.
    for field in ["vocab_size", "width", "heads", "layers", "mlp_ratio"] {
        text.take(field);
    }
    Ok(())
}

/// open_clip's own vision transformer.
fn transformer(vision: &mut Section<'_>, sizes: &VisionConfig) -> Result<(), CheckpointError> {
    vision.image_size(sizes.image)?;
    vision.size("width", sizes.width)?;
    vision.size("layers", sizes.layers)?;
    vision.size("patch_size", sizes.patch)?;
    vision.ratio("mlp_ratio", sizes.width, sizes.hidden)
}

/// Its residual network.
fn residual(vision: &mut Section<'_>, sizes: &ResNetConfig) -> Result<(), CheckpointError> {
    vision.image_size(sizes.image)?;
    vision.size("width", sizes.width)?;
    let layers = vision.take("layers");
    if !layers.is_null() && layers != json!(sizes.blocks) {
        return Err(vision.contradiction("layers", &layers, &format!("{:?}", sizes.blocks)));
    }
    // Parts of transformers.
    for field in ["patch_size", "mlp_ratio"] {
        vision.take(field);
    }
    Ok(())
}

/// How texts become ids: as the model's own tokeniser says.
fn tokenizer(text: &mut Section<'_>) -> Result<(), CheckpointError> {
    text.take("hf_tokenizer_name");
    text.only("tokenizer_mode", json!("clean"), &[json!("clean")])?;
    text.only("tokenizer_kwargs", json!({}), &[json!({})]).map(|_| ())
}

/// What open_clip's own image towers may do otherwise, and do not here.
fn plain_image(vision: &mut Section<'_>) -> Result<(), CheckpointError> {
    vision.only("pool_type", json!("tok"), &[json!("tok")])?;
    vision.only("block_type", json!("default"), &[json!("default")])?;
    vision.only("pos_embed_type", json!("learnable"), &[json!("learnable")])?;
    for field in ["act_kwargs", "norm_kwargs"] {
        vision.only(field, json!({}), &[json!({})])?;
    }
    // What training alone does, and sizes of what is off.
    for field in ["attn_pooler_queries", "attn_pooler_heads", "patch_dropout", "output_tokens"] {
        vision.take(field);
    }
    for field in ["timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"] {
        vision.take(field);
    }
    Ok(())
}

/// What open_clip's own text tower may do otherwise, and does not here.
fn plain_text(text: &mut Section<'_>) -> Result<(), CheckpointError> {
    text.only("pool_type", json!("argmax"), &[json!("argmax")])?;
    text.only("block_type", json!("default"), &[json!("default")])?;
    text.only("proj_type", json!("linear"), &[json!("linear")])?;
    text.only("pad_id", json!(0), &[json!(0)])?;
    for field in ["act_kwargs", "norm_kwargs"] {
        text.only(field, json!({}), &[json!({})])?;
    }
    tokenizer(text)?;
    // The last is of another pooling.
    for field in ["hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "output_tokens", "eos_id"] {
        text.take(field);
    }
    Ok(())
}

/// A table of the description, whose fields are taken one by one.
struct Section<'a> {
    /// What stands before the names of its fields.
    prefix: &'static str,
    fields: BTreeMap<&'a str, &'a Json>,
}

impl<'a> Section<'a> {
    fn of(json: &'a Json, prefix: &'static str) -> Result<Self, CheckpointError> {
        let fields = match json {
            Json::Null => BTreeMap::new(),
            Json::Object(fields) => fields.iter().map(|(name, value)| (name.as_str(), value)).collect(),
            other => {
                let name = if prefix.is_empty() { "model_cfg" } else { prefix.trim_end_matches('.') };
                return Err(error(format!("`{name}` is {other}; a table is expected")));
            }
        };
        Ok(Self { prefix, fields })
    }

    fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field that was not taken yet; `null` where there is none.
    fn take(&mut self, name: &str) -> Json {
        self.fields.remove(name).cloned().unwrap_or_default()
    }

    fn unsupported(&self, name: &str, found: &Json, supported: &str) -> CheckpointError {
        error(format!("`{}{name}` is {found}; {supported} is supported", self.prefix))
    }

    fn contradiction(&self, name: &str, found: &Json, weights: &str) -> CheckpointError {
        error(format!("`{}{name}` is {found}; in the weights it is {weights}", self.prefix))
    }

    /// A field that has to be one of a few values; where it is absent it is `default`, open_clip's own.
    fn only(&mut self, name: &str, default: Json, supported: &[Json]) -> Result<Json, CheckpointError> {
        let found = match self.take(name) {
            Json::Null => default,
            found => found,
        };
        if supported.contains(&found) {
            return Ok(found);
        }
        let names: Vec<String> = supported.iter().map(Json::to_string).collect();
        Err(self.unsupported(name, &found, &names.join(" or ")))
    }

    /// A count, if there is one.
    fn count(&mut self, name: &str) -> Result<Option<usize>, CheckpointError> {
        match self.take(name) {
            Json::Null => Ok(None),
            number => number
                .as_u64()
                .filter(|count| (1..=1 << 20).contains(count))
                .map(|count| Some(count as usize))
                .ok_or_else(|| error(format!("`{}{name}` is {number}; a count is expected", self.prefix))),
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, CheckpointError> {
        match self.take(name) {
            Json::Null => Ok(None),
            Json::String(text) => Ok(Some(text)),
            other => Err(error(format!("`{}{name}` is {other}; a name is expected", self.prefix))),
        }
    }

    /// A size, which has to be that of the weights if it is there.
    fn size(&mut self, name: &str, weights: usize) -> Result<(), CheckpointError> {
        match self.count(name)? {
            Some(found) if found != weights => {
                Err(self.contradiction(name, &json!(found), &weights.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The side of images: a number, or height and width.
    fn image_size(&mut self, weights: usize) -> Result<(), CheckpointError> {
        let found = self.take("image_size");
        let side = json!(weights);
        match found == side || found == json!([side, side]) || found.is_null() {
            true => Ok(()),
            false => Err(self.contradiction("image_size", &found, &weights.to_string())),
        }
    }

    /// The width of a perceptron as a multiple of that of the stream.
    fn ratio(&mut self, name: &str, width: usize, hidden: usize) -> Result<(), CheckpointError> {
        let found = self.take(name);
        let fits = found.as_f64().is_some_and(|ratio| (ratio * width as f64) as usize == hidden);
        match fits || found.is_null() {
            true => Ok(()),
            false => Err(self.contradiction(name, &found, &format!("{}", hidden as f64 / width as f64))),
        }
    }

    /// Fails if a field is left that is not off.
    fn end(self) -> Result<(), CheckpointError> {
        let is_off = |value: &Json| value.is_null() || *value == json!(false);
        match self.fields.iter().find(|(_, value)| !is_off(value)) {
            Some((name, value)) => {
                let reason =
                    format!("`{}{name}` is {value}; only models without it are supported", self.prefix);
                Err(error(reason))
            }
            None => Ok(()),
        }
    }
}
