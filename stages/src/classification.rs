//! What every evaluation of a classifier writes: predictions, and figures with intervals.

use pipe_engine::{OutputWriter, StageError};

use crate::evaluator::{Evaluator, probabilities};
use crate::model::HeadDescription;
use crate::statistics::{Estimate, Groups, argmax, bootstrap, mean};
use crate::table::{Column, Table, TableSchema, WriteOptions, write};

/// Classified samples.
pub(crate) struct Classified {
    pub(crate) ids: Vec<String>,
    pub(crate) splits: Vec<String>,
    pub(crate) groups: Vec<Option<String>>,
    pub(crate) targets: Vec<Vec<i64>>,
    pub(crate) logits: Vec<Vec<f32>>,
}

/// A row of the metrics table.
#[derive(Clone, Debug)]
pub(crate) struct Metric {
    pub(crate) task: String,
    pub(crate) split: String,
    pub(crate) modality: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) metric: String,
    pub(crate) k: Option<i64>,
    pub(crate) class: Option<String>,
    pub(crate) subgroup: Option<String>,
    pub(crate) estimate: Option<Estimate>,
    pub(crate) n: usize,
    pub(crate) seed: Option<i64>,
    pub(crate) protocol: Option<String>,
    pub(crate) reason: Option<String>,
}

impl Metric {
    pub(crate) fn new(task: &str, split: &str, metric: &str, estimate: Option<Estimate>, n: usize) -> Self {
        Self {
            task: task.to_owned(),
            split: split.to_owned(),
            modality: None,
            method: None,
            metric: metric.to_owned(),
            k: None,
            class: None,
            subgroup: None,
            estimate,
            n,
            seed: None,
            protocol: None,
            reason: None,
        }
    }
}

/// Writes figures as the long table of all tasks.
pub(crate) fn write_metrics(
    output: &mut OutputWriter,
    metrics: &[Metric],
    provenance: &str,
) -> Result<(), StageError> {
    let text = |value: &dyn Fn(&Metric) -> Option<String>| Column::Utf8(metrics.iter().map(value).collect());
    let number = |value: &dyn Fn(&Estimate) -> Option<f64>| {
        Column::Float64(metrics.iter().map(|metric| metric.estimate.as_ref().and_then(value)).collect())
    };
    let table = Table::new()
        .with("task", text(&|metric| Some(metric.task.clone())))
        .with("split", text(&|metric| Some(metric.split.clone())))
        .with("modality", text(&|metric| metric.modality.clone()))
        .with("method", text(&|metric| metric.method.clone()))
        .with("metric", text(&|metric| Some(metric.metric.clone())))
        .with("k", Column::Int64(metrics.iter().map(|metric| metric.k).collect()))
        .with("class", text(&|metric| metric.class.clone()))
        .with("value", number(&|estimate| Some(estimate.value)))
        .with("ci_low", number(&|estimate| estimate.low))
        .with("ci_high", number(&|estimate| estimate.high))
        .with("n", Column::Int64(metrics.iter().map(|metric| Some(metric.n as i64)).collect()))
        .with("seed", Column::Int64(metrics.iter().map(|metric| metric.seed).collect()))
        .with("protocol", text(&|metric| metric.protocol.clone()))
        .with(
            "reason",
            text(&|metric| {
                metric
                    .reason
                    .clone()
                    .or_else(|| metric.estimate.is_none().then(|| "undefined for these samples".to_owned()))
            }),
        )
        .with("subgroup", text(&|metric| metric.subgroup.clone()));
    write(output, &TableSchema::metrics(), &table, WriteOptions::text(provenance))
}

impl Classified {
    /// The rows of one split.
    pub(crate) fn rows(&self, split: &str) -> Vec<usize> {
        (0..self.ids.len()).filter(|row| self.splits[*row] == split).collect()
    }

    /// The splits in order of first appearance.
    pub(crate) fn splits(&self) -> Vec<String> {
        let mut splits: Vec<String> = Vec::new();
        for split in &self.splits {
            if !splits.contains(split) {
                splits.push(split.clone());
            }
        }
        splits
    }

