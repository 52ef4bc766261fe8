//! Adamax (Kingma and Ba 2015), in the order of operations of PyTorch's.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Var};

use super::slots::{Changed, Group, Moments, Piece, Slots, Treatment, Whole};

/// The constants of Adamax.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamaxOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the greatest gradient.
    pub beta2: f64,
    /// Added to every gradient's absolute value.
    pub epsilon: f64,
}

impl Default for AdamaxOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// The optimiser: parameters by name, in name order. There is no weight decay.
#[derive(Debug)]
pub struct Adamax {
    options: AdamaxOptions,
    slots: Slots,
}

impl Adamax {
    /// An optimiser of `variables`; `group` decides how each is treated.
    pub fn new(
        variables: &BTreeMap<String, Var>,
        options: AdamaxOptions,
        group: impl Fn(&str, &Var) -> Group,
    ) -> Self {
        Self { options, slots: Slots::new(variables, group) }
    }

    /// The state beside the parameters' values: with it and the values, [`Self::restore`] goes on as if nothing
    /// had happened.
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

    /// One rate for all parameters.
    pub fn alike(_name: &str, _variable: &Var) -> Group {
        Group { rate: 1.0, decay: false }
    }

    /// One step at learning rate `rate`, gradients multiplied by `factor` first. Parameters without a
    /// gradient stay as they are.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn step(&mut self, gradients: &GradStore, rate: f64, factor: f64) -> Result<()> {
        let AdamaxOptions { beta1, beta2, epsilon } = self.options;
        let factor = factor as f32;
        let step_size =
            |treatment: &Treatment| rate * treatment.group.rate / (1.0 - beta1.powi(treatment.steps));
        let on_host = |treatment: &Treatment, piece: Piece<'_>| {
            let Piece { values, gradient, first, second } = piece;
            let step_size = step_size(treatment) as f32;
            let (beta1, beta2, epsilon) = (beta1 as f32, beta2 as f32, epsilon as f32);
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
                let gradient = gradient * factor;
                *first += (gradient - *first) * (1.0 - beta1);
                *second = (*second * beta2).max(gradient.abs() + epsilon);
                *value -= step_size * (*first / *second);
            }
        };
        let on_gpu = |treatment: &Treatment, whole: &Whole<'_>| {
            let gradient = (whole.gradient * f64::from(factor))?;
            let first = (((&gradient - whole.first)? * (1.0 - beta1))? + whole.first)?;
            let second = (whole.second * beta2)?.maximum(&(gradient.abs()? + epsilon)?)?;
            let step = ((&first / &second)? * step_size(treatment))?;
            Ok(Changed { values: (whole.values - step)?, first, second })
        };
        self.slots.change(gradients, on_host, on_gpu)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn every_step_is_at_most_the_rate_and_a_state_goes_on() {
        let start = Tensor::new(&[1.0f32, -2.0, 0.5], &Device::Cpu).unwrap();
        let variables = BTreeMap::from([("x".to_owned(), Var::from_tensor(&start).unwrap())]);
        let mut optimiser = Adamax::new(&variables, AdamaxOptions::default(), Adamax::alike);
        let step = |optimiser: &mut Adamax| {
            let loss = variables["x"].sqr().unwrap().sum_all().unwrap();
            optimiser.step(&loss.backward().unwrap(), 0.1, 1.0).unwrap();
            variables["x"].to_vec1::<f32>().unwrap()
        };
        // The first step is the rate against the sign of the gradient, whatever its size.
        let first = step(&mut optimiser);
        for (value, expected) in first.iter().zip([0.9, -1.9, 0.4]) {
            assert!((value - expected).abs() < 1e-6, "{first:?}");
        }
        let (kept, state) = (variables["x"].copy().unwrap(), optimiser.state().unwrap());
        let second = step(&mut optimiser);
        variables["x"].set(&kept).unwrap();
        let mut restored = Adamax::new(&variables, AdamaxOptions::default(), Adamax::alike);
        assert!(restored.restore(state) && !restored.restore(BTreeMap::new()));
        assert_eq!(step(&mut restored), second);
    }
}
