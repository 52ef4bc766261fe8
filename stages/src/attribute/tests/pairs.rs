//! Similarities with captions and texts, on phantoms and a tiny CLIP with random weights.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use pipe_attribution::Score;
use pipe_engine::StageKind;
use pipe_models::normalise;
use serde_json::{Value as Json, json};

use super::{Attribute, Compute, DEVICE, Head, HeadDescription, HeadInput, Maps, Model, Params, read_file};
use crate::attribute_text::AttributeText;
use crate::checkpoint::Checkpoint;
use crate::phantom::IngestPhantom;
use crate::report::Report;
use crate::score::Score as ScoreMaps;
use crate::table::read;
use crate::target::{ClassScore, ClassTarget};
use crate::testing::{Made, run};
use crate::tokenizer::TrainTokenizer;

struct Study {
    phantoms: Made,
    checkpoint: Made,
}

impl Study {
    fn new() -> Self {
        let phantoms = run(&IngestPhantom, &json!({ "size": 28, "train": 8, "test": 5 }), &[]).unwrap();
        let text = [("text", &phantoms["captions"])];
        let tokenizer = run(&TrainTokenizer, &json!({ "vocab_size": 300 }), &text).unwrap();
        let tower = json!({ "width": 16, "layers": 2, "heads": 2 });
        let params = json!({
            "init": "random", "image_size": 28, "patch": 7, "vision": tower, "text": tower, "context": 128,
            "projection": 16,
        });
        let checkpoint = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
        Self { phantoms, checkpoint }
    }

    fn made(&self, params: &Json, captions: Option<&Made>) -> Result<Made, pipe_engine::StageError> {
        let mut inputs =
            vec![("images", &self.phantoms["images"]), ("checkpoint", &self.checkpoint["checkpoint"])];
        inputs.extend(captions.map(|made| ("captions", &made["captions"])));
        run(&Attribute, params, &inputs)
    }

    fn maps(&self, params: &Json) -> Maps {
        let captions = params.get("text").is_none().then_some(&self.phantoms);
        maps(&self.made(params, captions).unwrap())
    }

    fn captions(&self) -> BTreeMap<String, (String, String)> {
        let table = read(&self.phantoms["captions"]).unwrap();
        let ids = table.int64("caption_id").unwrap().iter().map(|id| id.unwrap().to_string());
        let images = table.strings("image_id").unwrap().into_iter().map(str::to_owned);
        let texts = table.strings("caption").unwrap().into_iter().map(str::to_owned);
        ids.zip(images.zip(texts)).collect()
    }
}

fn maps(made: &Made) -> Maps {
    Maps(read_file(&made["saliency"].single_file().unwrap().location).unwrap())
}

/// The greatest difference as a share of the greatest magnitude.
fn distance(ours: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(ours.len(), expected.len());
    let size = expected.iter().flatten().fold(0.0f64, |most, value| most.max(value.abs()));
    assert!(size > 0.0);
    let pairs = ours.iter().flatten().zip(expected.iter().flatten());
    pairs.fold(0.0f64, |most, (a, b)| most.max((a - b).abs())) / size
}

fn rows(maps: &Maps) -> Vec<Vec<f64>> {
    maps.rows().into_iter().map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect()
}

#[test]
fn maps_and_words_of_a_pair_explain_one_score() {
    let study = Study::new();
    let maps = study.maps(&json!({ "steps": 40 }));
    let captions = study.captions();
    let (ids, images, targets) = (maps.text("id"), maps.text("image_id"), maps.text("target"));
    assert_eq!(maps.0.num_rows(), 5);
    assert_eq!(maps.0.schema().metadata()["target"], "caption");
    for (row, id) in ids.iter().enumerate() {
        let (image, text) = &captions[id.as_ref().unwrap()];
        assert_eq!((images[row].as_ref(), targets[row].as_ref()), (Some(image), Some(text)));
        assert_eq!(maps.text("target_kind")[row].as_deref(), Some("similarity"));
        let way = maps.numbers("score")[row].unwrap() - maps.numbers("score_baseline")[row].unwrap();
        let sum = maps.numbers("sum")[row].unwrap();
        assert!((sum - way).abs() < 5e-3 * way.abs().max(1.0), "{sum} {way}");
    }
    let inputs = [
        ("captions", &study.phantoms["captions"]),
        ("images", &study.phantoms["images"]),
        ("checkpoint", &study.checkpoint["checkpoint"]),
    ];
    let words = run(&AttributeText, &json!({ "method": "input_x_gradient" }), &inputs).unwrap();
    let words = Maps(read_file(&words["words"].single_file().unwrap().location).unwrap());
    assert_eq!(words.text("id"), ids);
    for (of_words, of_map) in words.numbers("score").iter().zip(maps.numbers("score")) {
        assert!((of_words.unwrap() - of_map.unwrap()).abs() < 1e-4);
    }
}

