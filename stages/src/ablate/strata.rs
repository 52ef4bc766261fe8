//! Permutations of samples, over all of them or within strata.

use std::collections::BTreeMap;

use pipe_models::random::Key;

/// The strata that samples belong to.
#[derive(Clone, Debug)]
pub(super) struct Strata {
    /// The members of each stratum, two at least unless there is only one sample.
    members: Vec<Vec<usize>>,
    /// The stratum of each sample.
    pub(super) of: Vec<usize>,
}

impl Strata {
    /// All samples as one stratum.
    pub(super) fn one(count: usize) -> Self {
        Self { members: vec![(0..count).collect()], of: vec![0; count] }
    }

    /// Strata by value; samples without one are a stratum. Those of a single sample, which could only
    /// keep their place, are joined into one, and into the largest other one if that leaves one again.
    pub(super) fn by_value(values: &[Option<String>]) -> Self {
        let mut by_value: BTreeMap<&Option<String>, Vec<usize>> = BTreeMap::new();
        for (sample, value) in values.iter().enumerate() {
            by_value.entry(value).or_default().push(sample);
        }
        let (single, mut members): (Vec<Vec<usize>>, Vec<Vec<usize>>) =
            by_value.into_values().partition(|members| members.len() == 1);
        let single: Vec<usize> = single.concat();
        match (single.len(), members.iter_mut().max_by_key(|members| members.len())) {
            (0, _) => {}
            (1, Some(largest)) => largest.extend(single),
            _ => members.push(single),
        }
        let mut of = vec![0; values.len()];
        for (stratum, members) in members.iter().enumerate() {
            members.iter().for_each(|sample| of[*sample] = stratum);
        }
        Self { members, of }
    }

    /// Number of strata.
    pub(super) fn count(&self) -> usize {
        self.members.len()
    }

    /// For each sample another one of its stratum.
    pub(super) fn derangement(&self, key: Key) -> Vec<usize> {
        let mut other = vec![0; self.of.len()];
        for (stratum, members) in self.members.iter().enumerate() {
            for (place, from) in key.sub(stratum as u64).derangement(members.len()).into_iter().enumerate() {
                other[members[place]] = members[from];
            }
        }
        other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<Option<String>> {
        text.chars().map(|value| (value != '-').then(|| value.to_string())).collect()
    }

    #[test]
    fn nothing_stays_and_nothing_leaves_its_stratum() {
        let values = values("aabbbab--a");
        let strata = Strata::by_value(&values);
        assert_eq!(strata.count(), 3);
        for seed in 0..20 {
            let other = strata.derangement(Key(seed));
            assert!(
                other
                    .iter()
                    .enumerate()
                    .all(|(sample, from)| { sample != *from && values[sample] == values[*from] })
            );
        }
    }

    #[test]
    fn single_samples_change_places_with_each_other() {
        let strata = Strata::by_value(&values("aabcaa"));
        assert_eq!(strata.count(), 2);
        let other = strata.derangement(Key(2));
        assert_eq!((other[2], other[3]), (3, 2));
        let strata = Strata::by_value(&values("aab"));
        assert_eq!(strata.count(), 1);
        assert_ne!(strata.derangement(Key(2))[2], 2);
    }
}
