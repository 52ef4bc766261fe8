//! Averages over noisy inputs: SmoothGrad (Smilkov et al. 2017) and its relatives.

use candle_core::{DType, Tensor};
use pipe_models::random::Key;

use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// The deviation of noise.
#[derive(Clone, PartialEq, Debug)]
pub enum Deviation {
    /// In units of the input.
    Absolute(f64),
    /// A share of the range of each row's values; 0.1 to 0.2 in the paper.
    OfRange(f64),
    /// The same for rows of several inputs behind each other ([`crate::Joint`]), of each its own range: the share, and
    /// how many values each input has.
    OfRanges(f64, Vec<usize>),
}

impl Deviation {
    /// The deviation of each value of a row. What stands behind the inputs that are counted is left as it is.
    fn of(&self, row: &[f32]) -> Vec<f64> {
        let of_range = |share: f64, part: &[f32]| {
            let least = part.iter().copied().fold(f32::INFINITY, f32::min);
            let greatest = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            share * f64::from(greatest - least)
        };
        match self {
            Self::Absolute(deviation) => vec![*deviation; row.len()],
            Self::OfRange(share) => vec![of_range(*share, row); row.len()],
            Self::OfRanges(share, lengths) => {
                let (mut rest, mut all) = (row, Vec::with_capacity(row.len()));
                for length in lengths {
                    let (part, behind) = rest.split_at((*length).min(rest.len()));
                    all.extend(std::iter::repeat_n(of_range(*share, part), part.len()));
                    rest = behind;
                }
                all.resize(row.len(), 0.0);
                all
            }
        }
    }
}

/// What is added to the inputs.
#[derive(Clone, Debug)]
pub enum Noise {
    /// These values, `[samples, draws, channels, ...]`.
    Given(Tensor),
    /// Independent normal values for each sample and draw: a pure function of the sample's key, so that
    /// results depend neither on the batch nor on which samples are explained together.
    Normal {
        /// Draws of each sample.
        draws: usize,
        /// Their deviation.
        deviation: Deviation,
        /// One key per sample.
        keys: Vec<Key>,
    },
}

impl Noise {
    /// Draws of each sample.
    pub fn draws(&self) -> usize {
        match self {
            Self::Given(values) => values.dims().get(1).copied().unwrap_or(0),
            Self::Normal { draws, .. } => *draws,
        }
    }

    /// What is needed to draw for `inputs`.
    pub(crate) fn of(&self, inputs: &Inputs) -> Result<NoiseRows> {
        let greatest = inputs.samples().iter().max().map_or(0, |sample| sample + 1);
        match self {
            Self::Given(values) => {
                let fits = values.dims().len() == inputs.row_shape().len() + 2
                    && &values.dims()[2..] == inputs.row_shape()
                    && values.dims()[0] >= greatest;
                if !fits || self.draws() == 0 {
                    return Err(AttributionError::Settings(format!(
                        "noise is {:?}; [{greatest} samples, draws, {:?}] fits the inputs",
                        values.dims(),
                        inputs.row_shape()
                    )));
                }
                Ok(NoiseRows::Given(values.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?))
            }
            Self::Normal { draws, deviation, keys } => {
                if *draws == 0 || keys.len() < greatest {
                    return Err(AttributionError::Settings(format!(
                        "{greatest} samples need as many keys and at least one draw each, not {} keys and \
                         {draws} draws",
                        keys.len()
                    )));
                }
                Ok(NoiseRows::Normal { deviation: deviation.clone(), keys: keys.clone() })
            }
        }
    }
}

/// Noise ready to be added.
pub(crate) enum NoiseRows {
    Given(Vec<f32>),
    Normal { deviation: Deviation, keys: Vec<Key> },
}

