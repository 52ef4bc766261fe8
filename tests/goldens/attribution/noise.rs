//! SmoothGrad, its relatives, and Gradient SHAP, with the noise of the goldens.

use candle_core::Tensor;
use pipe_attribution::{
    Absolute, Average, Baseline, Evaluator, Gradient, GradientShap, InputXGradient, Inputs, Method, Noise,
    Places, Score, Smoothed,
};

use super::gradients::cnn;
use super::networks::{ClassLogit, indices};
use super::{BATCH, GRADIENT, attribute, open};
use crate::harness::Golden;

/// The averages over the golden's noise.
pub(super) fn smoothed(golden: &Golden, score: &dyn Score, x: &Tensor) {
    let noise = || Noise::Given(golden.input("noise"));
    for (key, average) in [
        ("smoothgrad", Average::Mean),
        ("smoothgrad_sq", Average::MeanOfSquares),
        ("vargrad", Average::Variance),
    ] {
        let method = Smoothed { method: Gradient, noise: noise(), average };
        golden.compare(key, &attribute(score, &method, x).values, GRADIENT);
    }
    let absolute = Smoothed { method: Absolute(Gradient), noise: noise(), average: Average::Mean };
    golden.compare("smoothgrad_abs", &attribute(score, &absolute, x).values, GRADIENT);
    let product = Smoothed { method: InputXGradient::default(), noise: noise(), average: Average::Mean };
    golden.compare("smooth_ixg", &attribute(score, &product, x).values, GRADIENT);
}

#[test]
fn cnn_noise() {
    let Some((folder, config)) = open() else { return };
    let (network, x, targets) = cnn(&folder, &config);
    let golden = Golden::open(&folder, "cnn_noise.safetensors");
    let score = ClassLogit { network: &network, targets };
    smoothed(&golden, &score, &x);
    let places: Vec<Vec<f32>> = golden.input("gradshap_coef").to_vec2().unwrap();
    let baselines = golden.input("gradshap_baseline_index");
    let draws = places[0].len();
    let baselines: Vec<u32> = indices(&baselines.flatten_all().unwrap());
    let given = places.iter().zip(baselines.chunks_exact(draws)).map(|(places, baselines)| {
        baselines.iter().map(|index| *index as usize).zip(places.iter().copied()).collect()
    });
    let pool = golden.input("gradshap_baseline_pool");
    let method = GradientShap {
        pool: (0..pool.dims()[0])
            .map(|baseline| Baseline::Tensor(pool.narrow(0, baseline, 1).unwrap()))
            .collect(),
        noise: Noise::Given(golden.input("gradshap_noise")),
        places: Places::Given(given.collect()),
    };
    golden.compare("gradshap", &attribute(&score, &method, &x).values, GRADIENT);
    let inputs = Inputs::new(&x).unwrap();
    let evaluator = Evaluator::new(&score, BATCH);
    let gaps = method.draw_gaps(&evaluator, &inputs).unwrap();
    let gaps = Tensor::from_vec(gaps, (x.dims()[0], draws), x.device()).unwrap();
    golden.compare("gradshap_delta", &gaps, GRADIENT);
    assert_eq!(method.cost(&x.dims()[1..]).unwrap().backward, draws as u64);
    golden.finish();
}
