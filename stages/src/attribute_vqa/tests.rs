//! The stage on phantom questions and tiny models.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{Array, RecordBatch};
use serde_json::{Value as Json, json};

use super::AttributeVqa;
use crate::checkpoint::Checkpoint;
use crate::evaluate_vqa::EvaluateVqa;
use crate::finetune::FinetuneVqa;
use crate::ipc::{read_file, tensors, texts};
use crate::phantom::IngestPhantom;
use crate::report::Report;
use crate::score::Score;
use crate::table::{Table, read};
use crate::testing::{Made, run};
use crate::tokenizer::TrainTokenizer;

/// Phantom questions, and a small CLIP with random weights.
struct Study {
    data: Made,
    initial: Made,
}

impl Study {
    fn new() -> Self {
        let params = json!({
            "domain": "medical", "seed": 4, "size": 28, "train": 30, "val": 4, "test": 4, "questions": 2,
            "weights": "chest"
        });
        let data = run(&IngestPhantom, &params, &[]).unwrap();
        let tokenizer =
            run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &data["captions"])]).unwrap();
        let size = json!({ "width": 16, "layers": 1, "heads": 2 });
        let params = json!({
            "init": "random", "image_size": 28, "patch": 14, "projection": 16, "vision": size, "text": size,
            "context": 64,
        });
        let initial = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
        Self { data, initial }
    }

    /// A model that has seen the training questions a few times.
    fn train(&self, method: &str, more: &Json) -> Made {
        let mut params = json!({
            "method": method, "hidden": 16, "word_width": 8, "autoencoder": "none", "epochs": 3, "lr": 0.02,
            "batch": 16, "heads": 4, "layers": 1, "type_epochs": 2, "type_lr": 0.01
        });
        for (name, value) in more.as_object().unwrap() {
            params[name] = value.clone();
        }
        let mut inputs = vec![("images", &self.data["images"]), ("questions", &self.data["questions"])];
        if params["without_checkpoint"] == json!(true) {
            params.as_object_mut().unwrap().remove("without_checkpoint");
        } else {
            inputs.push(("checkpoint", &self.initial["checkpoint"]));
        }
        run(&FinetuneVqa, &params, &inputs).unwrap()
    }

    fn inputs<'a>(&'a self, model: &'a Made) -> [(&'static str, &'a pipe_engine::Artifact); 3] {
        [("questions", &self.data["questions"]), ("images", &self.data["images"]), ("model", &model["model"])]
    }

    fn explain(&self, model: &Made, params: &Json) -> Explained {
        let made = run(&AttributeVqa, params, &self.inputs(model)).unwrap();
        let file = |port: &str| read_file(&made[port].single_file().unwrap().location).unwrap();
        Explained {
            maps: file("saliency"),
            words: file("words"),
            shares: read(&made["shares"]).unwrap(),
            made,
        }
    }
}

struct Explained {
    maps: RecordBatch,
    words: RecordBatch,
    shares: Table,
    made: Made,
}

fn numbers(batch: &RecordBatch, name: &str) -> Vec<Option<f32>> {
    batch.column_by_name(name).unwrap().as_primitive::<Float32Type>().iter().collect()
}

fn text(batch: &RecordBatch, name: &str) -> Vec<String> {
    texts(batch, name).unwrap().into_iter().map(Option::unwrap_or_default).collect()
}

impl Explained {
    fn values(&self) -> Vec<Vec<f32>> {
        let lists = self.words.column_by_name("values").unwrap().as_list::<i32>();
        (0..lists.len()).map(|row| lists.value(row).as_primitive::<Float32Type>().values().to_vec()).collect()
    }

