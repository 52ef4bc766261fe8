//! What the weights of a model do not say, for every architecture.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::bert::{BertConfig, BertModel};
use crate::biomed_clip::{BiomedClip, BiomedClipConfig};
use crate::checkpoint::CheckpointError;
use crate::clip::{ClipConfig, ClipModel, OpenAiClip, OpenAiClipConfig};
use crate::ct_clip::{CtClip, CtClipConfig};
use crate::device::Precision;
use crate::initial::Initial;
use crate::model::FoundationModel;
use crate::pmc_clip::{PmcClip, PmcClipConfig};
use crate::resnet::{PlainResNetConfig, ResNet};
use crate::shapes::Shapes;
use crate::vit::{TimmVit, VisionConfig};
use crate::weights::{Trainable, Weights};

/// The architecture of a model with its sizes. With the tensors of a checkpoint it makes the model;
/// as `config.json` it lies beside them.
#[derive(Clone, PartialEq, Debug)]
pub enum ModelConfig {
    /// CLIP in the Hugging Face layout.
    Clip(ClipConfig),
    /// CLIP in OpenAI's layout.
    OpenAiClip(OpenAiClipConfig),
    /// BiomedCLIP.
    BiomedClip(BiomedClipConfig),
    /// PMC-CLIP.
    PmcClip(PmcClipConfig),
    /// CT-CLIP.
    CtClip(CtClipConfig),
    /// BERT without an image tower, in the Hugging Face layout.
    Bert(BertConfig),
    /// timm's ViT without a text tower.
    TimmVit(VisionConfig),
    /// torchvision's ResNet, or MedMNIST's.
    ResNet(PlainResNetConfig),
}

fn config_error(reason: impl Into<String>) -> CheckpointError {
    CheckpointError::new("config.json", reason)
}

/// The values of `model_type` in `config.json`: that of transformers where its format is used.
const CLIP: &str = "clip";
const OPEN_AI_CLIP: &str = "openai_clip";
const BIOMED_CLIP: &str = "biomed_clip";
const PMC_CLIP: &str = "pmc_clip";
const CT_CLIP: &str = "ct_clip";
const BERT: &str = "bert";
/// What CXR-BERT's own files call the same encoder.
const CXR_BERT: &str = "cxr-bert";
const TIMM_VIT: &str = "timm_vit";
const RESNET: &str = "torchvision_resnet";

impl ModelConfig {
    /// Reads `config.json`, whose `model_type` names the architecture.
    ///
    /// # Errors
    /// If it is no JSON, the architecture is unknown, or a size is missing or out of range.
    pub fn from_json(text: &str) -> Result<Self, CheckpointError> {
        let mut json: Json =
            serde_json::from_str(text).map_err(|problem| config_error(problem.to_string()))?;
        let kind = json["model_type"].as_str().unwrap_or(CLIP).to_owned();
        if let Some(fields) = json.as_object_mut() {
            fields.remove("model_type");
        }
        match kind.as_str() {
            CLIP => Ok(Self::Clip(ClipConfig::from_json(text)?)),
            BERT | CXR_BERT => Ok(Self::Bert(BertConfig::from_json(text)?)),
            OPEN_AI_CLIP => read(json).map(Self::OpenAiClip),
            BIOMED_CLIP => read(json).map(Self::BiomedClip),
            PMC_CLIP => read(json).map(Self::PmcClip),
            CT_CLIP => read(json).map(Self::CtClip),
            TIMM_VIT => read(json).map(Self::TimmVit),
            RESNET => read(json).map(Self::ResNet),
            other => {
                let known =
                    [CLIP, OPEN_AI_CLIP, BIOMED_CLIP, PMC_CLIP, CT_CLIP, BERT, CXR_BERT, TIMM_VIT, RESNET];
                Err(config_error(format!(
                    "`model_type` is `{other}`; one of `{}` is expected",
                    known.join("`, `")
                )))
            }
        }
    }

