//! Scores with known answers, for tests.

use candle_core::{Device, Result, Tensor};
use pipe_models::ops::{self, RunningStatistics, Window};
use pipe_models::random::Key;
use pipe_models::{Activation, Layer, MaybeProbe};

use crate::Score;

/// Values of a standard normal distribution.
pub(crate) fn normal(key: u64, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (1..=count).map(|draw| Key(key).normal(draw as u64) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("the shape has as many values")
}

pub(crate) fn host(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("a f32 tensor")
}

/// The rows of `tensor` in another order.
pub(crate) fn permuted(tensor: &Tensor, order: &[usize]) -> Tensor {
    let order: Vec<u32> = order.iter().map(|row| *row as u32).collect();
    let order = Tensor::from_vec(order.clone(), order.len(), &Device::Cpu).expect("one axis");
    tensor.index_select(&order, 0).expect("rows inside")
}

#[track_caller]
pub(crate) fn assert_close(ours: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(ours.dims(), expected.dims());
    let (ours, expected) = (host(ours), host(expected));
    let scale = expected.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
    for (ours, expected) in ours.iter().zip(&expected) {
        assert!((ours - expected).abs() <= tolerance * scale, "{ours} {expected} of {scale}");
    }
}

/// The product with a weight per value.
pub(crate) struct Linear {
    pub(crate) weight: Vec<f32>,
}

impl Linear {
    pub(crate) fn new(key: u64, shape: &[usize]) -> Self {
        Self { weight: host(&normal(key, shape)) }
    }
}

impl Score for Linear {
    fn score(&self, input: &Tensor, _samples: &[usize], _probe: MaybeProbe<'_>) -> Result<Tensor> {
        let weight = Tensor::from_slice(&self.weight, self.weight.len(), input.device())?;
        input.flatten_from(1)?.broadcast_mul(&weight)?.sum(1)
    }
}

/// convolution - batch norm - ReLU - (max pooling) - convolution - ReLU - mean - classifier of images
/// `[batch, 3, rows, columns]`, for probes that look at layers; sample i is scored by class i modulo 4.
pub(crate) struct Convolutional {
    layers: Vec<(&'static str, Layer)>,
}

impl Convolutional {
    pub(crate) fn new(key: u64, pools: bool) -> Self {
        let window = Window { stride: 1, padding: 1 };
        let scaled =
            |key, shape: &[usize], scale: f64| (normal(key, shape) * scale).expect("a scaled tensor");
        let convolution = |key: u64, channels: [usize; 2]| Layer::Convolution {
            kernel: scaled(key, &[channels[1], 3, 3, channels[0]], 0.3),
            bias: Some(scaled(key + 1, &[channels[1]], 0.3)),
            window,
        };
        let norm = Layer::BatchNorm {
            gamma: normal(key + 2, &[6]),
            beta: scaled(key + 3, &[6], 0.3),
            statistics: RunningStatistics {
                mean: scaled(key + 4, &[6], 0.3),
                variance: (normal(key + 5, &[6]).sqr().expect("squares") + 0.5).expect("a sum"),
                epsilon: 1e-5,
            },
        };
        let mut layers = vec![("conv1", convolution(key + 6, [3, 6])), ("bn1", norm)];
        if pools {
            layers.push(("pool1", Layer::MaxPool { side: 2, window: Window { stride: 2, padding: 0 } }));
        }
        layers.push(("conv2", convolution(key + 8, [6, 5])));
        layers.push(("mean", Layer::GlobalMean));
        layers.push((
            "fc",
            Layer::Linear { weight: normal(key + 10, &[4, 5]), bias: Some(normal(key + 11, &[4])) },
        ));
        Self { layers }
    }

    /// One whose kernels are their own mirror images, from left to right.
    pub(crate) fn symmetric(key: u64) -> Self {
        let mut network = Self::new(key, false);
        for (_, layer) in &mut network.layers {
            if let Layer::Convolution { kernel, .. } = layer {
                let column = |column: usize| kernel.narrow(2, column, 1).expect("three columns");
                let mirrored = Tensor::cat(&[column(2), column(1), column(0)], 2).expect("columns");
                *kernel = ((&*kernel + mirrored).expect("one shape") * 0.5).expect("a mean");
            }
        }
        network
    }
}

impl Score for Convolutional {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let mut x = input.permute((0, 2, 3, 1))?.contiguous()?;
        for (name, layer) in &self.layers {
            x = layer.apply(&x, name, probe)?;
            let rectifier = match *name {
                "bn1" => "relu1",
                "conv2" => "relu2",
                _ => continue,
            };
            let replaced = match probe {
                Some(probe) => probe.nonlinearity(rectifier, Activation::Relu, &x)?,
                None => None,
            };
            x = match replaced {
                Some(x) => x,
                None => x.relu()?,
            };
            if let Some(probe) = probe {
                let map = probe.activation(rectifier, x.permute((0, 3, 1, 2))?.contiguous()?)?;
                x = map.permute((0, 2, 3, 1))?.contiguous()?;
            }
        }
        pick(&x, samples)
    }
}

/// Entry i modulo 4 of the row of sample i.
fn pick(outputs: &Tensor, samples: &[usize]) -> Result<Tensor> {
    let targets: Vec<u32> = samples.iter().map(|sample| (sample % 4) as u32).collect();
    let targets = Tensor::from_vec(targets, (samples.len(), 1), outputs.device())?;
    outputs.gather(&targets, 1)?.squeeze(1)
}

/// Two smooth layers with four outputs; sample i is scored by output i modulo 4.
pub(crate) struct Smooth {
    first: Tensor,
    second: Tensor,
}

impl Smooth {
    pub(crate) fn new(key: u64, shape: &[usize]) -> Self {
        let width: usize = shape.iter().product();
        let scale = 1.0 / (width as f64).sqrt();
        let first = (normal(key, &[8, width]) * scale).expect("a scaled tensor");
        Self { first, second: normal(key + 1, &[4, 8]) }
    }
}

impl Score for Smooth {
    fn score(&self, input: &Tensor, samples: &[usize], _probe: MaybeProbe<'_>) -> Result<Tensor> {
        let hidden = ops::linear(&input.flatten_from(1)?, &self.first, None)?.tanh()?;
        pick(&ops::linear(&hidden, &self.second, None)?, samples)
    }
}