impl NoiseRows {
    /// Adds draw number `draw` of `draws` to the values of a row made from `sample`.
    pub(crate) fn add(&self, row: &[f32], sample: usize, draw: usize, draws: usize) -> Vec<f32> {
        match self {
            Self::Given(values) => {
                let start = (sample * draws + draw) * row.len();
                row.iter().zip(&values[start..start + row.len()]).map(|(x, noise)| x + noise).collect()
            }
            Self::Normal { deviation, keys } => {
                let key = keys[sample].sub(draw as u64 + 1);
                let deviations = deviation.of(row).into_iter();
                let noise = (1u64..).zip(deviations).map(|(value, deviation)| key.normal(value) * deviation);
                row.iter().zip(noise).map(|(x, noise)| x + noise as f32).collect()
            }
        }
    }
}

/// What is made of the attributions of a sample's draws.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Average {
    /// Their mean (SmoothGrad).
    #[default]
    Mean,
    /// The mean of their squares (SmoothGrad-Squared, Hooker et al. 2019).
    MeanOfSquares,
    /// Their variance, divided by the number of draws (VarGrad, Adebayo et al. 2018).
    Variance,
}

/// Another method's attributions of noisy copies of the input, averaged. Costs one forward pass for
/// s(x) and the other method's passes for every draw.
#[derive(Clone, Debug)]
pub struct Smoothed<M> {
    /// The method; around the gradient this is SmoothGrad.
    pub method: M,
    /// The noise.
    pub noise: Noise,
    /// What is made of the draws.
    pub average: Average,
}

