//! Gradient, Input x Gradient and Integrated Gradients.

use std::path::Path;

use candle_core::{Device, Tensor};
use pipe_attribution::{
    Absolute, Attribution, AttributionError, Baseline, DeepLift, Evaluator, ExcitationBackprop,
    ExcitationStart, FullGradient, FullGradientScale, Gradient, GuidedGradient, InputXGradient, Inputs,
    IntegratedGradients, MaximumRule, Method, Quadrature, Rule, Score,
};
use pipe_models::DualEncoder;
use serde_json::Value as Json;

use super::networks::{ClassLogit, Cnn, Pairing, ResNet, TextScore, Vit, VolumeCnn, indices, size};
use super::{GRADIENT, attribute, baseline, open, row};
use crate::harness::Golden;

pub(super) fn rule(json: &Json) -> Quadrature {
    serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{json}: {error}"))
}

#[test]
fn quadrature() {
    let Some((folder, config)) = open() else { return };
    let golden = Golden::open(&folder, "quadrature.safetensors");
    for name in config["quadrature"]["rules"].as_array().unwrap() {
        for steps in config["quadrature"]["steps"].as_array().unwrap() {
            let nodes = rule(name).nodes(size(steps)).unwrap();
            let key = |what: &str| format!("{}_{steps}_{what}_f64", name.as_str().unwrap());
            let tensor = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
            // Captum spaces the points of all other rules in f32.
            let tolerance = if rule(name) == Quadrature::GaussLegendre { 1e-14 } else { 1e-7 };
            golden.compare(&key("alpha"), &tensor(&nodes.alphas), tolerance);
            golden.compare(&key("weight"), &tensor(&nodes.weights), 1e-13);
        }
    }
    golden.finish();
}

/// Integrated Gradients as an entry of the configuration describes it, with its completeness gap.
fn integrated(golden: &Golden, entry: &Json, score: &dyn Score, x: &Tensor) {
    let key = entry["key"].as_str().unwrap();
    let method = IntegratedGradients {
        steps: size(&entry["steps"]),
        quadrature: rule(&entry["rule"]),
        baseline: baseline(&entry["baseline"], golden),
        multiply_by_inputs: entry["multiply_by_inputs"] != Json::Bool(false),
    };
    let attribution = attribute(score, &method, x);
    golden.compare(key, &attribution.values, GRADIENT);
    compare_gap(golden, &format!("{key}_delta"), &attribution, GRADIENT);
}

/// The completeness gap, where the golden has it: the difference of sums as large as the score's way, so
/// that is its scale.
pub(super) fn compare_gap(golden: &Golden, key: &str, attribution: &Attribution, tolerance: f64) {
    if !golden.has(key) {
        return;
    }
    let baselines = attribution.baseline_scores.as_ref().unwrap();
    let ends = attribution.scores.iter().zip(baselines);
    let scale = ends.fold(0.0f64, |scale, (x, baseline)| scale.max(f64::from((x - baseline).abs())));
    golden.compare_within(key, &row(attribution.completeness_gaps.as_ref().unwrap()), scale, tolerance);
}

/// The keys that every image network has.
fn common(golden: &Golden, score: &dyn Score, x: &Tensor) {
    let gradient = attribute(score, &Gradient, x);
    golden.compare("gradient", &gradient.values, GRADIENT);
    golden.compare("score_x", &row(&gradient.scores), GRADIENT);
    golden.compare("saliency_abs", &attribute(score, &Absolute(Gradient), x).values, GRADIENT);
    golden.compare("ixg", &attribute(score, &InputXGradient::default(), x).values, GRADIENT);
    let one_step = IntegratedGradients { steps: 1, ..Default::default() };
    let scores = attribute(score, &one_step, x).baseline_scores.unwrap();
    golden.compare("score_zero", &row(&scores), GRADIENT);
}

/// The tiny CNN with the images and targets of `cnn_io`; its logits are compared.
pub(super) fn cnn(folder: &Path, config: &Json) -> (Cnn, Tensor, Vec<u32>) {
    let golden = Golden::open(folder, "cnn_io.safetensors");
    let network = Cnn::open(folder, config);
    let (x, targets) = (golden.input("input"), indices(&golden.input("target")));
    golden.compare("logits", &super::networks::Network::logits(&network, &x, None).unwrap(), GRADIENT);
    golden.finish();
    (network, x, targets)
}

