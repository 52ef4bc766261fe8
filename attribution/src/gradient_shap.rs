//! Gradient SHAP (Lundberg and Lee 2017; Erion et al. 2021), with Captum's conventions.

use pipe_models::random::Key;

use crate::baseline::{Baseline, BaselineRows};
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::noise::{Noise, NoiseRows};
use crate::{AttributionError, Result};

/// Where each draw of a sample lies: on the way from one baseline of the pool to the noisy input.
#[derive(Clone, Debug)]
pub enum Places {
    /// These: for each sample, the baseline and the place in \[0, 1\] of each draw.
    Given(Vec<Vec<(usize, f32)>>),
    /// Uniform draws, from a key per sample.
    Uniform(Vec<Key>),
}

/// The mean over draws of `(x_j - b_j) ds/dx(b_j + u_j (x_j - b_j))`, where x_j is the noisy input, b_j a
/// baseline of a pool and u_j uniform in \[0, 1\]: the expectation of Integrated Gradients over baselines.
/// One forward and one backward pass per draw, and one forward pass for s(x).
#[derive(Clone, Debug)]
pub struct GradientShap {
    /// The baselines.
    pub pool: Vec<Baseline>,
    /// The noise, which also says how many draws there are.
    pub noise: Noise,
    /// Where the draws lie.
    pub places: Places,
}

/// The draws of some inputs.
struct Draws {
    noise: NoiseRows,
    pool: Vec<BaselineRows>,
    count: usize,
}

impl GradientShap {
    fn draws(&self, inputs: &Inputs) -> Result<Draws> {
        let wrong = |reason: String| Err(AttributionError::Settings(reason));
        let baselines = self.pool.len();
        if baselines == 0 {
            return wrong("the pool has no baseline".to_owned());
        }
        let count = self.noise.draws();
        for sample in inputs.samples() {
            let fits = match &self.places {
                Places::Given(places) => places.get(*sample).is_some_and(|draws| {
                    draws.len() == count && draws.iter().all(|(baseline, _)| *baseline < baselines)
                }),
                Places::Uniform(keys) => *sample < keys.len(),
            };
            if !fits {
                return wrong(format!("sample {sample} has no places for its {count} draws"));
            }
        }
        let pool = self.pool.iter().map(|baseline| baseline.of(inputs)).collect::<Result<_>>()?;
        Ok(Draws { noise: self.noise.of(inputs)?, pool, count })
    }

