//! What holds on every device, and of half precision there.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::{every_architecture, ids, loss_of, pixels, values};
use crate::device::{DeviceName, Precision};
use crate::model::ActivationLayout;
use crate::train::{AdamW, AdamWOptions};
use crate::{FoundationModel, MaybeProbe, ModelConfig, Probe, Trainable};

/// Makes each function a test on each device that this program was built for.
macro_rules! on_each_device {
    ($($test:ident),* $(,)?) => {
        on_each_device!(@ cpu, "cpu", $($test),*);
        #[cfg(feature = "cuda")]
        on_each_device!(@ cuda, "cuda:0", $($test),*);
        #[cfg(feature = "metal")]
        on_each_device!(@ metal, "metal", $($test),*);
    };
    (@ $module:ident, $name:literal, $($test:ident),*) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::on($name, super::$test);
            })*
        }
    };
}

on_each_device!(
    embeddings_are_those_of_the_cpu,
    gradients_are_those_of_the_cpu,
    half_precision_is_close_to_single,
    what_leaves_a_model_is_f32_on_the_cpu,
    a_step_of_training_is_that_of_the_cpu,
);

fn on(name: &str, test: fn(&Device)) {
    match name.parse::<DeviceName>().expect("a name of a device").open() {
        Ok(device) => test(&device),
        Err(error) => println!("SKIPPED {error}"),
    }
}

/// |a - b| / |b|.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |sum: f64, value: f64| sum + value * value;
    let error = a.iter().zip(b).map(|(a, b)| f64::from(a - b)).fold(0.0, square);
    (error / b.iter().map(|b| f64::from(*b)).fold(1e-30, square)).sqrt()
}

/// Remembers the tokens before the quantiser, which is a step function: behind it a rounding may be a jump.
#[derive(Default)]
struct BeforeCodes(RefCell<Option<Vec<f32>>>);

impl Probe for BeforeCodes {
    fn activation(&self, name: &str, value: Tensor) -> Result<Tensor> {
        if name == "vision.encoded" {
            *self.0.borrow_mut() = Some(values(&value));
        }
        Ok(value)
    }
    fn looks_into(&self, _name: &str) -> bool {
        false
    }
}

/// The embeddings of images and of texts, one behind the other.
fn embeddings(model: &dyn FoundationModel) -> Vec<f32> {
    let mut all = Vec::new();
    if let (Some(tower), Some(pixels)) = (model.as_image_tower(), pixels(model)) {
        let probe = BeforeCodes::default();
        let embedding = values(&tower.embed_images(&pixels, Some(&probe)).unwrap());
        all.extend(probe.0.into_inner().unwrap_or(embedding));
    }
    if let (Some(tower), Some(ids)) = (model.as_text_tower(), ids(model)) {
        all.extend(values(&tower.embed_texts(&ids, None).unwrap()));
    }
    all
}

/// The gradient of the loss by the pixels, if the model reads images.
fn pixel_gradient(model: &dyn FoundationModel) -> Option<Vec<f32>> {
    let pixels = Var::from_tensor(&pixels(model)?).unwrap();
    let gradients = loss_of(model, Some(&pixels), None).unwrap().backward().unwrap();
    Some(values(gradients.get(&pixels).expect("the gradient reaches the pixels")))
}

fn single(config: &ModelConfig, device: &Device, trainable: Trainable) -> Box<dyn FoundationModel> {
    config.random(1, device, trainable).unwrap()
}

fn embeddings_are_those_of_the_cpu(device: &Device) {
    for config in every_architecture() {
        let of = |device| embeddings(single(&config, device, Trainable::Frozen).as_ref());
        let error = distance(&of(device), &of(&Device::Cpu));
        assert!(error < 1e-5, "{error} of {config:?}");
    }
}

fn gradients_are_those_of_the_cpu(device: &Device) {
    for config in every_architecture() {
        let of = |device| pixel_gradient(single(&config, device, Trainable::Frozen).as_ref());
        let (Some(here), Some(there)) = (of(device), of(&Device::Cpu)) else { continue };
        let error = distance(&here, &there);
        assert!(error < 1e-4, "{error} of {config:?}");
    }
}

/// Whether gradients jump where an activation crosses zero, which a rounding can make it do.
fn has_kinks(config: &ModelConfig) -> bool {
    let model = single(config, &Device::Cpu, Trainable::Frozen);
    model.as_image_tower().is_some_and(|tower| tower.cam_hook().layout == ActivationLayout::Map)
}

/// Relative distances to f32, over all values of the towers: up to four blocks and convolutions with a
/// rounding to 8 or 11 bits behind every operation. Gradients round on the way back too.
const TOLERANCES: [(Precision, f64, f64); 2] = [(Precision::Bf16, 0.05, 0.08), (Precision::F16, 0.006, 0.01)];

