//! Occlusion.

use candle_core::Tensor;
use pipe_attribution::{Occlusion, Score};
use serde_json::Value as Json;

use super::gradients::cnn;
use super::networks::{ClassLogit, size, sizes};
use super::{OCCLUSION, attribute, baseline, open};
use crate::harness::Golden;

/// Occlusion as each entry of the configuration describes it. Where windows span all channels the
/// golden stores one of them, as we do.
pub(super) fn occlusions(golden: &Golden, entries: &Json, score: &dyn Score, x: &Tensor) {
    for entry in entries.as_array().unwrap() {
        let method = Occlusion {
            window: sizes(&entry["window"]),
            strides: sizes(&entry["strides"]),
            baseline: baseline(&entry["baseline"], golden),
        };
        let ours = attribute(score, &method, x);
        let stored = ours.values.narrow(1, 0, size(&entry["stored_channels"])).unwrap();
        let scale = ours.scores.iter().fold(0.0f64, |scale, score| scale.max(f64::from(score.abs())));
        golden.compare_within(entry["key"].as_str().unwrap(), &stored, scale, OCCLUSION);
    }
}

#[test]
fn cnn_perturb() {
    let Some((folder, config)) = open() else { return };
    let (network, x, targets) = cnn(&folder, &config);
    let golden = Golden::open(&folder, "cnn_perturb.safetensors");
    let score = ClassLogit { network: &network, targets };
    occlusions(&golden, &config["occlusion"]["cnn"], &score, &x);
    golden.finish_without(&["block_mask", "feature_ablation", "kernelshap_", "shapley_exact_"]);
}
