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

    fn state(&self) -> candle_core::Result<BTreeMap<String, Moments>> {
        match self {
            Self::AdamW(rule) => rule.state(),
            Self::Adamax(rule) => rule.state(),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::AdamW(rule) => rule.names().map(str::to_owned).collect(),
            Self::Adamax(rule) => rule.names().map(str::to_owned).collect(),
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
    pub(super) fn and(mut self, rule: impl Into<Self>, share: f64) -> Self {
        self.rules.extend(rule.into().rules.into_iter().map(|(rule, own)| (rule, own * share)));
        self
    }

    /// One step at learning rate `rate`, gradients multiplied by `factor` first.
    pub(super) fn step(&mut self, gradients: &GradStore, rate: f64, factor: f64) -> candle_core::Result<()> {
        self.rules.iter_mut().try_for_each(|(rule, share)| rule.step(gradients, rate * *share, factor))
    }

    /// The state beside the values of the parameters.
    pub(super) fn state(&self) -> candle_core::Result<BTreeMap<String, Moments>> {
        let mut all = BTreeMap::new();
        for (rule, _) in &self.rules {
            all.append(&mut rule.state()?);
        }
        Ok(all)
    }

    /// Takes a state of an update of the same parameters; whether it was one.
    pub(super) fn restore(&mut self, mut state: BTreeMap<String, Moments>) -> bool {
        for (rule, _) in &mut self.rules {
            let own = rule.names().iter().filter_map(|name| state.remove_entry(name)).collect();
            if !rule.restore(own) {
                return false;
            }
        }
        state.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};
    use pipe_models::train::{AdamWOptions, AdamaxOptions};

    use super::*;

    /// The first step of either rule is its rate against the sign of the gradient.
    #[test]
    fn each_rule_changes_its_own_at_its_share() {
        let variable = |name: &str| {
            let value = Tensor::new(&[1.0f32, -1.0], &Device::Cpu).unwrap();
            BTreeMap::from([(name.to_owned(), Var::from_tensor(&value).unwrap())])
        };
        for adamax in [false, true] {
            let (head, tower) = (variable("head"), variable("tower"));
            let plain = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
            let update = Update::from(Adamax::new(&head, AdamaxOptions::default(), Adamax::alike));
            let mut update = match adamax {
                true => update.and(Adamax::new(&tower, AdamaxOptions::default(), Adamax::alike), 0.1),
                false => update.and(AdamW::new(&tower, plain, AdamW::matrices_decay), 0.1),
            };
            let loss = (head["head"].sqr().unwrap() + tower["tower"].sqr().unwrap()).unwrap();
            update.step(&loss.sum_all().unwrap().backward().unwrap(), 0.5, 1.0).unwrap();
            for (variable, expected) in [(&head["head"], 0.5f32), (&tower["tower"], 0.95)] {
                let values = variable.to_vec1::<f32>().unwrap();
                let error = (values[0] - expected).abs().max((values[1] + expected).abs());
                assert!(error < 1e-5, "{values:?}");
            }
            let state = update.state().unwrap();
            assert!(state.keys().eq(["head", "tower"]));
            assert!(update.restore(state));
        }
    }
}
