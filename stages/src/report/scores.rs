//! Scores of explanations: means over samples, with their intervals, as figures. Scores that are 0 or 1 have
//! Wilson's interval, others the normal one; where samples belong together, such as images of one patient, groups
//! are drawn again and again instead. Ratios with heavy tails have medians.

use std::collections::BTreeMap;

use arrow_array::RecordBatch;

use super::charts::Curve;
use super::columns::{numbers, texts};
use super::figures::{Better, Figure};
use crate::statistics::{Estimate, Groups, bootstrap, mean};

/// Columns that tell maps apart, beside those that the table names as its axes; it may name others as its `keys`.
const KEY_COLUMNS: [&str; 2] = ["model", "method"];

/// The key that says of which samples a figure is.
pub(super) const SAMPLES: &str = "samples";
/// Its value for those that the model is right about.
pub(super) const RIGHT: &str = "classified right";
/// Its value for all.
const ALL: &str = "all";

/// What a table of scores says.
#[derive(Debug, Default)]
pub(super) struct Scores {
    pub(super) figures: Vec<Figure>,
    pub(super) cascades: Vec<Cascade>,
}

/// How like the map of a model is to that of the same with more and more layers drawn anew.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cascade {
    pub(super) metric: String,
    /// In which order layers were drawn anew.
    pub(super) order: String,
    pub(super) keys: BTreeMap<String, String>,
    /// Of steps from 1, the mean over samples.
    pub(super) points: Vec<(f64, f64)>,
}

/// The scores of one metric and method.
#[derive(Debug)]
struct Own {
    keys: BTreeMap<String, String>,
    metric: String,
    better: Option<Better>,
    values: Vec<f64>,
    /// What the sample of each value belongs to.
    groups: Vec<Option<String>>,
    reason: Option<String>,
}

/// The figures of a table: per method and metric the mean over the samples with its 95 % interval, of all samples
/// and, where the table tells, of those that the model is right about. What a metric removes pixels to is part of
/// its name.
pub(super) fn read(
    input: &str,
    axes: &BTreeMap<String, String>,
    metadata: &BTreeMap<String, String>,
    batch: &RecordBatch,
) -> Scores {
    let own_axes: Vec<String> =
        metadata.get("axes").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let own_keys: Option<Vec<String>> = metadata.get("keys").and_then(|text| serde_json::from_str(text).ok());
    let own_keys = own_keys.unwrap_or_else(|| KEY_COLUMNS.map(str::to_owned).to_vec());
    let names = own_keys.iter().chain(&own_axes).map(String::as_str);
    let keys: Vec<(&str, Vec<Option<String>>)> = names.map(|name| (name, texts(batch, name))).collect();
    let [metrics, baselines, reasons, directions, groups, parameters] =
        ["metric", "baseline", "reason", "better", "group_id", "parameters"].map(|name| texts(batch, name));
    let [values, correct, steps] = ["value", "correct", "step"].map(|name| numbers(batch, name));
    let facts: serde_json::Value =
        metadata.get("metrics").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let says_right = correct.iter().any(Option::is_some);
    let mut places: BTreeMap<(BTreeMap<String, String>, String), usize> = BTreeMap::new();
    let mut all: Vec<Own> = Vec::new();
    let mut cascades: Vec<Summed> = Vec::new();
    for row in 0..batch.num_rows() {
        let Some(name) = metrics[row].clone() else { continue };
        // A control's name stands in a column, and wins over the axis of the map beside it.
        let mut row_keys = axes.clone();
        for (name, column) in &keys {
            let value = column[row].clone().or_else(|| metadata.get(*name).cloned());
            row_keys.extend(value.map(|value| ((*name).to_owned(), value)));
        }
        if let Some(step) = steps[row] {
            if let Some(value) = values[row] {
                add_step(&mut cascades, &name, row_keys, parameters[row].as_deref(), step, value);
            }
            continue;
        }
        let direction = directions[row].as_deref().or_else(|| facts[&name]["direction"].as_str());
        let better = direction.and_then(Better::parse);
        let metric = match &baselines[row] {
            Some(baseline) => format!("{name}, {baseline}"),
            None => name,
        };
        let subsets: &[&str] = match (says_right, correct[row]) {
            (false, _) => &[],
            (true, Some(1.0)) => &[ALL, RIGHT],
            (true, _) => &[ALL],
        };
        let mut add = |row_keys: BTreeMap<String, String>| {
            let place = *places.entry((row_keys.clone(), metric.clone())).or_insert_with(|| {
                all.push(Own {
                    keys: row_keys,
                    metric: metric.clone(),
                    better,
                    values: Vec::new(),
                    groups: Vec::new(),
                    reason: None,
                });
                all.len() - 1
            });
            let own = &mut all[place];
            match values[row] {
                Some(value) => {
                    own.values.push(value);
                    own.groups.push(groups[row].clone());
                }
                None => own.reason = own.reason.take().or_else(|| reasons[row].clone()),
            }
        };
        match subsets {
            [] => add(row_keys),
            subsets => {
                for subset in subsets {
                    let mut keys = row_keys.clone();
                    keys.insert(SAMPLES.to_owned(), (*subset).to_owned());
                    add(keys);
                }
            }
        }
    }
    Scores {
        figures: all.into_iter().flat_map(|own| own.figures(input)).collect(),
        cascades: cascades.into_iter().map(Summed::cascade).collect(),
    }
}

