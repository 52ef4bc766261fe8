//! What is known of each id of a source, in sixteen bytes an id, however long ids are.

use std::collections::BTreeMap;

/// Keys of ids (of [`super::seen::text_key`]) with a number each. Fifteen million take 250 MB.
#[derive(Debug, Default)]
pub(crate) struct Numbered {
    /// In the order of keys.
    sorted: Vec<(u64, u64)>,
    /// Keys that came last.
    recent: BTreeMap<u64, u64>,
}

impl Numbered {
    /// Keys that wait to be sorted in.
    const RECENT: usize = 1 << 17;

    /// The number of a key, if it is there.
    pub(crate) fn get(&self, key: u64) -> Option<u64> {
        self.recent.get(&key).copied().or_else(|| self.place(key).map(|place| self.sorted[place].1))
    }

    /// Gives a key a number, in the place of the one that it had.
    pub(crate) fn set(&mut self, key: u64, number: u64) {
        if let Some(place) = self.place(key) {
            self.sorted[place].1 = number;
            return;
        }
        self.recent.insert(key, number);
        if self.recent.len() >= Self::RECENT {
            let recent = std::mem::take(&mut self.recent);
            merge(&mut self.sorted, recent.into_iter());
        }
    }

    fn place(&self, key: u64) -> Option<usize> {
        self.sorted.binary_search_by_key(&key, |(known, _)| *known).ok()
    }
}

/// Merges values, which come in their order, into sorted ones, in their place: from behind, so that no more memory is
/// needed than for what is added.
pub(super) fn merge<T: Ord + Copy>(
    sorted: &mut Vec<T>,
    added: impl DoubleEndedIterator<Item = T> + ExactSizeIterator,
) {
    let mut left = sorted.len();
    let mut added = added.rev().peekable();
    let Some(filling) = added.peek().copied() else { return };
    sorted.reserve_exact(added.len());
    sorted.resize(left + added.len(), filling);
    let mut end = sorted.len();
    while let Some(value) = added.peek().copied() {
        end -= 1;
        if left > 0 && sorted[left - 1] > value {
            left -= 1;
            sorted[end] = sorted[left];
        } else {
            sorted[end] = value;
            added.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ingest::seen::text_key;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_merged_is_sorted(mut one in prop::collection::vec(0u8..20, 0..30), mut other in prop::collection::vec(0u8..20, 0..30)) {
            let mut expected = [&one[..], &other[..]].concat();
            one.sort_unstable();
            other.sort_unstable();
            expected.sort_unstable();
            merge(&mut one, other.into_iter());
            prop_assert_eq!(one, expected);
        }
    }

    #[test]
    fn the_last_number_of_a_key_counts() {
        let key = |id: u64| text_key(&id.to_string());
        let mut numbered = Numbered::default();
        for id in 0..300_000 {
            numbered.set(key(id), id);
            // Keys that wait, and keys that are sorted in.
            numbered.set(key(id / 2), id + 1_000_000);
        }
        assert!((0..150_000).all(|id| numbered.get(key(id)) == Some(2 * id + 1 + 1_000_000)));
        assert!((150_000..300_000).all(|id| numbered.get(key(id)) == Some(id)));
        assert_eq!(numbered.get(key(300_000)), None);
        assert_eq!(numbered.sorted.len() + numbered.recent.len(), 300_000);
        assert!(numbered.recent.len() < Numbered::RECENT);
    }
}
