//! Excitation backpropagation (Zhang, Bargal, Lin, Brandt, Shen and Sclaroff 2018, "Top-Down Neural
//! Attention by Excitation Backprop"), with TorchRay's conventions.

use std::cell::{Cell, RefCell};

use candle_core::{Result as TensorResult, Tensor, Var};
use pipe_models::{Activation, Layer, Probe};

use crate::backward_rule::{ordinary, with_rule};
use crate::evaluator::{Evaluator, Passes, host};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// Keeps the sum of excitations from zero.
const LEAST_EXCITATION: f64 = 1e-20;

/// Where the probability of winning starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExcitationStart {
    /// At the score, a single output of this linear layer, the last one: the paper's definition.
    Classifier(String),
    /// At this activation, which is not negative, in proportion to the positive part of the score's
    /// gradient times it. Equal to the paper's start behind a global mean and a linear classifier, and
    /// defined for whatever else stands between the last convolution and the score (CLIP's attention
    /// pooling).
    Activation(String),
}

/// The probability that a neuron wins, top-down: each layer hands the probability of its outputs to its
/// inputs in proportion to what they contribute by positive weights, `P(a_j) = a_j sum_i W+_ij P(z_i) /
/// sum_k W+_ik a_k`. Biases are left out, rectifiers and max pooling pass what won, batch norm passes
/// everything, a residual sum divides in proportion to its addends. The map is the sum over channels.
///
/// With `contrast` the probability that the negated classifier gives is subtracted at that layer, and what
/// is negative in the end is cut off: evidence for the class and not for all others. For convolutional
/// networks with rectifiers. One forward and one backward pass per row, with a contrast two.
#[derive(Clone, Debug)]
pub struct ExcitationBackprop {
    /// The activation whose probabilities are shown, in front of the start: an inner layer, as those of
    /// signed inputs mean nothing.
    pub layer: String,
    /// Where it starts.
    pub start: ExcitationStart,
    /// The activation where the negated classifier's probability is subtracted, between the two.
    pub contrast: Option<String>,
}

impl ExcitationBackprop {
    /// The probabilities `[rows, channels, ...]` at the activation `at`, and the scores.
    fn probabilities(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
        at: &str,
        contrast: Option<(&str, &Tensor)>,
        is_negated: bool,
    ) -> Result<(Tensor, Vec<f32>)> {
        let probe = Winners {
            at,
            start: &self.start,
            contrast,
            is_negated,
            seen: RefCell::new(None),
            layers: Cell::new(0),
            is_above: Cell::new(false),
            undefined: RefCell::new(None),
        };
        let scores = evaluator.probed(inputs, inputs.values(), &probe)?;
        let undefined = probe.undefined.take().or_else(|| {
            let reason = "excitation backpropagation needs convolutional layers, and the model shows none";
            (probe.layers.get() == 0).then(|| reason.to_owned())
        });
        if let Some(reason) = undefined {
            return Err(AttributionError::NotApplicable(reason));
        }
        let Some(variable) = probe.seen.take() else {
            return Err(AttributionError::Settings(format!("the model has no activation `{at}`")));
        };
        if let (ExcitationStart::Activation(start), false) = (&self.start, probe.is_above.get()) {
            let reason = format!("the model has no activation `{start}` behind `{at}`");
            return Err(AttributionError::Settings(reason));
        }
        let probabilities = match evaluator.backward(&scores)?.remove(&variable) {
            Some(probabilities) => probabilities,
            None => variable.zeros_like()?,
        };
        Ok((probabilities, host(&scores)?))
    }
}

impl Method for ExcitationBackprop {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let (mut maps, mut shape, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for part in evaluator.parts(inputs)? {
            let negated = match &self.contrast {
                Some(layer) => Some((layer, self.probabilities(evaluator, &part, layer, None, true)?.0)),
                None => None,
            };
            let contrast = negated.as_ref().map(|(layer, negated)| (layer.as_str(), negated));
            let (probabilities, of_part) =
                self.probabilities(evaluator, &part, &self.layer, contrast, false)?;
            let map = probabilities.sum_keepdim(1)?;
            shape = map.dims()[1..].to_vec();
            let map = map.flatten_all()?.to_vec1::<f32>()?.into_iter();
            let is_contrastive = contrast.is_some();
            maps.extend(map.map(|value| if is_contrastive { value.max(0.0) } else { value }));
            scores.extend(of_part);
        }
        Ok(Attribution {
            values: inputs.tensor(maps, &shape)?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        let passes = if self.contrast.is_some() { 2 } else { 1 };
        Ok(Passes { forward: passes, backward: passes })
    }
}

/// Puts the rules in their places between the start and one activation, where the graph begins.
struct Winners<'a> {
    at: &'a str,
    start: &'a ExcitationStart,
    contrast: Option<(&'a str, &'a Tensor)>,
    is_negated: bool,
    seen: RefCell<Option<Var>>,
    layers: Cell<usize>,
    /// Whether the forward pass is past the start, where gradients are ordinary.
    is_above: Cell<bool>,
    undefined: RefCell<Option<String>>,
}

impl Winners<'_> {
    fn refuse(&self, reason: String) {
        self.undefined.borrow_mut().get_or_insert(reason);
    }
}

