//! Rows that stand twice, found in bounded memory however many rows there are: what is remembered of them
//! goes to a file once it is long, and is compared in passes over it, each of the rows that fit in memory.

use std::path::Path;

use pipe_engine::StageError;
use pipe_engine::cache::{Digest, Spill};

use super::checks::Checks;
use super::splits::{SPLITS, place};

/// Rows that a pass compares at most, sixteen bytes each.
const PASS: u64 = 1 << 20;
/// Rows that are read at once.
const BLOCK: u64 = 1 << 14;

/// What is remembered of rows.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The things that rows are compared by.
    checks: Vec<&'static str>,
    /// All ids, one after the other.
    ids: Spill,
    /// Of each row a key per check (0 where it has none), where its id begins and ends, and its split.
    rows: Spill,
    counts: [u64; SPLITS.len()],
    pass: u64,
}

/// A row of a pass.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Keyed {
    key: u64,
    row: u32,
    split: u8,
}

/// Pairs of equal rows: how many, and the first of them.
#[derive(Default)]
struct Pairs {
    count: u64,
    first: Vec<(u32, u32)>,
}

impl Pairs {
    fn add(&mut self, pair: (u32, u32), most: usize) {
        self.count += 1;
        self.first.push(pair);
        if self.first.len() >= most.saturating_mul(4).max(1024) {
            self.sort(most);
        }
    }

