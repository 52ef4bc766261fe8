//! Finding golden files, comparing by relative error, and listing what was not compared.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

/// The folder of a topic; prints `SKIPPED` and returns `None` where the goldens are not there.
pub(crate) fn topic(name: &str) -> Option<PathBuf> {
    folder("PIPE_GOLDENS", "goldens", name)
}

/// A folder of the development data; prints `SKIPPED` and returns `None` where it is not there.
pub(crate) fn data(name: &str) -> Option<PathBuf> {
    folder("PIPE_DATA", "data", name)
}

fn folder(variable: &str, default: &str, name: &str) -> Option<PathBuf> {
    let root = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(default), PathBuf::from);
    let path = root.join(name);
    if path.exists() {
        Some(path)
    } else {
        println!("SKIPPED {default}/{name}: `{}` does not exist (set {variable})", path.display());
        None
    }
}

/// Reads a JSON file.
pub(crate) fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One golden safetensors file, and which of its keys were used.
pub(crate) struct Golden {
    label: String,
    tensors: BTreeMap<String, Tensor>,
    inputs: RefCell<BTreeSet<String>>,
    compared: RefCell<BTreeSet<String>>,
    failures: RefCell<Vec<String>>,
}

impl Golden {
    /// Opens `topic/file`.
    pub(crate) fn open(folder: &Path, file: &str) -> Self {
        let tensors = candle_core::safetensors::load(folder.join(file), &Device::Cpu)
            .unwrap_or_else(|error| panic!("{file}: {error}"))
            .into_iter()
            .collect();
        let topic = folder.file_name().unwrap_or_default().to_string_lossy();
        Self {
            label: format!("{topic}/{file}"),
            tensors,
            inputs: RefCell::default(),
            compared: RefCell::default(),
            failures: RefCell::default(),
        }
    }

    /// All keys, sorted.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether the key exists.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// A tensor that is an input of the computation, not a result.
    pub(crate) fn input(&self, key: &str) -> Tensor {
        self.inputs.borrow_mut().insert(key.to_owned());
        self.tensors.get(key).unwrap_or_else(|| panic!("{} has no key `{key}`", self.label)).clone()
    }

    /// Compares `ours` with the golden `key`: the relative error is the greatest absolute difference
    /// over the greatest absolute golden value. Prints it and remembers a failure above `tolerance`.
    pub(crate) fn compare(&self, key: &str, ours: &Tensor, tolerance: f64) {
        self.compared.borrow_mut().insert(key.to_owned());
        let golden = self.tensors.get(key).unwrap_or_else(|| panic!("{} has no key `{key}`", self.label));
        if golden.dims() != ours.dims() {
            println!("golden {}#{key} shape {:?}, golden {:?}", self.label, ours.dims(), golden.dims());
            self.failures.borrow_mut().push(format!("{key}: shape {:?} vs {:?}", ours.dims(), golden.dims()));
            return;
        }
        let golden = values(golden);
        let ours = values(ours);
        let scale =
            golden.iter().filter(|value| value.is_finite()).fold(0.0f64, |max, value| max.max(value.abs()));
        let difference = golden.iter().zip(&ours).fold(0.0f64, |max, (golden, ours)| {
            if golden == ours || (golden.is_nan() && ours.is_nan()) {
                max
            } else {
                let difference = (golden - ours).abs();
                if difference.is_nan() { f64::INFINITY } else { max.max(difference) }
            }
        });
        let error = if difference == 0.0 { 0.0 } else { difference / scale.max(f64::MIN_POSITIVE) };
        println!("golden {}#{key} rel={error:.3e}", self.label);
        if error > tolerance {
            self.failures
                .borrow_mut()
                .push(format!("{key}: relative error {error:.3e} above {tolerance:.0e}"));
        }
    }

    /// Lists the keys that were neither compared nor read as inputs, and fails if any comparison did
    /// or if such a key exists.
    pub(crate) fn finish(&self) {
        let used = self.compared.borrow();
        let inputs = self.inputs.borrow();
        let left: Vec<&str> =
            self.keys().filter(|key| !used.contains(*key) && !inputs.contains(*key)).collect();
        println!(
            "UNCOMPARED {} inputs={:?} unused={left:?}",
            self.label,
            inputs.iter().filter(|key| !used.contains(*key)).collect::<Vec<_>>()
        );
        let failures = self.failures.borrow();
        assert!(failures.is_empty(), "{}: {failures:#?}", self.label);
        assert!(left.is_empty(), "{}: keys never compared: {left:?}", self.label);
    }
}

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
            json: json(&folder.join(file)),
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

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .and_then(|tensor| tensor.flatten_all())
        .and_then(|tensor| tensor.to_vec1())
        .expect("any tensor converts to f64")
}
