//! Curves from predictions and ranks: ROC, precision and recall, calibration, confusion, and recall at k.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use maud::{Markup, html};
use pipe_engine::StageError;

use super::charts::{Axes, Curve, Scale, chart, matrix};
use super::collect::{Collected, Given, for_each_batch};
use super::columns::{integer_lists, number_lists, numbers, texts};
use super::words::{number, title};
use crate::artifact;
use crate::statistics::{ClassifierScores, Confusion, Task, mean_curve, precision_recall, recall, roc};

/// Confusions of more classes than this are no picture.
const MOST_CLASSES: usize = 24;
/// Recall curves end here, if not earlier at the size of the pool.
const MOST_RANKS: usize = 100;
/// Curves in one chart beyond which it is left out: nobody could tell them apart.
const MOST_CURVES: usize = 24;

/// What one model said of the samples of one split, with its keys.
struct Predicted {
    input: String,
    keys: BTreeMap<String, String>,
    names: Vec<String>,
    scores: ClassifierScores,
}

/// The ranks that the queries of one direction found.
struct Ranked {
    input: String,
    keys: BTreeMap<String, String>,
    direction: String,
    /// Candidates.
    pool: usize,
    ranks: Vec<usize>,
}

/// A chart with its curves.
struct Drawn {
    input: String,
    name: &'static str,
    axes: Axes,
    curves: Vec<Curve>,
}

/// The charts of all predictions and ranks.
pub(super) struct Charts {
    drawn: Vec<Drawn>,
    confusions: Vec<(String, String, Vec<String>, Confusion)>,
}

impl Charts {
    /// Reads what they are drawn from.
    ///
    /// # Errors
    /// If a table cannot be read.
    pub(super) fn read(collected: &Collected) -> Result<Self, StageError> {
        let mut predicted = Vec::new();
        for given in collected.of_type(artifact::PREDICTIONS) {
            predicted.extend(predictions(given)?);
        }
        let mut ranked = Vec::new();
        for given in collected.of_type(artifact::RANKS) {
            ranked.extend(ranks(given)?);
        }
        let mut charts = Self { drawn: Vec::new(), confusions: Vec::new() };
        for (input, own) in by_input(&predicted, |one| &one.input) {
            charts.add_predicted(input, &own);
        }
        for (input, own) in by_input(&ranked, |one| &one.input) {
            let labels = labels(&own, |one| &one.keys);
            let curves = own.iter().zip(labels).map(|(one, label)| Curve {
                label: if label.is_empty() {
                    one.direction.clone()
                } else {
                    format!("{label} \u{b7} {}", one.direction)
                },
                points: recalls(one),
            });
            let axes = Axes { title: format!("{}: recall at k", title(input)), x: "k", scale: Scale::Free };
            charts.add(input, "recall", axes, curves.collect());
        }
        Ok(charts)
    }

    fn add(&mut self, input: &str, name: &'static str, axes: Axes, curves: Vec<Curve>) {
        let curves: Vec<Curve> = curves.into_iter().filter(|curve| curve.points.len() > 1).collect();
        if !curves.is_empty() && curves.len() <= MOST_CURVES {
            self.drawn.push(Drawn { input: input.to_owned(), name, axes, curves });
        }
    }

    fn add_predicted(&mut self, input: &str, own: &[&Predicted]) {
        let labels = labels(own, |one| &one.keys);
        let named = |label: &str| if label.is_empty() { title(input) } else { label.to_owned() };
        let averaged = own.iter().any(|one| one.scores.scored().count() > 1);
        let note = if averaged { ", mean over classes, each against the rest" } else { "" };
        let of = |points: &dyn Fn(&Predicted) -> Option<Vec<(f64, f64)>>,
                  figure: &dyn Fn(&Predicted) -> Option<f64>| {
            own.iter()
                .zip(&labels)
                .filter_map(|(one, label)| {
                    let figure = figure(one).map_or_else(String::new, |value| format!(", {}", number(value)));
                    Some(Curve { label: format!("{}{figure}", named(label)), points: points(one)? })
                })
                .collect::<Vec<Curve>>()
        };
        let ones = |one: &Predicted| vec![1.0; one.scores.len()];
        let unit = |name: String, x: &'static str| Axes { title: name, x, scale: Scale::Unit };
        self.add(
            input,
            "roc",
            unit(
                format!("{}: ROC, with the area{note}; sensitivity upwards", title(input)),
                "1 \u{2212} specificity",
            ),
            of(&|one| one.mean_of(roc), &|one| one.scores.auroc(&ones(one))),
        );
        self.add(
            input,
            "precision_recall",
            unit(
                format!("{}: precision by recall, with the average precision{note}", title(input)),
                "recall",
            ),
            of(&|one| one.mean_of(precision_recall), &|one| one.scores.average_precision(&ones(one))),
        );
        let mut calibrations = of(
            &|one| {
                let bins = one.scores.calibration(&ones(one))?.bins;
                Some(bins.iter().filter_map(|bin| Some((bin.confidence?, bin.accuracy?))).collect())
            },
            &|one| one.scores.calibration(&ones(one))?.expected_error(),
        );
        if !calibrations.is_empty() {
            let ideal = Curve { label: "as sure as right".to_owned(), points: vec![(0.0, 0.0), (1.0, 1.0)] };
            calibrations.push(ideal);
        }
        self.add(
            input,
            "calibration",
            unit(
                format!(
                    "{}: calibration, with the expected error; the share of right answers upwards",
                    title(input)
                ),
                "top probability",
            ),
            calibrations,
        );
        for (one, label) in own.iter().zip(&labels) {
            if let Some(confusion) =
                one.scores.confusion(&ones(one)).filter(|_| one.names.len() <= MOST_CLASSES)
            {
                self.confusions.push((input.to_owned(), named(label), one.names.clone(), confusion));
            }
        }
    }

