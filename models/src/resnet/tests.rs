//! Both networks against a slow twin: the same layers with candle's own convolution, in NCHW.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::trunk::{Trunk, Variant};
use super::{ResNet, ResNetConfig};
use crate::initial::Initial;
use crate::weights::{Trainable, Weights};
use crate::{FoundationModel, ImageTower, Layer, Probe};

/// Blocks with and without a shortcut's convolution, in every layer.
fn config() -> ResNetConfig {
    ResNetConfig { width: 8, blocks: [2, 1, 2, 2], image: 64 }
}

/// Random parameters and statistics: those of a fresh network would hide a swapped mean or variance.
fn tensors() -> BTreeMap<String, Tensor> {
    let initial = Initial { seed: 3, device: Device::Cpu };
    let fresh = ResNet::from_weights(config(), Weights::random(initial, Trainable::Frozen)).unwrap();
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
        let model = ResNet::from_tensors(config(), tensors(), trainable).unwrap();
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
    let model = ResNet::from_tensors(config(), tensors(), Trainable::Frozen).unwrap();
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
    let model = ResNet::from_tensors(config(), tensors(), Trainable::All).unwrap();
    let gradients = model.embed_images(&pixels(), None).unwrap().sqr().unwrap().sum_all().unwrap();
    let gradients = gradients.backward().unwrap();
    for (name, variable) in model.variables() {
        assert!(gradients.get(variable).is_some(), "{name}");
        assert!(!name.contains("running"), "statistics are not trained");
    }
    // The gradient of the pixels, by both ways of computing it.
    let pixels = Var::from_tensor(&pixels()).unwrap();
    let of = |trainable| {
        let model = ResNet::from_tensors(config(), tensors(), trainable).unwrap();
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
