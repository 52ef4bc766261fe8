//! Learning curves from training logs.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::RecordBatch;
use maud::{Markup, html};

use super::charts::{Curve, curves};
use super::collect::Collected;
use super::columns::{numbers, texts};
use super::words::{metric_name, title};

/// Points by (figure, split).
type Logged = BTreeMap<(String, Option<String>), Vec<(f64, f64)>>;

/// A curve with the axes of the artifact it comes from.
type Drawn<'a> = (BTreeMap<&'a str, &'a str>, Curve);

/// One chart per input and figure, a curve per artifact and split.
pub(super) fn learning(collected: &Collected) -> Vec<Markup> {
    let mut charts: BTreeMap<(&str, String), Vec<Drawn<'_>>> = BTreeMap::new();
    let mut x_name = "step";
    for table in &collected.logs {
        let given = &collected.given[table.given];
        let (name, logged) = read(&table.batch);
        x_name = name;
        // One point is no curve: a linear probe is fitted at once.
        for ((metric, split), points) in logged.into_iter().filter(|(_, points)| points.len() > 1) {
            let keys = given.axes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let curve = Curve { label: split.unwrap_or_default(), points };
            charts.entry((&given.input, metric)).or_default().push((keys, curve));
        }
    }
    charts
        .into_iter()
        .map(|((input, metric), mut drawn)| {
            name_curves(input, &mut drawn);
            let lines: Vec<Curve> = drawn.into_iter().map(|(_, curve)| curve).collect();
            let heading = format!("{}: {}", title(input), metric_name(&metric));
            html! { (curves(&heading, x_name, &lines)) }
        })
        .collect()
}

/// Points by (figure, split), from a long table (`metric`, `value`) or one with a column per figure.
fn read(batch: &RecordBatch) -> (&'static str, Logged) {
    let x_name = ["step", "epoch"].into_iter().find(|name| batch.column_by_name(name).is_some());
    let x_name = x_name.unwrap_or("epoch");
    let (places, splits) = (numbers(batch, x_name), texts(batch, "split"));
    let mut logged: Logged = BTreeMap::new();
    let mut add = |metric: &str, row: usize, value: Option<f64>| {
        let place = places[row].unwrap_or(row as f64);
        if let Some(value) = value {
            logged.entry((metric.to_owned(), splits[row].clone())).or_default().push((place, value));
        }
    };
    if batch.column_by_name("metric").is_some() {
        let (metrics, values) = (texts(batch, "metric"), numbers(batch, "value"));
        for row in 0..batch.num_rows() {
            if let Some(metric) = &metrics[row] {
                add(metric, row, values[row]);
            }
        }
    } else {
        let schema = batch.schema();
        let wide = schema.fields().iter().map(|field| field.name().as_str());
        for name in wide.filter(|name| !["step", "epoch", "split", "seed"].contains(name)) {
            for (row, value) in numbers(batch, name).into_iter().enumerate() {
                add(name, row, value);
            }
        }
    }
    for points in logged.values_mut() {
        points.sort_by(|left, right| left.0.total_cmp(&right.0));
    }
    (x_name, logged)
}

/// Labels each curve by the axes in which they differ, and its split.
fn name_curves(input: &str, drawn: &mut [Drawn<'_>]) {
    let names: BTreeSet<&str> = drawn.iter().flat_map(|(keys, _)| keys.keys().copied()).collect();
    let differing: Vec<&str> = names
        .into_iter()
        .filter(|name| drawn.iter().map(|(keys, _)| keys.get(name)).collect::<BTreeSet<_>>().len() > 1)
        .collect();
    for (keys, curve) in drawn {
        let mut parts: Vec<String> =
            differing.iter().filter_map(|name| Some((*keys.get(name)?).to_owned())).collect();
        parts.extend((!curve.label.is_empty()).then(|| curve.label.clone()));
        curve.label = if parts.is_empty() { title(input) } else { parts.join(" \u{b7} ") };
    }
}
