//! DeepLIFT with the rescale rule (Shrikumar, Greenside and Kundaje 2017, "Learning Important Features
//! Through Propagating Activation Differences"), with Captum's conventions.

use std::cell::RefCell;

use candle_core::{Result as TensorResult, Tensor, Var};
use pipe_models::ops::activate;
use pipe_models::{Activation, Layer, Probe};

use crate::backward_rule::{ordinary, with_rule};
use crate::baseline::Baseline;
use crate::evaluator::{Evaluator, Passes, host};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// Differences of inputs below this have the ordinary gradient.
const LEAST_DIFFERENCE: f32 = 1e-10;

/// x - x' times a multiplier that is carried back from the score as a gradient would be, except that each
/// nonlinearity passes the ratio of differences, `(f(z) - f(z')) / (z - z')`, in the place of its slope.
///
/// Attributions sum to s(x) - s(x'), unless maxima keep their gradient; the gap is given per row. Defined
/// for networks of linear layers, pointwise nonlinearities and max pooling: attention and
/// layer norm have no rule, and models with attention are refused. Each row is evaluated with its
/// baseline: two forward and two backward passes.
#[derive(Clone, Debug, Default)]
pub struct DeepLift {
    /// The reference x'.
    pub baseline: Baseline,
    /// What max pooling passes.
    pub maxima: MaximumRule,
}

/// What max pooling passes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MaximumRule {
    /// The difference of its outputs, shared by the greatest inputs of x and x': attributions are complete.
    #[default]
    Differences,
    /// Its gradient, all to the greatest input of x: what Captum gives of a model whose pooling is a function
    /// and no module.
    Gradient,
}

