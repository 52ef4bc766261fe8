//! BiomedCLIP: PubMedBERT and timm's vision transformer.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use pipe_models::bert::BertConfig;
use pipe_models::biomed_clip::{BiomedClip, BiomedClipConfig};
use pipe_models::{
    BertModel, CheckpointFiles, FoundationModel, ImageTower, ModelConfig, TextTower, TimmVit, Trainable,
};

use super::{OUTPUT, check_hooks, compare_towers, compare_training_step, contrastive_loss, published};
use crate::harness::{self, Golden};

#[test]
fn biomed_clip() {
    let Some(folder) = harness::topic("models/biomedclip-tiny") else { return };
    let manifest = harness::json(&folder.join("../manifest.json"));
    for file in ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"] {
        let golden = Golden::open(&folder, "expected.safetensors");
        let tensors = published(&folder, file);
        // What the published format takes from the names of its parts stands beside the tiny model.
        let mut config = BiomedClipConfig::infer(&tensors).unwrap();
        let open_clip = harness::json(&folder.join("open_clip_config.json"));
        config.context = open_clip["model_cfg"]["text_cfg"]["context_length"].as_u64().unwrap() as usize;
        config.vision.heads =
            harness::json(&folder.join("timm_tiny.json"))["vit"]["num_heads"].as_u64().unwrap() as usize;
        let files = CheckpointFiles::folder(&folder.join("bert")).unwrap();
        let bert = BertConfig::from_json(&files.text("config.json").unwrap()).unwrap();
        config.text.num_attention_heads = bert.num_attention_heads;
        assert_eq!(config.text, bert, "all else follows from the shapes");

        let model = BiomedClip::from_tensors(config, tensors, Trainable::All).unwrap();
        let pixels = Var::from_tensor(&golden.input("pixels")).unwrap();
        let ids = golden.input("input_ids");
        let mask = model.text().attention_mask(&ids).unwrap().unwrap();
        golden.compare("attention_mask", &mask, 0.0);
        let hidden = model.vision().hidden(&pixels, None).unwrap();
        golden.compare("vision_last_hidden", &model.vision().normed(&hidden).unwrap(), OUTPUT);
        golden.compare("vision_pooled", &model.vision().pool(&hidden).unwrap(), OUTPUT);
        let text = model.text();
        let hidden = text.hidden_states(&text.token_embeddings(&ids).unwrap(), &ids, None).unwrap();
        golden.compare("text_pooled", &text.pool(&hidden).unwrap(), OUTPUT);
        compare_towers(&golden, &model, &pixels, &ids);
        let loss = |pixels: &Tensor| contrastive_loss(&model, pixels, &ids);
        compare_training_step(&golden, &manifest["goldens"]["biomedclip-tiny"], &model, &pixels, loss);
        check_hooks(&model, &pixels, &ids);
        compare_parts_alone(&golden, model.config(), &published(&folder, file), &pixels, &ids);
        golden.finish();
    }
}

/// The same towers by themselves: timm's ViT, and BERT with and without the prefix of its published file.
fn compare_parts_alone(
    golden: &Golden,
    config: &BiomedClipConfig,
    tensors: &BTreeMap<String, Tensor>,
    pixels: &Tensor,
    ids: &Tensor,
) {
    let part = |prefix: &str, name: &str| -> BTreeMap<String, Tensor> {
        tensors
            .iter()
            .filter_map(|(key, tensor)| {
                Some((format!("{name}{}", key.strip_prefix(prefix)?), tensor.clone()))
            })
            .collect()
    };
    let vit = TimmVit::from_tensors(&config.vision, part("visual.trunk.", ""), Trainable::All).unwrap();
    golden.compare("vision_pooled", &vit.tower().embed_images(pixels, None).unwrap(), OUTPUT);
    for prefix in ["", "bert."] {
        let tensors = part("text.transformer.", prefix);
        let inferred = ModelConfig::infer(&tensors).unwrap();
        assert!(matches!(inferred, ModelConfig::Bert(_)));
        let bert = BertModel::from_tensors(&config.text, tensors, Trainable::All).unwrap();
        golden.compare("text_pooled", &bert.tower().embed_texts(ids, None).unwrap(), OUTPUT);
        assert!(bert.tensors().keys().all(|name| name.starts_with(prefix)));
    }
}
