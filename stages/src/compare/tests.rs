//! The stage on tables whose differences are known.

use std::collections::BTreeMap;

use pipe_engine::{Artifact, InputArtifact, OutputWriter};
use tempfile::TempDir;

use super::{Compare, Params};
use crate::artifact;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use crate::testing::{run_with, tree};

/// Predictions of one model: right or not by item, with the probability of class 1.
fn predictions(ids: &[usize], right: &str, protocol: &str) -> Table {
    let right: Vec<bool> = right.chars().map(|bit| bit == '1').collect();
    assert_eq!(right.len(), ids.len());
    let target = |place: usize| (ids[place] % 2) as i32;
    let class = |place: usize| if right[place] { target(place) } else { 1 - target(place) };
    let score = |place: usize| {
        let certainty = 0.6 + 0.01 * (place % 7) as f32;
        let positive = if class(place) == 1 { certainty } else { 1.0 - certainty };
        Some(vec![1.0 - positive, positive])
    };
    let rows = || 0..ids.len();
    Table::new()
        .with("id", Column::texts(ids.iter().map(|id| format!("item {id}"))))
        .with("split", Column::texts(rows().map(|_| "test")))
        .with("protocol", Column::texts(rows().map(|_| protocol)))
        .with("target", Column::ListInt32(rows().map(|place| Some(vec![target(place)])).collect()))
        .with("prediction", Column::ListInt32(rows().map(|place| Some(vec![class(place)])).collect()))
        .with("scores", Column::ListFloat32(rows().map(score).collect()))
        .with("correct", Column::Bool(right.iter().map(|right| Some(*right)).collect()))
        .with_metadata("task", "binary-class")
}

fn ranks(values: &[i64], pool: &str) -> Table {
    let rows = || values.iter().enumerate();
    let integers =
        |value: &dyn Fn(i64) -> i64| Column::Int64(values.iter().map(|rank| Some(value(*rank))).collect());
    Table::new()
        .with("id", Column::texts(rows().map(|(place, _)| format!("item {place}"))))
        .with("direction", Column::texts(rows().map(|_| "image_to_text")))
        .with("rank", integers(&|rank| rank))
        .with("rank_optimistic", integers(&|rank| rank))
        .with("rank_pessimistic", integers(&|rank| rank))
        .with("pool_size", integers(&|_| 100))
        .with("pool_hash", Column::texts(rows().map(|_| pool)))
}

/// Tables on disk, with the axes of the nodes that wrote them.
struct Given {
    folder: TempDir,
    inputs: Vec<InputArtifact>,
}

impl Given {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), inputs: Vec::new() }
    }

    fn with(mut self, axes: &[(&str, &str)], table: &Table) -> Self {
        let is_ranks = table.column("rank").is_some();
        let folder = self.folder.path().join(self.inputs.len().to_string());
        std::fs::create_dir(&folder).unwrap();
        let mut output = OutputWriter::new(folder.clone());
        let schema = if is_ranks { TableSchema::ranks() } else { TableSchema::predictions() };
        write(&mut output, &schema, table, WriteOptions::text("{}")).unwrap();
        let kind = if is_ranks { artifact::RANKS } else { artifact::PREDICTIONS };
        let artifact: Artifact = tree(&folder, kind.0);
        let axes = axes.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned())).collect();
        self.inputs.push(InputArtifact { axes, stage: String::new(), artifact });
        self
    }

    fn compare(&self, params: &Params) -> Result<Table, String> {
        let params = serde_json::to_value(params).unwrap();
        let inputs = BTreeMap::from([("predictions".to_owned(), self.inputs.clone())]);
        let made = run_with(2, &Compare, &params, inputs).map_err(|error| error.to_string())?;
        Ok(read(&made["metrics"]).unwrap())
    }
}