    /// The noisy input, the baseline, and the place between them of a draw of a row, whose values are `x`.
    fn draw<'a>(
        &self,
        draws: &'a Draws,
        (row, x): (usize, &[f32]),
        sample: usize,
        draw: usize,
    ) -> (Vec<f32>, &'a [f32], f32) {
        let baselines = draws.pool.len();
        let (baseline, place) = match &self.places {
            Places::Given(places) => places[sample][draw],
            Places::Uniform(keys) => {
                // Not the numbers that the noise draws from the same key.
                let key = keys[sample].sub(!(draw as u64));
                let baseline = (key.uniform(1) * baselines as f64) as usize;
                (baseline.min(baselines - 1), key.uniform(2) as f32)
            }
        };
        (draws.noise.add(x, sample, draw, draws.count), draws.pool[baseline].row(row), place)
    }

    /// How far each draw is from completeness, draws of a row beside each other: the sum of its
    /// attribution minus (s(x_j) - s(b_j)). A single draw need not be complete, only their expectation is.
    ///
    /// # Errors
    /// As [`Method::attribute`].
    pub fn draw_gaps(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Vec<f32>> {
        let draws = self.draws(inputs)?;
        let mut sums = vec![0.0f64; inputs.rows() * draws.count];
        self.each(evaluator, inputs, &draws, |pair, product| {
            sums[pair] = product.map(f64::from).sum();
        })?;
        let (values, length) = (inputs.host()?, inputs.row_length());
        let mut ends = Vec::with_capacity(sums.len() * 2 * length);
        let mut samples = Vec::with_capacity(sums.len() * 2);
        for pair in 0..sums.len() {
            let (row, sample) = (pair / draws.count, inputs.samples()[pair / draws.count]);
            let x = &values[row * length..(row + 1) * length];
            let (noisy, baseline, _) = self.draw(&draws, (row, x), sample, pair % draws.count);
            ends.extend(noisy);
            ends.extend_from_slice(baseline);
            samples.extend([sample, sample]);
        }
        let scores = evaluator.scores(&inputs.rows_like(ends, samples)?)?;
        let differences = scores.as_chunks::<2>().0.iter().map(|[x, baseline]| f64::from(x - baseline));
        Ok(sums.iter().zip(differences).map(|(sum, difference)| (sum - difference) as f32).collect())
    }

    /// Calls `take` with the attribution of each draw of each row.
    fn each(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
        draws: &Draws,
        mut take: impl FnMut(usize, &mut dyn Iterator<Item = f32>),
    ) -> Result<()> {
        let (values, length) = (inputs.host()?, inputs.row_length());
        let of = |pair: usize| {
            let (row, sample) = (pair / draws.count, inputs.samples()[pair / draws.count]);
            let x = &values[row * length..(row + 1) * length];
            (self.draw(draws, (row, x), sample, pair % draws.count), sample)
        };
        evaluator.gradient_each(
            inputs.rows() * draws.count,
            |pairs| {
                let mut between = Vec::with_capacity(pairs.len() * length);
                let mut samples = Vec::with_capacity(pairs.len());
                for pair in pairs {
                    let ((noisy, baseline, place), sample) = of(pair);
                    between.extend(noisy.iter().zip(baseline).map(|(x, b)| b + place * (x - b)));
                    samples.push(sample);
                }
                inputs.rows_like(between, samples)
            },
            |pair, _, gradient| {
                let ((noisy, baseline, _), _) = of(pair);
                let terms = noisy.iter().zip(baseline).zip(gradient);
                take(pair, &mut terms.map(|((x, baseline), gradient)| (x - baseline) * gradient));
            },
        )
    }
}

impl Method for GradientShap {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let draws = self.draws(inputs)?;
        let scores = evaluator.scores(inputs)?;
        let length = inputs.row_length();
        let mut sums = vec![0.0f64; inputs.rows() * length];
        self.each(evaluator, inputs, &draws, |pair, product| {
            let sums = &mut sums[pair / draws.count * length..][..length];
            sums.iter_mut().zip(product).for_each(|(sum, value)| *sum += f64::from(value));
        })?;
        let means = sums.iter().map(|sum| (sum / draws.count as f64) as f32).collect();
        Ok(Attribution {
            values: inputs.tensor(means, inputs.row_shape())?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        let draws = self.noise.draws() as u64;
        Ok(Passes { forward: 1 + draws, backward: draws })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Deviation;
    use crate::testing::{Linear, host, normal};

    #[test]
    fn a_linear_score_gives_weight_times_the_mean_distance() {
        let score = Linear::new(1, &[2, 3]);
        let x = normal(2, &[4, 2, 3]);
        let inputs = Inputs::new(&x).unwrap();
        let keys: Vec<Key> = (0..4).map(Key).collect();
        let method = GradientShap {
            pool: vec![Baseline::Tensor(normal(3, &[1, 2, 3]))],
            noise: Noise::Normal { draws: 6, deviation: Deviation::Absolute(0.0), keys: keys.clone() },
            places: Places::Uniform(keys),
        };
        let evaluator = Evaluator::new(&score, 5);
        let ours = host(&method.attribute(&evaluator, &inputs).unwrap().values);
        let pool = host(&normal(3, &[1, 2, 3]));
        for (index, (x, ours)) in host(&x).iter().zip(&ours).enumerate() {
            let expected = (x - pool[index % 6]) * score.weight[index % 6];
            assert!((ours - expected).abs() < 1e-5, "{ours} {expected}");
        }
        assert_eq!(evaluator.passes(), Passes { forward: 4 * 7, backward: 4 * 6 });
        let gaps = method.draw_gaps(&evaluator, &inputs).unwrap();
        assert!(gaps.len() == 24 && gaps.iter().all(|gap| gap.abs() < 1e-4), "{gaps:?}");
    }
}
