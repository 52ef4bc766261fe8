//! AdamW (Loshchilov and Hutter 2019), in the order of operations of PyTorch's.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// The constants of AdamW.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, times the learning rate, of groups that decay.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

/// How a parameter is treated.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Group {
    /// Factor on the learning rate.
    pub rate: f64,
    /// Whether weight decay applies.
    pub decay: bool,
}

/// What the optimiser remembers of one parameter, its elements in row-major order.
#[derive(Clone, PartialEq, Debug)]
pub struct Moments {
    /// The first moment.
    pub first: Vec<f32>,
    /// The second moment.
    pub second: Vec<f32>,
    /// Steps in which the parameter had a gradient.
    pub steps: i32,
}

/// The optimiser's state of one parameter.
#[derive(Debug)]
struct Slot {
    variable: Var,
    group: Group,
    first: Vec<f32>,
    second: Vec<f32>,
    /// Steps in which this parameter had a gradient.
    steps: i32,
}

/// The optimiser: parameters by name, in name order.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    slots: BTreeMap<String, Slot>,
}

impl AdamW {
    /// An optimiser of `variables`; `group` decides how each is treated.
    pub fn new(
        variables: &BTreeMap<String, Var>,
        options: AdamWOptions,
        group: impl Fn(&str, &Var) -> Group,
    ) -> Self {
        let slots = variables
            .iter()
            .map(|(name, variable)| {
                let count = variable.elem_count();
                let slot = Slot {
                    variable: variable.clone(),
                    group: group(name, variable),
                    first: vec![0.0; count],
                    second: vec![0.0; count],
                    steps: 0,
                };
                (name.clone(), slot)
            })
            .collect();
        Self { options, slots }
    }

    /// The state beside the parameters' values: both moments of each parameter, and in how many steps it had
    /// a gradient. With it and the values, [`Self::restore`] goes on as if nothing had happened.
    pub fn state(&self) -> BTreeMap<String, Moments> {
        let slots = self.slots.iter();
        slots
            .map(|(name, slot)| {
                let moments =
                    Moments { first: slot.first.clone(), second: slot.second.clone(), steps: slot.steps };
                (name.clone(), moments)
            })
            .collect()
    }

    /// Takes a state of an optimiser of the same parameters; whether it was one.
    #[must_use]
    pub fn restore(&mut self, mut state: BTreeMap<String, Moments>) -> bool {
        let fits = |(name, slot): (&String, &Slot)| {
            let count = slot.first.len();
            let moments = state.get(name);
            moments.is_some_and(|moments| moments.first.len() == count && moments.second.len() == count)
        };
        if state.len() != self.slots.len() || !self.slots.iter().all(fits) {
            return false;
        }
        for (name, slot) in &mut self.slots {
            if let Some(Moments { first, second, steps }) = state.remove(name) {
                (slot.first, slot.second, slot.steps) = (first, second, steps);
            }
        }
        true
    }

    /// Decay on matrices only, one rate for all: parameters with fewer than two axes (biases, norms,
    /// the logit scale) are left alone.
    pub fn matrices_decay(_name: &str, variable: &Var) -> Group {
        Group { rate: 1.0, decay: variable.rank() >= 2 }
    }

    /// One step at learning rate `rate`, gradients multiplied by `factor` first. Parameters without a
    /// gradient stay as they are.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn step(&mut self, gradients: &GradStore, rate: f64, factor: f64) -> Result<()> {
        let AdamWOptions { beta1, beta2, epsilon, weight_decay } = self.options;
        for slot in self.slots.values_mut() {
            let Some(gradient) = gradients.get(&slot.variable) else { continue };
            slot.steps += 1;
            let rate = rate * slot.group.rate;
            let decay = if slot.group.decay { 1.0 - rate * weight_decay } else { 1.0 };
            let step_size = rate / (1.0 - beta1.powi(slot.steps));
            let root_correction = (1.0 - beta2.powi(slot.steps)).sqrt();
            let mut values = slot.variable.flatten_all()?.to_vec1::<f32>()?;
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            let (beta1, beta2, factor) = (beta1 as f32, beta2 as f32, factor as f32);
            let (decay, step_size) = (decay as f32, step_size as f32);
            let (root_correction, epsilon) = (root_correction as f32, epsilon as f32);
            let moments = slot.first.iter_mut().zip(slot.second.iter_mut());
            for ((value, gradient), (first, second)) in values.iter_mut().zip(&gradient).zip(moments) {
                let gradient = gradient * factor;
                *first += (gradient - *first) * (1.0 - beta1);
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                let denominator = second.sqrt() / root_correction + epsilon;
                *value = *value * decay - step_size * *first / denominator;
            }
            slot.variable.set(&Tensor::from_vec(values, slot.variable.shape(), slot.variable.device())?)?;
        }
        Ok(())
    }
}

/// The L2 norm over the gradients of all `variables`, in f64 and name order, and the factor (at most 1)
/// that brings it down to `limit`.
///
/// # Errors
/// Whatever the device reports.
pub fn clip_gradient_norm(
    variables: &BTreeMap<String, Var>,
    gradients: &GradStore,
    limit: f64,
) -> Result<(f64, f64)> {
    let mut sum = 0.0f64;
    for variable in variables.values() {
        if let Some(gradient) = gradients.get(variable) {
            for value in gradient.flatten_all()?.to_vec1::<f32>()? {
                sum += f64::from(value) * f64::from(value);
            }
        }
    }
    let norm = sum.sqrt();
    // PyTorch adds 1e-6 to the norm.
    Ok((norm, (limit / (norm + 1e-6)).min(1.0)))
}
