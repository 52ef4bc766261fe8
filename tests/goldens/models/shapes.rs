//! Names and shapes of the full-size published files are those that the architectures expect.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use pipe_models::clip::ClipConfig;
use pipe_models::{ModelConfig, Trainable};
use serde_json::Value as Json;

use crate::harness;

/// Files of the shapes, and the names of the configurations that they are of.
const PUBLISHED_FILES: [(&str, &str); 6] = [
    ("openai-vit-b-32", "clip-vit-b-32"),
    ("openai-vit-l-14", "clip-vit-l-14"),
    ("openai-rn50", "clip-rn50"),
    ("biomedclip", "biomed-clip"),
    ("pmc-clip", "pmc-clip"),
    ("ct-clip", "ct-clip"),
];

#[test]
fn full_size_checkpoints_fit() {
    let Some(folder) = harness::topic("models/shapes") else { return };
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let tensors = skeleton(&harness::json(&file));
        let count = tensors.len();
        let config = match ModelConfig::infer(&tensors) {
            Ok(config) => config,
            // The Hugging Face layout says its sizes in a file of its own.
            Err(error) => {
                assert!(name.starts_with("hf-clip"), "{name}: {error}");
                ModelConfig::Clip(hugging_face(&tensors))
            }
        };
        assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config, "{name}");
        let model =
            config.build(tensors, Trainable::Frozen).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(model.model_config(), config);
        if let Some((_, published)) = PUBLISHED_FILES.iter().find(|(file, _)| *file == name) {
            assert_eq!(pipe_models::published(published).as_ref(), Some(&config), "{name} is {published}");
        }
        println!("golden models/shapes/{name}.json#names rel=0.000e0");
        println!("UNCOMPARED models/shapes/{name}.json inputs=[] unused=[] ({count} tensors)");
    }
}

/// Tensors of one element seen under every shape cost nothing.
fn skeleton(shapes: &Json) -> BTreeMap<String, Tensor> {
    let shapes = shapes.get("tensors").unwrap_or(shapes);
    let tensors = shapes.as_object().unwrap().iter().map(|(name, shape)| {
        let tensor = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        (name.clone(), tensor.broadcast_as(leaf_shape(shape)).unwrap())
    });
    tensors.collect()
}

/// A shape, alone or beside its type.
fn leaf_shape(value: &Json) -> Vec<usize> {
    let list = match value {
        Json::Array(items) if items.iter().any(Json::is_array) => {
            items.iter().find(|item| item.is_array()).unwrap()
        }
        other => other,
    };
    list.as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect()
}

/// The configuration of a published CLIP: heads of 64 values.
fn hugging_face(tensors: &BTreeMap<String, Tensor>) -> ClipConfig {
    let dim = |name: &str, axis: usize| tensors[name].dims()[axis];
    let tower = |prefix: &str, embeddings: &str, axis: usize| {
        let width = dim(&format!("{prefix}.embeddings.{embeddings}"), axis);
        let block = format!("{prefix}.encoder.layers");
        let layers = (0..).find(|layer| !tensors.contains_key(&format!("{block}.{layer}.layer_norm1.bias")));
        serde_json::json!({
            "hidden_size": width, "num_attention_heads": width / 64, "num_hidden_layers": layers,
            "intermediate_size": dim(&format!("{block}.0.mlp.fc1.bias"), 0),
            "max_position_embeddings": dim(&format!("{prefix}.embeddings.position_embedding.weight"), 0),
            "patch_size": tensors.get(&format!("{prefix}.embeddings.patch_embedding.weight")).map(|patch| patch.dims()[3]),
        })
    };
    let config = serde_json::json!({
        "model_type": "clip", "projection_dim": dim("text_projection.weight", 0),
        "text_config": tower("text_model", "token_embedding.weight", 1),
        "vision_config": tower("vision_model", "class_embedding", 0),
    });
    ClipConfig::from_json(&config.to_string()).unwrap()
}
