//! The class activation mapping family: activations of one layer, weighted by what they do to the score.
//!
//! Zhou et al. 2016 (CAM), Selvaraju et al. 2017 (Grad-CAM), Chattopadhay et al. 2018 (Grad-CAM++), Jiang
//! et al. 2021 (LayerCAM), Wang et al. 2020 (Score-CAM), Ramaswamy et al. 2020 (Ablation-CAM), with the
//! conventions of pytorch-grad-cam where papers leave them open.

use std::cell::RefCell;

use candle_core::{DType, Result as TensorResult, Tensor, Var};
use pipe_models::model::{ActivationLayout, CamHook};
use pipe_models::{PatchGeometry, Probe};

use crate::evaluator::{Evaluator, Passes, host};
use crate::method::{Attribution, Inputs, Method};
use crate::resize::{Interpolation, resize};
use crate::{AttributionError, Result};

/// Keeps the denominator of Grad-CAM++ from zero.
const PLUS_PLUS_EPSILON: f64 = 1e-6;
/// Keeps the range of an activation from zero in Score-CAM.
const SCORE_EPSILON: f32 = 1e-8;
/// Keeps the size of a score from zero in Ablation-CAM.
const LEAST_SCORE: f64 = 1e-6;
/// Keeps a map's range from zero in [`displayed`].
const DISPLAY_EPSILON: f32 = 1e-7;

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
    fn need_gradient(&self) -> bool {
        match self {
            Self::Gradient | Self::GradientPlusPlus | Self::ExponentialPlusPlus | Self::Layer => true,
            Self::Given(_) | Self::Score | Self::Ablation(_) | Self::AblationBySize(_) => false,
        }
    }
}

/// A class activation map: the weighted sum of a layer's channels, signed, at the layer's resolution. Its
/// negative values speak against the class and are usually not shown: see [`displayed`].
#[derive(Clone, Debug)]
pub struct Cam {
    /// The layer and how its values lie.
    pub hook: CamHook,
    /// Where the cells of the layer's grid lie, along each axis: `[rows, columns]`, or `[steps, rows,
    /// columns]`.
    pub grid: Vec<usize>,
    /// Tokens before the first cell.
    pub prefix: usize,
    /// How channels are weighted.
    pub weights: CamWeights,
    /// Channels of the layer, where they are known before it was seen: nothing but [`Method::cost`] of the
    /// weights that take a pass per channel follows from them.
    pub channels: Option<usize>,
}

/// A map with what it is made of.
#[derive(Clone, Debug)]
pub struct CamParts {
    /// Channels of the layer.
    pub channels: usize,
    /// Activations, `[rows, channels, cells]`.
    pub activations: Vec<f32>,
    /// The score's gradient with respect to them; empty where the weights need none.
    pub gradients: Vec<f32>,
    /// The weight of each channel, `[rows, channels]`; empty for LayerCAM, which has one per place.
    pub weights: Vec<f32>,
    /// The weighted sum, `[rows, cells]`.
    pub maps: Vec<f32>,
    /// The score of each row.
    pub scores: Vec<f32>,
}

impl Cam {
    /// At the layer that a tower recommends.
    pub fn of_tower(hook: CamHook, geometry: &PatchGeometry, weights: CamWeights) -> Self {
        let [rows, columns] = geometry.grid();
        let grid = match geometry.depth {
            None => vec![rows, columns],
            Some(_) => vec![geometry.steps(), rows, columns],
        };
        Self { hook, grid, prefix: geometry.prefix_tokens, weights, channels: None }
    }

