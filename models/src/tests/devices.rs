//! What holds on every device, and of half precision there.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::{every_architecture, ids, loss_of, pixels, values};
use crate::device::{DeviceName, Precision};
use crate::model::ActivationLayout;
use crate::ops::{self, Scores, Window, composed};
use crate::random::Key;
use crate::train::{AdamW, AdamWOptions, Adamax, AdamaxOptions};
use crate::{Activation, FoundationModel, MaybeProbe, ModelConfig, Probe, Trainable};

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
    gradients_of_weights_are_those_of_the_cpu,
    a_step_of_training_is_that_of_the_cpu,
    operations_are_their_composed_twins,
    frozen_arguments_get_no_gradient,
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

/// The gradient of a sum of embeddings with drawn weights by the pixels, if the model reads images.
fn pixel_gradient(model: &dyn FoundationModel) -> Option<Vec<f32>> {
    let pixels = Var::from_tensor(&pixels(model)?).unwrap();
    let embeddings = model.as_image_tower()?.embed_images(&pixels, None).unwrap();
    let weights = drawn(7, embeddings.dims(), &Device::Cpu);
    let gradients = (embeddings * weights).unwrap().sum_all().unwrap().backward().unwrap();
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
            // Behind the quantiser two roundings may take different codes.
            if matches!(config, ModelConfig::CtClip(_)) {
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

fn gradients_of_weights_are_those_of_the_cpu(device: &Device) {
    for config in every_architecture() {
        let of = |device: &Device| -> Vec<(String, Vec<f32>)> {
            let model = single(&config, device, Trainable::All);
            let loss = loss_of(model.as_ref(), pixels(model.as_ref()).as_ref(), None).unwrap();
            let gradients = loss.backward().unwrap();
            let known = |(name, variable): (&String, &Var)| {
                let gradient = gradients.get(variable)?;
                assert!(gradient.device().same_device(device), "{name} of {config:?}");
                Some((name.clone(), values(gradient)))
            };
            model.variables().iter().filter_map(known).collect()
        };
        let (here, there) = (of(device), of(&Device::Cpu));
        let length =
            |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let greatest = there.iter().map(|(_, values)| length(values)).fold(0.0, f64::max);
        assert_eq!(here.len(), there.len());
        for ((name, here), (_, there)) in here.iter().zip(&there) {
            // That of the keys' biases is nothing but rounding: softmax does not see them.
            let error = distance(here, there) * length(there) / length(there).max(1e-2 * greatest);
            // The loss of a model with one tower is nearly constant behind its last norm, and its gradient the rest of
            // larger numbers.
            assert!(error < 1e-3, "{error} of {name} in {config:?}");
        }
    }
}

/// With gradients that are known exactly: near zero a rounding may change the sign of one, and with it the
/// direction of its first step.
fn a_step_of_training_is_that_of_the_cpu(device: &Device) {
    for config in every_architecture() {
        let after = |device: &Device| {
            let model = single(&config, device, Trainable::All);
            let variables = model.variables();
            let mut loss = Tensor::zeros((), DType::F32, device).unwrap();
            for (place, variable) in variables.values().enumerate() {
                let slope = drawn(place as u64, variable.dims(), device);
                loss = (loss + (variable.as_tensor() * slope).unwrap().sum_all().unwrap()).unwrap();
            }
            let gradients = loss.backward().unwrap();
            let mut adamw = AdamW::new(variables, AdamWOptions::default(), AdamW::matrices_decay);
            let mut adamax = Adamax::new(variables, AdamaxOptions::default(), Adamax::alike);
            for _ in 0..3 {
                adamw.step(&gradients, 1e-3, 0.5).unwrap();
                adamax.step(&gradients, 1e-3, 0.5).unwrap();
            }
            // What is kept of each parameter goes on elsewhere.
            let (state, start) = (adamw.state().unwrap(), model.parameters().tensors());
            let copies = start.into_iter().map(|(name, value)| (name, value.copy().unwrap())).collect();
            adamw.step(&gradients, 1e-3, 0.5).unwrap();
            let after: Vec<_> = variables.values().map(|variable| values(variable)).collect();
            model.parameters().restore(&copies).unwrap();
            let mut again = AdamW::new(variables, AdamWOptions::default(), AdamW::matrices_decay);
            assert!(again.restore(state));
            again.step(&gradients, 1e-3, 0.5).unwrap();
            assert!(variables.values().zip(&after).all(|(variable, after)| values(variable) == *after));
            assert!(variables.values().all(|variable| variable.device().same_device(device)), "{config:?}");
            model.tensors().into_values().filter(|tensor| tensor.dtype() == DType::F32).collect::<Vec<_>>()
        };
        for (here, there) in after(device).iter().zip(&after(&Device::Cpu)) {
            let error = distance(&values(here), &values(there));
            assert!(error < 1e-5, "{error} of {config:?}");
        }
    }
}

/// Values between -2 and 2 on a device.
fn drawn(seed: u64, shape: &[usize], device: &Device) -> Tensor {
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..count).map(|place| Key(seed).uniform(place) as f32 * 4.0 - 2.0).collect();
    Tensor::from_vec(values, shape, device).unwrap()
}

/// The result of an operation and the gradients of its arguments, seeded with drawn values.
fn with_gradients(arguments: &[Tensor], operation: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<f32>> {
    let variables: Vec<Var> = arguments.iter().map(|argument| Var::from_tensor(argument).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = operation(&tensors).unwrap();
    let seed = drawn(99, y.dims(), y.device()).to_dtype(y.dtype()).unwrap();
    let gradients = (&y * seed).unwrap().sum_all().unwrap().backward().unwrap();
    let wide = |tensor: &Tensor| values(&tensor.to_dtype(DType::F32).unwrap());
    let of = |variable: &Var| gradients.get(variable).map_or_else(Vec::new, wide);
    std::iter::once(wide(&y)).chain(variables.iter().map(of)).collect()
}

fn operations_are_their_composed_twins(device: &Device) {
    type Operation<'a> = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + 'a>;
    // Sizes around the width of a warp, and of a vector.
    for (batch, tokens, heads, head) in [(1, 1, 1, 4), (2, 7, 2, 8), (3, 33, 4, 16), (1, 70, 1, 32)] {
        let (width, triple) = (heads * head, 3 * heads * head);
        let of = |seed, shape: &[usize]| drawn(seed, shape, device);
        let packed = of(1, &[batch, tokens, triple]);
        // The first sample sees nothing, the others all but their first key.
        let seen: Vec<f32> = (0..batch * tokens)
            .map(|place| f32::from(u8::from(place >= tokens && place % tokens > 0)))
            .collect();
        let mask = Tensor::from_vec(seen, (batch, tokens), device).unwrap();
        let scores = [
            Scores::new(heads),
            Scores { causal: true, ..Scores::new(heads) },
            Scores { mask: Some(&mask), scale: Some(0.3), ..Scores::new(heads) },
        ];
        let mut twins: Vec<(String, Vec<Tensor>, Operation<'_>, Operation<'_>)> = Vec::new();
        for scores in scores {
            twins.push((
                format!("attention {scores:?}"),
                vec![packed.clone()],
                Box::new(move |x| ops::attention(&x[0], &scores)),
                Box::new(move |x| composed::attention(&x[0], &scores).map(|(y, _)| y)),
            ));
        }
        twins.push((
            "layer norm".to_owned(),
            vec![of(2, &[batch, tokens, width]), of(3, &[width]), of(4, &[width])],
            Box::new(|x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5)),
            Box::new(|x| composed::layer_norm(&x[0], &x[1], &x[2], 1e-5)),
        ));
        for kind in [Activation::Relu, Activation::Gelu, Activation::QuickGelu] {
            twins.push((
                format!("{kind:?}"),
                // Zeros among them, where the rectifier has its kink.
                vec![of(5, &[batch, tokens, width]).round().unwrap()],
                Box::new(move |x| ops::activate(&x[0], kind)),
                Box::new(move |x| composed::activate(&x[0], kind)),
            ));
        }
        twins.push((
            "linear".to_owned(),
            vec![of(6, &[batch, tokens, width]), of(7, &[head + 3, width]), of(8, &[head + 3])],
            Box::new(|x| ops::linear(&x[0], &x[1], Some(&x[2]))),
            Box::new(|x| composed::linear(&x[0], &x[1], Some(&x[2]))),
        ));
        twins.push((
            "project".to_owned(),
            vec![of(9, &[batch, tokens, width]), of(10, &[width, head + 5])],
            Box::new(|x| ops::project(&x[0], &x[1])),
            Box::new(|x| x[0].broadcast_matmul(&x[1])),
        ));
        for (side, window) in [
            (3, Window { stride: 1, padding: 1 }),
            (2, Window { stride: 2, padding: 0 }),
            (3, Window { stride: 2, padding: 1 }),
        ] {
            twins.push((
                format!("convolution of {side} at {window:?}"),
                vec![of(11, &[batch, 6, 5, heads]), of(12, &[head, side, side, heads]), of(13, &[head])],
                Box::new(move |x| ops::conv2d(&x[0], &x[1], Some(&x[2]), window)),
                Box::new(move |x| composed::conv2d(&x[0], &x[1], Some(&x[2]), window)),
            ));
        }
        for (name, arguments, operation, twin) in &twins {
            let exact = with_gradients(arguments, twin);
            for (what, (here, there)) in with_gradients(arguments, operation).iter().zip(&exact).enumerate() {
                let error = distance(here, there);
                assert!(error < 1e-5, "{name} of [{batch}, {tokens}, {width}], {what}: {error}");
            }
            for (dtype, tolerance) in [(DType::BF16, 0.03), (DType::F16, 0.004)] {
                let half: Vec<Tensor> = arguments.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
                let rounded: Vec<Tensor> = half.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
                let exact = with_gradients(&rounded, twin);
                for (what, (here, there)) in with_gradients(&half, operation).iter().zip(&exact).enumerate() {
                    let error = distance(here, there);
                    // One token has but one place to look at: its gradient by queries and keys is nothing.
                    let nothing = there.iter().all(|value| value.abs() < 1e-4);
                    assert!(nothing || error < tolerance, "{name} in {dtype:?}, {what}: {error}");
                }
            }
        }
    }
}

fn frozen_arguments_get_no_gradient(device: &Device) {
    let x = Var::from_tensor(&drawn(1, &[2, 5, 8], device)).unwrap();
    let frozen = [drawn(2, &[4, 8], device), drawn(3, &[4], device), drawn(4, &[8], device)];
    let y = ops::linear(&x, &frozen[0], Some(&frozen[1])).unwrap();
    let z = ops::layer_norm(&x, &frozen[2], &frozen[2], 1e-5).unwrap();
    let gradients = (y.sum_all().unwrap() + z.sum_all().unwrap()).unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_some());
    assert!(frozen.iter().all(|tensor| gradients.get(tensor).is_none()));
}
