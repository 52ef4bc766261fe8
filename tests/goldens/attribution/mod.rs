//! Attribution methods against Captum and the authors' code, on tiny networks.

mod attention;
mod cams;
mod drawing;
mod gradients;
mod grid;
mod masks;
mod networks;
mod noise;
mod perturbation;
mod rise;
mod text;
mod volumes;

use candle_core::{Device, Tensor};
use pipe_attribution::{Attribution, Baseline, Evaluator, Inputs, Method, Score};

use crate::harness::{self, Golden};

/// Gradient methods, relative to the greatest golden value.
const GRADIENT: f64 = 1e-4;
/// Occlusion: differences of scores, relative to the greatest of either.
const OCCLUSION: f64 = 1e-5;
/// Rows per forward pass: steps and windows of several samples share batches.
const BATCH: usize = 64;

/// The folder and its `config.json`.
fn open() -> Option<(std::path::PathBuf, serde_json::Value)> {
    let folder = harness::topic("attribution")?;
    let config = harness::json(&folder.join("config.json"));
    Some((folder, config))
}

fn attribute(score: &dyn Score, method: &dyn Method, inputs: &Tensor) -> Attribution {
    let inputs = Inputs::new(inputs).unwrap();
    method.attribute(&Evaluator::new(score, BATCH), &inputs).unwrap()
}

fn row(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// A number in the configuration, or the tensor that it names.
fn baseline(json: &serde_json::Value, golden: &Golden) -> Baseline {
    match json.as_str() {
        Some(text) => Baseline::Tensor(golden.input(text.trim_start_matches("tensor "))),
        None => Baseline::Constant(json.as_f64().unwrap() as f32),
    }
}
