//! Pre-trained, and used where the published weights are.

use std::collections::BTreeMap;

use pipe_engine::{Artifact, InputArtifact};
use serde_json::{Value as Json, json};

use super::{PretrainAutoencoder, PretrainMeta};
use crate::finetune::FinetuneVqa;
use crate::phantom::IngestPhantom;
use crate::table::{Table, read};
use crate::testing::{Made, run, run_on, run_with};

fn phantoms() -> Made {
    let params = json!({
        "domain": "medical", "seed": 4, "size": 28, "train": 24, "val": 6, "test": 4, "questions": 3, "weights": "chest",
        "task": "finding-chest", "schema": "vqa_rad"
    });
    run(&IngestPhantom, &params, &[]).unwrap()
}

/// The values of a metric of a split, epoch by epoch.
fn curve(log: &Table, split: &str, metric: &str) -> Vec<f64> {
    let (splits, metrics) = (log.strings("split").unwrap(), log.strings("metric").unwrap());
    let values = log.float64("value").unwrap();
    let wanted = (0..log.rows()).filter(|row| splits[*row] == split && metrics[*row] == metric);
    wanted.filter_map(|row| values[row]).collect()
}

const TASKS: usize = 20;

fn small_meta(more: &Json) -> Json {
    let mut params = json!({ "ways": 2, "shots": 1, "tasks": 2, "steps": 3, "inner_steps": 2 });
    for (name, value) in more.as_object().unwrap() {
        params[name] = value.clone();
    }
    params
}

#[test]
fn learned_weights_stand_where_published_ones_do() {
    let data = phantoms();
    let images = [("images", &data["images"])];
    let params = json!({ "epochs": 2, "batch": 8 });
    let autoencoder = run(&PretrainAutoencoder, &params, &images).unwrap();
    let log = read(&autoencoder["log"]).unwrap();
    for split in ["train", "val"] {
        let losses = curve(&log, split, "loss");
        assert!(losses.len() == 2 && losses[1] < losses[0], "{split}: {losses:?}");
    }
    let with_labels = [("images", &data["images"]), ("labels", &data["labels"])];
    let meta = run(&PretrainMeta, &small_meta(&json!({})), &with_labels).unwrap();

    // One step of a rate that moves nothing: what was given is what is kept.
    let list = |artifacts: &[&Artifact]| -> Vec<InputArtifact> {
        let input = |artifact: &&Artifact| InputArtifact {
            axes: BTreeMap::new(),
            stage: String::new(),
            artifact: (*artifact).clone(),
        };
        artifacts.iter().map(input).collect()
    };
    let inputs = BTreeMap::from([
        ("images".to_owned(), list(&[&data["images"]])),
        ("questions".to_owned(), list(&[&data["questions"]])),
        ("weights".to_owned(), list(&[&autoencoder["weights"], &meta["weights"]])),
    ]);
    let params = json!({ "hidden": 8, "word_width": 4, "autoencoder": "frozen", "epochs": 1, "batch": 4096, "lr": 1e-9 });
    let trained = run_with(2, &FinetuneVqa, &params, inputs).unwrap();
    let tensors = |made: &Made, port: &str, file: &str| {
        let found = made[port].files.iter().find(|one| one.path == file).unwrap();
        candle_core::safetensors::load(&found.location, &candle_core::Device::Cpu).unwrap()
    };
    let model = tensors(&trained, "model", "model.safetensors");
    for (made, file, prefix) in
        [(&autoencoder, "autoencoder.safetensors", "ae_v_emb"), (&meta, "meta.safetensors", "maml_v_emb")]
    {
        let own = tensors(made, "weights", file);
        assert!(own.contains_key("conv1.weight"), "{:?}", own.keys());
        for (name, tensor) in own {
            let kept = &model[&format!("{prefix}.{name}")];
            let distance = (kept - tensor).unwrap().abs().unwrap().max_all().unwrap();
            assert!(distance.to_scalar::<f32>().unwrap() < 1e-6, "{prefix}.{name}");
        }
    }
}

#[test]
fn tasks_are_of_labels_columns_or_answers() {
    let data = phantoms();
    let [images, labels, questions] = ["images", "labels", "questions"].map(|port| (port, &data[port]));
    let learn = |params: &Json, inputs: &[(&str, &Artifact)]| run(&PretrainMeta, &small_meta(params), inputs);
    let second = learn(&json!({ "derivative": "second", "steps": 1 }), &[images, labels]).unwrap();
    let first = learn(&json!({ "steps": 1 }), &[images, labels]).unwrap();
    assert_ne!(first["weights"].digest, second["weights"].digest);
    let asked = learn(&json!({ "classes": [] }), &[images, questions]).unwrap();
    let accuracy = curve(&read(&asked["log"]).unwrap(), "train", "accuracy");
    assert!(accuracy.len() == 1 && (0.0..=1.0).contains(&accuracy[0]), "{accuracy:?}");
    // A share of the images of so many tasks.
    let right = accuracy[0] * (2 * TASKS) as f64;
    assert!((right - right.round()).abs() < 1e-9, "{right}");
    let error = learn(&json!({ "classes": ["colour"] }), &[images]).err().unwrap().to_string();
    assert!(error.contains("no column `colour`"), "{error}");
    let error = learn(&json!({ "shots": 500 }), &[images, labels]).err().unwrap().to_string();
    assert!(error.contains("0 are large enough"), "{error}");
}

#[test]
fn weights_do_not_depend_on_the_number_of_threads() {
    let data = phantoms();
    let inputs = [("images", &data["images"]), ("labels", &data["labels"])];
    let digests = [1, 3].map(|threads| {
        let meta = run_on(threads, &PretrainMeta, &small_meta(&json!({})), &inputs).unwrap();
        let params = json!({ "epochs": 1, "batch": 8 });
        let autoencoder = run_on(threads, &PretrainAutoencoder, &params, &inputs[..1]).unwrap();
        [meta["weights"].digest, autoencoder["weights"].digest]
    });
    assert_eq!(digests[0], digests[1]);
}
