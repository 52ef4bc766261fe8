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
