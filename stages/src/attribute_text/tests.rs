//! The stage on phantoms and a tiny CLIP with random weights.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{Array, RecordBatch};
use serde_json::{Value as Json, json};

use super::AttributeText;
use crate::checkpoint::Checkpoint;
use crate::ipc::{read_file, texts};
use crate::phantom::IngestPhantom;
use crate::report::Report;
use crate::testing::{Made, run};
use crate::tokenizer::TrainTokenizer;

struct Study {
    phantoms: Made,
    checkpoint: Made,
}

impl Study {
    fn new() -> Self {
        let phantoms = run(&IngestPhantom, &json!({ "size": 28, "train": 24, "test": 6 }), &[]).unwrap();
        let text = [("text", &phantoms["captions"])];
        let tokenizer = run(&TrainTokenizer, &json!({ "vocab_size": 400 }), &text).unwrap();
        let tower = json!({ "width": 16, "layers": 2, "heads": 2 });
        let params = json!({
            "init": "random", "image_size": 28, "patch": 14, "vision": tower, "text": tower, "context": 128,
            "projection": 16,
        });
        let checkpoint = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
        Self { phantoms, checkpoint }
    }

    fn explain(&self, params: &Json) -> Words {
        let inputs = [
            ("captions", &self.phantoms["captions"]),
            ("images", &self.phantoms["images"]),
            ("checkpoint", &self.checkpoint["checkpoint"]),
        ];
        let made = run(&AttributeText, params, &inputs).unwrap();
        Words(read_file(&made["words"].single_file().unwrap().location).unwrap())
    }
}

struct Words(RecordBatch);

impl Words {
    fn numbers(&self, name: &str) -> Vec<Option<f32>> {
        self.0.column_by_name(name).unwrap().as_primitive::<Float32Type>().iter().collect()
    }

    fn text(&self, name: &str) -> Vec<String> {
        texts(&self.0, name).unwrap().into_iter().map(Option::unwrap_or_default).collect()
    }

    fn values(&self) -> Vec<Vec<f32>> {
        let lists = self.0.column_by_name("values").unwrap().as_list::<i32>();
        (0..lists.len()).map(|row| lists.value(row).as_primitive::<Float32Type>().values().to_vec()).collect()
    }
}

#[test]
fn words_are_named_with_their_place_and_values() {
    let study = Study::new();
    for method in ["input_x_gradient", "integrated_gradients", "occlusion", "shapley_values", "kernel_shap"] {
        let of = |batch: i64| study.explain(&json!({ "method": method, "steps": 30, "batch": batch }));
        let words = of(4);
        let captions = words.text("caption");
        assert!(!captions.is_empty());
        let metadata = words.0.schema().metadata().clone();
        assert_eq!((metadata["method"].as_str(), metadata["baseline"].as_str()), (method, "word"));
        let tokens = words.0.column_by_name("tokens").unwrap().as_list::<i32>();
        let offsets = words.0.column_by_name("offsets").unwrap().as_list::<i32>();
        let (values, statuses) = (words.values(), words.text("status"));
        let (scores, baselines) = (words.numbers("score"), words.numbers("score_baseline"));
        for (row, caption) in captions.iter().enumerate() {
            if method == "shapley_values" && caption.split_whitespace().count() > 16 {
                assert!(statuses[row].starts_with("not_applicable: "), "{}", statuses[row]);
                assert!(tokens.is_null(row) && scores[row].is_none());
                continue;
            }
            assert_eq!(statuses[row], "ok", "{method} of `{caption}`");
            let of_row = tokens.value(row);
            let of_row = of_row.as_string::<i32>();
            let places = offsets.value(row);
            let places = places.as_primitive::<Int32Type>();
            for word in 0..of_row.len() {
                let [start, end] = [2 * word, 2 * word + 1].map(|at| places.value(at) as usize);
                assert_eq!(&caption[start..end], of_row.value(word));
            }
            let expected: Vec<&str> = caption.split_whitespace().collect();
            assert_eq!(of_row.iter().flatten().collect::<Vec<_>>(), expected, "`{caption}`");
            assert_eq!(values[row].len(), expected.len());
            // Marks and padding do not move, so that words hold the whole difference of scores.
            if let (true, Some(baseline)) = (method != "input_x_gradient", baselines[row]) {
                let sum: f32 = values[row].iter().sum();
                let way = scores[row].unwrap() - baseline;
                assert!((sum - way).abs() < 1e-2 * way.abs().max(1.0), "{method}: {sum} {way}");
            }
        }
        let scale = values.iter().flatten().fold(0.0f32, |scale, value| scale.max(value.abs()));
        for (row, other) in values.iter().flatten().zip(of(3).values().iter().flatten()) {
            assert!((row - other).abs() <= 1e-3 * scale, "{method}: another batch, other values");
        }
    }
}

/// One point of a path tells little; the steps are doubled for the captions that need it.
#[test]
fn steps_are_doubled_until_words_hold_the_difference_of_scores() {
    let study = Study::new();
    let misses = |most: Json| -> usize {
        let words = study.explain(&json!({ "quadrature": "riemann_left", "steps": 1, "most_steps": most }));
        let [scores, baselines, gaps] =
            ["score", "score_baseline", "completeness_gap"].map(|name| words.numbers(name));
        let relative = |row: usize| gaps[row].unwrap() / (scores[row].unwrap() - baselines[row].unwrap());
        (0..scores.len()).filter(|row| relative(*row).abs() > 0.05).count()
    };
    // Where the scores hardly differ no number of steps is enough.
    let (one, doubled) = (misses(Json::Null), misses(json!(1024)));
    assert!(one > 2 && doubled < 2, "{one}, {doubled}");
}

