//! Trained and asked, through the stages.

use std::collections::BTreeMap;

use pipe_engine::{InputArtifact, StageError};
use serde_json::{Value as Json, json};

use crate::attribute_vqa::AttributeVqa;
use crate::checkpoint::Checkpoint;
use crate::compare::Compare;
use crate::evaluate_vqa::EvaluateVqa;
use crate::finetune::FinetuneVqa;
use crate::phantom::IngestPhantom;
use crate::query::RunQuery;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use crate::testing::{Made, poisoned, run, run_with, source, tree};
use crate::tokenizer::TrainTokenizer;

/// Phantom questions, and a small CLIP with random weights.
struct Study {
    data: Made,
    initial: Made,
}

impl Study {
    fn new() -> Self {
        let params = json!({
            "domain": "medical", "seed": 4, "size": 28, "train": 60, "val": 12, "test": 40,
            "questions": 3, "weights": "chest"
        });
        let data = run(&IngestPhantom, &params, &[]).unwrap();
        let tokenizer =
            run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &data["captions"])]).unwrap();
        let size = json!({ "width": 16, "layers": 1, "heads": 2 });
        let params = json!({ "init": "random", "image_size": 28, "patch": 14, "projection": 16, "vision": size, "text": size });
        let initial = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
        Self { data, initial }
    }

    fn train(&self, params: &Json) -> Made {
        let inputs = [
            ("images", &self.data["images"]),
            ("questions", &self.data["questions"]),
            ("checkpoint", &self.initial["checkpoint"]),
        ];
        run(&FinetuneVqa, params, &inputs).unwrap()
    }

    fn ask(&self, trained: &Made, params: &Json) -> Made {
        let inputs = [
            ("images", &self.data["images"]),
            ("questions", &self.data["questions"]),
            ("model", &trained["model"]),
        ];
        run(&EvaluateVqa, params, &inputs).unwrap()
    }
}

fn small(method: &str, more: &Json) -> Json {
    let mut params = json!({
        "method": method, "hidden": 32, "word_width": 16, "autoencoder": "none", "epochs": 25, "lr": 0.02,
        "batch": 32, "heads": 4, "layers": 1, "type_epochs": 6, "type_lr": 0.01
    });
    if method == "cross_modal" {
        params["lr"] = json!(3e-3);
    }
    for (name, value) in more.as_object().unwrap() {
        params[name] = value.clone();
    }
    params
}

/// The losses of the epochs.
fn losses(trained: &Made) -> Vec<f64> {
    let log = read(&trained["log"]).unwrap();
    let (metrics, values) = (log.strings("metric").unwrap(), log.float64("value").unwrap());
    (0..log.rows()).filter(|row| metrics[*row] == "loss").filter_map(|row| values[row]).collect()
}

/// The value of a metric without or with a subgroup.
fn figure(metrics: &Table, metric: &str, subgroup: Option<&str>) -> f64 {
    let (names, values) = (metrics.strings("metric").unwrap(), metrics.float64("value").unwrap());
    let subgroups = metrics.utf8("subgroup").unwrap();
    let row = (0..metrics.rows())
        .find(|row| names[*row] == metric && subgroups[*row].as_deref() == subgroup)
        .unwrap_or_else(|| panic!("no {metric} of {subgroup:?}"));
    values[row].unwrap()
}

