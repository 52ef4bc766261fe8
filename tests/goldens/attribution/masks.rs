//! Masks found by gradient descent, and the objective of trained ones.

use candle_core::{Device, Tensor};
use pipe_attribution::{
    Baseline, Border, Evaluator, Inputs, MaskStart, MeaningfulPerturbation, Wanted, area_loss, gaussian_taps,
    margin_loss, smoothed, smoothness_loss,
};
use serde_json::Value as Json;

use super::gradients::cnn;
use super::networks::{Probability, size};
use super::{BATCH, GRADIENT, open};
use crate::harness::Golden;

/// Adam divides by the root of small squares, step after step.
const DESCENT: f64 = 1e-3;

#[test]
fn mask_opt() {
    let Some((folder, config)) = open() else { return };
    let golden = Golden::open(&folder, "mask_opt.safetensors");
    let (network, x, targets) = cnn(&folder, &config);
    let settings = &config["mask_optimisation"];
    let number = |name: &str| settings[name].as_f64().unwrap();
    let taps = gaussian_taps(number("blur_sigma"), size(&settings["blur_taps"]) / 2);
    let as_f32: Vec<f32> = taps.iter().map(|tap| *tap as f32).collect();
    golden.compare("gauss_taps", &Tensor::new(as_f32, &Device::Cpu).unwrap(), 1e-6);
    assert_eq!(settings["blur_padding"], "replicate");
    let inputs = Inputs::new(&x).unwrap();
    let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    let blurred: Vec<f32> = values
        .chunks_exact(inputs.row_length())
        .flat_map(|row| smoothed(row, inputs.row_shape(), &taps, Border::Repeated).unwrap())
        .collect();
    let blurred = Tensor::from_vec(blurred, x.shape(), x.device()).unwrap();
    golden.compare("blurred_input", &blurred, 1e-5);

    assert_eq!((&settings["upsampling"], &settings["jitter"]), (&Json::from("nearest"), &Json::from(0)));
    let method = MeaningfulPerturbation {
        cell: size(&settings["mask_downscale"]),
        mask_blur: None,
        baseline: Baseline::Tensor(blurred),
        steps: size(&settings["steps"]),
        learning_rate: number("learning_rate"),
        l1: number("l1_coefficient"),
        total_variation: number("tv_coefficient"),
        beta: number("tv_beta"),
        jitter: 0,
        keys: Vec::new(),
        start: MaskStart::Constant(number("start") as f32),
    };
    let score = Probability { network: &network, targets, sigmoid: false };
    let stored: Vec<usize> = settings["stored_iterations"].as_array().unwrap().iter().map(size).collect();
    let mut masks = Vec::new();
    let found = method
        .optimise(&Evaluator::new(&score, BATCH), &inputs, |step, mask| {
            if stored.contains(&step) {
                masks.push(mask.to_vec());
            }
        })
        .unwrap();
    let images = x.dims()[0];
    let cells: usize = found.grid.iter().product();
    let by_image: Vec<f32> = (0..images)
        .flat_map(|image| masks.iter().flat_map(move |mask| &mask[image * cells..(image + 1) * cells]))
        .copied()
        .collect();
    let shape = [&[images, stored.len()], found.grid.as_slice()].concat();
    let key = golden.keys().find(|key| key.starts_with("mask_iter_")).unwrap().to_owned();
    golden.compare(&key, &Tensor::from_vec(by_image, shape, x.device()).unwrap(), DESCENT);
    golden.compare("loss", &Tensor::new(found.losses, x.device()).unwrap(), GRADIENT);
    objective(&golden, &settings["dabkowski"]);
    golden.finish();
}

/// The terms of the objective of Dabkowski and Gal.
fn objective(golden: &Golden, settings: &Json) {
    let number = |name: &str| settings[name].as_f64().unwrap();
    let (mask, logits, classes) =
        (golden.input("dg_mask"), golden.input("dg_logits"), golden.input("dg_onehot"));
    for power in settings["area_powers"].as_array().unwrap() {
        let power = power.as_f64().unwrap();
        golden.compare(&format!("dg_area_p{power}"), &area_loss(&mask, power).unwrap(), 1e-5);
    }
    let smoothness = smoothness_loss(&mask, number("smoothness_power"), number("border_penalty")).unwrap();
    golden.compare("dg_smoothness", &smoothness, 1e-5);
    for (key, wanted) in [
        ("dg_preserver_cw", Wanted::Above(number("preserver_t_conf"))),
        ("dg_destroyer_cw", Wanted::Below(number("destroyer_nt_conf"))),
    ] {
        golden.compare(key, &margin_loss(&logits, &classes, wanted).unwrap(), 1e-5);
    }
}
