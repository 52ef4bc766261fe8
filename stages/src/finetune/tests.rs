//! Trainings that are stopped and killed at random steps give what an undisturbed one gives, to the bit.

mod masker;
mod residual;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use pipe_engine::cache::{Digest, Durability, Store};
use pipe_engine::pipeline::CheckpointEvery;
use pipe_engine::{AnyKind, Artifact, Checkpoints, InputArtifact, StageError, StageHost};
use pipe_models::random::Key;
use serde_json::{Value as Json, json};

use super::{FinetuneClassify, FinetuneContrastive, FinetuneVqa};
use crate::checkpoint::Checkpoint;
use crate::compute::Compute;
use crate::evaluate_classify::EvaluateClassify;
use crate::model::Model;
use crate::phantom::IngestPhantom;
use crate::table::read;
use crate::testing::{Made, run, run_hosted};
use crate::tokenizer::TrainTokenizer;

/// What happens to an attempt at a step.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    None,
    /// The run is asked to stop.
    Stop(u64),
    /// The process is gone, here by a panic in the middle of the stage.
    Kill(u64),
}

/// A host that ends the stage, and knows how far it came.
struct Host {
    end: End,
    done: AtomicU64,
    resumed: AtomicU64,
}

impl StageHost for Host {
    fn progress(&self, done: u64, _: u64, unit: &str, _: &[(&str, f64)]) {
        if unit == "steps" {
            self.done.store(done, Ordering::Relaxed);
            assert!(!matches!(self.end, End::Kill(step) if done >= step), "killed");
        }
        if unit == "steps of question types" {
            assert_eq!(self.resumed.load(Ordering::Relaxed), 0, "what was learned before is kept");
        }
    }
    fn log(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        matches!(self.end, End::Stop(step) if self.done.load(Ordering::Relaxed) >= step)
    }
    fn resumed(&self, step: u64) {
        self.resumed.store(step, Ordering::Relaxed);
    }
}

fn digests(made: &Made) -> Vec<(String, Digest)> {
    made.artifacts.iter().map(|(port, artifact)| (port.clone(), artifact.digest)).collect()
}