impl Probe for Winners<'_> {
    fn activation(&self, name: &str, value: Tensor) -> TensorResult<Tensor> {
        let mut value = value;
        if name == self.at {
            let variable = Var::from_tensor(&value.detach())?;
            value = variable.as_tensor().clone();
            *self.seen.borrow_mut() = Some(variable);
        }
        if let Some((layer, negated)) = self.contrast
            && name == layer
        {
            if self.seen.borrow().is_none() {
                self.refuse(format!("the contrast at `{name}` lies in front of `{}`", self.at));
            }
            let negated = negated.clone();
            value = with_rule(&value, &value.detach(), move |_, _, winning| winning - &negated)?;
        }
        if let ExcitationStart::Activation(start) = self.start
            && name == start
        {
            self.is_above.set(self.seen.borrow().is_some());
            let sign = if self.is_negated { -1.0 } else { 1.0 };
            value = with_rule(&value, &value.detach(), move |activation, _, gradient| {
                started(activation, &(gradient * sign)?)
            })?;
        }
        Ok(value)
    }

    fn nonlinearity(&self, name: &str, kind: Activation, _: &Tensor) -> TensorResult<Option<Tensor>> {
        if kind != Activation::Relu && !self.is_above.get() {
            self.refuse(format!(
                "excitation backpropagation needs activations that are not negative, unlike the {kind:?} of `{name}`"
            ));
        }
        Ok(None)
    }

    fn wants_layers(&self) -> bool {
        true
    }

    fn layer(&self, name: &str, layer: &Layer, input: &Tensor) -> TensorResult<Option<Tensor>> {
        self.layers.set(self.layers.get() + 1);
        if self.is_above.get() || !input.track_op() {
            return Ok(None);
        }
        let is_negated =
            self.is_negated && matches!(self.start, ExcitationStart::Classifier(last) if last == name);
        let rule_of = |excitatory: Layer| {
            let output = layer.forward(&input.detach())?;
            with_rule(input, &output, move |activation, _, winning| {
                let excitation = (excitatory.forward(activation)? + LEAST_EXCITATION)?;
                let share = (winning / excitation)?;
                activation * ordinary(activation, &share, |x| excitatory.forward(x))?
            })
            .map(Some)
        };
        let positive = |weight: &Tensor| if is_negated { weight.neg()?.relu() } else { weight.relu() };
        match layer {
            Layer::Linear { weight, .. } => rule_of(Layer::Linear { weight: positive(weight)?, bias: None }),
            Layer::Convolution { kernel, window, .. } => {
                rule_of(Layer::Convolution { kernel: positive(kernel)?, bias: None, window: *window })
            }
            Layer::AveragePool { .. } | Layer::GlobalMean => rule_of(layer.clone()),
            Layer::BatchNorm { .. } => {
                let output = layer.forward(&input.detach())?;
                with_rule(input, &output, |_, _, winning| Ok(winning.clone())).map(Some)
            }
            Layer::MaxPool { .. } => Ok(None),
        }
    }

    fn sum(&self, _: &str, path: &Tensor, identity: &Tensor) -> TensorResult<Option<Tensor>> {
        if self.is_above.get() {
            return Ok(None);
        }
        let sum = (path.detach() + identity.detach())?;
        let shared = |addend: &Tensor| {
            let sum = sum.clone();
            with_rule(addend, &addend.detach(), move |addend, _, winning| shared_out(addend, &sum, winning))
        };
        Ok(Some((shared(path)? + shared(identity)?)?))
    }

    fn wants_attention(&self) -> bool {
        true
    }

    fn attention(&self, name: &str, probabilities: Tensor) -> TensorResult<Tensor> {
        if !self.is_above.get() {
            self.refuse(format!("excitation backpropagation has no rule for the attention of `{name}`"));
        }
        Ok(probabilities)
    }
}

/// The start at an activation: the positive part of gradient times activation, each row divided by its sum.
fn started(activation: &Tensor, gradient: &Tensor) -> TensorResult<Tensor> {
    let mut values = (gradient.relu()? * activation.relu()?)?.flatten_all()?.to_vec1::<f32>()?;
    let rows = activation.dim(0)?.max(1);
    for row in values.chunks_exact_mut((activation.elem_count() / rows).max(1)) {
        let sum: f64 = row.iter().map(|value| f64::from(*value)).sum();
        if sum > 0.0 {
            row.iter_mut().for_each(|value| *value = (f64::from(*value) / sum) as f32);
        }
    }
    Tensor::from_vec(values, activation.shape(), activation.device())
}

