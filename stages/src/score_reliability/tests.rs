//! Metrics whose consistency is known.

use std::collections::BTreeMap;

use pipe_engine::{InputArtifact, OutputWriter};
use serde_json::json;
use tempfile::TempDir;

use super::ScoreReliability;
use crate::artifact;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use crate::testing::{run_with, tree};

/// A table of one metric: values by method, and the class that each map explains.
fn scores(better: &str, methods: &[(&str, Vec<f64>)], classes: &[&str]) -> Table {
    let rows =
        || methods.iter().flat_map(|(name, values)| values.iter().enumerate().map(move |row| (name, row)));
    let count = rows().count();
    let same = |text: &str| Column::texts(vec![text; count]);
    Table::new()
        .with("id", Column::texts(rows().map(|(_, (place, _))| format!("image {place}"))))
        .with("method", Column::texts(rows().map(|(name, _)| *name)))
        .with("metric", same("road_gap"))
        .with("value", Column::Float64(rows().map(|(_, (_, value))| Some(*value)).collect()))
        .with("mode", same("reference"))
        .with("better", same(better))
        .with("target", Column::texts(rows().map(|(_, (place, _))| classes[place])))
}

/// Figures by name, or their reasons.
fn judged(before: &Table, minor: &[&Table], disruptive: &[&Table]) -> BTreeMap<String, Result<f64, String>> {
    let folder = TempDir::new().unwrap();
    let mut count = 0;
    let mut input = |table: &Table| {
        count += 1;
        let folder = folder.path().join(count.to_string());
        std::fs::create_dir(&folder).unwrap();
        let mut output = OutputWriter::new(folder.clone());
        write(&mut output, &TableSchema::attribution_scores(), table, WriteOptions::text("{}")).unwrap();
        let artifact = tree(&folder, artifact::ATTRIBUTION_SCORES.0);
        InputArtifact { axes: BTreeMap::new(), stage: format!("stage {count}"), artifact }
    };
    let inputs = BTreeMap::from([
        ("scores".to_owned(), vec![input(before)]),
        ("minor".to_owned(), minor.iter().map(|table| input(table)).collect()),
        ("disruptive".to_owned(), disruptive.iter().map(|table| input(table)).collect()),
    ]);
    let made = run_with(1, &ScoreReliability, &json!({}), inputs).unwrap();
    let table = read(&made["metrics"]).unwrap();
    let (names, values) = (table.strings("metric").unwrap(), table.float64("value").unwrap());
    let (methods, reasons) = (table.strings("method").unwrap(), table.utf8("reason").unwrap());
    assert!(methods.iter().all(|method| *method == "road_gap"));
    let value = |row: usize| values[row].ok_or_else(|| reasons[row].clone().unwrap());
    names.iter().enumerate().map(|(row, name)| ((*name).to_owned(), value(row))).collect()
}

const A: [f64; 8] = [0.9, 0.8, 0.85, 0.7, 0.95, 0.75, 0.6, 0.65];
const B: [f64; 8] = [0.4, 0.3, 0.35, 0.2, 0.45, 0.25, 0.1, 0.15];

fn moved(values: [f64; 8], by: f64) -> Vec<f64> {
    values.iter().map(|value| value + by).collect()
}

#[test]
fn a_metric_that_hears_the_model_and_nothing_else_is_reliable() {
    let classes = ["a"; 8];
    let before =
        scores("higher", &[("x", A.to_vec()), ("y", B.to_vec()), ("random", vec![0.0; 8])], &classes);
    let lost = scores("higher", &[("x", moved(A, -0.5)), ("y", moved(B, -0.5))], &["b"; 8]);
    let figures = judged(&before, &[&before, &before], &[&lost]);
    let value = |name: &str| figures[name].clone().unwrap();
    assert_eq!(value("intra_consistency_minor"), 1.0);
    assert_eq!(value("inter_consistency_minor"), 1.0);
    // Eight falls of eight.
    assert!(value("intra_consistency_disruptive") > 0.98);
    assert_eq!(value("inter_consistency_disruptive"), 1.0);
    assert!(value("meta_consistency") > 0.99);

    // One that is moved by what does not matter, and stays when the prediction changes, is not.
    let swapped = scores("higher", &[("x", moved(B, 0.01)), ("y", A.to_vec())], &classes);
    let deaf = scores("higher", &[("x", A.to_vec()), ("y", B.to_vec())], &["b"; 8]);
    let figures = judged(&before, &[&swapped], &[&deaf]);
    let value = |name: &str| figures[name].clone().unwrap();
    assert!(value("intra_consistency_minor") < 0.05);
    assert_eq!(value("inter_consistency_minor"), 0.0);
    assert_eq!((value("intra_consistency_disruptive"), value("inter_consistency_disruptive")), (0.0, 0.0));
    assert!(value("meta_consistency") < 0.05);
}

#[test]
fn only_maps_whose_prediction_stays_or_changes_count() {
    let classes = ["a"; 8];
    let before = scores("lower", &[("x", A.to_vec()), ("y", B.to_vec())], &classes);
    // The last two maps explain another class: they are no minor change, and the only disruptive ones.
    let mut turned = classes;
    turned[6..].fill("b");
    let mut x = A.to_vec();
    x[6..].fill(2.0);
    let after = scores("lower", &[("x", x), ("y", B.to_vec())], &turned);
    let figures = judged(&before, &[&after], &[&after]);
    assert_eq!(figures["intra_consistency_minor"], Ok(1.0));
    // Worse are both maps of x, and none of y.
    assert_eq!(figures["inter_consistency_disruptive"], Ok(0.5));
    let none = judged(&before, &[&before], &[&before]);
    assert!(none["inter_consistency_disruptive"].is_err() && none["meta_consistency"].is_err());
}

#[test]
fn one_method_has_no_rank_and_a_description_nothing_worse() {
    let before = scores("none", &[("x", A.to_vec())], &["a"; 8]);
    let after = scores("none", &[("x", B.to_vec())], &["b"; 8]);
    let figures = judged(&before, &[&before], &[&after]);
    assert_eq!(figures["inter_consistency_minor"], Err("one method alone has no rank".to_owned()));
    assert!(figures["inter_consistency_disruptive"].clone().unwrap_err().contains("what is better"));
    assert_eq!(figures["intra_consistency_minor"], Ok(1.0));
}
