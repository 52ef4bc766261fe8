//! What holds for every architecture, on small models with random weights.

mod devices;
mod exports;
mod imports;
mod open_clip;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use serde_json::Value as Json;

use crate::bert::{BertConfig, BertPooling};
use crate::biomed_clip::BiomedClipConfig;
use crate::clip::{EotRule, OpenAiClipConfig, OpenAiImage, TextConfig, VisionConfig};
use crate::ct_clip::{Adaptation, CtClipConfig, CtVitConfig, QuantiserGradient};
use crate::pmc_clip::{FusionConfig, LossWeights, PmcClip, PmcClipConfig};
use crate::random::Key;
use crate::resnet::{Form, PlainResNetConfig, ResNetConfig};
use crate::train::{Dropout, loss};
use crate::{Activation, ClipConfig, FoundationModel, MaybeProbe, ModelConfig, Probe, Trainable};

fn vision(activation: Activation) -> VisionConfig {
    VisionConfig {
        width: 24,
        hidden: 48,
        layers: 2,
        heads: 3,
        image: 32,
        patch: 8,
        channels: 3,
        activation,
        epsilon: 1e-5,
    }
}

fn text() -> TextConfig {
    TextConfig {
        vocabulary: 40,
        width: 16,
        hidden: 32,
        layers: 2,
        heads: 2,
        positions: 9,
        activation: Activation::QuickGelu,
        epsilon: 1e-5,
        eot: EotRule::First(39),
        bos: 38,
        pad: 0,
    }
}

fn bert() -> BertConfig {
    BertConfig {
        vocab_size: 40,
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 32,
        max_position_embeddings: 9,
        ..BertConfig::default()
    }
}

fn resnet() -> ResNetConfig {
    ResNetConfig { width: 8, blocks: [1, 2, 1, 1], image: 64 }
}

/// MedMNIST's, of images or volumes.
fn small_resnet(slices: Option<usize>) -> PlainResNetConfig {
    let form = Form { slices, ..PlainResNetConfig::medmnist().form };
    PlainResNetConfig { width: 4, blocks: [1, 1, 2, 1], image: 12, form }
}

fn ct(adaptation: Adaptation) -> CtClipConfig {
    CtClipConfig {
        vision: CtVitConfig {
            width: 24,
            codes: 12,
            image: 12,
            slices: 6,
            patch: 4,
            patch_slices: 2,
            spatial_layers: 2,
            temporal_layers: 2,
            heads: 2,
            head_width: 8,
            hidden: 20,
        },
        text: bert(),
        context: 9,
        projection: 10,
        adaptation,
        quantiser: QuantiserGradient::StraightThrough,
        classes: None,
    }
}

fn pmc() -> PmcClipConfig {
    PmcClipConfig {
        image: resnet(),
        pool_heads: 4,
        text: bert(),
        context: 9,
        pooling: BertPooling::Cls,
        projection: 16,
        fusion: Some(FusionConfig { layers: 2, heads: 2, hidden: 32 }),
    }
}

/// A small model of every architecture.
fn every_architecture() -> Vec<ModelConfig> {
    let open_ai = |image| ModelConfig::OpenAiClip(OpenAiClipConfig { image, text: text(), projection: 10 });
    vec![
        ModelConfig::Clip(ClipConfig {
            text: text(),
            vision: vision(Activation::QuickGelu),
            projection: 10,
            logit_scale: 2.6592,
        }),
        open_ai(OpenAiImage::Transformer(vision(Activation::QuickGelu))),
        open_ai(OpenAiImage::ResNet { trunk: resnet(), pool_heads: 4 }),
        ModelConfig::BiomedClip(BiomedClipConfig {
            vision: vision(Activation::Gelu),
            text: bert(),
            context: 9,
            projection: 10,
        }),
        ModelConfig::PmcClip(pmc()),
        ModelConfig::CtClip(ct(Adaptation::Native)),
        ModelConfig::CtClip(ct(Adaptation::Flat)),
        ModelConfig::Bert(bert()),
        ModelConfig::TimmVit(vision(Activation::Gelu)),
        ModelConfig::ResNet(resnet().into()),
        ModelConfig::ResNet(small_resnet(None)),
        ModelConfig::ResNet(small_resnet(Some(12))),
    ]
}

const BATCH: usize = 3;