    /// The charts with their headings, input by input.
    pub(super) fn markup(&self) -> Vec<Markup> {
        let inputs: BTreeSet<&str> = self
            .drawn
            .iter()
            .map(|one| one.input.as_str())
            .chain(self.confusions.iter().map(|one| one.0.as_str()))
            .collect();
        let section = |input: &str| {
            let confusions: Vec<_> = self.confusions.iter().filter(|one| one.0 == input).collect();
            html! {
                h3 { (title(input)) ": curves" }
                div .charts {
                    @for one in self.drawn.iter().filter(|one| one.input == input) { (chart(&one.axes, &one.curves)) }
                }
                @if !confusions.is_empty() {
                    details {
                        summary { "Confusion: true classes down, predicted ones across" }
                        div .charts {
                            @for (_, label, names, confusion) in confusions { (matrix(label, names, confusion)) }
                        }
                    }
                }
            }
        };
        inputs.into_iter().map(section).collect()
    }

    /// All points of all curves, a row each; nothing if there are none.
    ///
    /// # Errors
    /// If Arrow refuses to join the columns.
    pub(super) fn table(&self) -> Result<Option<RecordBatch>, StageError> {
        let rows = || {
            self.drawn.iter().flat_map(|one| {
                let curves = one.curves.iter();
                curves.flat_map(move |curve| curve.points.iter().map(move |point| (one, curve, point)))
            })
        };
        if rows().next().is_none() {
            return Ok(None);
        }
        let text = |of: &dyn Fn(&Drawn, &Curve) -> String| -> ArrayRef {
            Arc::new(rows().map(|(one, curve, _)| Some(of(one, curve))).collect::<StringArray>())
        };
        let value = |of: fn(&(f64, f64)) -> f64| -> ArrayRef {
            Arc::new(rows().map(|(_, _, point)| Some(of(point))).collect::<Float64Array>())
        };
        let columns = [
            ("input", text(&|one, _| one.input.clone())),
            ("chart", text(&|one, _| one.name.to_owned())),
            ("curve", text(&|_, curve| curve.label.clone())),
            ("x", value(|point| point.0)),
            ("y", value(|point| point.1)),
        ];
        RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, column)| (name, column, true)),
        )
        .map(Some)
        .map_err(|error| StageError::because("joining the points of curves", error))
    }
}

impl Predicted {
    /// The mean of a curve over the scored classes that have one; of a single class the curve itself, thinned.
    fn mean_of(&self, curve: fn(&[f64], &[bool]) -> Option<Vec<(f64, f64)>>) -> Option<Vec<(f64, f64)>> {
        let curves: Vec<Vec<(f64, f64)>> = self
            .scores
            .scored()
            .filter_map(|column| {
                let (scores, positive) = self.scores.column(column);
                curve(&scores, &positive)
            })
            .collect();
        match curves.as_slice() {
            [only] => Some(thinned(only)),
            several => mean_curve(several),
        }
    }
}

/// A curve without points that nobody could tell from their neighbours.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const NEAR: f64 = 1.0 / 400.0;
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (place, point) in points.iter().enumerate() {
        let is_near = kept
            .last()
            .is_some_and(|last| (last.0 - point.0).abs() < NEAR && (last.1 - point.1).abs() < NEAR);
        if !is_near || place + 1 == points.len() {
            kept.push(*point);
        }
    }
    kept
}

fn recalls(ranked: &Ranked) -> Vec<(f64, f64)> {
    let weights = vec![1.0; ranked.ranks.len()];
    let most = ranked.pool.clamp(1, MOST_RANKS);
    (1..=most).filter_map(|k| Some((k as f64, recall(&ranked.ranks, k, &weights)?))).collect()
}

