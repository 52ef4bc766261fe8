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

/// Which keys of a golden file were used, and which comparisons failed.
pub(crate) struct Ledger {
    label: String,
    keys: BTreeSet<String>,
    inputs: RefCell<BTreeSet<String>>,
    compared: RefCell<BTreeSet<String>>,
    failures: RefCell<Vec<String>>,
}

impl Ledger {
    /// The ledger of `topic/file` with these keys.
    pub(crate) fn new(folder: &Path, file: &str, keys: impl IntoIterator<Item = String>) -> Self {
        let topic = folder.file_name().unwrap_or_default().to_string_lossy();
        Self {
            label: format!("{topic}/{file}"),
            keys: keys.into_iter().collect(),
            inputs: RefCell::default(),
            compared: RefCell::default(),
            failures: RefCell::default(),
        }
    }

    /// Notes that a key is an input of the computation, not a result.
    pub(crate) fn input(&self, key: &str) {
        assert!(self.keys.contains(key), "{} has no key `{key}`", self.label);
        self.inputs.borrow_mut().insert(key.to_owned());
    }

    /// Notes the error of a comparison and prints it; above `tolerance` it is a failure.
    pub(crate) fn record(&self, key: &str, error: f64, tolerance: f64) {
        self.compared.borrow_mut().insert(key.to_owned());
        println!("golden {}#{key} rel={error:.3e}", self.label);
        if error.is_nan() || error > tolerance {
            self.failures
                .borrow_mut()
                .push(format!("{key}: relative error {error:.3e} above {tolerance:.0e}"));
        }
    }

    /// Notes a comparison that failed for another reason than its numbers.
    pub(crate) fn fail(&self, key: &str, reason: &str) {
        self.compared.borrow_mut().insert(key.to_owned());
        println!("golden {}#{key} {reason}", self.label);
        self.failures.borrow_mut().push(format!("{key}: {reason}"));
    }

    /// Lists the keys that were neither compared nor read as inputs and returns them. Fails if any
    /// comparison did.
    pub(crate) fn list(&self) -> Vec<String> {
        let used = self.compared.borrow();
        let inputs = self.inputs.borrow();
        let left: Vec<String> =
            self.keys.iter().filter(|key| !used.contains(*key) && !inputs.contains(*key)).cloned().collect();
        println!(
            "UNCOMPARED {} inputs={:?} unused={left:?}",
            self.label,
            inputs.iter().filter(|key| !used.contains(*key)).collect::<Vec<_>>()
        );
        self.assert_equal();
        left
    }

    /// Fails if any comparison did.
    pub(crate) fn assert_equal(&self) {
        let failures = self.failures.borrow();
        assert!(failures.is_empty(), "{}: {failures:#?}", self.label);
    }

    /// As [`Self::list`], and fails if a key was left that begins with none of `prefixes`.
    pub(crate) fn finish_without(&self, prefixes: &[&str]) {
        let mut left = self.list();
        left.retain(|key| !prefixes.iter().any(|prefix| key.starts_with(prefix)));
        assert!(left.is_empty(), "{}: keys never compared: {left:?}", self.label);
    }
}

/// The greatest difference of two sequences; equal values and two NaN do not differ.
pub(crate) fn difference(golden: &[f64], ours: &[f64], scale: impl Fn(f64) -> f64) -> f64 {
    if golden.len() != ours.len() {
        return f64::INFINITY;
    }
    golden.iter().zip(ours).fold(0.0f64, |max, (golden, ours)| {
        if golden == ours || (golden.is_nan() && ours.is_nan()) {
            max
        } else {
            let difference = (golden - ours).abs() / scale(*golden);
            if difference.is_nan() { f64::INFINITY } else { max.max(difference) }
        }
    })
}

