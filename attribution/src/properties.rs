//! What holds of every method whatever it explains: of constants, of images turned around, of batches in another order.

use candle_core::{Result as TensorResult, Tensor};
use pipe_models::MaybeProbe;
use pipe_models::model::{ActivationLayout, CamHook};
use pipe_models::random::Key;

use crate::testing::{Convolutional, assert_close, host, normal, permuted};
use crate::{
    Ablated, Absolute, AttributionError, Average, Baseline, Blurred, Cam, CamWeights, Coalitions, DeepLift,
    Deviation, Evaluator, ExcitationBackprop, ExcitationStart, FeatureAblation, Features, FullGradient,
    Gradient, GradientShap, GuidedGradient, InputXGradient, Inputs, IntegratedGradients, IterativeSaliency,
    KernelShap, MeaningfulPerturbation, Method, Noise, Occlusion, OcclusionDensity, Places, Rise, Rule,
    Score, ShapleyValues, Smoothed,
};

const SIDE: usize = 8;
const ROWS: usize = 5;

/// What a method promises beside being a function of each sample alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// Maps turn with their image, and those of a constant are zero.
    All,
    /// The first: a constant's map is that of the activations or masks themselves.
    Turns,
    /// The second: draws do not turn with the image.
    Zero,
    Neither,
}

fn keys() -> Vec<Key> {
    (0..ROWS as u64).map(|row| Key(40 + row)).collect()
}

fn methods() -> Vec<(&'static str, Promise, Box<dyn Method>)> {
    let blur = || Baseline::Blur(1.0);
    let cam = |weights| {
        let hook = CamHook { name: "relu2".to_owned(), layout: ActivationLayout::Map };
        Box::new(Cam { hook, grid: vec![SIDE, SIDE], prefix: 0, weights, channels: Some(5) })
    };
    let blocks = || Features::grid(&[SIDE, SIDE], &[2, 2]).unwrap();
    let noise = || Noise::Normal { draws: 3, deviation: Deviation::OfRange(0.1), keys: keys() };
    let occlusion = |window: [usize; 3], strides: [usize; 3]| {
        Box::new(Occlusion { window: window.to_vec(), strides: strides.to_vec(), baseline: blur() })
    };
    let excitation = |contrast: Option<&str>| {
        Box::new(ExcitationBackprop {
            layer: "relu1".to_owned(),
            start: ExcitationStart::Activation("relu2".to_owned()),
            contrast: contrast.map(str::to_owned),
        })
    };
    vec![
        ("gradient", Promise::All, Box::new(Absolute(Gradient))),
        ("input x gradient", Promise::All, Box::new(InputXGradient { baseline: blur() })),
        (
            "integrated gradients",
            Promise::All,
            Box::new(IntegratedGradients { steps: 7, baseline: blur(), ..Default::default() }),
        ),
        (
            "blurred",
            Promise::All,
            Box::new(Blurred { method: InputXGradient { baseline: Baseline::Zero }, sigma: 1.0 }),
        ),
        ("occlusion", Promise::All, occlusion([3, 4, 4], [3, 2, 2])),
        ("occlusion by channel", Promise::All, occlusion([1, 2, 2], [1, 2, 2])),
        (
            "occlusion by area",
            Promise::All,
            Box::new(OcclusionDensity { side: 4, stride: 2, baseline: Baseline::Zero }),
        ),
        ("guided", Promise::All, Box::new(GuidedGradient { rule: Rule::Guided })),
        ("deconvolution", Promise::All, Box::new(GuidedGradient { rule: Rule::Deconvolution })),
        ("DeepLIFT", Promise::All, Box::new(DeepLift { baseline: blur(), ..DeepLift::default() })),
        ("full gradient", Promise::All, Box::new(FullGradient::default())),
        ("excitation", Promise::All, excitation(None)),
        ("Grad-CAM", Promise::All, cam(CamWeights::Gradient)),
        ("Grad-CAM++", Promise::All, cam(CamWeights::GradientPlusPlus)),
        ("LayerCAM", Promise::All, cam(CamWeights::Layer)),
        ("Score-CAM", Promise::Turns, cam(CamWeights::Score)),
        ("Ablation-CAM", Promise::All, cam(CamWeights::AblationBySize(Ablated::Zero))),
        ("ablation", Promise::All, Box::new(FeatureAblation { features: blocks(), baseline: blur() })),
        ("Shapley values", Promise::All, Box::new(ShapleyValues { features: blocks(), baseline: blur() })),
        (
            "Kernel SHAP",
            Promise::Zero,
            Box::new(KernelShap {
                features: blocks(),
                baseline: blur(),
                coalitions: Coalitions::Drawn { samples: 20, keys: keys() },
            }),
        ),
        (
            "SmoothGrad",
            Promise::Zero,
            Box::new(Smoothed { method: Gradient, noise: noise(), average: Average::Mean }),
        ),
        (
            "VarGrad",
            Promise::Zero,
            Box::new(Smoothed { method: Gradient, noise: noise(), average: Average::Variance }),
        ),
        (
            "gradient SHAP",
            Promise::Zero,
            Box::new(GradientShap { pool: vec![blur()], noise: noise(), places: Places::Uniform(keys()) }),
        ),
        ("RISE", Promise::Neither, Box::new(Rise { grid: 3, ..Rise::new(6, Key(2)) })),
        (
            "meaningful perturbation",
            Promise::Neither,
            Box::new(MeaningfulPerturbation { steps: 3, ..MeaningfulPerturbation::new(SIDE * 8, keys()) }),
        ),
        (
            "iterative saliency",
            Promise::Neither,
            Box::new(IterativeSaliency { cells: 4, steps: 3, ..IterativeSaliency::new(keys()) }),
        ),
    ]
}

