//! What is known of each id of a source, in bounded memory however many ids there are.
//!
//! What came last waits in memory; what came before lies sorted in runs on the disk, each at least [`GROWTH`] times as
//! long as the next (a log-structured merge tree: O'Neil et al. 1996). Everything is written from beginning to end, and
//! a key is found by reading one block of each of a few runs, or none: a filter knows most keys that are not there.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use pipe_engine::StageError;
use pipe_engine::cache::Spill;

/// Keys that wait in memory.
const RECENT: usize = 1 << 18;
/// How many times as long as the next a run is at least.
const GROWTH: u64 = 8;
/// Bytes of a key with its number.
const PAIR: usize = 16;
/// Pairs of a block, of which the first key is in memory.
const BLOCK: usize = 256;
/// Bytes of a run that wait to be written.
const WAITING: usize = 1 << 16;

/// Keys of ids (of [`super::seen::text_key`]: they are spread evenly) with a number each.
#[derive(Debug)]
pub(crate) struct Numbered {
    scratch: PathBuf,
    limit: usize,
    recent: BTreeMap<u64, u64>,
    /// From the oldest, which is the longest.
    runs: Vec<Run>,
    filter: Filter,
}

impl Numbered {
    /// Nothing yet; files will lie in `scratch`.
    pub(crate) fn new(scratch: &Path) -> Self {
        Self::bounded(scratch, RECENT)
    }

    fn bounded(scratch: &Path, limit: usize) -> Self {
        let (recent, runs, filter) = (BTreeMap::new(), Vec::new(), Filter::default());
        Self { scratch: scratch.to_owned(), limit, recent, runs, filter }
    }

    /// The number of a key, if it is there.
    pub(crate) fn get(&self, key: u64) -> Result<Option<u64>, StageError> {
        if let Some(number) = self.recent.get(&key) {
            return Ok(Some(*number));
        }
        if self.filter.may_have(key) {
            for run in self.runs.iter().rev() {
                if let Some(number) = run.get(key)? {
                    return Ok(Some(number));
                }
            }
        }
        Ok(None)
    }

    /// Gives a key a number, in the place of the one that it had.
    pub(crate) fn set(&mut self, key: u64, number: u64) -> Result<(), StageError> {
        self.recent.insert(key, number);
        if self.recent.len() < self.limit {
            return Ok(());
        }
        let recent = std::mem::take(&mut self.recent);
        recent.keys().for_each(|key| self.filter.add(*key));
        let mut run = Run::write(&self.scratch, recent.into_iter().map(Ok))?;
        while let Some(last) = self.runs.pop_if(|last| last.count < GROWTH * run.count) {
            run = Run::write(&self.scratch, merged(last.pairs().peekable(), run.pairs().peekable()))?;
        }
        self.runs.push(run);
        Ok(())
    }
}

/// Sorted pairs in a file.
#[derive(Debug)]
struct Run {
    pairs: Spill,
    count: u64,
    /// The first key of each block.
    firsts: Vec<u64>,
}

type Pair = (u64, u64);

/// A pair as it is written.
fn pair(bytes: &[u8; PAIR]) -> Pair {
    let [key, number] = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte])));
    (key, number)
}

impl Run {
    /// Writes pairs that come in the order of their keys.
    fn write(
        scratch: &Path,
        pairs: impl Iterator<Item = Result<Pair, StageError>>,
    ) -> Result<Self, StageError> {
        let mut run = Self { pairs: Spill::new(scratch, WAITING), count: 0, firsts: Vec::new() };
        for pair in pairs {
            let (key, number) = pair?;
            if run.count.is_multiple_of(BLOCK as u64) {
                run.firsts.push(key);
            }
            run.pairs.append([key, number].map(u64::to_le_bytes).as_flattened())?;
            run.count += 1;
        }
        Ok(run)
    }

    /// The bytes of the pairs of a block.
    fn block(&self, number: usize) -> Result<Vec<u8>, StageError> {
        let first = number * BLOCK;
        let count = BLOCK.min(self.count as usize - first);
        Ok(self.pairs.read((first * PAIR) as u64, count * PAIR)?)
    }

    fn get(&self, key: u64) -> Result<Option<u64>, StageError> {
        let Some(block) = self.firsts.partition_point(|first| *first <= key).checked_sub(1) else {
            return Ok(None);
        };
        let bytes = self.block(block)?;
        let pairs = bytes.as_chunks().0;
        let place = pairs.binary_search_by_key(&key, |bytes| pair(bytes).0);
        Ok(place.ok().map(|place| pair(&pairs[place]).1))
    }

