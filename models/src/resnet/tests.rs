//! Both networks against a slow twin: the same layers with candle's own convolution, in NCHW.

mod trajectories;

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::trunk::{Trunk, Variant};
use super::{Form, PlainResNetConfig, ResNet, ResNetConfig, StemForm};
use crate::initial::Initial;
use crate::train::BatchStatistics;
use crate::weights::{Trainable, Weights};
use crate::{FoundationModel, ImageTower, Layer, Probe};

/// Blocks with and without a shortcut's convolution, in every layer.
fn config() -> ResNetConfig {
    ResNetConfig { width: 8, blocks: [2, 1, 2, 2], image: 64 }
}

/// Random parameters and statistics: those of a fresh network would hide a swapped mean or variance.
fn tensors() -> BTreeMap<String, Tensor> {
    let initial = Initial { seed: 3, device: Device::Cpu };
    let fresh = ResNet::from_weights(config().into(), Weights::random(initial, Trainable::Frozen)).unwrap();
    let tensors = fresh.tensors().into_iter().map(|(name, tensor)| {
        let noise = crate::random::Key::derive("test", 1, &[name.as_str().into()]);
        let values: Vec<f32> = tensor
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .zip(1..)
            .map(|(value, counter)| value + 0.2 * noise.uniform(counter) as f32)
            .collect();
        let tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
        (name, tensor)
    });
    tensors.collect()
}

struct Twin(BTreeMap<String, Tensor>);

impl Twin {
    fn conv_norm(&self, x: &Tensor, conv: &str, norm: &str, stride: usize, padding: usize) -> Result<Tensor> {
        let x = x.conv2d(&self.0[&format!("{conv}.weight")], padding, stride, 1, 1)?;
        let channel = |part: &str| self.0[&format!("{norm}.{part}")].reshape((1, (), 1, 1));
        x.broadcast_sub(&channel("running_mean")?)?
            .broadcast_div(&(channel("running_var")? + 1e-5)?.sqrt()?)?
            .broadcast_mul(&channel("weight")?)?
            .broadcast_add(&channel("bias")?)
    }

    /// torchvision's forward pass, to the last feature map.
    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.conv_norm(x, "conv1", "bn1", 2, 3)?.relu()?;
        // Behind a rectifier, padding with zeros is padding with nothing greater.
        let x = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
        let mut x = x.max_pool2d_with_stride(3, 2)?;
        for (layer, count) in config().blocks.iter().enumerate() {
            for block in 0..*count {
                let name = format!("layer{}.{block}", layer + 1);
                let stride = if layer > 0 && block == 0 { 2 } else { 1 };
                let part = |x: &Tensor, place: usize, stride: usize, padding: usize| {
                    self.conv_norm(
                        x,
                        &format!("{name}.conv{place}"),
                        &format!("{name}.bn{place}"),
                        stride,
                        padding,
                    )
                };
                let y = part(&x, 1, 1, 0)?.relu()?;
                let y = part(&y, 2, stride, 1)?.relu()?;
                let y = part(&y, 3, 1, 0)?;
                if block == 0 {
                    let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                    x = self.conv_norm(&x, &conv, &norm, stride, 0)?;
                }
                x = (x + y)?.relu()?;
            }
        }
        Ok(x)
    }
}

fn pixels() -> Tensor {
    let count = 2 * 3 * 64 * 64;
    let values: Vec<f32> = (1..=count).map(|counter| crate::random::Key(5).normal(counter) as f32).collect();
    Tensor::from_vec(values, (2, 3, 64, 64), &Device::Cpu).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let greatest = |x: &Tensor| {
        x.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
    };
    greatest(&(a - b).unwrap()) / greatest(b)
}

#[test]
fn the_plain_network_is_its_twin_frozen_and_trained() {
    let twin = Twin(tensors());
    let expected = twin.plain(&pixels()).unwrap().mean((2, 3)).unwrap();
    for trainable in [Trainable::Frozen, Trainable::All] {
        let model = ResNet::from_tensors(config().into(), tensors(), trainable).unwrap();
        let embeddings = model.embed_images(&pixels(), None).unwrap();
        assert_eq!(embeddings.dims()[1], model.embedding_width());
        assert!(difference(&embeddings, &expected) < 1e-5, "{}", difference(&embeddings, &expected));
        assert_eq!(model.features(&pixels(), None).unwrap().dims(), [2, 4, 8 * 8 * 4]);
    }
}

/// Shows itself every layer and keeps what the model does.
#[derive(Default)]
struct Layers {
    names: RefCell<Vec<String>>,
}

impl Probe for Layers {
    fn wants_layers(&self) -> bool {
        true
    }
    fn layer(&self, name: &str, _: &Layer, _: &Tensor) -> Result<Option<Tensor>> {
        self.names.borrow_mut().push(name.to_owned());
        Ok(None)
    }
    fn sum(&self, name: &str, path: &Tensor, identity: &Tensor) -> Result<Option<Tensor>> {
        self.names.borrow_mut().push(name.to_owned());
        (path + identity).map(Some)
    }
}