    /// The number of channels of the layer, seen in one pass over `inputs`.
    ///
    /// # Errors
    /// If the model has no such activation.
    pub fn channels_of(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<usize> {
        let hook = Watch { name: &self.hook.name, wants_gradient: false, seen: RefCell::new(None) };
        evaluator.probed(inputs, inputs.values(), &hook)?;
        let (value, _) = hook.seen.take().ok_or_else(|| self.unseen())?;
        Ok(self.laid_out(&value.detach())?.dims3()?.1)
    }

    fn unseen(&self) -> AttributionError {
        AttributionError::Settings(format!("the model has no activation `{}`", self.hook.name))
    }

    fn cells(&self) -> usize {
        self.grid.iter().product()
    }

    /// Steps of the grid, and cells of one.
    fn steps(&self) -> (usize, usize) {
        let steps = self.grid.first().copied().unwrap_or(1);
        (steps, self.cells() / steps)
    }

    /// A hook's values as `[batch, channels, cells]`.
    fn laid_out(&self, value: &Tensor) -> TensorResult<Tensor> {
        match self.hook.layout {
            ActivationLayout::Tokens => {
                value.narrow(1, self.prefix, self.cells())?.transpose(1, 2)?.contiguous()
            }
            ActivationLayout::Map => value.flatten_from(2),
            ActivationLayout::SliceTokens => {
                let (rows, tokens, width) = value.dims3()?;
                let (steps, plane) = self.steps();
                value
                    .reshape((rows / steps, steps, tokens, width))?
                    .narrow(2, self.prefix, plane)?
                    .permute((0, 3, 1, 2))?
                    .contiguous()?
                    .flatten_from(2)
            }
            ActivationLayout::SliceMap => {
                let (rows, channels, _, _) = value.dims4()?;
                let (steps, plane) = self.steps();
                value
                    .reshape((rows / steps, steps, channels, plane))?
                    .transpose(1, 2)?
                    .contiguous()?
                    .flatten_from(2)
            }
            // `[batch * cells of a step, steps, width]`
            ActivationLayout::Sequences => {
                let (sequences, steps, width) = value.dims3()?;
                let plane = self.cells() / steps;
                value
                    .reshape((sequences / plane, plane, steps, width))?
                    .permute((0, 3, 2, 1))?
                    .contiguous()?
                    .flatten_from(2)
            }
        }
    }

    /// `[batch, channels, cells]` as a hook's values lie, `ones` at tokens before the first cell.
    fn laid_back(&self, value: &Tensor, like: &Tensor) -> TensorResult<Tensor> {
        let (batch, channels, _) = value.dims3()?;
        match self.hook.layout {
            ActivationLayout::Tokens => {
                let cells = value.transpose(1, 2)?;
                let prefix = like.narrow(1, 0, self.prefix)?;
                if self.prefix == 0 { cells.contiguous() } else { Tensor::cat(&[&prefix, &cells], 1) }
            }
            ActivationLayout::Map => value.reshape(like.shape()),
            ActivationLayout::SliceTokens => {
                let (steps, plane) = self.steps();
                let cells = value.reshape((batch, channels, steps, plane))?.permute((0, 2, 3, 1))?;
                let cells = cells.contiguous()?.reshape((batch * steps, plane, channels))?;
                if self.prefix == 0 {
                    return Ok(cells);
                }
                Tensor::cat(&[&like.narrow(1, 0, self.prefix)?, &cells], 1)
            }
            ActivationLayout::SliceMap => {
                let (steps, plane) = self.steps();
                let cells = value.reshape((batch, channels, steps, plane))?.transpose(1, 2)?;
                cells.contiguous()?.reshape(like.shape())
            }
            ActivationLayout::Sequences => {
                let steps = like.dims()[1];
                value
                    .reshape((batch, channels, steps, self.cells() / steps))?
                    .permute((0, 3, 2, 1))?
                    .contiguous()?
                    .reshape(like.shape())
            }
        }
    }

    /// The map with activations, gradients and weights.
    ///
    /// # Errors
    /// As [`Method::attribute`].
    pub fn parts(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<CamParts> {
        let wants_gradient = self.weights.need_gradient();
        let mut parts = CamParts {
            channels: 0,
            activations: Vec::new(),
            gradients: Vec::new(),
            weights: Vec::new(),
            maps: Vec::new(),
            scores: Vec::new(),
        };
        let mut passes_by = false;
        for part in evaluator.parts(inputs)? {
            let hook = Watch { name: &self.hook.name, wants_gradient, seen: RefCell::new(None) };
            let scores = evaluator.probed(&part, part.values(), &hook)?;
            let (value, variable) = hook.seen.take().ok_or_else(|| self.unseen())?;
            let activations = self.laid_out(&value.detach())?;
            let (_, channels, cells) = activations.dims3()?;
            if cells != self.cells() {
                return Err(AttributionError::Settings(format!(
                    "`{}` has {cells} cells, the grid {:?} another number",
                    self.hook.name, self.grid
                )));
            }
            parts.channels = channels;
            parts.activations.extend(activations.flatten_all()?.to_vec1::<f32>()?);
            if let Some(variable) = variable {
                let gradients = evaluator.backward(&scores)?;
                let gradient = match gradients.get(&variable) {
                    Some(gradient) => {
                        passes_by |= gradient.abs()?.max_all()?.to_scalar::<f32>()? > 0.0;
                        self.laid_out(gradient)?.flatten_all()?.to_vec1::<f32>()?
                    }
                    None => {
                        passes_by = true;
                        vec![0.0; part.rows() * channels * cells]
                    }
                };
                parts.gradients.extend(gradient);
            }
            parts.scores.extend(host(&scores)?);
        }
        // A score that leaves the layer by other tokens than its cells, as that of a class token leaves the last block of
        // a transformer, says nothing of them. One that does not change at all has a map of zeros.
        if passes_by && parts.gradients.iter().all(|value| *value == 0.0) {
            return Err(AttributionError::NotApplicable(format!(
                "the score's gradient at the places of `{}` is zero: nothing of them reaches it",
                self.hook.name
            )));
        }
        self.weigh(evaluator, inputs, &mut parts)?;
        Ok(parts)
    }

    fn weigh(&self, evaluator: &Evaluator<'_>, inputs: &Inputs, parts: &mut CamParts) -> Result<()> {
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

impl Method for Cam {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let parts = self.parts(evaluator, inputs)?;
        let shape: Vec<usize> = std::iter::once(1).chain(self.grid.iter().copied()).collect();
        Ok(Attribution {
            values: inputs.tensor(parts.maps, &shape)?,
            scores: parts.scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    /// Score-CAM and Ablation-CAM take a pass per channel more; where [`Cam::channels`] is not known they count
    /// as none.
    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        let more = match self.weights {
            CamWeights::Score | CamWeights::Ablation(_) | CamWeights::AblationBySize(_) => {
                self.channels.unwrap_or(0) as u64
            }
            _ => 0,
        };
        Ok(Passes { forward: 1 + more, backward: u64::from(self.weights.need_gradient()) })
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64
}

fn range(values: &[f32]) -> [f32; 2] {
    values.iter().fold([f32::INFINITY, f32::NEG_INFINITY], |[least, greatest], value| {
        [least.min(*value), greatest.max(*value)]
    })
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

/// The sum over channels of `[rows, channels, cells]`.
fn summed(values: &[f64], channels: usize, cells: usize) -> Vec<f32> {
    let mut maps = Vec::with_capacity(values.len() / channels.max(1));
    for row in values.chunks_exact((channels * cells).max(1)) {
        maps.extend((0..cells).map(|cell| row.iter().skip(cell).step_by(cells).sum::<f64>() as f32));
    }
    maps
}

/// A map as pytorch-grad-cam shows it: negative values cut off, brought to 0 to 1, enlarged, and brought to
/// 0 to 1 again. A map without positive values is zero everywhere.
pub fn displayed(map: &[f32], from: &[usize], to: &[usize]) -> Vec<f32> {
    let scaled = |values: &[f32]| -> Vec<f32> {
        let [least, greatest] = range(values);
        values.iter().map(|value| (value - least) / (greatest - least + DISPLAY_EPSILON)).collect()
    };
    let positive: Vec<f32> = map.iter().map(|value| value.max(0.0)).collect();
    scaled(&resize(&scaled(&positive), from, to, Interpolation::Centres))
}

/// Keeps the activation `name`, and a variable whose gradient is the activation's.
struct Watch<'a> {
    name: &'a str,
    wants_gradient: bool,
    seen: RefCell<Option<(Tensor, Option<Var>)>>,
}

impl Probe for Watch<'_> {
    fn activation(&self, name: &str, value: Tensor) -> TensorResult<Tensor> {
        if name != self.name {
            return Ok(value);
        }
        if !self.wants_gradient {
            *self.seen.borrow_mut() = Some((value.clone(), None));
            return Ok(value);
        }
        let zero = Var::zeros(value.shape(), value.dtype(), value.device())?;
        let watched = (&value + zero.as_tensor())?;
        *self.seen.borrow_mut() = Some((value, Some(zero)));
        Ok(watched)
    }
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
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::Score;
    use crate::testing::{assert_close, host, normal};

    /// A global mean and a linear layer over activations `x * gain`, shown as a map or as tokens behind
    /// one prefix token, all at once or line by line as slices.
    struct Pooled {
        classifier: Tensor,
        layout: ActivationLayout,
    }

    impl Score for Pooled {
        fn score(&self, x: &Tensor, _: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
            let activation = (x * 2.0)?.relu()?;
            let (batch, channels, height, width) = activation.dims4()?;
            let shown = match self.layout {
                ActivationLayout::Tokens => {
                    let cells = activation.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
                    let prefix = Tensor::ones((batch, 1, channels), x.dtype(), x.device())?;
                    Tensor::cat(&[&prefix, &cells], 1)?
                }
                ActivationLayout::SliceTokens => {
                    let cells = activation.permute((0, 2, 3, 1))?.contiguous()?;
                    let cells = cells.reshape((batch * height, width, channels))?;
                    let prefix = Tensor::ones((batch * height, 1, channels), x.dtype(), x.device())?;
                    Tensor::cat(&[&prefix, &cells], 1)?
                }
                ActivationLayout::SliceMap => {
                    let slices = activation.transpose(1, 2)?.contiguous()?;
                    slices.reshape((batch * height, channels, 1, width))?
                }
                _ => activation,
            };
            let shown = match probe {
                Some(probe) => probe.activation("layer", shown)?,
                None => shown,
            };
            let pooled = match self.layout {
                ActivationLayout::Tokens => shown.narrow(1, 1, height * width)?.mean(1)?,
                ActivationLayout::SliceTokens => {
                    shown.narrow(1, 1, width)?.mean(1)?.reshape((batch, height, channels))?.mean(1)?
                }
                ActivationLayout::SliceMap => {
                    shown.mean((2, 3))?.reshape((batch, height, channels))?.mean(1)?
                }
                _ => shown.mean((2, 3))?,
            };
            pooled.broadcast_mul(&self.classifier)?.sum(1)
        }
    }

    fn cam(layout: ActivationLayout, weights: CamWeights) -> Cam {
        let hook = CamHook { name: "layer".to_owned(), layout };
        let prefix = usize::from(matches!(layout, ActivationLayout::Tokens | ActivationLayout::SliceTokens));
        let sliced = matches!(layout, ActivationLayout::SliceTokens | ActivationLayout::SliceMap);
        Cam { hook, grid: if sliced { vec![3, 1, 4] } else { vec![3, 4] }, prefix, weights, channels: None }
    }

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

    #[test]
    fn a_layer_that_is_not_there_or_not_read_is_an_error() {
        let score = Pooled { classifier: normal(1, &[1, 5]), layout: ActivationLayout::Map };
        let evaluator = Evaluator::new(&score, 3);
        let inputs = Inputs::new(&normal(2, &[2, 5, 3, 4])).unwrap();
        let mut missing = cam(ActivationLayout::Map, CamWeights::Gradient);
        missing.hook.name = "lair".to_owned();
        assert!(matches!(missing.attribute(&evaluator, &inputs), Err(AttributionError::Settings(_))));
        let result = cam(ActivationLayout::Tokens, CamWeights::Gradient)
            .attribute(&Evaluator::new(&OfPrefix, 3), &inputs);
        assert!(matches!(result, Err(AttributionError::NotApplicable(_))));
    }

    /// Tokens of which the first alone is read, as behind the last block of a transformer.
    struct OfPrefix;

    impl Score for OfPrefix {
        fn score(&self, x: &Tensor, _: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
            let cells = x.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
            let tokens = Tensor::cat(&[&cells.mean_keepdim(1)?, &cells], 1)?;
            let shown = match probe {
                Some(probe) => probe.activation("layer", tokens)?,
                None => tokens,
            };
            shown.narrow(1, 0, 1)?.flatten_from(1)?.sum(1)
        }
    }

    /// A score per sample that does not depend on the image has a map of zeros, whoever stands beside it.
    #[test]
    fn a_score_that_never_changes_has_a_map_of_zeros() {
        struct Dead(Pooled);
        impl Score for Dead {
            fn score(&self, x: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
                let alive: Vec<f32> = samples.iter().map(|sample| (sample % 2) as f32).collect();
                self.0.score(x, samples, probe)? * Tensor::new(alive, x.device())?
            }
        }
        let score =
            Dead(Pooled { classifier: normal(1, &[1, 5]).abs().unwrap(), layout: ActivationLayout::Map });
        let x = normal(2, &[2, 5, 3, 4]);
        for weights in [CamWeights::Gradient, CamWeights::GradientPlusPlus, CamWeights::Layer] {
            let cam = cam(ActivationLayout::Map, weights);
            let of =
                |inputs: Inputs| host(&cam.attribute(&Evaluator::new(&score, 2), &inputs).unwrap().values);
            let both = of(Inputs::new(&x).unwrap());
            let alone = of(Inputs::of_samples(&x.narrow(0, 0, 1).unwrap(), vec![0]).unwrap());
            assert_eq!((&both[..12], &alone[..]), (&[0.0; 12][..], &[0.0; 12][..]));
            assert!(both[12..].iter().any(|value| *value > 0.0));
        }
    }

    #[test]
    fn shown_maps_lie_between_0_and_1() {
        let map = displayed(&[-1.0, 0.5, 1.0, 2.0], &[2, 2], &[4, 4]);
        let [least, greatest] = range(&map);
        assert!(least == 0.0 && (greatest - 1.0).abs() < 1e-5);
        assert_eq!(displayed(&[-1.0; 4], &[2, 2], &[2, 2]), [0.0; 4]);
    }
}