/// Runs a training undisturbed, then again with ends at random steps until it is through.
fn disturb(kind: &dyn AnyKind, params: &Json, inputs: &[(&str, &Artifact)], steps: u64, seed: u64) {
    let given: BTreeMap<String, Vec<InputArtifact>> = inputs
        .iter()
        .map(|(name, artifact)| {
            let input =
                InputArtifact { axes: BTreeMap::new(), stage: String::new(), artifact: (*artifact).clone() };
            ((*name).to_owned(), vec![input])
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with_cache(&folder.path().join("s"), Durability::Rename, None).unwrap();
    let key = Digest::of(b"an action");
    let attempt = |end: End, every: CheckpointEvery| -> (Option<Result<Made, StageError>>, Host) {
        let host = Host { end, done: AtomicU64::new(0), resumed: AtomicU64::new(0) };
        let checkpoints = Checkpoints::new(store.checkpoints(&key, 2), every);
        let work = || run_hosted(&host, checkpoints, 2, kind, params, given.clone());
        let ended = std::panic::catch_unwind(AssertUnwindSafe(work)).ok();
        (ended, host)
    };
    let (undisturbed, host) = attempt(End::None, CheckpointEvery::Seconds(300));
    let expected = digests(&undisturbed.unwrap().unwrap());
    assert_eq!(host.done.load(Ordering::Relaxed), steps);
    let random = Key(seed);
    let (mut stops, mut kills, mut furthest) = (0, 0, 0);
    let last = loop {
        let draw = 2 * (stops + kills) as u64 + 1;
        // A few steps beyond what is kept, so that each attempt comes a little further.
        let step = furthest + 1 + random.below(draw, 4);
        let (end, every) = match random.below(draw + 1, 3) {
            0 => (End::Stop(step), CheckpointEvery::Seconds(300)),
            1 => (End::Kill(step), CheckpointEvery::Steps(1)),
            // Killed some time after the last checkpoint.
            _ => (End::Kill(step), CheckpointEvery::Steps(2)),
        };
        let (ended, host) = attempt(end, every);
        let kept = store.checkpoints(&key, 2).newest().unwrap().map_or(0, |checkpoint| checkpoint.step);
        assert!(kept >= furthest, "{kept} after {furthest}");
        assert_eq!(host.resumed.load(Ordering::Relaxed), furthest, "it goes on where it stood");
        furthest = kept;
        match ended {
            Some(Ok(made)) => break made,
            Some(Err(StageError::Cancelled)) => stops += 1,
            Some(Err(error)) => panic!("{error}"),
            None => kills += 1,
        }
        assert!(stops + kills < 200);
    };
    assert!(stops >= 1 && kills >= 2, "{stops} stops, {kills} kills");
    println!("{stops} stops and {kills} kills within {steps} steps");
    assert_eq!(digests(&last), expected);
}

fn pairs() -> (Made, Made) {
    let params = json!({ "domain": "medical", "weights": "chest", "task": "finding-chest", "size": 28, "seed": 4, "train": 40, "val": 12, "test": 0 });
    let pairs = run(&IngestPhantom, &params, &[]).unwrap();
    let vocabulary = json!({ "vocab_size": 600 });
    let tokenizer = run(&TrainTokenizer, &vocabulary, &[("text", &pairs["captions"])]).unwrap();
    let size = json!({ "width": 16, "layers": 1, "heads": 2 });
    let params = json!({ "init": "random", "image_size": 28, "patch": 14, "projection": 16, "vision": size, "text": size });
    let initial = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
    (pairs, initial)
}

/// The values of a figure of a training log, in its order.
fn curve(made: &Made, split: &str, metric: &str) -> Vec<f64> {
    let log = read(&made["log"]).unwrap();
    let (splits, metrics) = (log.strings("split").unwrap(), log.strings("metric").unwrap());
    let values = log.float64("value").unwrap();
    (0..log.rows())
        .filter(|row| (splits[*row], metrics[*row]) == (split, metric))
        .filter_map(|row| values[row])
        .collect()
}

#[test]
fn adapters_learn_and_are_merged_into_the_weights_they_adapt() {
    let (pairs, initial) = pairs();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let params = json!({
        "mode": "lora", "lora": { "rank": 4 }, "epochs": 12, "batch": 8, "lr": 1e-2, "head_lr": 1e-2, "seed": 1,
    });
    let trained = run(&FinetuneClassify, &params, &inputs).unwrap();
    let losses = curve(&trained, "train", "loss");
    assert!(losses[11] < 0.9 * losses[0], "{losses:?}");
    let load = |artifact: &Artifact| Model::load(artifact, Compute::exact()).unwrap().network;
    let (before, after) = (load(&initial["checkpoint"]), load(&trained["checkpoint"]));
    assert_eq!(before.model_config(), after.model_config());
    let (before, after) = (before.tensors(), after.tensors());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, tensor) in &before {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let is_adapted = name.contains("q_proj.weight") || name.contains("v_proj.weight");
        let changed = values(tensor) != values(&after[name]);
        assert_eq!(changed, name.starts_with("vision_model.") && is_adapted, "{name}");
    }
    // What was validated while the adapters were apart is what the merged checkpoint says.
    let inputs = [inputs[0], inputs[1], ("checkpoint", &trained["checkpoint"])];
    let evaluated = run(&EvaluateClassify, &json!({ "splits": ["val"] }), &inputs).unwrap();
    let metrics = read(&evaluated["metrics"]).unwrap();
    let (names, classes) = (metrics.strings("metric").unwrap(), metrics.utf8("class").unwrap());
    let row = (0..metrics.rows()).find(|row| names[*row] == "auroc" && classes[*row].is_none()).unwrap();
    let auroc = metrics.float64("value").unwrap()[row].unwrap();
    let best = curve(&trained, "val", "auroc").into_iter().fold(0.0, f64::max);
    assert!((auroc - best).abs() < 1e-6, "{auroc} of the merged checkpoint, {best} while training");
}

#[test]
fn a_probe_of_few_labels_learns_from_these_alone() {
    let (pairs, initial) = pairs();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let head = |params: Json| {
        let trained = run(&FinetuneClassify, &params, &inputs).unwrap();
        Model::load(&trained["checkpoint"], Compute::exact())
            .unwrap()
            .head
            .unwrap()
            .weight
            .to_vec2::<f32>()
            .unwrap()
    };
    let all = head(json!({ "c": 1.0 }));
    assert_eq!(head(json!({ "c": 1.0, "shots": 1000 })), all, "more shots than there are images");
    assert_eq!(head(json!({ "c": 1.0, "share": 1.0 })), all);
    let few = head(json!({ "c": 1.0, "shots": 2 }));
    assert_ne!(few, all);
    assert_ne!(head(json!({ "c": 1.0, "shots": 2, "seed": 1 })), few, "other images");
    let problems = AnyKind::resolve(&FinetuneClassify, &json!({ "shots": 1, "share": 0.5 })).unwrap_err();
    assert_eq!(problems[0].path, "share");
}

#[test]
fn an_image_is_its_own_nearest_neighbour() {
    let (pairs, initial) = pairs();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let evaluate = |params: Json| run(&EvaluateClassify, &params, &inputs);
    let right = |made: &Made| {
        let table = read(&made["predictions"]).unwrap();
        table.bools("correct").unwrap().iter().filter(|right| **right == Some(true)).count()
    };
    let seen = evaluate(json!({ "splits": ["train"], "neighbours": { "k": 1 } })).unwrap();
    assert_eq!(right(&seen), 40);
    let unseen = evaluate(json!({ "splits": ["val"], "neighbours": {} })).unwrap();
    assert!(right(&unseen) < 12);
    let protocols = read(&unseen["metrics"]).unwrap();
    assert_eq!(protocols.utf8("protocol").unwrap()[0].as_deref(), Some("nearest neighbours"));
    let prompts = json!({ "neighbours": {}, "prompts": { "none": ["normal"] } });
    assert_eq!(AnyKind::resolve(&EvaluateClassify, &prompts).unwrap_err()[0].path, "neighbours");
}

#[test]
fn a_training_ends_when_epochs_bring_nothing() {
    let (pairs, initial) = pairs();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    // A rate that moves nothing: every epoch is as good as the first.
    let still = |more: Json| {
        let mut params = json!({ "mode": "full", "epochs": 9, "batch": 20, "lr": 1e-9, "head_lr": 1e-9 });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        curve(&run(&FinetuneClassify, &params, &inputs).unwrap(), "val", "auroc")
    };
    let scores = still(json!({ "patience": 3 }));
    let best = scores.iter().copied().fold(0.0, f64::max);
    let first = scores.iter().position(|score| *score == best).unwrap();
    assert!(scores.len() == first + 4 && scores.len() < 9, "{scores:?}");
    assert_eq!(still(json!({})).len(), 9);
}

#[test]
fn with_decay_lower_layers_move_less() {
    let (pairs, _) = pairs();
    let tokenizer =
        run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &pairs["captions"])]).unwrap();
    let size = json!({ "width": 16, "layers": 3, "heads": 2 });
    let params = json!({ "init": "random", "image_size": 28, "patch": 14, "projection": 16, "vision": size, "text": size });
    let initial = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let weights = |made: &Made| {
        let file = made["checkpoint"].files.iter().find(|file| file.path == "model.safetensors").unwrap();
        candle_core::safetensors::load(&file.location, &candle_core::Device::Cpu).unwrap()
    };
    let before = weights(&initial);
    // How far the matrices of each block of the image tower went, together.
    let moved = |decay: f64| -> Vec<f32> {
        let params = json!({ "mode": "full", "epochs": 2, "batch": 10, "lr": 1e-3, "layer_decay": decay });
        let after = weights(&run(&FinetuneClassify, &params, &inputs).unwrap());
        let of_block = |block: usize| {
            let own = |name: &&String| {
                name.contains(&format!("vision_model.encoder.layers.{block}.")) && name.ends_with("weight")
            };
            let step = |name: &String| {
                let difference = (&after[name] - &before[name]).unwrap().sqr().unwrap();
                difference.sum_all().unwrap().to_scalar::<f32>().unwrap()
            };
            before.keys().filter(own).map(step).sum::<f32>().sqrt()
        };
        (0..3).map(of_block).collect()
    };
    let (even, decayed) = (moved(1.0), moved(0.1));
    assert!(even.iter().all(|way| *way > 0.0) && even[0] > 0.3 * even[2], "{even:?}");
    assert!(decayed[0] < 0.3 * decayed[1] && decayed[1] < 0.3 * decayed[2], "{decayed:?}");
}

