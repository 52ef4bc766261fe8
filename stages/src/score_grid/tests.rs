//! The stage on phantoms, with a residual network whose probe was trained and with a transformer.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipe_attribution::CutClassifier as _;
use pipe_engine::OutputWriter;
use pipe_models::resnet::ResNetConfig;
use pipe_models::{ClipConfig, ClipModel, FoundationModel, ModelConfig, Preprocessor, Trainable};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::network::Networks;
use super::{Place, ScoreGrid};
use crate::compute::Compute;
use crate::finetune::FinetuneClassify;
use crate::model::{DEVICE, Model};
use crate::phantom::IngestPhantom;
use crate::table::{Table, read};
use crate::testing::{Made, run, tree};

/// Phantoms and a classifier that knows its training images.
struct Study {
    data: Made,
    tuned: Made,
}

impl Study {
    fn new(network: Box<dyn FoundationModel>, side: usize) -> Self {
        let params = json!({
            "domain": "medical", "weights": "chest", "task": "finding-chest", "size": 28, "seed": 4,
            "train": 24, "val": 4, "test": 0,
        });
        let data = run(&IngestPhantom, &params, &[]).unwrap();
        let folder = TempDir::new().unwrap();
        let model = Model::new(network, Some(Preprocessor::clip(side)), None);
        model.save(&mut OutputWriter::new(folder.path().to_owned())).unwrap();
        let initial = tree(folder.path(), "checkpoint");
        let inputs = [("images", &data["images"]), ("labels", &data["labels"]), ("checkpoint", &initial)];
        let tuned = run(&FinetuneClassify, &json!({ "mode": "linear_probe", "c": 1000.0 }), &inputs).unwrap();
        Self { data, tuned }
    }

    /// A residual network that ends in a mean.
    fn convolutional() -> Self {
        let config = ResNetConfig { width: 4, blocks: [1, 1, 1, 1], image: 64 };
        Self::new(ModelConfig::ResNet(config.into()).random(3, &DEVICE, Trainable::Frozen).unwrap(), 64)
    }

    fn transformer() -> Self {
        let config = ClipConfig::from_json(
            r#"{"projection_dim": 16,
                "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "image_size": 28, "patch_size": 7},
                "text_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 6}}"#,
        )
        .unwrap();
        Self::new(Box::new(ClipModel::random(&config, 2, &DEVICE, Trainable::Frozen).unwrap()), 28)
    }

    fn score(&self, mut params: Json) -> Result<Made, pipe_engine::StageError> {
        let common = json!({ "split": "train", "confidence": 0.0, "count": 2, "steps": 4, "batch": 3 });
        for (key, value) in common.as_object().unwrap() {
            params.as_object_mut().unwrap().entry(key).or_insert_with(|| value.clone());
        }
        let inputs = [
            ("images", &self.data["images"]),
            ("labels", &self.data["labels"]),
            ("checkpoint", &self.tuned["checkpoint"]),
        ];
        run(&ScoreGrid, &params, &inputs)
    }
}

/// Value or reason by setting, layer and method.
fn values(table: &Table) -> BTreeMap<[String; 3], Vec<Result<f64, String>>> {
    let names = ["metric", "layer", "method"].map(|name| table.as_text(name).unwrap());
    let (value, reason) = (table.float64("value").unwrap(), table.as_text("reason").unwrap());
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in 0..table.rows() {
        let key = [0, 1, 2].map(|name| names[name][row].clone().unwrap());
        found.entry(key).or_default().push(value[row].ok_or_else(|| reason[row].clone().unwrap()));
    }
    found
}

