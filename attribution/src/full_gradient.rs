//! FullGrad (Srinivas and Fleuret 2019, "Full-Gradient Representation for Neural Network Visualization").

use std::cell::{Cell, RefCell};

use candle_core::{Result as TensorResult, Tensor, Var};
use pipe_models::{Activation, Layer, Probe};

use crate::evaluator::{Evaluator, Passes, host};
use crate::method::{Attribution, Inputs, Method};
use crate::resize::{Interpolation, resize};
use crate::{AttributionError, Result};

/// Keeps a range from zero where a layer is scaled as a whole.
const LAYER_EPSILON: f64 = 1e-6;
/// Keeps a range from zero where channels are scaled.
const CHANNEL_EPSILON: f64 = 1e-7;

/// How terms of different layers are brought to one scale before they are added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FullGradientScale {
    /// Each layer as a whole to \[0, 1\], enlarged corner on corner: the authors' code.
    #[default]
    Layer,
    /// Each channel to \[0, 1\], enlarged between centres, and the result to \[0, 1\]: pytorch-grad-cam.
    Channel,
}

/// The absolute values of input times gradient and of each layer's bias times the gradient at its output,
/// scaled, enlarged and added up. Before that the terms are a decomposition of the score of a piecewise
/// linear network, `s(x) = <x, ds/dx> + sum_l <b_l, ds/dz_l>`, the bias of a batch norm being `beta - gamma
/// mean / deviation`; the completeness gap says how far they are from it. It is not small where something
/// behind the layers is not piecewise linear (CLIP's attention pooling), and models without a rectifier
/// are refused. One forward and one backward pass per row.
#[derive(Clone, Copy, Debug, Default)]
pub struct FullGradient {
    /// The scale of terms.
    pub scale: FullGradientScale,
}

/// The terms of one layer's bias.
#[derive(Clone, Debug)]
pub struct BiasTerms {
    /// The layer.
    pub layer: String,
    /// Rows and columns of its output; empty for a linear layer, which has no part in the map.
    pub places: Vec<usize>,
    /// Channels of its output.
    pub channels: usize,
    /// Bias times gradient, `[rows, places..., channels]`.
    pub values: Vec<f32>,
}

/// The decomposition of a score.
#[derive(Clone, Debug)]
pub struct FullGradientTerms {
    /// Input times gradient, as the inputs.
    pub input: Vec<f32>,
    /// One per layer with a bias, in the order of the forward pass.
    pub biases: Vec<BiasTerms>,
    /// The score of each row.
    pub scores: Vec<f32>,
}

impl FullGradientTerms {
    /// The sum of all terms of each row: the score, if the decomposition holds.
    pub fn totals(&self) -> Vec<f32> {
        let rows = self.scores.len();
        let of = |values: &[f32], row: usize| -> f64 {
            let length = values.len() / rows;
            values[row * length..(row + 1) * length].iter().map(|value| f64::from(*value)).sum()
        };
        (0..rows)
            .map(|row| {
                let biases = self.biases.iter().map(|terms| of(&terms.values, row));
                (of(&self.input, row) + biases.sum::<f64>()) as f32
            })
            .collect()
    }
}

