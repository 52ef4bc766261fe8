//! The foundation models against transformers, open_clip and the authors' code.

mod bert;
mod clip;
mod ct;
mod import;
mod pickle;
mod pmc;
mod preprocess;
mod resnet;
mod shapes;
mod stages;
mod tokenizers;
mod training;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor, Var};
use pipe_models::checkpoint::TensorFile;
use pipe_models::train::{AdamW, AdamWOptions, Group, clip_gradient_norm, loss};
use pipe_models::{DualEncoder, FoundationModel, Probe, normalise};
use serde_json::Value as Json;

use crate::harness::Golden;

/// f32 towers, relative to the greatest value: outputs reach 3e-6, gradients 2e-5.
const OUTPUT: f64 = 1e-5;
const GRADIENT: f64 = 1e-3;
/// Of a parameter after a step, absolute: the steps themselves are 1e-4 to 1e-3.
const STEP: f64 = 1e-5;

fn scalar(tensor: &Tensor) -> f64 {
    f64::from(tensor.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap())
}

/// The tensors of a published file, in f32.
fn published(folder: &Path, file: &str) -> BTreeMap<String, Tensor> {
    TensorFile::open(&folder.join(file), file)
        .and_then(|tensors| tensors.read(&Device::Cpu, |_| true))
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The tensors of several files, each with what its names begin with in the whole; a file of one bare
/// tensor gives it that name.
fn published_parts(folder: &Path, parts: &[(&str, &str)]) -> BTreeMap<String, Tensor> {
    let tensors = parts.iter().flat_map(|(file, prefix)| {
        published(folder, file).into_iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor))
    });
    tensors.collect()
}

/// The embeddings of both towers, their similarity, and the gradients of the score of image 0 with
/// text 0.
fn compare_towers(golden: &Golden, model: &dyn DualEncoder, pixels: &Var, ids: &Tensor) {
    let images = model.image_tower().embed_images(pixels, None).unwrap();
    golden.compare("image_embeds", &images, OUTPUT);
    golden.compare("image_embeds_norm", &normalise(&images).unwrap(), OUTPUT);
    let text = model.text_tower();
    let token_embeddings = Var::from_tensor(&text.token_embeddings(ids).unwrap().detach()).unwrap();
    golden.compare("text_last_hidden", &text.hidden_states(&token_embeddings, ids, None).unwrap(), OUTPUT);
    let texts = text.embed_token_embeddings(&token_embeddings, ids, None).unwrap();
    golden.compare("text_embeds", &texts, OUTPUT);
    golden.compare("text_embeds_norm", &normalise(&texts).unwrap(), OUTPUT);
    assert_eq!(images.dims()[1], model.image_tower().embedding_width());
    assert_eq!(texts.dims()[1], text.embedding_width());

    let logits = model.logits(&images, &texts).unwrap();
    golden.compare("logits_per_image", &logits, OUTPUT);
    if !golden.has("grad_score00_pixels") {
        return;
    }
    let score = logits.narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap().sum_all().unwrap();
    let gradients = score.backward().unwrap();
    golden.compare("grad_score00_pixels", gradients.get(pixels).unwrap(), GRADIENT);
    golden.compare("grad_score00_token_embeddings", gradients.get(&token_embeddings).unwrap(), GRADIENT);
}

/// The contrastive loss of a batch of pairs.
fn contrastive_loss(model: &dyn DualEncoder, pixels: &Tensor, ids: &Tensor) -> Tensor {
    let images = model.image_tower().embed_images(pixels, None).unwrap();
    let texts = model.text_tower().embed_texts(ids, None).unwrap();
    loss::info_nce(&model.logits(&images, &texts).unwrap(), &[]).unwrap()
}