/// A cascade while it is added up: sum and count by step.
struct Summed {
    cascade: Cascade,
    sums: BTreeMap<i64, (f64, f64)>,
}

impl Summed {
    fn cascade(self) -> Cascade {
        let points = self.sums.into_iter().map(|(step, (sum, count))| (step as f64, sum / count));
        Cascade { points: points.collect(), ..self.cascade }
    }
}

fn add_step(
    cascades: &mut Vec<Summed>,
    metric: &str,
    keys: BTreeMap<String, String>,
    parameters: Option<&str>,
    step: f64,
    value: f64,
) {
    let metric = metric.strip_suffix("_step").unwrap_or(metric);
    let place = cascades.iter().position(|one| one.cascade.metric == metric && one.cascade.keys == keys);
    let place = place.unwrap_or_else(|| {
        let json: Option<serde_json::Value> = parameters.and_then(|text| serde_json::from_str(text).ok());
        let order = json.as_ref().and_then(|json| json["layer_order"].as_str()).unwrap_or_default();
        let cascade =
            Cascade { metric: metric.to_owned(), order: order.to_owned(), keys, points: Vec::new() };
        cascades.push(Summed { cascade, sums: BTreeMap::new() });
        cascades.len() - 1
    });
    let (sum, count) = cascades[place].sums.entry(step as i64).or_default();
    *sum += value;
    *count += 1.0;
}

impl Cascade {
    /// The curve of this name. Where layers stay random, it starts from the model as it is.
    pub(super) fn curve(&self, label: String) -> Curve {
        let start = (self.order != "independent").then_some((0.0, 1.0));
        Curve { label, points: start.into_iter().chain(self.points.iter().copied()).collect() }
    }
}

/// Whether a metric's values are ratios whose greatest ones decide a mean.
fn is_heavy_tailed(metric: &str) -> bool {
    metric.starts_with("relative_") && metric.ends_with("_stability")
}

impl Own {
    /// The mean with its interval; of ratios the median and its logarithm.
    fn figures(self, input: &str) -> Vec<Figure> {
        let groups = Groups::new(&self.groups);
        if !is_heavy_tailed(&self.metric) {
            let estimate = self.mean(&groups);
            return vec![self.figure(input, self.metric.clone(), estimate)];
        }
        let sorted = Sorted::new(&self.values);
        let median = bootstrap(&groups, 0, |weights| sorted.median(weights));
        // The logarithm of a percentile is that of the logarithms.
        let log = |value: f64| (value > 0.0).then(|| value.log10());
        let logarithm = median.and_then(|median| {
            Some(Estimate {
                value: log(median.value)?,
                low: median.low.and_then(log),
                high: median.high.and_then(log),
            })
        });
        vec![
            self.figure(input, format!("{}, median", self.metric), median),
            self.figure(input, format!("{}, log10 of the median", self.metric), logarithm),
        ]
    }

    fn mean(&self, groups: &Groups) -> Option<Estimate> {
        let values = &self.values;
        let n = values.len() as f64;
        let of_all = mean(values, &vec![1.0; values.len()])?;
        if groups.len() < values.len() {
            return bootstrap(groups, 0, |weights| mean(values, weights));
        }
        if values.len() < 2 {
            return Some(Estimate::exact(of_all));
        }
        let (low, high) = if values.iter().all(|value| *value == 0.0 || *value == 1.0) {
            wilson(of_all, n)
        } else {
            let squares: f64 = values.iter().map(|value| (value - of_all) * (value - of_all)).sum();
            let error = Z * (squares / (n - 1.0) / n).sqrt();
            (of_all - error, of_all + error)
        };
        Some(Estimate { value: of_all, low: Some(low), high: Some(high) })
    }

