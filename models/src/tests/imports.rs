//! Folders and files as libraries publish them, written here with small random weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{bert, ct, loss_of, pixels, resnet, text, values, vision};
use crate::biomed_clip::BiomedClipConfig;
use crate::checkpoint::tests::state_dict;
use crate::checkpoint::{CheckpointFiles, write_tensors};
use crate::clip::{EotRule, OpenAiClipConfig, OpenAiImage};
use crate::ct_clip::{Adaptation, CtClipConfig};
use crate::import::{ImportOptions, Imported, Layout, import};
use crate::preprocess::{Fit, Pipeline, Preprocessor};
use crate::train::Dropout;
use crate::{Activation, ClipConfig, CtClip, DualEncoder, FoundationModel, ModelConfig, Trainable};

type Tensors = BTreeMap<String, Tensor>;

pub(super) fn random(config: &ModelConfig) -> Box<dyn FoundationModel> {
    config.random(5, &Device::Cpu, Trainable::Frozen).unwrap()
}

pub(super) fn folder(files: &[(&str, &Json)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, json) in files {
        std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    }
    folder
}

pub(super) fn found(folder: &Path) -> Result<Imported, String> {
    let files = CheckpointFiles::folder(folder).unwrap();
    import(&files, &ImportOptions::default(), &Device::Cpu).map_err(|error| error.to_string())
}

/// The folder is a model that says what `model` says.
pub(super) fn check(folder: &Path, layout: Layout, model: &dyn FoundationModel) -> Imported {
    let mut imported = found(folder).unwrap();
    assert_eq!(imported.layout, layout);
    assert_eq!(imported.config, model.model_config());
    let again = imported.build(Trainable::Frozen).unwrap();
    let of = |model: &dyn FoundationModel| values(&loss_of(model, pixels(model).as_ref(), None).unwrap());
    assert_eq!(of(model), of(again.as_ref()));
    imported
}

fn clip() -> ModelConfig {
    ModelConfig::Clip(ClipConfig {
        text: text(),
        vision: vision(Activation::QuickGelu),
        projection: 10,
        logit_scale: 2.6592,
    })
}