#[test]
fn a_tower_without_attention_has_nothing_to_adapt() {
    let (pairs, _) = pairs();
    let config = json!({ "image": 64, "width": 8, "blocks": [1, 1, 1, 1] });
    let params = json!({ "init": "random", "architecture": "resnet50", "config": config });
    let initial = run(&Checkpoint, &params, &[]).unwrap();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let error = run(&FinetuneClassify, &json!({ "mode": "lora" }), &inputs).err().unwrap().to_string();
    assert!(error.contains("no query and value weights"), "{error}");
}

#[test]
fn a_contrastive_training_survives_any_end() {
    let (pairs, initial) = pairs();
    let inputs = [
        ("images", &pairs["images"]),
        ("captions", &pairs["captions"]),
        ("checkpoint", &initial["checkpoint"]),
    ];
    for seed in [1, 2] {
        let params = json!({ "epochs": 4, "batch": 8, "lr": 2e-3, "seed": seed });
        disturb(&FinetuneContrastive, &params, &inputs, 20, seed);
    }
}

#[test]
fn adapters_survive_any_end() {
    let (pairs, initial) = pairs();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    let params = json!({
        "mode": "lora", "lora": { "rank": 2, "alpha": 4.0 }, "epochs": 4, "batch": 9, "lr": 2e-2, "seed": 5,
        "augment": { "flip": true, "shift": 2 },
    });
    disturb(&FinetuneClassify, &params, &inputs, 20, 5);
}

