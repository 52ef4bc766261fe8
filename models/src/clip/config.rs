//! `config.json` of a CLIP in the Hugging Face layout.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::Activation;
use crate::checkpoint::CheckpointError;
use crate::sizes::{check_epsilon, check_heads, check_layers, check_sizes};
use crate::vit::VisionConfig;

/// The published default of `eos_token_id` where a file leaves it out.
const DEFAULT_EOT: u32 = 49407;
/// A size beyond this is no model but a mistake or an attack.
const LIMIT: u64 = 1 << 20;

/// How the pooled position of a text is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EotRule {
    /// The first position of the greatest id: OpenAI's rule, and that of configurations whose
    /// `eos_token_id` is 2 (all early published ones).
    Greatest,
    /// The first position of this id.
    First(u32),
}

/// The text transformer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Rows of the token embedding table.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the perceptrons.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Number of positions.
    pub positions: usize,
    /// The nonlinearity.
    pub activation: Activation,
    /// Epsilon of layer norms.
    pub epsilon: f64,
    /// How the pooled position is found.
    pub eot: EotRule,
    /// `bos_token_id` as written.
    pub bos: u32,
    /// `pad_token_id` as written.
    pub pad: u32,
}

impl TextConfig {
    /// Fails, naming the field, unless the sizes make sense.
    pub(crate) fn check(&self) -> Result<(), CheckpointError> {
        check_sizes(&[
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("hidden", self.hidden),
            ("positions", self.positions),
        ])?;
        check_layers(&[("layers", self.layers)])?;
        check_heads("width", self.width, self.heads)?;
        check_epsilon("epsilon", self.epsilon)
    }
}

/// Both towers and their common space.
#[derive(Clone, PartialEq, Debug)]
pub struct ClipConfig {
    /// The text transformer.
    pub text: TextConfig,
    /// The vision transformer.
    pub vision: VisionConfig,
    /// Width of the common space.
    pub projection: usize,
    /// Initial natural logarithm of the logit scale.
    pub logit_scale: f64,
}

fn config_error(reason: impl Into<String>) -> CheckpointError {
    CheckpointError::new("config.json", reason)
}

/// One tower's section, with `*_config_dict` laid over it where an old file carries one.
struct Section<'a> {
    name: &'static str,
    base: &'a Json,
    over: &'a Json,
}

impl Section<'_> {
    fn get(&self, key: &str) -> &Json {
        if self.over[key].is_null() { &self.base[key] } else { &self.over[key] }
    }

    fn size(&self, key: &str, default: u64) -> Result<usize, CheckpointError> {
        let value = self.get(key);
        let size = if value.is_null() { Some(default) } else { value.as_u64() };
        size.filter(|size| (1..=LIMIT).contains(size)).map(|size| size as usize).ok_or_else(|| {
            config_error(format!(
                "`{}.{key}` is {value}; a whole number from 1 to {LIMIT} is expected",
                self.name
            ))
        })
    }

    fn activation(&self) -> Result<Activation, CheckpointError> {
        match self.get("hidden_act") {
            Json::Null => Ok(Activation::QuickGelu),
            Json::String(name) if name == "quick_gelu" => Ok(Activation::QuickGelu),
            Json::String(name) if name == "gelu" => Ok(Activation::Gelu),
            other => Err(config_error(format!(
                "`{}.hidden_act` is {other}; `quick_gelu` or `gelu` is expected",
                self.name
            ))),
        }
    }

    fn epsilon(&self) -> Result<f64, CheckpointError> {
        match self.get("layer_norm_eps") {
            Json::Null => Ok(1e-5),
            value => value.as_f64().filter(|epsilon| *epsilon > 0.0 && *epsilon < 1.0).ok_or_else(|| {
                config_error(format!(
                    "`{}.layer_norm_eps` is {value}; a small positive number is expected",
                    self.name
                ))
            }),
        }
    }
}

