//! AdamW (Loshchilov and Hutter 2019), in the order of operations of PyTorch's.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Var};

use super::slots::{Changed, Group, Moments, Piece, Slots, Treatment, Whole};

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
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn state(&self) -> Result<BTreeMap<String, Moments>> {
        self.slots.state()
    }

    /// The names of the parameters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.names()
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
        let steps = |Treatment { group, steps }: &Treatment| {
            let rate = rate * group.rate;
            Steps {
                decay: if group.decay { 1.0 - rate * weight_decay } else { 1.0 },
                step_size: rate / (1.0 - beta1.powi(*steps)),
                root_correction: (1.0 - beta2.powi(*steps)).sqrt(),
            }
        };
        let on_host = |treatment: &Treatment, piece: Piece<'_>| {
            let Piece { values, gradient, first, second } = piece;
            let Steps { decay, step_size, root_correction } = steps(treatment);
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
        };
        let on_gpu = |treatment: &Treatment, whole: &Whole<'_>| {
            let Steps { decay, step_size, root_correction } = steps(treatment);
            let gradient = (whole.gradient * f64::from(factor))?;
            let first = (((&gradient - whole.first)? * (1.0 - beta1))? + whole.first)?;
            let second = ((whole.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let denominator = second.sqrt()?.affine(1.0 / root_correction, epsilon)?;
            let step = ((&first / &denominator)? * step_size)?;
            Ok(Changed { values: ((whole.values * decay)? - step)?, first, second })
        };
        self.slots.change(gradients, on_host, on_gpu)
    }
}

/// What one step does to a parameter.
struct Steps {
    /// Factor on its values.
    decay: f64,
    step_size: f64,
    /// What the root of the second moment is divided by.
    root_correction: f64,
}