/// What is given, by input in the order of their names.
fn by_input<T>(all: &[T], input: fn(&T) -> &String) -> BTreeMap<&str, Vec<&T>> {
    let mut inputs: BTreeMap<&str, Vec<&T>> = BTreeMap::new();
    for one in all {
        inputs.entry(input(one)).or_default().push(one);
    }
    inputs
}

/// What tells each of several apart: the values of the keys in which they differ.
pub(super) fn labels<T>(all: &[&T], keys: fn(&T) -> &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<&String> = all.iter().flat_map(|one| keys(one).keys()).collect();
    let differs =
        |name: &&String| all.iter().map(|one| keys(one).get(*name)).collect::<BTreeSet<_>>().len() > 1;
    let differing: Vec<&String> = names.into_iter().filter(differs).collect();
    let label = |one: &&T| {
        let values = differing.iter().filter_map(|name| keys(one).get(*name));
        values.map(String::as_str).collect::<Vec<_>>().join(" \u{b7} ")
    };
    all.iter().map(label).collect()
}

/// The predictions of a classifier, split by split. Those of questions have no classes and no curves; of an ablation
/// only the model with all its inputs has.
fn predictions(given: &Given) -> Result<Vec<Predicted>, StageError> {
    let mut names: Vec<String> = Vec::new();
    let mut task = Task::MultiClass;
    type Rows = (Vec<Vec<f64>>, Vec<Vec<i64>>);
    let mut splits: BTreeMap<String, Rows> = BTreeMap::new();
    for_each_batch(&given.artifact, &["split", "target", "scores", "condition"], |metadata, batch| {
        let known = metadata.get("label_names").and_then(|text| serde_json::from_str(text).ok());
        names = known.unwrap_or_default();
        task = metadata.get("task").map_or(Task::MultiClass, |task| Task::parse(task));
        let [own, conditions] = ["split", "condition"].map(|name| texts(batch, name));
        let targets = integer_lists(batch, "target").into_iter();
        for (row, (scores, target)) in number_lists(batch, "scores").into_iter().zip(targets).enumerate() {
            let is_whole = conditions[row].as_deref().is_none_or(|condition| condition == "full");
            let (Some(scores), Some(target), true) = (scores, target, is_whole) else { continue };
            if fits(task, &names, &scores, &target) {
                let (all_scores, targets) = splits.entry(own[row].clone().unwrap_or_default()).or_default();
                all_scores.push(scores);
                targets.push(target);
            }
        }
    })?;
    let several = splits.len() > 1;
    Ok(splits
        .into_iter()
        .map(|(split, (scores, targets))| {
            let mut keys = given.axes.clone();
            if several {
                keys.insert("split".to_owned(), split);
            }
            let scores = ClassifierScores::new(task, scores, targets);
            Predicted { input: given.input.clone(), keys, names: names.clone(), scores }
        })
        .collect())
}

/// Whether a row is what a classifier of these classes says.
fn fits(task: Task, names: &[String], scores: &[f64], target: &[i64]) -> bool {
    let classes = names.len();
    let has_columns = scores.len() == classes || (task == Task::Binary && scores.len() == 1);
    let has_target = match task {
        Task::MultiLabel => target.len() == classes && target.iter().all(|bit| (0..=1).contains(bit)),
        _ => target.len() == 1 && (0..classes as i64).contains(&target[0]),
    };
    classes > 1 && has_columns && has_target && scores.iter().all(|score| score.is_finite())
}

/// The ranks of a retrieval, direction by direction.
fn ranks(given: &Given) -> Result<Vec<Ranked>, StageError> {
    let mut directions: BTreeMap<String, (usize, Vec<usize>)> = BTreeMap::new();
    for_each_batch(&given.artifact, &["direction", "rank", "pool_size"], |_, batch| {
        let own = texts(batch, "direction");
        let [ranks, pools] = ["rank", "pool_size"].map(|name| numbers(batch, name));
        for (row, direction) in own.into_iter().enumerate() {
            let (Some(direction), Some(rank)) = (direction, ranks[row].filter(|rank| *rank >= 0.0)) else {
                continue;
            };
            let (pool, all) = directions.entry(direction).or_default();
            *pool = (*pool).max(pools[row].map_or(0, |size| size as usize));
            all.push(rank as usize);
        }
    })?;
    let ranked = |(direction, (pool, ranks)): (String, (usize, Vec<usize>))| Ranked {
        input: given.input.clone(),
        keys: given.axes.clone(),
        direction: direction.replace('_', " "),
        pool,
        ranks,
    };
    Ok(directions.into_iter().map(ranked).collect())
}
