//! Random weights for any architecture, told by the names of its tensors.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::random::Key;

/// Draws tensors by name: a pure function of the seed and the name.
#[derive(Clone, Debug)]
pub(crate) struct Initial {
    pub(crate) seed: u64,
    pub(crate) device: Device,
}

/// How a parameter begins, where its module says so.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Start {
    /// One value everywhere.
    Constant(f32),
    /// Uniform from minus this to this.
    Uniform(f64),
    /// Normal with this deviation.
    Normal(f64),
    /// A table of rows, normal with this deviation, but for one row of zeros.
    Table { deviation: f64, zero: usize },
}

impl Start {
    /// PyTorch's for weights and biases of linear layers and convolutions: uniform up to one over the root of
    /// the number of inputs.
    pub(crate) fn of_inputs(inputs: usize) -> Self {
        Self::Uniform((inputs.max(1) as f64).powf(-0.5))
    }

    /// Glorot and Bengio's 2010, uniform.
    pub(crate) fn xavier(inputs: usize, outputs: usize) -> Self {
        Self::Uniform((6.0 / (inputs + outputs).max(1) as f64).sqrt())
    }
}

/// A random tensor for the parameter `name` of any architecture, a pure function of the seed, the name and the
/// shape: one tensor of what [`crate::ModelConfig::random`] draws, CLIP's own initialisation aside.
///
/// # Errors
/// Whatever the device reports.
pub fn random_parameter(name: &str, shape: &[usize], seed: u64, device: &Device) -> Result<Tensor> {
    Initial { seed, device: device.clone() }.draw(name, shape)
}

/// Deviation of embedding tables, positions and learned tokens.
const EMBEDDING: f64 = 0.02;

impl Initial {
    /// Norms begin as the identity, biases as zero, tables with a deviation of 0.02, and matrices with one
    /// over the root of their inputs, so that values keep their size from layer to layer.
    pub(crate) fn draw(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let last = name.rsplit('.').next().unwrap_or_default();
        let constant =
            |value: f32| Tensor::from_vec(vec![value; shape.iter().product()], shape, &self.device);
        match (last, shape) {
            // The inverse of a temperature of 0.07, as CLIP begins, and 1, as CT-CLIP does.
            ("logit_scale", _) => constant(1.0f32 / 0.07).and_then(|scale| scale.log()),
            ("temperature", _) => constant(1.0),
            ("bias" | "in_proj_bias" | "beta" | "running_mean", _) => constant(0.0),
            ("weight" | "gamma" | "running_var" | "q_scale" | "k_scale", [_]) => constant(1.0),
            _ if shape.len() < 2 || is_table(name) => self.normal(name, shape, EMBEDDING),
            // `[in, out]`, and `[out, in, ...]`.
            ("proj" | "text_projection" | "mlm_projection", [inputs, _]) => {
                self.normal(name, shape, (*inputs as f64).powf(-0.5))
            }
            _ => {
                let inputs: usize = shape[1..].iter().product();
                self.normal(name, shape, (inputs.max(1) as f64).powf(-0.5))
            }
        }
    }

    /// A tensor that begins as `start` says: a pure function of the seed and the name.
    pub(crate) fn start(&self, name: &str, shape: &[usize], start: Start) -> Result<Tensor> {
        match start {
            Start::Constant(value) => {
                Tensor::from_vec(vec![value; shape.iter().product()], shape, &self.device)
            }
            Start::Normal(deviation) => self.normal(name, shape, deviation),
            Start::Table { deviation, zero } => {
                let table = self.normal(name, shape, deviation)?;
                let kept: Vec<f32> = (0..shape[0]).map(|row| if row == zero { 0.0 } else { 1.0 }).collect();
                table.broadcast_mul(&Tensor::from_vec(kept, (shape[0], 1), &self.device)?)
            }
            Start::Uniform(bound) => {
                let key = Key::derive("pipe initial weights/3", self.seed, &[name.into()]);
                let count = shape.iter().product::<usize>() as u64;
                let draw = |counter| ((key.uniform(counter) * 2.0 - 1.0) * bound) as f32;
                let values: Vec<f32> = (1..=count).into_par_iter().map(draw).collect();
                Tensor::from_vec(values, shape, &self.device)
            }
        }
    }

    fn normal(&self, name: &str, shape: &[usize], deviation: f64) -> Result<Tensor> {
        let key = Key::derive("pipe initial weights/2", self.seed, &[name.into()]);
        let count = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> =
            (1..=count).into_par_iter().map(|counter| (key.normal(counter) * deviation) as f32).collect();
        Tensor::from_vec(values, shape, &self.device)
    }
}

/// Whether the rows of a tensor are looked up or added, not multiplied.
fn is_table(name: &str) -> bool {
    let part = |part: &str| name.contains(part);
    part("embedding") || part("pos_embed") || part("token") || part("_codebook")
}
