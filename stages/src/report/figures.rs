//! Figures of all inputs in one form, and their grouping into tables.
//!
//! A figure is a number with its interval and the *keys* that say what it is a figure of: the axes of
//! the study (`model=medical`) and the columns of the table (`modality=text`). Keys that differ within a
//! table become columns, those that do not go into its caption.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::RecordBatch;

use super::columns::{numbers, texts};

/// Columns of a metrics table that tell its rows apart, beside the axes.
const KEY_COLUMNS: [&str; 9] =
    ["model", "method", "modality", "protocol", "matching", "subset", SUBGROUP, "seed", "baseline"];

/// The column that says of which samples a figure is.
const SUBGROUP: &str = "subgroup";

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// The report's input it came by.
    pub(super) input: String,
    /// What tells it apart from figures of the same metric.
    pub(super) keys: BTreeMap<String, String>,
    pub(super) task: Option<String>,
    pub(super) dataset: Option<String>,
    pub(super) split: Option<String>,
    /// With `@k` where it has one.
    pub(super) metric: String,
    /// Which way it is better, where the table says so.
    pub(super) better: Option<Better>,
    /// For figures of one class only.
    pub(super) class: Option<String>,
    pub(super) value: Option<f64>,
    pub(super) low: Option<f64>,
    pub(super) high: Option<f64>,
    pub(super) n: Option<i64>,
    /// Why there is no value.
    pub(super) reason: Option<String>,
    /// The greatest value that any model can reach, where the data tell.
    pub(super) ceiling: Option<f64>,
}

impl Figure {
    /// Whether it is a figure of some of the samples, or of how far such differ.
    fn is_of_subgroup(&self) -> bool {
        self.keys.contains_key(SUBGROUP)
    }

    /// Which way it is better: as its table says, else as its name does.
    pub(super) fn better(&self) -> Better {
        self.better.unwrap_or_else(|| better(&self.metric))
    }

    /// Whether it is a control: a map or a model that knows nothing, against which others are read.
    pub(super) fn is_control(&self) -> bool {
        self.keys.iter().any(|(key, value)| names_control(key, value))
    }
}

/// Whether a key's value is the name of a control.
pub(super) fn names_control(key: &str, value: &str) -> bool {
    const NAMES: [&str; 10] = [
        "random",
        "centre",
        "center",
        "edge",
        "abs_difference",
        "uniform",
        "constant",
        "majority",
        "noise",
        "control",
    ];
    let value = value.to_lowercase();
    ["method", "model", "weights", "control"].contains(&key) && NAMES.iter().any(|name| value.contains(name))
}

/// The figures of one metrics table.
pub(super) fn figures(input: &str, axes: &BTreeMap<String, String>, batch: &RecordBatch) -> Vec<Figure> {
    let text = |name: &str| texts(batch, name);
    let [task, dataset, split, metric, class, reason] =
        ["task", "dataset", "split", "metric", "class", "reason"].map(text);
    let keys: Vec<(&str, Vec<Option<String>>)> =
        KEY_COLUMNS.iter().map(|name| (*name, texts(batch, name))).collect();
    let [value, low, high, n, k] = ["value", "ci_low", "ci_high", "n", "k"].map(|name| numbers(batch, name));
    (0..batch.num_rows())
        .filter_map(|row| {
            let mut row_keys: BTreeMap<String, String> = keys
                .iter()
                .filter_map(|(name, column)| Some(((*name).to_owned(), column[row].clone()?)))
                .collect();
            row_keys.extend(axes.clone());
            let dataset = row_keys.remove("dataset").or_else(|| dataset[row].clone());
            let name = metric[row].clone()?;
            let metric = match k[row] {
                Some(k) if !name.contains('@') => format!("{name}@{k}"),
                _ => name,
            };
            Some(Figure {
                input: input.to_owned(),
                keys: row_keys,
                task: task[row].clone(),
                dataset,
                split: split[row].clone(),
                metric,
                better: None,
                class: class[row].clone(),
                value: value[row],
                low: low[row],
                high: high[row],
                n: n[row].map(|n| n as i64),
                reason: reason[row].clone(),
                ceiling: None,
            })
        })
        .collect()
}

/// Which way a metric is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Better {
    Higher,
    Lower,
    /// A figure that describes and does not rank.
    Neither,
}

impl Better {
    /// As tables say it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "higher" => Some(Self::Higher),
            "lower" => Some(Self::Lower),
            "none" => Some(Self::Neither),
            _ => None,
        }
    }
}

