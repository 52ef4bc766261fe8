//! Keys with values in the order of keys, in bounded memory however many there are: what is too long for memory is
//! sorted in runs that lie in files, and the runs are merged into one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::path::{Path, PathBuf};

use crate::spill::{Spill, SpillError, SpillReader};

/// Bytes that are sorted at once.
const RUN: usize = 16 << 20;
/// Bytes of runs that wait to be written.
const WAITING: usize = 1 << 20;
/// Bytes of all pairs that lie in memory.
const LIMIT: usize = 8 << 20;
/// Bytes between two keys that are remembered at first, and that a search reads.
const BLOCK: u64 = 8 << 10;
/// Keys that are remembered at most: beyond it every second one is forgotten.
const BLOCKS: usize = 1 << 16;
/// Bytes before key and value: how long they are.
const LENGTHS: usize = 8;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Pairs that come in any order.
#[derive(Debug)]
pub struct Sorter {
    scratch: PathBuf,
    limit: usize,
    /// Pairs that wait, each behind the lengths of key and value, and where each begins.
    waiting: Vec<u8>,
    starts: Vec<u32>,
    /// Sorted runs, one behind the other, and where each ends.
    runs: Spill,
    ends: Vec<u64>,
}

/// Pairs in the order of keys, and of values where keys are equal.
#[derive(Debug)]
pub struct Sorted {
    pairs: Spill,
    /// The first key of each block, and where the block begins.
    blocks: Vec<(Box<[u8]>, u64)>,
    /// Bytes of a block, at least.
    block: u64,
}

impl Sorter {
    /// Nothing yet; files will lie in `scratch`.
    pub fn new(scratch: &Path) -> Self {
        Self::bounded(scratch, RUN)
    }

    fn bounded(scratch: &Path, limit: usize) -> Self {
        let (waiting, starts, runs) = (Vec::new(), Vec::new(), Spill::new(scratch, WAITING.min(limit)));
        Self { scratch: scratch.to_owned(), limit, waiting, starts, runs, ends: Vec::new() }
    }

    /// Adds a pair.
    ///
    /// # Errors
    /// If it is longer than 4 GiB, or what is too long for memory cannot be written.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), SpillError> {
        if self.waiting.len() + LENGTHS + key.len() + value.len() > self.limit && !self.starts.is_empty() {
            self.end_run()?;
            self.waiting.clear();
            self.starts.clear();
        }
        let start = self.length(self.waiting.len())?;
        let lengths = [self.length(key.len())?, self.length(value.len())?];
        self.starts.push(start);
        self.waiting.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
        self.waiting.extend_from_slice(key);
        self.waiting.extend_from_slice(value);
        Ok(())
    }

    /// A length as it is written.
    fn length(&self, bytes: usize) -> Result<u32, SpillError> {
        u32::try_from(bytes).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, error);
            SpillError { folder: self.scratch.clone(), source }
        })
    }

    /// Writes what waits as a sorted run.
    fn end_run(&mut self) -> Result<(), SpillError> {
        self.sort();
        for start in &self.starts {
            self.runs.append(record(&self.waiting, *start))?;
        }
        self.ends.push(self.runs.len());
        Ok(())
    }

    fn sort(&mut self) {
        let waiting = &self.waiting;
        self.starts.sort_unstable_by_key(|start| parts(record(waiting, *start)));
    }

    /// All pairs.
    ///
    /// # Errors
    /// If what is too long for memory cannot be written or read.
    pub fn finish(mut self) -> Result<Sorted, SpillError> {
        let mut sorted = Sorted { pairs: Spill::new(&self.scratch, LIMIT), blocks: Vec::new(), block: BLOCK };
        if self.ends.is_empty() {
            self.sort();
            for start in &self.starts {
                sorted.append(record(&self.waiting, *start))?;
            }
            sorted.pairs.shrink();
            return Ok(sorted);
        }
        self.end_run()?;
        drop((self.waiting, self.starts));
        let begins = std::iter::once(&0).chain(&self.ends);
        let mut runs: Vec<Reader<'_>> =
            begins.zip(&self.ends).map(|(begin, end)| Reader(self.runs.reader(*begin..*end))).collect();
        let mut next = BinaryHeap::new();
        for (place, run) in runs.iter_mut().enumerate() {
            next.extend(run.next()?.map(|pair| Reverse((pair, place))));
        }
        while let Some(Reverse(((key, value), place))) = next.pop() {
            sorted.append(&joined(&key, &value))?;
            next.extend(runs[place].next()?.map(|pair| Reverse((pair, place))));
        }
        Ok(sorted)
    }
}

/// A pair behind the lengths of its two parts.
fn joined(key: &[u8], value: &[u8]) -> Vec<u8> {
    let lengths = [key, value].map(|text| (text.len() as u32).to_le_bytes());
    [&lengths[0][..], &lengths[1], key, value].concat()
}

/// How long the two parts of a pair are, by what stands before them.
fn lengths(bytes: &[u8]) -> [usize; 2] {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [number(0) as usize, number(4) as usize]
}

