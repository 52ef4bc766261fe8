//! CT-CLIP.

use candle_core::{DType, Tensor, Var};
use pipe_models::ct_clip::{Adaptation, CtClip, CtClipConfig, QuantiserGradient, pathology_probability};
use pipe_models::{DualEncoder, ImageTower, TextTower, Trainable};
use serde_json::Value as Json;

use super::{
    OUTPUT, Recorder, check_hooks, compare_towers, compare_training_step, contrastive_loss, published,
};
use crate::harness::{self, Golden};

/// What shapes do not tell of the tiny model stands in a file beside it.
fn config(stated: &Json, inferred: CtClipConfig) -> CtClipConfig {
    let size = |value: &Json| value.as_u64().unwrap() as usize;
    let mut config = inferred;
    let vision = &mut config.vision;
    vision.slices = size(&stated["frames"]);
    config.text.num_attention_heads = size(&stated["bert"]["heads"]);
    for (ours, name) in [
        (vision.width, "dim"),
        (vision.codes, "codebook_size"),
        (vision.image, "image_size"),
        (vision.patch, "patch_size"),
        (vision.patch_slices, "temporal_patch_size"),
        (vision.spatial_layers, "spatial_depth"),
        (vision.temporal_layers, "temporal_depth"),
        (vision.head_width, "dim_head"),
        (vision.heads, "heads"),
        (config.projection, "dim_latent"),
    ] {
        assert_eq!(ours, size(&stated[name]), "{name} follows from the shapes");
    }
    config
}

#[test]
fn ct_clip() {
    let Some(folder) = harness::topic("models") else { return };
    let manifest = harness::json(&folder.join("manifest.json"));
    let golden = Golden::open(&folder, "ct-clip-tiny.expected.safetensors");
    let tensors = published(&folder, "ct-clip-tiny.pt");
    let stated = harness::json(&folder.join("ct-clip-tiny.config.json"));
    let config = config(&stated, CtClipConfig::infer(&tensors).unwrap());
    let model = CtClip::from_tensors(config.clone(), tensors.clone(), Trainable::All).unwrap();
    let volumes = Var::from_tensor(&golden.input("volume")).unwrap();
    let ids = golden.input("input_ids");
    golden.compare("attention_mask", &model.text().attention_mask(&ids).unwrap().unwrap(), 0.0);

    // The image tower, place by place.
    let vision = model.vision();
    golden.compare("patch_tokens", &vision.patch_tokens(&volumes).unwrap(), OUTPUT);
    golden.compare("spatial_rel_pos_bias", &vision.position_bias().unwrap(), OUTPUT);
    let recorder = Recorder::default();
    let encoded = vision.encode(&volumes, Some(&recorder)).unwrap();
    for (key, name) in [
        ("spatial_layer0_after_peg", "vision.spatial.0.positioned"),
        ("spatial_layer0_after_attn", "vision.spatial.0.attended"),
        ("spatial_layer0_after_ff", "vision.spatial.0"),
        ("spatial_out", "vision.spatial"),
        ("temporal_layer0_after_peg", "vision.temporal.0.positioned"),
    ] {
        golden.compare(key, &recorder.get(name), OUTPUT);
    }
    golden.compare("encoded_tokens", &encoded, OUTPUT);
    // Without a probe layers are computed again in the backward pass.
    golden.compare("encoded_tokens", &vision.encode(&volumes, None).unwrap(), OUTPUT);
    let indices = vision.code_indices(&encoded).unwrap().flatten_from(1).unwrap();
    golden.compare("codebook_indices", &indices, 0.0);
    let quantised = vision.quantise(&encoded).unwrap();
    golden.compare("quantized_tokens", &quantised, OUTPUT);
    golden.compare("image_flat", &vision.flatten(&quantised).unwrap(), OUTPUT);

    compare_towers(&golden, &model, &volumes, &ids);
    check_hooks(&model, &volumes, &ids);
    compare_zero_shot(&golden, &model, &volumes, &ids);
    compare_inference_gradient(&golden, &config, tensors.clone(), &volumes, &ids);
    flat_images_are_shallow_volumes(&config, tensors, &volumes);
    let loss = |volumes: &Tensor| contrastive_loss(&model, volumes, &ids);
    compare_training_step(&golden, &manifest["goldens"]["ct-clip-tiny"], &model, &volumes, loss);
    golden.finish();
}

