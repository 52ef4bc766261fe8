//! The long table of figures that every evaluation writes.

use pipe_engine::{Artifact, Figures, OutputWriter, StageError};

use crate::statistics::Estimate;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};

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
    /// Where a table has figures of several data sets.
    pub(crate) dataset: Option<String>,
    pub(crate) estimate: Option<Estimate>,
    pub(crate) n: usize,
    pub(crate) seed: Option<i64>,
    pub(crate) protocol: Option<String>,
    /// How answers were compared.
    pub(crate) matching: Option<String>,
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
            dataset: None,
            estimate,
            n,
            seed: None,
            protocol: None,
            matching: None,
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
        .with("subgroup", text(&|metric| metric.subgroup.clone()))
        .with("dataset", text(&|metric| metric.dataset.clone()));
    // Only answers are matched.
    let table = match metrics.iter().any(|metric| metric.matching.is_some()) {
        true => table.with("matching", text(&|metric| metric.matching.clone())),
        false => table,
    };
    write(output, &TableSchema::metrics(), &table, WriteOptions::text(provenance))
}

/// What tells the rows of a metrics table apart, beside the metric.
const KEYS: [&str; 9] =
    ["split", "modality", "method", "class", "subgroup", "dataset", "seed", "protocol", "matching"];

/// The figures of a metrics table, named `metric@k[split=test,class=1]`; what is undefined is left out.
///
/// # Errors
/// If the table is damaged.
pub(crate) fn figures(artifact: &Artifact) -> Result<Figures, StageError> {
    let table = read(artifact)?;
    let values = table.float64("value")?;
    let (metrics, ks) = (table.as_text("metric")?, table.as_text("k")?);
    let keys = KEYS.into_iter().filter(|name| table.column(name).is_some());
    let keys = keys.map(|name| Ok((name, table.as_text(name)?))).collect::<Result<Vec<_>, StageError>>()?;
    let mut figures = Figures::new();
    for (row, value) in values.iter().enumerate() {
        let (Some(value), Some(metric)) = (value, &metrics[row]) else { continue };
        let k =
            ks[row].as_ref().filter(|_| !metric.contains('@')).map(|k| format!("@{k}")).unwrap_or_default();
        let keys = keys.iter().filter_map(|(name, column)| Some(format!("{name}={}", column[row].as_ref()?)));
        figures.insert(format!("{metric}{k}[{}]", keys.collect::<Vec<_>>().join(",")), *value);
    }
    Ok(figures)
}
