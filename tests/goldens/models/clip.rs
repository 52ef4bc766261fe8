//! CLIP in the layouts of Hugging Face and of OpenAI.

use candle_core::{Device, Tensor, Var};
use pipe_models::clip::{ClipConfig, ClipModel, EotRule, OpenAiClip, OpenAiClipConfig};
use pipe_models::{CheckpointFiles, DualEncoder, TextTower, Trainable};

use super::{OUTPUT, check_hooks, compare_towers, compare_training_step, contrastive_loss, published};
use crate::harness::{self, Golden};

#[test]
fn hf_clip() {
    let Some(folder) = harness::topic("models") else { return };
    let manifest = harness::json(&folder.join("manifest.json"));
    let manifest = &manifest["goldens"]["hf-clip-tiny"];
    let golden = Golden::open(&folder.join("hf-clip-tiny"), "expected.safetensors");
    let files = CheckpointFiles::folder(&folder.join("hf-clip-tiny")).unwrap();
    let model = ClipModel::load(&files, &Device::Cpu, Trainable::All).unwrap();

    let pixels = Var::from_tensor(&golden.input("pixels")).unwrap();
    let ids = golden.input("input_ids");
    let hidden = model.vision().hidden(&pixels, None).unwrap();
    golden.compare("vision_embeddings_after_pre_ln", &model.vision().embeddings(&pixels).unwrap(), OUTPUT);
    golden.compare("vision_last_hidden", &hidden, OUTPUT);
    golden.compare("vision_pooled", &model.vision().pool(&hidden).unwrap(), OUTPUT);
    let text = model.text();
    let hidden = text.hidden(&text.token_embeddings(&ids).unwrap(), None).unwrap();
    golden.compare("text_pooled", &text.pool(&hidden, &ids).unwrap(), OUTPUT);
    // What stands after the end mark is invisible to it, so a padding mask changes nothing.
    golden.input("text_attention_mask");
    golden.compare("text_pooled_with_attention_mask", &text.pool(&hidden, &ids).unwrap(), OUTPUT);
    both_end_rules(&golden, &files, manifest["eos_id"].as_u64().unwrap() as u32);

    compare_towers(&golden, &model, &pixels, &ids);
    let logits = golden.input("logits_per_image");
    golden.compare("logits_per_text", &logits.t().unwrap().contiguous().unwrap(), OUTPUT);
    compare_training_step(&golden, manifest, &model, &pixels, |pixels| {
        contrastive_loss(&model, pixels, &ids)
    });
    check_hooks(&model, &pixels, &ids);
    golden.finish();
}

/// A configuration with `eos_token_id = 2` takes the greatest id, any other its first place.
fn both_end_rules(golden: &Golden, files: &CheckpointFiles, eos: u32) {
    let ids = golden.input("input_ids2");
    for (key, rule) in [
        ("text_pooled_ids2_argmax_rule", EotRule::Greatest),
        ("text_pooled_ids2_eos_rule", EotRule::First(eos)),
    ] {
        let mut config = ClipConfig::from_json(&files.text("config.json").unwrap()).unwrap();
        config.text.eot = rule;
        let tensors = pipe_models::checkpoint::tensors(files, &Device::Cpu).unwrap();
        let model = ClipModel::from_tensors(config, tensors, Trainable::Frozen).unwrap();
        let text = model.text();
        let hidden = text.hidden(&text.token_embeddings(&ids).unwrap(), None).unwrap();
        golden.compare(key, &text.pool(&hidden, &ids).unwrap(), OUTPUT);
    }
}

#[test]
fn openai_vit() {
    let Some(folder) = harness::topic("models") else { return };
    let manifest = harness::json(&folder.join("manifest.json"));
    for name in ["openai-vit-tiny", "openai-vit-jit-tiny"] {
        let golden = Golden::open(&folder, &format!("{name}.expected.safetensors"));
        let tensors = published(&folder, &format!("{name}.pt"));
        let config = OpenAiClipConfig::infer(&tensors).unwrap();
        let model = OpenAiClip::from_tensors(config, tensors, Trainable::All).unwrap();
        let pixels = Var::from_tensor(&golden.input("pixels")).unwrap();
        let ids = golden.input("input_ids");
        let vision = model.vision_transformer().unwrap();
        let hidden = vision.hidden(&pixels, None).unwrap();
        golden.compare("vision_last_hidden", &hidden, OUTPUT);
        golden.compare("vision_pooled", &vision.pool(&hidden).unwrap(), OUTPUT);
        compare_text_pool(&golden, &model, &ids);
        compare_towers(&golden, &model, &pixels, &ids);
        if golden.has("loss_after_step") {
            let manifest = &manifest["goldens"][name];
            let loss = |pixels: &Tensor| contrastive_loss(&model, pixels, &ids);
            compare_training_step(&golden, manifest, &model, &pixels, loss);
        } else {
            golden.compare("loss", &contrastive_loss(&model, &pixels, &ids), OUTPUT);
        }
        check_hooks(&model, &pixels, &ids);
        golden.finish();
    }
}

/// The hidden state at the end mark.
pub(super) fn compare_text_pool(golden: &Golden, model: &OpenAiClip, ids: &Tensor) {
    let text = model.text();
    let hidden = text.hidden(&text.token_embeddings(ids).unwrap(), None).unwrap();
    golden.compare("text_pooled", &text.pool(&hidden, ids).unwrap(), OUTPUT);
    assert_eq!(model.text_tower().context_length(), ids.dims()[1]);
}