#[test]
fn layers_one_by_one_are_the_folded_network() {
    let model = ResNet::from_tensors(config().into(), tensors(), Trainable::Frozen).unwrap();
    let folded = model.embed_images(&pixels(), None).unwrap();
    let probe = Layers::default();
    let single = model.embed_images(&pixels(), Some(&probe)).unwrap();
    assert!(difference(&single, &folded) < 1e-5, "{}", difference(&single, &folded));
    let names = probe.names.take();
    assert_eq!(names[..3], ["vision.stem.conv1", "vision.stem.bn1", "vision.stem.pool"]);
    let blocks: usize = config().blocks.iter().sum();
    // Convolution and norm of each, the shortcuts', and the sums; stem, its pooling and the mean.
    assert_eq!(names.len(), blocks * 7 + 4 * 2 + 4);
    assert_eq!(names.last().unwrap(), "vision.mean");
    let mut distinct = names.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), names.len());
}

#[test]
fn every_parameter_of_the_trained_network_has_a_gradient() {
    let model = ResNet::from_tensors(config().into(), tensors(), Trainable::All).unwrap();
    let gradients = model.embed_images(&pixels(), None).unwrap().sqr().unwrap().sum_all().unwrap();
    let gradients = gradients.backward().unwrap();
    for (name, variable) in model.variables() {
        assert!(gradients.get(variable).is_some(), "{name}");
        assert!(!name.contains("running"), "statistics are not trained");
    }
    // The gradient of the pixels, by both ways of computing it.
    let pixels = Var::from_tensor(&pixels()).unwrap();
    let of = |trainable| {
        let model = ResNet::from_tensors(config().into(), tensors(), trainable).unwrap();
        let gradients = model.embed_images(&pixels, None).unwrap().sum_all().unwrap().backward().unwrap();
        gradients.get(&pixels).unwrap().clone()
    };
    assert!(difference(&of(Trainable::Frozen), &of(Trainable::All)) < 1e-4);
}

#[test]
fn a_wrong_image_is_refused() {
    let initial = Initial { seed: 3, device: Device::Cpu };
    let mut weights = Weights::random(initial, Trainable::Frozen);
    let trunk = Trunk::load(&mut weights, "", Variant::Modified, &config()).unwrap();
    for shape in [[1, 3, 32, 64], [1, 1, 64, 64]] {
        assert!(trunk.forward(&Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap(), None).is_err());
    }
}

/// A small ResNet-18 of MedMNIST's, of images or volumes.
fn medmnist(slices: Option<usize>) -> PlainResNetConfig {
    let form = Form { slices, ..PlainResNetConfig::medmnist().form };
    PlainResNetConfig { width: 2, blocks: [1, 2, 1, 1], image: 12, form }
}

fn fresh(config: &PlainResNetConfig, trainable: Trainable) -> ResNet {
    let initial = Initial { seed: 3, device: Device::Cpu };
    ResNet::from_weights(config.clone(), Weights::random(initial, trainable)).unwrap()
}

fn inputs(model: &ResNet, batch: usize) -> Tensor {
    // The same in every run: near a kink of an activation differences are not gradients.
    let shape = model.geometry().input(batch);
    let count = shape.iter().product::<usize>() as u64;
    let key = crate::random::Key::derive("test", 7, &[]);
    let values: Vec<f32> = (0..count).map(|place| 0.5 * key.normal(place) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// In double precision, where differences are exact enough: every parameter along a random direction.
#[test]
fn gradients_through_batches_are_those_of_differences() {
    for slices in [None, Some(6)] {
        let config = medmnist(slices);
        let initial = Initial { seed: 3, device: Device::Cpu };
        let weights = Weights::random(initial, Trainable::All).doubled();
        let model = ResNet::from_weights(config, weights).unwrap();
        let pixels = inputs(&model, 3).to_dtype(DType::F64).unwrap();
        let loss = || {
            let map = model.trunk().forward(&pixels, Some(&BatchStatistics)).unwrap();
            let weights = Tensor::arange(0u32, map.elem_count() as u32, &Device::Cpu).unwrap();
            let weights = weights.to_dtype(DType::F64).unwrap().sin().unwrap().reshape(map.shape()).unwrap();
            (map * weights).unwrap().sum_all().unwrap()
        };
        let gradients = loss().backward().unwrap();
        for (name, variable) in model.variables() {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} has a gradient"));
            let key = crate::random::Key::derive("test", 5, &[name.as_str().into()]);
            let direction: Vec<f64> = (1..=variable.elem_count() as u64).map(|n| key.normal(n)).collect();
            let direction = Tensor::from_vec(direction, variable.shape(), &Device::Cpu).unwrap();
            let start = variable.as_detached_tensor().copy().unwrap();
            let h = 1e-7;
            let at = |sign: f64| {
                let moved = (&start + (&direction * (sign * h)).unwrap()).unwrap();
                variable.set(&moved).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let numeric = (at(1.0) - at(-1.0)) / (2.0 * h);
            variable.set(&start).unwrap();
            let analytic = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let error = (numeric - analytic).abs() / numeric.abs().max(1.0);
            assert!(error < 1e-4, "{slices:?} {name}: {analytic}, {numeric} by differences");
        }
    }
}

#[test]
fn a_training_pass_moves_running_statistics_and_no_other_pass_does() {
    for slices in [None, Some(12)] {
        let config = medmnist(slices);
        let model = fresh(&config, Trainable::All);
        let pixels = inputs(&model, 4);
        let statistics = || -> Vec<Vec<f32>> {
            model.parameters().buffers().values().map(|buffer| buffer.to_vec1().unwrap()).collect()
        };
        let before = statistics();
        assert!(!before.is_empty());
        let stored = model.embed_images(&pixels, None).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(statistics(), before);
        let of_batch = model.embed_images(&pixels, Some(&BatchStatistics)).unwrap().to_vec2::<f32>().unwrap();
        assert_ne!(of_batch, stored);
        let after = statistics();
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        // They are saved, and a network of them is the one that was trained.
        let tensors = model.tensors().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap()));
        let again = ResNet::from_tensors(config, tensors.collect(), Trainable::Frozen).unwrap();
        let evaluated = model.embed_images(&pixels, None).unwrap();
        assert!(difference(&again.embed_images(&pixels, None).unwrap(), &evaluated) < 1e-5);
        // Frozen norms keep theirs.
        again.embed_images(&pixels, Some(&BatchStatistics)).unwrap();
        assert!(difference(&again.embed_images(&pixels, None).unwrap(), &evaluated) < 1e-5);
    }
}