fn images() -> Inputs {
    Inputs::new(&normal(11, &[ROWS, 3, SIDE, SIDE])).unwrap()
}

/// From right to left.
fn turned(maps: &Tensor) -> Tensor {
    let last = maps.dims().len() - 1;
    let columns = maps.dim(last).unwrap() as u32;
    let order: Vec<u32> = (0..columns).rev().collect();
    let order = Tensor::from_vec(order, columns as usize, maps.device()).unwrap();
    maps.contiguous().unwrap().index_select(&order, last).unwrap()
}

/// The other score without a part in what comes out.
struct Constant(Convolutional);

impl Score for Constant {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
        (self.0.score(input, samples, probe)? * 0.0)? + 2.0
    }
}

#[test]
fn maps_turn_with_their_image() {
    let score = Convolutional::symmetric(21);
    let evaluator = Evaluator::new(&score, 16);
    let inputs = images();
    let other = Inputs::new(&turned(inputs.values())).unwrap();
    for (name, promise, method) in methods() {
        if matches!(promise, Promise::Zero | Promise::Neither) {
            continue;
        }
        let [plain, other] = [&inputs, &other].map(|inputs| method.attribute(&evaluator, inputs).unwrap());
        assert!(host(&plain.values).iter().any(|value| *value != 0.0), "{name}: nothing is attributed");
        println!("{name}");
        assert_close(&turned(&other.values), &plain.values, 1e-3);
    }
}

#[test]
fn a_constant_owes_nothing_to_its_image() {
    let score = Constant(Convolutional::new(21, false));
    let evaluator = Evaluator::new(&score, 16);
    for (name, promise, method) in methods() {
        if matches!(promise, Promise::Turns | Promise::Neither) {
            continue;
        }
        match method.attribute(&evaluator, &images()) {
            Ok(found) => {
                let greatest =
                    host(&found.values).into_iter().fold(0.0f32, |most, value| most.max(value.abs()));
                assert!(greatest < 1e-5, "{name}: {greatest}");
            }
            Err(AttributionError::NotApplicable(_)) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn samples_in_another_order_have_the_same_maps_for_the_cost_that_is_told() {
    let score = Convolutional::new(21, false);
    let order = [3, 0, 4, 2, 1];
    let inputs = images();
    let other = Inputs::of_samples(&permuted(inputs.values(), &order), order.to_vec()).unwrap();
    for (name, _, method) in methods() {
        let evaluators = [Evaluator::new(&score, 4), Evaluator::new(&score, 7)];
        let plain = method.attribute(&evaluators[0], &inputs).unwrap();
        let moved = method.attribute(&evaluators[1], &other).unwrap();
        println!("{name}");
        assert_close(&moved.values, &permuted(&plain.values, &order), 1e-3);
        let cost = method.cost(inputs.row_shape()).unwrap();
        for evaluator in evaluators {
            let passes = evaluator.passes();
            let expected = (ROWS as u64 * cost.forward, ROWS as u64 * cost.backward);
            assert_eq!((passes.forward, passes.backward), expected, "{name}");
        }
    }
}
