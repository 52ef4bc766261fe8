//! The methods that can be applied at any layer, as Rao, Boehle and Schiele set them.

use pipe_attribution::{
    Ablated, Absolute, Attribution, Baseline, Blurred, Cam, CamWeights, GRID_LAYER, Gradient, GuidedGradient,
    InputXGradient, IntegratedGradients, Method, OcclusionDensity, Quadrature, Rise, Rule,
};
use pipe_models::model::{ActivationLayout, CamHook};
use pipe_models::random::Key;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Params;

/// A method of explanation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Explanation {
    /// Absolute gradients, added up over channels.
    Gradient,
    /// Values times gradients.
    InputXGradient,
    /// Values times the mean gradient between zero and them.
    IntegratedGradients,
    /// `input_x_gradient`, blurred (S-IxG).
    SmoothInputXGradient,
    /// `integrated_gradients`, blurred (S-IntGrad).
    SmoothIntegratedGradients,
    /// The absolute gradient of which only positive parts pass each ReLU.
    GuidedBackpropagation,
    /// Falls of the logit without a window, per area: 16 of 224 pixels, or 5 places of a layer.
    Occlusion,
    /// Values weighted by mean gradients, positive part.
    GradCam,
    /// The same, weighted by powers of positive gradients.
    GradCamPlusPlus,
    /// The same, weighted at each place by the positive gradient there.
    LayerCam,
    /// The same, weighted by the logit of the values masked by them: a pass per channel.
    ScoreCam,
    /// The same, weighted by the fall of the logit without them: a pass per channel.
    AblationCam,
    /// The probability of the class averaged over random masks of the values, of which a tenth is kept in 6 x 6 cells: a
    /// pass per mask.
    Rise,
}

/// The deviation of smoothing in a cell of 224 pixels: that of a kernel of 65, one of the paper's.
const SMOOTHING_OF_224: f64 = 16.0;

/// Masks of RISE, their cells along a side, and the share of cells that is kept: the paper's, but for the number, which is
/// that of the authors' example.
const MASKS: i64 = 1000;
const MASK_CELLS: usize = 6;
const KEPT: f64 = 0.1;

/// The grid as a method sees it.
pub(super) struct Seen<'a> {
    /// Channels, rows and columns of the values that are explained.
    pub(super) row_shape: &'a [usize],
    /// Pixels of a grid and of a cell, along a side.
    pub(super) pixels: [usize; 2],
    /// Whether the values are the pixels themselves.
    pub(super) is_input: bool,
}

impl Explanation {
    /// Those that take no pass per channel.
    pub(super) const USUAL: [Self; 10] = [
        Self::Gradient,
        Self::InputXGradient,
        Self::IntegratedGradients,
        Self::SmoothInputXGradient,
        Self::SmoothIntegratedGradients,
        Self::GuidedBackpropagation,
        Self::Occlusion,
        Self::GradCam,
        Self::GradCamPlusPlus,
        Self::LayerCam,
    ];

    /// Its name in parameters and tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::InputXGradient => "input_x_gradient",
            Self::IntegratedGradients => "integrated_gradients",
            Self::SmoothInputXGradient => "smooth_input_x_gradient",
            Self::SmoothIntegratedGradients => "smooth_integrated_gradients",
            Self::GuidedBackpropagation => "guided_backpropagation",
            Self::Occlusion => "occlusion",
            Self::GradCam => "grad_cam",
            Self::GradCamPlusPlus => "grad_cam_plus_plus",
            Self::LayerCam => "layer_cam",
            Self::ScoreCam => "score_cam",
            Self::AblationCam => "ablation_cam",
            Self::Rise => "rise",
        }
    }

    /// Whether it explains the probability of a class, not its logit: what it gives is an average over images that are not
    /// the one.
    pub(super) fn explains_probability(self) -> bool {
        self == Self::Rise
    }

    /// The method for values that are seen so.
    pub(super) fn method(self, params: &Params, seen: &Seen<'_>) -> Box<dyn Method> {
        let integrated = || IntegratedGradients {
            steps: params.steps.max(1) as usize,
            quadrature: Quadrature::GaussLegendre,
            baseline: Baseline::Zero,
            multiply_by_inputs: true,
        };
        let cam = |weights| {
            let hook = CamHook { name: GRID_LAYER.to_owned(), layout: ActivationLayout::Map };
            let [channels, grid @ ..] = seen.row_shape else {
                unreachable!("values have channels and places")
            };
            Box::new(Cam { hook, grid: grid.to_vec(), prefix: 0, weights, channels: Some(*channels) })
        };
        let [grid, cell] = seen.pixels;
        // In places of the layer, as far apart as those pixels.
        let places = seen.row_shape.last().copied().unwrap_or(1) as f64 / grid.max(1) as f64;
        let sigma = params.smoothing.unwrap_or(SMOOTHING_OF_224 * cell as f64 / 224.0) * places;
        match self {
            Self::Gradient => Box::new(Absolute(Gradient)),
            Self::InputXGradient => Box::new(InputXGradient { baseline: Baseline::Zero }),
            Self::IntegratedGradients => Box::new(integrated()),
            Self::SmoothInputXGradient => {
                Box::new(Blurred { method: InputXGradient { baseline: Baseline::Zero }, sigma })
            }
            Self::SmoothIntegratedGradients => Box::new(Blurred { method: integrated(), sigma }),
            Self::GuidedBackpropagation => Box::new(Absolute(GuidedGradient { rule: Rule::Guided })),
            Self::Occlusion => {
                let [side, stride] = match seen.is_input {
                    true => [16, 8].map(|pixels| (pixels * cell).div_ceil(224)),
                    false => [5, 2],
                };
                Box::new(OcclusionDensity { side, stride, baseline: Baseline::Zero })
            }
            Self::GradCam => cam(CamWeights::Gradient),
            Self::GradCamPlusPlus => cam(CamWeights::ExponentialPlusPlus),
            Self::LayerCam => cam(CamWeights::Layer),
            Self::ScoreCam => cam(CamWeights::Score),
            Self::AblationCam => cam(CamWeights::Ablation(Ablated::Zero)),
            Self::Rise => {
                let key = Key::derive("pipe rise/1", params.seed as u64, &[]);
                let count = params.masks.unwrap_or(MASKS).max(1) as usize;
                let least = seen.row_shape[1..].iter().copied().min().unwrap_or(1);
                Box::new(Rise { grid: MASK_CELLS.min(least), keep: KEPT, ..Rise::new(count, key) })
            }
        }
    }
}

/// The maps of an attribution, channels added up, row by row.
pub(super) fn summed(attribution: &Attribution) -> candle_core::Result<Vec<Vec<f32>>> {
    attribution.values.sum(1)?.flatten_from(1)?.to_vec2()
}
