//! What is known of each id of a source, in sixteen bytes an id, however long ids are.

use std::collections::BTreeMap;

/// Keys of ids (of [`super::seen::text_key`]) with a number each. Fifteen million take 250 MB, and half of that again
/// while those that came last are sorted in.
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
            self.sorted.reserve_exact(recent.len());
            self.sorted.extend(recent);
            // Two sorted runs: one is merged into the other.
            self.sorted.sort();
        }
    }

    fn place(&self, key: u64) -> Option<usize> {
        self.sorted.binary_search_by_key(&key, |(known, _)| *known).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::seen::text_key;

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
