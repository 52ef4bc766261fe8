//! Scores of explanations, paired: two explanations of one model, or one explanation of two models, by every metric
//! over the same maps.

use std::collections::BTreeSet;

use pipe_engine::StageError;

use super::Params;
use super::pairs::{Compared, Pair, Test, corrected, signed_rank};
use crate::explained::{Explained, Item, Scores};
use crate::metrics::Metric;
use crate::statistics::{Estimate, Groups, bootstrap, mean, midranks};

/// What the figures are of, as metrics have it.
const TASK: &str = "explanation";

/// The subgroup of the maps of images that both models are right about.
const RIGHT: &str = "correct=true";

/// Ratios whose greatest values would decide a mean: their logarithms are compared.
fn is_heavy_tailed(metric: &str) -> bool {
    metric.starts_with("relative_") && metric.ends_with("_stability")
}

/// Two scores of the same maps.
struct Paired {
    a: Vec<f64>,
    b: Vec<f64>,
    groups: Vec<Option<String>>,
    /// Whether the model, or both models, are right about each; none where no table says.
    right: Vec<Option<bool>>,
    /// Maps that only one has, or that have no value.
    left_out: usize,
    /// Terms under which both were scored, if they differ.
    differ: Option<[String; 2]>,
    /// Parameters of both, if they differ.
    parameters: Option<[String; 2]>,
}

impl Paired {
    fn new(metric: &str, first: &Scores, second: &Scores) -> Self {
        let all: BTreeSet<&Item> = first.cells.keys().chain(second.cells.keys()).collect();
        let mut paired = Self {
            a: Vec::new(),
            b: Vec::new(),
            groups: Vec::new(),
            right: Vec::new(),
            left_out: 0,
            differ: None,
            parameters: None,
        };
        for item in all {
            let both = first.cells.get(item).zip(second.cells.get(item));
            let valued = both.and_then(|(a, b)| {
                let [x, y] = [a.value?, b.value?];
                let logarithms = is_heavy_tailed(metric);
                if !logarithms {
                    return Some((a, b, x, y));
                }
                (x > 0.0 && y > 0.0).then(|| (a, b, libm::log10(x), libm::log10(y)))
            });
            let Some((a, b, x, y)) = valued else {
                paired.left_out += 1;
                continue;
            };
            if a.terms != b.terms {
                paired.differ.get_or_insert_with(|| [a.terms.clone(), b.terms.clone()]);
            }
            if a.parameters != b.parameters {
                paired.parameters.get_or_insert_with(|| [a.parameters.clone(), b.parameters.clone()]);
            }
            paired.a.push(x);
            paired.b.push(y);
            paired.groups.push(a.group.clone());
            paired.right.push(a.is_right.zip(b.is_right).map(|(a, b)| a && b));
        }
        paired
    }

    /// Those of images that both are right about; nothing where no table says.
    fn right(&self) -> Option<Self> {
        if self.right.iter().all(Option::is_none) {
            return None;
        }
        let places: Vec<usize> = (0..self.a.len()).filter(|place| self.right[*place] == Some(true)).collect();
        Some(Self {
            a: places.iter().map(|place| self.a[*place]).collect(),
            b: places.iter().map(|place| self.b[*place]).collect(),
            groups: places.iter().map(|place| self.groups[*place].clone()).collect(),
            right: vec![Some(true); places.len()],
            left_out: self.left_out,
            differ: self.differ.clone(),
            parameters: self.parameters.clone(),
        })
    }

    /// What a reader has to know beside the figures.
    fn remark(&self) -> Option<String> {
        let left_out = (self.left_out > 0)
            .then(|| format!("{} maps that have no value in one or both are left out", self.left_out));
        let parameters = self.parameters.as_ref().map(|[a, b]| format!("the parameters are {a} and {b}"));
        let remarks: Vec<String> = left_out.into_iter().chain(parameters).collect();
        (!remarks.is_empty()).then(|| remarks.join("; "))
    }
}

/// Figures of all pairs of explanations, metric by metric, and the mean rank of each among those of its model.
///
/// # Errors
/// If there are no two to compare, or none is the reference.
pub(super) fn compare_explanations(params: &Params, all: &[Explained]) -> Result<Vec<Metric>, StageError> {
    let sources: BTreeSet<&str> = all.iter().map(|one| one.source.as_str()).collect();
    let label = |place: usize| match sources.len() {
        1 => all[place].explanation.clone(),
        _ => format!("{}/{}", all[place].source, all[place].explanation),
    };
    let labels: Vec<String> = (0..all.len()).map(label).collect();
    let pairs = pairs(params.reference.as_deref(), all, &labels)?;
    let row = |of: &Compared, name: &str, estimate: Option<Estimate>, n: usize| {
        let mut metric = Metric::new(TASK, "", name, estimate, n);
        metric.method = Some(format!("{} - {}", labels[of.pair.first], labels[of.pair.second]));
        metric.seed = Some(params.seed);
        metric.subgroup.clone_from(&of.subgroup);
        metric.reason.clone_from(&of.left_out);
        metric
    };
    let names: BTreeSet<&String> = all.iter().flat_map(|one| one.by_metric.keys()).collect();
    let mut metrics = Vec::new();
    let mut tests: Vec<Test> = Vec::new();
    for name in &names {
        for pair in &pairs {
            let both = [pair.first, pair.second].map(|place| all[place].by_metric.get(*name));
            let [Some(first), Some(second)] = both else { continue };
            let paired = Paired::new(name, first, second);
            let right = paired.right().map(|right| (Some(RIGHT.to_owned()), right));
            for (subgroup, paired) in std::iter::once((None, paired)).chain(right) {
                let of = Compared { pair: *pair, subgroup, protocol: None, left_out: paired.remark() };
                let (rows, test) = figures(params, name, &paired);
                metrics.extend(rows.into_iter().map(|(figure, estimate, reason)| {
                    let mut metric = row(&of, &figure, estimate, paired.a.len());
                    if estimate.is_none() {
                        metric.reason = Some(reason);
                    }
                    metric
                }));
                if let Some(p) = test {
                    tests.push(Test { of, name: format!("{name}_wilcoxon"), p, n: paired.a.len() });
                }
            }
        }
    }
    metrics.extend(corrected(&tests, &row));
    for name in names {
        for subgroup in [None, Some(RIGHT)] {
            metrics.extend(mean_ranks(name, subgroup, &sources, all, &labels));
        }
    }
    Ok(metrics)
}

