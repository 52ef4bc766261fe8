//! Scores of explanations: means over samples, with their intervals, as figures. Scores that are 0 or 1
//! have Wilson's interval, others the normal one.

use std::collections::BTreeMap;

use arrow_array::RecordBatch;

use super::columns::{numbers, texts};
use super::figures::Figure;

/// Columns that tell maps apart, beside those that the table names as its axes; it may name others as its `keys`.
const KEY_COLUMNS: [&str; 2] = ["model", "method"];

#[derive(Debug, Default)]
struct Sums {
    n: i64,
    sum: f64,
    squares: f64,
    /// Whether all values were 0 or 1: then their mean is a share.
    shares_only: bool,
    reason: Option<String>,
}

/// One figure per method and metric: the mean over the samples with its 95 % interval. What a metric
/// removes pixels to is part of its name.
pub(super) fn mean_scores(
    input: &str,
    axes: &BTreeMap<String, String>,
    metadata: &BTreeMap<String, String>,
    batch: &RecordBatch,
) -> Vec<Figure> {
    let own_axes: Vec<String> =
        metadata.get("axes").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let own_keys: Option<Vec<String>> = metadata.get("keys").and_then(|text| serde_json::from_str(text).ok());
    let own_keys = own_keys.unwrap_or_else(|| KEY_COLUMNS.map(str::to_owned).to_vec());
    let names = own_keys.iter().chain(&own_axes).map(String::as_str);
    let keys: Vec<(&str, Vec<Option<String>>)> = names.map(|name| (name, texts(batch, name))).collect();
    let (metrics, baselines) = (texts(batch, "metric"), texts(batch, "baseline"));
    let (values, reasons) = (numbers(batch, "value"), texts(batch, "reason"));
    let mut order: Vec<(BTreeMap<String, String>, String)> = Vec::new();
    let mut places: BTreeMap<(BTreeMap<String, String>, String), usize> = BTreeMap::new();
    let mut sums: Vec<Sums> = Vec::new();
    for row in 0..batch.num_rows() {
        let Some(mut metric) = metrics[row].clone() else { continue };
        if let Some(baseline) = &baselines[row] {
            metric = format!("{metric}, {baseline}");
        }
        // A control's name stands in a column, and wins over the axis of the map beside it.
        let mut row_keys = axes.clone();
        for (name, column) in &keys {
            let value = column[row].clone().or_else(|| metadata.get(*name).cloned());
            row_keys.extend(value.map(|value| ((*name).to_owned(), value)));
        }
        let place = *places.entry((row_keys.clone(), metric.clone())).or_insert_with(|| {
            order.push((row_keys, metric));
            sums.push(Sums { shares_only: true, ..Sums::default() });
            sums.len() - 1
        });
        let sums = &mut sums[place];
        match values[row] {
            Some(value) => {
                sums.n += 1;
                sums.sum += value;
                sums.squares += value * value;
                sums.shares_only &= value == 0.0 || value == 1.0;
            }
            None => {
                sums.reason = sums.reason.take().or_else(|| reasons[row].clone());
            }
        }
    }
    order.into_iter().zip(sums).map(|((keys, metric), sums)| figure(input, keys, metric, sums)).collect()
}

fn figure(input: &str, mut keys: BTreeMap<String, String>, metric: String, sums: Sums) -> Figure {
    let n = sums.n as f64;
    let mean = (sums.n > 0).then(|| sums.sum / n);
    let interval = mean.filter(|_| sums.n > 1).map(|mean| {
        if sums.shares_only {
            return wilson(mean, n);
        }
        let variance = ((sums.squares - n * mean * mean) / (n - 1.0)).max(0.0);
        let error = Z * (variance / n).sqrt();
        (mean - error, mean + error)
    });
    Figure {
        input: input.to_owned(),
        task: None,
        dataset: keys.remove("dataset"),
        keys,
        split: None,
        metric,
        class: None,
        value: mean,
        low: interval.map(|(low, _)| low),
        high: interval.map(|(_, high)| high),
        n: Some(sums.n),
        ceiling: None,
        reason: mean.is_none().then(|| sums.reason.unwrap_or_else(|| "no sample".to_owned())),
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
    #[test]
    fn wilsons_interval_of_three_in_four() {
        // R: prop.test(3, 4, correct = FALSE)$conf.int
        let (low, high) = super::wilson(0.75, 4.0);
        assert!((low - 0.300_641_8).abs() < 1e-6 && (high - 0.954_412_7).abs() < 1e-6, "{low} {high}");
    }
}