/// Two shards of safetensors with their index.
fn sharded(tensors: &Tensors) -> TempDir {
    let config: Json = serde_json::from_str(&clip().to_json()).unwrap();
    let folder = folder(&[("config.json", &config)]);
    let (mut shards, mut map) = ([Tensors::new(), Tensors::new()], serde_json::Map::new());
    for (place, (name, tensor)) in tensors.iter().enumerate() {
        map.insert(name.clone(), shard(place % 2).into());
        shards[place % 2].insert(name.clone(), tensor.clone());
    }
    for (index, tensors) in shards.iter().enumerate() {
        write_tensors(&folder.path().join(shard(index)), tensors).unwrap();
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
    folder
}

const INDEX: &str = "model.safetensors.index.json";

fn shard(index: usize) -> String {
    format!("model-{:05}-of-00002.safetensors", index + 1)
}

#[test]
fn shards_are_one_model() {
    let model = random(&clip());
    check(sharded(&model.tensors()).path(), Layout::HuggingFace, model.as_ref());
}

#[test]
fn what_is_wrong_with_shards_is_named() {
    let tensors = random(&clip()).tensors();
    let second = shard(1);
    let refusal = |damage: &dyn Fn(&Path)| {
        let folder = sharded(&tensors);
        damage(folder.path());
        found(folder.path()).err().unwrap()
    };
    let index = |text: &'static str| move |folder: &Path| std::fs::write(folder.join(INDEX), text).unwrap();

    let missing = refusal(&|folder| std::fs::remove_file(folder.join(&second)).unwrap());
    assert!(missing.contains(&second) && missing.contains("no such file"), "{missing}");
    let twice = refusal(&|folder| {
        std::fs::remove_file(folder.join(&second)).unwrap();
        std::fs::copy(folder.join(shard(0)), folder.join(&second)).unwrap();
    });
    assert!(twice.contains(&second) && twice.contains("is in another shard too"), "{twice}");
    for (text, part) in [
        (r#"{ "metadata": {} }"#, "`weight_map`"),
        (r#"{ "weight_map": ["model-00001-of-00002.safetensors"] }"#, "`weight_map`"),
        (r#"{ "weight_map": { "logit_scale": 1 } }"#, "the shard of `logit_scale` is 1"),
        (r#"{ "weight_map": { "logit_scale": "../other.safetensors" } }"#, "../other.safetensors"),
        ("{ \"weight_map\": ", "EOF"),
    ] {
        let reason = refusal(&index(text));
        assert!(reason.contains(part), "{part} in {reason}");
    }
    // A shard that the index does not name is not read: what it holds is missing.
    let first = shard(0);
    let half = refusal(&|folder| {
        let map = json!({ "weight_map": { "logit_scale": first } });
        std::fs::write(folder.join(INDEX), map.to_string()).unwrap();
        let mut imported = found(folder).unwrap();
        let error = imported.build(Trainable::Frozen).err().unwrap().to_string();
        assert!(error.contains("is missing"), "{error}");
        std::fs::remove_file(folder.join(&first)).unwrap();
    });
    assert!(half.contains(&first), "{half}");
}

/// The `config.json` of PubMedCLIP and of PLIP but for their sizes: written by transformers of 2022, with
/// what it then wrote into every section, and the buffers of positions among the weights.
#[test]
fn relatives_of_clip_are_read_as_clip() {
    let inherited = json!({
        "_name_or_path": "", "add_cross_attention": false, "architectures": null, "attention_dropout": 0.0,
        "bad_words_ids": null, "dropout": 0.0, "id2label": { "0": "LABEL_0", "1": "LABEL_1" },
        "initializer_factor": 1.0, "initializer_range": 0.02, "is_decoder": false, "torch_dtype": null,
        "transformers_version": "4.25.1", "use_bfloat16": false, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    });
    let with = |own: Json| {
        let mut section = inherited.as_object().unwrap().clone();
        section.extend(own.as_object().unwrap().clone());
        Json::Object(section)
    };
    let text_section = with(json!({
        "model_type": "clip_text_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 9, "vocab_size": 40, "projection_dim": 10,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    }));
    let vision_section = with(json!({
        "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "num_channels": 3, "projection_dim": 10,
    }));
    let mut text = text();
    (text.eot, text.bos, text.pad) = (EotRule::Greatest, 0, 1);
    let expected = ModelConfig::Clip(ClipConfig {
        text,
        vision: vision(Activation::QuickGelu),
        projection: 10,
        logit_scale: 2.6592,
    });
    let model = random(&expected);
    let mut tensors = model.tensors();
    for (tower, count) in [("text_model", 9i64), ("vision_model", 17)] {
        let positions = Tensor::arange(0i64, count, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        tensors.insert(format!("{tower}.embeddings.position_ids"), positions);
    }
    for dictionaries in [false, true] {
        let mut config = json!({
            "_name_or_path": "openai/clip-vit-base-patch32", "architectures": ["CLIPModel"], "initializer_factor": 1.0,
            "logit_scale_init_value": 2.6592, "model_type": "clip", "projection_dim": 10, "torch_dtype": "float32",
            "transformers_version": null, "text_config": text_section, "vision_config": vision_section,
            "text_config_dict": null, "vision_config_dict": null,
        });
        if dictionaries {
            // What counts stands in the dictionaries, and the sections say other things.
            for (section, own) in [("text_config", &text_section), ("vision_config", &vision_section)] {
                config[format!("{section}_dict")] = own.clone();
                config[section] = json!({ "hidden_size": 99, "num_hidden_layers": 7 });
            }
        }
        let folder = folder(&[("config.json", &config)]);
        write_tensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
        let imported = check(folder.path(), Layout::HuggingFace, model.as_ref());
        assert_eq!(imported.preprocessor.unwrap().pipeline, Pipeline::HuggingFace);
    }
}

/// Positions are those of the weights, brought to the grid that is asked for.
#[test]
fn images_of_another_size_have_positions_between_those_of_the_weights() {
    let clip_of = |image: OpenAiImage| {
        let mut text = text();
        text.eot = EotRule::Greatest;
        ModelConfig::OpenAiClip(OpenAiClipConfig { image, text, projection: 10 })
    };
    let sizes =
        BiomedClipConfig { vision: vision(Activation::Gelu), text: bert(), context: 9, projection: 10 };
    for (config, overrides, position, own, rows) in [
        (
            clip_of(OpenAiImage::ResNet { trunk: resnet(), pool_heads: 4 }),
            json!({ "image": { "res_net": { "trunk": { "image": 96 } } } }),
            "visual.attnpool.positional_embedding",
            64,
            10,
        ),
        (
            clip(),
            json!({ "vision_config": { "image_size": 48 } }),
            "vision_model.embeddings.position_embedding.weight",
            32,
            37,
        ),
        (
            ModelConfig::BiomedClip(sizes),
            json!({ "vision": { "image": 24 } }),
            "visual.trunk.pos_embed",
            32,
            10,
        ),
    ] {
        let model = random(&config);
        let folder = folder(&[("config.json", &serde_json::from_str(&config.to_json()).unwrap())]);
        let preprocessor = Preprocessor::clip(own).to_json();
        std::fs::write(folder.path().join("preprocessor_config.json"), preprocessor).unwrap();
        write_tensors(&folder.path().join("model.safetensors"), &model.tensors()).unwrap();
        let files = CheckpointFiles::folder(folder.path()).unwrap();
        let options = ImportOptions { config: overrides, ..ImportOptions::default() };
        let mut imported = import(&files, &options, &Device::Cpu).unwrap();
        let preprocessor = imported.preprocessor.clone().unwrap();
        assert_eq!(preprocessor.fit, Fit::Shortest(preprocessor.side));
        let table = imported.tensors[position].clone();
        let table = table.reshape((rows, table.dims()[table.rank() - 1])).unwrap();
        let whole = model.tensors()[position].flatten_all().unwrap();
        let first = whole.narrow(0, 0, table.dims()[1]).unwrap();
        assert_eq!(values(&table.get(0).unwrap()), values(&first), "{position}");
        let built = imported.build(Trainable::Frozen).unwrap();
        let side = built.as_image_tower().unwrap().geometry().image[0];
        assert!(side != own && side == preprocessor.side, "{position}: {side}");
        assert!(
            values(&loss_of(built.as_ref(), pixels(built.as_ref()).as_ref(), None).unwrap())[0].is_finite()
        );
        // A description that contradicts the weights is no wish.
        let mut wrong: Json = serde_json::from_str(&config.to_json()).unwrap();
        merge_into(&mut wrong, &options.config);
        std::fs::write(folder.path().join("config.json"), wrong.to_string()).unwrap();
        std::fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
        let error = found(folder.path()).unwrap().build(Trainable::Frozen).err().unwrap().to_string();
        assert!(error.contains(position), "{error}");
    }
}

/// PubMedCLIP shows images of 250 pixels to a tower of 224 whose cells are of 32: seven a side, as before, and 26 pixels
/// that no cell covers.
#[test]
fn pixels_beside_whole_cells_are_not_seen_and_move_no_position() {
    let model = random(&clip());
    let folder = folder(&[("config.json", &serde_json::from_str(&clip().to_json()).unwrap())]);
    write_tensors(&folder.path().join("model.safetensors"), &model.tensors()).unwrap();
    let files = CheckpointFiles::folder(folder.path()).unwrap();
    let config = json!({ "vision_config": { "image_size": 39 } });
    let options = ImportOptions { config, ..ImportOptions::default() };
    let mut imported = import(&files, &options, &Device::Cpu).unwrap();
    let wider = imported.build(Trainable::Frozen).unwrap();
    let (own, wider) = (model.as_image_tower().unwrap(), wider.as_image_tower().unwrap());
    assert_eq!((wider.geometry().image, wider.geometry().grid()), ([39, 39], own.geometry().grid()));
    let pixels = Tensor::randn(0f32, 1.0, (2, 3, 39, 39), &Device::Cpu).unwrap();
    let covered = pixels.narrow(2, 0, 32).unwrap().narrow(3, 0, 32).unwrap().contiguous().unwrap();
    let seen = wider.embed_images(&pixels, None).unwrap();
    assert_eq!(values(&seen), values(&own.embed_images(&covered, None).unwrap()));
    // Images of the own size are not stretched to it on the way.
    assert!(wider.embed_images(&covered, None).is_err());
}

fn merge_into(base: &mut Json, changes: &Json) {
    for (name, change) in changes.as_object().unwrap() {
        match change.is_object() {
            true => merge_into(&mut base[name], change),
            false => base[name] = change.clone(),
        }
    }
}

/// PubMedBERT as published: an encoder under `bert.`, the head of its pre-training, old names of norms.
#[test]
fn a_bert_of_transformers() {
    let model = random(&ModelConfig::Bert(bert()));
    let mut tensors = Tensors::new();
    for (name, tensor) in model.tensors() {
        let name = name.strip_prefix("bert.").unwrap_or(&name);
        let old =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        tensors.insert(format!("bert.{old}"), tensor);
    }
    tensors.insert("cls.predictions.bias".to_owned(), Tensor::zeros(40, DType::F32, &Device::Cpu).unwrap());
    let positions = Tensor::arange(0i64, 9, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    tensors.insert("bert.embeddings.position_ids".to_owned(), positions);
    let config = json!({
        "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": 40, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 9,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 2,
    });
    // CXR-BERT has its own name for the same encoder, and a head by which it was trained with images.
    for kind in ["bert", "cxr-bert"] {
        let mut config = config.clone();
        if kind == "cxr-bert" {
            config["model_type"] = kind.into();
            config["architectures"] = json!(["CXRBertModel"]);
            config["projection_size"] = json!(6);
            let dense = Tensor::zeros((6, 16), DType::F32, &Device::Cpu).unwrap();
            tensors.insert("cls_projection_head.dense_to_hidden.weight".to_owned(), dense);
        }
        let folder = folder(&[("config.json", &config)]);
        write_tensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
        let mut imported = found(folder.path()).unwrap();
        assert_eq!((imported.layout, &imported.config), (Layout::HuggingFace, &model.model_config()));
        assert!(imported.preprocessor.is_none(), "it reads no images");
        let again = imported.build(Trainable::Frozen).unwrap();
        let of = |model: &dyn FoundationModel| values(&loss_of(model, None, None).unwrap());
        assert_eq!(of(model.as_ref()), of(again.as_ref()));
    }
}

/// `CT_LiPro_v2.pt`: a fine-tuned CT-CLIP under a prefix, with a classifier of 18 abnormalities beside it.
#[test]
fn a_fine_tuned_ct_clip_with_its_classifier() {
    let config = CtClipConfig { classes: Some(18), ..ct(Adaptation::Native) };
    let model = random(&ModelConfig::CtClip(config.clone()));
    let mut tensors = model.tensors();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    // What the authors' file holds beside what the model uses.
    let (width, area) = (config.vision.width, config.vision.patch * config.vision.patch);
    tensors.insert("visual_transformer.to_patch_emb_first_frame.2.weight".to_owned(), zeros(&[width, area]));
    let latent = tensors["to_visual_latent.weight"].clone();
    tensors.insert("to_visual_latent_extra.weight".to_owned(), (&latent * 2.0).unwrap());
    let file: Tensors = tensors
        .iter()
        .map(|(name, tensor)| {
            let prefix = if name.starts_with("classifier.") { "" } else { "trained_model." };
            (format!("{prefix}{name}"), tensor.clone())
        })
        .collect();
    let folder = folder(&[]);
    std::fs::write(folder.path().join("CT_LiPro_v2.pt"), state_dict(&file)).unwrap();
    let files = CheckpointFiles::folder(folder.path()).unwrap();
    let sizes = json!({ "vision": { "slices": 6 }, "text": { "num_attention_heads": 2 } });
    let options = ImportOptions { config: sizes, ..ImportOptions::default() };
    let imported = import(&files, &options, &Device::Cpu).unwrap();
    assert_eq!(imported.config, ModelConfig::CtClip(config.clone()));
    assert!(!imported.tensors.keys().any(|name| name.ends_with("to_visual_latent_extra.weight")));
    let again = CtClip::from_tensors(config, imported.tensors, Trainable::Frozen).unwrap();
    // The second projection of volumes, which nobody uses and which has 604 MB in the published file, is not read.
    assert!(!again.tensors().contains_key("to_visual_latent_extra.weight"));
    assert!(again.tensors().contains_key("visual_transformer.to_patch_emb_first_frame.2.weight"));

    let embeddings = again.image_tower().embed_images(&pixels(&again).unwrap(), None).unwrap();
    let logits = again.class_logits(&embeddings, None).unwrap().to_vec2::<f32>().unwrap();
    let (weight, bias) = (&tensors["classifier.weight"], values(&tensors["classifier.bias"]));
    let weight = weight.to_vec2::<f32>().unwrap();
    for (row, logits) in embeddings.to_vec2::<f32>().unwrap().iter().zip(logits) {
        let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        for (class, logit) in logits.iter().enumerate() {
            let sum: f32 = row
                .iter()
                .zip(&weight[class])
                .map(|(value, weight)| (value / length).max(0.0) * weight)
                .sum();
            assert!((logit - (sum + bias[class])).abs() < 1e-5, "{class}: {logit} and {}", sum + bias[class]);
        }
    }
    // Some of what it drops is not dropped with every key.
    let dropped = |key: u64| {
        let dropout = Dropout::new(key, 1);
        again.class_logits(&embeddings, Some(&dropout)).unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(dropped(1), dropped(1));
    assert_ne!(dropped(1), dropped(2));
    let plain = random(&ModelConfig::CtClip(ct(Adaptation::Native)));
    let ModelConfig::CtClip(config) = plain.model_config() else { panic!() };
    let plain = CtClip::from_tensors(config, plain.tensors(), Trainable::Frozen).unwrap();
    assert!(plain.class_logits(&embeddings, None).is_err(), "it has no classifier");
}

#[test]
fn a_vision_transformer_of_timm() {
    // Its heads have 64 values each: the width tells how many there are.
    let mut sizes = vision(Activation::Gelu);
    (sizes.width, sizes.hidden, sizes.heads, sizes.epsilon) = (128, 96, 2, 1e-6);
    let model = random(&ModelConfig::TimmVit(sizes));
    let mut tensors = model.tensors();
    tensors.insert("head.weight".to_owned(), Tensor::zeros((3, 128), DType::F32, &Device::Cpu).unwrap());
    tensors.insert("head.bias".to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    let config = json!({
        "architecture": "vit_base_patch16_224", "num_classes": 3, "num_features": 128,
        "pretrained_cfg": { "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5] },
    });
    let folder = folder(&[("config.json", &config)]);
    write_tensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
    let preprocessor = check(folder.path(), Layout::Timm, model.as_ref()).preprocessor.unwrap();
    assert_eq!((preprocessor.fit, preprocessor.mean), (Fit::Shortest(35), [0.5; 3]));
}

/// `resnet50-....pth` of torchvision: a state dict and nothing else.
#[test]
fn a_resnet_of_torchvision() {
    let model = random(&ModelConfig::ResNet(crate::resnet::ResNetConfig { image: 224, ..resnet() }.into()));
    let mut tensors = model.tensors();
    tensors.insert("fc.weight".to_owned(), Tensor::zeros((3, 256), DType::F32, &Device::Cpu).unwrap());
    tensors.insert("fc.bias".to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    let folder = folder(&[]);
    std::fs::write(folder.path().join("resnet50-11ad3fa6.pth"), state_dict(&tensors)).unwrap();
    let mut imported = found(folder.path()).unwrap();
    assert_eq!((imported.layout, &imported.config), (Layout::Weights, &model.model_config()));
    let preprocessor = imported.preprocessor.as_ref().unwrap();
    assert_eq!((preprocessor.pipeline, preprocessor.fit), (Pipeline::Torchvision, Fit::Shortest(256)));
    let built = imported.build(Trainable::Frozen).unwrap();
    let (ours, theirs) = (built.tensors(), model.tensors());
    for (name, tensor) in &theirs {
        assert_eq!(values(tensor), values(&ours[name]), "{name}");
    }
}
