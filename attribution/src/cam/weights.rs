//! What the channels of a layer are weighted by.

use candle_core::{DType, Result as TensorResult, Tensor};
use pipe_models::Probe;

use super::map::{Cam, CamParts, range, summed};
use crate::evaluator::{Evaluator, host};
use crate::method::Inputs;
use crate::resize::{Interpolation, resize};
use crate::{AttributionError, Result};

/// Keeps the denominator of Grad-CAM++ from zero.
const PLUS_PLUS_EPSILON: f64 = 1e-6;
/// Keeps the range of an activation from zero in Score-CAM.
const SCORE_EPSILON: f32 = 1e-8;
/// Keeps the size of a score from zero in Ablation-CAM.
const LEAST_SCORE: f64 = 1e-6;

/// What stands for an ablated channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ablated {
    /// Zero.
    Zero,
    /// The channel's mean over the places.
    Mean,
}

/// How channels are weighted.
#[derive(Clone, Debug)]
pub enum CamWeights {
    /// By these, `[samples, channels]`: the rows of a linear classifier behind a global mean give CAM.
    Given(Tensor),
    /// By the mean gradient over places (Grad-CAM).
    Gradient,
    /// By positive gradients, weighted by their powers (Grad-CAM++). The derivation holds where
    /// activations are not negative.
    GradientPlusPlus,
    /// The same for the exponential of the score, without a constant that keeps denominators from zero:
    /// what the derivation gives (Rao, Boehle and Schiele 2022). Overflows for scores above 88.
    ExponentialPlusPlus,
    /// At each place by the positive gradient there (LayerCAM).
    Layer,
    /// By the softmax over channels of the score of the input, masked by each channel's activation
    /// (Score-CAM). One more forward pass per channel.
    Score,
    /// By the relative fall of the score when a channel is ablated, places only (Ablation-CAM). One more
    /// forward pass per channel; large where the score is close to 0, and of the other sign where it is
    /// negative.
    Ablation(Ablated),
    /// By that fall over the size of the score: positive where a channel adds to it, also where it is negative.
    AblationBySize(Ablated),
}

impl CamWeights {
    pub(super) fn need_gradient(&self) -> bool {
        match self {
            Self::Gradient | Self::GradientPlusPlus | Self::ExponentialPlusPlus | Self::Layer => true,
            Self::Given(_) | Self::Score | Self::Ablation(_) | Self::AblationBySize(_) => false,
        }
    }
}

impl Cam {
    /// Weights the channels of a layer, and sums them up.
    pub(super) fn weigh(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
        parts: &mut CamParts,
    ) -> Result<()> {
        let (channels, cells) = (parts.channels, self.cells());
        let per_channel = |value: fn(&[f32], &[f32]) -> f64| -> Vec<f32> {
            let gradients = parts.gradients.chunks_exact(cells);
            let both = parts.activations.chunks_exact(cells).zip(gradients);
            both.map(|(activation, gradient)| value(activation, gradient) as f32).collect()
        };
        parts.weights = match &self.weights {
            CamWeights::Layer => {
                let product = |(a, g): (&f32, &f32)| f64::from(g.max(0.0)) * f64::from(*a);
                let places: Vec<f64> = parts.activations.iter().zip(&parts.gradients).map(product).collect();
                parts.maps = summed(&places, channels, cells);
                return Ok(());
            }
            CamWeights::Given(weights) => {
                let all: Vec<Vec<f32>> = weights.to_dtype(DType::F32)?.to_vec2()?;
                let of = |sample: &usize| match all.get(*sample) {
                    Some(row) if row.len() == channels => Ok(row.as_slice()),
                    _ => Err(AttributionError::Settings(format!(
                        "sample {sample} needs {channels} weights; those given are {:?}",
                        weights.dims()
                    ))),
                };
                inputs.samples().iter().map(of).collect::<Result<Vec<_>>>()?.concat()
            }
            CamWeights::Gradient => per_channel(|_, gradient| mean(gradient)),
            CamWeights::GradientPlusPlus => {
                per_channel(|activation, gradient| plus_plus(activation, gradient, PLUS_PLUS_EPSILON))
            }
            CamWeights::ExponentialPlusPlus => {
                let weights = per_channel(|activation, gradient| plus_plus(activation, gradient, 0.0));
                let powers = parts.scores.iter().map(|score| libm::exp(f64::from(*score)));
                let of_row = weights.chunks_exact(channels.max(1)).zip(powers);
                of_row
                    .flat_map(|(row, power)| {
                        row.iter().map(move |weight| (f64::from(*weight) * power) as f32)
                    })
                    .collect()
            }
            CamWeights::Score => self.by_score(evaluator, inputs, parts)?,
            CamWeights::Ablation(ablated) => {
                self.by_ablation(evaluator, inputs, parts, (*ablated, |score| score))?
            }
            CamWeights::AblationBySize(ablated) => {
                self.by_ablation(evaluator, inputs, parts, (*ablated, |score| score.abs().max(LEAST_SCORE)))?
            }
        };
        let weighted: Vec<f64> = parts
            .activations
            .chunks_exact(cells)
            .zip(&parts.weights)
            .flat_map(|(activation, weight)| {
                activation.iter().map(|value| f64::from(*value) * f64::from(*weight))
            })
            .collect();
        parts.maps = summed(&weighted, channels, cells);
        Ok(())
    }

