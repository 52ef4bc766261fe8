//! Scores of explanations whose differences are known.

use std::collections::BTreeMap;

use pipe_engine::{InputArtifact, OutputWriter};
use tempfile::TempDir;

use super::{Compare, Params};
use crate::artifact;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use crate::testing::{run_with, tree};

/// Scores by one metric: a row per method and image; what is not finite has no value. `right` says of each image
/// whether the model is right about it.
fn scores(metric: &str, better: &str, methods: &[(&str, &[f64])], right: &[bool]) -> Table {
    let rows =
        || methods.iter().flat_map(|(name, values)| values.iter().enumerate().map(move |row| (name, row)));
    let count = rows().count();
    let same = |text: &str| Column::texts(vec![text; count]);
    Table::new()
        .with("id", Column::texts(rows().map(|(_, (place, _))| format!("image {place}"))))
        .with("method", Column::texts(rows().map(|(name, _)| *name)))
        .with("metric", same(metric))
        .with("baseline", same("zero"))
        .with(
            "value",
            Column::Float64(
                rows().map(|(_, (_, value))| Some(*value).filter(|value| value.is_finite())).collect(),
            ),
        )
        .with("mask_share", Column::Float64(vec![None; count]))
        .with("mode", same("reference"))
        .with("reason", Column::Utf8(vec![None; count]))
        .with("target", same("nodule"))
        .with("score", same("logit"))
        .with("better", same(better))
        .with(
            "parameters",
            Column::texts(rows().map(|(name, _)| format!(r#"{{"steps":5,"seed":{}}}"#, name.len()))),
        )
        .with("correct", Column::Bool(rows().map(|(_, (place, _))| Some(right[place])).collect()))
        .with_metadata("axes", r#"["map_baseline"]"#)
}

struct Given {
    folder: TempDir,
    inputs: Vec<InputArtifact>,
}

impl Given {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), inputs: Vec::new() }
    }

    fn with(mut self, axes: &[(&str, &str)], table: &Table) -> Self {
        let folder = self.folder.path().join(self.inputs.len().to_string());
        std::fs::create_dir(&folder).unwrap();
        let mut output = OutputWriter::new(folder.clone());
        write(&mut output, &TableSchema::attribution_scores(), table, WriteOptions::text("{}")).unwrap();
        let axes = axes.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned())).collect();
        let artifact = tree(&folder, artifact::ATTRIBUTION_SCORES.0);
        self.inputs.push(InputArtifact { axes, stage: String::new(), artifact });
        self
    }

    fn compare(&self, reference: Option<&str>) -> Result<Compared, String> {
        let params = Params { reference: reference.map(str::to_owned), ..Params::default() };
        let inputs = BTreeMap::from([("scores".to_owned(), self.inputs.clone())]);
        let params = serde_json::to_value(params).unwrap();
        let made = run_with(2, &Compare, &params, inputs).map_err(|error| error.to_string())?;
        Ok(Compared(read(&made["metrics"]).unwrap()))
    }
}

struct Compared(Table);

impl Compared {
    fn row(&self, method: &str, metric: &str, subgroup: Option<&str>) -> usize {
        let (methods, metrics) = (self.0.strings("method").unwrap(), self.0.strings("metric").unwrap());
        let subgroups = self.0.utf8("subgroup").unwrap();
        let is_it = |row: &usize| {
            methods[*row] == method && metrics[*row] == metric && subgroups[*row].as_deref() == subgroup
        };
        let rows: Vec<usize> = (0..self.0.rows()).filter(is_it).collect();
        assert_eq!(rows.len(), 1, "{method} {metric} {subgroup:?} in {methods:?} {metrics:?}");
        rows[0]
    }

    fn value(&self, method: &str, metric: &str, subgroup: Option<&str>) -> Option<f64> {
        self.0.float64("value").unwrap()[self.row(method, metric, subgroup)]
    }

