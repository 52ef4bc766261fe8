//! A golden JSON file: comparing by relative error, and listing what was not compared.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use crate::harness;

/// One golden JSON file, its values by JSON pointer, and which of them were used.
pub(crate) struct JsonGolden {
    label: String,
    json: serde_json::Value,
    inputs: RefCell<BTreeSet<String>>,
    compared: RefCell<BTreeSet<String>>,
    failures: RefCell<Vec<String>>,
}

impl JsonGolden {
    /// Opens `topic/file`.
    pub(crate) fn open(folder: &Path, file: &str) -> Self {
        let topic = folder.file_name().unwrap_or_default().to_string_lossy();
        Self {
            label: format!("{topic}/{file}"),
            json: harness::json(&folder.join(file)),
            inputs: RefCell::default(),
            compared: RefCell::default(),
            failures: RefCell::default(),
        }
    }

    /// Whether there is such a value.
    pub(crate) fn has(&self, pointer: &str) -> bool {
        self.json.pointer(pointer).is_some()
    }

    fn at(&self, pointer: &str) -> &serde_json::Value {
        self.json.pointer(pointer).unwrap_or_else(|| panic!("{} has nothing at `{pointer}`", self.label))
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

    /// A value that is an input of the computation or an explanation, not a result.
    pub(crate) fn input(&self, pointer: &str) -> serde_json::Value {
        self.inputs.borrow_mut().insert(pointer.to_owned());
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

    /// As [`Self::compare_all`], with nulls. The relative error is the greatest absolute difference
    /// over the greatest absolute golden value.
    pub(crate) fn compare_optional(&self, pointer: &str, ours: &[Option<f64>], tolerance: f64) {
        fn flatten(json: &serde_json::Value, values: &mut Vec<Option<f64>>) {
            match json {
                serde_json::Value::Array(items) => items.iter().for_each(|item| flatten(item, values)),
                other => values.push(other.as_f64()),
            }
        }
        self.compared.borrow_mut().insert(pointer.to_owned());
        let mut golden = Vec::new();
        flatten(self.at(pointer), &mut golden);
        let undefined = |values: &[Option<f64>]| values.iter().map(Option::is_none).collect::<Vec<_>>();
        if undefined(&golden) != undefined(ours) {
            println!("golden {}#{pointer} {ours:?}, golden {golden:?}", self.label);
            self.failures.borrow_mut().push(format!("{pointer}: defined in other places"));
            return;
        }
        let scale = golden.iter().flatten().fold(0.0f64, |max, value| max.max(value.abs()));
        let differences = golden.iter().flatten().zip(ours.iter().flatten()).map(|(a, b)| (a - b).abs());
        let difference = differences
            .fold(0.0f64, |max, value| if value.is_nan() { f64::INFINITY } else { max.max(value) });
        let error = if difference == 0.0 { 0.0 } else { difference / scale.max(f64::MIN_POSITIVE) };
        println!("golden {}#{pointer} rel={error:.3e}", self.label);
        // A golden of 0 is compared by its absolute error.
        if error > tolerance && !(scale == 0.0 && difference <= tolerance) {
            let message = format!("{pointer}: relative error {error:.3e} above {tolerance:.0e}");
            self.failures.borrow_mut().push(message);
        }
    }

    /// Compares a text or a list of texts.
    pub(crate) fn compare_text(&self, pointer: &str, ours: &[&str]) {
        self.compared.borrow_mut().insert(pointer.to_owned());
        let golden: Vec<&str> = match self.at(pointer) {
            serde_json::Value::Array(items) => items.iter().filter_map(serde_json::Value::as_str).collect(),
            other => other.as_str().into_iter().collect(),
        };
        println!("golden {}#{pointer} rel={:.3e}", self.label, f64::from(u8::from(golden != ours)));
        if golden != ours {
            self.failures.borrow_mut().push(format!("{pointer}: {ours:?}, golden {golden:?}"));
        }
    }

    /// Lists what was neither compared nor read as an input, and fails if any comparison did or if
    /// there is such a value.
    pub(crate) fn finish(&self) {
        fn leaves(json: &serde_json::Value, pointer: &str, found: &mut Vec<String>) {
            match json {
                serde_json::Value::Object(entries) => {
                    for (key, value) in entries {
                        leaves(
                            value,
                            &format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
                            found,
                        );
                    }
                }
                serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
                    for (index, value) in items.iter().enumerate() {
                        leaves(value, &format!("{pointer}/{index}"), found);
                    }
                }
                _ => found.push(pointer.to_owned()),
            }
        }
        let mut all = Vec::new();
        leaves(&self.json, "", &mut all);
        let (compared, inputs) = (self.compared.borrow(), self.inputs.borrow());
        let known = |set: &BTreeSet<String>, leaf: &str| {
            set.iter().any(|used| leaf == used || leaf.starts_with(&format!("{used}/")))
        };
        let left: Vec<&String> =
            all.iter().filter(|leaf| !known(&compared, leaf) && !known(&inputs, leaf)).collect();
        let inputs: Vec<&String> = inputs.iter().filter(|pointer| !compared.contains(*pointer)).collect();
        println!("UNCOMPARED {} inputs={inputs:?} unused={left:?}", self.label);
        let failures = self.failures.borrow();
        assert!(failures.is_empty(), "{}: {failures:#?}", self.label);
        assert!(left.is_empty(), "{}: values never compared: {left:?}", self.label);
    }
}