#[test]
fn maps_are_linear_in_what_is_subtracted() {
    let study = Study::new();
    let captions = study.captions();
    for method in ["input_x_gradient", "integrated_gradients", "occlusion"] {
        let own = study.maps(&json!({ "method": method, "steps": 8 }));
        let of = |text: &str| rows(&study.maps(&json!({ "method": method, "steps": 8, "text": text })));
        let ids: Vec<String> = own.text("id").into_iter().flatten().collect();
        let by_text: Vec<Vec<Vec<f64>>> = ids.iter().map(|id| of(&captions[id].1)).collect();
        let others = study.maps(&json!({ "method": method, "steps": 8, "against": "others" }));
        let margin = study.maps(&json!({ "method": method, "steps": 8, "against": captions[&ids[0]].1 }));
        assert!(others.text("target_kind").iter().all(|kind| kind.as_deref() == Some("margin")));
        // One caption per image, in their order: text `t` of image `i`.
        let value = |text: usize, image: usize, place: usize| by_text[text][image][place];
        let expected = |of_image: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..5).map(|image| (0..28 * 28).map(|place| of_image(image, place)).collect()).collect()
        };
        let close = |ours: &Maps, expected: Vec<Vec<f64>>| {
            let distance = distance(&rows(ours), &expected);
            assert!(distance < 1e-3, "{method}: {distance}");
        };
        close(&own, expected(&|image, place| value(image, image, place)));
        close(
            &others,
            expected(&|image, place| {
                let of_others = (0..5).filter(|text| *text != image).map(|text| value(text, image, place));
                value(image, image, place) - of_others.sum::<f64>() / 4.0
            }),
        );
        let statuses = margin.text("status");
        assert!(statuses[0].as_ref().unwrap().starts_with("not_applicable: "), "{statuses:?}");
        let mut against_first = expected(&|image, place| value(image, image, place) - value(0, image, place));
        against_first[0] = vec![0.0; 28 * 28];
        close(&margin, against_first);
    }
}

#[test]
fn batches_change_nothing() {
    let study = Study::new();
    for method in ["integrated_gradients", "grad_cam", "attention_relevance", "score_cam", "kernel_shap"] {
        let of = |batch: i64| rows(&study.maps(&json!({ "method": method, "steps": 8, "batch": batch })));
        let distance = distance(&of(2), &of(5));
        assert!(distance < 1e-3, "{method}: {distance}");
    }
}

#[test]
fn what_is_not_defined_says_why() {
    let study = Study::new();
    for method in ["deep_lift", "full_gradient", "excitation_backpropagation"] {
        let statuses = study.maps(&json!({ "method": method })).text("status");
        let applies = |status: &Option<String>| !status.as_ref().unwrap().starts_with("not_applicable: ");
        assert!(!statuses.iter().any(applies), "{method}: {statuses:?}");
    }
    let fewer = run(&IngestPhantom, &json!({ "size": 28, "train": 4, "test": 2 }), &[]).unwrap();
    let made = study.made(&json!({ "method": "gradient", "splits": [] }), Some(&fewer)).unwrap();
    let (statuses, images) = (maps(&made).text("status"), maps(&made).text("image_id"));
    let missing = statuses.iter().filter(|status| status.as_ref().unwrap().contains("has no caption"));
    assert!(missing.count() > 0 && images.iter().all(Option::is_some));
    let refused = |params: Json, captions: Option<&Made>| {
        study.made(&params, captions).err().map(|error| error.to_string()).unwrap()
    };
    assert!(refused(json!({ "target": "true" }), Some(&study.phantoms)).contains("target"));
    assert!(refused(json!({ "text": "a dot" }), Some(&study.phantoms)).contains("leave out one"));
    assert!(refused(json!({ "text": "a dot", "against": "others" }), None).contains("captions"));
    let params = |json: Json| -> Params { serde_json::from_value(json).unwrap() };
    let problems = Attribute.check(&params(json!({ "text": "a", "only_correct": true, "against": "a" })));
    assert_eq!(
        problems.iter().map(|problem| problem.path.as_str()).collect::<Vec<_>>(),
        ["against", "only_correct"]
    );
    let others = params(json!({ "against": "others" }));
    assert!(!Attribute.is_row_wise(&others, &|port| port == "captions"));
    assert!(Attribute.is_row_wise(&params(json!({})), &|port| port == "captions"));
}

