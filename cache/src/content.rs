//! Content digests of artifacts: what downstream keys are made of.
//!
//! A tree is named by its paths and bytes; a table by the *logical* content of its rows, so that
//! writing the same rows with another Parquet version changes no key.

use std::collections::BTreeMap;

use crate::value::{begin_list, encode_string};
use crate::{Digest, Value};

const ARTIFACT: &str = "pipe artifact v1";
const PART: &str = "pipe part v1";
const ROW: &str = "pipe row v1";

/// The digest of a tree of files, given as (relative path, bytes, digest) in any order.
pub fn tree_digest<'a>(files: impl IntoIterator<Item = (&'a str, u64, Digest)>) -> Digest {
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_unstable_by_key(|file| file.0);
    let mut tree = TreeHasher::new(files.len());
    files.into_iter().for_each(|(path, bytes, blob)| tree.add(path, bytes, blob));
    tree.finish()
}

/// Makes a [`tree_digest`] of files that come one by one.
pub(crate) struct TreeHasher {
    hasher: blake3::Hasher,
    encoded: Vec<u8>,
}

impl TreeHasher {
    /// Of so many files.
    pub(crate) fn new(files: usize) -> Self {
        let mut encoded = Vec::new();
        begin_list(2, &mut encoded);
        encode_string("tree", &mut encoded);
        begin_list(files, &mut encoded);
        Self { hasher: blake3::Hasher::new_derive_key(ARTIFACT), encoded }
    }

    /// Adds the file that comes next by its path.
    pub(crate) fn add(&mut self, path: &str, bytes: u64, blob: Digest) {
        begin_list(3, &mut self.encoded);
        encode_string(path, &mut self.encoded);
        Value::Integer(bytes as i64).encode_into(&mut self.encoded);
        Value::Digest(blob).encode_into(&mut self.encoded);
        if self.encoded.len() >= 1 << 16 {
            self.hasher.update(&self.encoded);
            self.encoded.clear();
        }
    }

    pub(crate) fn finish(mut self) -> Digest {
        self.hasher.update(&self.encoded);
        self.hasher.finalize().into()
    }
}

/// The digest of a table made of parts, in order.
pub fn table_digest(parts: &[Digest]) -> Digest {
    let parts = parts.iter().map(|part| Value::Digest(*part)).collect();
    Value::List(vec![Value::string("table"), Value::List(parts)]).digest(ARTIFACT)
}

/// The digest of one part: its schema's name and version and its rows, in order.
pub fn part_digest(schema: &str, version: i64, rows: &[Digest]) -> Digest {
    let rows = rows.iter().map(|row| Value::Digest(*row)).collect();
    Value::List(vec![Value::string(schema), Value::Integer(version), Value::List(rows)]).digest(PART)
}

/// The digest of one row: column name to value. Blob columns enter as [`Value::Digest`] of their
/// bytes, float tensors as [`Value::Bytes`], little endian.
pub fn row_digest(columns: BTreeMap<String, Value>) -> Digest {
    Value::Table(columns).digest(ROW)
}

/// Where the parts of a table end that is cut by its content, as row counts: after at least a quarter of
/// `target` rows (a power of two), behind each row whose digest's low bits are zero; at four times the
/// target in any case. With a target of 1 every row is a part. A row that is changed, inserted or deleted moves one or two cuts, and the ones
/// behind stay where they are. What stands behind the last one is no whole part yet.
pub fn part_ends(rows: &[Digest], target: usize) -> Vec<usize> {
    let target = target.clamp(1, 1 << 40).next_power_of_two();
    let mask = target as u64 - 1;
    let mut ends = Vec::new();
    let mut start = 0;
    for (row, digest) in rows.iter().enumerate() {
        let length = row + 1 - start;
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        if length >= 4 * target || (length >= target / 4 && u64::from_le_bytes(first) & mask == 0) {
            start = row + 1;
            ends.push(start);
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: u64) -> Vec<Digest> {
        (0..count).map(|row| Digest::of(&row.to_le_bytes())).collect()
    }

    #[test]
    fn parts_have_a_quarter_to_four_times_the_target() {
        let ends = part_ends(&rows(100_000), 64);
        let lengths: Vec<usize> = std::iter::once(&0).chain(&ends).zip(&ends).map(|(a, b)| b - a).collect();
        assert!(lengths.iter().all(|length| (16..=256).contains(length)), "{lengths:?}");
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        assert!((64..=96).contains(&mean), "{mean}");
        // Rows that are all alike are cut at the greatest length.
        assert_eq!(part_ends(&[Digest::of(b"x"); 40], 4), [16, 32]);
    }
}
