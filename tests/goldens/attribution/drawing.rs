//! Maps on the scale of a picture, against Captum.

use candle_core::Tensor;
use pipe_attribution::{InputXGradient, Sign, normalised};

use super::gradients::cnn;
use super::networks::ClassLogit;
use super::{GRADIENT, attribute, open};
use crate::harness::Golden;

fn sign(name: &str) -> Sign {
    match name {
        "all" => Sign::All,
        "positive" => Sign::Positive,
        "negative" => Sign::Negative,
        "absolute_value" => Sign::Absolute,
        other => panic!("unknown sign `{other}`"),
    }
}

#[test]
fn visual() {
    let Some((folder, config)) = open() else { return };
    let golden = Golden::open(&folder, "visual.safetensors");
    let (network, x, targets) = cnn(&folder, &config);
    let score = ClassLogit { network: &network, targets };
    let product = attribute(&score, &InputXGradient::default(), &x).values;
    golden.compare("signed_map", &product.sum(1).unwrap(), GRADIENT);
    let maps = golden.input("signed_map");
    let values: Vec<f32> = maps.flatten_all().unwrap().to_vec1().unwrap();
    let settings = &config["visual"];
    let outliers = settings["outlier_perc"].as_f64().unwrap() / 100.0;
    for name in settings["signs"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let plane: usize = maps.dims()[1..].iter().product();
        let ours: Vec<f32> =
            values.chunks_exact(plane).flat_map(|map| normalised(map, sign(name), outliers)).collect();
        let ours = Tensor::from_vec(ours, maps.shape(), maps.device()).unwrap();
        golden.compare(&format!("normalized_{name}"), &ours, 1e-6);
    }
    golden.finish();
}