impl Method for DeepLift {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let baselines = self.baseline.of(inputs)?;
        let (values, length) = (inputs.host()?, inputs.row_length());
        let mut attributions = Vec::with_capacity(values.len());
        let (mut scores, mut baseline_scores, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        let all: Vec<usize> = (0..inputs.rows()).collect();
        for rows in all.chunks((evaluator.batch() / 2).max(1)) {
            let mut pairs: Vec<f32> = values[rows[0] * length..][..rows.len() * length].to_vec();
            rows.iter().for_each(|row| pairs.extend_from_slice(baselines.row(*row)));
            let samples: Vec<usize> = rows.iter().map(|row| inputs.samples()[*row]).collect();
            let pairs = inputs.rows_like(pairs, samples.repeat(2))?;
            let variable = Var::from_tensor(pairs.values())?;
            let rescaling = Rescaling { maxima: self.maxima, undefined: RefCell::new(None) };
            let of_pairs = evaluator.probed(&pairs, &variable, &rescaling)?;
            if let Some(reason) = rescaling.undefined.take() {
                return Err(AttributionError::NotApplicable(reason));
            }
            let multipliers = match evaluator.backward(&of_pairs)?.remove(&variable) {
                Some(multipliers) => multipliers.flatten_all()?.to_vec1::<f32>()?,
                None => vec![0.0; pairs.rows() * length],
            };
            let of_pairs = host(&of_pairs)?;
            for (place, row) in rows.iter().enumerate() {
                let x = &values[row * length..(row + 1) * length];
                let multipliers = &multipliers[place * length..(place + 1) * length];
                let ends = x.iter().zip(baselines.row(*row)).zip(multipliers);
                let attribution = ends.map(|((x, baseline), multiplier)| (x - baseline) * multiplier);
                attributions.extend(attribution);
                let (score, baseline) = (of_pairs[place], of_pairs[rows.len() + place]);
                let sum: f64 = attributions[row * length..].iter().map(|value| f64::from(*value)).sum();
                gaps.push((sum - (f64::from(score) - f64::from(baseline))) as f32);
                scores.push(score);
                baseline_scores.push(baseline);
            }
        }
        Ok(Attribution {
            values: inputs.tensor(attributions, inputs.row_shape())?,
            scores,
            baseline_scores: Some(baseline_scores),
            completeness_gaps: Some(gaps),
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        Ok(Passes { forward: 2, backward: 2 })
    }
}

/// Puts the rules in their places, for batches whose second half are the baselines of the first.
struct Rescaling {
    maxima: MaximumRule,
    undefined: RefCell<Option<String>>,
}

impl Probe for Rescaling {
    fn nonlinearity(&self, _: &str, kind: Activation, input: &Tensor) -> TensorResult<Option<Tensor>> {
        let output = activate(&input.detach(), kind)?;
        let rule = move |x: &Tensor, y: &Tensor, gradient: &Tensor| {
            let slopes = ordinary(x, gradient, |x| activate(x, kind))?;
            let rise = (difference(y)? * gradient)?;
            ratios(&rise, &difference(x)?, &slopes)
        };
        with_rule(input, &output, rule).map(Some)
    }

    fn wants_layers(&self) -> bool {
        true
    }

    fn layer(&self, _: &str, layer: &Layer, input: &Tensor) -> TensorResult<Option<Tensor>> {
        if self.maxima == MaximumRule::Gradient || !matches!(layer, Layer::MaxPool { .. }) {
            return Ok(None);
        }
        let (pool, output) = (layer.clone(), layer.forward(&input.detach())?);
        let rule = move |x: &Tensor, y: &Tensor, gradient: &Tensor| {
            let [ours, reference] = halves(y)?;
            let greatest = ours.maximum(&reference)?;
            let rises = Tensor::cat(&[(&greatest - &reference)?, (&ours - &greatest)?], 0)?;
            let [to_ours, to_reference] = halves(&ordinary(x, &(rises * gradient)?, |x| pool.forward(x))?)?;
            let rise = (to_ours + to_reference)?;
            let slopes = ordinary(x, gradient, |x| pool.forward(x))?;
            ratios(&Tensor::cat(&[&rise, &rise], 0)?, &difference(x)?, &slopes)
        };
        with_rule(input, &output, rule).map(Some)
    }

    fn wants_attention(&self) -> bool {
        true
    }

    fn attention(&self, name: &str, probabilities: Tensor) -> TensorResult<Tensor> {
        let reason = format!("DeepLIFT has no rule for attention, which the model has at `{name}`");
        self.undefined.borrow_mut().get_or_insert(reason);
        Ok(probabilities)
    }
}

/// The rows and their baselines.
fn halves(pairs: &Tensor) -> TensorResult<[Tensor; 2]> {
    let rows = pairs.dim(0)? / 2;
    Ok([pairs.narrow(0, 0, rows)?.contiguous()?, pairs.narrow(0, rows, rows)?.contiguous()?])
}

/// Rows minus their baselines, once for each half.
fn difference(pairs: &Tensor) -> TensorResult<Tensor> {
    let [ours, reference] = halves(pairs)?;
    let difference = (ours - reference)?;
    Tensor::cat(&[&difference, &difference], 0)
}

/// `rise / run`, and `slopes` where the run is nearly zero.
fn ratios(rise: &Tensor, run: &Tensor, slopes: &Tensor) -> TensorResult<Tensor> {
    let host = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let (rises, runs, mut ratios) = (host(rise)?, host(run)?, host(slopes)?);
    for ((ratio, rise), run) in ratios.iter_mut().zip(rises).zip(runs) {
        if run.abs() >= LEAST_DIFFERENCE {
            *ratio = rise / run;
        }
    }
    Tensor::from_vec(ratios, run.shape(), run.device())
}

#[cfg(test)]
mod tests {
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::Score;
    use crate::testing::{Convolutional, Linear, assert_close, host, normal};

    #[test]
    fn a_linear_score_gives_weight_times_distance() {
        let score = Linear::new(1, &[2, 3]);
        let x = normal(2, &[3, 2, 3]);
        let method = DeepLift { baseline: Baseline::Constant(0.5), ..DeepLift::default() };
        let evaluator = Evaluator::new(&score, 4);
        let ours = method.attribute(&evaluator, &Inputs::new(&x).unwrap()).unwrap();
        for (index, value) in host(&ours.values).iter().enumerate() {
            let expected = (host(&x)[index] - 0.5) * score.weight[index % 6];
            assert!((value - expected).abs() < 1e-5, "{value} {expected}");
        }
        assert_eq!(evaluator.passes(), Passes { forward: 6, backward: 6 });
    }

    /// Contributions are complete, however far the baseline.
    #[test]
    fn contributions_of_rectifiers_and_maxima_are_complete() {
        let score = Convolutional::new(3, true);
        let x = normal(4, &[5, 3, 8, 8]);
        let method = DeepLift { baseline: Baseline::Tensor(normal(5, &[5, 3, 8, 8])), ..DeepLift::default() };
        let inputs = Inputs::new(&x).unwrap();
        let attribution = method.attribute(&Evaluator::new(&score, 64), &inputs).unwrap();
        let baselines = attribution.baseline_scores.as_ref().unwrap();
        for (gap, (score, baseline)) in attribution
            .completeness_gaps
            .as_ref()
            .unwrap()
            .iter()
            .zip(attribution.scores.iter().zip(baselines))
        {
            assert!(gap.abs() < 1e-4 * (score - baseline).abs().max(1.0), "{gap}");
        }
        for batch in [1, 5] {
            let other = method.attribute(&Evaluator::new(&score, batch), &inputs).unwrap();
            assert_close(&other.values, &attribution.values, 1e-5);
        }
    }

    /// A rectifier between two halves of a line: the multiplier is the ratio of differences.
    #[test]
    fn a_rectifier_passes_the_ratio_of_differences() {
        let pair = Tensor::new(&[[3f32, -1.0, 0.0], [-1.0, 1.0, 0.0]], &candle_core::Device::Cpu).unwrap();
        let variable = Var::from_tensor(&pair).unwrap();
        let rescaling = Rescaling { maxima: MaximumRule::Differences, undefined: RefCell::new(None) };
        let output = rescaling.nonlinearity("relu", Activation::Relu, &variable).unwrap().unwrap();
        let gradients = output.sum_all().unwrap().backward().unwrap();
        assert_eq!(host(gradients.get(&variable).unwrap()), [0.75, 0.5, 0.0, 0.75, 0.5, 0.0]);
    }

    #[test]
    fn attention_has_no_rule() {
        struct Attends;
        impl Score for Attends {
            fn score(&self, x: &Tensor, _: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
                let x = match probe {
                    Some(probe) => probe.attention("vision.layers.0.attention", x.clone())?,
                    None => x.clone(),
                };
                x.flatten_from(1)?.sum(1)
            }
        }
        let inputs = Inputs::new(&normal(2, &[2, 3])).unwrap();
        let result = DeepLift::default().attribute(&Evaluator::new(&Attends, 2), &inputs);
        let Err(AttributionError::NotApplicable(reason)) = result else { panic!("{result:?}") };
        assert!(reason.contains("vision.layers.0.attention"), "{reason}");
    }
}
