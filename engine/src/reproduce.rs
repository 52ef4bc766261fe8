//! `run --reproduce`: results are made once more, and compared with what the store has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use pipe_cache::{Digest, OutputRecord, Store};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::kind::Determinism;
use crate::pipeline::{NodeId, Pipeline};
use crate::plan::{Plan, Status};

/// How a column of a table, or a tensor, differs between two results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueDifference {
    /// The name of the column or tensor.
    pub name: String,
    /// How many values differ.
    pub differing: u64,
    /// How many there are.
    pub of: u64,
    /// The greatest absolute difference of numbers; none of other values, and where on one side there is no number.
    pub greatest: Option<f64>,
    /// The greatest difference as a share of the greater of both numbers; none where `greatest` is.
    pub relative: Option<f64>,
    /// The greatest difference in units in the last place.
    pub ulps: Option<u64>,
}

impl ValueDifference {
    fn words(&self) -> String {
        let Self { name, differing, of, .. } = self;
        let distance = self.greatest.zip(self.ulps);
        let distance = distance.map(|(greatest, ulps)| format!(", by at most {greatest:e} ({ulps} ULP)"));
        format!("`{name}`: {differing} of {of} values differ{}", distance.unwrap_or_default())
    }
}

/// Compares the values of two files whose path in an artifact is the first argument; none if it does not know them.
/// Names what differs, and nothing else.
pub type FileComparison = fn(&str, &Path, &Path) -> Option<Vec<ValueDifference>>;

/// A file that came out differently.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileDifference {
    pub(crate) port: String,
    pub(crate) path: String,
    /// The blobs of both, which the store keeps; none where only one result has the file.
    pub(crate) stored: Option<Digest>,
    pub(crate) again: Option<Digest>,
    /// Bytes that differ, those that only one of them has included; none if a blob cannot be read.
    pub(crate) bytes: Option<u64>,
    /// The length of the longer one.
    pub(crate) of: u64,
    /// Columns or tensors that differ; none of a file whose values are not known.
    pub(crate) values: Option<Vec<ValueDifference>>,
}

impl FileDifference {
    /// For people.
    pub(crate) fn words(&self) -> String {
        let Self { port, path, of, .. } = self;
        match (&self.stored, &self.again, self.bytes) {
            (None, ..) => format!("{port}/{path} is new"),
            (_, None, _) => format!("{port}/{path} is missing"),
            (Some(stored), Some(again), bytes) => {
                let bytes = bytes.map_or("unknown".to_owned(), |bytes| bytes.to_string());
                let (stored, again) = (stored.to_short(), again.to_short());
                let values = self.values.iter().flatten();
                let values: String = values.map(|value| format!("\n    {}", value.words())).collect();
                format!("{port}/{path}: {bytes} of {of} bytes differ, blobs {stored} and {again}{values}")
            }
        }
    }

    /// For events.
    pub(crate) fn json(&self) -> Json {
        json!({
            "port": self.port, "path": self.path, "stored": self.stored, "again": self.again,
            "bytes": self.bytes, "of": self.of, "values": self.values.as_deref().unwrap_or_default(),
        })
    }

    /// Whether its numbers are as near to the stored ones as the kind promises.
    fn is_within(&self, absolute: f64, relative: f64) -> bool {
        let is_near = |value: &ValueDifference| {
            value.greatest.is_some_and(|greatest| greatest <= absolute)
                || value.relative.is_some_and(|share| share <= relative)
        };
        self.values.as_ref().is_some_and(|values| values.iter().all(is_near))
    }
}

/// Whether a kind that promises `determinism` may give results that differ so.
pub(crate) fn is_promised(determinism: Determinism, differences: &[FileDifference]) -> bool {
    match determinism {
        Determinism::Bitwise => differences.is_empty(),
        Determinism::Tolerance { absolute, relative } => {
            differences.iter().all(|file| file.is_within(absolute, relative))
        }
        Determinism::None => true,
    }
}