/// The pair that begins at `start`, with its lengths.
fn record(bytes: &[u8], start: u32) -> &[u8] {
    let bytes = &bytes[start as usize..];
    let [key, value] = lengths(bytes);
    &bytes[..LENGTHS + key + value]
}

/// Key and value of a pair.
fn parts(record: &[u8]) -> (&[u8], &[u8]) {
    record[LENGTHS..].split_at(lengths(record)[0])
}

impl Sorted {
    fn append(&mut self, record: &[u8]) -> Result<(), SpillError> {
        let place = self.pairs.len();
        if self.blocks.last().is_none_or(|(_, start)| place - start >= self.block) {
            if self.blocks.len() >= BLOCKS {
                let mut number = 0usize;
                self.blocks.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
                self.block *= 2;
            }
            self.blocks.push((parts(record).0.into(), place));
        }
        self.pairs.append(record)
    }

    /// All pairs.
    pub fn iter(&self) -> impl Iterator<Item = Result<Pair, SpillError>> {
        let mut reader = Reader::new(&self.pairs);
        std::iter::from_fn(move || reader.next().transpose())
    }

    /// The pairs whose key begins with `prefix`.
    pub fn beginning<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = Result<Pair, SpillError>> + use<'a> {
        // The block before the first that begins behind what is wanted may hold the first of it.
        let block = self.blocks.partition_point(|(first, _)| &first[..] < prefix).saturating_sub(1);
        let start = self.blocks.get(block).map_or(0, |(_, start)| *start);
        let mut reader = Reader(self.pairs.reader(start..self.pairs.len()));
        let mut failed = reader.skip_before(prefix).err();
        let begins = move |pair: &Result<Pair, SpillError>| {
            pair.as_ref().map_or(true, |(key, _)| key.starts_with(prefix))
        };
        let next = move || failed.take().map(Err).or_else(|| reader.next().transpose());
        std::iter::from_fn(next).take_while(begins)
    }
}

/// Pairs as they are stored.
struct Reader<'a>(SpillReader<'a>);

impl<'a> Reader<'a> {
    fn new(pairs: &'a Spill) -> Self {
        Self(pairs.reader(0..pairs.len()))
    }

    /// The next pair.
    fn next(&mut self) -> Result<Option<Pair>, SpillError> {
        let Some(record) = self.record()? else { return Ok(None) };
        let (key, value) = parts(record);
        let (pair, length) = ((key.to_vec(), value.to_vec()), record.len());
        self.0.skip(length);
        Ok(Some(pair))
    }

    /// Passes over the pairs whose key comes before another.
    fn skip_before(&mut self, key: &[u8]) -> Result<(), SpillError> {
        while let Some(length) = self.record()?.filter(|record| parts(record).0 < key).map(<[u8]>::len) {
            self.0.skip(length);
        }
        Ok(())
    }

    /// The bytes of the next pair, which stays the next.
    fn record(&mut self) -> Result<Option<&[u8]>, SpillError> {
        let start = self.0.peek(LENGTHS)?;
        if start.is_empty() {
            return Ok(None);
        }
        let [key, value] = lengths(start);
        let length = LENGTHS + key + value;
        Ok(Some(&self.0.peek(length)?[..length]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn pairs_are_in_their_order_whatever_fits_memory(
            pairs in prop::collection::vec((prop::collection::vec(0u8..3, 0..6), prop::collection::vec(any::<u8>(), 0..40)), 0..60),
            limit in 1usize..400,
            prefix in prop::collection::vec(0u8..3, 0..4),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::bounded(folder.path(), limit);
            for (key, value) in &pairs {
                sorter.push(key, value).unwrap();
            }
            let sorted = sorter.finish().unwrap();
            let mut expected = pairs;
            expected.sort();
            let found: Vec<Pair> = sorted.iter().collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(&found, &expected);
            expected.retain(|(key, _)| key.starts_with(&prefix));
            let found: Vec<Pair> = sorted.beginning(&prefix).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(found, expected);
        }
    }

    /// More than a block, and more than waits in memory: what is read comes from files.
    #[test]
    fn long_lists_are_searched_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::bounded(folder.path(), 1 << 20);
        let key = |number: u64| format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let padding = [7; 100];
        for number in 0..200_000 {
            sorter.push(key(number).as_bytes(), &padding).unwrap();
        }
        assert!(sorter.ends.len() > 10);
        let sorted = sorter.finish().unwrap();
        assert!(sorted.blocks.len() > 1000);
        for number in (0..200_000).step_by(997) {
            let key = key(number);
            let found: Vec<Pair> = sorted.beginning(key.as_bytes()).collect::<Result<_, _>>().unwrap();
            assert_eq!(found, [(key.clone().into_bytes(), padding.to_vec())]);
            assert_eq!(sorted.beginning(format!("{key} ").as_bytes()).count(), 0);
        }
        assert_eq!(sorted.iter().count(), 200_000);
    }
}
