//! More steps where Integrated Gradients need them.

use crate::Result;
use crate::evaluator::{Evaluator, Passes};
use crate::integrated_gradients::IntegratedGradients;
use crate::method::{Attribution, Inputs, Method, relative_gap};

/// Integrated Gradients whose steps are doubled for those rows whose sum misses the difference of scores by more than
/// a share of it, until it does not or the steps reach a bound. What rows get does not depend on those beside them.
///
/// Each round is computed anew: rules of other numbers of steps share no points. A row without a difference of scores
/// stays as it is.
#[derive(Clone, Debug)]
pub struct Refined {
    /// The method with the steps of the first round.
    pub method: IntegratedGradients,
    /// Steps at most.
    pub most_steps: usize,
    /// The share of the difference of scores that a sum may miss.
    pub tolerance: f32,
}

impl Refined {
    /// The rows of an attribution that miss too much.
    fn incomplete(&self, attribution: &Attribution) -> Vec<usize> {
        let (Some(baselines), Some(gaps)) = (&attribution.baseline_scores, &attribution.completeness_gaps)
        else {
            return Vec::new();
        };
        let misses = |row: &usize| {
            let gap = relative_gap(attribution.scores[*row], baselines[*row], gaps[*row]);
            gap.is_some_and(|gap| gap > self.tolerance)
        };
        (0..attribution.scores.len()).filter(misses).collect()
    }
}

impl Method for Refined {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let mut method = self.method.clone();
        let mut all = method.attribute(evaluator, inputs)?;
        let mut open = self.incomplete(&all);
        if open.is_empty() || method.steps >= self.most_steps {
            return Ok(all);
        }
        let (given, length) = (inputs.host()?, inputs.row_length());
        let mut values: Vec<f32> = all.values.flatten_all()?.to_vec1()?;
        while !open.is_empty() && method.steps < self.most_steps {
            method.steps = (2 * method.steps).min(self.most_steps);
            let rows = open.iter().flat_map(|row| given[row * length..(row + 1) * length].iter().copied());
            let samples = open.iter().map(|row| inputs.samples()[*row]).collect();
            let finer = method.attribute(evaluator, &inputs.rows_like(rows.collect(), samples)?)?;
            let maps: Vec<f32> = finer.values.flatten_all()?.to_vec1()?;
            for (row, map) in open.iter().zip(maps.chunks_exact(length)) {
                values[row * length..(row + 1) * length].copy_from_slice(map);
            }
            if let (Some(all), Some(finer)) = (&mut all.completeness_gaps, &finer.completeness_gaps) {
                open.iter().zip(finer).for_each(|(row, gap)| all[*row] = *gap);
            }
            open = self.incomplete(&finer).into_iter().map(|place| open[place]).collect();
        }
        all.values = inputs.tensor(values, inputs.row_shape())?;
        Ok(all)
    }

    /// That of the first round, which may suffice.
    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.method.cost(row_shape)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Result as TensorResult, Tensor};
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::testing::host;
    use crate::{Quadrature, Score};

    /// x squared, which four left ends of the path from 0 to 1 miss by a quarter; of the first sample x itself, which they
    /// do not miss, and of the third nothing.
    struct Curved;

    impl Score for Curved {
        fn score(&self, x: &Tensor, samples: &[usize], _: MaybeProbe<'_>) -> TensorResult<Tensor> {
            let x = x.flatten_from(1)?.sum(1)?;
            let share = |of: usize| -> TensorResult<Tensor> {
                let is = samples.iter().map(|sample| if *sample == of { 1.0f32 } else { 0.0 }).collect();
                Tensor::from_vec(is, samples.len(), x.device())
            };
            (&x * share(0)?)? + (x.sqr()? * share(1)?)?
        }
    }

    fn refined(most_steps: usize, tolerance: f32) -> Refined {
        let method =
            IntegratedGradients { steps: 4, quadrature: Quadrature::RiemannLeft, ..Default::default() };
        Refined { method, most_steps, tolerance }
    }

    #[test]
    fn steps_are_doubled_where_the_sum_misses_too_much() {
        let inputs = Inputs::new(
            &Tensor::ones((3, 1, 1), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap(),
        );
        let inputs = inputs.unwrap();
        // Left ends of n intervals miss 1 / n of the square.
        for (most_steps, tolerance, value, steps) in [
            (4, 0.05, 0.75, 4),
            (64, 0.05, 1.0 - 1.0 / 32.0, 4 + 8 + 16 + 32),
            (12, 0.05, 1.0 - 1.0 / 12.0, 4 + 8 + 12),
            (64, 0.3, 0.75, 4),
        ] {
            let evaluator = Evaluator::new(&Curved, 5);
            let attribution = refined(most_steps, tolerance).attribute(&evaluator, &inputs).unwrap();
            let values = host(&attribution.values);
            assert!((values[0] - 1.0).abs() < 1e-5 && values[2] == 0.0);
            assert!((values[1] - value).abs() < 1e-5, "{most_steps}: {values:?}");
            assert!((attribution.completeness_gaps.unwrap()[1] - (value - 1.0)).abs() < 1e-5);
            // The other two rows are asked four times each.
            assert_eq!(evaluator.passes().backward, 2 * 4 + steps);
        }
    }
}