#[test]
fn cnn_attr() {
    let Some((folder, config)) = open() else { return };
    let (network, x, targets) = cnn(&folder, &config);
    let golden = Golden::open(&folder, "cnn_attr.safetensors");
    let score = ClassLogit { network: &network, targets };
    common(&golden, &score, &x);
    let guided = attribute(&score, &GuidedGradient { rule: Rule::Guided }, &x).values;
    golden.compare("guided_backprop", &guided, GRADIENT);
    let greatest = guided.abs().unwrap().max_keepdim(1).unwrap();
    golden.compare("torchray_guided_backprop_maxabs", &greatest, GRADIENT);
    let deconvolution = attribute(&score, &GuidedGradient { rule: Rule::Deconvolution }, &x);
    golden.compare("deconvnet", &deconvolution.values, GRADIENT);
    for entry in config["integrated_gradients"]["cnn"].as_array().unwrap() {
        integrated(&golden, entry, &score, &x);
    }
    deep_lift(&golden, &score, &x);
    excitation(&golden, &score, &x);
    full_gradient(&golden, &score, &x);
    golden.finish();
}

/// DeepLIFT from the zero baseline. The golden's pooling is a function that Captum puts no rule on; with the
/// rule there is no gap.
fn deep_lift(golden: &Golden, score: &dyn Score, x: &Tensor) {
    let as_captum = DeepLift { maxima: MaximumRule::Gradient, ..DeepLift::default() };
    let ours = attribute(score, &as_captum, x);
    golden.compare("deeplift_rescale", &ours.values, GRADIENT);
    compare_gap(golden, "deeplift_rescale_delta", &ours, GRADIENT);
    let complete = attribute(score, &DeepLift::default(), x);
    for (gap, score) in complete.completeness_gaps.unwrap().iter().zip(&complete.scores) {
        assert!(gap.abs() < 1e-5 * score.abs().max(1.0), "{gap}");
    }
}

/// Probabilities at the layers that the keys name, started at the classifier and at the last activation.
fn excitation(golden: &Golden, score: &ClassLogit<'_, Cnn>, x: &Tensor) {
    let layers = score.network.layers();
    let last = layers.iter().rfind(|name| name.starts_with("relu")).unwrap();
    for start in [
        ExcitationStart::Classifier(layers.last().unwrap().clone()),
        ExcitationStart::Activation(last.clone()),
    ] {
        let compare = |key: &str, layer: &str, contrast: Option<&str>| {
            let method = ExcitationBackprop {
                layer: layer.to_owned(),
                start: start.clone(),
                contrast: contrast.map(str::to_owned),
            };
            golden.compare(key, &attribute(score, &method, x).values, GRADIENT);
        };
        for key in golden.keys().map(str::to_owned).collect::<Vec<_>>() {
            if let Some(layer) = key.strip_prefix("ebp_") {
                compare(&key, layer, None);
            }
            let contrastive = key.strip_prefix("cebp_").and_then(|layers| layers.split_once("_contrast_"));
            if let Some((layer, contrast)) = contrastive {
                compare(&key, layer, Some(contrast));
            }
        }
    }
}

/// The full gradient of both libraries, and what it is made of.
fn full_gradient(golden: &Golden, score: &dyn Score, x: &Tensor) {
    let map = |scale| attribute(score, &FullGradient { scale }, x).values;
    golden.compare("fullgrad", &map(FullGradientScale::Layer), GRADIENT);
    golden.compare("fullgrad_pgc", &map(FullGradientScale::Channel).squeeze(1).unwrap(), GRADIENT);
    let evaluator = Evaluator::new(score, super::BATCH);
    let terms = FullGradient::default().terms(&evaluator, &Inputs::new(x).unwrap()).unwrap();
    golden.compare("fullgrad_completeness_total", &row(&terms.totals()), GRADIENT);
    for bias in &terms.biases {
        let shape = [&[x.dims()[0]], bias.places.as_slice(), &[bias.channels]].concat();
        let values = Tensor::from_slice(&bias.values, shape, x.device()).unwrap();
        let values = if bias.places.is_empty() { values } else { values.sum(bias.places.len() + 1).unwrap() };
        golden.compare(&format!("fullgrad_biasgrad_sum_{}", bias.layer), &values, GRADIENT);
    }
}