    /// Checks that both files hold the same questions, and that words stand where they say.
    fn check_words(&self) {
        assert_eq!(text(&self.maps, "id"), text(&self.words, "id"));
        assert_eq!(text(&self.maps, "target"), text(&self.words, "target"));
        let questions = text(&self.words, "caption");
        assert_eq!(questions, text(&self.maps, "question"));
        let list = |name: &str| self.words.column_by_name(name).unwrap().as_list::<i32>().clone();
        let (tokens, offsets) = (list("tokens"), list("offsets"));
        for (row, question) in questions.iter().enumerate() {
            let (tokens, offsets) = (tokens.value(row), offsets.value(row));
            let (tokens, offsets) = (tokens.as_string::<i32>(), offsets.as_primitive::<Int32Type>());
            let found: Vec<&str> = (0..tokens.len())
                .map(|word| &question[offsets.value(2 * word) as usize..offsets.value(2 * word + 1) as usize])
                .collect();
            assert_eq!(found, tokens.iter().flatten().collect::<Vec<_>>());
            let bare = |word: &str| word.trim_matches(['?', ',', '.']).to_owned();
            let expected: Vec<String> = question.split_whitespace().take(12).map(bare).collect();
            assert_eq!(found.into_iter().map(bare).collect::<Vec<_>>(), expected, "`{question}`");
        }
    }
}

fn assert_equal(what: &str, ours: &[f32], others: &[f32]) {
    assert_eq!(ours.len(), others.len());
    let scale = ours.iter().fold(1e-6f32, |scale, value| scale.max(value.abs()));
    for (one, other) in ours.iter().zip(others) {
        assert!((one - other).abs() <= 2e-3 * scale, "{what}: another batch, other values: {one} {other}");
    }
}

/// The kinds of models, as parameters of `finetune.vqa`.
fn models() -> Vec<(&'static str, Json)> {
    vec![
        ("mevf", json!({})),
        ("mevf", json!({ "mask_padding": true })),
        ("mevf", json!({ "fusion": "san", "visual_tokens": "grid", "reader": "tower" })),
        ("qcr", json!({})),
        ("qcr", json!({ "reader": "tower" })),
        ("cross_modal", json!({ "visual_tokens": "grid" })),
    ]
}

/// One point of a path tells little; the steps are doubled for the questions that need it.
#[test]
fn steps_are_doubled_until_both_sides_hold_the_difference_of_scores() {
    let study = Study::new();
    let model = study.train("mevf", &json!({}));
    let misses = |most: Json| -> usize {
        let params = json!({ "quadrature": "riemann_left", "steps": 1, "most_steps": most });
        let maps = study.explain(&model, &params).maps;
        let [scores, baselines, gaps] =
            ["score", "score_baseline", "completeness_gap"].map(|name| numbers(&maps, name));
        let relative = |row: usize| gaps[row].unwrap() / (scores[row].unwrap() - baselines[row].unwrap());
        (0..scores.len()).filter(|row| relative(*row).abs() > 0.05).count()
    };
    // Where the scores hardly differ no number of steps is enough.
    let (one, doubled) = (misses(Json::Null), misses(json!(1024)));
    assert!(one > 2 && doubled < 2, "{one}, {doubled}");
}

/// Marks and padding have no part in what is attributed: words and pixels hold the whole difference of scores.
#[test]
fn integrated_gradients_of_image_and_question_are_complete_together() {
    let study = Study::new();
    for (method, more) in models() {
        let model = study.train(method, &more);
        let of = |batch: i64| study.explain(&model, &json!({ "steps": 40, "batch": batch }));
        let ours = of(7);
        ours.check_words();
        let (values, shape) = tensors(&ours.maps, "saliency").unwrap();
        assert_eq!(shape, [28, 28]);
        let [sums, scores, baselines, gaps] =
            ["sum", "score", "score_baseline", "completeness_gap"].map(|name| numbers(&ours.maps, name));
        assert_eq!(gaps, numbers(&ours.words, "completeness_gap"));
        assert!(sums.len() >= 4);
        let (mut from_image, mut from_words) = (0.0f32, 0.0f32);
        for (row, words) in ours.values().iter().enumerate() {
            let way = scores[row].unwrap() - baselines[row].unwrap();
            let gap = gaps[row].unwrap();
            let (image, words) = (sums[row].unwrap(), words.iter().sum::<f32>());
            let scale = way.abs().max(image.abs()).max(1e-2);
            assert!(
                (image + words - way - gap).abs() < 2e-3 * scale,
                "{method} {more}: {image} {words} {way}"
            );
            // Signs cancel in sums: a kink of the model counts beside all that is attributed.
            let map = &values[row * 28 * 28..(row + 1) * 28 * 28];
            let mass = map.iter().map(|value| value.abs()).sum::<f32>() + words.abs();
            assert!(gap.abs() < 0.1 * mass, "{method} {more}: {gap} of {mass}");
            from_image += image.abs();
            from_words += words.abs();
        }
        assert!(from_image > 0.0 && from_words > 0.0, "{method} {more}: {from_image} {from_words}");
        let other = of(3);
        assert_equal(method, values, tensors(&other.maps, "saliency").unwrap().0);
        assert_equal(method, &ours.values().concat(), &other.values().concat());
        // The share of absolute attributions, under a name of its own.
        assert!(ours.shares.strings("metric").unwrap().iter().all(|metric| *metric == "ig_text_share"));
        assert!(
            ours.shares.float64("value").unwrap().iter().flatten().all(|share| (0.0..=1.0).contains(share))
        );
    }
}