/// The nodes with a result that are executed again: `rate` of them, other ones in each run. Kinds that
/// promise nothing are left out.
pub(crate) fn choose(
    pipeline: &Pipeline,
    plan: &Plan,
    asked: Option<&BTreeSet<NodeId>>,
    rate: f64,
    run: &str,
) -> BTreeSet<NodeId> {
    let is_chosen = |id: &NodeId| {
        let node = &pipeline.nodes[id.0];
        let mut first = [0; 8];
        first.copy_from_slice(&Digest::of(format!("{run} {}", node.name).as_bytes()).as_bytes()[..8]);
        let place = u64::from_le_bytes(first) as f64 / u64::MAX as f64;
        plan.status[id.0] == Status::Hit
            && asked.is_none_or(|asked| asked.contains(id))
            && node.kind.determinism() != Determinism::None
            && (rate >= 1.0 || place < rate)
    };
    plan.order.iter().copied().filter(is_chosen).collect()
}

/// How two results differ, file by file.
pub(crate) fn compare(
    store: &Store,
    comparison: Option<FileComparison>,
    stored: &BTreeMap<String, OutputRecord>,
    again: &BTreeMap<String, OutputRecord>,
) -> Vec<FileDifference> {
    let files = |outputs: &BTreeMap<String, OutputRecord>| -> BTreeMap<(String, String), (Digest, u64)> {
        let all = outputs.iter().flat_map(|(port, output)| output.files.iter().map(move |file| (port, file)));
        all.map(|(port, file)| ((port.clone(), file.path.clone()), (file.blob, file.bytes))).collect()
    };
    let (before, after) = (files(stored), files(again));
    let names: BTreeSet<&(String, String)> = before.keys().chain(after.keys()).collect();
    let mut differences = Vec::new();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        if old == new {
            continue;
        }
        let both = old.zip(new).map(|((old, _), (new, _))| (store.blob_path(old), store.blob_path(new)));
        let values = both.zip(comparison).and_then(|((old, new), compare)| compare(&name.1, &old, &new));
        differences.push(FileDifference {
            values,
            port: name.0.clone(),
            path: name.1.clone(),
            stored: old.map(|(blob, _)| *blob),
            again: new.map(|(blob, _)| *blob),
            bytes: old.zip(new).and_then(|((old, _), (new, _))| differing_bytes(store, old, new)),
            of: old.map_or(0, |(_, bytes)| *bytes).max(new.map_or(0, |(_, bytes)| *bytes)),
        });
    }
    differences
}

fn differing_bytes(store: &Store, old: &Digest, new: &Digest) -> Option<u64> {
    let open = |blob: &Digest| File::open(store.blob_path(blob)).ok().map(BufReader::new);
    let (mut old, mut new) = (open(old)?.bytes(), open(new)?.bytes());
    let mut count = 0;
    loop {
        match (old.next(), new.next()) {
            (None, None) => return Some(count),
            (Some(Err(_)), _) | (_, Some(Err(_))) => return None,
            (Some(Ok(a)), Some(Ok(b))) if a == b => {}
            _ => count += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(values: Option<Vec<ValueDifference>>) -> FileDifference {
        let blob = |text: &str| Some(Digest::of(text.as_bytes()));
        FileDifference {
            port: "out".into(),
            path: "table.parquet".into(),
            stored: blob("stored"),
            again: blob("again"),
            bytes: Some(4),
            of: 100,
            values,
        }
    }

    fn column(greatest: Option<f64>, relative: Option<f64>) -> ValueDifference {
        ValueDifference { name: "score".into(), differing: 1, of: 9, greatest, relative, ulps: None }
    }

    #[test]
    fn a_kind_may_promise_numbers_that_are_equal_but_for_rounding() {
        let promise = Determinism::Tolerance { absolute: 1e-6, relative: 1e-4 };
        let holds = |files: &[FileDifference]| is_promised(promise, files);
        assert!(holds(&[]) && holds(&[file(Some(vec![]))]));
        assert!(holds(&[file(Some(vec![column(Some(1e-7), Some(0.5)), column(Some(2.0), Some(1e-5))]))]));
        assert!(!holds(&[file(Some(vec![column(Some(1e-5), Some(1e-3))]))]), "neither bound holds");
        assert!(!holds(&[file(Some(vec![column(None, None)]))]), "no number on one side, or a text");
        assert!(!holds(&[file(None)]), "a file whose values are not known");
        assert!(!is_promised(Determinism::Bitwise, &[file(Some(vec![]))]));
        assert!(is_promised(Determinism::None, &[file(None)]));
    }
}
