//! Rows that stand twice, found in little memory: of each row its id, its split and eight bytes per thing
//! that is compared, so that fifteen million pairs fit in a gigabyte.

use pipe_engine::cache::Digest;

use super::checks::Checks;
use super::splits::{SPLITS, place};

/// What is remembered of rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// All ids, one after the other.
    ids: String,
    ends: Vec<u64>,
    splits: Vec<u8>,
    compared: Vec<Compared>,
}

/// One thing that rows are compared by.
#[derive(Clone, Debug)]
struct Compared {
    check: &'static str,
    /// A key of each row; 0 where a row has none.
    keys: Vec<u64>,
}

/// Eight bytes of a digest. Among fifteen million rows one pair of different ones in two hundred thousand
/// such data sets would be taken for equal.
pub(crate) fn key(digest: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first).max(1)
}

/// The key of a text.
pub(crate) fn text_key(text: &str) -> u64 {
    key(&Digest::of(text.as_bytes()))
}

impl Seen {
    /// Nothing yet; rows will be compared by the things that `checks` name.
    pub(crate) fn new(checks: &[&'static str]) -> Self {
        let compared = checks.iter().map(|check| Compared { check, keys: Vec::new() }).collect();
        Self { compared, ..Self::default() }
    }

    /// Remembers a row with its keys, in the order of the checks.
    pub(crate) fn add(&mut self, id: &str, split: &str, keys: &[Option<u64>]) {
        self.ids.push_str(id);
        self.ends.push(self.ids.len() as u64);
        self.splits.push(place(split) as u8);
        for (compared, key) in self.compared.iter_mut().zip(keys) {
            compared.keys.push(key.unwrap_or(0));
        }
    }

    /// The splits that there are, in their order.
    pub(crate) fn splits(&self) -> Vec<&'static str> {
        (0..SPLITS.len())
            .filter(|split| self.splits.contains(&(*split as u8)))
            .map(|split| SPLITS[split])
            .collect()
    }

    /// How many rows a split has.
    pub(crate) fn count(&self, split: &str) -> u64 {
        self.splits.iter().filter(|known| usize::from(**known) == place(split)).count() as u64
    }

    fn id(&self, row: u32) -> &str {
        let row = row as usize;
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        &self.ids[start..self.ends[row] as usize]
    }

    /// For each check and split, how many rows have an equal row before them in the same split, and for
    /// each earlier split, how many have an equal row there. A check that no row has a key for is left out.
    pub(crate) fn check(&self, checks: &mut Checks) {
        for compared in self.compared.iter().filter(|compared| compared.keys.iter().any(|key| *key != 0)) {
            let mut sorted: Vec<(u64, u32)> = (0..)
                .zip(&compared.keys)
                .filter(|(_, key)| **key != 0)
                .map(|(row, key)| (*key, row))
                .collect();
            sorted.sort_unstable();
            // Pairs of a row and the first equal one, by the splits of the two.
            let mut pairs: [[Vec<(u32, u32)>; 3]; 3] = Default::default();
            for equal in sorted.chunk_by(|one, other| one.0 == other.0).filter(|equal| equal.len() > 1) {
                let split = |row: u32| usize::from(self.splits[row as usize]);
                let mut first: [Option<u32>; 3] = [None; 3];
                for (_, row) in equal {
                    first[split(*row)].get_or_insert(*row);
                }
                for (_, row) in equal {
                    for (other, first) in first.iter().enumerate().take(split(*row) + 1) {
                        if let Some(first) = first.filter(|first| first != row) {
                            pairs[split(*row)][other].push((*row, first));
                        }
                    }
                }
            }
            let there: Vec<usize> = self.splits().into_iter().map(place).collect();
            for split in &there {
                let earlier = there.iter().filter(|other| *other < split);
                for other in std::iter::once(split).chain(earlier) {
                    let pairs = &mut pairs[*split][*other];
                    pairs.sort_unstable();
                    let named =
                        |(row, first): &(u32, u32)| format!("{} = {}", self.id(*row), self.id(*first));
                    let examples = pairs.iter().take(checks.examples()).map(named).collect();
                    checks.counted(
                        compared.check,
                        SPLITS[*split],
                        SPLITS[*other],
                        pairs.len() as u64,
                        examples,
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// The plain definition, row by row.
        #[test]
        fn what_is_found_is_what_the_definition_says(rows in prop::collection::vec((0usize..3, prop::option::of(1u64..6)), 1..40)) {
            let mut seen = Seen::new(&["same thing"]);
            let ids: Vec<String> = (0..rows.len()).map(|row| format!("row {row}")).collect();
            for (id, (split, key)) in ids.iter().zip(&rows) {
                seen.add(id, SPLITS[*split], &[*key]);
            }
            let mut found = Checks::default();
            seen.check(&mut found);
            let mut expected = Checks::default();
            if rows.iter().any(|(_, key)| key.is_some()) {
                let plain: Vec<(&str, &str, u64)> = rows.iter().zip(&ids)
                    .filter_map(|((split, key), id)| Some((SPLITS[*split], id.as_str(), (*key)?))).collect();
                expected.duplicates("same thing", &seen.splits(), &plain);
            }
            prop_assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        }
    }
}