/// Which way a metric is better, by its name, where its table does not say so.
fn better(metric: &str) -> Better {
    let has = |parts: &[&str]| parts.iter().any(|part| metric.contains(part));
    if has(&[
        "share",
        "gap",
        "delta",
        "chance",
        "floor",
        "ceiling",
        "count",
        "left_out",
        "reliance",
        "rho",
        "complexity",
        "sparseness",
        "std",
        "skewness",
        "difference",
        "distance",
        "synergy",
        "perceptual",
        "mcnemar",
        "delong",
        "wilcoxon",
        "equivalence",
        "odds_ratio",
        "cohens",
        "biserial",
    ]) {
        Better::Neither
    } else if has(&[
        "loss",
        "ece",
        "calibration",
        "brier",
        "nll",
        "error",
        "mae",
        "median_rank",
        "mean_rank",
        "deletion",
    ]) {
        Better::Lower
    } else {
        Better::Higher
    }
}

/// The metrics that answer a task's question, most telling first.
const HEADLINES: [&str; 10] = [
    "pointing_game",
    "auroc_macro",
    "macro_auroc",
    "auroc",
    "auc",
    "accuracy_overall",
    "accuracy",
    "recall@10",
    "recall@5",
    "f1",
];

/// The metric that stands for a table in the summary and in its chart.
pub(super) fn headline<'a>(figures: impl Iterator<Item = &'a Figure> + Clone) -> Option<String> {
    let has_value = |figure: &&Figure| figure.class.is_none() && figure.value.is_some();
    let known = HEADLINES.iter().find_map(|name| {
        figures.clone().filter(has_value).map(|figure| &figure.metric).find(|metric| {
            let metric = metric.to_lowercase();
            metric == *name || metric.ends_with(&format!(".{name}")) || metric.ends_with(&format!("_{name}"))
        })
    });
    known.cloned().or_else(|| {
        let ranked = |figure: &&Figure| figure.better() != Better::Neither;
        figures.filter(has_value).find(ranked).map(|figure| figure.metric.clone())
    })
}

/// The difference that stands for a table of differences in the summary: that of its most telling metric.
pub(super) fn headline_difference<'a>(figures: impl Iterator<Item = &'a Figure> + Clone) -> Option<String> {
    HEADLINES
        .iter()
        .find_map(|name| {
            let known = figures.clone().filter(|figure| figure.class.is_none() && figure.value.is_some());
            known.map(|figure| &figure.metric).find(|metric| {
                let base = metric.strip_suffix("_difference").unwrap_or_default();
                base == *name || base.ends_with(&format!("_{name}"))
            })
        })
        .cloned()
}

/// What the model with all its inputs is called in the tables of `ablate`.
const FULL_MODEL: &str = "full";

/// Figures that make one table: same input, task, data set and split.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) input: String,
    pub(super) task: Option<String>,
    pub(super) dataset: Option<String>,
    pub(super) split: Option<String>,
    /// Keys that differ, in the order of the columns.
    pub(super) key_names: Vec<String>,
    /// Keys that do not.
    pub(super) constant: BTreeMap<String, String>,
    /// The metrics, in the order in which they came.
    pub(super) metrics: Vec<String>,
    /// The rows, in the order in which they came.
    pub(super) rows: Vec<GroupRow>,
}

/// A row of a table: one value per key name, then figures by metric.
#[derive(Debug)]
pub(super) struct GroupRow {
    pub(super) keys: Vec<Option<String>>,
    pub(super) figures: BTreeMap<String, Figure>,
}

impl GroupRow {
    /// Whether its figures are those of a control.
    pub(super) fn is_control(&self) -> bool {
        self.figures.values().any(Figure::is_control)
    }

    /// What the row is called where there is one line for it.
    pub(super) fn label(&self) -> String {
        let parts: Vec<&str> = self.keys.iter().flatten().map(String::as_str).collect();
        if parts.is_empty() { "this model".to_owned() } else { parts.join(" \u{b7} ") }
    }
}

impl Group {
    /// The values of a metric with their row's index, in row order.
    pub(super) fn values(&self, metric: &str) -> Vec<(usize, &Figure)> {
        let rows = self.rows.iter().enumerate();
        rows.filter_map(|(index, row)| Some((index, row.figures.get(metric)?)))
            .filter(|(_, figure)| figure.value.is_some())
            .collect()
    }

    /// Which way a metric is better.
    pub(super) fn better(&self, metric: &str) -> Better {
        let known = self.rows.iter().find_map(|row| row.figures.get(metric));
        known.map_or_else(|| better(metric), Figure::better)
    }

    /// The rows with the best value of a metric; none where it does not rank or there is only one row.
    pub(super) fn best(&self, metric: &str) -> Vec<usize> {
        let values = self.values(metric);
        let sign = match self.better(metric) {
            Better::Higher => 1.0,
            Better::Lower => -1.0,
            Better::Neither => return Vec::new(),
        };
        let signed = |figure: &Figure| figure.value.unwrap_or(f64::NAN) * sign;
        let best = values.iter().map(|(_, figure)| signed(figure)).fold(f64::NEG_INFINITY, f64::max);
        if values.len() < 2 {
            return Vec::new();
        }
        values.iter().filter(|(_, figure)| signed(figure) == best).map(|(index, _)| *index).collect()
    }