    /// The name of the architecture, as `config.json` says it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Clip(_) => CLIP,
            Self::OpenAiClip(_) => OPEN_AI_CLIP,
            Self::BiomedClip(_) => BIOMED_CLIP,
            Self::PmcClip(_) => PMC_CLIP,
            Self::CtClip(_) => CT_CLIP,
            Self::Bert(_) => BERT,
            Self::TimmVit(_) => TIMM_VIT,
            Self::ResNet(_) => RESNET,
        }
    }

    /// The length of a text in ids, marks included, and the id that fills it up; `None` without a text
    /// tower.
    pub fn text_length(&self) -> Option<(usize, u32)> {
        match self {
            Self::Clip(config) => Some((config.text.positions, config.text.pad)),
            Self::OpenAiClip(config) => Some((config.text.positions, config.text.pad)),
            Self::BiomedClip(config) => Some((config.context, config.text.pad_token_id)),
            Self::PmcClip(config) => Some((config.context, config.text.pad_token_id)),
            Self::CtClip(config) => Some((config.context, config.text.pad_token_id)),
            Self::Bert(config) => Some((config.max_position_embeddings, config.pad_token_id)),
            Self::TimmVit(_) | Self::ResNet(_) => None,
        }
    }

    /// Whether a `model_type` is a name of our own, which no other library writes.
    pub(crate) fn is_our_own(kind: &str) -> bool {
        [OPEN_AI_CLIP, BIOMED_CLIP, PMC_CLIP, CT_CLIP, TIMM_VIT, RESNET].contains(&kind)
    }

    /// `config.json`, with sorted keys.
    pub fn to_json(&self) -> String {
        match self {
            Self::Clip(config) => config.to_json(),
            Self::OpenAiClip(config) => write(OPEN_AI_CLIP, config),
            Self::BiomedClip(config) => write(BIOMED_CLIP, config),
            Self::PmcClip(config) => write(PMC_CLIP, config),
            Self::CtClip(config) => write(CT_CLIP, config),
            Self::Bert(config) => write(BERT, config),
            Self::TimmVit(config) => write(TIMM_VIT, config),
            Self::ResNet(config) => write(RESNET, config),
        }
    }

    /// The architecture and sizes of a checkpoint from the names and shapes of its tensors. What they do
    /// not tell (numbers of heads, the nonlinearity) is as published.
    ///
    /// # Errors
    /// If the names are those of no known architecture, of CLIP in the Hugging Face layout (its
    /// `config.json` says more than its shapes), or a tensor that tells a size is missing.
    pub fn infer(tensors: &BTreeMap<String, Tensor>) -> Result<Self, CheckpointError> {
        let has = |name: &str| tensors.contains_key(name);
        let shapes = Shapes(tensors);
        if has("visual.trunk.cls_token") {
            BiomedClipConfig::infer(tensors).map(Self::BiomedClip)
        } else if has("text_encoder.embeddings.word_embeddings.weight") {
            PmcClipConfig::infer(tensors).map(Self::PmcClip)
        } else if has("visual_transformer.to_patch_emb.2.weight") {
            CtClipConfig::infer(tensors).map(Self::CtClip)
        } else if has("visual.conv1.weight") && has("token_embedding.weight") {
            OpenAiClipConfig::infer(tensors).map(Self::OpenAiClip)
        } else if has("bert.embeddings.word_embeddings.weight") {
            shapes.bert("bert.").map(Self::Bert)
        } else if has("embeddings.word_embeddings.weight") {
            shapes.bert("").map(Self::Bert)
        } else if has("cls_token") {
            VisionConfig::infer_timm(tensors, "").map(Self::TimmVit)
        } else if has("layer1.0.conv2.weight") && !has("attnpool.positional_embedding") {
            PlainResNetConfig::infer(tensors).map(Self::ResNet)
        } else if has("text_model.embeddings.token_embedding.weight") {
            Err(config_error("the checkpoint has no such file; CLIP in the layout of transformers needs it"))
        } else {
            let names: Vec<&str> = tensors.keys().take(3).map(String::as_str).collect();
            let reason = format!(
                "its {} tensors (`{}`, ...) are of no architecture that shapes alone tell",
                tensors.len(),
                names.join("`, `")
            );
            Err(CheckpointError::in_weights(reason))
        }
    }

    /// The model of these tensors, by the names of its published checkpoint, in f32.
    ///
    /// # Errors
    /// If names and shapes do not fit; all that do not are listed.
    pub fn build(
        &self,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> Result<Box<dyn FoundationModel>, CheckpointError> {
        self.of(Weights::new(tensors, trainable))
    }

    /// The frozen model of these tensors in a data type of fewer bits, for inference: weights and activations
    /// are of this type, scalars and running statistics of f32, and norms, softmax and means sum in f32.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_frozen(
        &self,
        tensors: BTreeMap<String, Tensor>,
        precision: Precision,
    ) -> Result<Box<dyn FoundationModel>, CheckpointError> {
        self.of(Weights::new(tensors, Trainable::Frozen).in_precision(precision))
    }

    /// A model with random weights, a pure function of `seed`.
    ///
    /// # Errors
    /// If the sizes ask for more memory than there is, or contradict each other.
    pub fn random(
        &self,
        seed: u64,
        device: &Device,
        trainable: Trainable,
    ) -> Result<Box<dyn FoundationModel>, CheckpointError> {
        match self {
            Self::Clip(config) => Ok(Box::new(ClipModel::random(config, seed, device, trainable)?)),
            _ => self.of(Weights::random(Initial { seed, device: device.clone() }, trainable)),
        }
    }

    fn of(&self, weights: Weights) -> Result<Box<dyn FoundationModel>, CheckpointError> {
        Ok(match self {
            Self::Clip(config) => Box::new(ClipModel::from_weights(config.clone(), weights)?),
            Self::OpenAiClip(config) => Box::new(OpenAiClip::from_weights(config.clone(), weights)?),
            Self::BiomedClip(config) => Box::new(BiomedClip::from_weights(config.clone(), weights)?),
            Self::PmcClip(config) => Box::new(PmcClip::from_weights(config.clone(), weights)?),
            Self::CtClip(config) => Box::new(CtClip::from_weights(config.clone(), weights)?),
            Self::Bert(config) => Box::new(BertModel::from_weights(config, weights)?),
            Self::TimmVit(config) => Box::new(TimmVit::from_weights(config, weights)?),
            Self::ResNet(config) => Box::new(ResNet::from_weights(config.clone(), weights)?),
        })
    }
}

fn read<T: DeserializeOwned>(json: Json) -> Result<T, CheckpointError> {
    serde_json::from_value(json).map_err(|problem| config_error(problem.to_string()))
}

fn write(kind: &str, config: &impl Serialize) -> String {
    let mut json = serde_json::to_value(config).expect("sizes are plain numbers and words");
    if let Some(fields) = json.as_object_mut() {
        fields.insert("model_type".to_owned(), kind.into());
    }
    format!("{json:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_architecture_is_named() {
        let error = ModelConfig::from_json(r#"{"model_type": "llama"}"#).unwrap_err().to_string();
        assert!(error.contains("`llama`") && error.contains("`ct_clip`"), "{error}");
        for json in ["", "[]", r#"{"model_type": "pmc_clip"}"#, r#"{"model_type": "ct_clip", "vision": 3}"#] {
            assert!(ModelConfig::from_json(json).is_err(), "{json}");
        }
    }
}