impl ClipConfig {
    /// Reads `config.json`; what a file leaves out has the published default.
    ///
    /// # Errors
    /// If it is no CLIP configuration, naming the field.
    pub fn from_json(text: &str) -> Result<Self, CheckpointError> {
        let json: Json = serde_json::from_str(text).map_err(|error| config_error(error.to_string()))?;
        if !json.is_object() || json["model_type"].as_str().is_some_and(|kind| kind != "clip") {
            return Err(config_error(format!("`model_type` is {}; `clip` is expected", json["model_type"])));
        }
        let text =
            Section { name: "text_config", base: &json["text_config"], over: &json["text_config_dict"] };
        let vision = Section {
            name: "vision_config",
            base: &json["vision_config"],
            over: &json["vision_config_dict"],
        };
        let eot = match text.get("eos_token_id") {
            Json::Null => EotRule::First(DEFAULT_EOT),
            value => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(2) => EotRule::Greatest,
                Some(id) => EotRule::First(id),
                None => return Err(config_error(format!("`text_config.eos_token_id` is {value}"))),
            },
        };
        let id = |key: &str, default: u32| {
            text.get(key).as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(default)
        };
        let projection = Section { name: "config", base: &json, over: &Json::Null };
        let config = Self {
            text: TextConfig {
                vocabulary: text.size("vocab_size", 49408)?,
                width: text.size("hidden_size", 512)?,
                hidden: text.size("intermediate_size", 2048)?,
                layers: text.size("num_hidden_layers", 12)?,
                heads: text.size("num_attention_heads", 8)?,
                positions: text.size("max_position_embeddings", 77)?,
                activation: text.activation()?,
                epsilon: text.epsilon()?,
                eot,
                bos: id("bos_token_id", 49406),
                pad: id("pad_token_id", 1),
            },
            vision: VisionConfig {
                width: vision.size("hidden_size", 768)?,
                hidden: vision.size("intermediate_size", 3072)?,
                layers: vision.size("num_hidden_layers", 12)?,
                heads: vision.size("num_attention_heads", 12)?,
                image: vision.size("image_size", 224)?,
                patch: vision.size("patch_size", 32)?,
                channels: vision.size("num_channels", 3)?,
                activation: vision.activation()?,
                epsilon: vision.epsilon()?,
            },
            projection: projection.size("projection_dim", 512)?,
            logit_scale: json["logit_scale_init_value"].as_f64().unwrap_or(2.6592),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), CheckpointError> {
        for (name, width, heads) in [
            ("text_config", self.text.width, self.text.heads),
            ("vision_config", self.vision.width, self.vision.heads),
        ] {
            if !width.is_multiple_of(heads) {
                return Err(config_error(format!(
                    "`{name}`: {heads} heads do not divide a width of {width}"
                )));
            }
        }
        if self.vision.patch > self.vision.image {
            return Err(config_error(format!(
                "`vision_config.patch_size` is {} for an image of {}",
                self.vision.patch, self.vision.image
            )));
        }
        Ok(())
    }