    /// The softmax over channels of the scores of inputs masked by them.
    fn by_score(&self, evaluator: &Evaluator<'_>, inputs: &Inputs, parts: &CamParts) -> Result<Vec<f32>> {
        let (channels, cells, length) = (parts.channels, self.cells(), inputs.row_length());
        let places = &inputs.row_shape()[1..];
        let plane: usize = places.iter().product();
        let values = inputs.host()?;
        let mut scores = Vec::with_capacity(inputs.rows() * channels);
        evaluator.score_each(
            inputs.rows() * channels,
            |pairs| {
                let mut masked = Vec::with_capacity(pairs.len() * length);
                let mut samples = Vec::with_capacity(pairs.len());
                for pair in pairs {
                    let activation = &parts.activations[pair * cells..(pair + 1) * cells];
                    let mask = resize(activation, &self.grid, places, Interpolation::Corners);
                    let [least, greatest] = range(&mask);
                    let row = pair / channels;
                    let x = &values[row * length..(row + 1) * length];
                    masked.extend(x.iter().enumerate().map(|(index, x)| {
                        x * ((mask[index % plane] - least) / (greatest - least + SCORE_EPSILON))
                    }));
                    samples.push(inputs.samples()[row]);
                }
                inputs.rows_like(masked, samples)
            },
            |_, score| scores.push(score),
        )?;
        let softmax = |scores: &[f32]| {
            let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f64> =
                scores.iter().map(|score| libm::exp(f64::from(*score) - f64::from(greatest))).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(move |power| (power / sum) as f32)
        };
        Ok(scores.chunks_exact(channels.max(1)).flat_map(softmax).collect())
    }

    /// The relative fall of the score without each channel.
    fn by_ablation(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
        parts: &CamParts,
        (ablated, divisor): (Ablated, fn(f64) -> f64),
    ) -> Result<Vec<f32>> {
        let channels = parts.channels;
        let (values, length) = (inputs.host()?, inputs.row_length());
        let pairs: Vec<usize> = (0..inputs.rows() * channels).collect();
        let mut weights = Vec::with_capacity(pairs.len());
        for batch in pairs.chunks(evaluator.batch()) {
            let repeated: Vec<f32> = batch
                .iter()
                .flat_map(|pair| &values[pair / channels * length..][..length])
                .copied()
                .collect();
            let samples = batch.iter().map(|pair| inputs.samples()[pair / channels]).collect();
            let without: Vec<usize> = batch.iter().map(|pair| pair % channels).collect();
            let probe = Ablate { cam: self, without: &without, ablated };
            let rows = inputs.rows_like(repeated, samples)?;
            let scores = host(&evaluator.probed(&rows, rows.values(), &probe)?)?;
            weights.extend(batch.iter().zip(scores).map(|(pair, score)| {
                let whole = f64::from(parts.scores[pair / channels]);
                ((whole - f64::from(score)) / divisor(whole)) as f32
            }));
        }
        Ok(weights)
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64
}

/// The weight of a channel in Grad-CAM++, for a score that is the logarithm of what is explained.
fn plus_plus(activation: &[f32], gradient: &[f32], epsilon: f64) -> f64 {
    let sum: f64 = activation.iter().map(|value| f64::from(*value)).sum();
    let term = |gradient: &f32| {
        let g = f64::from(*gradient);
        if g <= 0.0 {
            return 0.0;
        }
        let denominator = 2.0 * g * g + sum * g * g * g + epsilon;
        g * g * g / if denominator == 0.0 { 1.0 } else { denominator }
    };
    gradient.iter().map(term).sum()
}

/// Replaces one channel of each row.
struct Ablate<'a> {
    cam: &'a Cam,
    /// The channel of each row of the batch.
    without: &'a [usize],
    ablated: Ablated,
}

impl Probe for Ablate<'_> {
    fn activation(&self, name: &str, value: Tensor) -> TensorResult<Tensor> {
        if name != self.cam.hook.name {
            return Ok(value);
        }
        let places = self.cam.laid_out(&value)?;
        let (batch, channels, _) = places.dims3()?;
        let mut kept = vec![1.0f32; batch * channels];
        self.without.iter().enumerate().for_each(|(row, channel)| kept[row * channels + channel] = 0.0);
        let kept = Tensor::from_vec(kept, (batch, channels, 1), value.device())?;
        let without = places.broadcast_mul(&kept)?;
        let replaced = match self.ablated {
            Ablated::Zero => without,
            Ablated::Mean => {
                let gone = (1.0 - kept)?;
                (without + places.mean_keepdim(2)?.broadcast_mul(&gone)?.broadcast_as(places.shape())?)?
            }
        };
        self.cam.laid_back(&replaced, &value)
    }
}