impl FullGradient {
    /// The terms, as they are.
    ///
    /// # Errors
    /// As [`Method::attribute`].
    pub fn terms(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<FullGradientTerms> {
        let mut terms = FullGradientTerms { input: Vec::new(), biases: Vec::new(), scores: Vec::new() };
        for part in evaluator.parts(inputs)? {
            let variable = Var::from_tensor(part.values())?;
            let probe = Biases {
                seen: RefCell::new(Vec::new()),
                is_rectified: Cell::new(false),
                undefined: RefCell::new(None),
            };
            let scores = evaluator.probed(&part, &variable, &probe)?;
            if let Some(reason) = probe.undefined.take() {
                return Err(AttributionError::NotApplicable(reason));
            }
            let biases = probe.seen.take();
            if biases.is_empty() || !probe.is_rectified.get() {
                let reason = "the full gradient is defined for networks of layers with biases and rectifiers, \
                              and the model shows none";
                return Err(AttributionError::NotApplicable(reason.to_owned()));
            }
            let gradients = evaluator.backward(&scores)?;
            let product = |variable: &Var, factor: &Tensor| -> Result<Vec<f32>> {
                Ok(match gradients.get(variable) {
                    Some(gradient) => gradient.broadcast_mul(factor)?.flatten_all()?.to_vec1()?,
                    None => vec![0.0; variable.elem_count()],
                })
            };
            terms.input.extend(product(&variable, part.values())?);
            for (index, (layer, bias, variable)) in biases.into_iter().enumerate() {
                let values = product(&variable, &bias)?;
                match terms.biases.get_mut(index) {
                    Some(known) => known.values.extend(values),
                    None => {
                        let shape = &variable.dims()[1..];
                        let (channels, places) = shape.split_last().map_or((1, &[][..]), |(c, p)| (*c, p));
                        terms.biases.push(BiasTerms { layer, places: places.to_vec(), channels, values });
                    }
                }
            }
            terms.scores.extend(host(&scores)?);
        }
        Ok(terms)
    }

    /// The map of one row: `[places]` as the inputs.
    fn map(&self, terms: &FullGradientTerms, row: usize, row_shape: &[usize]) -> Vec<f32> {
        let (channels, places) = (row_shape[0], &row_shape[1..]);
        let plane: usize = places.iter().product();
        let input = &terms.input[row * channels * plane..(row + 1) * channels * plane];
        let mut map: Vec<f64> = self.scaled(input, |channel, place| channel * plane + place, channels, plane);
        for bias in terms.biases.iter().filter(|bias| bias.places.len() == places.len()) {
            let cells: usize = bias.places.iter().product();
            let length = cells * bias.channels;
            let values = &bias.values[row * length..(row + 1) * length];
            let at = |channel: usize, place: usize| place * bias.channels + channel;
            // Enlarging is linear, so that the sum over channels comes first.
            let sum: Vec<f32> =
                self.scaled(values, at, bias.channels, cells).into_iter().map(|value| value as f32).collect();
            let interpolation = match self.scale {
                FullGradientScale::Layer => Interpolation::Corners,
                FullGradientScale::Channel => Interpolation::Centres,
            };
            let enlarged = resize(&sum, &bias.places, places, interpolation);
            map.iter_mut().zip(enlarged).for_each(|(map, value)| *map += f64::from(value));
        }
        if self.scale == FullGradientScale::Channel {
            rescale(&mut map, CHANNEL_EPSILON);
        }
        map.into_iter().map(|value| value as f32).collect()
    }

    /// Absolute values on one scale, summed over channels.
    fn scaled(
        &self,
        values: &[f32],
        at: impl Fn(usize, usize) -> usize,
        channels: usize,
        places: usize,
    ) -> Vec<f64> {
        let mut planes: Vec<f64> = (0..channels * places)
            .map(|index| f64::from(values[at(index / places, index % places)].abs()))
            .collect();
        match self.scale {
            FullGradientScale::Layer => rescale(&mut planes, LAYER_EPSILON),
            FullGradientScale::Channel => {
                planes.chunks_exact_mut(places).for_each(|plane| rescale(plane, CHANNEL_EPSILON));
            }
        }
        let mut sum = vec![0.0; places];
        for plane in planes.chunks_exact(places) {
            sum.iter_mut().zip(plane).for_each(|(sum, value)| *sum += value);
        }
        sum
    }
}

/// Values minus their least, divided by their then greatest.
fn rescale(values: &mut [f64], epsilon: f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    values.iter_mut().for_each(|value| *value = (*value - least) / (greatest - least + epsilon));
}

impl Method for FullGradient {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let terms = self.terms(evaluator, inputs)?;
        let maps: Vec<f32> =
            (0..inputs.rows()).flat_map(|row| self.map(&terms, row, inputs.row_shape())).collect();
        let shape: Vec<usize> = std::iter::once(1).chain(inputs.row_shape()[1..].iter().copied()).collect();
        let gaps = terms.totals().iter().zip(&terms.scores).map(|(total, score)| total - score).collect();
        Ok(Attribution {
            values: inputs.tensor(maps, &shape)?,
            scores: terms.scores,
            baseline_scores: None,
            completeness_gaps: Some(gaps),
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        Ok(Passes { forward: 1, backward: 1 })
    }
}

/// Keeps the bias of each layer, and a variable whose gradient is that of the layer's output.
struct Biases {
    seen: RefCell<Vec<(String, Tensor, Var)>>,
    is_rectified: Cell<bool>,
    undefined: RefCell<Option<String>>,
}

impl Probe for Biases {
    fn nonlinearity(&self, name: &str, kind: Activation, _: &Tensor) -> TensorResult<Option<Tensor>> {
        match kind {
            Activation::Relu => self.is_rectified.set(true),
            Activation::Gelu | Activation::QuickGelu => {
                let reason = format!(
                    "a score is no sum of full gradients behind the {kind:?} of `{name}`, which is not \
                     piecewise linear"
                );
                self.undefined.borrow_mut().get_or_insert(reason);
            }
        }
        Ok(None)
    }