fn value(table: &Table, method: &str, metric: &str) -> Option<f64> {
    let (methods, metrics) = (table.strings("method").unwrap(), table.strings("metric").unwrap());
    let rows: Vec<usize> =
        (0..table.rows()).filter(|row| methods[*row] == method && metrics[*row] == metric).collect();
    assert_eq!(rows.len(), 1, "{method} {metric} in {methods:?} {metrics:?}");
    table.float64("value").unwrap()[rows[0]]
}

fn items(count: usize) -> Vec<usize> {
    (0..count).collect()
}

#[test]
fn what_only_one_has_right_decides() {
    let given = Given::new()
        .with(&[("model", "a")], &predictions(&items(20), "11111111111111111100", "p"))
        .with(&[("model", "b")], &predictions(&items(20), "11111111110000000000", "p"))
        .with(&[("model", "c")], &predictions(&items(20), "01111111111111111100", "p"));
    let table = given.compare(&Params::default()).unwrap();
    assert!((value(&table, "a - b", "accuracy_difference").unwrap() - 0.4).abs() < 1e-12);
    // Eight against none: 2 / 2^8.
    let p = value(&table, "a - b", "mcnemar_p").unwrap();
    assert!((p - 2.0 / 256.0).abs() < 1e-12);
    // Three pairs: the least is multiplied by three.
    assert!((value(&table, "a - b", "mcnemar_p_holm").unwrap() - 3.0 * p).abs() < 1e-12);
    assert_eq!(value(&table, "a - c", "mcnemar_p"), Some(1.0));
    assert_eq!(value(&table, "a - b", "odds_ratio"), None);
    assert_eq!(value(&table, "b - c", "odds_ratio"), Some(1.0 / 8.0));
    assert!(value(&table, "a - b", "delong_p").unwrap() < 0.05);
    let reference = Params { reference: Some("b".to_owned()), ..Params::default() };
    let table = given.compare(&reference).unwrap();
    assert!(value(&table, "a - b", "cohens_h").unwrap() > 0.9);
    assert!(value(&table, "c - b", "auroc_difference").unwrap() > 0.0);
    assert!(table.strings("method").unwrap().iter().all(|method| method.ends_with("- b")));
}

#[test]
fn small_sets_are_resampled_within_classes() {
    // One positive among 21: every third resample has none.
    let ids: Vec<usize> = (0..20).map(|place| 2 * place).chain([1]).collect();
    let given = Given::new()
        .with(&[("model", "a")], &predictions(&ids, "111111111111111111111", "p"))
        .with(&[("model", "b")], &predictions(&ids, "110111110111011111111", "p"));
    let interval = |stratified| {
        let table = given.compare(&Params { stratified, ..Params::default() }).unwrap();
        let metrics = table.strings("metric").unwrap();
        let row = metrics.iter().position(|metric| *metric == "auroc_difference").unwrap();
        (table.float64("value").unwrap()[row], table.float64("ci_low").unwrap()[row])
    };
    assert_eq!(interval(false).0, interval(true).0);
    assert_eq!(interval(false).1, None);
    assert!(interval(true).1.is_some());
}

#[test]
fn other_items_protocols_targets_and_pools_are_refused() {
    let a = predictions(&items(4), "1111", "published");
    let refused = |other: &Table| {
        let given = Given::new().with(&[("model", "a")], &a).with(&[("model", "b")], other);
        given.compare(&Params::default()).unwrap_err()
    };
    let error = refused(&predictions(&[0, 1, 2, 7], "1111", "published"));
    assert!(
        error.contains("`a` and `b`") && error.contains("item 3") && error.contains("missing"),
        "{error}"
    );
    let error = refused(&predictions(&items(4), "1111", "clean"));
    assert!(error.contains("protocol") && error.contains("published") && error.contains("clean"), "{error}");
    let ranked = Given::new()
        .with(&[("model", "a")], &ranks(&[0, 1], "x"))
        .with(&[("model", "b")], &ranks(&[1, 0], "y"));
    let error = ranked.compare(&Params::default()).unwrap_err();
    assert!(error.contains("pool") && error.contains('x') && error.contains('y'), "{error}");
    let error = Given::new().with(&[], &a).compare(&Params::default()).unwrap_err();
    assert!(error.contains("two models"), "{error}");
    let twice = Given::new().with(&[("model", "a")], &a).with(&[("model", "a")], &a);
    assert!(twice.compare(&Params::default()).unwrap_err().contains("called `a`"));
    let wrong = Params { reference: Some("z".to_owned()), ..Params::default() };
    let given = Given::new().with(&[("model", "a")], &a).with(&[("model", "b")], &a);
    assert!(given.compare(&wrong).unwrap_err().contains("`z` is none"));
}

