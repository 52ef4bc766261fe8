//! Runs that differ in their seed alone, beside the rows of each: how much is chance of training. Intervals say how much is
//! chance of testing.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::figures::{Group, GroupRow};
use super::words::{metric_name, number, title};
use crate::statistics::Spread;

/// The axis of such runs.
const SEED: &str = "seed";

/// Rows of a table that differ in the seed alone, by what they share.
fn runs(group: &Group) -> Vec<(Vec<Option<String>>, Vec<&GroupRow>)> {
    let Some(seed) = group.key_names.iter().position(|name| name == SEED) else { return Vec::new() };
    let mut places: BTreeMap<Vec<Option<String>>, usize> = BTreeMap::new();
    let mut runs: Vec<(Vec<Option<String>>, Vec<&GroupRow>)> = Vec::new();
    for row in group.rows.iter().filter(|row| row.keys[seed].is_some()) {
        let mut others = row.keys.clone();
        others.remove(seed);
        let place = *places.entry(others.clone()).or_insert_with(|| {
            runs.push((others, Vec::new()));
            runs.len() - 1
        });
        runs[place].1.push(row);
    }
    runs.retain(|(_, rows)| rows.len() > 1);
    runs
}

/// The spread of a metric over runs; nothing where one of them does not define it.
fn spread(rows: &[&GroupRow], metric: &str) -> Option<Spread> {
    let values: Option<Vec<f64>> = rows.iter().map(|row| row.figures.get(metric)?.value).collect();
    Spread::of(&values?)
}

/// Mean and standard deviation over seeds, if some rows of a table differ in these alone.
pub(super) fn over_seeds(group: &Group, heading: &str) -> Markup {
    let runs = runs(group);
    let names: Vec<&String> = group.key_names.iter().filter(|name| *name != SEED).collect();
    html! {
        @if !runs.is_empty() {
            table {
                caption { (heading) ": mean \u{b1} standard deviation over seeds" }
                thead {
                    tr {
                        @if names.is_empty() { th scope="col" { "of" } }
                        @for name in &names { th scope="col" { (title(name)) } }
                        @for metric in &group.metrics { th scope="col" .number { (metric_name(metric)) } }
                        th scope="col" .number { "seeds" }
                    }
                }
                tbody {
                    @for (keys, rows) in &runs {
                        tr {
                            @if names.is_empty() { th scope="row" { "this model" } }
                            @for (place, key) in keys.iter().enumerate() {
                                @let text = key.as_deref().unwrap_or("\u{2013}");
                                @if place == 0 { th scope="row" { (text) } } @else { td { (text) } }
                            }
                            @for metric in &group.metrics {
                                td .number {
                                    @match spread(rows, metric) {
                                        Some(spread) => { (number(spread.mean)) " \u{b1} " (number(spread.deviation)) },
                                        None => { "\u{2013}" },
                                    }
                                }
                            }
                            td .number { (rows.len()) }
                        }
                    }
                }
            }
        }
    }
}
