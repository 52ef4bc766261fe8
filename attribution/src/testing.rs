//! Scores with known answers, for tests.

use candle_core::{Device, Result, Tensor};
use pipe_models::random::Key;
use pipe_models::{MaybeProbe, ops};

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
        let outputs = ops::linear(&hidden, &self.second, None)?;
        let targets: Vec<u32> = samples.iter().map(|sample| (sample % 4) as u32).collect();
        let targets = Tensor::from_vec(targets, (samples.len(), 1), input.device())?;
        outputs.gather(&targets, 1)?.squeeze(1)
    }
}