/// What is explained is the answer that `evaluate.vqa` gives, by its logit.
#[test]
fn the_predicted_answer_is_that_of_the_evaluation() {
    let study = Study::new();
    for (method, more) in models() {
        let model = study.train(method, &more);
        let ours = study.explain(&model, &json!({ "method": "input_x_gradient" }));
        ours.check_words();
        let asked = run(&EvaluateVqa, &json!({}), &study.inputs(&model)).unwrap();
        let predictions = read(&asked["predictions"]).unwrap();
        let ids = predictions.strings("id").unwrap();
        let answers = predictions.strings("predicted_answer").unwrap();
        let scores = predictions.list_float32("scores").unwrap();
        let index = ours.maps.column_by_name("target_index").unwrap().as_primitive::<Int32Type>();
        let logits = numbers(&ours.maps, "score");
        for (row, id) in text(&ours.maps, "id").iter().enumerate() {
            let other = ids.iter().position(|other| other == id).unwrap();
            assert_eq!(text(&ours.maps, "target")[row], answers[other], "{method} {more}");
            let score = scores[other].as_ref().unwrap()[index.value(row) as usize];
            let probability = 1.0 / (1.0 + (-logits[row].unwrap()).exp());
            assert!((score - probability).abs() < 1e-4, "{method} {more}: {score} {probability}");
        }
        assert_eq!(ours.shares.rows(), 0);
    }
}

#[test]
fn occlusion_takes_windows_and_words_away() {
    let study = Study::new();
    for (method, more) in models() {
        let model = study.train(method, &more);
        let of = |params: Json| {
            let mut all = json!({ "method": "occlusion", "window": 14, "stride": 7 });
            all.as_object_mut().unwrap().extend(params.as_object().unwrap().clone());
            study.explain(&model, &all)
        };
        let (ours, other) = (of(json!({ "batch": 5 })), of(json!({ "batch": 32 })));
        ours.check_words();
        let values = |explained: &Explained| tensors(&explained.maps, "saliency").unwrap().0.to_vec();
        assert!(values(&ours).iter().any(|value| *value != 0.0));
        assert_equal(method, &values(&ours), &values(&other));
        assert_equal(method, &ours.values().concat(), &other.values().concat());
        // A window over all is the image that is absent: each pixel has the fall of the score.
        let whole = of(json!({ "window": 28, "stride": 28 }));
        let falls = numbers(&whole.maps, "max");
        for (map, fall) in values(&whole).chunks_exact(28 * 28).zip(falls) {
            assert!(map.iter().all(|value| Some(*value) == fall));
        }
        // Another blank, another fall.
        let black = of(json!({ "window": 28, "stride": 28, "baseline": "black" }));
        assert_ne!(values(&whole), values(&black));
        assert_eq!(whole.values(), black.values(), "the question has no part in the baseline of the image");
    }
}

fn shapley(explained: &Explained) -> BTreeMap<String, (f64, Vec<f32>, Json)> {
    let shares = &explained.shares;
    let (ids, metrics) = (shares.strings("id").unwrap(), shares.strings("metric").unwrap());
    let (values, lists) = (shares.float64("value").unwrap(), shares.list_float32("values").unwrap());
    let parameters = shares.strings("parameters").unwrap();
    let rows = (0..shares.rows()).filter(|row| metrics[*row] == "text_share");
    rows.map(|row| {
        let parameters = serde_json::from_str(parameters[row]).unwrap();
        (ids[row].to_owned(), (values[row].unwrap(), lists[row].clone().unwrap(), parameters))
    })
    .collect()
}