/// The tiny CLIP and its images; all outputs of `vit_io` are compared.
pub(super) struct VitCase {
    pub(super) network: Vit,
    pub(super) x: Tensor,
    pub(super) classes: Vec<u32>,
    pub(super) texts: Vec<u32>,
    pub(super) text_embeddings: Tensor,
    pub(super) ids: Tensor,
}

impl VitCase {
    pub(super) fn open(folder: &Path, config: &Json) -> Self {
        use super::networks::Network;
        let golden = Golden::open(folder, "vit_io.safetensors");
        let network = Vit::open(folder, config);
        let x = golden.input("image");
        let images = network.clip.image_tower().embed_images(&x, None).unwrap();
        golden.compare("image_embedding", &images, GRADIENT);
        let ids = golden.input("text");
        let text_embeddings = network.clip.text_tower().embed_texts(&ids, None).unwrap();
        golden.compare("text_embedding", &text_embeddings, GRADIENT);
        golden.compare(
            "logits_per_image",
            &network.clip.logits(&images, &text_embeddings).unwrap(),
            GRADIENT,
        );
        golden.compare("class_logits", &network.logits(&x, None).unwrap(), GRADIENT);
        let classes = indices(&golden.input("target_class"));
        let texts = indices(&golden.input("target_text"));
        golden.finish();
        Self { network, x, classes, texts, text_embeddings, ids }
    }

    pub(super) fn class_score(&self) -> ClassLogit<'_, Vit> {
        ClassLogit { network: &self.network, targets: self.classes.clone() }
    }

    pub(super) fn text_score(&self, pairing: Pairing) -> TextScore<'_> {
        TextScore {
            clip: &self.network.clip,
            texts: self.text_embeddings.clone(),
            targets: self.texts.clone(),
            pairing,
        }
    }
}

#[test]
fn vit_attr() {
    let Some((folder, config)) = open() else { return };
    let case = VitCase::open(&folder, &config);
    let golden = Golden::open(&folder, "vit_attr.safetensors");
    let (class, similarity) = (case.class_score(), case.text_score(Pairing::Similarity));
    common(&golden, &class, &case.x);
    for entry in config["integrated_gradients"]["vit"].as_array().unwrap() {
        let score: &dyn Score = if entry["target"] == "similarity" { &similarity } else { &class };
        integrated(&golden, entry, score, &case.x);
    }
    let ixg = InputXGradient::default();
    golden.compare("sim_ixg", &attribute(&similarity, &ixg, &case.x).values, GRADIENT);
    let contrast = case.text_score(Pairing::Contrast);
    golden.compare("softmax_ixg", &attribute(&contrast, &ixg, &case.x).values, GRADIENT);
    super::perturbation::occlusions(&golden, &config["occlusion"]["vit"], &class, &case.x);
    super::perturbation::occlusions(&golden, &config["occlusion"]["vit_similarity"], &similarity, &case.x);
    super::noise::smoothed(&golden, &class, &case.x);
    golden.finish();
    // Where a rule says nothing there is no plain gradient under its name.
    let start = ExcitationStart::Activation(case.network.clip.image_tower().cam_hook().name);
    let ExcitationStart::Activation(layer) = start.clone() else { unreachable!() };
    let methods: [&dyn Method; 4] = [
        &GuidedGradient { rule: Rule::Guided },
        &DeepLift::default(),
        &ExcitationBackprop { layer, start, contrast: None },
        &FullGradient::default(),
    ];
    for method in methods {
        let refused = method.attribute(&Evaluator::new(&class, 8), &Inputs::new(&case.x).unwrap());
        assert!(matches!(refused, Err(AttributionError::NotApplicable(_))));
    }
}

