//! Guided backpropagation (Springenberg et al. 2015) and the deconvolutional network (Zeiler and Fergus
//! 2014): the gradient with another rule at every ReLU.

use std::cell::{Cell, RefCell};

use candle_core::{Result as TensorResult, Tensor};
use pipe_models::{Activation, Probe};

use crate::backward_rule::with_rule;
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// What passes a ReLU backward.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Positive gradients, where the ReLU's input was positive: guided backpropagation.
    Guided,
    /// Positive gradients: the deconvolutional network.
    Deconvolution,
}

/// The gradient of which only positive parts pass each ReLU. For networks whose only nonlinearity of this
/// kind is the ReLU: on others the rule says nothing, and the attribution is refused rather than given as
/// a plain gradient. Known to change little when a model's weights are randomised (Adebayo et al. 2018).
/// One forward and one backward pass per row.
#[derive(Clone, Copy, Debug)]
pub struct GuidedGradient {
    /// What passes.
    pub rule: Rule,
}

impl Method for GuidedGradient {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let gates = Gates { rule: self.rule, found: Cell::new(false), undefined: RefCell::new(None) };
        let mut scores = Vec::with_capacity(inputs.rows());
        let mut gradients = Vec::with_capacity(inputs.rows() * inputs.row_length());
        evaluator.gradients_probed(inputs, &gates, |score, gradient| {
            scores.push(score);
            gradients.extend_from_slice(gradient);
        })?;
        let name = match self.rule {
            Rule::Guided => "guided backpropagation",
            Rule::Deconvolution => "the deconvolutional network",
        };
        if let Some(reason) = gates.undefined.take() {
            return Err(AttributionError::NotApplicable(format!("{name} is not defined for {reason}")));
        }
        if !gates.found.get() {
            return Err(AttributionError::NotApplicable(format!(
                "{name} is not defined for a model without ReLU"
            )));
        }
        Ok(Attribution {
            values: inputs.tensor(gradients, inputs.row_shape())?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        Ok(Passes { forward: 1, backward: 1 })
    }
}

/// Puts the rule in the place of every ReLU.
struct Gates {
    rule: Rule,
    found: Cell<bool>,
    undefined: RefCell<Option<String>>,
}

impl Probe for Gates {
    fn nonlinearity(&self, name: &str, kind: Activation, input: &Tensor) -> TensorResult<Option<Tensor>> {
        match kind {
            Activation::Relu => {
                self.found.set(true);
                let rule = self.rule;
                let gate = move |input: &Tensor, _: &Tensor, gradient: &Tensor| {
                    let positive = gradient.relu()?;
                    match rule {
                        Rule::Guided => positive * input.gt(0f64)?.to_dtype(gradient.dtype())?,
                        Rule::Deconvolution => Ok(positive),
                    }
                };
                with_rule(input, &input.detach().relu()?, gate).map(Some)
            }
            Activation::Gelu | Activation::QuickGelu => {
                *self.undefined.borrow_mut() = Some(format!("the {kind:?} of `{name}`, which is no ReLU"));
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::Score;
    use crate::testing::{Linear, host, normal};

    /// `b . relu(a * x)` with weights a and b per value.
    struct Rectified {
        first: Tensor,
        second: Tensor,
        kind: Activation,
    }

    impl Score for Rectified {
        fn score(&self, x: &Tensor, _: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
            let x = x.broadcast_mul(&self.first)?;
            let replaced = match probe {
                Some(probe) => probe.nonlinearity("relu", self.kind, &x)?,
                None => None,
            };
            let y = match replaced {
                Some(y) => y,
                None => x.relu()?,
            };
            y.broadcast_mul(&self.second)?.sum(1)
        }
    }

    #[test]
    fn only_positive_gradients_pass() {
        let (first, second) = (normal(1, &[1, 40]), normal(2, &[1, 40]));
        let x = normal(3, &[2, 40]);
        let score = Rectified { first: first.clone(), second: second.clone(), kind: Activation::Relu };
        let inputs = Inputs::new(&x).unwrap();
        let evaluator = Evaluator::new(&score, 1);
        let of = |rule| host(&GuidedGradient { rule }.attribute(&evaluator, &inputs).unwrap().values);
        let (guided, deconvolution) = (of(Rule::Guided), of(Rule::Deconvolution));
        let (first, second, x) = (host(&first), host(&second), host(&x));
        for index in 0..x.len() {
            let (a, b) = (first[index % 40], second[index % 40]);
            let expected = a * b.max(0.0);
            assert_eq!(deconvolution[index], expected);
            assert_eq!(guided[index], if a * x[index] > 0.0 { expected } else { 0.0 });
        }
        assert_eq!(evaluator.passes(), Passes { forward: 4, backward: 4 });
    }

    #[test]
    fn models_without_relu_are_refused() {
        let one = || normal(1, &[1, 3]);
        let gelu = Rectified { first: one(), second: one(), kind: Activation::QuickGelu };
        let linear = Linear::new(1, &[3]);
        let scores: [&dyn Score; 2] = [&gelu, &linear];
        for score in scores {
            let inputs = Inputs::new(&normal(2, &[2, 3])).unwrap();
            let method = GuidedGradient { rule: Rule::Guided };
            let result = method.attribute(&Evaluator::new(score, 2), &inputs);
            assert!(matches!(result, Err(AttributionError::NotApplicable(_))));
        }
    }
}