/// The gradients of the loss, and one AdamW step on all parameters.
fn compare_training_step(
    golden: &Golden,
    manifest: &Json,
    model: &dyn FoundationModel,
    pixels: &Var,
    loss: impl Fn(&Tensor) -> Tensor,
) {
    let before = loss(pixels.as_tensor());
    golden.compare("loss", &before, OUTPUT);
    let gradients = before.backward().unwrap();
    golden.compare("grad_loss_pixels", gradients.get(pixels).unwrap(), GRADIENT);
    let (norm, _) = clip_gradient_norm(model.variables(), &gradients, 1.0).unwrap();
    golden.compare("grad_global_norm", &Tensor::new(norm, &Device::Cpu).unwrap(), GRADIENT);
    for (name, variable) in model.variables() {
        let key = format!("grad_loss.{name}");
        if golden.has(&key) {
            golden.compare(&key, gradients.get(variable).unwrap(), GRADIENT);
        }
    }
    let adamw = &manifest["adamw"];
    let number = |key: &str| adamw[key].as_f64().unwrap();
    let options = AdamWOptions {
        beta1: adamw["betas"][0].as_f64().unwrap(),
        beta2: adamw["betas"][1].as_f64().unwrap(),
        epsilon: number("eps"),
        weight_decay: number("weight_decay"),
    };
    let mut optimiser = AdamW::new(model.variables(), options, |_, _| Group { rate: 1.0, decay: true });
    optimiser.step(&gradients, number("lr"), 1.0).unwrap();
    for (name, variable) in model.variables() {
        let key = format!("adamw1.{name}");
        if golden.has(&key) {
            compare_step(golden, &key, variable, gradients.get(variable).unwrap(), number("lr"));
        }
    }
    golden.compare("loss_after_step", &loss(pixels.as_tensor()), GRADIENT);
}

/// Adam's first step is close to lr * sign(gradient): where the gradient is nearly zero its sign is
/// noise, and those entries may differ by two steps.
fn compare_step(golden: &Golden, key: &str, ours: &Tensor, gradient: &Tensor, rate: f64) {
    let reference = golden.input(key);
    let noise = gradient.abs().unwrap().lt(1e-6).unwrap();
    let difference = (ours - &reference).unwrap().abs().unwrap();
    let worst = scalar(&difference.flatten_all().unwrap().max(D::Minus1).unwrap());
    assert!(worst <= 2.1 * rate, "{key}: an entry differs by {worst}");
    let quiet = noise.where_cond(&reference, &ours.detach()).unwrap();
    golden.compare_within(key, &quiet, 1.0, STEP);
}

/// A probe that keeps every activation and attention map by name.
#[derive(Default)]
struct Recorder {
    seen: RefCell<BTreeMap<String, Tensor>>,
    attention: bool,
}

impl Recorder {
    fn get(&self, name: &str) -> Tensor {
        let seen = self.seen.borrow();
        seen.get(name).unwrap_or_else(|| panic!("`{name}` is not among {:?}", seen.keys())).clone()
    }
}

impl Probe for Recorder {
    fn activation(&self, name: &str, value: Tensor) -> candle_core::Result<Tensor> {
        self.seen.borrow_mut().insert(name.to_owned(), value.clone());
        Ok(value)
    }

    fn wants_attention(&self) -> bool {
        self.attention
    }

    fn attention(&self, name: &str, probabilities: Tensor) -> candle_core::Result<Tensor> {
        self.seen.borrow_mut().insert(name.to_owned(), probabilities.clone());
        Ok(probabilities)
    }
}

/// A probe changes nothing but what it says: embeddings with every activation observed and attention
/// unfused are those of the fast path, and every hook that a tower names is called.
fn check_hooks(model: &dyn DualEncoder, pixels: &Tensor, ids: &Tensor) {
    let recorder = Recorder { attention: true, ..Recorder::default() };
    let (image, text) = (model.image_tower(), model.text_tower());
    let close = |a: &Tensor, b: &Tensor| {
        let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        let scale = b.abs().unwrap().max_all().unwrap();
        assert!(scalar(&difference) <= 1e-5 * scalar(&scale), "a probe changed an embedding");
    };
    let observed = image.embed_images(pixels, Some(&recorder)).unwrap();
    close(&observed, &image.embed_images(pixels, None).unwrap());
    let observed = text.embed_texts(ids, Some(&recorder)).unwrap();
    close(&observed, &text.embed_texts(ids, None).unwrap());
    for hook in image.attention_hooks().into_iter().chain(text.attention_hooks()) {
        let probabilities = recorder.get(&hook.name);
        let sums = probabilities.sum_keepdim(D::Minus1).unwrap();
        close(&sums, &sums.ones_like().unwrap());
    }
    recorder.get(&image.cam_hook().name);
    let geometry = image.geometry();
    let features = image.features(pixels, None).unwrap();
    assert_eq!(features.dims()[1..], [geometry.cells(), image.feature_width()]);
    let batch = pixels.dims()[0];
    assert_eq!(pixels.dims(), geometry.input(batch));
}