#[test]
fn what_a_head_cannot_see_is_not_pointed_at() {
    let study = Study::convolutional();
    let methods = [
        "gradient",
        "input_x_gradient",
        "integrated_gradients",
        "smooth_input_x_gradient",
        "guided_backpropagation",
        "grad_cam",
        "layer_cam",
    ];
    let made = study.score(json!({ "methods": methods })).unwrap();
    let table = read(&made["scores"]).unwrap();
    let found = values(&table);
    let of = |setting: &str, layer: &str, method: &str| {
        let values = &found[&[setting, layer, method].map(str::to_owned)];
        assert_eq!(values.len(), if setting == "grid_pg" { 8 } else { 4 });
        values.iter().map(|value| *value.as_ref().unwrap()).collect::<Vec<f64>>()
    };
    let all = |values: Vec<f64>, expected: f64| values.iter().all(|value| (value - expected).abs() < 1e-6);
    for method in ["gradient", "input_x_gradient", "integrated_gradients", "guided_backpropagation"] {
        assert!(all(of("di_full", "input", method), 1.0), "{method}");
    }
    // In front of the mean the gradient is the same everywhere.
    assert!(all(of("grid_pg", "final", "gradient"), 0.25));
    // A blur carries evidence into other cells, and the mean gradient of a map knows no places.
    for method in ["smooth_input_x_gradient", "grad_cam"] {
        let layer = if method == "grad_cam" { "middle" } else { "input" };
        assert!(of("di_full", layer, method).iter().all(|value| (0.0..1.0).contains(value)), "{method}");
    }
    for setting in ["grid_pg", "di_part"] {
        let values = of(setting, "input", "input_x_gradient");
        assert!(values.iter().all(|value| (0.0..1.0).contains(value)), "{setting} {values:?}");
    }
    // Nothing passes a ReLU behind the last map.
    let guided = &found[&["grid_pg", "final", "guided_backpropagation"].map(str::to_owned)];
    assert!(guided[0].as_ref().unwrap_err().starts_with("not_applicable: "), "{guided:?}");
    let parameters = table.as_text("parameters").unwrap();
    assert!(parameters[0].as_ref().unwrap().contains(r#""cell":64"#), "{parameters:?}");
    let occluded = study.score(json!({ "methods": ["occlusion"], "layers": ["final"], "aggregates": false }));
    let occluded = values(&read(&occluded.unwrap()["scores"]).unwrap());
    assert_eq!(occluded.values().flatten().filter(|value| value.is_ok()).count(), 8 + 4 + 4);
    let masked = study
        .score(json!({ "methods": ["rise"], "masks": 40, "settings": ["di_full"], "aggregates": false }));
    let masked = read(&masked.unwrap()["scores"]).unwrap();
    assert!(masked.as_text("score").unwrap().iter().all(|score| score.as_deref() == Some("probability")));
    for (key, values) in values(&masked) {
        // Masks know nothing of cells: other cells have an average of the same probabilities.
        assert!(
            values.iter().all(|value| (0.0..1.0).contains(value.as_ref().unwrap())),
            "{key:?} {values:?}"
        );
    }
    let files: Vec<String> = made["aggregates"].files.iter().map(|file| file.path).collect();
    assert_eq!(files.len(), 2 * 9 + 1, "{files:?}");
    let bins = made["aggregates"].files.iter().find(|file| file.path == "aggregates.csv").unwrap();
    let bins = std::fs::read_to_string(&bins.location).unwrap();
    // Two grids stand in the two bins around the middle.
    assert_eq!(bins.lines().filter(|line| line.starts_with("di_full,input,gradient,")).count(), 2, "{bins}");
    let again = study
        .score(json!({ "batch": 1, "methods": ["input_x_gradient", "layer_cam"], "aggregates": false }))
        .unwrap();
    for (key, values) in super::tests::values(&read(&again["scores"]).unwrap()) {
        for (value, before) in values.iter().zip(&found[&key]) {
            let [value, before] = [value, before].map(|value| *value.as_ref().unwrap());
            assert!((value - before).abs() < 1e-4, "{key:?} {value} {before}");
        }
    }
}

#[test]
fn cuts_change_nothing() {
    let study = Study::convolutional();
    let model = Model::load(&study.tuned["checkpoint"], Compute::exact()).unwrap();
    let networks = Networks::new(model, 2).unwrap();
    let pixels = Tensor::randn(0f32, 1.0, (2, 3, 64, 64), &DEVICE).unwrap();
    let plain = networks.model().logits(&pixels, None).unwrap().to_vec2::<f32>().unwrap();
    for place in [Place::Input, Place::Middle, Place::Final] {
        let cut = networks.cut(place).unwrap().unwrap();
        let map = cut.to_last_map(&cut.until_layer(&pixels).unwrap(), None).unwrap();
        let logits = cut.classify(&map).unwrap().to_vec2::<f32>().unwrap();
        for (found, expected) in logits.iter().flatten().zip(plain.iter().flatten()) {
            assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{place:?} {found} {expected}");
        }
    }
}

#[test]
fn a_transformer_sees_smaller_cells_and_has_no_maps() {
    let study = Study::transformer();
    let params = json!({ "methods": ["input_x_gradient", "grad_cam"], "layers": ["input", "final"] });
    let made = study.score(params).unwrap();
    let table = read(&made["scores"]).unwrap();
    let found = values(&table);
    let of = |setting: &str, layer: &str| &found[&[setting, layer, "input_x_gradient"].map(str::to_owned)];
    assert!(of("grid_pg", "input").iter().all(|value| (0.0..=1.0).contains(value.as_ref().unwrap())));
    assert!(of("di_full", "input").iter().all(|value| (value.as_ref().unwrap() - 1.0).abs() < 1e-6));
    assert!(of("di_part", "input")[0].as_ref().unwrap_err().contains("depends on the whole"));
    assert!(of("grid_pg", "final")[0].as_ref().unwrap_err().contains("no convolutional layers"));
    let parameters = table.as_text("parameters").unwrap();
    assert!(parameters[0].as_ref().unwrap().contains(r#""cell":14"#), "{parameters:?}");
    let error = study.score(json!({ "side": 3 })).err().unwrap().to_string();
    assert!(error.contains("has to divide 28"), "{error}");
}