/// Layers of volumes too are seen one by one, and where they lie.
#[test]
fn small_networks_are_their_layers_one_by_one() {
    for slices in [None, Some(20)] {
        let config = PlainResNetConfig { image: 20, ..medmnist(slices) };
        let model = fresh(&config, Trainable::Frozen);
        let pixels = inputs(&model, 2);
        let probe = Layers::default();
        let single = model.embed_images(&pixels, Some(&probe)).unwrap();
        let folded = model.embed_images(&pixels, None).unwrap();
        assert!(difference(&single, &folded) < 1e-5, "{}", difference(&single, &folded));
        // A map of 20 pixels has three cells along each side: 8, 8 and 4.
        let geometry = model.geometry();
        assert_eq!((geometry.grid(), geometry.steps()), ([3, 3], slices.map_or(1, |_| 3)));
        let features = model.features(&pixels, None).unwrap();
        assert_eq!(features.dims(), [2, geometry.cells(), 16]);
        assert!(difference(&features.mean(1).unwrap(), &folded) < 1e-5);
    }
}

#[test]
fn weights_begin_as_in_pytorch() {
    let deviation = |tensor: &Tensor| {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let greatest = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
        (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt()
            / greatest.max(1e-9)
    };
    let scale =
        |tensor: &Tensor| tensor.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let medmnist = PlainResNetConfig { width: 16, ..PlainResNetConfig::medmnist() };
    for (config, places) in [
        (medmnist.clone(), 9.0f32),
        (PlainResNetConfig { width: 8, ..PlainResNetConfig::medmnist_3d() }, 27.0),
    ] {
        let inputs = (config.width * 4) as f32 * places;
        let weight = &fresh(&config, Trainable::Frozen).tensors()["layer3.0.conv2.weight"];
        // Uniform up to one over the root of the inputs: the deviation is that over the root of three.
        assert!((scale(weight) * (3.0 * inputs).sqrt() - 1.0).abs() < 0.03, "{}", scale(weight));
        assert!((deviation(weight) * 3f32.sqrt() - 1.0).abs() < 0.03);
    }
    let torchvision = PlainResNetConfig { width: 16, ..PlainResNetConfig::resnet18() };
    let weight = &fresh(&torchvision, Trainable::Frozen).tensors()["layer3.0.conv1.weight"];
    // Normal, by the outputs: 64 of 3 x 3.
    assert!((scale(weight) / (2.0f32 / (64.0 * 9.0)).sqrt() - 1.0).abs() < 0.03, "{}", scale(weight));
    assert!(deviation(weight) < 0.35);
}

#[test]
fn forms_that_make_no_sense_are_refused() {
    let good = PlainResNetConfig::medmnist_3d();
    assert!(good.check().is_ok());
    let wide = Form { stem: StemForm::Wide, ..good.form };
    for (wrong, named) in [
        (PlainResNetConfig { form: wide, ..good.clone() }, "form.slices"),
        (PlainResNetConfig { form: Form { channels: 3, ..good.form }, ..good.clone() }, "form.slices"),
        (
            PlainResNetConfig { form: Form { channels: 2, slices: None, ..good.form }, ..good.clone() },
            "channels",
        ),
        (PlainResNetConfig { image: 70, ..good.clone() }, "72 does"),
        (PlainResNetConfig { image: 0, ..good.clone() }, "image"),
        (PlainResNetConfig { form: Form { slices: Some(0), ..good.form }, ..good.clone() }, "form.slices"),
    ] {
        let message = wrong.check().unwrap_err().to_string();
        assert!(message.contains(named), "{message}");
    }
}