    /// Whether its rows differ in what the model was given to see, or in whom it was asked about: then
    /// it is about bias.
    pub(super) fn is_about_bias(&self) -> bool {
        let named = ["bias", "ablat", "monomodal", "unimodal"].iter().any(|part| self.input.contains(part));
        let differs = |name: &String| ["modality", "ablation", SUBGROUP].contains(&name.as_str());
        named || self.key_names.iter().any(differs) || self.constant.contains_key(SUBGROUP)
    }

    /// The full model of an ablation and the others of the same axes, by row.
    pub(super) fn ablations(&self) -> Vec<(usize, Vec<usize>)> {
        let Some(method) = self.key_names.iter().position(|name| name == "method") else { return Vec::new() };
        let axes = |row: &GroupRow| -> Vec<Option<String>> {
            let own = self.key_names.iter().zip(&row.keys);
            own.filter(|(name, _)| *name != "method" && *name != "modality")
                .map(|(_, key)| key.clone())
                .collect()
        };
        let is_full = |row: &GroupRow| row.keys[method].as_deref() == Some(FULL_MODEL);
        let full = (0..self.rows.len()).filter(|row| is_full(&self.rows[*row]));
        full.map(|full| {
            let same = |row: &usize| *row != full && axes(&self.rows[*row]) == axes(&self.rows[full]);
            (full, (0..self.rows.len()).filter(same).collect())
        })
        .collect()
    }

    /// The value of a key in a row, whether it differs among the rows or not.
    pub(super) fn key_of<'a>(&'a self, row: &'a GroupRow, key: &str) -> Option<&'a str> {
        let place = self.key_names.iter().position(|name| name == key);
        match place {
            Some(place) => row.keys[place].as_deref(),
            None => self.constant.get(key).map(String::as_str),
        }
    }

    /// Constant keys as words for a caption.
    pub(super) fn constants(&self) -> String {
        self.constant.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(", ")
    }
}

/// Groups figures into tables; figures of single classes are left to `classes`.
pub(super) fn group(figures: &[Figure], classes: bool) -> Vec<Group> {
    let mut order: Vec<([Option<&str>; 4], bool)> = Vec::new();
    let mut groups: Vec<Vec<&Figure>> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.class.is_some() == classes) {
        let place = [
            Some(figure.input.as_str()),
            figure.task.as_deref(),
            figure.dataset.as_deref(),
            figure.split.as_deref(),
        ];
        // A subgroup is no competitor of the models.
        let place = (place, figure.is_of_subgroup());
        match order.iter().position(|known| *known == place) {
            Some(index) => groups[index].push(figure),
            None => {
                order.push(place);
                groups.push(vec![figure]);
            }
        }
    }
    groups.into_iter().map(|figures| table(&figures)).collect()
}

fn table(figures: &[&Figure]) -> Group {
    let all: BTreeSet<&str> =
        figures.iter().flat_map(|figure| figure.keys.keys()).map(String::as_str).collect();
    let values = |name: &str| -> BTreeSet<Option<&str>> {
        figures.iter().map(|figure| figure.keys.get(name).map(String::as_str)).collect()
    };
    let names = all.into_iter().map(|name| (name, values(name)));
    let (differing, constant): (Vec<_>, Vec<_>) = names.partition(|(_, values)| values.len() > 1);
    let mut key_names: Vec<String> = differing.into_iter().map(|(name, _)| name.to_owned()).collect();
    let mut has_classes = false;
    if figures.iter().any(|figure| figure.class.is_some()) {
        has_classes = true;
        key_names.push("class".to_owned());
    }
    // What is compared stands first.
    key_names.sort_by_key(|name| (name == "class", name != "model", name.clone()));
    let mut metrics: Vec<String> = Vec::new();
    let mut rows: Vec<GroupRow> = Vec::new();
    for figure in figures {
        if !metrics.contains(&figure.metric) {
            metrics.push(figure.metric.clone());
        }
        let keys: Vec<Option<String>> = key_names
            .iter()
            .map(|name| match name.as_str() {
                "class" if has_classes => figure.class.clone(),
                name => figure.keys.get(name).cloned(),
            })
            .collect();
        let row = rows.iter().position(|row| row.keys == keys && !row.figures.contains_key(&figure.metric));
        let row = row.unwrap_or_else(|| {
            rows.push(GroupRow { keys, figures: BTreeMap::new() });
            rows.len() - 1
        });
        rows[row].figures.insert(figure.metric.clone(), (*figure).clone());
    }
    let first = figures[0];
    Group {
        input: first.input.clone(),
        task: first.task.clone(),
        dataset: first.dataset.clone(),
        split: first.split.clone(),
        key_names,
        constant: constant
            .into_iter()
            .filter_map(|(name, values)| Some((name.to_owned(), values.into_iter().next()??.to_owned())))
            .collect(),
        metrics,
        rows,
    }
}