fn half_precision_is_close_to_single(device: &Device) {
    for config in every_architecture() {
        let exact = single(&config, device, Trainable::Frozen);
        for (precision, tolerance, gradient_tolerance) in TOLERANCES {
            let half = config.build_frozen(exact.tensors(), precision).unwrap();
            let matrices = half.tensors().into_values().filter(|tensor| tensor.rank() > 1);
            assert!(matrices.into_iter().any(|tensor| tensor.dtype() == precision.dtype()), "{config:?}");
            let error = distance(&embeddings(half.as_ref()), &embeddings(exact.as_ref()));
            println!("{} in {precision:?} on {device:?}: {error:.2e}", config.name());
            assert!(error > 0.0 && error < tolerance, "{error} in {precision:?} of {config:?}");
            // Behind the quantiser two roundings may take different codes; and the loss of a model with one tower
            // is nearly constant behind its norm, so that its gradient is rounding alone.
            if matches!(config, ModelConfig::CtClip(_)) || exact.as_text_tower().is_none() {
                continue;
            }
            if let (Some(half), Some(exact)) = (pixel_gradient(half.as_ref()), pixel_gradient(exact.as_ref()))
            {
                let error = distance(&half, &exact);
                println!("  its gradient: {error:.2e}");
                let tolerance = gradient_tolerance * if has_kinks(&config) { 10.0 } else { 1.0 };
                assert!(error < tolerance, "gradient {error} in {precision:?} of {config:?}");
            }
        }
    }
}

/// Fails on anything but f32 on the CPU.
struct Strict;

impl Probe for Strict {
    fn activation(&self, name: &str, value: Tensor) -> Result<Tensor> {
        is_plain(name, &value);
        Ok(value)
    }
    fn wants_attention(&self) -> bool {
        true
    }
    fn attention(&self, name: &str, probabilities: Tensor) -> Result<Tensor> {
        is_plain(name, &probabilities);
        let sums = values(&probabilities.sum(3)?);
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{name} sums in f32");
        Ok(probabilities)
    }
    fn nonlinearity(&self, name: &str, kind: crate::Activation, input: &Tensor) -> Result<Option<Tensor>> {
        is_plain(name, input);
        crate::ops::activate(input, kind).map(Some)
    }
}

fn is_plain(name: &str, tensor: &Tensor) {
    assert!(tensor.device().is_cpu() && tensor.dtype() == DType::F32, "{name} is {tensor:?}");
}

fn what_leaves_a_model_is_f32_on_the_cpu(device: &Device) {
    for config in every_architecture() {
        let exact = single(&config, device, Trainable::Frozen);
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let model = config.build_frozen(exact.tensors(), precision).unwrap();
            let model = model.as_ref();
            if let (Some(tower), Some(pixels)) = (model.as_image_tower(), pixels(model)) {
                is_plain("embedding", &tower.embed_images(&pixels, Some(&Strict)).unwrap());
                is_plain("features", &tower.features(&pixels, None).unwrap());
            }
            if let (Some(tower), Some(ids)) = (model.as_text_tower(), ids(model)) {
                let embeddings = tower.token_embeddings(&ids).unwrap();
                is_plain("tokens", &embeddings);
                let hidden = tower.hidden_states(&embeddings, &ids, Some(&Strict)).unwrap();
                is_plain("hidden states", &hidden);
                is_plain("embedding", &tower.embed_hidden_states(&hidden, &ids, None).unwrap());
            }
            is_plain("loss", &loss_of(model, pixels(model).as_ref(), None as MaybeProbe<'_>).unwrap());
        }
    }
}

fn a_step_of_training_is_that_of_the_cpu(device: &Device) {
    for config in every_architecture() {
        let after = |device: &Device| {
            let model = single(&config, device, Trainable::All);
            let loss = loss_of(model.as_ref(), pixels(model.as_ref()).as_ref(), None).unwrap();
            let gradients = loss.backward().unwrap();
            let variables = model.variables();
            let mut adamw = AdamW::new(variables, AdamWOptions::default(), AdamW::matrices_decay);
            adamw.step(&gradients, 1e-3, 1.0).unwrap();
            assert!(variables.values().all(|variable| variable.device().same_device(device)), "{config:?}");
            model.tensors().into_values().filter(|tensor| tensor.dtype() == DType::F32).collect::<Vec<_>>()
        };
        for (here, there) in after(device).iter().zip(&after(&Device::Cpu)) {
            let error = distance(&values(here), &values(there));
            // A gradient near zero may change its sign, and with it the direction of its first step.
            assert!(error < 2e-2, "{error} of {config:?}");
        }
    }
}
