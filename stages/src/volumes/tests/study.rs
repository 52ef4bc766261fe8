//! Volumes from ingest to report: a classifier of CT-CLIP trained and explained, and models of flat images.

use std::collections::BTreeMap;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use candle_core::{Tensor, Var};
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::preprocess::volume::byte_volume;
use pipe_models::{CtClip, ModelConfig, Trainable};
use serde_json::{Value as Json, json};

use super::{embeddings, random};
use crate::ablate::Ablate;
use crate::attribute::Attribute;
use crate::attribute_text::AttributeText;
use crate::checkpoint::Checkpoint;
use crate::compute::Compute;
use crate::embed::Embed;
use crate::evaluate_classify::EvaluateClassify;
use crate::finetune::{FinetuneClassify, FinetuneContrastive};
use crate::images::{Pixels, read_pixels};
use crate::ingest::IngestMedmnist;
use crate::ipc::{read_file, tensors, texts};
use crate::model::{DEVICE, HeadInput, Model};
use crate::phantom::IngestPhantom;
use crate::report::Report;
use crate::score::Score;
use crate::table::{Column, read};
use crate::testing::{Listener, Made, data, run, source};
use crate::tokenizer::TrainTokenizer;
use crate::volumes::VolumeSet;

pub(super) const SIZE: [usize; 3] = [6, 16, 16];

/// Chests of 24 x 36 x 36 voxels with planted findings, and a CT-CLIP that takes six slices of 16 x 16 pixels.
pub(super) fn study() -> (Made, Made) {
    let params = json!({ "domain": "volume", "seed": 5, "size": 36, "train": 10, "val": 4, "test": 3 });
    let chests = run(&IngestPhantom, &params, &[]).unwrap();
    (chests, random("ct-clip", config(), &[]))
}

/// A CT-CLIP that takes six slices of 16 x 16 pixels.
fn config() -> Json {
    json!({
        "vision": {
            "width": 16, "codes": 8, "image": SIZE[1], "slices": SIZE[0], "patch": 8, "patch_slices": 2, "heads": 2,
            "spatial_layers": 2, "temporal_layers": 2, "head_width": 8, "hidden": 12,
        },
        "text": {
            "vocab_size": 520, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 32,
        },
        "context": 32, "projection": 8,
    })
}

pub(super) fn finetuned(chests: &Made, checkpoint: &Made, params: Json) -> Made {
    let inputs = [
        ("images", &chests["volumes"]),
        ("labels", &chests["labels"]),
        ("checkpoint", &checkpoint["checkpoint"]),
    ];
    run(&FinetuneClassify, &params, &inputs).unwrap()
}

pub(super) fn flat() -> Made {
    random("resnet50", json!({ "image": 64, "width": 8, "blocks": [1, 1, 1, 1] }), &[])
}

/// The same checkpoint seeing volumes in another way.
pub(super) fn seeing(checkpoint: &Made, volumes: Json) -> Made {
    run(&Checkpoint, &json!({ "volumes": volumes }), &[("source", &checkpoint["checkpoint"])]).unwrap()
}

fn html(page: &Made) -> String {
    let index = page["page"].files.iter().find(|file| file.path == "index.html").unwrap();
    std::fs::read_to_string(&index.location).unwrap()
}