#[cfg(test)]
mod tests {
    use pipe_models::model::ActivationLayout;

    use super::super::testing::{Pooled, cam};
    use super::*;
    use crate::Method;
    use crate::testing::{assert_close, host, normal};

    /// Behind a global mean all of these are one: CAM is the number of cells times Grad-CAM, and zeroing a
    /// channel takes away what it adds.
    #[test]
    fn behind_a_global_mean_the_family_agrees() {
        let classifier = normal(1, &[1, 5]);
        let x = normal(2, &[4, 5, 3, 4]);
        let inputs = Inputs::new(&x).unwrap();
        use ActivationLayout::{Map, SliceMap, SliceTokens, Tokens};
        let mut maps = Vec::new();
        for layout in [Map, Tokens, SliceMap, SliceTokens] {
            let score = Pooled { classifier: classifier.clone(), layout };
            let evaluator = Evaluator::new(&score, 3);
            let of = |weights| cam(layout, weights).attribute(&evaluator, &inputs).unwrap();
            let given = CamWeights::Given(classifier.repeat((4, 1)).unwrap());
            let zhou = of(given).values;
            let dims: &[usize] =
                if matches!(layout, Map | Tokens) { &[4, 1, 3, 4] } else { &[4, 1, 3, 1, 4] };
            assert_eq!(zhou.dims(), dims);
            maps.push(host(&zhou));
            assert_eq!(maps[0], host(&zhou), "however the cells lie");
            let gradient = of(CamWeights::Gradient);
            assert_close(&(&gradient.values * 12.0).unwrap(), &zhou, 1e-5);
            let parts = cam(layout, CamWeights::Ablation(Ablated::Zero)).parts(&evaluator, &inputs).unwrap();
            let scores = gradient.scores;
            let weight = host(&classifier);
            for (row, weights) in parts.weights.chunks_exact(5).enumerate() {
                for channel in 0..5 {
                    let activation = &parts.activations[(row * 5 + channel) * 12..][..12];
                    let expected = mean(activation) * f64::from(weight[channel]) / f64::from(scores[row]);
                    assert!((f64::from(weights[channel]) - expected).abs() < 1e-4 * expected.abs().max(1.0));
                }
            }
            // By the size of the score, what adds to it has a positive weight whatever its sign.
            assert!(scores.iter().any(|score| *score < 0.0));
            let sized =
                cam(layout, CamWeights::AblationBySize(Ablated::Zero)).parts(&evaluator, &inputs).unwrap();
            for (row, score) in scores.iter().enumerate() {
                for (sized, plain) in sized.weights[row * 5..][..5].iter().zip(&parts.weights[row * 5..][..5])
                {
                    assert!((sized - plain * score.signum()).abs() < 1e-5 * plain.abs().max(1.0));
                }
            }
            // Behind a mean the mean of a channel is as good as the channel.
            let kept = cam(layout, CamWeights::Ablation(Ablated::Mean)).parts(&evaluator, &inputs).unwrap();
            assert!(kept.weights.iter().all(|weight| weight.abs() < 1e-3));
        }
    }

    /// The specification's column: one forward pass, and one per channel where channels are tried one by one.
    #[test]
    fn the_cost_is_what_is_passed() {
        use ActivationLayout::{Map, SliceMap, SliceTokens, Tokens};
        let inputs = Inputs::new(&normal(2, &[2, 5, 3, 4])).unwrap();
        for layout in [Map, Tokens, SliceMap, SliceTokens] {
            let score = Pooled { classifier: normal(1, &[1, 5]), layout };
            for (weights, forward) in
                [(CamWeights::Gradient, 1), (CamWeights::Score, 6), (CamWeights::Ablation(Ablated::Zero), 6)]
            {
                // Slices here lie on a flat input, which no activation of theirs can mask.
                if matches!((&weights, layout), (CamWeights::Score, SliceMap | SliceTokens)) {
                    continue;
                }
                let mut cam = cam(layout, weights);
                cam.channels = Some(cam.channels_of(&Evaluator::new(&score, 2), &inputs).unwrap());
                assert_eq!(cam.channels, Some(5));
                let cost = cam.cost(inputs.row_shape()).unwrap();
                assert_eq!(cost.forward, forward);
                let evaluator = Evaluator::new(&score, 2);
                cam.attribute(&evaluator, &inputs).unwrap();
                assert_eq!(evaluator.passes().forward, 2 * forward, "{layout:?}");
                assert_eq!(evaluator.passes().backward, 2 * cost.backward);
            }
        }
    }
}
