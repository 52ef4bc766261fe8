//! Residual networks that learn from random weights, with batch norms of the batch.

use pipe_engine::{AnyKind, Artifact, StageError};
use serde_json::{Value as Json, json};

use super::super::FinetuneClassify;
use super::{Checkpoint, Compute, EvaluateClassify, Made, Model, curve, disturb, pairs, run};
use crate::attribute::Attribute;
use crate::phantom::IngestPhantom;

/// MedMNIST's ResNet-18 with fewer channels.
fn small() -> Made {
    let params = json!({
        "init": "random", "architecture": "medmnist-resnet18", "seed": 3,
        "config": { "width": 4, "blocks": [1, 1, 1, 1] },
    });
    run(&Checkpoint, &params, &[]).unwrap()
}

fn recipe(more: Json) -> Json {
    let mut params = json!({
        "mode": "full", "epochs": 4, "batch": 9, "lr": 1e-2, "seed": 3, "batch_norm": "batch",
        "head_init": "uniform", "milestones": { "at": [0.5, 0.75] },
        "optimiser": { "weight_decay": 0.0, "beta2": 0.999, "epsilon": 1e-8, "warmup": 0.0, "gradient_norm": 1e6 },
    });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

fn tensors(artifact: &Artifact) -> std::collections::HashMap<String, candle_core::Tensor> {
    let file = artifact.files.iter().find(|file| file.path == "model.safetensors").unwrap();
    candle_core::safetensors::load(&file.location, &candle_core::Device::Cpu).unwrap()
}

#[test]
fn a_residual_network_survives_any_end() {
    let ((pairs, _), initial) = (pairs(), small());
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    // Running statistics are part of the state, and of the best epoch.
    disturb(&FinetuneClassify, &recipe(json!({})), &inputs, 20, 6);
}

#[test]
fn statistics_are_saved_with_the_model_that_was_judged() {
    let ((pairs, _), initial) = (pairs(), small());
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let trained = run(&FinetuneClassify, &recipe(json!({ "epochs": 10 })), &inputs).unwrap();
    let losses = curve(&trained, "train", "loss");
    assert!(losses[9] < 0.9 * losses[0], "{losses:?}");
    let (before, after) = (tensors(&initial["checkpoint"]), tensors(&trained["checkpoint"]));
    let moved = |name: &str| {
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values(&before[name]) != values(&after[name])
    };
    assert!(moved("bn1.running_mean") && moved("layer4.0.bn2.running_var") && moved("conv1.weight"));
    // What is read again says what validation said of its best epoch.
    let inputs = [inputs[0], inputs[1], ("checkpoint", &trained["checkpoint"])];
    let evaluated = run(&EvaluateClassify, &json!({ "splits": ["val"] }), &inputs).unwrap();
    let metrics = crate::table::read(&evaluated["metrics"]).unwrap();
    let (names, classes) = (metrics.strings("metric").unwrap(), metrics.utf8("class").unwrap());
    let row = (0..metrics.rows()).find(|row| names[*row] == "auroc" && classes[*row].is_none()).unwrap();
    let auroc = metrics.float64("value").unwrap()[row].unwrap();
    let best = curve(&trained, "val", "auroc").into_iter().fold(0.0, f64::max);
    assert!((auroc - best).abs() < 1e-6, "{auroc} read again, {best} while training");
    // With stored statistics they stay.
    let inputs = [inputs[0], inputs[1], ("checkpoint", &initial["checkpoint"])];
    let still = run(&FinetuneClassify, &recipe(json!({ "batch_norm": "stored" })), &inputs).unwrap();
    let after = tensors(&still["checkpoint"]);
    let zeros = after["bn1.running_mean"].to_vec1::<f32>().unwrap();
    assert!(zeros.iter().all(|mean| *mean == 0.0), "{zeros:?}");
}

#[test]
fn half_types_learn_as_f32_does() {
    let ((pairs, _), initial) = (pairs(), small());
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let losses = |precision: &str| {
        let params = recipe(json!({ "epochs": 3, "precision": precision }));
        curve(&run(&FinetuneClassify, &params, &inputs).unwrap(), "train", "loss")
    };
    let (whole, half) = (losses("f32"), losses("bf16"));
    assert_ne!(whole, half);
    assert!(
        whole.iter().zip(&half).all(|(whole, half)| (whole - half).abs() < 0.05 * whole),
        "{whole:?} {half:?}"
    );
    let problems = AnyKind::resolve(&FinetuneClassify, &json!({ "precision": "bf16" })).unwrap_err();
    assert_eq!(problems[0].path, "precision", "a probe is no tower");
}

#[test]
fn volumes_are_learned_from_too() {
    let params = json!({
        "domain": "volume", "size": 28, "seed": 4, "train": 12, "val": 6, "test": 0, "depth": 28,
    });
    let scans = run(&IngestPhantom, &params, &[]).unwrap();
    let params = json!({
        "init": "random", "architecture": "medmnist-resnet18-3d", "seed": 3,
        "config": { "width": 2, "blocks": [1, 1, 1, 1], "image": 12, "form": { "slices": 12 } },
    });
    let initial = run(&Checkpoint, &params, &[]).unwrap();
    let inputs =
        [("images", &scans["volumes"]), ("labels", &scans["labels"]), ("checkpoint", &initial["checkpoint"])];
    let trained = run(&FinetuneClassify, &recipe(json!({ "batch": 6 })), &inputs).unwrap();
    let losses = curve(&trained, "train", "loss");
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    let model = Model::load(&trained["checkpoint"], Compute::exact()).unwrap();
    assert_eq!(model.image_tower().unwrap().geometry().steps(), 2);
    // Maps of volumes, of classes, gradients and layers.
    let inputs =
        [("images", &scans["volumes"]), ("labels", &scans["labels"]), ("checkpoint", &trained["checkpoint"])];
    for method in ["grad_cam", "integrated_gradients", "guided_backpropagation", "occlusion"] {
        let params =
            json!({ "method": method, "splits": ["val"], "limit": 2, "target": "predicted", "steps": 4 });
        let made = run(&Attribute, &params, &inputs).unwrap();
        let file = made["saliency"].files_ending(".arrow").next().unwrap();
        let batch = crate::ipc::read_file(&file.location).unwrap();
        let statuses = crate::ipc::texts(&batch, "status").unwrap();
        let is_map = |status: &Option<String>| matches!(status.as_deref(), Some("ok" | "all_zero"));
        assert!(statuses.iter().all(is_map), "{method}: {statuses:?}");
        assert_eq!(crate::ipc::tensors(&batch, "saliency").unwrap().1, [12; 3], "{method}");
    }
    // Flat images are refused, with no word of another model.
    let (flat, _) = pairs();
    let inputs =
        [("images", &flat["images"]), ("labels", &flat["labels"]), ("checkpoint", &initial["checkpoint"])];
    let error = run(&FinetuneClassify, &recipe(json!({})), &inputs).err().unwrap().to_string();
    assert!(error.contains("takes volumes") && !error.contains("ct-2d"), "{error}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (params, path) in [
        (json!({ "mode": "lora", "batch_norm": "batch" }), "batch_norm"),
        (json!({ "mode": "full", "batch_norm": "batch", "pieces": 2 }), "pieces"),
        (json!({ "mode": "full", "milestones": { "at": [0.75, 0.5] } }), "milestones.at"),
        (json!({ "mode": "full", "milestones": { "at": [1.0] } }), "milestones.at"),
    ] {
        let problems = AnyKind::resolve(&FinetuneClassify, &params).unwrap_err();
        assert_eq!(problems[0].path, path, "{params}");
    }
    let (pairs, initial) = pairs();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let error = run(&FinetuneClassify, &recipe(json!({})), &inputs).err().unwrap();
    assert!(
        matches!(&error, StageError::Failed { .. }) && error.to_string().contains("batch norms"),
        "{error}"
    );
}