    /// All pairs in their order.
    fn pairs(&self) -> impl Iterator<Item = Result<Pair, StageError>> {
        (0..self.firsts.len()).flat_map(|block| {
            let (bytes, error) = match self.block(block) {
                Ok(bytes) => (bytes, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            let pairs: Vec<Pair> = bytes.as_chunks().0.iter().map(pair).collect();
            pairs.into_iter().map(Ok).chain(error)
        })
    }
}

/// All pairs of two runs in their order; of a key that both have, the newer one.
fn merged(
    mut older: Peekable<impl Iterator<Item = Result<Pair, StageError>>>,
    mut newer: Peekable<impl Iterator<Item = Result<Pair, StageError>>>,
) -> impl Iterator<Item = Result<Pair, StageError>> {
    let key =
        |next: Option<&Result<Pair, StageError>>| next.and_then(|pair| pair.as_ref().ok()).map(|pair| pair.0);
    std::iter::from_fn(move || match (key(older.peek()), key(newer.peek())) {
        (Some(old), Some(new)) if old < new => older.next(),
        (old, Some(new)) => {
            if old == Some(new) {
                older.next();
            }
            newer.next()
        }
        // The end of one of them, or an error, which comes out first.
        (_, None) => newer.next().or_else(|| older.next()),
    })
}

/// Keys that may be there (Bloom 1970): of fifteen million, one in twenty-five others is taken for one of them.
#[derive(Debug, Default)]
struct Filter {
    /// None before the first key.
    bits: Vec<u64>,
}

impl Filter {
    /// Words of 64 bits: 16 MiB.
    const WORDS: usize = 1 << 21;

    /// The two bits of a key, as word and bit.
    fn places(key: u64) -> [(usize, u64); 2] {
        [key, key >> 32].map(|bits| ((bits >> 6) as usize % Self::WORDS, 1 << (bits & 63)))
    }

    fn add(&mut self, key: u64) {
        self.bits.resize(Self::WORDS, 0);
        for (word, bit) in Self::places(key) {
            self.bits[word] |= bit;
        }
    }

    fn may_have(&self, key: u64) -> bool {
        Self::places(key).iter().all(|(word, bit)| self.bits.get(*word).is_some_and(|bits| bits & bit != 0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ingest::seen::text_key;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// As a map does.
        #[test]
        fn the_last_number_of_a_key_counts(
            pairs in prop::collection::vec((prop_oneof![1u64..400, (u64::MAX - 400)..=u64::MAX, 1..=u64::MAX], any::<u64>()), 0..1500),
            limit in 1usize..200,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut numbered = Numbered::bounded(folder.path(), limit);
            let mut expected = BTreeMap::new();
            for (key, number) in pairs {
                prop_assert_eq!(numbered.get(key).unwrap(), expected.get(&key).copied());
                numbered.set(key, number).unwrap();
                expected.insert(key, number);
                let counts: Vec<u64> = numbered.runs.iter().map(|run| run.count).collect();
                prop_assert!(counts.windows(2).all(|two| two[0] >= GROWTH * two[1]), "{counts:?}");
            }
            for (key, number) in &expected {
                prop_assert_eq!(numbered.get(*key).unwrap(), Some(*number));
            }
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    /// Runs of many blocks, most of which lie in files.
    #[test]
    fn many_keys_lie_in_files() {
        let folder = tempfile::tempdir().unwrap();
        let key = |id: u64| text_key(&id.to_string());
        let mut numbered = Numbered::bounded(folder.path(), 1 << 12);
        for id in 0..300_000 {
            numbered.set(key(id), id).unwrap();
            numbered.set(key(id / 2), id + 1_000_000).unwrap();
        }
        assert!(numbered.runs[0].firsts.len() > 500 && numbered.runs.len() < 5);
        let number = |id| numbered.get(key(id)).unwrap();
        assert!((0..150_000).all(|id| number(id) == Some(2 * id + 1 + 1_000_000)));
        assert!((150_000..300_000).all(|id| number(id) == Some(id)));
        assert!((300_000..310_000).all(|id| number(id).is_none()));
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut numbered = Numbered::bounded(&folder.path().join("missing"), 1 << 13);
        let error = (1..100_000).find_map(|key| numbered.set(key, 0).err()).unwrap();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
