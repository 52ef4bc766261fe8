//! Percentile intervals by the bootstrap. Resamples are a pure function of the seed and the groups, so
//! figures of several models over the same samples are compared within the same resamples.

use pipe_models::random::Key;
use rayon::prelude::*;

/// A figure with its percentile interval.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// The figure of all samples.
    pub value: f64,
    /// The 2.5 percentile of the resamples, where enough of them define the figure.
    pub low: Option<f64>,
    /// Their 97.5 percentile.
    pub high: Option<f64>,
}

impl Estimate {
    /// A figure without an interval.
    pub fn exact(value: f64) -> Self {
        Self { value, low: None, high: None }
    }
}

/// Replicates of every bootstrap.
pub const REPLICATES: u64 = 2000;

/// The groups that samples belong to, for resampling what is independent: patients, not images.
#[derive(Clone, Debug)]
pub struct Groups {
    /// The group of each sample.
    of: Vec<usize>,
    count: usize,
    /// Where groups are drawn within strata: the groups of each.
    strata: Option<Vec<Vec<usize>>>,
}

impl Groups {
    /// Samples without a group are groups of their own.
    pub fn new(groups: &[Option<String>]) -> Self {
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
        Self { of, count, strata: None }
    }

    /// The same groups, drawn within strata: every resample has as many groups of each as there are. A group whose
    /// samples are of several classes is of a stratum with those of the same classes. For sets so small that a resample
    /// may lack a class; intervals then take the shares of the classes for given.
    #[must_use]
    pub fn within(self, classes: &[i64]) -> Self {
        let mut of_group = vec![std::collections::BTreeSet::new(); self.count];
        for (group, class) in self.of.iter().zip(classes) {
            of_group[*group].insert(*class);
        }
        let mut strata = std::collections::BTreeMap::<_, Vec<usize>>::new();
        for (group, classes) in of_group.into_iter().enumerate() {
            strata.entry(classes).or_default().push(group);
        }
        Self { strata: Some(strata.into_values().collect()), ..self }
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Every sample its own group.
    pub fn singles(count: usize) -> Self {
        Self { of: (0..count).collect(), count, strata: None }
    }

    /// How often each sample is drawn in a replicate: groups with replacement.
    fn weights(&self, key: Key, replicate: u64) -> Vec<f64> {
        let stream = key.sub(replicate + 1);
        let mut drawn = vec![0.0; self.count];
        match &self.strata {
            None => {
                for draw in 1..=self.count as u64 {
                    drawn[stream.below(draw, self.count as u64) as usize] += 1.0;
                }
            }
            Some(strata) => {
                let mut draws = 1..;
                for groups in strata {
                    for draw in draws.by_ref().take(groups.len()) {
                        drawn[groups[stream.below(draw, groups.len() as u64) as usize]] += 1.0;
                    }
                }
            }
        }
        self.of.iter().map(|group| drawn[*group]).collect()
    }
}

/// The figure of all samples, with the 2.5 to 97.5 % interval over resampled groups. `figure` gets the
/// weight of each sample; replicates in which it is undefined are left out, and more than one in ten
/// of those leave the interval undefined.
pub fn bootstrap(
    groups: &Groups,
    seed: u64,
    figure: impl Fn(&[f64]) -> Option<f64> + Sync,
) -> Option<Estimate> {
    bootstrap_all(groups, seed, |weights| vec![figure(weights)]).pop().flatten()
}

/// As [`bootstrap`], for several figures of the same resamples at once; differences of two of them are
/// paired. `figures` returns as many values each time.
pub fn bootstrap_all(
    groups: &Groups,
    seed: u64,
    figures: impl Fn(&[f64]) -> Vec<Option<f64>> + Sync,
) -> Vec<Option<Estimate>> {
    Resampled::new(groups, seed, figures).estimates()
}

/// Figures of all samples and of every replicate of a bootstrap.
#[derive(Clone, Debug)]
pub struct Resampled {
    values: Vec<Option<f64>>,
    replicates: Vec<Vec<Option<f64>>>,
}

impl Resampled {
    /// Computes figures as [`bootstrap_all`] does.
    pub fn new(groups: &Groups, seed: u64, figures: impl Fn(&[f64]) -> Vec<Option<f64>> + Sync) -> Self {
        let values = figures(&vec![1.0; groups.of.len()]);
        let key = Key::derive("pipe bootstrap/1", seed, &[]);
        let replicate = |replicate| figures(&groups.weights(key, replicate));
        Self { values, replicates: (0..REPLICATES).into_par_iter().map(replicate).collect() }
    }

