//! Scores of explanations: means over samples, with their intervals, as figures.

use std::collections::BTreeMap;

use arrow_array::RecordBatch;

use super::columns::{numbers, texts};
use super::figures::Figure;

/// Columns that tell scores apart, beside the axes.
const KEY_COLUMNS: [&str; 3] = ["model", "method", "baseline"];

#[derive(Debug, Default)]
struct Sums {
    n: i64,
    sum: f64,
    squares: f64,
    undefined: i64,
    reason: Option<String>,
}

/// One figure per method and metric: the mean over the samples, and 1.96 standard errors to either side.
pub(super) fn mean_scores(
    input: &str,
    axes: &BTreeMap<String, String>,
    metadata: &BTreeMap<String, String>,
    batch: &RecordBatch,
) -> Vec<Figure> {
    let keys: Vec<(&str, Vec<Option<String>>)> =
        KEY_COLUMNS.iter().map(|name| (*name, texts(batch, name))).collect();
    let (metrics, values, reasons) =
        (texts(batch, "metric"), numbers(batch, "value"), texts(batch, "reason"));
    let mut order: Vec<(BTreeMap<String, String>, String)> = Vec::new();
    let mut places: BTreeMap<(BTreeMap<String, String>, String), usize> = BTreeMap::new();
    let mut sums: Vec<Sums> = Vec::new();
    for row in 0..batch.num_rows() {
        let Some(metric) = metrics[row].clone() else { continue };
        let mut row_keys = BTreeMap::new();
        for (name, column) in &keys {
            let value = column[row].clone().or_else(|| metadata.get(*name).cloned());
            row_keys.extend(value.map(|value| ((*name).to_owned(), value)));
        }
        row_keys.extend(axes.clone());
        let place = *places.entry((row_keys.clone(), metric.clone())).or_insert_with(|| {
            order.push((row_keys, metric));
            sums.push(Sums::default());
            sums.len() - 1
        });
        let sums = &mut sums[place];
        match values[row] {
            Some(value) => {
                sums.n += 1;
                sums.sum += value;
                sums.squares += value * value;
            }
            None => {
                sums.undefined += 1;
                sums.reason = sums.reason.take().or_else(|| reasons[row].clone());
            }
        }
    }
    order.into_iter().zip(sums).map(|((keys, metric), sums)| figure(input, keys, metric, sums)).collect()
}

fn figure(input: &str, mut keys: BTreeMap<String, String>, metric: String, sums: Sums) -> Figure {
    let n = sums.n as f64;
    let mean = (sums.n > 0).then(|| sums.sum / n);
    let error = mean.filter(|_| sums.n > 1).map(|mean| {
        let variance = ((sums.squares - n * mean * mean) / (n - 1.0)).max(0.0);
        1.96 * (variance / n).sqrt()
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
        low: mean.zip(error).map(|(mean, error)| mean - error),
        high: mean.zip(error).map(|(mean, error)| mean + error),
        n: Some(sums.n),
        reason: mean.is_none().then(|| sums.reason.unwrap_or_else(|| "no sample".to_owned())),
    }
}
