//! Metrics of explanations against Quantus, and against an independent implementation of the papers'
//! definitions.
//!
//! Networks, parameters and draws come from the files; an entry is scored by what its `metric` and
//! `params` say, whatever its name.

mod again;
mod network;
mod quantus;
mod reference;

use std::path::Path;

use candle_core::Tensor;
use pipe_attribution::Evaluator;
use pipe_attribution::metrics::{Mask, Sample, Shape};
use serde_json::Value as Json;

use self::network::{Network, Space, TargetScore};
use crate::harness::{Golden, values};

/// One network with its samples, maps, masks and draws.
struct Case {
    network: Network,
    shape: Shape,
    data: Golden,
    model: Golden,
    draws: Golden,
    targets: Vec<usize>,
    images: Vec<Vec<f32>>,
    masks: Vec<Mask>,
    /// Layers that can be randomised, from the input on.
    layers: Vec<String>,
    /// Parameters drawn anew, where there are any.
    randomised: Option<Golden>,
}

impl Case {
    /// The case whose files begin with `prefix`, described by `config`.
    fn open(folder: &Path, prefix: &str, config: &Json) -> Self {
        let open = |name: &str| Golden::open(folder, &format!("{prefix}{name}.safetensors"));
        let (data, model, draws) = (open("data"), open("model"), open("draws"));
        let side = |axis: usize| config["input_shape"][axis].as_u64().expect("a size") as usize;
        let shape = Shape::flat(side(0), side(1), side(2));
        let network = Network::new(&config["layers"], &model);
        let targets = values(&data.input("y")).into_iter().map(|class| class as usize).collect();
        let images = rows(&data.input("x")).into_iter().map(|row| single(&row)).collect();
        let masks = rows(&data.input("masks"))
            .into_iter()
            .map(|mask| mask.into_iter().map(|value| value != 0.0).collect())
            .map(|inside| Mask::new(inside, shape.width).expect("masks have the image's shape"))
            .collect();
        let layers = config["randomisable_layers"]
            .as_array()
            .map(|names| names.iter().filter_map(Json::as_str).map(str::to_owned).collect())
            .unwrap_or_default();
        let file = format!("{prefix}mprt.safetensors");
        let randomised = folder.join(&file).exists().then(|| Golden::open(folder, &file));
        Self { network, shape, data, model, draws, targets, images, masks, layers, randomised }
    }

    /// The maps of an entry, one row per sample.
    fn maps(&self, name: &str) -> Vec<Vec<f64>> {
        rows(&self.data.input(name))
    }

    /// The samples with these maps.
    fn samples<'a>(&'a self, maps: &'a [Vec<f64>]) -> Vec<Sample<'a>> {
        self.images
            .iter()
            .zip(maps)
            .enumerate()
            .map(|(index, (image, map))| Sample { index, image, map })
            .collect()
    }

    /// The score of each sample's target.
    fn score(&self, space: Space) -> TargetScore<'_> {
        TargetScore { network: &self.network, targets: &self.targets, space }
    }

    /// The network's own outputs are right to begin with.
    fn check_outputs(&self) {
        let images = self.data.input("x");
        let logits = self.network.logits(&images).unwrap();
        self.data.compare("logits_f32", &logits, 1e-5);
        self.data.compare("logits_f64", &logits, 1e-10);
        if self.data.has("probs_f64") {
            self.data.compare("probs_f64", &network::softmax(&logits).unwrap(), 1e-10);
        }
    }
}

/// An evaluator of a score; the odd batch makes steps of several samples share batches.
fn evaluator<'a>(score: &'a TargetScore<'_>) -> Evaluator<'a> {
    Evaluator::new(score, 37)
}

/// A tensor as one flat row per first index.
fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
    let all = values(tensor);
    let count = tensor.dims()[0].max(1);
    all.chunks((all.len() / count).max(1)).map(<[f64]>::to_vec).collect()
}

fn single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

/// Entries that are within rounding of a threshold.
const ROUNDING: f64 = 1e-5;

/// How far the entry may be off, over 1 + |score|.
fn tolerance(entry: &Json) -> f64 {
    match entry["metric"].as_str().unwrap_or_default() {
        // Counts of values beside a threshold.
        "NonSensitivity" => 2.0,
        // Ranks and products of rounded maps.
        "MPRT" => 3e-5,
        // Ranks of the maps of a float32 network.
        "SmoothMPRT" => 1e-4,
        "RelativeInputStability" | "RelativeOutputStability" | "RelativeRepresentationStability" => 1e-4,
        // Bin edges of a histogram.
        "EfficientMPRT" => 1e-2,
        _ => ROUNDING,
    }
}