#[test]
fn shapley_values_are_complete_and_a_function_of_the_row() {
    let study = Study::new();
    for (method, more) in models() {
        let model = study.train(method, &more);
        let of = |more: Json| {
            let mut all = json!({ "method": "input_x_gradient", "modality_share": { "samples": 3 } });
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            shapley(&study.explain(&model, &all))
        };
        let ours = of(json!({ "batch": 5 }));
        assert!(ours.len() >= 4);
        for (share, values, parameters) in ours.values() {
            let number = |name: &str| parameters[name].as_f64().unwrap();
            let way = number("score") - number("score_baseline");
            let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
            assert!((sum - way).abs() < 1e-4 * way.abs().max(1.0), "{method} {more}: {sum} {way}");
            let tokens = number("tokens") as usize;
            let side = (tokens as f64).sqrt().ceil() as usize;
            assert_eq!(parameters["patches"], json!([side, side]));
            assert_eq!(values.len(), tokens + side * side);
            let mass = |values: &[f32]| values.iter().map(|value| f64::from(value.abs())).sum::<f64>();
            assert!((share - mass(&values[..tokens]) / mass(values)).abs() < 1e-5);
        }
        // Neither the batch nor the questions beside one decide its orders.
        for others in [of(json!({})), of(json!({ "splits": ["train", "test"], "batch": 9 }))] {
            for (id, (share, values, _)) in &ours {
                let (other, others, _) = &others[id];
                assert!((share - other).abs() < 1e-3, "{method} {more}: {share} {other}");
                assert_equal(method, values, others);
            }
        }
        let drawn = of(json!({ "seed": 5 }));
        assert!(
            ours.iter().any(|(id, (_, values, _))| *values != drawn[id].1),
            "{method}: the seed is not heard"
        );
    }
}

#[test]
fn many_orders_come_close_to_all_subsets() {
    let study = Study::new();
    let model = study.train("mevf", &json!({}));
    let of = |samples: i64| {
        let share = json!({ "samples": samples, "patches": [1, 2] });
        let params = json!({ "method": "input_x_gradient", "modality_share": share, "batch": 512 });
        shapley(&study.explain(&model, &params))
    };
    let (exact, drawn) = (of(1000), of(16));
    let mut compared = 0;
    for (id, (share, values, parameters)) in &exact {
        if parameters["exact"] == json!(true) && drawn[id].2["exact"] == json!(false) {
            compared += 1;
            let scale: f32 = values.iter().map(|value| value.abs()).sum();
            for (ours, other) in values.iter().zip(&drawn[id].1) {
                assert!((ours - other).abs() < 0.1 * scale, "{values:?} {:?}", drawn[id].1);
            }
            assert!((share - drawn[id].0).abs() < 0.1);
        }
    }
    assert!(compared > 0);
}

#[test]
fn a_model_of_one_modality_owes_all_to_it() {
    let study = Study::new();
    let params = json!({ "steps": 4, "modality_share": { "samples": 2 } });
    for method in ["mevf", "qcr", "cross_modal"] {
        for (modality, share) in [("question", 1.0), ("image", 0.0)] {
            let model = study.train(method, &json!({ "modality": modality }));
            let ours = study.explain(&model, &params);
            assert!(ours.maps.num_rows() >= 4);
            let statuses = text(&ours.maps, "status");
            let words = text(&ours.words, "status");
            if modality == "question" {
                assert!(statuses.iter().all(|status| status == "all_zero"), "{method}: {statuses:?}");
                assert!(words.iter().all(|status| status == "ok"), "{method}: {words:?}");
            } else {
                assert!(statuses.iter().all(|status| status == "ok"), "{method}: {statuses:?}");
                assert!(words.iter().all(|status| status.starts_with("not_applicable: ")), "{words:?}");
            }
            let found: Vec<f64> = ours.shares.float64("value").unwrap().iter().copied().flatten().collect();
            assert_eq!(found.len(), 2 * ours.maps.num_rows());
            // Equal rows at other places of a batch differ by rounding.
            assert!(
                found.iter().all(|found| (found - share).abs() < 1e-5),
                "{method} of the {modality}: {found:?}"
            );
        }
    }
}