fn pixels(model: &dyn FoundationModel) -> Option<Tensor> {
    let shape = model.as_image_tower()?.geometry().input(BATCH);
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (1..=count).map(|counter| Key(1).normal(counter) as f32).collect();
    Some(Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
}

/// Texts of different lengths, padded, with an end mark.
fn ids(model: &dyn FoundationModel) -> Option<Tensor> {
    let text = model.as_text_tower()?;
    let (tokens, end) = (text.context_length(), text.vocabulary() as u32 - 1);
    let rows = (0..BATCH).flat_map(|row| {
        (0..tokens).map(move |place| match place.cmp(&(3 + row)) {
            std::cmp::Ordering::Less => 2 + Key(2).below((row * tokens + place) as u64, 30) as u32,
            std::cmp::Ordering::Equal => end,
            std::cmp::Ordering::Greater => 0,
        })
    });
    Some(Tensor::from_vec(rows.collect::<Vec<u32>>(), (BATCH, tokens), &Device::Cpu).unwrap())
}

/// A loss that every parameter of a model takes part in.
fn loss_of(model: &dyn FoundationModel, pixels: Option<&Tensor>, probe: MaybeProbe<'_>) -> Result<Tensor> {
    let images = match (model.as_image_tower(), pixels) {
        (Some(tower), Some(pixels)) => Some(tower.embed_images(pixels, probe)?),
        _ => None,
    };
    let texts = match (model.as_text_tower(), ids(model)) {
        (Some(tower), Some(ids)) => Some(tower.embed_texts(&ids, probe)?),
        _ => None,
    };
    match (images, texts, model.as_dual_encoder()) {
        (Some(images), Some(texts), Some(model)) => loss::info_nce(&model.logits(&images, &texts)?, &[]),
        (Some(alone), None, _) | (None, Some(alone), _) => alone.sqr()?.mean_all(),
        _ => candle_core::bail!("a model has a tower"),
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_variable_has_a_gradient() {
    for config in every_architecture() {
        let model = config.random(1, &Device::Cpu, Trainable::All).unwrap();
        let loss = loss_of(model.as_ref(), pixels(model.as_ref()).as_ref(), None).unwrap();
        let gradients = loss.backward().unwrap();
        for (name, variable) in model.variables() {
            // The fusion transformer has a loss of its own.
            let apart = ["fusion_module.", "mlm_projection", "img_special_token"];
            if apart.iter().any(|part| name.starts_with(part)) {
                continue;
            }
            assert!(gradients.get(variable).is_some(), "{name} of {config:?}");
        }
    }
    let config = pmc();
    let drawn = ModelConfig::PmcClip(config.clone()).random(1, &Device::Cpu, Trainable::Frozen).unwrap();
    let model = PmcClip::from_tensors(config, drawn.tensors(), Trainable::All).unwrap();
    let (pixels, ids) = (pixels(&model).unwrap(), ids(&model).unwrap());
    let losses = model.losses(&pixels, &ids, &ids, LossWeights::default(), None).unwrap();
    let gradients = losses.total.backward().unwrap();
    for (name, variable) in model.variables() {
        assert!(gradients.get(variable).is_some(), "{name}");
    }
}

#[test]
fn attribution_costs_no_gradients_of_weights() {
    for config in every_architecture() {
        let model = config.random(1, &Device::Cpu, Trainable::Frozen).unwrap();
        let Some(pixels) = pixels(model.as_ref()) else { continue };
        let pixels = Var::from_tensor(&pixels).unwrap();
        let loss = loss_of(model.as_ref(), Some(&pixels), None).unwrap();
        let gradients = loss.backward().unwrap();
        assert!(values(gradients.get(&pixels).unwrap()).iter().any(|value| *value != 0.0), "{config:?}");
        // candle's addition leaves a gradient for what is added; that costs little.
        let added =
            ["positional_embedding", "position_embedding", "pos_embed", "class_embedding", "cls_token"];
        for (name, tensor) in model.tensors() {
            let counts = tensor.rank() > 1 && !added.iter().any(|part| name.contains(part));
            assert!(!counts || gradients.get(&tensor).is_none(), "{name} of {config:?}");
        }
    }
}

/// A probe that sees everything, and changes nothing.
struct Watching;

impl Probe for Watching {}

#[test]
fn what_nobody_sees_of_a_frozen_model_changes_no_bit() {
    for config in every_architecture() {
        let model = config.random(3, &Device::Cpu, Trainable::Frozen).unwrap();
        let pass = |probe: MaybeProbe<'_>| {
            let pixels = pixels(model.as_ref()).map(|pixels| Var::from_tensor(&pixels).unwrap());
            let images = model.as_image_tower().zip(pixels.as_ref());
            let images = images.map(|(tower, pixels)| tower.embed_images(pixels, probe).unwrap());
            let texts = model.as_text_tower().zip(ids(model.as_ref())).map(|(tower, ids)| {
                let words = Var::from_tensor(&tower.token_embeddings(&ids).unwrap()).unwrap();
                let texts = tower.embed_token_embeddings(&words, &ids, probe).unwrap();
                assert_eq!(
                    values(&texts),
                    values(
                        &tower
                            .embed_hidden_states(
                                &tower.hidden_states(&words, &ids, None).unwrap(),
                                &ids,
                                None
                            )
                            .unwrap()
                    )
                );
                (words, texts)
            });
            let gradient = |y: &Tensor, x: &Var| {
                let weights: Vec<f32> =
                    (1..=y.elem_count() as u64).map(|c| Key(9).normal(c) as f32).collect();
                let weights = Tensor::from_vec(weights, y.shape(), y.device()).unwrap();
                let gradients =
                    (y * weights).and_then(|y| y.sum_all()).and_then(|sum| sum.backward()).unwrap();
                values(gradients.get(x).unwrap())
            };
            let of_images = images.zip(pixels).map(|(y, x)| [values(&y), gradient(&y, &x)]);
            let of_texts = texts.map(|(x, y)| [values(&y), gradient(&y, &x)]);
            [of_images, of_texts]
        };
        assert_eq!(pass(None), pass(Some(&Watching)), "{config:?}");
    }
}

#[test]
fn the_sides_of_a_model_are_trained_apart() {
    for config in every_architecture() {
        let names = |trainable| -> Vec<String> {
            let model = config.random(1, &Device::Cpu, trainable).unwrap();
            model.variables().keys().cloned().collect()
        };
        let (all, image, text) = (names(Trainable::All), names(Trainable::Image), names(Trainable::Text));
        assert!(names(Trainable::Frozen).is_empty());
        assert!(image.iter().all(|name| all.contains(name) && !text.contains(name)));
        assert!(text.iter().all(|name| all.contains(name)));
        let both: Vec<&String> =
            all.iter().filter(|name| !image.contains(name) && !text.contains(name)).collect();
        let apart = ["logit_scale", "temperature", "fusion_module.", "mlm_projection", "img_special_token"];
        assert!(both.iter().all(|name| apart.iter().any(|part| name.starts_with(part))), "{both:?}");
        let model = config.random(1, &Device::Cpu, Trainable::Frozen).unwrap();
        assert_eq!(image.is_empty(), model.as_image_tower().is_none());
        assert_eq!(text.is_empty(), model.as_text_tower().is_none());
    }
}

#[test]
fn a_saved_model_is_the_same_again() {
    for config in every_architecture() {
        let model = config.random(7, &Device::Cpu, Trainable::Frozen).unwrap();
        assert_eq!(model.model_config(), config);
        let read = ModelConfig::from_json(&config.to_json()).unwrap();
        assert_eq!(read, config);
        let again = read.build(model.tensors(), Trainable::Frozen).unwrap();
        let of = |model: &dyn FoundationModel| values(&loss_of(model, pixels(model).as_ref(), None).unwrap());
        assert_eq!(of(model.as_ref()), of(again.as_ref()));
        let other = config.random(8, &Device::Cpu, Trainable::Frozen).unwrap();
        assert_ne!(of(model.as_ref()), of(other.as_ref()), "another seed");
    }
}

#[test]
fn what_does_not_fit_is_listed() {
    for config in every_architecture() {
        let mut tensors = config.random(1, &Device::Cpu, Trainable::Frozen).unwrap().tensors();
        let names: Vec<String> =
            tensors.keys().filter(|name| name.as_str() != "logit_scale").take(2).cloned().collect();
        tensors.remove(&names[0]);
        tensors.insert(names[1].clone(), Tensor::zeros((1, 7), DType::F32, &Device::Cpu).unwrap());
        tensors.insert("surplus".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        let Err(error) = config.build(tensors, Trainable::Frozen) else { panic!("{config:?} took them") };
        let error = error.to_string();
        for name in [names[0].as_str(), names[1].as_str(), "surplus"] {
            assert!(error.contains(&format!("`{name}`")), "{name} in {error}");
        }
    }
}

/// Every number of a configuration replaced, one at a time.
fn damaged(json: &Json, value: &Json) -> Vec<Json> {
    match json {
        Json::Number(_) => vec![value.clone()],
        Json::Array(items) => (0..items.len())
            .flat_map(|place| {
                damaged(&items[place], value).into_iter().map(move |item| {
                    let mut items = items.clone();
                    items[place] = item;
                    Json::Array(items)
                })
            })
            .collect(),
        Json::Object(fields) => fields
            .iter()
            .flat_map(|(name, field)| {
                damaged(field, value).into_iter().map(move |field| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), field);
                    Json::Object(fields)
                })
            })
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn senseless_configurations_never_panic() {
    for config in every_architecture() {
        let tensors = config.random(1, &Device::Cpu, Trainable::Frozen).unwrap().tensors();
        let json: Json = serde_json::from_str(&config.to_json()).unwrap();
        for value in [0.into(), 1.into(), 7.into(), (-3).into(), (u64::MAX >> 1).into(), 0.3.into()] {
            for json in damaged(&json, &value) {
                let Ok(config) = ModelConfig::from_json(&json.to_string()) else { continue };
                // Few sizes may be chosen freely (heads); the model then works.
                if let Ok(model) = config.build(tensors.clone(), Trainable::Frozen) {
                    let pixels = model.as_image_tower().map(|image| image.geometry().input(1));
                    let small = pixels.is_none_or(|shape| shape.iter().product::<usize>() < 1 << 20);
                    if small {
                        let _ = loss_of(model.as_ref(), self::pixels(model.as_ref()).as_ref(), None);
                    }
                }
            }
        }
    }
}

#[test]
fn sizes_follow_from_shapes() {
    // Heads of 64 values, as published: the one thing that shapes do not tell.
    for config in every_architecture() {
        if matches!(config, ModelConfig::Clip(_) | ModelConfig::ResNet(_)) {
            continue;
        }
        let tensors = config.random(1, &Device::Cpu, Trainable::Frozen).unwrap().tensors();
        match ModelConfig::infer(&tensors) {
            Ok(inferred) => {
                assert_eq!(std::mem::discriminant(&inferred), std::mem::discriminant(&config));
            }
            // Its parts that are not used tell the size of a patch, and are not drawn.
            Err(error) => assert!(error.to_string().contains("first_frame"), "{error}"),
        }
    }
    assert!(ModelConfig::infer(&BTreeMap::new()).is_err());
}

#[test]
fn dropout_is_where_the_original_has_it() {
    for config in every_architecture() {
        let model = config.random(1, &Device::Cpu, Trainable::Frozen).unwrap();
        let Some(text) = model.as_text_tower() else { continue };
        let ids = ids(model.as_ref()).unwrap();
        let embed = |probe: MaybeProbe<'_>| values(&text.embed_texts(&ids, probe).unwrap());
        let (first, second) = (Dropout::new(1, 1), Dropout::new(1, 2));
        assert_eq!(embed(Some(&first)), embed(Some(&first)), "a step can be repeated");
        let is_bert = !matches!(config, ModelConfig::Clip(_) | ModelConfig::OpenAiClip(_));
        assert_eq!(embed(Some(&first)) != embed(Some(&second)), is_bert, "{config:?}");
        assert_eq!(embed(Some(&first)) != embed(None), is_bert, "{config:?}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for config in every_architecture() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let model = config.random(1, &Device::Cpu, Trainable::All).unwrap();
                let pixels = pixels(model.as_ref()).map(|pixels| Var::from_tensor(&pixels).unwrap());
                let loss =
                    loss_of(model.as_ref(), pixels.as_ref().map(|pixels| pixels.as_tensor()), None).unwrap();
                let gradients = loss.backward().unwrap();
                let mut all = values(&loss);
                for variable in model.variables().values().chain(&pixels) {
                    all.extend(gradients.get(variable).into_iter().flat_map(values));
                }
                all
            })
        };
        assert!(run(1) == run(3), "{config:?}");
    }
}
