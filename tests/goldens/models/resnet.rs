//! CLIP with a residual network.

use candle_core::{Tensor, Var};
use pipe_models::clip::{OpenAiClip, OpenAiClipConfig};
use pipe_models::{DualEncoder, Trainable};

use super::clip::compare_text_pool;
use super::{
    OUTPUT, Recorder, check_hooks, compare_towers, compare_training_step, contrastive_loss, published,
};
use crate::harness::{self, Golden};

#[test]
fn openai_resnet() {
    let Some(folder) = harness::topic("models") else { return };
    let manifest = harness::json(&folder.join("manifest.json"));
    let golden = Golden::open(&folder, "openai-rn-tiny.expected.safetensors");
    let tensors = published(&folder, "openai-rn-tiny.pt");
    let config = OpenAiClipConfig::infer(&tensors).unwrap();
    let frozen = OpenAiClip::from_tensors(config.clone(), tensors.clone(), Trainable::Frozen).unwrap();
    let model = OpenAiClip::from_tensors(config, tensors, Trainable::All).unwrap();
    let pixels = Var::from_tensor(&golden.input("pixels")).unwrap();
    let ids = golden.input("input_ids");
    // Frozen, the batch norms are folded into the convolutions.
    for model in [&model, &frozen] {
        compare_maps(&golden, model, &pixels);
        compare_towers(&golden, model, &pixels, &ids);
        check_hooks(model, &pixels, &ids);
    }
    compare_text_pool(&golden, &model, &ids);
    let loss = |pixels: &Tensor| contrastive_loss(&model, pixels, &ids);
    compare_training_step(&golden, &manifest["goldens"]["openai-rn-tiny"], &model, &pixels, loss);
    golden.finish();
}

/// The feature maps that the golden holds, by the names of a probe.
pub(super) fn compare_maps(golden: &Golden, model: &dyn DualEncoder, pixels: &Tensor) {
    let recorder = Recorder::default();
    model.image_tower().embed_images(pixels, Some(&recorder)).unwrap();
    for key in ["stem", "layer1", "layer2", "layer3", "layer4"] {
        if golden.has(key) {
            golden.compare(key, &recorder.get(&format!("vision.{key}")), OUTPUT);
        }
    }
}