#[test]
fn true_answers_filters_and_controls_are_kept() {
    let study = Study::new();
    let model = study.train("qcr", &json!({}));
    let of = |params: Json| study.explain(&model, &params);
    let base = json!({ "method": "input_x_gradient", "splits": [] });
    let all = of(base.clone());
    let with = |name: &str, value: Json| {
        let mut params = base.clone();
        params[name] = value;
        of(params)
    };
    let right = with("only_correct", json!(true));
    let truth = with("target", json!("true"));
    assert_eq!(truth.maps.num_rows(), all.maps.num_rows());
    assert!(right.maps.num_rows() > 0 && right.maps.num_rows() < all.maps.num_rows());
    // A question that is answered right has the same predicted and true answer.
    let places: BTreeMap<String, usize> =
        text(&truth.maps, "id").into_iter().enumerate().map(|(row, id)| (id, row)).collect();
    let answers = text(&truth.maps, "target");
    for (id, answer) in text(&right.maps, "id").iter().zip(text(&right.maps, "target")) {
        assert_eq!(answers[places[id]], answer);
    }
    // Where the true answer cannot be given, the row says so in both files.
    for (status, words) in text(&truth.maps, "status").iter().zip(text(&truth.words, "status")) {
        assert_eq!(status.starts_with("not_applicable"), words.starts_with("not_applicable"));
    }
    assert_eq!(with("limit", json!(3)).maps.num_rows(), 3);
    let control = with("random_weights", json!(true));
    assert_eq!(text(&control.maps, "target"), text(&all.maps, "target"));
    assert_ne!(numbers(&control.maps, "score"), numbers(&all.maps, "score"));
    let none = with("splits", json!(["nowhere"]));
    assert_eq!((none.maps.num_rows(), none.words.num_rows(), none.shares.rows()), (0, 0, 0));
    assert_eq!(none.maps.num_columns(), all.maps.num_columns());
}

/// MEVF's own networks look at grey images of two other sizes: their maps become one, and are complete.
#[test]
fn grey_networks_are_explained_on_one_map() {
    let study = Study::new();
    let more = json!({ "without_checkpoint": true, "autoencoder": "frozen", "epochs": 1 });
    let model = study.train("mevf", &more);
    let ours = study.explain(&model, &json!({ "limit": 2, "steps": 12, "batch": 8 }));
    assert_eq!(tensors(&ours.maps, "saliency").unwrap().1, [128, 128]);
    let column = |name: &str| -> Vec<f32> { numbers(&ours.maps, name).into_iter().flatten().collect() };
    let [sums, scores, baselines, gaps] = ["sum", "score", "score_baseline", "completeness_gap"].map(column);
    for (row, words) in ours.values().iter().enumerate() {
        let (sum, way) = (sums[row] + words.iter().sum::<f32>(), scores[row] - baselines[row]);
        assert!((sum - way - gaps[row]).abs() < 2e-3 * way.abs().max(1e-2), "{sum} {way} {}", gaps[row]);
        assert!(sums[row] != 0.0);
    }
}

#[test]
fn maps_of_answers_are_scored_and_reported_by_question() {
    let study = Study::new();
    let model = study.train("mevf", &json!({}));
    let params = json!({ "steps": 8, "modality_share": { "samples": 1 }, "splits": [] });
    let ours = study.explain(&model, &params);
    let inputs = [
        ("saliency", &ours.made["saliency"]),
        ("images", &study.data["images"]),
        ("masks", &study.data["masks"]),
    ];
    let scored = run(&Score, &json!({}), &inputs).unwrap();
    let scores = read(&scored["scores"]).unwrap();
    let ids: std::collections::BTreeSet<&str> = scores.strings("id").unwrap().into_iter().collect();
    let all = text(&ours.maps, "id");
    assert_eq!(ids.len(), all.len(), "every question is scored, also where several share an image");
    let (metrics, values) = (scores.strings("metric").unwrap(), scores.float64("value").unwrap());
    assert!((0..scores.rows()).any(|row| metrics[row] == "relevance_mass" && values[row].is_some()));
    let inputs = [
        ("saliency", &ours.made["saliency"]),
        ("words", &ours.made["words"]),
        ("shares", &ours.made["shares"]),
        ("images", &study.data["images"]),
    ];
    let page = run(&Report, &json!({ "max_gallery": 3 }), &inputs).unwrap();
    let page = std::fs::read_to_string(&page["page"].file("index.html").unwrap().location).unwrap();
    assert!(page.contains("Red words add to the score of the answer"), "words");
    assert!(page.matches("alt=\"original of ").count() >= 3, "each question has its image");
    let question = &text(&ours.maps, "question")[0];
    assert!(page.contains(question.as_str()));
    assert!(page.to_lowercase().replace('_', " ").contains("text share"), "shares");
}