#[test]
fn ranks_are_compared_by_recall_and_signed_ranks() {
    let better: Vec<i64> = (0..30).map(|place| place % 3).collect();
    let worse: Vec<i64> = (0..30).map(|place| place % 3 + 1 + place % 5).collect();
    let given = Given::new()
        .with(&[("model", "a")], &ranks(&better, "x"))
        .with(&[("model", "b")], &ranks(&worse, "x"));
    let table = given.compare(&Params { k: vec![1], ..Params::default() }).unwrap();
    assert!(value(&table, "a - b", "image_to_text_recall@1_equivalence_p").unwrap() > 0.5);
    assert!(table.strings("task").unwrap().iter().all(|task| *task == "retrieval"));
    assert!((value(&table, "a - b", "image_to_text_recall@1_difference").unwrap() - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(value(&table, "a - b", "image_to_text_rank_biserial"), Some(-1.0));
    assert!(value(&table, "a - b", "image_to_text_wilcoxon_p").unwrap() < 1e-5);
}

#[test]
fn several_data_sets_rank_the_models() {
    let mut given = Given::new();
    for dataset in ["d1", "d2", "d3"] {
        for (model, right) in [("a", "1111111100"), ("b", "1111110000"), ("c", "1100110011")] {
            given =
                given.with(&[("dataset", dataset), ("model", model)], &predictions(&items(10), right, "p"));
        }
    }
    let table = given.compare(&Params::default()).unwrap();
    assert_eq!(value(&table, "a", "auroc_mean_rank"), Some(1.0));
    // Three gains of three, all equal: normal approximation, as ties have no exact probability.
    assert!(value(&table, "a - b", "auroc_wilcoxon_p").unwrap() < 0.11);
    let datasets = table.utf8("dataset").unwrap();
    assert_eq!(
        datasets.iter().filter(|name| name.as_deref() == Some("d2")).count() * 3 + 3 * 4,
        table.rows()
    );
}

/// Predictions of answers by a model whose list is `list`: what it answers to each question, the last of which are
/// open, and whether each has a twin in training.
fn answers(list: &[&str], given: &[&str], right: &[&str], protocol: &str) -> Table {
    let rows = || 0..given.len();
    let label = |answer: &str| list.iter().position(|one| *one == answer).map(|place| place as i32);
    let labels = |answers: &[&str]| {
        Column::ListInt32(answers.iter().map(|answer| Some(label(answer).into_iter().collect())).collect())
    };
    let is_closed = |row: usize| matches!(right[row], "yes" | "no");
    Table::new()
        .with("id", Column::texts(rows().map(|row| format!("question {row}"))))
        .with("split", Column::texts(rows().map(|_| "test")))
        .with("protocol", Column::texts(rows().map(|_| protocol)))
        .with("image", Column::texts(rows().map(|row| format!("image {}", row / 2))))
        .with("target", labels(right))
        .with("prediction", labels(given))
        .with("scores", Column::ListFloat32(rows().map(|_| Some(vec![0.5; list.len()])).collect()))
        .with("correct", Column::Bool(rows().map(|row| Some(given[row] == right[row])).collect()))
        .with("answer", Column::texts(right.iter().copied()))
        .with("answer_type", Column::texts(rows().map(|row| if is_closed(row) { "CLOSED" } else { "OPEN" })))
        .with("predicted_answer", Column::texts(given.iter().copied()))
        .with("training_twin", Column::Bool(rows().map(|row| Some(row % 2 == 0)).collect()))
        .with_metadata("task", "vqa")
        .with_metadata("matching", "normalised")
}

/// The value of a subgroup's figure.
fn of_subgroup(table: &Table, subgroup: &str, metric: &str) -> Option<f64> {
    let (subgroups, metrics) = (table.strings("subgroup").unwrap(), table.strings("metric").unwrap());
    let rows: Vec<usize> =
        (0..table.rows()).filter(|row| subgroups[*row] == subgroup && metrics[*row] == metric).collect();
    assert_eq!(rows.len(), 1, "{subgroup} {metric} in {subgroups:?} {metrics:?}");
    table.float64("value").unwrap()[rows[0]]
}

const RIGHT: [&str; 8] = ["yes", "no", "yes", "no", "lung", "liver", "lung", "left"];

#[test]
fn answers_of_different_lists_are_compared_as_texts() {
    // One list in the order of training, the other with closed answers first and without `left`.
    let mevf = answers(
        &["lung", "yes", "left", "no", "liver"],
        &["yes", "no", "yes", "no", "lung", "lung", "lung", "left"],
        &RIGHT,
        "p",
    );
    let qcr = answers(
        &["yes", "no", "lung", "liver"],
        &["yes", "no", "yes", "yes", "lung", "lung", "liver", "lung"],
        &RIGHT,
        "p",
    );
    let given = Given::new().with(&[("method", "mevf")], &mevf).with(&[("method", "qcr")], &qcr);
    let table = given.compare(&Params::default()).unwrap();
    let difference = |subgroup| of_subgroup(&table, subgroup, "accuracy_difference").unwrap();
    assert!((difference("") - 3.0 / 8.0).abs() < 1e-12);
    assert!((difference("answer_type=CLOSED") - 0.25).abs() < 1e-12);
    assert!((difference("answer_type=OPEN") - 0.5).abs() < 1e-12);
    // Two open questions that only the first has right: 2 / 2^2.
    assert_eq!(of_subgroup(&table, "answer_type=OPEN", "mcnemar_p"), Some(0.5));
    assert!(table.strings("task").unwrap().iter().all(|task| *task == "vqa"));
    assert!(table.strings("protocol").unwrap().iter().all(|protocol| *protocol == "p"));
    assert!(table.strings("matching").unwrap().iter().all(|matching| *matching == "normalised"));
    // Other answers are refused, and so is another way to compare them.
    let mut other = RIGHT;
    other[4] = "heart";
    let refused = |table: &Table| {
        let given = Given::new().with(&[("method", "mevf")], &mevf).with(&[("method", "other")], table);
        given.compare(&Params::default()).unwrap_err()
    };
    let error = refused(&answers(&["yes", "no"], &["yes"; 8], &other, "p"));
    assert!(error.contains("lung") && error.contains("heart") && error.contains("question 4"), "{error}");
    let error = refused(&qcr.clone().with_metadata("matching", "exact"));
    assert!(error.contains("normalised") && error.contains("exact"), "{error}");
    let error = refused(&predictions(&items(8), "11111111", "p"));
    assert!(error.contains("vqa") && error.contains("classification"), "{error}");
}

#[test]
fn protocols_are_compared_only_if_they_are_named() {
    let list = ["yes", "no", "lung", "liver", "left"];
    let leaky = answers(&list, &RIGHT, &RIGHT, "mevf-3064");
    let given = ["yes", "no", "no", "no", "lung", "liver", "left", "left"];
    // Asked one question less.
    let clean = answers(&list, &given, &RIGHT, "clean-2773").select(&[0, 1, 2, 3, 4, 5, 6]);
    let study = Given::new()
        .with(&[("protocol", "mevf-3064")], &leaky)
        .with(&[("protocol", "clean-2773")], &clean)
        .with(&[("protocol", "published-1797")], &answers(&list, &given, &RIGHT, "published-1797"));
    let equal = |names: &[&str]| Params {
        reference: Some("clean-2773".to_owned()),
        equal_protocols: names.iter().map(|name| (*name).to_owned()).collect(),
        subgroup: Some("training_twin".to_owned()),
        ..Params::default()
    };
    assert!(study.compare(&equal(&[])).unwrap_err().contains("missing"));
    let error = study.compare(&equal(&["clean-2773", "mevf-3064"])).unwrap_err();
    assert!(error.contains("published-1797"), "{error}");
    let table = study.compare(&equal(&["clean-2773", "mevf-3064", "published-1797"])).unwrap();
    let (methods, subgroups) = (table.strings("method").unwrap(), table.strings("subgroup").unwrap());
    let (metrics, values) = (table.strings("metric").unwrap(), table.float64("value").unwrap());
    let row = |subgroup: &str| {
        let is_it = |row: &usize| {
            methods[*row] == "mevf-3064 - clean-2773"
                && subgroups[*row] == subgroup
                && metrics[*row] == "accuracy_difference"
        };
        (0..table.rows()).find(is_it).unwrap()
    };
    // Of the seven questions that both have, two were lost, both with a twin.
    let all = row("");
    assert!((values[all].unwrap() - 2.0 / 7.0).abs() < 1e-12);
    assert_eq!(table.int64("n").unwrap()[all], Some(7));
    assert_eq!(table.strings("protocol").unwrap()[all], "mevf-3064 = clean-2773");
    let reason = table.strings("reason").unwrap()[all];
    assert!(reason.contains("1 items of the first and 0 of the second"), "{reason}");
    assert!(table.float64("ci_low").unwrap()[all].is_some());
    assert!((values[row("training_twin=true")].unwrap() - 0.5).abs() < 1e-12);
    assert_eq!(values[row("training_twin=false")], Some(0.0));
    // One of them open, of the two open questions with a twin.
    let open = row("training_twin=true,answer_type=OPEN");
    assert!((values[open].unwrap() - 0.5).abs() < 1e-12);
    assert_eq!(table.int64("n").unwrap()[open], Some(2));
    assert_eq!(values[row("training_twin=false,answer_type=OPEN")], Some(0.0));
    // One protocol alone is equal to nothing.
    let problems =
        pipe_engine::AnyKind::resolve(&Compare, &serde_json::to_value(equal(&["clean-2773"])).unwrap());
    assert_eq!(problems.unwrap_err()[0].path, "equal_protocols");
}

#[test]
fn equality_is_tested_against_the_margin() {
    // Two models that differ in two of two hundred samples, and one that differs in forty more.
    let bits = |wrong: usize| (0..200).map(|place| if place < wrong { '0' } else { '1' }).collect::<String>();
    let given = Given::new()
        .with(&[("model", "a")], &predictions(&items(200), &bits(0), "p"))
        .with(&[("model", "b")], &predictions(&items(200), &bits(2), "p"))
        .with(&[("model", "c")], &predictions(&items(200), &bits(42), "p"));
    let table = given.compare(&Params { margin: 0.05, ..Params::default() }).unwrap();
    assert!(value(&table, "a - b", "accuracy_equivalence_p").unwrap() < 0.01);
    assert!(value(&table, "a - b", "accuracy_equivalence_p_holm").unwrap() < 0.05);
    assert!(value(&table, "a - c", "accuracy_equivalence_p").unwrap() > 0.99);
    assert!(value(&table, "a - b", "auroc_equivalence_p").is_some());
    assert_eq!(value(&table, "a - b", "equivalence_margin"), Some(0.05));
}