    /// The figure at `place` in every replicate that defines it, sorted; nothing if more than one in ten does not.
    pub fn replicates(&self, place: usize) -> Option<Vec<f64>> {
        let mut defined: Vec<f64> =
            self.replicates.iter().filter_map(|replicate| *replicate.get(place)?).collect();
        defined.sort_by(f64::total_cmp);
        (defined.len() * 10 >= REPLICATES as usize * 9).then_some(defined)
    }

    /// The figures with their intervals.
    pub fn estimates(&self) -> Vec<Option<Estimate>> {
        let estimate = |(place, value): (usize, &Option<f64>)| {
            let value = (*value)?;
            Some(match self.replicates(place) {
                None => Estimate::exact(value),
                Some(sorted) => Estimate {
                    value,
                    low: Some(percentile(&sorted, 0.025)),
                    high: Some(percentile(&sorted, 0.975)),
                },
            })
        };
        self.values.iter().enumerate().map(estimate).collect()
    }
}

/// The percentile of sorted values, of which there is at least one, linearly between neighbours.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The weighted mean of a value per sample; undefined if all weights are 0.
pub fn mean(values: &[f64], weights: &[f64]) -> Option<f64> {
    let (mut sum, mut total) = (0.0, 0.0);
    for (value, weight) in values.iter().zip(weights) {
        sum += weight * value;
        total += weight;
    }
    (total > 0.0).then(|| sum / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_its_figure_and_does_not_depend_on_threads() {
        let values: Vec<f64> = (0..100).map(|index| f64::from(index % 3)).collect();
        let run = || bootstrap(&Groups::singles(100), 1, |weights| mean(&values, weights)).unwrap();
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

    #[test]
    fn strata_keep_their_sizes_and_groups_stay_whole() {
        // Three groups of class 0, one of class 1, and one of both.
        let names = ["a", "a", "b", "c", "d", "e", "e"].map(|name| Some(name.to_owned()));
        let classes = [0, 0, 0, 0, 1, 0, 1];
        let groups = Groups::new(&names).within(&classes);
        for replicate in 0..50 {
            let weights = groups.weights(Key(3), replicate);
            assert_eq!(weights[0] + weights[2] + weights[3], 3.0, "{weights:?}");
            // Alone in their strata.
            assert_eq!(weights[4..], [1.0; 3]);
            assert_eq!(weights[0], weights[1]);
        }
        // Of one class they are drawn as without.
        let plain = Groups::new(&names);
        assert_eq!(plain.clone().within(&[0; 7]).weights(Key(3), 1), plain.weights(Key(3), 1));
    }

    #[test]
    fn a_figure_that_most_resamples_leave_undefined_has_no_interval() {
        let first = |weights: &[f64]| (weights[0] > 0.0).then_some(1.0);
        let estimates = bootstrap_all(&Groups::singles(50), 4, |weights| {
            vec![first(weights), None, mean(&[2.0; 50], weights)]
        });
        assert_eq!(estimates[0], Some(Estimate::exact(1.0)));
        assert_eq!(estimates[1], None);
        assert_eq!(estimates[2], Some(Estimate { value: 2.0, low: Some(2.0), high: Some(2.0) }));
    }
}
