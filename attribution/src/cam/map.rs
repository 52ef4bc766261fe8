//! The weighted sum of a layer's channels.

use std::cell::RefCell;

use candle_core::{Result as TensorResult, Tensor, Var};
use pipe_models::model::CamHook;
use pipe_models::{PatchGeometry, Probe};

use super::CamWeights;
use crate::evaluator::{Evaluator, Passes, host};
use crate::method::{Attribution, Inputs, Method};
use crate::resize::{Interpolation, resize};
use crate::{AttributionError, Result};

/// Keeps a map's range from zero in [`displayed`].
const DISPLAY_EPSILON: f32 = 1e-7;

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

    /// Cells of the grid.
    pub(super) fn cells(&self) -> usize {
        self.grid.iter().product()
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

/// The least and the greatest value.
pub(super) fn range(values: &[f32]) -> [f32; 2] {
    values.iter().fold([f32::INFINITY, f32::NEG_INFINITY], |[least, greatest], value| {
        [least.min(*value), greatest.max(*value)]
    })
}

/// The sum over channels of `[rows, channels, cells]`.
pub(super) fn summed(values: &[f64], channels: usize, cells: usize) -> Vec<f32> {
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

#[cfg(test)]
mod tests {
    use pipe_models::MaybeProbe;
    use pipe_models::model::ActivationLayout;

    use super::super::testing::{Pooled, cam};
    use super::*;
    use crate::Score;
    use crate::testing::{host, normal};

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
