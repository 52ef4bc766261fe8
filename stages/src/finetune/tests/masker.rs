//! The stage `masker` and the maps of what it trains, on phantoms.

use candle_core::Device;
use pipe_engine::{Artifact, OutputWriter, StageError};
use pipe_models::resnet::ResNetConfig;
use pipe_models::{ModelConfig, Preprocessor, Trainable};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::attribute::Attribute;
use crate::finetune::{FinetuneClassify, TrainMasker};
use crate::ipc::{read_file, tensors, texts};
use crate::model::Model;
use crate::phantom::IngestPhantom;
use crate::table::read;
use crate::testing::{Made, run, tree};

struct Study {
    data: Made,
    tuned: Made,
}

impl Study {
    fn new(seed: u64) -> Self {
        let params = json!({
            "domain": "medical", "weights": "chest", "task": "finding-chest", "size": 28, "seed": 4,
            "train": 24, "val": 0, "test": 4,
        });
        let data = run(&IngestPhantom, &params, &[]).unwrap();
        let config = ResNetConfig { width: 4, blocks: [1, 1, 1, 1], image: 64 };
        let network =
            ModelConfig::ResNet(config.into()).random(seed, &Device::Cpu, Trainable::Frozen).unwrap();
        let folder = TempDir::new().unwrap();
        let model = Model::new(network, Some(Preprocessor::clip(64)), None);
        model.save(&mut OutputWriter::new(folder.path().to_owned())).unwrap();
        let initial = tree(folder.path(), "checkpoint");
        let inputs = [("images", &data["images"]), ("labels", &data["labels"]), ("checkpoint", &initial)];
        let tuned = run(&FinetuneClassify, &json!({ "mode": "linear_probe", "c": 1000.0 }), &inputs).unwrap();
        Self { data, tuned }
    }

    fn inputs(&self) -> [(&'static str, &Artifact); 3] {
        [
            ("images", &self.data["images"]),
            ("labels", &self.data["labels"]),
            ("checkpoint", &self.tuned["checkpoint"]),
        ]
    }

    fn masker(&self, params: &Json) -> Made {
        run(&TrainMasker, params, &self.inputs()).unwrap()
    }

    fn explain(&self, masker: Option<&Artifact>, mut params: Json) -> Result<Made, StageError> {
        params["method"] = json!("trained_saliency");
        let mut inputs = self.inputs().to_vec();
        inputs.extend(masker.map(|masker| ("masker", masker)));
        run(&Attribute, &params, &inputs)
    }
}

#[test]
fn a_masker_learns_and_explains_in_one_pass() {
    let study = Study::new(3);
    let made =
        study.masker(&json!({ "selector_epochs": 2, "epochs": 4, "batch": 8, "lr": 0.01, "width": 8 }));
    let log = read(&made["log"]).unwrap();
    let losses: Vec<f64> = log.float64("value").unwrap().iter().copied().flatten().collect();
    assert_eq!(losses.len(), 6);
    assert!(losses[5] < losses[2], "{losses:?}");
    let maps = |batch: i64| {
        let made = study.explain(Some(&made["masker"]), json!({ "batch": batch })).unwrap();
        read_file(&made["saliency"].single_file().unwrap().location).unwrap()
    };
    let found = maps(32);
    let (values, shape) = tensors(&found, "saliency").unwrap();
    assert_eq!((found.num_rows(), shape.as_slice()), (4, [64, 64].as_slice()));
    assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
    assert!(values.iter().any(|value| *value != values[0]));
    assert!(texts(&found, "target_kind").unwrap().iter().all(|kind| kind.as_deref() == Some("lead")));
    let again = maps(3);
    let again = tensors(&again, "saliency").unwrap().0;
    for (one, other) in values.iter().zip(again) {
        assert!((one - other).abs() < 1e-4, "another batch: {one} {other}");
    }
}

#[test]
fn a_masker_is_of_one_classifier() {
    let study = Study::new(3);
    let made = study.masker(&json!({ "selector_epochs": 0, "epochs": 1, "batch": 24, "width": 4 }));
    let error = study.explain(None, json!({})).err().unwrap().to_string();
    assert!(error.contains("a stage `masker`"), "{error}");
    let error = Study::new(4).explain(Some(&made["masker"]), json!({})).err().unwrap().to_string();
    assert!(error.contains("another classifier"), "{error}");
    let control = study.explain(Some(&made["masker"]), json!({ "random_weights": true })).unwrap();
    let control = read_file(&control["saliency"].single_file().unwrap().location).unwrap();
    for status in texts(&control, "status").unwrap().into_iter().flatten() {
        assert!(status.starts_with("not_applicable: ") && status.contains("random weights"), "{status}");
    }
    // What stands for the network is no file of its own.
    let error = study.explain(Some(&study.tuned["checkpoint"]), json!({})).err().unwrap().to_string();
    assert!(error.contains("masker.json"), "{error}");
}