#[test]
fn every_method_learns_and_answers_from_its_artifact_alone() {
    let study = Study::new();
    for (method, more) in [
        ("mevf", json!({})),
        ("mevf", json!({ "fusion": "san", "visual_tokens": "grid", "reader": "tower" })),
        ("mevf", json!({ "encoder": "tuned", "encoder_lr": 1e-3, "epochs": 8 })),
        ("mevf", json!({ "encoder": "tuned", "encoder_rule": "adamax", "encoder_lr": 1e-3, "epochs": 8 })),
        ("qcr", json!({})),
        ("cross_modal", json!({ "visual_tokens": "grid" })),
        ("cross_modal", json!({ "encoder": "tuned", "encoder_lr": 1e-4, "epochs": 8 })),
    ] {
        let trained = study.train(&small(method, &more));
        let losses = losses(&trained);
        assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{method} {more}: {losses:?}");
        let asked = study.ask(&trained, &json!({ "splits": ["train", "test"], "batch": 7 }));
        let predictions = read(&asked["predictions"]).unwrap();
        let again = study.ask(&trained, &json!({ "splits": ["train", "test"], "batch": 7 }));
        assert_eq!(asked["predictions"].digest, again["predictions"].digest, "{method}");
        let metrics = read(&asked["metrics"]).unwrap();
        let correct = predictions.bools("correct").unwrap();
        let splits = predictions.strings("split").unwrap();
        let of_test: Vec<bool> = (0..predictions.rows())
            .filter(|row| splits[*row] == "test")
            .filter_map(|row| correct[row])
            .collect();
        let share = of_test.iter().filter(|correct| **correct).count() as f64 / of_test.len() as f64;
        let accuracy = figure(&metrics, "accuracy", None);
        assert!((accuracy - share).abs() < 1e-12 && figure(&metrics, "ceiling", None) >= accuracy);
        // Open and closed questions make up all.
        let counts = metrics.int64("n").unwrap();
        let subgroups = metrics.utf8("subgroup").unwrap();
        let count = |subgroup: Option<&str>| {
            (0..metrics.rows()).find(|row| subgroups[*row].as_deref() == subgroup).and_then(|row| counts[row])
        };
        let types = count(Some("answer_type=OPEN")).unwrap() + count(Some("answer_type=CLOSED")).unwrap();
        assert_eq!(count(None).unwrap(), types);
        // So do common and rare answers.
        let frequencies = ["head", "tail"].map(|name| count(Some(&format!("answer_frequency={name}"))));
        assert_eq!(frequencies.into_iter().flatten().sum::<i64>(), types);
        assert!(frequencies[1] > Some(0));
        if method == "qcr" {
            let share = figure(&metrics, "type_accuracy", None);
            assert!(share > 0.9, "{share}");
            let routed = predictions.strings("routed_type").unwrap();
            // A closed answer to a question that took the open branch is wrong.
            let types = predictions.strings("answer_type").unwrap();
            for row in 0..predictions.rows() {
                assert!(routed[row] == types[row] || correct[row] == Some(false), "row {row}");
            }
        }
    }
}

#[test]
fn a_model_of_the_question_alone_does_not_see_images_and_the_other_way_round() {
    let study = Study::new();
    let predictions = |params: &Json, column: &str| {
        let asked = study.ask(&study.train(params), &json!({}));
        let table = read(&asked["predictions"]).unwrap();
        let by: Vec<String> = table.strings(column).unwrap().into_iter().map(str::to_owned).collect();
        let given: Vec<String> =
            table.strings("predicted_answer").unwrap().into_iter().map(str::to_owned).collect();
        by.into_iter().zip(given).collect::<Vec<_>>()
    };
    for method in ["mevf", "cross_modal"] {
        for (modality, column) in [("question", "question"), ("image", "image")] {
            let answers = predictions(&small(method, &json!({ "modality": modality, "epochs": 4 })), column);
            let mut first = std::collections::BTreeMap::new();
            for (by, answer) in answers {
                assert_eq!(*first.entry(by).or_insert_with(|| answer.clone()), answer, "{method} {modality}");
            }
        }
    }
}

#[test]
fn a_model_of_scrambled_pixels_is_asked_about_them_and_not_explained() {
    let study = Study::new();
    let made = [false, true].map(|scrambled| {
        let params = json!({ "epochs": 1, "scrambled_pixels": scrambled });
        let trained = study.train(&small("mevf", &params));
        (study.ask(&trained, &json!({})), trained)
    });
    let [(plain, _), (scrambled, trained)] = &made;
    assert_ne!(plain["predictions"].digest, scrambled["predictions"].digest);
    let inputs = [
        ("images", &study.data["images"]),
        ("questions", &study.data["questions"]),
        ("model", &trained["model"]),
    ];
    let error = run(&AttributeVqa, &json!({ "limit": 1 }), &inputs).err().unwrap().to_string();
    assert!(error.contains("`scrambled_pixels`"), "{error}");
}