#[test]
fn a_probability_is_that_of_a_caption_among_all() {
    let study = Study::new();
    let captions = study.captions();
    let similarities = study.maps(&json!({ "method": "gradient" }));
    let ids: Vec<String> = similarities.text("id").into_iter().flatten().collect();
    // Row by row of the images: their similarity with each caption.
    let of_texts: Vec<Vec<f64>> = ids
        .iter()
        .map(|id| {
            let maps = study.maps(&json!({ "method": "gradient", "text": captions[id].1 }));
            maps.numbers("score").into_iter().map(|score| f64::from(score.unwrap())).collect()
        })
        .collect();
    let texts: std::collections::BTreeSet<&String> = ids.iter().map(|id| &captions[id].1).collect();
    assert_eq!(texts.len(), 5, "each text counts once");
    let maps = study.maps(&json!({ "method": "rise", "masks": 8, "cells": 2, "limit": 3 }));
    assert!(maps.text("target_kind").iter().all(|kind| kind.as_deref() == Some("probability")));
    assert_eq!(maps.0.num_rows(), 3);
    for (image, score) in maps.numbers("score").into_iter().enumerate() {
        let all: f64 = of_texts.iter().map(|scores| scores[image].exp()).sum();
        let expected = of_texts[image][image].exp() / all;
        assert!((f64::from(score.unwrap()) - expected).abs() < 1e-4, "{score:?} {expected}");
    }
    for more in [json!({ "text": "a nodule" }), json!({ "against": "others" })] {
        let mut params = json!({ "method": "rise", "masks": 8 });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let statuses = study.maps(&params).text("status");
        assert!(statuses.iter().all(|status| status.as_ref().unwrap().starts_with("not_applicable: ")));
    }
    let params: Params = serde_json::from_value(json!({ "method": "rise" })).unwrap();
    assert!(!Attribute.is_row_wise(&params, &|port| port == "captions"));
    assert!(Attribute.is_row_wise(&params, &|_| false));
}

#[test]
fn controls_are_of_other_towers_and_maps_go_on() {
    let study = Study::new();
    let made = study.made(&json!({ "method": "occlusion", "limit": 2 }), Some(&study.phantoms)).unwrap();
    let own = maps(&made);
    let random = study.maps(&json!({ "method": "occlusion", "limit": 2, "random_weights": true, "seed": 3 }));
    assert_eq!((own.0.num_rows(), own.text("id")), (2, random.text("id")));
    assert_ne!(rows(&own), rows(&random));
    let images = ("images", &study.phantoms["images"]);
    let page = run(&Report, &json!({}), &[images, ("saliency", &made["saliency"])]).unwrap();
    let page = std::fs::read_to_string(&page["page"].file("index.html").unwrap().location).unwrap();
    let text = own.text("target")[0].clone().unwrap();
    assert!(page.contains(&text) && page.contains("overlay of occlusion"));
    let saliency = ("saliency", &made["saliency"]);
    let scores = run(&ScoreMaps, &json!({}), &[saliency, images]).unwrap();
    assert!(read(&scores["scores"]).unwrap().rows() > 0);
}

/// What the model says of changed images is the similarity with the text that a map explains.
#[test]
fn maps_of_similarities_are_judged_by_the_similarity() {
    let study = Study::new();
    let images = ("images", &study.phantoms["images"]);
    let checkpoint = ("checkpoint", &study.checkpoint["checkpoint"]);
    let method = json!({ "method": "integrated_gradients", "steps": 2, "limit": 2 });
    let with = |key: &str, value: &str| {
        let mut params = method.clone();
        params[key] = value.into();
        params
    };
    let metrics = [
        "region_perturbation",
        "deletion",
        "max_sensitivity",
        "parameter_randomisation",
        "completeness",
        "road_agreement_gap",
        "random_logit",
        "entropy_correlation",
        "sufficiency",
    ];
    for (params, name) in [
        (method.clone(), "similarity"),
        (with("text", "a round nodule"), "similarity"),
        (with("against", "no finding"), "margin"),
        (with("against", "others"), "similarity"),
    ] {
        let captions = params.get("text").is_none().then_some(&study.phantoms);
        let made = study.made(&params, captions).unwrap();
        let explained = maps(&made);
        let [own, empty] = ["score", "score_baseline"].map(|column| explained.numbers(column)[0].unwrap());
        // The only patch is the whole image.
        let settings = json!({ "metrics": metrics, "patch": 28, "steps": 1, "draws": 1 });
        let made =
            run(&ScoreMaps, &settings, &[("saliency", &made["saliency"]), images, checkpoint]).unwrap();
        let table = read(&made["scores"]).unwrap();
        let text = |column: &str| table.as_text(column).unwrap();
        let row = |method: &str, metric: &str| {
            let (methods, names) = (text("method"), text("metric"));
            let is_it = |row: &usize| {
                methods[*row].as_deref() == Some(method) && names[*row].as_deref() == Some(metric)
            };
            let row = (0..table.rows()).find(is_it).unwrap();
            (table.float64("value").unwrap()[row], text("reason")[row].clone(), text("score")[row].clone())
        };
        if params.get("against") == Some(&"others".into()) {
            for metric in ["region_perturbation", "max_sensitivity"] {
                let (value, reason, _) = row("integrated_gradients", metric);
                assert!(value.is_none() && reason.unwrap().contains("captions of other images"), "{metric}");
            }
            continue;
        }
        let half = f64::from(own - empty) / 2.0;
        for method in ["integrated_gradients", "random"] {
            let (value, reason, score) = row(method, "region_perturbation");
            let value = value.unwrap_or_else(|| panic!("{params}: {reason:?}"));
            assert!((value - half).abs() < 1e-3 * half.abs().max(1.0), "{params}: {value} {half}");
            assert_eq!(score.as_deref(), Some(name));
            // Deletion in one step goes the same way.
            let (value, _, score) = row(method, "deletion");
            assert!(
                (value.unwrap() - f64::from(own + empty) / 2.0).abs() < 1e-3 * f64::from(own).abs().max(1.0)
            );
            assert_eq!(score.as_deref(), Some(name));
        }
        for metric in ["max_sensitivity", "parameter_randomisation", "completeness"] {
            let (value, reason, _) = row("integrated_gradients", metric);
            assert!(value.is_some(), "{params} {metric}: {reason:?}");
        }
        for (metric, why) in [
            ("road_agreement_gap", "a text alone"),
            ("random_logit", "no other classes"),
            ("entropy_correlation", "a text alone"),
            ("sufficiency", "no classes"),
        ] {
            let (value, reason, _) = row("integrated_gradients", metric);
            assert!(value.is_none() && reason.as_ref().unwrap().contains(why), "{metric}: {reason:?}");
        }
    }
}