    fn pairs(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .0
            .strings("method")
            .unwrap()
            .into_iter()
            .filter(|name| name.contains(" - "))
            .map(str::to_owned)
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

const FAITHFUL: [f64; 6] = [0.9, 0.8, 0.7, 0.9, 0.8, 0.6];
const PLAIN: [f64; 6] = [0.5, 0.45, 0.3, 0.52, 0.41, 0.2];
const NOISE: [f64; 6] = [0.1, 0.9, 0.2, 0.1, 0.0, 0.1];
const RIGHT: [bool; 6] = [true, true, true, false, false, false];

fn of_one_model() -> Table {
    let methods: [(&str, &[f64]); 4] =
        [("occlusion", &FAITHFUL), ("gradient", &PLAIN), ("random", &NOISE), ("edge", &[0.0; 6])];
    scores("pixel_flipping_gap", "higher", &methods, &RIGHT)
}

#[test]
fn methods_are_paired_map_by_map() {
    let compared = Given::new().with(&[], &of_one_model()).compare(None).unwrap();
    // No pair of two controls.
    let pairs = [
        "edge - gradient",
        "edge - occlusion",
        "gradient - occlusion",
        "gradient - random",
        "occlusion - random",
    ];
    assert_eq!(compared.pairs(), pairs);
    let value =
        |metric: &str| compared.value("gradient - occlusion", &format!("pixel_flipping_gap_{metric}"), None);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    assert!((value("difference").unwrap() - (mean(&PLAIN) - mean(&FAITHFUL))).abs() < 1e-12);
    assert_eq!(value("rank_biserial"), Some(-1.0));
    // Six differences of one sign: 2 / 2^6; five pairs are tested, and two have p of this size or less.
    let p = 2.0 / 64.0;
    let compared_p = value("wilcoxon_p").unwrap();
    assert!((compared_p - p).abs() < 0.02, "{compared_p}");
    assert!(value("wilcoxon_p_holm").unwrap() >= compared_p);
    // Of the images that the model is right about there are three.
    let row = compared.row("gradient - occlusion", "pixel_flipping_gap_difference", Some("correct=true"));
    assert_eq!(compared.0.int64("n").unwrap()[row], Some(3));
    let right = compared.0.float64("value").unwrap()[row].unwrap();
    assert!((right - (mean(&PLAIN[..3]) - mean(&FAITHFUL[..3]))).abs() < 1e-12);
    // The best map has rank 1, five times of six; noise beats it once.
    let rank = |method| compared.value(method, "pixel_flipping_gap_mean_rank", None).unwrap();
    assert!((rank("occlusion") - 7.0 / 6.0).abs() < 1e-12);
    assert!((rank("gradient") - 13.0 / 6.0).abs() < 1e-12);
}

#[test]
fn one_method_is_paired_across_models() {
    let other =
        scores("pixel_flipping_gap", "higher", &[("occlusion", &PLAIN), ("random", &NOISE)], &[true; 6]);
    let given =
        Given::new().with(&[("model", "general")], &of_one_model()).with(&[("model", "medical")], &other);
    let compared = given.compare(None).unwrap();
    assert!(compared.pairs().contains(&"general/occlusion - medical/occlusion".to_owned()));
    // Controls of two models, and other methods of another model, are no pair.
    assert!(!compared.pairs().iter().any(|pair| pair == "general/random - medical/random"));
    assert!(!compared.pairs().iter().any(|pair| pair == "general/gradient - medical/occlusion"));
    let metric = "pixel_flipping_gap_difference";
    assert!(compared.value("general/occlusion - medical/occlusion", metric, None).unwrap() > 0.3);
    let against = |reference| given.compare(Some(reference)).unwrap().pairs();
    assert_eq!(against("medical"), ["general/occlusion - medical/occlusion"]);
    let random = [
        "general/gradient - general/random",
        "general/occlusion - general/random",
        "medical/occlusion - medical/random",
    ];
    assert_eq!(against("random"), random);
    assert_eq!(against("medical/random"), random[2..]);
    assert!(given.compare(Some("nobody")).err().unwrap().contains("`nobody` is none of"));
}

#[test]
fn what_is_missing_is_left_out_and_other_terms_are_refused() {
    let missing = [f64::NAN, 0.8, 0.7, f64::NAN, 0.8, 0.6];
    let methods: [(&str, &[f64]); 2] = [("a", &missing), ("b", &FAITHFUL)];
    let table = scores("road_gap", "higher", &methods, &RIGHT);
    let compared = Given::new().with(&[], &table).compare(None).unwrap();
    let row = compared.row("a - b", "road_gap_difference", None);
    assert_eq!(compared.0.int64("n").unwrap()[row], Some(4));
    assert_eq!(compared.0.float64("value").unwrap()[row], Some(0.0));
    let reason = compared.0.utf8("reason").unwrap()[row].clone().unwrap();
    assert!(reason.contains("2 maps"), "{reason}");
    assert_eq!(compared.value("a - b", "road_gap_rank_biserial", None), None, "nothing differs");

    let black = table.clone().replacing("baseline", Column::texts(vec!["black"; table.rows()]));
    let given = Given::new().with(&[("model", "x")], &table).with(&[("model", "y")], &black);
    let compared = given.compare(None).unwrap();
    let row = compared.row("x/b - y/b", "road_gap_difference", None);
    assert_eq!(compared.0.float64("value").unwrap()[row], None);
    let reason = compared.0.utf8("reason").unwrap()[row].clone().unwrap();
    assert!(
        reason.contains("`reference zero logit`") && reason.contains("`reference black logit`"),
        "{reason}"
    );
}

#[test]
fn heavy_tails_are_compared_by_their_logarithms() {
    let methods: [(&str, &[f64]); 2] = [("a", &[1.0, 10.0, 1e9]), ("b", &[10.0, 100.0, 1e7])];
    let table = scores("relative_input_stability", "lower", &methods, &RIGHT);
    let compared = Given::new().with(&[], &table).compare(None).unwrap();
    let ratio = compared.value("a - b", "relative_input_stability_log10_ratio", None).unwrap();
    assert!(ratio.abs() < 1e-12, "(-1 - 1 + 2) / 3: {ratio}");
}

#[test]
fn one_explanation_alone_is_refused() {
    let table = scores("road_gap", "higher", &[("a", &FAITHFUL)], &RIGHT);
    let error = Given::new().with(&[], &table).compare(None).err().unwrap();
    assert!(error.contains("two explanations are needed"), "{error}");
}