    /// `config.json`, with sorted keys.
    pub fn to_json(&self) -> String {
        let name =
            |activation: Activation| if activation == Activation::Gelu { "gelu" } else { "quick_gelu" };
        let eot = match self.text.eot {
            EotRule::Greatest => 2,
            EotRule::First(id) => id,
        };
        let json = serde_json::json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "logit_scale_init_value": self.logit_scale,
            "projection_dim": self.projection,
            "text_config": {
                "model_type": "clip_text_model",
                "vocab_size": self.text.vocabulary, "hidden_size": self.text.width,
                "intermediate_size": self.text.hidden, "num_hidden_layers": self.text.layers,
                "num_attention_heads": self.text.heads, "max_position_embeddings": self.text.positions,
                "hidden_act": name(self.text.activation), "layer_norm_eps": self.text.epsilon,
                "eos_token_id": eot, "bos_token_id": self.text.bos, "pad_token_id": self.text.pad,
                "projection_dim": self.projection,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": self.vision.width, "intermediate_size": self.vision.hidden,
                "num_hidden_layers": self.vision.layers, "num_attention_heads": self.vision.heads,
                "image_size": self.vision.image, "patch_size": self.vision.patch,
                "num_channels": self.vision.channels, "hidden_act": name(self.vision.activation),
                "layer_norm_eps": self.vision.epsilon, "projection_dim": self.projection,
            },
        });
        format!("{json:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_leaves_out_is_the_published_base_model() {
        for text in ["{}", r#"{ "model_type": "clip", "text_config": null, "vision_config": {} }"#] {
            let config = ClipConfig::from_json(text).unwrap();
            let TextConfig {
                vocabulary,
                width,
                hidden,
                layers,
                heads,
                positions,
                activation,
                epsilon,
                eot,
                ..
            } = config.text;
            assert_eq!([vocabulary, width, hidden, layers, heads, positions], [49408, 512, 2048, 12, 8, 77]);
            assert_eq!((activation, epsilon, eot), (Activation::QuickGelu, 1e-5, EotRule::First(49407)));
            let VisionConfig { width, hidden, layers, heads, image, patch, channels, activation, epsilon } =
                config.vision;
            assert_eq!(
                [width, hidden, layers, heads, image, patch, channels],
                [768, 3072, 12, 12, 224, 32, 3]
            );
            assert_eq!((activation, epsilon, config.projection), (Activation::QuickGelu, 1e-5, 512));
        }
    }

    /// The nonlinearity is each tower's own, and `*_config_dict` of old files stands above the section.
    #[test]
    fn sections_are_read_one_by_one() {
        let config = ClipConfig::from_json(
            r#"{
                "text_config": { "hidden_act": "gelu", "num_hidden_layers": 3, "eos_token_id": 2, "hidden_size": 64 },
                "text_config_dict": { "num_hidden_layers": 5, "eos_token_id": 7, "hidden_size": null },
                "vision_config": { "patch_size": 16, "image_size": 64 },
                "vision_config_dict": { "image_size": 32 }
            }"#,
        )
        .unwrap();
        assert_eq!((config.text.layers, config.text.eot, config.text.width), (5, EotRule::First(7), 64));
        assert_eq!(
            (config.text.activation, config.vision.activation),
            (Activation::Gelu, Activation::QuickGelu)
        );
        assert_eq!((config.vision.image, config.vision.patch), (32, 16));
        let config = ClipConfig::from_json(r#"{ "vision_config": { "hidden_act": "gelu" } }"#).unwrap();
        assert_eq!(
            (config.text.activation, config.vision.activation),
            (Activation::QuickGelu, Activation::Gelu)
        );
        let old = ClipConfig::from_json(r#"{ "text_config": { "eos_token_id": 2 } }"#).unwrap();
        assert_eq!(old.text.eot, EotRule::Greatest);
    }

    #[test]
    fn a_field_that_makes_no_sense_is_named() {
        for (text, part) in [
            (r#"{ "text_config": { "hidden_act": "relu" } }"#, "`text_config.hidden_act` is \"relu\""),
            (r#"{ "vision_config_dict": { "patch_size": 0 } }"#, "`vision_config.patch_size` is 0"),
            (r#"{ "text_config": { "eos_token_id": -1 } }"#, "eos_token_id"),
            (r#"{ "text_config": { "num_attention_heads": 7 } }"#, "7 heads"),
            (r#"{ "vision_config": { "patch_size": 256 } }"#, "image of 224"),
            (r#"{ "model_type": "siglip" }"#, "siglip"),
            (r#"{ "vision_config": { "layer_norm_eps": 2 } }"#, "layer_norm_eps"),
            ("[]", "model_type"),
        ] {
            let error = ClipConfig::from_json(text).unwrap_err().to_string();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