#[test]
fn the_head_of_texts_is_the_model_s_similarity_with_its_gradient() {
    let study = Study::new();
    let model = Model::load(&study.checkpoint["checkpoint"], Compute::exact()).unwrap();
    let towers = model.dual_encoder().unwrap();
    let values: Vec<f32> = (0..3 * 16).map(|place| ((place * 7 % 11) as f32 - 5.0) / 5.0).collect();
    let texts = Tensor::from_vec(values, (3, 16), &DEVICE).unwrap();
    let scale = towers.logit_scale().exp().unwrap();
    let head = Head {
        input: HeadInput::Unit,
        weight: normalise(&texts).unwrap().broadcast_mul(&scale).unwrap(),
        bias: Tensor::zeros(3, candle_core::DType::F32, &DEVICE).unwrap(),
        description: HeadDescription {
            classes: ["a", "b", "c"].map(str::to_owned).to_vec(),
            task: "multi-class".to_owned(),
        },
    };
    let pixels: Vec<f32> = (0..3 * 28 * 28).map(|place| ((place * 31 % 101) as f32 - 50.0) / 50.0).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, 28, 28), &DEVICE).unwrap();
    let expected = towers
        .logits(&towers.image_tower().embed_images(&pixels, None).unwrap(), &texts)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let model = model.with_head(head);
    let targets = [ClassTarget { class: 2, against: None }];
    let score = ClassScore::new(&model, &targets).unwrap();
    let of = |pixels: &Tensor| score.score(pixels, &[0], None).unwrap().to_vec1::<f32>().unwrap()[0];
    assert!((of(&pixels) - expected[0][2]).abs() < 1e-5 * expected[0][2].abs().max(1.0));
    let variable = Var::from_tensor(&pixels).unwrap();
    let gradients = score.score(&variable, &[0], None).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = gradients.get(&variable).unwrap().clone();
    // Along the gradient and along another direction.
    let other: Vec<f32> = (0..3 * 28 * 28).map(|place| ((place * 17 % 23) as f32 - 11.0) / 11.0).collect();
    for direction in [gradient.clone(), Tensor::from_vec(other, (1, 3, 28, 28), &DEVICE).unwrap()] {
        let norm = direction.sqr().unwrap().sum_all().unwrap().sqrt().unwrap();
        let direction = direction.broadcast_div(&norm).unwrap();
        let step = 0.05;
        let at = |by: f64| f64::from(of(&(&pixels + (&direction * by).unwrap()).unwrap()));
        let difference = (at(step) - at(-step)) / (2.0 * step);
        let slope = (&gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let most = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        assert!((difference - f64::from(slope)).abs() < 0.01 * f64::from(most), "{difference} {slope}");
    }
}

#[test]
fn a_given_text_is_the_target_of_every_image() {
    let maps = Study::new().maps(&json!({ "method": "gradient", "text": "a round nodule" }));
    assert!(maps.text("target").iter().all(|target| target.as_deref() == Some("a round nodule")));
    assert_eq!((maps.0.num_rows(), maps.text("id")), (5, maps.text("image_id")));
    assert_eq!(maps.0.schema().metadata()["target"], "a round nodule");
}