    /// The MedMNIST evaluator's figures (AUROC and accuracy) with AUROC per class, over `rows`.
    pub(crate) fn metrics(
        &self,
        description: &HeadDescription,
        split: &str,
        rows: &[usize],
        seed: i64,
    ) -> Vec<Metric> {
        if rows.is_empty() {
            return Vec::new();
        }
        let samples = rows.iter().map(|row| (self.targets[*row].as_slice(), self.logits[*row].as_slice()));
        let evaluator = Evaluator::new(description, samples);
        let groups: Vec<Option<String>> = rows.iter().map(|row| self.groups[*row].clone()).collect();
        let groups = Groups::new(&groups);
        let right: Vec<f64> = (0..rows.len()).map(|row| evaluator.right(row)).collect();
        let seed_bits = seed as u64;
        let task = "classification";
        let mut metrics = vec![
            Metric::new(
                task,
                split,
                "auroc",
                bootstrap(&groups, seed_bits, |weight| evaluator.auroc(weight)),
                rows.len(),
            ),
            Metric::new(
                task,
                split,
                "accuracy",
                bootstrap(&groups, seed_bits, |weight| mean(&right, weight)),
                rows.len(),
            ),
        ];
        if metrics[0].estimate.is_none() {
            metrics[0].reason = Some("a class has no or only positive samples".to_owned());
        }
        let majority = (0..description.classes.len())
            .map(|class| (0..rows.len()).filter(|row| evaluator.positive(class, *row)).count())
            .max()
            .unwrap_or_default();
        if !description.is_multi_label() {
            let share = majority as f64 / rows.len() as f64;
            let mut floor = Metric::new(
                task,
                split,
                "accuracy",
                Some(Estimate { value: share, low: None, high: None }),
                rows.len(),
            );
            floor.method = Some("majority".to_owned());
            metrics.push(floor);
        }
        if evaluator.scored_classes().len() > 1 {
            for class in evaluator.scored_classes() {
                let estimate = bootstrap(&groups, seed_bits, |weight| evaluator.class_auroc(class, weight));
                let mut metric = Metric::new(task, split, "auroc", estimate, rows.len());
                metric.class = Some(description.classes[class].clone());
                metrics.push(metric);
            }
        }
        for metric in &mut metrics {
            metric.seed = Some(seed);
        }
        metrics
    }

    /// The predictions table: a row per sample.
    pub(crate) fn table(&self, description: &HeadDescription) -> Table {
        let count = self.ids.len();
        let probabilities: Vec<Vec<f64>> =
            self.logits.iter().map(|logits| probabilities(logits, description)).collect();
        let prediction = |row: usize| -> Vec<i32> {
            if description.is_multi_label() {
                probabilities[row].iter().map(|p| i32::from(*p > 0.5)).collect()
            } else {
                vec![argmax(&probabilities[row]) as i32]
            }
        };
        let target =
            |row: usize| -> Vec<i32> { self.targets[row].iter().map(|value| *value as i32).collect() };
        let scores = |row: usize| Some(probabilities[row].iter().map(|p| *p as f32).collect());
        let answer = |row: usize| {
            (!description.is_multi_label()).then(|| description.classes[argmax(&probabilities[row])].clone())
        };
        Table::new()
            .with("id", Column::texts(self.ids.clone()))
            .with("split", Column::texts(self.splits.clone()))
            .with("patient", Column::Utf8(self.groups.clone()))
            .with("image", Column::texts(self.ids.clone()))
            .with("target", Column::ListInt32((0..count).map(|row| Some(target(row))).collect()))
            .with("prediction", Column::ListInt32((0..count).map(|row| Some(prediction(row))).collect()))
            .with("scores", Column::ListFloat32((0..count).map(scores).collect()))
            .with(
                "correct",
                Column::Bool((0..count).map(|row| Some(prediction(row) == target(row))).collect()),
            )
            .with("answer", Column::Utf8((0..count).map(answer).collect()))
            .with_metadata("task", description.task.clone())
            .with_metadata("label_names", serde_json::json!(description.classes).to_string())
    }
}