    fn figure(&self, input: &str, metric: String, estimate: Option<Estimate>) -> Figure {
        let mut keys = self.keys.clone();
        let no_value = || self.reason.clone().unwrap_or_else(|| "no sample".to_owned());
        Figure {
            input: input.to_owned(),
            task: None,
            dataset: keys.remove("dataset"),
            keys,
            split: None,
            metric,
            better: self.better,
            class: None,
            value: estimate.map(|estimate| estimate.value),
            low: estimate.and_then(|estimate| estimate.low),
            high: estimate.and_then(|estimate| estimate.high),
            n: Some(self.values.len() as i64),
            ceiling: None,
            reason: estimate.is_none().then(no_value),
        }
    }
}

/// Values in ascending order with their places, sorted once for many resamples.
struct Sorted<'a> {
    values: &'a [f64],
    order: Vec<usize>,
}

impl<'a> Sorted<'a> {
    fn new(values: &'a [f64]) -> Self {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| values[*a].total_cmp(&values[*b]).then(a.cmp(b)));
        Self { values, order }
    }

    /// The median of values that stand as often as their weights say; of an even number the middle of the two.
    fn median(&self, weights: &[f64]) -> Option<f64> {
        let half = weights.iter().sum::<f64>() / 2.0;
        let (mut before, mut lower) = (0.0, None);
        for place in self.order.iter().filter(|place| weights[**place] > 0.0) {
            let value = self.values[*place];
            if let Some(lower) = lower {
                return Some((lower + value) / 2.0);
            }
            before += weights[*place];
            if before > half {
                return Some(value);
            }
            if before == half {
                lower = Some(value);
            }
        }
        lower
    }
}

/// The quantile of the normal distribution for 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's interval of a share of `n`.
fn wilson(share: f64, n: f64) -> (f64, f64) {
    let z2 = Z * Z;
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_counts_each_value_as_often_as_it_was_drawn() {
        let sorted = Sorted::new(&[5.0, 1.0, 100.0, 3.0]);
        assert_eq!(sorted.median(&[1.0; 4]), Some(4.0));
        assert_eq!(sorted.median(&[1.0, 1.0, 0.0, 1.0]), Some(3.0));
        assert_eq!(sorted.median(&[0.0, 0.0, 2.0, 1.0]), Some(100.0));
        assert_eq!(sorted.median(&[0.0; 4]), None);
    }

    fn own(values: &[f64], groups: &[&str]) -> Own {
        Own {
            keys: BTreeMap::new(),
            metric: "sparseness".to_owned(),
            better: None,
            values: values.to_vec(),
            groups: (0..values.len()).map(|place| groups.get(place).map(|name| (*name).to_owned())).collect(),
            reason: None,
        }
    }

    /// Eight images of two patients are two draws, not eight.
    #[test]
    fn an_interval_respects_groups() {
        let values = [0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9];
        let single = own(&values, &[]).figures("scores").remove(0);
        let grouped = own(&values, &["a", "a", "a", "a", "b", "b", "b", "b"]).figures("scores").remove(0);
        assert_eq!((single.value, grouped.value), (Some(0.5), Some(0.5)));
        assert_eq!((grouped.low, grouped.high), (Some(0.1), Some(0.9)), "either patient alone");
        assert!(single.low.unwrap() > 0.15 && single.high.unwrap() < 0.85);
    }

    #[test]
    fn ratios_have_medians_that_one_of_them_does_not_move() {
        let mut own = own(&[1.0, 10.0, 1e9], &[]);
        own.metric = "relative_input_stability".to_owned();
        let figures = own.figures("scores");
        let values: Vec<(&str, f64)> =
            figures.iter().map(|figure| (figure.metric.as_str(), figure.value.unwrap())).collect();
        assert_eq!(
            values,
            [
                ("relative_input_stability, median", 10.0),
                ("relative_input_stability, log10 of the median", 1.0)
            ]
        );
    }

    #[test]
    fn wilsons_interval_of_three_in_four() {
        // R: prop.test(3, 4, correct = FALSE)$conf.int
        let (low, high) = super::wilson(0.75, 4.0);
        assert!((low - 0.300_641_8).abs() < 1e-6 && (high - 0.954_412_7).abs() < 1e-6, "{low} {high}");
    }
}
