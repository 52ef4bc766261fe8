//! Occlusion, ablation and Shapley values.

use candle_core::{DType, Tensor};
use pipe_attribution::{
    Baseline, Coalitions, FeatureAblation, Features, KernelShap, Occlusion, Score, ShapleyValues,
};
use serde_json::Value as Json;

use super::gradients::cnn;
use super::networks::{ClassLogit, size, sizes};
use super::{OCCLUSION, attribute, baseline, open};
use crate::harness::Golden;

/// Means of many differences of f32 scores.
const SHAPLEY: f64 = 1e-4;
/// Captum solves its regression in f32.
const KERNEL_SHAP: f64 = 1e-3;

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
    blocks(&golden, &config["blocks"], &score, &x);
    golden.finish();
}

/// Blocks of an image present and absent.
fn blocks(golden: &Golden, config: &Json, score: &dyn Score, x: &Tensor) {
    let masks = |name: &Json| {
        let name = name.as_str().unwrap();
        let features = Features::of_mask(&golden.input(name).squeeze(0).unwrap()).unwrap();
        let [rows, columns] = [0, 1].map(|axis| size(&config[name][axis]));
        let drawn = Features::blocks([x.dims()[2], x.dims()[3]], [rows, columns]).unwrap();
        assert_eq!(features, drawn, "{name}");
        (features, rows * columns)
    };
    let baseline = || Baseline::Constant(config["baseline"].as_f64().unwrap() as f32);
    let (features, count) = masks(&config["feature_ablation"]);
    let ablation = FeatureAblation { features, baseline: baseline() };
    golden.compare(
        &format!("feature_ablation_blocks{count}"),
        &attribute(score, &ablation, x).values,
        OCCLUSION,
    );
    let (features, count) = masks(&config["shapley_exact"]);
    let shapley = ShapleyValues { features, baseline: baseline() };
    golden.compare(&format!("shapley_exact_blocks{count}"), &attribute(score, &shapley, x).values, SHAPLEY);
    let (features, count) = masks(&config["kernelshap"]);
    let drawn = golden.input("kernelshap_coalitions").to_dtype(DType::F32).unwrap().to_vec3::<f32>().unwrap();
    let present =
        |rows: &Vec<Vec<f32>>| rows.iter().map(|row| row.iter().map(|one| *one > 0.5).collect()).collect();
    let coalitions = Coalitions::Given(drawn.iter().map(present).collect());
    let kernel = KernelShap { features, baseline: baseline(), coalitions };
    golden.compare(&format!("kernelshap_blocks{count}"), &attribute(score, &kernel, x).values, KERNEL_SHAP);
}