#[test]
fn word_vectors_come_from_a_file_and_a_damaged_one_is_named() {
    let study = Study::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vectors.txt");
    let with = |text: &str| -> Result<Made, StageError> {
        std::fs::write(&file, text).unwrap();
        let inputs = [
            ("images", &study.data["images"]),
            ("questions", &study.data["questions"]),
            ("checkpoint", &study.initial["checkpoint"]),
            ("glove", &source(&file)),
        ];
        run(&FinetuneVqa, &small("qcr", &json!({ "epochs": 1 })), &inputs)
    };
    assert!(with("the 0.5 1 -1\nis 1 2 3\nunheard 9 9 9\n").is_ok());
    for (text, reason) in [
        ("the 0.5 1\nis 1 2 3\n", "line 2"),
        ("the 0.5 one\n", "line 1"),
        ("unheard 1 2\n", "none of the words"),
        ("the 0.5 inf\n", "no number"),
    ] {
        let error = with(text).err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn the_answers_do_not_depend_on_the_test_questions() {
    let study = Study::new();
    let params = small("mevf", &json!({ "epochs": 1 }));
    let answers = |trained: &Made| {
        let file = trained["model"].file("answers.json").unwrap();
        let text = std::fs::read_to_string(&file.location).unwrap();
        serde_json::from_str::<Json>(&text).unwrap()["answers"].clone()
    };
    let other = Study {
        data: run(
            &IngestPhantom,
            &json!({
                "domain": "medical", "seed": 4, "size": 28, "train": 60, "val": 12, "test": 3, "questions": 3,
                "questions_test": 1, "weights": "chest"
            }),
            &[],
        )
        .unwrap(),
        initial: Study::new().initial,
    };
    assert_eq!(answers(&study.train(&params)), answers(&other.train(&params)));
}

#[test]
fn questions_of_several_types_count_in_each_and_twins_are_scored_by_themselves() {
    let study = Study::new();
    let trained = study.train(&small("mevf", &json!({ "epochs": 2 })));
    // Every other question is of two types, and of the tested ones some have a twin.
    let table = read(&study.data["questions"]).unwrap();
    let splits = table.strings("split").unwrap();
    let both = |row: usize| row.is_multiple_of(2);
    let written = |row: usize| Some(if both(row) { "POS, PRSE" } else { "POS" }.to_owned());
    let mended = |row: usize| {
        let types: &[&str] = if both(row) { &["POS", "PRES"] } else { &["POS"] };
        Some(types.iter().map(|one| (*one).to_owned()).collect())
    };
    let twin = |row: usize| (splits[row] == "test").then_some(row.is_multiple_of(3));
    let rows = || 0..table.rows();
    let changed = table
        .clone()
        .replacing("question_type", Column::Utf8(rows().map(written).collect()))
        .replacing("question_types", Column::ListUtf8(rows().map(mended).collect()))
        .with("training_twin", Column::Bool(rows().map(twin).collect()));
    let folder = tempfile::tempdir().unwrap();
    let mut output = pipe_engine::OutputWriter::new(folder.path().to_owned());
    write(&mut output, &TableSchema::questions(), &changed, WriteOptions::text("{}")).unwrap();
    let questions = tree(folder.path(), study.data["questions"].artifact_type.as_str());
    let inputs = [("images", &study.data["images"]), ("questions", &questions), ("model", &trained["model"])];
    let asked = run(&EvaluateVqa, &json!({ "subgroup": "organ" }), &inputs).unwrap();
    let (metrics, predictions) = (read(&asked["metrics"]).unwrap(), read(&asked["predictions"]).unwrap());
    let subgroups = metrics.utf8("subgroup").unwrap();
    let types: std::collections::BTreeSet<&str> =
        subgroups.iter().flatten().filter_map(|name| name.strip_prefix("question_type=")).collect();
    assert_eq!(types.into_iter().collect::<Vec<_>>(), ["POS", "PRES"]);
    assert_eq!(figure(&metrics, "accuracy", Some("question_type=POS")), figure(&metrics, "accuracy", None));
    let (correct, twins) =
        (predictions.bools("correct").unwrap(), predictions.bools("training_twin").unwrap());
    let closed = predictions.strings("answer_type").unwrap();
    for has_twin in [true, false] {
        let share = |wanted: &dyn Fn(usize) -> bool| {
            let own = (0..predictions.rows()).filter(|row| twins[*row] == Some(has_twin) && wanted(*row));
            let own: Vec<usize> = own.collect();
            own.iter().filter(|row| correct[**row] == Some(true)).count() as f64 / own.len() as f64
        };
        let name = format!("training_twin={has_twin}");
        assert!((figure(&metrics, "accuracy", Some(&name)) - share(&|_| true)).abs() < 1e-12);
        let name = format!("{name},answer_type=OPEN");
        assert!(
            (figure(&metrics, "accuracy", Some(&name)) - share(&|row| closed[row] == "OPEN")).abs() < 1e-12
        );
    }
    // The column that figures were also wanted for is there for later ones.
    assert!(predictions.column("organ").is_some());
    assert_eq!(predictions.metadata["task"], "vqa");
}

/// The stage `leak` of the study on VQA-RAD, over two models that stand for two protocols.
#[test]
fn the_leak_of_twins_is_shown_by_the_study() {
    let study = Study::new();
    let table = read(&study.data["questions"]).unwrap();
    let splits = table.strings("split").unwrap();
    let twin = |row: usize| (splits[row] == "test").then_some(row.is_multiple_of(3));
    let changed = table.clone().with("training_twin", Column::Bool((0..table.rows()).map(twin).collect()));
    let folder = tempfile::tempdir().unwrap();
    let mut output = pipe_engine::OutputWriter::new(folder.path().to_owned());
    write(&mut output, &TableSchema::questions(), &changed, WriteOptions::text("{}")).unwrap();
    let questions = tree(folder.path(), study.data["questions"].artifact_type.as_str());
    let protocols = ["mevf-3064", "clean-2773"];
    let asked: Vec<Made> = [6, 1]
        .into_iter()
        .zip(protocols)
        .map(|(epochs, protocol)| {
            let trained = study.train(&small("mevf", &json!({ "epochs": epochs })));
            let inputs =
                [("images", &study.data["images"]), ("questions", &questions), ("model", &trained["model"])];
            run(&EvaluateVqa, &json!({ "protocol": protocol }), &inputs).unwrap()
        })
        .collect();
    let given = |port: &str| -> Vec<InputArtifact> {
        let one = |(protocol, made): (&&str, &Made)| InputArtifact {
            axes: [("protocol", *protocol), ("method", "mevf_ban")]
                .map(|(axis, value)| (axis.to_owned(), value.to_owned()))
                .into(),
            stage: String::new(),
            artifact: made[port].clone(),
        };
        protocols.iter().zip(&asked).map(one).collect()
    };
    let params = json!({ "equal_protocols": protocols, "subgroup": "training_twin" });
    let inputs = [("predictions".to_owned(), given("predictions"))];
    let compared = run_with(1, &Compare, &params, inputs.into()).unwrap();
    let text = include_str!("../../../pipelines/vqa-rad.toml");
    let stage = text.split_once("[stage.leak]").unwrap().1;
    let sql = stage.split("\"\"\"").nth(1).unwrap();
    let only = InputArtifact { axes: [].into(), stage: String::new(), artifact: compared["metrics"].clone() };
    let inputs = [("answered".to_owned(), given("metrics")), ("compared".to_owned(), vec![only])];
    let answer = run_with(1, &RunQuery, &json!({ "sql": sql }), inputs.into()).unwrap();
    let leak = read(&answer["table"]).unwrap();
    let asked: Vec<Table> = asked.iter().map(|made| read(&made["predictions"]).unwrap()).collect();
    let (twins, types) = (asked[0].bools("training_twin").unwrap(), asked[0].strings("answer_type").unwrap());
    let rows = leak.strings("questions").unwrap();
    for (name, wanted) in [
        ("all", &(|_| true) as &dyn Fn(usize) -> bool),
        ("training_twin=true", &|row| twins[row] == Some(true)),
        ("training_twin=true,answer_type=OPEN", &|row| twins[row] == Some(true) && types[row] == "OPEN"),
        ("training_twin=false,answer_type=OPEN", &|row| twins[row] == Some(false) && types[row] == "OPEN"),
    ] {
        let places: Vec<usize> = (0..asked[0].rows()).filter(|row| wanted(*row)).collect();
        let share = |table: &Table| {
            let correct = table.bools("correct").unwrap();
            places.iter().filter(|row| correct[**row] == Some(true)).count() as f64 / places.len() as f64
        };
        let row = rows.iter().position(|row| *row == name).unwrap_or_else(|| panic!("no {name}: {rows:?}"));
        let value = |column: &str| leak.float64(column).unwrap()[row].unwrap();
        let (first, second) = (share(&asked[0]), share(&asked[1]));
        assert_eq!(leak.int64("n").unwrap()[row], Some(places.len() as i64));
        assert!((value("accuracy_first") - first).abs() < 1e-12, "{name}");
        assert!((value("accuracy_second") - second).abs() < 1e-12, "{name}");
        assert!((value("difference") - (first - second)).abs() < 1e-12, "{name}");
        assert!(value("low") <= first - second && first - second <= value("high"), "{name}");
    }
    assert_eq!(leak.strings("first").unwrap()[0], "mevf-3064");
    assert_eq!(leak.rows(), 7, "all, and with a twin and without: both types, closed and open");
}

/// PubMedCLIP's protocol: the test's answers are known, and figures say so.
#[test]
fn answers_of_the_test_are_known_only_under_a_name_of_its_own() {
    let study = Study::new();
    for method in ["mevf", "qcr"] {
        let params =
            json!({ "epochs": 2, "type_epochs": 1, "vocabulary": "train+test", "matching": "exact" });
        let trained = study.train(&small(method, &params));
        let metrics = read(&study.ask(&trained, &json!({}))["metrics"]).unwrap();
        if method == "mevf" {
            assert_eq!(figure(&metrics, "ceiling", None), 1.0, "no answer is missing");
        }
        let protocols = metrics.strings("protocol").unwrap();
        assert!(protocols.iter().all(|name| name.contains("+test-answers/")), "{protocols:?}");
        let file = trained["model"].file("answers.json").unwrap();
        let text = std::fs::read_to_string(&file.location).unwrap();
        let answers = serde_json::from_str::<Json>(&text).unwrap();
        assert_eq!(answers["source"], "train+test");
        assert_eq!(answers["closed"].is_null(), method == "mevf");
    }
    let params = small("mevf", &json!({ "vocabulary": "train+test" }));
    let problems = pipe_engine::AnyKind::resolve(&FinetuneVqa, &params).unwrap_err();
    assert_eq!(problems[0].path, "matching");
}

#[test]
fn words_may_begin_as_tokens_of_the_tower() {
    let study = Study::new();
    let tables = |params: &Json| {
        let trained = study.train(&small("mevf", params));
        let file = trained["model"].file("model.safetensors").unwrap().location.clone();
        let mut tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
        let mut take = |name: &str| tensors.remove(name).map(|table| table.to_vec2::<f32>().unwrap());
        (take("w_emb.emb.weight").unwrap(), take("w_emb.emb_.weight"))
    };
    // So small a rate that they stay as they began.
    let params = json!({ "word_vectors": "clip_token", "word_width": 12, "epochs": 1, "lr": 1e-9 });
    let (own, company) = tables(&params);
    let length = |row: &Vec<f32>| row.iter().map(|value| value * value).sum::<f32>().sqrt();
    // Padding, and the word that no training question has, are zero.
    let words = own.len() - 2;
    let mean = own[..words].iter().map(length).sum::<f32>() / words as f32;
    assert!((mean - 6.3).abs() < 1e-2 && own[0].len() == 12, "{mean}");
    assert!(own[words..].iter().all(|row| length(row) < 1e-6));
    assert_eq!(company.map(|table| table.len()), Some(own.len()));
    // Without a mixture the same vectors stand beside them, and do not learn.
    let kept = |epochs: i64| {
        tables(
            &json!({ "word_vectors": "clip_token", "word_width": 12, "mixture": "none", "epochs": epochs }),
        )
    };
    let (_, beside) = kept(1);
    let (learned, later) = kept(3);
    assert_eq!(beside, later);
    assert!(learned != later.unwrap());
    // The tower of 16 values has no more axes.
    assert_eq!(
        tables(&json!({ "word_vectors": "clip_token", "word_width": 300, "epochs": 1 })).0[0].len(),
        16
    );
    let inputs = [("images", &study.data["images"]), ("questions", &study.data["questions"])];
    let error = run(&FinetuneVqa, &small("mevf", &params), &inputs).err().unwrap().to_string();
    assert!(error.contains("checkpoint"), "{error}");
}

/// In bf16 losses are near those of f32 and others, with an encoder that learns and one that stays.
#[test]
fn encoders_compute_in_half_types() {
    let study = Study::new();
    for (method, encoder) in [("mevf", "tuned"), ("mevf", "frozen"), ("cross_modal", "tuned")] {
        let learned = |precision: &str| {
            let params =
                json!({ "epochs": 3, "encoder": encoder, "precision": precision, "encoder_lr": 1e-3 });
            losses(&study.train(&small(method, &params)))
        };
        let (whole, half) = (learned("f32"), learned("bf16"));
        assert_ne!(whole, half, "{method} {encoder}");
        for (whole, half) in whole.iter().zip(&half) {
            assert!((whole - half).abs() < 0.05 * whole, "{method} {encoder}: {whole} {half}");
        }
    }
}

/// The auto-encoder stays as it began; only what the layer above it sees while it learns is another.
#[test]
fn codes_of_a_frozen_autoencoder_may_be_standardised() {
    let study = Study::new();
    let learned = |autoencoder: &str| {
        let params = json!({ "autoencoder": autoencoder, "epochs": 2 });
        let trained = study.train(&small("mevf", &params));
        let file = trained["model"].file("model.safetensors").unwrap().location.clone();
        let mut tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
        tensors.retain(|name, _| name.starts_with("ae_v_emb."));
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let encoder: BTreeMap<_, _> =
            tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect();
        let scored = study.ask(&trained, &json!({}));
        let accuracy = figure(&read(&scored["metrics"]).unwrap(), "accuracy", None);
        assert!((0.0..=1.0).contains(&accuracy));
        (encoder, losses(&trained))
    };
    let (frozen, standardised) = (learned("frozen"), learned("standardised"));
    assert!(!frozen.0.is_empty());
    assert_eq!(frozen.0, standardised.0);
    assert_ne!(frozen.1, standardised.1);
}

#[test]
fn a_model_without_numbers_is_not_scored() {
    let study = Study::new();
    for method in ["mevf", "qcr"] {
        let trained = study.train(&small(method, &json!({ "epochs": 1, "type_epochs": 1 })));
        let (_folder, broken) = poisoned(&trained["model"], "model.safetensors");
        let inputs =
            [("images", &study.data["images"]), ("questions", &study.data["questions"]), ("model", &broken)];
        let error = run(&EvaluateVqa, &json!({}), &inputs).err().unwrap().to_string();
        assert!(error.contains("NaN") && error.contains("logits of question"), "{method}: {error}");
    }
}