/// The values of a method by a metric of removal, or their reasons.
fn removed(shares: &Table, method: &str, metric: &str) -> Vec<Result<f64, String>> {
    let (methods, metrics) = (shares.strings("method").unwrap(), shares.strings("metric").unwrap());
    let (values, reasons) = (shares.float64("value").unwrap(), shares.utf8("reason").unwrap());
    (0..shares.rows())
        .filter(|row| methods[*row] == method && metrics[*row] == metric)
        .map(|row| values[row].ok_or_else(|| reasons[row].clone().unwrap()))
        .collect()
}

#[test]
fn explanations_are_scored_by_what_goes() {
    let study = Study::new();
    let model = study.train("mevf", &json!({}));
    let plain = study.explain(&model, &json!({ "method": "occlusion" }));
    assert_eq!((plain.shares.rows(), plain.shares.column("explanation")), (0, None));
    let of = |batch: i64| {
        let params = json!({ "method": "occlusion", "removal": { "patches": [2, 3] }, "batch": batch });
        study.explain(&model, &params).shares
    };
    let shares = of(32);
    let questions = plain.maps.num_rows();
    for method in ["occlusion", "random"] {
        for pieces in ["word", "patch"] {
            for metric in ["deletion", "insertion", "deletion_gap", "faithfulness_estimate", "sparseness"] {
                assert_eq!(removed(&shares, method, &format!("{pieces}_{metric}")).len(), questions);
            }
        }
    }
    // What occlusion says of a word is what it costs alone.
    let estimates = removed(&shares, "occlusion", "word_faithfulness_estimate");
    let known: Vec<f64> = estimates.into_iter().filter_map(Result::ok).collect();
    assert!(!known.is_empty() && known.iter().all(|value| *value > 0.999), "{known:?}");
    let mean = |method: &str| {
        let values = removed(&shares, method, "word_deletion_gap");
        values.into_iter().map(Result::unwrap).sum::<f64>()
    };
    assert!(mean("occlusion") > mean("random"), "{} {}", mean("occlusion"), mean("random"));
    let again = of(7);
    for metric in ["word_deletion", "patch_insertion"] {
        let pairs = removed(&shares, "random", metric).into_iter().zip(removed(&again, "random", metric));
        for (ours, other) in pairs {
            assert!((ours.unwrap() - other.unwrap()).abs() < 1e-3, "{metric}: another batch");
        }
    }
    // Nothing is told of the question: its words have no values.
    let blind = study.train("mevf", &json!({ "modality": "image" }));
    let shares = study.explain(&blind, &json!({ "method": "occlusion", "removal": {} })).shares;
    assert!(removed(&shares, "occlusion", "word_deletion").iter().all(Result::is_err));
    assert!(removed(&shares, "occlusion", "patch_deletion").iter().all(Result::is_ok));
}

