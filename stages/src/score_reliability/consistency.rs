//! Four parts of what makes a metric reliable, from 0 to 1: within a method and between methods, where little changes
//! and where the prediction does.

use std::collections::{BTreeMap, BTreeSet};

use crate::explained::{Cell, Explained, Scores};
use crate::statistics::{Method, Zeros, midranks, wilcoxon};

/// The consistency of one metric.
pub(super) struct Consistency {
    pub(super) metric: String,
    /// Parts by name, or why there are none.
    pub(super) parts: [(&'static str, Result<f64, String>); 4],
    /// How many scores each part is of.
    pub(super) n: [usize; 4],
}

/// Scores of one metric before and after one change: of each method, by map.
struct Changed {
    /// Whether greater is better.
    is_higher: Option<bool>,
    /// For each map that counts and has values of all methods: those before and those after, by method.
    maps: Vec<[Vec<f64>; 2]>,
}

/// Which maps count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Prediction {
    Same,
    Changed,
}

/// The name of a map, whatever it explains: its id, and its number among equal ones.
type Name<'a> = (&'a str, usize);

/// The maps of a metric by name: where the prediction changes, another class is explained.
fn by_name(scores: &Scores) -> BTreeMap<Name<'_>, (&str, &Cell)> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut maps = BTreeMap::new();
    for ((id, target, _), cell) in &scores.cells {
        let number = seen.entry(id).or_default();
        maps.insert((id.as_str(), *number), (target.as_str(), cell));
        *number += 1;
    }
    maps
}

impl Changed {
    fn new(metric: &str, before: &[Explained], after: &[Explained], wanted: Prediction) -> Self {
        let pair = |one: &'_ Explained| {
            let other = after.iter().find(|other| other.explanation == one.explanation)?;
            Some((one.by_metric.get(metric)?.clone(), other.by_metric.get(metric)?.clone()))
        };
        let methods: Vec<(Scores, Scores)> = before.iter().filter_map(pair).collect();
        let is_higher = methods.first().and_then(|(before, _)| before.is_higher);
        let columns: Vec<_> =
            methods.iter().map(|(before, after)| (by_name(before), by_name(after))).collect();
        let names: BTreeSet<Name<'_>> =
            columns.iter().flat_map(|(before, _)| before.keys().copied()).collect();
        let map = |name: Name<'_>| -> Option<[Vec<f64>; 2]> {
            let mut values = [Vec::new(), Vec::new()];
            for (before, after) in &columns {
                let ((class, old), (now, new)) = (before.get(&name)?, after.get(&name)?);
                let is_same = class == now && old.is_right == new.is_right;
                if is_same != (wanted == Prediction::Same) {
                    return None;
                }
                values[0].push(old.value?);
                values[1].push(new.value?);
            }
            Some(values)
        };
        Self { is_higher, maps: names.into_iter().filter_map(map).collect() }
    }

    fn methods(&self) -> usize {
        self.maps.first().map_or(0, |[before, _]| before.len())
    }

    /// The mean over methods of the probability, by the signed-rank test, that scores before and after differ by chance.
    fn same_by_chance(&self) -> Option<f64> {
        let mut sum = 0.0;
        for method in 0..self.methods() {
            let column = |time: usize| self.maps.iter().map(|map| map[time][method]).collect::<Vec<f64>>();
            let normal = Method::Normal { continuity: false };
            sum += wilcoxon(&column(0), &column(1), Zeros::Split, normal).p?;
        }
        (self.methods() > 0).then(|| sum / self.methods() as f64)
    }

    /// The share of scores whose rank among the methods stays.
    fn same_ranks(&self) -> Option<f64> {
        let stay = self.maps.iter().flat_map(|[before, after]| {
            let (before, after) = (midranks(before), midranks(after));
            before.into_iter().zip(after).map(|(before, after)| before == after).collect::<Vec<_>>()
        });
        share(stay.collect())
    }

    /// The share of scores that are worse after the change.
    fn worse(&self) -> Option<f64> {
        let is_higher = self.is_higher?;
        let worse = self.maps.iter().flat_map(|[before, after]| {
            before
                .iter()
                .zip(after)
                .map(move |(before, after)| if is_higher { after < before } else { after > before })
        });
        share(worse.collect())
    }
}

fn share(are: Vec<bool>) -> Option<f64> {
    let count = are.iter().filter(|is| **is).count() as f64;
    (!are.is_empty()).then(|| count / are.len() as f64)
}

/// The mean over draws that define a figure.
fn mean(values: impl Iterator<Item = Option<f64>>, reason: &str) -> Result<f64, String> {
    let values: Vec<f64> = values.flatten().collect();
    if values.is_empty() {
        return Err(reason.to_owned());
    }
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

/// The consistency of every metric of `before`. Draws of changes that should not matter count where the prediction
/// stays, others where it changes.
pub(super) fn consistency(
    before: &[Explained],
    minor: &[Vec<Explained>],
    disruptive: &[Vec<Explained>],
) -> Vec<Consistency> {
    let names: BTreeSet<&String> = before.iter().flat_map(|one| one.by_metric.keys()).collect();
    let of = |metric: &String| {
        let changed = |draws: &[Vec<Explained>], wanted| -> Vec<Changed> {
            draws.iter().map(|after| Changed::new(metric, before, after, wanted)).collect()
        };
        let minor = changed(minor, Prediction::Same);
        let disruptive = changed(disruptive, Prediction::Changed);
        let count = |draws: &[Changed]| draws.iter().map(|draw| draw.maps.len() * draw.methods()).sum();
        let [of_minor, of_disruptive]: [usize; 2] = [count(&minor), count(&disruptive)];
        let stays = "no map has a value before and after a change that leaves the prediction";
        let turns = "no map has a value before and after a change of the prediction";
        let ranks = match minor.iter().map(Changed::methods).max() {
            Some(1) => Err("one method alone has no rank".to_owned()),
            _ => mean(minor.iter().map(Changed::same_ranks), stays),
        };
        let worse = match disruptive.iter().any(|draw| !draw.maps.is_empty() && draw.is_higher.is_none()) {
            true => Err("the metric says nothing of what is better".to_owned()),
            false => mean(disruptive.iter().map(Changed::worse), turns),
        };
        let differs = |draw: &Changed| draw.same_by_chance().map(|p| 1.0 - p);
        let parts = [
            ("intra_consistency_minor", mean(minor.iter().map(Changed::same_by_chance), stays)),
            ("inter_consistency_minor", ranks),
            ("intra_consistency_disruptive", mean(disruptive.iter().map(differs), turns)),
            ("inter_consistency_disruptive", worse),
        ];
        let n = [of_minor, of_minor, of_disruptive, of_disruptive];
        Consistency { metric: metric.clone(), parts, n }
    };
    names.into_iter().map(of).collect()
}
