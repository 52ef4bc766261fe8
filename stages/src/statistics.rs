//! Figures of merit and their intervals, as plain functions over slices.
//!
//! What is undefined is `None`, never NaN: the AUROC of one class, the recall of no positives.

use pipe_models::random::Key;
use rayon::prelude::*;

/// Scores in ascending order with their places, computed once for many resamples.
#[derive(Clone, Debug)]
pub(crate) struct Ranking {
    order: Vec<usize>,
    /// Whether the score at a place of `order` equals the one before it.
    tied: Vec<bool>,
}

impl Ranking {
    pub(crate) fn new(scores: &[f64]) -> Self {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
        let tied = order
            .iter()
            .enumerate()
            .map(|(place, index)| place > 0 && scores[order[place - 1]] == scores[*index])
            .collect();
        Self { order, tied }
    }

    /// The area under the ROC curve (Mann-Whitney, ties one half), each sample counted `weight` times.
    pub(crate) fn auroc(
        &self,
        positive: impl Fn(usize) -> bool,
        weight: impl Fn(usize) -> f64,
    ) -> Option<f64> {
        let (mut positives, mut negatives, mut area) = (0.0, 0.0, 0.0);
        // Negatives below the current tie group, and the group's own counts.
        let (mut below, mut group_positives, mut group_negatives) = (0.0, 0.0, 0.0);
        for (place, index) in self.order.iter().enumerate() {
            if !self.tied[place] {
                area += group_positives * (below + 0.5 * group_negatives);
                below += group_negatives;
                (group_positives, group_negatives) = (0.0, 0.0);
            }
            let weight = weight(*index);
            if positive(*index) {
                positives += weight;
                group_positives += weight;
            } else {
                negatives += weight;
                group_negatives += weight;
            }
        }
        area += group_positives * (below + 0.5 * group_negatives);
        (positives > 0.0 && negatives > 0.0).then(|| area / (positives * negatives))
    }
}

/// The area under the ROC curve of a binary task.
#[cfg(test)]
pub(crate) fn auroc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    Ranking::new(scores).auroc(|index| positive[index], |_| 1.0)
}

/// A figure with its percentile interval.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
}

/// Replicates of every bootstrap.
pub(crate) const REPLICATES: u64 = 2000;

/// The groups that samples belong to, for resampling what is independent: patients, not images.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    /// The group of each sample.
    of: Vec<usize>,
    count: usize,
}

impl Groups {
    /// Samples without a group are groups of their own.
    pub(crate) fn new(groups: &[Option<String>]) -> Self {
        let mut known = std::collections::BTreeMap::new();
        let mut count = 0;
        let of = groups
            .iter()
            .map(|group| {
                let mut fresh = || {
                    count += 1;
                    count - 1
                };
                match group {
                    Some(name) => *known.entry(name.as_str()).or_insert_with(fresh),
                    None => fresh(),
                }
            })
            .collect();
        Self { of, count }
    }

    /// Every sample its own group.
    #[cfg(test)]
    pub(crate) fn singles(count: usize) -> Self {
        Self { of: (0..count).collect(), count }
    }

    /// How often each sample is drawn in a replicate: groups with replacement.
    fn weights(&self, key: Key, replicate: u64) -> Vec<f64> {
        let stream = key.sub(replicate + 1);
        let mut drawn = vec![0.0; self.count];
        for draw in 1..=self.count as u64 {
            drawn[stream.below(draw, self.count as u64) as usize] += 1.0;
        }
        self.of.iter().map(|group| drawn[*group]).collect()
    }
}

/// The figure of all samples, with the 2.5 to 97.5 % interval over resampled groups. `figure` gets the
/// weight of each sample; replicates in which it is undefined are left out, and more than one in ten
/// of those leave the interval undefined.
pub(crate) fn bootstrap(
    groups: &Groups,
    seed: u64,
    figure: impl Fn(&dyn Fn(usize) -> f64) -> Option<f64> + Sync,
) -> Option<Estimate> {
    let value = figure(&|_| 1.0)?;
    let key = Key::derive("pipe bootstrap/1", seed, &[]);
    let mut replicates: Vec<f64> = (0..REPLICATES)
        .into_par_iter()
        .filter_map(|replicate| {
            let weights = groups.weights(key, replicate);
            figure(&|index| weights[index])
        })
        .collect();
    if replicates.len() * 10 < REPLICATES as usize * 9 {
        return Some(Estimate { value, low: None, high: None });
    }
    replicates.sort_by(f64::total_cmp);
    Some(Estimate {
        value,
        low: Some(percentile(&replicates, 0.025)),
        high: Some(percentile(&replicates, 0.975)),
    })
}

/// The percentile of sorted values, linearly between neighbours.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The weighted mean of a value per sample.
pub(crate) fn mean(values: &[f64], weight: &dyn Fn(usize) -> f64) -> Option<f64> {
    let (mut sum, mut total) = (0.0, 0.0);
    for (index, value) in values.iter().enumerate() {
        sum += weight(index) * value;
        total += weight(index);
    }
    (total > 0.0).then(|| sum / total)
}

/// Softmax of logits, in f64.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|logit| libm::exp(f64::from(logit - max))).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

/// The index of the greatest value, the first of equals.
pub(crate) fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auroc_counts_pairs_and_halves_ties() {
        assert_eq!(auroc(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]), Some(0.75));
        assert_eq!(auroc(&[0.5, 0.5], &[false, true]), Some(0.5));
        assert_eq!(auroc(&[0.5, 0.6], &[true, true]), None);
    }

    #[test]
    fn an_interval_holds_its_figure_and_does_not_depend_on_threads() {
        let values: Vec<f64> = (0..100).map(|index| f64::from(index % 3)).collect();
        let run = || bootstrap(&Groups::singles(100), 1, |weight| mean(&values, weight)).unwrap();
        let estimate = run();
        assert!(estimate.low.unwrap() < estimate.value && estimate.value < estimate.high.unwrap());
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(run), estimate);
    }

    #[test]
    fn groups_are_drawn_whole() {
        let groups = Groups::new(&[Some("a".into()), Some("a".into()), None]);
        let weights = groups.weights(Key(3), 0);
        assert_eq!(weights[0], weights[1]);
        assert_eq!(groups.count, 2);
    }
}
