//! AdamW (Loshchilov and Hutter 2019), in the order of operations of PyTorch's.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Var};

use super::slots::{Group, Moments, Piece, Slots, Treatment};

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

/// The optimiser: parameters by name, in name order.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    slots: Slots,
}

impl AdamW {
    /// An optimiser of `variables`; `group` decides how each is treated.
    pub fn new(
        variables: &BTreeMap<String, Var>,
        options: AdamWOptions,
        group: impl Fn(&str, &Var) -> Group,
    ) -> Self {
        Self { options, slots: Slots::new(variables, group) }
    }

    /// The state beside the parameters' values: both moments of each parameter, and in how many steps it had
    /// a gradient. With it and the values, [`Self::restore`] goes on as if nothing had happened.
    pub fn state(&self) -> BTreeMap<String, Moments> {
        self.slots.state()
    }

    /// Takes a state of an optimiser of the same parameters; whether it was one.
    #[must_use]
    pub fn restore(&mut self, state: BTreeMap<String, Moments>) -> bool {
        self.slots.restore(state)
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
        let factor = factor as f32;
        self.slots.change(gradients, |Treatment { group, steps }, piece| {
            let Piece { values, gradient, first, second } = piece;
            let rate = rate * group.rate;
            let decay = if group.decay { 1.0 - rate * weight_decay } else { 1.0 };
            let step_size = rate / (1.0 - beta1.powi(*steps));
            let root_correction = (1.0 - beta2.powi(*steps)).sqrt();
            let (beta1, beta2) = (beta1 as f32, beta2 as f32);
            let (decay, step_size) = (decay as f32, step_size as f32);
            let (root_correction, epsilon) = (root_correction as f32, epsilon as f32);
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
                let gradient = gradient * factor;
                *first += (gradient - *first) * (1.0 - beta1);
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                let denominator = second.sqrt() / root_correction + epsilon;
                *value = *value * decay - step_size * *first / denominator;
            }
        })
    }
}
