//! The stage on maps of two methods over phantoms.

use pipe_engine::Artifact;
use serde_json::{Value, json};

use super::CompareSaliency;
use crate::attribute::Attribute;
use crate::checkpoint::Checkpoint;
use crate::corrupt::Corrupt;
use crate::finetune::FinetuneClassify;
use crate::ipc::{read_file, tensors, texts};
use crate::phantom::IngestPhantom;
use crate::table::{Table, read};
use crate::testing::{Made, run};
use crate::tokenizer::TrainTokenizer;

struct Study {
    data: Made,
    tuned: Made,
}

impl Study {
    fn new() -> Self {
        let params = json!({
            "domain": "medical", "weights": "chest", "task": "finding-chest", "size": 28, "seed": 4,
            "train": 24, "val": 0, "test": 10,
        });
        let data = run(&IngestPhantom, &params, &[]).unwrap();
        let size = json!({ "width": 16, "layers": 1, "heads": 2 });
        let params = json!({ "init": "random", "image_size": 28, "patch": 7, "projection": 8, "vision": size, "text": size });
        let text = [("text", &data["captions"])];
        let vocabulary = run(&TrainTokenizer, &json!({ "vocab_size": 300 }), &text).unwrap();
        let initial = run(&Checkpoint, &params, &[("tokenizer", &vocabulary["tokenizer"])]).unwrap();
        let inputs = [
            ("images", &data["images"]),
            ("labels", &data["labels"]),
            ("checkpoint", &initial["checkpoint"]),
        ];
        let params = json!({ "mode": "full", "epochs": 2, "batch": 8 });
        let tuned = run(&FinetuneClassify, &params, &inputs).unwrap();
        Self { data, tuned }
    }

    fn maps(&self, images: &Artifact, params: Value) -> Made {
        let inputs =
            [("images", images), ("labels", &self.data["labels"]), ("checkpoint", &self.tuned["checkpoint"])];
        run(&Attribute, &params, &inputs).unwrap()
    }
}

fn value(metrics: &Table, name: &str) -> f64 {
    let row = metrics.strings("metric").unwrap().iter().position(|metric| *metric == name).unwrap();
    metrics.float64("value").unwrap()[row].unwrap()
}

fn compare(first: &Made, second: &Made, params: Value) -> (Table, Made) {
    let inputs = [("first", &first["saliency"]), ("second", &second["saliency"])];
    let made = run(&CompareSaliency, &params, &inputs).unwrap();
    (read(&made["metrics"]).unwrap(), made)
}

#[test]
fn maps_are_compared_and_subtracted() {
    let study = Study::new();
    let images = &study.data["images"];
    let first = study.maps(images, json!({ "method": "input_x_gradient", "limit": 8 }));
    let other = study.maps(images, json!({ "method": "occlusion", "limit": 8 }));

    let (same, made) = compare(&first, &first, json!({}));
    for name in ["spearman", "top_10_percent_iou", "ssim", "same_target"] {
        assert!((value(&same, name) - 1.0).abs() < 1e-9, "{name}");
    }
    let batch = read_file(&made["differences"].files_ending(".arrow").next().unwrap().location).unwrap();
    assert!(tensors(&batch, "saliency").unwrap().0.iter().all(|value| *value == 0.0));

    let (different, made) = compare(&first, &other, json!({ "absolute": true }));
    let correlation = value(&different, "spearman");
    assert!(correlation < 0.95 && correlation > -0.95, "{correlation}");
    assert_eq!(different.strings("method").unwrap()[0], "input_x_gradient / occlusion");
    let rows = read(&made["similarities"]).unwrap();
    assert_eq!(rows.rows(), 8 * 3);
    let of_rows: Vec<f64> = (0..rows.rows())
        .filter(|row| rows.strings("metric").unwrap()[*row] == "spearman")
        .filter_map(|row| rows.float64("value").unwrap()[row])
        .collect();
    assert!((of_rows.iter().sum::<f64>() / 8.0 - correlation).abs() < 1e-9);

    let batch = read_file(&made["differences"].files_ending(".arrow").next().unwrap().location).unwrap();
    let (values, shape) = tensors(&batch, "saliency").unwrap();
    assert_eq!(shape, [28, 28]);
    // Both maps are shares of one.
    for map in values.chunks(28 * 28) {
        assert!(map.iter().sum::<f32>().abs() < 1e-4);
        assert!(map.iter().map(|value| value.abs()).sum::<f32>() <= 2.0 + 1e-4);
    }
    assert!(texts(&batch, "status").unwrap().iter().all(|status| status.as_deref() == Some("ok")));
    // The other way round the difference changes its sign, and similarities stay.
    let (back, reversed) = compare(&other, &first, json!({ "absolute": true }));
    assert!((value(&back, "spearman") - correlation).abs() < 1e-12);
    let batch = read_file(&reversed["differences"].files_ending(".arrow").next().unwrap().location).unwrap();
    let negated = tensors(&batch, "saliency").unwrap().0;
    assert!(values.iter().zip(negated).all(|(a, b)| (a + b).abs() < 1e-7));
}

#[test]
fn maps_of_corrupted_images_are_less_alike_the_more_they_are_corrupted() {
    let study = Study::new();
    let params = json!({ "method": "input_x_gradient", "limit": 8 });
    let clean = study.maps(&study.data["images"], params.clone());
    let likeness: Vec<f64> = [0, 1, 5]
        .map(|level| {
            let noise = json!({ "corruption": "noise", "level": level });
            let corrupted = run(&Corrupt, &noise, &[("images", &study.data["images"])]).unwrap();
            let maps = study.maps(&corrupted["images"], params.clone());
            value(&compare(&clean, &maps, json!({})).0, "spearman")
        })
        .to_vec();
    assert!(
        (likeness[0] - 1.0).abs() < 1e-9 && likeness[1] < 1.0 && likeness[2] < likeness[1],
        "{likeness:?}"
    );
}

#[test]
fn maps_of_other_images_are_refused() {
    let study = Study::new();
    let images = &study.data["images"];
    let first = study.maps(images, json!({ "method": "input_x_gradient", "limit": 4 }));
    let params = json!({ "method": "input_x_gradient", "splits": ["train"], "limit": 4 });
    let other = study.maps(images, params);
    let inputs = [("first", &first["saliency"]), ("second", &other["saliency"])];
    let error = run(&CompareSaliency, &json!({}), &inputs).err().unwrap().to_string();
    assert!(error.contains("it shares no image with `first`: it explains 4 of them"), "{error}");
    // Fewer maps are compared as far as there are any.
    let fewer = study.maps(images, json!({ "method": "input_x_gradient", "limit": 2 }));
    let (metrics, _) = compare(&first, &fewer, json!({}));
    assert_eq!(value(&metrics, "left_out"), 2.0);
}