impl<M: Method> Method for Smoothed<M> {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let (noise, draws) = (self.noise.of(inputs)?, self.noise.draws());
        let scores = evaluator.scores(inputs)?;
        let (values, length) = (inputs.host()?, inputs.row_length());
        let mut moments: Vec<[f64; 2]> = Vec::new();
        let mut map_shape = Vec::new();
        let pairs: Vec<usize> = (0..inputs.rows() * draws).collect();
        for part in pairs.chunks(evaluator.batch()) {
            let mut noisy = Vec::with_capacity(part.len() * length);
            let mut samples = Vec::with_capacity(part.len());
            for pair in part {
                let (row, sample) = (pair / draws, inputs.samples()[pair / draws]);
                noisy.extend(noise.add(
                    &values[row * length..(row + 1) * length],
                    sample,
                    pair % draws,
                    draws,
                ));
                samples.push(sample);
            }
            let maps = self.method.attribute(evaluator, &inputs.rows_like(noisy, samples)?)?.values;
            map_shape = maps.dims()[1..].to_vec();
            let map_length: usize = map_shape.iter().product();
            moments.resize(inputs.rows() * map_length, [0.0; 2]);
            let maps: Vec<f32> = maps.flatten_all()?.to_vec1()?;
            for (pair, map) in part.iter().zip(maps.chunks_exact(map_length.max(1))) {
                let sums = &mut moments[pair / draws * map_length..][..map_length];
                for (sum, value) in sums.iter_mut().zip(map) {
                    sum[0] += f64::from(*value);
                    sum[1] += f64::from(*value) * f64::from(*value);
                }
            }
        }
        let count = draws as f64;
        let averages = moments.iter().map(|[sum, squares]| match self.average {
            Average::Mean => sum / count,
            Average::MeanOfSquares => squares / count,
            // Rounding could make it negative.
            Average::Variance => (squares / count - (sum / count) * (sum / count)).max(0.0),
        });
        let averages = averages.map(|value| value as f32).collect();
        Ok(Attribution {
            values: inputs.tensor(averages, &map_shape)?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        let (one, draws) = (self.method.cost(row_shape)?, self.noise.draws() as u64);
        Ok(Passes { forward: 1 + draws * one.forward, backward: draws * one.backward })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Linear, Smooth, assert_close, host, normal};
    use crate::{Gradient, InputXGradient};

    fn normal_noise(draws: usize, samples: usize, deviation: Deviation) -> Noise {
        let keys = (0..samples).map(|sample| Key(7).sub(sample as u64)).collect();
        Noise::Normal { draws, deviation, keys }
    }

    #[test]
    fn noise_does_not_move_the_gradient_of_a_linear_score() {
        let score = Linear::new(1, &[2, 3]);
        let inputs = Inputs::new(&normal(2, &[4, 2, 3])).unwrap();
        let evaluator = Evaluator::new(&score, 3);
        let noise = normal_noise(5, 4, Deviation::OfRange(0.2));
        let smooth = Smoothed { method: Gradient, noise: noise.clone(), average: Average::Mean };
        let attribution = smooth.attribute(&evaluator, &inputs).unwrap();
        for row in host(&attribution.values).chunks_exact(6) {
            row.iter().zip(&score.weight).for_each(|(ours, weight)| assert!((ours - weight).abs() < 1e-6));
        }
        assert_eq!(evaluator.passes(), Passes { forward: 4 * 6, backward: 4 * 5 });
        assert_eq!(smooth.cost(&[2, 3]).unwrap(), Passes { forward: 6, backward: 5 });
        let spread = Smoothed { method: Gradient, noise, average: Average::Variance };
        assert!(host(&spread.attribute(&evaluator, &inputs).unwrap().values).iter().all(|v| *v < 1e-10));
    }

    /// Two inputs behind each other: each moves by a share of its own range, and what is not counted stays.
    #[test]
    fn each_input_has_noise_of_its_own_range() {
        let row = [0.0, 1.0, 0.5, 100.0, 300.0, 7.0];
        assert_eq!(Deviation::OfRanges(0.1, vec![3, 2]).of(&row), [0.1, 0.1, 0.1, 20.0, 20.0, 0.0]);
        assert_eq!(Deviation::OfRange(0.1).of(&row), [30.0; 6]);
        let noise = |deviation: Deviation| {
            let rows = normal_noise(1, 1, deviation)
                .of(&Inputs::new(&Tensor::new(&[row], &candle_core::Device::Cpu).unwrap()).unwrap());
            rows.unwrap().add(&row, 0, 0, 1)
        };
        let [one, parts] = [Deviation::Absolute(20.0), Deviation::OfRanges(0.1, vec![3, 2])].map(noise);
        assert_eq!((one[3], one[4], parts[5]), (parts[3], parts[4], row[5]));
        assert!((parts[0] - row[0]).abs() < 1.0 && parts[0] != row[0]);
    }

    #[test]
    fn results_depend_neither_on_the_batch_nor_on_the_company() {
        let score = Smooth::new(5, &[2, 3]);
        let x = normal(6, &[4, 2, 3]);
        let noise = normal_noise(3, 4, Deviation::Absolute(0.3));
        let method = Smoothed { method: InputXGradient::default(), noise, average: Average::MeanOfSquares };
        let inputs = Inputs::new(&x).unwrap();
        let all = method.attribute(&Evaluator::new(&score, 64), &inputs).unwrap().values;
        let single = method.attribute(&Evaluator::new(&score, 1), &inputs).unwrap().values;
        assert_close(&single, &all, 1e-5);
        let last = Inputs::of_samples(&x.narrow(0, 3, 1).unwrap(), vec![3]).unwrap();
        let alone = method.attribute(&Evaluator::new(&score, 64), &last).unwrap().values;
        assert_close(&alone, &all.narrow(0, 3, 1).unwrap(), 1e-5);
    }

    #[test]
    fn noise_that_does_not_fit_is_refused() {
        let score = Linear::new(1, &[2, 3]);
        let inputs = Inputs::new(&normal(2, &[4, 2, 3])).unwrap();
        for noise in [
            Noise::Given(normal(1, &[4, 2, 3, 3])),
            Noise::Given(normal(1, &[3, 2, 2, 3])),
            normal_noise(0, 4, Deviation::Absolute(1.0)),
            normal_noise(2, 3, Deviation::Absolute(1.0)),
        ] {
            let method = Smoothed { method: Gradient, noise, average: Average::Mean };
            let result = method.attribute(&Evaluator::new(&score, 2), &inputs);
            assert!(matches!(result, Err(AttributionError::Settings(_))));
        }
    }
}
