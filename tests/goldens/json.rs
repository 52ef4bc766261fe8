//! A golden JSON file: its values by JSON pointer.

use std::path::Path;

use serde_json::Value as Json;

use crate::harness::{self, Ledger};

/// One golden JSON file, and which of its values were used. A list of numbers or texts, whatever its
/// depth, is one value; a list of objects is not.
pub(crate) struct JsonGolden {
    json: Json,
    ledger: Ledger,
    leaves: Vec<String>,
}

impl JsonGolden {
    /// Opens `topic/file`.
    pub(crate) fn open(folder: &Path, file: &str) -> Self {
        let json = harness::json(&folder.join(file));
        let mut leaves = Vec::new();
        list_leaves(&json, "", &mut leaves);
        let ledger = Ledger::new(folder, file, leaves.iter().cloned());
        Self { json, ledger, leaves }
    }

    /// Whether there is such a value.
    pub(crate) fn has(&self, pointer: &str) -> bool {
        self.json.pointer(pointer).is_some()
    }

    fn at(&self, pointer: &str) -> &Json {
        self.json.pointer(pointer).unwrap_or_else(|| panic!("there is nothing at `{pointer}`"))
    }

    /// Length of a list.
    pub(crate) fn len(&self, pointer: &str) -> usize {
        self.at(pointer).as_array().unwrap_or_else(|| panic!("`{pointer}` is no list")).len()
    }

    /// Keys of an object.
    pub(crate) fn keys(&self, pointer: &str) -> Vec<String> {
        let object = self.at(pointer).as_object().unwrap_or_else(|| panic!("`{pointer}` is no object"));
        object.keys().cloned().collect()
    }

    /// A value, or all values of an object, that are inputs or explanations and no results.
    pub(crate) fn input(&self, pointer: &str) -> Json {
        let below = format!("{pointer}/");
        let own = self.leaves.iter().filter(|leaf| *leaf == pointer || leaf.starts_with(&below));
        own.for_each(|leaf| self.ledger.input(leaf));
        self.at(pointer).clone()
    }

    /// Compares one number; `None` equals null.
    pub(crate) fn compare(&self, pointer: &str, ours: Option<f64>, tolerance: f64) {
        self.compare_optional(pointer, &[ours], tolerance);
    }

    /// Compares all numbers of a list, whatever its depth.
    pub(crate) fn compare_all(&self, pointer: &str, ours: &[f64], tolerance: f64) {
        self.compare_optional(pointer, &ours.iter().copied().map(Some).collect::<Vec<_>>(), tolerance);
    }

    /// As [`Self::compare_all`], with nulls. The error is the greatest absolute difference over the
    /// greatest absolute golden value; where all of these are 0 it is absolute.
    pub(crate) fn compare_optional(&self, pointer: &str, ours: &[Option<f64>], tolerance: f64) {
        let mut golden = Vec::new();
        flatten(self.at(pointer), &mut golden);
        let undefined = |values: &[Option<f64>]| values.iter().map(Option::is_none).collect::<Vec<_>>();
        if undefined(&golden) != undefined(ours) {
            self.ledger.fail(pointer, &format!("{ours:?}, golden {golden:?}"));
            return;
        }
        let [golden, ours] =
            [golden.as_slice(), ours].map(|values| values.iter().flatten().copied().collect::<Vec<f64>>());
        let greatest = golden.iter().fold(0.0f64, |greatest, value| greatest.max(value.abs()));
        let scale = if greatest > 0.0 { greatest } else { 1.0 };
        self.ledger.record(pointer, harness::difference(&golden, &ours, |_| scale), tolerance);
    }

    /// Compares a text or a list of texts.
    pub(crate) fn compare_text(&self, pointer: &str, ours: &[&str]) {
        let golden: Vec<&str> = match self.at(pointer) {
            Json::Array(items) => items.iter().filter_map(Json::as_str).collect(),
            other => other.as_str().into_iter().collect(),
        };
        if golden == ours {
            self.ledger.record(pointer, 0.0, 0.0);
        } else {
            self.ledger.fail(pointer, &format!("{ours:?}, golden {golden:?}"));
        }
    }

    /// Lists what was neither compared nor read as an input, and fails if any comparison did or if
    /// there is such a value.
    pub(crate) fn finish(&self) {
        self.ledger.finish_without(&[]);
    }
}

fn flatten(json: &Json, values: &mut Vec<Option<f64>>) {
    match json {
        Json::Array(items) => items.iter().for_each(|item| flatten(item, values)),
        other => values.push(other.as_f64()),
    }
}

fn list_leaves(json: &Json, pointer: &str, found: &mut Vec<String>) {
    match json {
        Json::Object(entries) => {
            for (key, value) in entries {
                let key = key.replace('~', "~0").replace('/', "~1");
                list_leaves(value, &format!("{pointer}/{key}"), found);
            }
        }
        Json::Array(items) if items.iter().any(Json::is_object) => {
            for (index, value) in items.iter().enumerate() {
                list_leaves(value, &format!("{pointer}/{index}"), found);
            }
        }
        _ => found.push(pointer.to_owned()),
    }
}