/// The numbers of a JSON value in reading order: null is NaN, truth values are 0 and 1, objects are read
/// by key.
pub(crate) fn numbers(json: &serde_json::Value) -> Vec<f64> {
    match json {
        serde_json::Value::Null => vec![f64::NAN],
        serde_json::Value::Bool(value) => vec![f64::from(u8::from(*value))],
        serde_json::Value::Number(number) => vec![number.as_f64().expect("a number")],
        serde_json::Value::String(text) => panic!("`{text}` is not a number"),
        serde_json::Value::Array(items) => items.iter().flat_map(numbers).collect(),
        serde_json::Value::Object(entries) => entries.values().flat_map(numbers).collect(),
    }
}

/// One golden safetensors file, and which of its keys were used.
pub(crate) struct Golden {
    tensors: BTreeMap<String, Tensor>,
    ledger: Ledger,
}

impl Golden {
    /// Opens `topic/file`.
    pub(crate) fn open(folder: &Path, file: &str) -> Self {
        let tensors: BTreeMap<String, Tensor> =
            candle_core::safetensors::load(folder.join(file), &Device::Cpu)
                .unwrap_or_else(|error| panic!("{file}: {error}"))
                .into_iter()
                .collect();
        let ledger = Ledger::new(folder, file, tensors.keys().cloned());
        Self { tensors, ledger }
    }

    /// The constants in the header of the file.
    pub(crate) fn metadata(&self, folder: &Path, file: &str) -> BTreeMap<String, String> {
        let bytes = std::fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let (_, header) =
            safetensors::SafeTensors::read_metadata(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        header.metadata().clone().unwrap_or_default().into_iter().collect()
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
        self.ledger.input(key);
        self.tensors[key].clone()
    }

    /// Compares `ours` with the golden `key`: the relative error is the greatest absolute difference
    /// over the greatest absolute golden value. Prints it and remembers a failure above `tolerance`.
    pub(crate) fn compare(&self, key: &str, ours: &Tensor, tolerance: f64) {
        self.compare_scaled(key, ours, None, tolerance);
    }

    /// As [`Self::compare`], relative to a scale that is not the golden's own: for numbers that are
    /// the rounding of a difference.
    pub(crate) fn compare_within(&self, key: &str, ours: &Tensor, scale: f64, tolerance: f64) {
        self.compare_scaled(key, ours, Some(scale), tolerance);
    }

    fn compare_scaled(&self, key: &str, ours: &Tensor, scale: Option<f64>, tolerance: f64) {
        let golden =
            self.tensors.get(key).unwrap_or_else(|| panic!("{} has no key `{key}`", self.ledger.label));
        if golden.dims() != ours.dims() {
            let reason = format!("shape {:?}, golden {:?}", ours.dims(), golden.dims());
            self.ledger.fail(key, &reason);
            return;
        }
        let (golden, ours) = (values(golden), values(ours));
        let scale = scale.unwrap_or_else(|| {
            golden.iter().filter(|value| value.is_finite()).fold(0.0f64, |max, value| max.max(value.abs()))
        });
        let difference = difference(&golden, &ours, |_| 1.0);
        let error = if difference == 0.0 { 0.0 } else { difference / scale.max(f64::MIN_POSITIVE) };
        self.ledger.record(key, error, tolerance);
    }

    /// Lists the keys that were neither compared nor read as inputs, and fails if any comparison did
    /// or if such a key exists.
    pub(crate) fn finish(&self) {
        self.ledger.finish_without(&[]);
    }

    /// As [`Self::finish`], leaving out keys that begin with one of `prefixes`: results of methods that
    /// do not exist here. They are listed.
    pub(crate) fn finish_without(&self, prefixes: &[&str]) {
        self.ledger.finish_without(prefixes);
    }

    /// Fails if any comparison did: the end of a second look at a file, all keys of which another test compares.
    pub(crate) fn finish_second_look(&self) {
        self.ledger.assert_equal();
    }
}

/// The values of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .and_then(|tensor| tensor.flatten_all())
        .and_then(|tensor| tensor.to_vec1())
        .expect("any tensor converts to f64")
}