/// A figure by its name, or why there is none.
type NamedFigure = (String, Option<Estimate>, String);

/// The figures of one metric of one pair, and the probability of the signed-rank test where there is one to be made.
fn figures(params: &Params, metric: &str, paired: &Paired) -> (Vec<NamedFigure>, Option<Option<f64>>) {
    let name = if is_heavy_tailed(metric) { "log10_ratio" } else { "difference" };
    let difference = format!("{metric}_{name}");
    if let Some([a, b]) = &paired.differ {
        let reason = format!("not comparable: one was scored with `{a}`, the other with `{b}`");
        return (vec![(difference, None, reason)], None);
    }
    if paired.a.is_empty() {
        return (vec![(difference, None, "no map has a value in both".to_owned())], None);
    }
    let differences: Vec<f64> = paired.a.iter().zip(&paired.b).map(|(a, b)| a - b).collect();
    let groups = Groups::new(&paired.groups);
    let estimate = bootstrap(&groups, params.seed as u64, |weights| mean(&differences, weights));
    let test = signed_rank(&paired.a, &paired.b);
    let effect = test.rank_biserial.map(Estimate::exact);
    let rows = vec![
        (difference, estimate, "undefined for these maps".to_owned()),
        (format!("{metric}_rank_biserial"), effect, "all values are equal".to_owned()),
    ];
    (rows, Some(test.p))
}

/// The pairs that are compared: two explanations of one source, not both of them controls, and one explanation, if it
/// is no control, of two sources. With a reference, those that it is the second of.
fn pairs(reference: Option<&str>, all: &[Explained], labels: &[String]) -> Result<Vec<Pair>, StageError> {
    let is_compared = |first: &Explained, second: &Explained| match first.source == second.source {
        true => !(first.is_control && second.is_control),
        false => first.explanation == second.explanation && !first.is_control,
    };
    let is_reference = |pair: &Pair| {
        let (first, second) = (&all[pair.first], &all[pair.second]);
        let Some(name) = reference else { return pair.first < pair.second };
        labels[pair.second] == name
            || (first.source == second.source && second.explanation == name)
            || (first.source != second.source && second.source == name)
    };
    let both_ways = (0..all.len()).flat_map(|first| (0..all.len()).map(move |second| Pair { first, second }));
    let pairs: Vec<Pair> = both_ways
        .filter(|pair| pair.first != pair.second && is_compared(&all[pair.first], &all[pair.second]))
        .filter(is_reference)
        .collect();
    if !pairs.is_empty() {
        return Ok(pairs);
    }
    Err(StageError::failed(match reference {
        Some(name) => {
            format!("the reference `{name}` is none of the explanations {labels:?}, their methods or models")
        }
        None => format!("two explanations are needed to compare; there is {labels:?}"),
    }))
}

/// The mean rank, over the maps, of each explanation among those of its source, 1 being the best; of metrics that
/// rank.
fn mean_ranks(
    name: &str,
    subgroup: Option<&str>,
    sources: &BTreeSet<&str>,
    all: &[Explained],
    labels: &[String],
) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for source in sources {
        let own: Vec<(usize, &Scores)> = (0..all.len())
            .filter(|place| all[*place].source == *source)
            .filter_map(|place| Some((place, all[place].by_metric.get(name)?)))
            .filter(|(_, scores)| scores.cells.values().any(|cell| cell.value.is_some()))
            .collect();
        let Some(is_higher) = own.first().and_then(|(_, scores)| scores.is_higher) else { continue };
        if own.len() < 2 {
            continue;
        }
        let row = |item: &Item| -> Option<Vec<f64>> {
            let cell = |scores: &Scores| {
                let cell = scores.cells.get(item)?;
                let value = cell.value.filter(|_| subgroup.is_none() || cell.is_right == Some(true))?;
                // The least has rank 1.
                Some(if is_higher { -value } else { value })
            };
            own.iter().map(|(_, scores)| cell(scores)).collect()
        };
        let ranks: Vec<Vec<f64>> =
            own[0].1.cells.keys().filter_map(row).map(|values| midranks(&values)).collect();
        if ranks.is_empty() {
            continue;
        }
        for (column, (place, _)) in own.iter().enumerate() {
            let sum: f64 = ranks.iter().map(|row| row[column]).sum();
            let rank = Estimate::exact(sum / ranks.len() as f64);
            let mut metric = Metric::new(TASK, "", &format!("{name}_mean_rank"), Some(rank), ranks.len());
            metric.method = Some(labels[*place].clone());
            metric.subgroup = subgroup.map(str::to_owned);
            metrics.push(metric);
        }
    }
    metrics
}
