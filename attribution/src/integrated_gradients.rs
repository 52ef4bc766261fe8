//! Integrated Gradients (Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks").

use crate::Result;
use crate::baseline::Baseline;
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::quadrature::Quadrature;

/// (x - x') times the mean gradient on the straight path from x' to x:
/// `(x - x') sum_k w_k ds/dx(x' + a_k (x - x'))`, with points a_k and weights w_k of a quadrature.
///
/// Attributions sum to s(x) - s(x') but for the error of the quadrature, which is given per row. For a
/// score that is not smooth on the path (rectifiers, max-pooling) it falls slowly with the number of
/// steps, whatever the rule. `steps` forward and backward passes per row, and two forward passes for
/// s(x) and s(x'). Steps of several rows share batches.
#[derive(Clone, Debug)]
pub struct IntegratedGradients {
    /// Points on the path.
    pub steps: usize,
    /// The rule that places and weighs them.
    pub quadrature: Quadrature,
    /// The reference x', where the path begins.
    pub baseline: Baseline,
    /// Whether the mean gradient is multiplied by x - x'. Without it there is no completeness.
    pub multiply_by_inputs: bool,
}

impl Default for IntegratedGradients {
    fn default() -> Self {
        Self {
            steps: 50,
            quadrature: Quadrature::GaussLegendre,
            baseline: Baseline::Zero,
            multiply_by_inputs: true,
        }
    }
}

impl Method for IntegratedGradients {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let nodes = self.quadrature.nodes(self.steps)?;
        let (steps, length) = (self.steps, inputs.row_length());
        let baselines = self.baseline.of(inputs)?;
        let scores = evaluator.scores(inputs)?;
        let baseline_scores = evaluator.scores(&baselines.inputs(inputs)?)?;
        let values = inputs.host()?;
        let x = |row: usize| &values[row * length..(row + 1) * length];
        // Every row's sum grows step by step in the order of the path, wherever batches are cut.
        let mut sums = vec![0.0f64; values.len()];
        evaluator.gradient_each(
            inputs.rows() * steps,
            |points| {
                let mut path = Vec::with_capacity(points.len() * length);
                let mut samples = Vec::with_capacity(points.len());
                for point in points {
                    let (row, alpha) = (point / steps, nodes.alphas[point % steps] as f32);
                    let ends = x(row).iter().zip(baselines.row(row));
                    path.extend(ends.map(|(x, baseline)| baseline + alpha * (x - baseline)));
                    samples.push(inputs.samples()[row]);
                }
                inputs.rows_like(path, samples)
            },
            |point, _, gradient| {
                let (row, weight) = (point / steps, nodes.weights[point % steps]);
                let sums = &mut sums[row * length..(row + 1) * length];
                for (sum, gradient) in sums.iter_mut().zip(gradient) {
                    *sum += weight * f64::from(*gradient);
                }
            },
        )?;
        if self.multiply_by_inputs {
            for row in 0..inputs.rows() {
                let ends = x(row).iter().zip(baselines.row(row));
                for (sum, (x, baseline)) in sums[row * length..(row + 1) * length].iter_mut().zip(ends) {
                    *sum *= f64::from(x - baseline);
                }
            }
        }
        let gaps = sums.chunks_exact(length).zip(scores.iter().zip(&baseline_scores)).map(
            |(attribution, (score, baseline))| {
                (attribution.iter().sum::<f64>() - (f64::from(*score) - f64::from(*baseline))) as f32
            },
        );
        let completeness_gaps = self.multiply_by_inputs.then(|| gaps.collect());
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        Ok(Attribution {
            values: inputs.tensor(sums, inputs.row_shape())?,
            scores,
            baseline_scores: Some(baseline_scores),
            completeness_gaps,
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        let steps = self.steps as u64;
        Ok(Passes { forward: steps + 2, backward: steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Linear, Smooth, assert_close, host, normal, permuted};

    #[test]
    fn a_linear_score_gives_weight_times_distance_with_any_rule() {
        let score = Linear::new(1, &[2, 3]);
        let x = normal(2, &[3, 2, 3]);
        let inputs = Inputs::new(&x).unwrap();
        for quadrature in [
            Quadrature::GaussLegendre,
            Quadrature::RiemannLeft,
            Quadrature::RiemannRight,
            Quadrature::RiemannMiddle,
            Quadrature::Trapezoid,
        ] {
            let method = IntegratedGradients {
                steps: 4,
                quadrature,
                baseline: Baseline::Constant(-0.5),
                ..Default::default()
            };
            let attribution = method.attribute(&Evaluator::new(&score, 5), &inputs).unwrap();
            for (index, value) in host(&attribution.values).iter().enumerate() {
                let expected = (host(&x)[index] + 0.5) * score.weight[index % 6];
                assert!((value - expected).abs() < 1e-5, "{quadrature:?}");
            }
        }
    }

    #[test]
    fn attributions_of_a_smooth_score_are_complete() {
        let score = Smooth::new(7, &[3, 4]);
        let inputs = Inputs::new(&normal(8, &[4, 3, 4])).unwrap();
        let method =
            IntegratedGradients { baseline: Baseline::Tensor(normal(9, &[4, 3, 4])), ..Default::default() };
        let evaluator = Evaluator::new(&score, 16);
        let attribution = method.attribute(&evaluator, &inputs).unwrap();
        let ends = attribution.scores.iter().zip(attribution.baseline_scores.as_ref().unwrap());
        for ((row, (score, baseline)), gap) in host(&attribution.values)
            .chunks_exact(12)
            .zip(ends)
            .zip(attribution.completeness_gaps.as_ref().unwrap())
        {
            let total: f32 = row.iter().sum();
            assert!((total - (score - baseline)).abs() < 1e-4, "{total} {score} {baseline}");
            assert!(gap.abs() < 1e-4);
        }
        assert_eq!(evaluator.passes().forward, 4 * 52);
        assert_eq!(evaluator.passes().backward, 4 * 50);
    }

    #[test]
    fn batches_change_nothing_and_permuted_rows_give_permuted_maps() {
        let score = Smooth::new(7, &[3, 4]);
        let x = normal(8, &[5, 3, 4]);
        let method = IntegratedGradients {
            steps: 6,
            baseline: Baseline::Tensor(normal(9, &[5, 3, 4])),
            ..Default::default()
        };
        let reference = method.attribute(&Evaluator::new(&score, 1), &Inputs::new(&x).unwrap()).unwrap();
        for batch in [2, 7, 11, 1000] {
            let other = method.attribute(&Evaluator::new(&score, batch), &Inputs::new(&x).unwrap()).unwrap();
            assert_close(&other.values, &reference.values, 1e-6);
        }
        let order = [3, 0, 4, 1, 2];
        let inputs = Inputs::of_samples(&permuted(&x, &order), order.to_vec()).unwrap();
        let other = method.attribute(&Evaluator::new(&score, 4), &inputs).unwrap();
        assert_close(&other.values, &permuted(&reference.values, &order), 1e-6);
    }
}