#[test]
fn limits_and_controls_are_kept() {
    let study = Study::new();
    let base = json!({ "method": "occlusion", "limit": 3 });
    let words = study.explain(&base);
    assert_eq!(words.0.num_rows(), 3);
    let control =
        study.explain(&json!({ "method": "occlusion", "limit": 3, "random_weights": true, "seed": 9 }));
    assert_eq!(control.text("id"), words.text("id"));
    assert_ne!(control.values(), words.values());
    let none = study.explain(&json!({ "splits": ["val"] }));
    assert_eq!((none.0.num_rows(), none.0.num_columns()), (0, 16));
}

#[test]
fn the_report_tints_the_words() {
    let study = Study::new();
    let inputs = [
        ("captions", &study.phantoms["captions"]),
        ("images", &study.phantoms["images"]),
        ("checkpoint", &study.checkpoint["checkpoint"]),
    ];
    let made = run(&AttributeText, &json!({ "method": "occlusion" }), &inputs).unwrap();
    let page = run(&Report, &json!({ "max_gallery": 3 }), &[("words", &made["words"])]).unwrap();
    let page = std::fs::read_to_string(&page["page"].file("index.html").unwrap().location).unwrap();
    assert!(page.contains("Shown are the first 3 of ") && page.contains("occlusion"));
    assert!(page.matches("<span style=\"background:rgb(").count() >= 3);
}

#[test]
fn captions_without_their_image_say_so() {
    let study = Study::new();
    let other = run(&IngestPhantom, &json!({ "size": 28, "train": 4, "test": 2 }), &[]).unwrap();
    let inputs = [
        ("captions", &study.phantoms["captions"]),
        ("images", &other["images"]),
        ("checkpoint", &study.checkpoint["checkpoint"]),
    ];
    let made = run(&AttributeText, &json!({ "method": "occlusion" }), &inputs).unwrap();
    let words = Words(read_file(&made["words"].single_file().unwrap().location).unwrap());
    let missing = words.text("status").into_iter().filter(|status| status.starts_with("not_applicable: "));
    assert!(missing.count() > 0);
}

/// Shares of words are not negative and sum to one; without a layer they are others.
#[test]
fn relevance_along_attention_is_shared_among_words() {
    let study = Study::new();
    let of = |batch: i64, more: Json| {
        let mut params = json!({ "method": "attention_relevance", "batch": batch });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        study.explain(&params)
    };
    let words = of(4, json!({}));
    assert!(words.text("status").iter().all(|status| status == "ok"));
    assert_eq!(words.0.schema().metadata()["baseline"], "none");
    for values in words.values() {
        assert!(values.iter().all(|value| *value >= 0.0));
        assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{values:?}");
    }
    for (all, single) in words.values().iter().flatten().zip(of(1, json!({})).values().iter().flatten()) {
        assert!((all - single).abs() < 1e-4);
    }
    assert_ne!(of(4, json!({ "last_layers": 1 })).values(), words.values());
    assert_eq!(of(4, json!({ "last_layers": 2 })).values(), words.values());
    let control = of(4, json!({ "random_weights": true, "seed": 9 }));
    assert_ne!(control.values(), words.values());
}

/// Without noise an average over noisy copies is the method itself; with it it is another, of every caption its own.
#[test]
fn wrappers_stand_around_words() {
    let study = Study::new();
    for method in ["input_x_gradient", "occlusion"] {
        let of = |more: Json| {
            let mut params = json!({ "method": method, "draws": 3 });
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            study.explain(&params)
        };
        let near = |ours: &[Vec<f32>], others: &[Vec<f32>]| {
            let scale = others.iter().flatten().fold(0.0f32, |scale, value| scale.max(value.abs()));
            let pairs = ours.iter().flatten().zip(others.iter().flatten());
            pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) < 1e-3 * scale
        };
        let plain = of(json!({})).values();
        assert!(near(&of(json!({ "wrap": ["noise_mean"], "noise": 0.0 })).values(), &plain));
        let noisy = of(json!({ "wrap": ["noise_mean", "absolute"], "noise": 0.2 }));
        assert_eq!(noisy.0.schema().metadata()["wrap"], "noise_mean, absolute");
        assert!(!near(&noisy.values(), &plain) && noisy.values().iter().flatten().all(|value| *value >= 0.0));
        let single = of(json!({ "wrap": ["noise_mean", "absolute"], "noise": 0.2, "batch": 1 }));
        assert!(near(&single.values(), &noisy.values()), "{method}");
    }
    let kind = |params: Json| pipe_engine::AnyKind::resolve(&AttributeText, &params).err().unwrap();
    assert!(kind(json!({ "wrap": ["smoothing"] }))[0].message.contains("grid"));
    let relevance = kind(json!({ "wrap": ["absolute"], "method": "attention_relevance" }));
    assert!(relevance[0].message.contains("share of each word"));
}
