//! Finding golden files, comparing by relative error, and listing what was not compared.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

/// The folder of a topic; prints `SKIPPED` and returns `None` where the goldens are not there.
pub(crate) fn topic(name: &str) -> Option<PathBuf> {
    folder("PIPE_GOLDENS", "goldens", name)
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

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .and_then(|tensor| tensor.flatten_all())
        .and_then(|tensor| tensor.to_vec1())
        .expect("any tensor converts to f64")
}