    fn wants_layers(&self) -> bool {
        true
    }

    fn layer(&self, name: &str, layer: &Layer, input: &Tensor) -> TensorResult<Option<Tensor>> {
        let bias = match layer {
            Layer::Linear { bias: Some(bias), .. } | Layer::Convolution { bias: Some(bias), .. } => {
                bias.clone()
            }
            Layer::BatchNorm { gamma, beta, statistics } => {
                let gain = (gamma * statistics.inverse_deviation()?)?;
                (beta - (&statistics.mean * gain)?)?
            }
            _ => return Ok(None),
        };
        let output = layer.forward(input)?;
        let zero = Var::zeros(output.shape(), output.dtype(), output.device())?;
        let watched = (&output + zero.as_tensor())?;
        self.seen.borrow_mut().push((name.to_owned(), bias.detach(), zero));
        Ok(Some(watched))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Convolutional, Smooth, host, normal};

    #[test]
    fn the_terms_of_a_piecewise_linear_network_are_its_score() {
        let score = Convolutional::new(3, true);
        let inputs = Inputs::new(&normal(4, &[5, 3, 8, 8])).unwrap();
        for batch in [2, 64] {
            let evaluator = Evaluator::new(&score, batch);
            let terms = FullGradient::default().terms(&evaluator, &inputs).unwrap();
            let layers: Vec<&str> = terms.biases.iter().map(|terms| terms.layer.as_str()).collect();
            assert_eq!(layers, ["conv1", "bn1", "conv2", "fc"]);
            for (total, score) in terms.totals().iter().zip(&terms.scores) {
                assert!((total - score).abs() < 1e-4 * score.abs().max(1.0), "{total} {score}");
            }
        }
    }

    #[test]
    fn maps_are_scaled_as_said() {
        let score = Convolutional::new(3, true);
        let inputs = Inputs::new(&normal(4, &[2, 3, 8, 8])).unwrap();
        let evaluator = Evaluator::new(&score, 8);
        let of = |scale| FullGradient { scale }.attribute(&evaluator, &inputs).unwrap();
        let map = of(FullGradientScale::Layer);
        assert_eq!(map.values.dims(), [2, 1, 8, 8]);
        assert!(host(&map.values).iter().all(|value| *value >= 0.0));
        assert!(map.completeness_gaps.unwrap().iter().all(|gap| gap.abs() < 1e-3));
        for map in host(&of(FullGradientScale::Channel).values).chunks_exact(64) {
            let greatest = map.iter().copied().fold(0.0, f32::max);
            assert!((greatest - 1.0).abs() < 1e-5 && map.contains(&0.0));
        }
        assert_eq!(evaluator.passes(), Passes { forward: 4, backward: 4 });
    }

    #[test]
    fn smooth_models_are_refused() {
        let score = Smooth::new(5, &[1, 2, 3]);
        let inputs = Inputs::new(&normal(6, &[2, 1, 2, 3])).unwrap();
        let result = FullGradient::default().attribute(&Evaluator::new(&score, 2), &inputs);
        assert!(matches!(result, Err(AttributionError::NotApplicable(_))));
    }
}