/// The part of an addend: nothing of a sum that is zero.
fn shared_out(addend: &Tensor, sum: &Tensor, winning: &Tensor) -> TensorResult<Tensor> {
    let host = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let (addends, sums, mut parts) = (host(addend)?, host(sum)?, host(winning)?);
    for ((part, addend), sum) in parts.iter_mut().zip(addends).zip(sums) {
        *part *= if sum == 0.0 { 0.0 } else { addend / sum };
    }
    Tensor::from_vec(parts, addend.shape(), addend.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Convolutional, Linear, assert_close, host, normal};

    fn classifier() -> ExcitationStart {
        ExcitationStart::Classifier("fc".to_owned())
    }

    fn method(layer: &str, start: ExcitationStart, contrast: Option<&str>) -> ExcitationBackprop {
        ExcitationBackprop { layer: layer.to_owned(), start, contrast: contrast.map(str::to_owned) }
    }

    #[test]
    fn probabilities_sum_to_one_wherever_they_start() {
        let score = Convolutional::new(3, true);
        let inputs = Inputs::new(&normal(4, &[5, 3, 8, 8])).unwrap();
        let evaluator = Evaluator::new(&score, 2);
        for layer in ["relu1", "relu2"] {
            let ours = method(layer, classifier(), None).attribute(&evaluator, &inputs).unwrap();
            let side = if layer == "relu1" { 8 } else { 4 };
            assert_eq!(ours.values.dims(), [5, 1, side, side]);
            for map in host(&ours.values).chunks_exact(side * side) {
                assert!(
                    (map.iter().sum::<f32>() - 1.0).abs() < 1e-4 && map.iter().all(|value| *value >= 0.0)
                );
            }
            let trunk = ExcitationStart::Activation("relu2".to_owned());
            let other = method(layer, trunk, None).attribute(&evaluator, &inputs).unwrap();
            assert_close(&other.values, &ours.values, 1e-5);
        }
    }

    #[test]
    fn contrasts_start_wherever_too_and_cost_twice() {
        let score = Convolutional::new(3, true);
        let inputs = Inputs::new(&normal(4, &[5, 3, 8, 8])).unwrap();
        let evaluator = Evaluator::new(&score, 8);
        let contrastive = method("relu1", classifier(), Some("relu2"));
        let ours = contrastive.attribute(&evaluator, &inputs).unwrap();
        assert_eq!(evaluator.passes(), Passes { forward: 10, backward: 10 });
        assert_eq!(contrastive.cost(&[3, 8, 8]).unwrap(), Passes { forward: 2, backward: 2 });
        assert!(host(&ours.values).iter().all(|value| *value >= 0.0));
        assert!(host(&ours.values).iter().any(|value| *value > 0.0));
        let trunk = ExcitationStart::Activation("relu2".to_owned());
        let other = method("relu1", trunk, Some("relu2")).attribute(&evaluator, &inputs).unwrap();
        assert_close(&other.values, &ours.values, 1e-5);
    }

    #[test]
    fn a_sum_divides_in_proportion() {
        let tensor = |values: &[f32]| Tensor::new(values, &candle_core::Device::Cpu).unwrap();
        let shared =
            shared_out(&tensor(&[1.0, 3.0, 1.0]), &tensor(&[4.0, 3.0, 0.0]), &tensor(&[2.0, 1.0, 5.0]));
        assert_eq!(host(&shared.unwrap()), [0.5, 1.0, 0.0]);
    }

    #[test]
    fn what_has_no_such_layers_is_refused() {
        let inputs = Inputs::new(&normal(2, &[2, 2, 3])).unwrap();
        let linear = Linear::new(1, &[2, 3]);
        let result = method("relu1", classifier(), None).attribute(&Evaluator::new(&linear, 2), &inputs);
        assert!(matches!(result, Err(AttributionError::NotApplicable(_))));
        let score = Convolutional::new(3, false);
        let inputs = Inputs::new(&normal(4, &[1, 3, 8, 8])).unwrap();
        let of = |method: ExcitationBackprop| method.attribute(&Evaluator::new(&score, 2), &inputs);
        assert!(of(method("relu7", classifier(), None)).is_err());
        assert!(of(method("relu2", classifier(), Some("relu1"))).is_err());
        assert!(of(method("relu2", ExcitationStart::Activation("relu1".to_owned()), None)).is_err());
    }
}