#[test]
fn rn_attr() {
    let Some((folder, config)) = open() else { return };
    let io = Golden::open(&folder, "rn_io.safetensors");
    let network = ResNet::open(&folder, &config);
    let (x, targets) = (io.input("input"), indices(&io.input("target")));
    io.compare("logits", &super::networks::Network::logits(&network, &x, None).unwrap(), GRADIENT);
    io.finish();
    let golden = Golden::open(&folder, "rn_attr.safetensors");
    let score = ClassLogit { network: &network, targets };
    golden.compare("gradient", &attribute(&score, &Gradient, &x).values, GRADIENT);
    golden.compare("ixg", &attribute(&score, &InputXGradient::default(), &x).values, GRADIENT);
    let guided = attribute(&score, &GuidedGradient { rule: Rule::Guided }, &x);
    golden.compare("guided_backprop", &guided.values, GRADIENT);
    for entry in config["integrated_gradients"]["rn"].as_array().unwrap() {
        integrated(&golden, entry, &score, &x);
    }
    super::perturbation::occlusions(&golden, &config["occlusion"]["rn"], &score, &x);
    super::cams::residual(&golden, &config["rn"], network.geometry(), &score, &x);
    golden.finish();
    residual_layers(&network, &score, &x);
}

/// What layers one by one give of a residual network whose attention pooling has no rule.
fn residual_layers(network: &ResNet, score: &dyn Score, x: &Tensor) {
    let refused = DeepLift::default().attribute(&Evaluator::new(score, 8), &Inputs::new(x).unwrap());
    assert!(matches!(refused, Err(AttributionError::NotApplicable(_))));
    // From the trunk every probability is handed on, through residual sums too.
    let last = network.clip_tower().cam_hook().name;
    for layer in ["vision.layer3", last.as_str()] {
        let method = ExcitationBackprop {
            layer: layer.to_owned(),
            start: ExcitationStart::Activation(last.clone()),
            contrast: None,
        };
        let map = attribute(score, &method, x).values;
        let sums: Vec<f32> = map.flatten_from(1).unwrap().sum(1).unwrap().to_vec1().unwrap();
        println!("golden attribution/excitation {layer}: sums {sums:?}");
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-3), "{layer}: {sums:?}");
    }
    let gaps = attribute(score, &FullGradient::default(), x).completeness_gaps.unwrap();
    println!("golden attribution/full gradient of attention pooling: gaps {gaps:?}");
}

#[test]
fn vol() {
    let Some((folder, config)) = open() else { return };
    let golden = Golden::open(&folder, "vol.safetensors");
    let network = VolumeCnn::open(&golden, &config);
    let (x, targets) = (golden.input("input"), indices(&golden.input("target")));
    golden.compare("logits", &super::networks::Network::logits(&network, &x, None).unwrap(), GRADIENT);
    let score = ClassLogit { network: &network, targets };
    golden.compare("ixg", &attribute(&score, &InputXGradient::default(), &x).values, GRADIENT);
    let (steps, rule) = (size(&config["cnn3d"]["ig_steps"]), &config["cnn3d"]["ig_rule"]);
    assert_eq!(rule, "gausslegendre", "the key names the rule");
    let entry = serde_json::json!({
        "key": format!("ig_gl{steps}"), "steps": steps, "rule": rule, "baseline": config["cnn3d"]["ig_baseline"],
    });
    integrated(&golden, &entry, &score, &x);
    super::perturbation::occlusions(&golden, &config["cnn3d"]["occlusion"], &score, &x);
    super::cams::volume(&golden, &score, &x);
    golden.finish();
}

/// The corrected trapezoid is complete where Captum's is not.
#[test]
fn corrected_trapezoid() {
    let Some((folder, config)) = open() else { return };
    let case = VitCase::open(&folder, &config);
    let gap = |quadrature| {
        let method =
            IntegratedGradients { steps: 50, quadrature, baseline: Baseline::Zero, multiply_by_inputs: true };
        let attribution = attribute(&case.class_score(), &method, &case.x);
        attribution.completeness_gaps.unwrap().iter().fold(0.0f32, |worst, gap| worst.max(gap.abs()))
    };
    let (captum, corrected) = (gap(Quadrature::RiemannTrapezoid), gap(Quadrature::Trapezoid));
    println!("golden attribution/trapezoid gap: captum's {captum:.1e}, corrected {corrected:.1e}");
    assert!(corrected < 0.1 * captum);
}
