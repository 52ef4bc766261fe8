//! What can be had without a model: the most frequent answer, overall or per key.

use std::collections::{BTreeMap, BTreeSet};

/// The most frequent value of each key, and of all keys.
#[derive(Clone, Debug)]
pub struct MostFrequent<K, V> {
    by_key: BTreeMap<K, V>,
}

impl<K: Ord, V: Ord + Clone> MostFrequent<K, V> {
    /// Counts pairs of key and value; of equally frequent values the least is taken.
    pub fn fit(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut counts: BTreeMap<K, BTreeMap<V, usize>> = BTreeMap::new();
        for (key, value) in pairs {
            *counts.entry(key).or_default().entry(value).or_default() += 1;
        }
        let most = |values: BTreeMap<V, usize>| {
            // The first of equals: values come in ascending order.
            values.into_iter().reduce(|best, next| if next.1 > best.1 { next } else { best })
        };
        let by_key = counts.into_iter().filter_map(|(key, values)| Some((key, most(values)?.0))).collect();
        Self { by_key }
    }

    /// The value of a key; `None` if it was never seen.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)
    }
}

/// Items that occur on both sides of a split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overlap {
    /// Different items to train on.
    pub train: usize,
    /// Different items to test on.
    pub test: usize,
    /// Different items in both.
    pub shared: usize,
    /// Rows to test on whose item is among those to train on.
    pub test_rows: usize,
}

impl Overlap {
    /// Compares the items of two splits, a row each.
    pub fn of<T: Ord>(train: impl IntoIterator<Item = T>, test: impl IntoIterator<Item = T>) -> Self {
        let train: BTreeSet<T> = train.into_iter().collect();
        let rows: Vec<T> = test.into_iter().collect();
        let test_rows = rows.iter().filter(|item| train.contains(item)).count();
        let test: BTreeSet<T> = rows.into_iter().collect();
        Self { train: train.len(), test: test.len(), shared: train.intersection(&test).count(), test_rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_equally_frequent_values_is_taken() {
        let answers = MostFrequent::fit([("a", "no"), ("a", "yes"), ("b", "yes"), ("b", "yes"), ("b", "no")]);
        assert_eq!(
            (answers.get(&"a"), answers.get(&"b"), answers.get(&"c")),
            (Some(&"no"), Some(&"yes"), None)
        );
    }

    #[test]
    fn rows_and_items_are_counted_apart() {
        let overlap = Overlap::of([1, 2, 2, 3], [3, 3, 4]);
        assert_eq!(overlap, Overlap { train: 3, test: 2, shared: 1, test_rows: 2 });
    }
}
