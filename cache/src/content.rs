//! Content digests of artifacts: what downstream keys are made of.
//!
//! A tree is named by its paths and bytes; a table by the *logical* content of its rows, so that
//! writing the same rows with another Parquet version changes no key.

use std::collections::BTreeMap;

use crate::value::{begin_list, digest, encode_string};
use crate::{Digest, Value};

const ARTIFACT: &str = "pipe artifact v1";
const PART: &str = "pipe part v1";
const ROW: &str = "pipe row v1";

/// The digest of a tree of files, given as (relative path, bytes, digest) in any order.
pub fn tree_digest<'a>(files: impl IntoIterator<Item = (&'a str, u64, Digest)>) -> Digest {
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_unstable_by_key(|file| file.0);
    let mut encoded = Vec::new();
    begin_list(2, &mut encoded);
    encode_string("tree", &mut encoded);
    begin_list(files.len(), &mut encoded);
    for (path, bytes, blob) in files {
        begin_list(3, &mut encoded);
        encode_string(path, &mut encoded);
        Value::Integer(bytes as i64).encode_into(&mut encoded);
        Value::Digest(blob).encode_into(&mut encoded);
    }
    digest(ARTIFACT, &encoded)
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