#[test]
fn a_classifier_with_its_best_epoch_survives_any_end() {
    let (pairs, initial) = pairs();
    let inputs =
        [("images", &pairs["images"]), ("labels", &pairs["labels"]), ("checkpoint", &initial["checkpoint"])];
    for seed in [3, 4] {
        let params = json!({
            "mode": "full", "epochs": 4, "batch": 9, "lr": 2e-3, "seed": seed,
            "augment": { "flip": true, "shift": 2 },
        });
        disturb(&FinetuneClassify, &params, &inputs, 20, seed);
    }
}

#[test]
fn answering_goes_on_after_an_end() {
    let params = json!({
        "domain": "medical", "seed": 4, "size": 28, "train": 24, "val": 8, "test": 0, "questions": 2, "weights": "chest"
    });
    let data = run(&IngestPhantom, &params, &[]).unwrap();
    let (_, initial) = pairs();
    let (images, questions, checkpoint) = (&data["images"], &data["questions"], &initial["checkpoint"]);
    let size = json!({ "hidden": 8, "word_width": 6, "autoencoder": "none", "batch": 16, "epochs": 6, "type_epochs": 1 });
    let params = |more: Json| {
        let mut params = size.clone();
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    // The meta-learned network has running statistics.
    let own = [("images", images), ("questions", questions)];
    disturb(&FinetuneVqa, &params(json!({ "keep": "best" })), &own, 18, 1);
    let with = [("images", images), ("questions", questions), ("checkpoint", checkpoint)];
    disturb(&FinetuneVqa, &params(json!({ "method": "qcr", "encoder": "tuned" })), &with, 18, 2);
    let adamax = json!({ "method": "qcr", "encoder": "tuned", "encoder_rule": "adamax", "encoder_lr": 1e-4 });
    disturb(&FinetuneVqa, &params(adamax), &with, 18, 4);
    disturb(&FinetuneVqa, &params(json!({ "method": "cross_modal", "heads": 2 })), &with, 18, 3);
}