/// The scores of two texts with one volume.
fn compare_zero_shot(golden: &Golden, model: &CtClip, volumes: &Tensor, ids: &Tensor) {
    let images = model.image_tower().embed_images(&volumes.narrow(0, 0, 1).unwrap(), None).unwrap();
    let texts = model.text_tower().embed_texts(&ids.narrow(0, 0, 2).unwrap(), None).unwrap();
    let logits = model.logits(&images, &texts).unwrap();
    golden.compare("zero_shot_pair_logits_volume0", &logits.squeeze(0).unwrap(), OUTPUT);
    let pair = logits.to_vec2::<f32>().unwrap()[0].clone();
    let probability = pathology_probability(&logits).unwrap().to_vec1::<f32>().unwrap()[0];
    assert!((probability - 1.0 / (1.0 + (pair[1] - pair[0]).exp())).abs() < 1e-6);
}

/// At inference the original's quantiser stops the gradient.
fn compare_inference_gradient(
    golden: &Golden,
    config: &CtClipConfig,
    tensors: std::collections::BTreeMap<String, Tensor>,
    volumes: &Var,
    ids: &Tensor,
) {
    let config = CtClipConfig { quantiser: QuantiserGradient::Absent, ..config.clone() };
    let model = CtClip::from_tensors(config, tensors, Trainable::Frozen).unwrap();
    let images = model.image_tower().embed_images(volumes, None).unwrap();
    golden.compare("image_embeds", &images, OUTPUT);
    let texts = model.text_tower().embed_texts(ids, None).unwrap();
    let score = model.logits(&images, &texts).unwrap().narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap();
    let none = score.sum_all().unwrap().backward().unwrap().get(volumes).is_none();
    let none = Tensor::new(&[i64::from(none)], volumes.device()).unwrap();
    golden.compare("eval_mode_grad_score00_is_none", &none, 0.0);
}

/// The adaptation to flat images is the published tower on an image repeated to the depth of a patch.
fn flat_images_are_shallow_volumes(
    config: &CtClipConfig,
    tensors: std::collections::BTreeMap<String, Tensor>,
    volumes: &Tensor,
) {
    let native = CtClip::from_tensors(config.clone(), tensors.clone(), Trainable::Frozen).unwrap();
    let config = CtClipConfig { adaptation: Adaptation::Flat, ..config.clone() };
    let depth = config.vision.patch_slices;
    let flat = CtClip::from_tensors(config, tensors, Trainable::Frozen).unwrap();
    let geometry = flat.vision().geometry();
    assert_eq!((geometry.depth, geometry.steps()), (None, 1));
    let grey = volumes.narrow(2, 0, 1).unwrap().squeeze(2).unwrap();
    let slice = Var::from_tensor(&grey.repeat((1, 3, 1, 1)).unwrap()).unwrap();
    assert_eq!(slice.dims(), geometry.input(slice.dims()[0]));
    let repeated = Tensor::cat(&vec![grey.unsqueeze(2).unwrap(); depth], 2).unwrap();
    let expected = native.vision().embed_images(&repeated, None).unwrap();
    let embeddings = flat.vision().embed_images(&slice, None).unwrap();
    let difference = (&embeddings - &expected).unwrap().abs().unwrap().max_all().unwrap();
    let scale = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference.to_scalar::<f32>().unwrap() < 1e-5 * scale);
    let gradients = embeddings.sum_all().unwrap().backward().unwrap();
    let gradient = gradients.get(&slice).expect("the gradient reaches the image");
    assert!(
        gradient.to_dtype(DType::F64).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
            > 0.0
    );
    assert_eq!(flat.vision().features(&slice, None).unwrap().dims()[1], geometry.cells());
    assert!(flat.vision().embed_images(&repeated, None).is_err());
}