/// CT-LiPro's file holds a classifier: it is the checkpoint's head, and stays it when the checkpoint is written.
#[test]
fn a_published_classifier_is_a_head() {
    let (chests, _) = study();
    let config = json!({
        "vision": {
            "width": 16, "codes": 8, "image": 16, "slices": 4, "patch": 8, "patch_slices": 2, "heads": 2,
            "spatial_layers": 1, "temporal_layers": 1, "head_width": 8, "hidden": 12,
        },
        "text": {
            "vocab_size": 520, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 32,
        },
        "context": 32, "projection": 8, "classes": 18,
    });
    let lipro = random("ct-clip", config, &[]);
    let again = run(&Checkpoint, &json!({}), &[("source", &lipro["checkpoint"])]).unwrap();
    for checkpoint in [&lipro, &again] {
        let model = Model::load(&checkpoint["checkpoint"], Compute::exact()).unwrap();
        let ModelConfig::CtClip(config) = model.network.model_config() else { panic!() };
        let ct = CtClip::from_tensors(config, model.network.tensors(), Trainable::Frozen).unwrap();
        let set = VolumeSet::read(&chests["volumes"], &["test"], [4, 16, 16]).unwrap();
        let volume = set.batch(&[0]).unwrap();
        let embedding = model.image_tower().unwrap().embed_images(&volume, None).unwrap();
        let expected = ct.class_logits(&embedding, None).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(model.logits(&volume, None).unwrap().to_vec2::<f32>().unwrap(), expected);
        let inputs = [
            ("images", &chests["volumes"]),
            ("labels", &chests["labels"]),
            ("checkpoint", &checkpoint["checkpoint"]),
        ];
        let evaluated = run(&EvaluateClassify, &json!({ "splits": ["test"] }), &inputs).unwrap();
        let predictions = read(&evaluated["predictions"]).unwrap();
        let Some(Column::ListFloat32(scores)) = predictions.column("scores") else { panic!() };
        for (score, logit) in scores[0].as_ref().unwrap().iter().zip(&expected[0]) {
            assert!((score - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6);
        }
        let maps = batch(&explained(&chests, checkpoint, json!({ "method": "gradient" })).unwrap());
        assert!(tensors(&maps, "saliency").unwrap().0.iter().any(|value| *value != 0.0));
    }
    // A head that is trained takes its place.
    let trained = finetuned(&chests, &again, json!({ "c": 1.0 }));
    let model = Model::load(&trained["checkpoint"], Compute::exact()).unwrap();
    assert_eq!(model.head().unwrap().input, HeadInput::Embedding);
}

#[test]
fn pairs_of_volumes_and_reports_are_learned_whole_and_in_pieces() {
    let params = json!({ "domain": "volume", "seed": 5, "size": 36, "train": 8, "val": 0, "test": 3 });
    let chests = run(&IngestPhantom, &params, &[]).unwrap();
    let vocabulary = json!({ "vocab_size": 514 });
    let tokenizer = run(&TrainTokenizer, &vocabulary, &[("text", &chests["captions"])]).unwrap();
    let checkpoint = random("ct-clip", config(), &[("tokenizer", &tokenizer["tokenizer"])]);
    let tower = json!({ "width": 16, "layers": 1, "heads": 2 });
    let params = json!({
        "init": "random", "image_size": 16, "patch": 8, "vision": tower, "text": tower, "context": 32,
        "projection": 8,
    });
    let slices = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
    let slices = seeing(&slices, json!({ "slices": "mean", "count": 3 }));
    for checkpoint in [&checkpoint, &slices] {
        let inputs = [
            ("images", &chests["volumes"]),
            ("captions", &chests["captions"]),
            ("checkpoint", &checkpoint["checkpoint"]),
        ];
        let trained = |pieces: usize| {
            let params = json!({ "epochs": 4, "batch": 4, "lr": 5e-3, "pieces": pieces });
            run(&FinetuneContrastive, &params, &inputs).unwrap()
        };
        let losses = |made: &Made| -> Vec<f64> {
            let log = read(&made["log"]).unwrap();
            let (names, values) = (log.strings("metric").unwrap(), log.float64("value").unwrap());
            (0..log.rows()).filter(|row| names[*row] == "loss").filter_map(|row| values[row]).collect()
        };
        let whole = trained(1);
        let (of_whole, of_pieces) = (losses(&whole), losses(&trained(4)));
        assert!(of_whole[3] < of_whole[0], "{of_whole:?}");
        assert!((of_whole[0] - of_pieces[0]).abs() < 1e-3, "{of_whole:?} {of_pieces:?}");
        // Both towers have learned.
        let tensors =
            |made: &Made| Model::load(&made["checkpoint"], Compute::exact()).unwrap().network.tensors();
        let (before, after) = (tensors(checkpoint), tensors(&whole));
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let moved = |part: &str| {
            let mut names = before.keys().filter(|name| name.contains(part));
            names.any(|name| values(&before[name]) != values(&after[name]))
        };
        assert!(moved("vis") && moved("text"));
        // What they learned is explained from both sides.
        let inputs = [
            ("images", &chests["volumes"]),
            ("captions", &chests["captions"]),
            ("checkpoint", &whole["checkpoint"]),
        ];
        let places = run(&Attribute, &json!({ "method": "occlusion" }), &inputs).unwrap();
        let words = run(&AttributeText, &json!({ "method": "occlusion", "batch": 2 }), &inputs).unwrap();
        let (places, words) =
            (batch(&places), read_file(&words["words"].single_file().unwrap().location).unwrap());
        assert_eq!((places.num_rows(), texts(&places, "id")), (3, texts(&words, "id")));
        let scores = |batch: &RecordBatch| -> Vec<f32> {
            batch.column_by_name("score").unwrap().as_primitive::<Float32Type>().values().to_vec()
        };
        for (place, word) in scores(&places).iter().zip(scores(&words)) {
            assert!((place - word).abs() < 1e-4, "{place} {word}");
        }
    }
}

#[test]
fn a_classifier_of_volumes_is_trained_whole_and_evaluated() {
    let (chests, checkpoint) = study();
    let params = json!({ "mode": "full", "epochs": 2, "batch": 4, "lr": 1e-2, "augment": { "flip": true, "shift": 2 } });
    let trained = finetuned(&chests, &checkpoint, params.clone());
    let log = read(&trained["log"]).unwrap();
    let Some(Column::Float64(values)) = log.column("value") else { panic!("{:?}", log.column("value")) };
    let losses: Vec<f64> = log
        .strings("metric")
        .unwrap()
        .iter()
        .zip(values)
        .filter_map(|(name, value)| value.filter(|_| *name == "loss"))
        .collect();
    assert!(losses.len() == 2 && losses[1] < losses[0], "{losses:?}");
    // Every layer has learned; the codes are as they were.
    let tensors = |made: &Made| Model::load(&made["checkpoint"], Compute::exact()).unwrap().network.tensors();
    let (before, after) = (tensors(&checkpoint), tensors(&trained));
    let moved = |name: &str| {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values(&before[name]) != values(&after[name])
    };
    for name in [
        "visual_transformer.to_patch_emb.2.weight",
        "visual_transformer.enc_spatial_transformer.layers.0.1.to_q.weight",
        "visual_transformer.enc_temporal_transformer.layers.1.3.1.weight",
        "to_visual_latent.weight",
    ] {
        assert!(moved(name), "{name}");
    }
    assert!(!moved("visual_transformer.vq._codebook.embed") && !moved("to_text_latent.weight"));
    // Adapters change queries and values alone.
    let adapted =
        tensors(&finetuned(&chests, &checkpoint, json!({ "mode": "lora", "epochs": 1, "batch": 4 })));
    let differs = |name: &str| {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values(&before[name]) != values(&adapted[name])
    };
    assert!(differs("visual_transformer.enc_spatial_transformer.layers.0.1.to_q.weight"));
    assert!(!differs("visual_transformer.to_patch_emb.2.weight") && !differs("to_visual_latent.weight"));
    // Pieces bound memory and change nothing else.
    let pieces = finetuned(&chests, &checkpoint, {
        let mut params = params;
        params["pieces"] = 4.into();
        params
    });
    for (name, tensor) in tensors(&pieces) {
        let difference = (tensor - &after[&name]).unwrap().abs().unwrap().flatten_all().unwrap();
        let greatest = difference.to_vec1::<f32>().unwrap().into_iter().fold(0.0, f32::max);
        assert!(greatest < 1e-4, "{name}: {greatest}");
    }
    let inputs = [
        ("images", &chests["volumes"]),
        ("labels", &chests["labels"]),
        ("checkpoint", &trained["checkpoint"]),
    ];
    let evaluated = run(&EvaluateClassify, &json!({ "splits": ["test"] }), &inputs).unwrap();
    assert_eq!(read(&evaluated["predictions"]).unwrap().rows(), 3);
}

/// The saliency of one method.
fn explained(chests: &Made, checkpoint: &Made, params: Json) -> Result<Made, StageError> {
    let inputs = [("images", &chests["volumes"]), ("checkpoint", &checkpoint["checkpoint"])];
    run(&Attribute, &params, &inputs)
}

fn batch(made: &Made) -> RecordBatch {
    read_file(&made["saliency"].files_ending(".arrow").next().unwrap().location).unwrap()
}

#[test]
fn a_classifier_of_volumes_is_explained() {
    let (chests, checkpoint) = study();
    let probe = finetuned(&chests, &checkpoint, json!({ "c": 1.0 }));
    let model = Model::load(&probe["checkpoint"], Compute::exact()).unwrap();
    let set = VolumeSet::read(&chests["volumes"], &["test"], SIZE).unwrap();
    let names = model.head().unwrap().description.classes.clone();
    let target = names[2].clone();
    let of = |method: &str, more: Json| {
        let mut params = json!({ "method": method, "target": target, "batch": 2, "coalitions": 20, "masks": 6, "cells": 2, "blocks": 2, "draws": 2, "steps": 4 });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        batch(&explained(&chests, &probe, params).unwrap_or_else(|error| panic!("{method}: {error}")))
    };
    // Input x Gradient is what it says.
    let found = of("input_x_gradient", json!({}));
    let (values, shape) = tensors(&found, "saliency").unwrap();
    assert_eq!(shape, SIZE);
    let row = 1;
    let volume = Var::from_tensor(&set.batch(&[row]).unwrap()).unwrap();
    let logits = model.logits(&volume, None).unwrap();
    let gradients = logits.narrow(1, 2, 1).unwrap().sum_all().unwrap().backward().unwrap();
    let product = (gradients.get(&volume).unwrap() * volume.as_tensor()).unwrap();
    let expected = product.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let length = SIZE.iter().product::<usize>();
    let greatest = expected.iter().fold(0.0f32, |greatest, value| greatest.max(value.abs()));
    assert!(greatest > 0.0);
    for (ours, expected) in values[row * length..(row + 1) * length].iter().zip(&expected) {
        assert!((ours - expected).abs() < 1e-4 * greatest, "{ours} and {expected}");
    }

    // Windows of two patches' slices, rows and columns: the fall of the score without one.
    let occlusion = json!({ "window": 8, "stride": 8, "slices": 2, "slice_stride": 2, "baseline": "black" });
    let found = of("occlusion", occlusion);
    let (values, _) = tensors(&found, "saliency").unwrap();
    let mut emptied = set.batch(&[row]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for slice in 2..4 {
        for y in 8..16 {
            emptied[(slice * 16 + y) * 16..][..8].fill(-1.0);
        }
    }
    let emptied = Tensor::from_vec(emptied, (1, 1, 6, 16, 16), &DEVICE).unwrap();
    let logit = |volume: &Tensor| model.logits(volume, None).unwrap().to_vec2::<f32>().unwrap()[0][2];
    let fall = logit(&set.batch(&[row]).unwrap()) - logit(&emptied);
    let at = row * length + (3 * 16 + 9) * 16 + 4;
    assert!((values[at] - fall).abs() < 1e-5, "{} and {fall}", values[at]);
    // By default windows keep to whole patches.
    assert_eq!(tensors(&of("occlusion", json!({})), "saliency").unwrap().1, SIZE);

    for method in [
        "gradient",
        "integrated_gradients",
        "smoothgrad",
        "vargrad",
        "gradient_shap",
        "grad_cam",
        "layer_cam",
        "grad_cam_plus_plus",
        "score_cam",
        "ablation_cam",
        "rise",
        "kernel_shap",
        "shapley_values",
        "attention_rollout",
        "attention_relevance",
    ] {
        let found = of(method, json!({}));
        let (values, shape) = tensors(&found, "saliency").unwrap();
        assert_eq!((found.num_rows(), shape.as_slice()), (3, SIZE.as_slice()), "{method}");
        let statuses: Vec<String> = texts(&found, "status").unwrap().into_iter().flatten().collect();
        assert!(
            statuses.iter().all(|status| status == "ok" || status == "all_zero"),
            "{method}: {statuses:?}"
        );
        assert!(values.iter().all(|value| value.is_finite()), "{method}");
    }
    for (method, reason) in [
        ("deep_lift", "flat images"),
        ("full_gradient", "flat images"),
        ("meaningful_perturbation", "flat images"),
        ("excitation_backpropagation", "flat images"),
        ("guided_backpropagation", "ReLU"),
    ] {
        for status in texts(&of(method, json!({})), "status").unwrap().into_iter().flatten() {
            assert!(status.starts_with("not_applicable: ") && status.contains(reason), "{method}: {status}");
        }
    }
    let error = explained(&chests, &probe, json!({ "baseline": "mean", "target": target })).err().unwrap();
    assert!(error.to_string().contains("flat images"), "{error}");
    // The page shows slices of each map and of its volume, in three directions.
    let maps = explained(&chests, &probe, json!({ "method": "input_x_gradient" })).unwrap();
    let inputs =
        [("maps", &maps["saliency"]), ("volumes", &chests["volumes"]), ("labels", &chests["labels"])];
    let page = run(&Report, &json!({ "sheets": true }), &inputs).unwrap();
    let html = html(&page);
    assert!(
        html.contains("6 slices at equal distances, axial slice 1 of 6 to axial slice 6 of 6"),
        "a strip"
    );
    let named = |name: &str| page["page"].files.iter().any(|file| file.path == name);
    assert!(named("sheets/maps-slices-1.png") && named("sheets/maps-slices.csv"));
    assert!(
        html.contains("original, axial slice 4 of 6") && html.contains("most salient axial slice "),
        "slices are named"
    );
    for plane in ["coronal", "sagittal"] {
        let named = |what: &str| html.contains(&format!("{what} {plane} slice "));
        assert!(named("original,") && named("most salient"), "{plane}");
    }

    assert!(html.contains("overlay of") && !html.contains("no image was given"));
}

#[test]
fn models_of_flat_images_see_slices_of_volumes() {
    let (chests, _) = study();
    let flat = flat();
    let vectors = |checkpoint: &Made| {
        let inputs = [("images", &chests["volumes"]), ("checkpoint", &checkpoint["checkpoint"])];
        let made = run(&Embed, &json!({ "modality": "image", "splits": ["test"] }), &inputs).unwrap();
        let batch = read_file(&made["images"].files_ending(".arrow").next().unwrap().location).unwrap();
        (embeddings(&made["images"]).1, batch.schema().metadata()["volumes"].clone())
    };
    let (central, said) = vectors(&flat);
    assert_eq!(said, "the central slice, -1000 to 1000 HU");
    let (triplet, said) = vectors(&seeing(&flat, json!({ "slices": "triplet", "window": [-200.0, 300.0] })));
    assert_eq!(said, "the central slice and its neighbours as red, green and blue, -200 to 300 HU");
    let mean = seeing(&flat, json!({ "slices": "mean", "count": 3 }));
    let (mean_vectors, said) = vectors(&mean);
    assert_eq!(said, "the mean of the embeddings of 3 slices, -1000 to 1000 HU");
    assert!(central != triplet && central != mean_vectors);
    // The mean of what the tower says of each slice.
    let [one, three] = [&flat, &mean].map(|made| Model::load(&made["checkpoint"], Compute::exact()).unwrap());
    let host = Listener::default();
    let scratch = std::env::temp_dir();
    let context = StageContext::new(BTreeMap::new(), BTreeMap::new(), &host, 1, scratch, String::new());
    let slices = read_pixels(&chests["volumes"], &["test"], &three, &context).unwrap();
    assert_eq!(slices.map_shape(), [3, 64, 64]);
    let volume = slices.batch(&[2]).unwrap();
    assert_eq!(volume.dims(), [1, 3, 3, 64, 64]);
    let mut sum = vec![0.0; 64];
    for slice in 0..3 {
        let pixels = volume.narrow(2, slice, 1).unwrap().squeeze(2).unwrap();
        let embedding = one.image_tower().unwrap().embed_images(&pixels, None).unwrap();
        for (sum, value) in sum.iter_mut().zip(embedding.to_vec2::<f32>().unwrap()[0].iter()) {
            *sum += value / 3.0;
        }
    }
    for (ours, expected) in mean_vectors[2].iter().zip(&sum) {
        assert!((ours - expected).abs() < 1e-5 * expected.abs().max(1.0), "{ours} and {expected}");
    }
}

#[test]
fn models_of_flat_images_are_trained_and_explained_on_volumes() {
    let (chests, _) = study();
    for (volumes, shape) in
        [(json!({}), vec![64, 64]), (json!({ "slices": "mean", "count": 3 }), vec![3, 64, 64])]
    {
        let trained = finetuned(
            &chests,
            &seeing(&flat(), volumes),
            json!({ "mode": "full", "epochs": 1, "batch": 4, "lr": 1e-3, "augment": { "shift": 1 } }),
        );
        for method in ["integrated_gradients", "occlusion", "layer_cam", "guided_backpropagation"] {
            let params = json!({ "method": method, "steps": 3, "target": "predicted", "batch": 4 });
            let found = batch(&explained(&chests, &trained, params).unwrap());
            let (values, found_shape) = tensors(&found, "saliency").unwrap();
            assert_eq!(found_shape, shape, "{method}");
            let statuses: Vec<String> = texts(&found, "status").unwrap().into_iter().flatten().collect();
            assert!(
                statuses.iter().all(|status| status == "ok" || status == "all_zero"),
                "{method}: {statuses:?}"
            );
            assert!(values.iter().any(|value| *value != 0.0), "{method}");
            assert!(found.schema().metadata()["volumes"].contains("slice"));
        }
        let maps = explained(&chests, &trained, json!({ "method": "input_x_gradient" })).unwrap();
        let page = run(&Report, &json!({}), &[("maps", &maps["saliency"]), ("volumes", &chests["volumes"])])
            .unwrap();
        let html = html(&page);
        assert!(html.contains("overlay of") && !html.contains("no image was given"));
    }
}

/// What a model of flat images sees one slice of is scored and ablated as a flat image.
#[test]
fn one_slice_of_volumes_is_scored_and_ablated() {
    let (chests, _) = study();
    let trained = finetuned(&chests, &flat(), json!({ "c": 1.0 }));
    let maps = explained(&chests, &trained, json!({ "method": "input_x_gradient" })).unwrap();
    let (volumes, checkpoint) = (("images", &chests["volumes"]), ("checkpoint", &trained["checkpoint"]));
    let params = json!({ "metrics": ["deletion", "sparseness"], "steps": 4 });
    let scored = run(&Score, &params, &[("saliency", &maps["saliency"]), volumes, checkpoint]).unwrap();
    let scores = read(&scored["scores"]).unwrap();
    let values = scores.float64("value").unwrap();
    assert!(values.len() >= 6 && values.iter().flatten().all(|value| value.is_finite()), "{values:?}");
    assert!(values.iter().flatten().count() >= 6, "{values:?}");
    let params = json!({ "conditions": ["majority", "blank_image", "patch_shuffled"], "grid": 2 });
    let labels = ("labels", &chests["labels"]);
    let ablated = run(&Ablate, &params, &[volumes, labels, checkpoint]).unwrap();
    assert!(read(&ablated["metrics"]).unwrap().rows() > 0);
    // Several slices are no flat image.
    let several = seeing(&trained, json!({ "slices": "mean", "count": 3 }));
    let error =
        run(&Ablate, &params, &[volumes, labels, ("checkpoint", &several["checkpoint"])]).err().unwrap();
    assert!(error.to_string().contains("several slices"), "{error}");
}

/// MedMNIST's small volumes fill as many slices as the configuration says: 60 in the study, four here.
#[test]
fn small_volumes_fill_fewer_slices() {
    let Some(file) = data("medmnist/fixture-nodulemnist3d.npz") else { return };
    let nodules = run(
        &IngestMedmnist,
        &json!({ "dataset": "nodulemnist3d", "allow_partial": true }),
        &[("source", &source(&file))],
    );
    let nodules = nodules.unwrap_or_else(|error| panic!("{error}"));
    let (_, checkpoint) = study();
    let fewer = run(
        &Checkpoint,
        &json!({ "config": { "vision": { "slices": 4 } } }),
        &[("source", &checkpoint["checkpoint"])],
    )
    .unwrap();
    let inputs: [(&str, &Artifact); 2] =
        [("images", &nodules["volumes"]), ("checkpoint", &fewer["checkpoint"])];
    let made = run(&Embed, &json!({ "modality": "image" }), &inputs).unwrap();
    let (_, vectors) = embeddings(&made["images"]);
    let table = read(&nodules["volumes"]).unwrap();
    let Some(Column::Binary(voxels)) = table.column("voxels") else { panic!() };
    let values = byte_volume(voxels[0].as_deref().unwrap(), [28; 3], [4, 16, 16]).unwrap();
    let volume = Tensor::from_vec(values, (1, 1, 4, 16, 16), &DEVICE).unwrap();
    let model = Model::load(&checkpoint["checkpoint"], Compute::exact()).unwrap();
    let expected = model.image_tower().unwrap().embed_images(&volume, None).unwrap();
    assert_eq!(vectors[0], expected.to_vec2::<f32>().unwrap()[0]);
}
