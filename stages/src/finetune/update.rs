//! How a training step changes parameters: by one rule, or by another for the encoder below a head.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use pipe_models::train::{AdamW, Adamax, Moments};

/// The rule of some parameters.
pub(super) enum Rule {
    AdamW(AdamW),
    Adamax(Adamax),
}

impl Rule {
    fn step(&mut self, gradients: &GradStore, rate: f64, factor: f64) -> candle_core::Result<()> {
        match self {
            Self::AdamW(rule) => rule.step(gradients, rate, factor),
            Self::Adamax(rule) => rule.step(gradients, rate, factor),
        }
    }

    fn state(&self) -> BTreeMap<String, Moments> {
        match self {
            Self::AdamW(rule) => rule.state(),
            Self::Adamax(rule) => rule.state(),
        }
    }

    fn restore(&mut self, state: BTreeMap<String, Moments>) -> bool {
        match self {
            Self::AdamW(rule) => rule.restore(state),
            Self::Adamax(rule) => rule.restore(state),
        }
    }
}

/// The rules of all parameters, each with its rate as a share of the step's.
pub(super) struct Update {
    rules: Vec<(Rule, f64)>,
}

impl From<AdamW> for Update {
    fn from(rule: AdamW) -> Self {
        Self { rules: vec![(Rule::AdamW(rule), 1.0)] }
    }
}

impl From<Adamax> for Update {
    fn from(rule: Adamax) -> Self {
        Self { rules: vec![(Rule::Adamax(rule), 1.0)] }
    }
}

impl Update {
    /// The same, and `rule` for parameters that it does not change, at `share` of the rate.
    pub(super) fn and(mut self, rule: AdamW, share: f64) -> Self {
        self.rules.push((Rule::AdamW(rule), share));
        self
    }

    /// One step at learning rate `rate`, gradients multiplied by `factor` first.
    pub(super) fn step(&mut self, gradients: &GradStore, rate: f64, factor: f64) -> candle_core::Result<()> {
        self.rules.iter_mut().try_for_each(|(rule, share)| rule.step(gradients, rate * *share, factor))
    }

    /// The state beside the values of the parameters.
    pub(super) fn state(&self) -> BTreeMap<String, Moments> {
        self.rules.iter().flat_map(|(rule, _)| rule.state()).collect()
    }

    /// Takes a state of an update of the same parameters; whether it was one.
    pub(super) fn restore(&mut self, mut state: BTreeMap<String, Moments>) -> bool {
        for (rule, _) in &mut self.rules {
            let own = rule.state().into_keys().filter_map(|name| state.remove_entry(&name)).collect();
            if !rule.restore(own) {
                return false;
            }
        }
        state.is_empty()
    }
}