    fn sort(&mut self, most: usize) {
        self.first.sort_unstable();
        self.first.truncate(most);
    }
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
    /// Nothing yet; rows will be compared by the things that `checks` name. What is too long for memory goes to a
    /// file in `scratch`.
    pub(crate) fn new(checks: &[&'static str], scratch: &Path) -> Self {
        Self::bounded(checks, scratch, Spill::LIMIT, PASS)
    }

    fn bounded(checks: &[&'static str], scratch: &Path, limit: usize, pass: u64) -> Self {
        Self {
            checks: checks.to_vec(),
            ids: Spill::new(scratch, limit),
            rows: Spill::new(scratch, limit),
            counts: [0; SPLITS.len()],
            pass,
        }
    }

    /// Bytes of a row.
    fn width(&self) -> usize {
        8 * self.checks.len() + 17
    }

    /// How many rows there are.
    fn len(&self) -> u64 {
        self.rows.len() / self.width() as u64
    }

    /// Remembers a row with its keys, in the order of the checks.
    pub(crate) fn add(&mut self, id: &str, split: &str, keys: &[Option<u64>]) -> Result<(), StageError> {
        if self.len() > u64::from(u32::MAX) {
            return Err(StageError::failed("more than four billion rows are not compared".to_owned()));
        }
        let mut row = Vec::with_capacity(self.width());
        for key in keys {
            row.extend(key.unwrap_or(0).to_le_bytes());
        }
        row.extend(self.ids.len().to_le_bytes());
        row.extend((self.ids.len() + id.len() as u64).to_le_bytes());
        row.push(place(split) as u8);
        self.counts[place(split)] += 1;
        self.ids.append(id.as_bytes())?;
        Ok(self.rows.append(&row)?)
    }

    /// The splits that there are, in their order.
    pub(crate) fn splits(&self) -> Vec<&'static str> {
        SPLITS.into_iter().filter(|split| self.count(split) > 0).collect()
    }

    /// How many rows a split has.
    pub(crate) fn count(&self, split: &str) -> u64 {
        self.counts.get(place(split)).copied().unwrap_or_default()
    }

    fn id(&self, row: u32) -> Result<String, StageError> {
        let width = self.width();
        let ends = self.rows.read(u64::from(row) * width as u64 + (width - 17) as u64, 16)?;
        let (start, end) = (number(&ends), number(&ends[8..]));
        let id = self.ids.read(start, (end - start) as usize)?;
        Ok(String::from_utf8_lossy(&id).into_owned())
    }

    /// The rows whose key of a check is of a pass.
    fn keyed(&self, check: usize, pass: u64, passes: u64) -> Result<Vec<Keyed>, StageError> {
        let width = self.width();
        // Passes are of about the same length; room that is not needed takes no memory.
        let each = self.len() / passes;
        let mut keyed = Vec::with_capacity((each + each / 8 + 1024) as usize);
        for first in (0..self.len()).step_by(BLOCK as usize) {
            let rows = BLOCK.min(self.len() - first);
            let block = self.rows.read(first * width as u64, rows as usize * width)?;
            for (row, bytes) in (first..).zip(block.chunks_exact(width)) {
                let key = number(&bytes[8 * check..]);
                if key != 0 && key % passes == pass {
                    keyed.push(Keyed { key, row: row as u32, split: bytes[width - 1] });
                }
            }
        }
        Ok(keyed)
    }

    /// For each check and split, how many rows have an equal row before them in the same split, and for
    /// each earlier split, how many have an equal row there. A check that no row has a key for is left out.
    pub(crate) fn check(&self, checks: &mut Checks) -> Result<(), StageError> {
        let passes = self.len().div_ceil(self.pass).max(1);
        for (place, name) in self.checks.iter().enumerate() {
            // Pairs of a row and the first equal one, by the splits of the two.
            let mut pairs: [[Pairs; SPLITS.len()]; SPLITS.len()] = Default::default();
            let mut any = false;
            for pass in 0..passes {
                let mut keyed = self.keyed(place, pass, passes)?;
                any |= !keyed.is_empty();
                keyed.sort_unstable();
                for equal in keyed.chunk_by(|one, other| one.key == other.key).filter(|equal| equal.len() > 1)
                {
                    let mut first: [Option<u32>; SPLITS.len()] = Default::default();
                    for one in equal {
                        first[usize::from(one.split)].get_or_insert(one.row);
                    }
                    for Keyed { row, split, .. } in equal {
                        let split = usize::from(*split);
                        for (other, first) in first.iter().enumerate().take(split + 1) {
                            if let Some(first) = first.filter(|first| first != row) {
                                pairs[split][other].add((*row, first), checks.examples());
                            }
                        }
                    }
                }
            }
            if any {
                self.tell(name, pairs, checks)?;
            }
        }
        Ok(())
    }

    /// Writes down the pairs of a check.
    fn tell(
        &self,
        check: &'static str,
        mut pairs: [[Pairs; SPLITS.len()]; SPLITS.len()],
        checks: &mut Checks,
    ) -> Result<(), StageError> {
        let there: Vec<usize> = self.splits().into_iter().map(place).collect();
        for split in &there {
            let earlier = there.iter().filter(|other| *other < split);
            for other in std::iter::once(split).chain(earlier) {
                let pairs = &mut pairs[*split][*other];
                pairs.sort(checks.examples());
                let named =
                    |(row, first): &(u32, u32)| Ok(format!("{} = {}", self.id(*row)?, self.id(*first)?));
                let examples = pairs.first.iter().map(named).collect::<Result<Vec<_>, StageError>>()?;
                checks.counted(check, SPLITS[*split], SPLITS[*other], pairs.count, examples);
            }
        }
        Ok(())
    }
}

/// The number that bytes begin with.
fn number(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// The plain definition, row by row.
        #[test]
        fn what_is_found_is_what_the_definition_says(
            rows in prop::collection::vec((0usize..3, prop::option::of(1u64..6)), 1..40),
            limit in 1usize..300,
            pass in 1u64..50,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut seen = Seen::bounded(&["same thing"], folder.path(), limit, pass);
            let ids: Vec<String> = (0..rows.len()).map(|row| format!("row {row}")).collect();
            for (id, (split, key)) in ids.iter().zip(&rows) {
                seen.add(id, SPLITS[*split], &[*key]).unwrap();
            }
            let mut found = Checks::default();
            seen.check(&mut found).unwrap();
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
