//! Counts by a value, in bounded memory however many different values there are.

use std::collections::BTreeMap;

/// Different values that are counted, each by itself, unless all are wanted.
const MOST: usize = 1 << 16;

/// How often each value occurs.
#[derive(Debug)]
pub(crate) struct Tally<K> {
    most: usize,
    counts: BTreeMap<K, u64>,
    others: u64,
}

impl<K: Ord> Default for Tally<K> {
    fn default() -> Self {
        Self { most: MOST, counts: BTreeMap::new(), others: 0 }
    }
}

impl<K: Ord> Tally<K> {
    /// Counts a value so many times.
    pub(crate) fn add(&mut self, value: K, times: u64) {
        if self.counts.len() < self.most || self.counts.contains_key(&value) {
            *self.counts.entry(value).or_default() += times;
        } else {
            self.others += times;
        }
    }

    /// The values that came first, in their order, and how often each came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, u64)> {
        self.counts.iter().map(|(value, count)| (value, *count))
    }

    /// How often any other value came; 0 unless there are very many.
    pub(crate) fn others(&self) -> u64 {
        self.others
    }

    /// Adds all that another has counted.
    pub(crate) fn append(&mut self, other: Self) {
        for (value, count) in other.counts {
            self.add(value, count);
        }
        self.others += other.others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_counted_together() {
        let mut tally = Tally { most: 2, ..Tally::default() };
        for value in ["b", "a", "b", "c", "d", "a"] {
            tally.add(value, 1);
        }
        assert_eq!(tally.iter().collect::<Vec<_>>(), [(&"a", 2), (&"b", 2)]);
        assert_eq!(tally.others(), 2);
        let mut one = Tally { most: 2, ..Tally::default() };
        one.add("c", 5);
        one.append(tally);
        assert_eq!(one.iter().collect::<Vec<_>>(), [(&"a", 2), (&"c", 5)]);
        assert_eq!(one.others(), 4);
    }
}