/// Of image and question at once, each with noise of its own range.
#[test]
fn wrappers_stand_around_image_and_question() {
    let study = Study::new();
    let model = study.train("cross_modal", &json!({ "visual_tokens": "grid" }));
    let of = |more: Json| {
        let mut params = json!({ "method": "input_x_gradient", "draws": 3, "limit": 4 });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        study.explain(&model, &params)
    };
    let flat = |explained: &Explained| -> [Vec<f32>; 2] {
        let (maps, _) = tensors(&explained.maps, "saliency").unwrap();
        [maps.to_vec(), explained.values().concat()]
    };
    let distance = |ours: &[f32], others: &[f32]| {
        let scale = others.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
        ours.iter().zip(others).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / scale
    };
    let plain = flat(&of(json!({})));
    let none = flat(&of(json!({ "wrap": ["noise_mean"], "noise": 0.0 })));
    let noisy = flat(&of(json!({ "wrap": ["noise_mean"], "noise": 0.3 })));
    for part in [0, 1] {
        assert!(distance(&none[part], &plain[part]) < 1e-3);
        assert!(distance(&noisy[part], &plain[part]) > 1e-2, "both take noise");
    }
    let falls = flat(&of(json!({ "method": "occlusion" })));
    let absolute = flat(&of(json!({ "method": "occlusion", "wrap": ["absolute"] })));
    assert_eq!(absolute[1], falls[1].iter().map(|value| value.abs()).collect::<Vec<f32>>());
    assert_eq!(absolute[0], falls[0].iter().map(|value| value.abs()).collect::<Vec<f32>>());
    let kind = |params: Json| pipe_engine::AnyKind::resolve(&AttributeVqa, &params).err().unwrap();
    let problems = kind(json!({ "method": "occlusion", "wrap": ["noise_mean"] }));
    assert!(problems[0].message.contains("takes no noise"));
}

/// The model's own attention: each cell and each word has its share, and what is no cell has none.
#[test]
fn attention_over_cells_and_words_is_a_map() {
    let study = Study::new();
    let grid = json!({ "visual_tokens": "grid" });
    let of = |model: &Made, method: &str, batch: i64| {
        study.explain(model, &json!({ "method": method, "batch": batch }))
    };
    let statuses = |batch: &RecordBatch| text(batch, "status");
    let all_ok = |batch: &RecordBatch| statuses(batch).iter().all(|status| status == "ok");
    for (method, more) in [("mevf", json!({})), ("mevf", json!({ "fusion": "san" })), ("qcr", json!({}))] {
        let mut params = grid.clone();
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let model = study.train(method, &params);
        let attention = of(&model, "attention", 32);
        assert!(all_ok(&attention.maps), "{method} {more}: {:?}", statuses(&attention.maps));
        let (values, shape) = tensors(&attention.maps, "saliency").unwrap();
        assert_eq!(shape, [28, 28]);
        // Four cells of 14 x 14 pixels: a share each, which are 1 together, and of a quarter of all pixels.
        for map in values.chunks_exact(28 * 28) {
            let corners = map[0] + map[27] + map[27 * 28] + map[28 * 28 - 1];
            assert!((corners - 1.0).abs() < 1e-4, "{method} {more}: {corners}");
        }
        if more["fusion"] == json!("san") {
            let reasons = statuses(&attention.words);
            assert!(reasons.iter().all(|reason| reason.contains("not to its words")), "{reasons:?}");
        } else {
            attention.check_words();
            for words in attention.values() {
                let sum: f32 = words.iter().sum();
                // The rest is attention to padding.
                assert!(words.iter().all(|value| *value > 0.0) && sum < 1.0 + 1e-4, "{method}: {words:?}");
            }
        }
        let relevance = of(&model, "attention_relevance", 32);
        let found = tensors(&relevance.maps, "saliency").unwrap().0;
        assert!(found.iter().all(|value| *value >= 0.0) && found.iter().any(|value| *value > 0.0));
        assert_ne!(found, values);
        let again = of(&model, "attention_relevance", 3);
        assert_equal(method, found, tensors(&again.maps, "saliency").unwrap().0);
        let words = [&relevance, &again].map(|explained| explained.values().concat());
        assert_equal(method, &words[0], &words[1]);
    }
    // One token for the whole image: words may have attention, places have none.
    let pooled = of(&study.train("mevf", &json!({})), "attention", 8);
    assert!(statuses(&pooled.maps).iter().all(|status| status.contains("one token")));
    assert!(all_ok(&pooled.words));
    let mixed = of(&study.train("cross_modal", &grid), "attention", 8);
    assert!(statuses(&mixed.maps).iter().all(|status| status.contains("mix all tokens")));
    let params = json!({ "method": "attention", "wrap": ["absolute"] });
    let problems = pipe_engine::AnyKind::resolve(&AttributeVqa, &params).err().unwrap();
    assert!(problems[0].message.contains("positive values"), "{}", problems[0].message);
}
