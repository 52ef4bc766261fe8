//! The methods by name, and what is to be known of each.

use pipe_models::ImageTower;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attention::first_layer;
use super::explanation;
use crate::target::ClassScore;

/// The method.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The gradient alone; the map is the greatest absolute value over channels.
    Gradient,
    /// Input (minus the baseline) times gradient.
    InputXGradient,
    /// Input minus baseline times the mean gradient between them.
    IntegratedGradients,
    /// The fall of the score when a window is replaced by the baseline.
    Occlusion,
    /// The gradient averaged over noisy copies of the image.
    #[serde(rename = "smoothgrad")]
    SmoothGrad,
    /// The mean of its squares.
    #[serde(rename = "smoothgrad_squared")]
    SmoothGradSquared,
    /// Its variance.
    #[serde(rename = "vargrad")]
    VarGrad,
    /// The gradient of which only positive parts pass each ReLU that let something pass; for networks
    /// with ReLUs.
    GuidedBackpropagation,
    /// The same through every ReLU.
    Deconvolution,
    /// Differences from the baseline, carried back by the rescale rule; for networks of layers, pointwise
    /// nonlinearities and max pooling.
    DeepLift,
    /// The probability of winning, handed down from the last layer with a grid; for residual networks.
    ExcitationBackpropagation,
    /// The same minus that of the negated classifier.
    ContrastiveExcitationBackpropagation,
    /// Absolute values of input times gradient and of each bias times its gradient; for residual networks.
    FullGradient,
    /// Activations of the last layer with a grid, weighted by the classifier, signed; for networks that take the mean
    /// over that grid and classify it linearly.
    Cam,
    /// The same, weighted by their mean gradients, positive part, for any network; so are the next ones.
    GradCam,
    /// The same, weighted by powers of positive gradients.
    GradCamPlusPlus,
    /// The same, weighted at each place by the positive gradient there.
    LayerCam,
    /// The same, weighted by the score of the image masked by them.
    ScoreCam,
    /// The same, weighted by the fall of the score without them.
    AblationCam,
    /// The probability averaged over random masks of the image.
    Rise,
    /// Image minus baseline times gradient, averaged over noisy copies and random places between them.
    #[serde(rename = "gradient_shap")]
    GradientShap,
    /// The Shapley value of each block of the image, from all subsets of at most 16 blocks.
    ShapleyValues,
    /// Shapley values of blocks from some subsets, by a weighted regression.
    #[serde(rename = "kernel_shap")]
    KernelShap,
    /// The smallest region without which the probability is gone, found by gradient descent.
    MeaningfulPerturbation,
    /// The smallest region that suffices for the class and without which it is gone, found by gradient descent (Dabkowski
    /// and Gal 2017, without a network that is trained to find it).
    IterativeSaliency,
    /// The same, by a network that a stage `masker` has trained: one pass.
    TrainedSaliency,
    /// The product of attention maps; the same for every class.
    AttentionRollout,
    /// The product of attention maps times their gradients (Chefer et al. 2021).
    AttentionRelevance,
    /// The same within the layer that pools the last map by attention: for CLIP's residual networks, whose only
    /// attention it is.
    AttentionPool,
}

/// How the values of an attribution become one map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reduction {
    /// Over channels the greatest absolute value.
    GreatestAbsolute,
    /// The sum over channels: signed maps stay complete.
    Sum,
    /// One of equals: windows and masks span all channels.
    One,
    /// A grid, enlarged; what is negative speaks against the class and is cut off.
    PositiveGrid,
    /// A grid, enlarged.
    Grid,
}

impl Reduction {
    /// Its name in metadata.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GreatestAbsolute => "greatest absolute value",
            Self::Sum => "sum",
            Self::One => "one of equals",
            Self::PositiveGrid => "positive part of a grid, enlarged linearly",
            Self::Grid => "grid, enlarged linearly",
        }
    }
}

impl Method {
    /// Its name in parameters and metadata.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::InputXGradient => "input_x_gradient",
            Self::IntegratedGradients => "integrated_gradients",
            Self::Occlusion => "occlusion",
            Self::SmoothGrad => "smoothgrad",
            Self::SmoothGradSquared => "smoothgrad_squared",
            Self::VarGrad => "vargrad",
            Self::GuidedBackpropagation => "guided_backpropagation",
            Self::Deconvolution => "deconvolution",
            Self::DeepLift => "deep_lift",
            Self::ExcitationBackpropagation => "excitation_backpropagation",
            Self::ContrastiveExcitationBackpropagation => "contrastive_excitation_backpropagation",
            Self::FullGradient => "full_gradient",
            Self::Cam => "cam",
            Self::GradCam => "grad_cam",
            Self::GradCamPlusPlus => "grad_cam_plus_plus",
            Self::LayerCam => "layer_cam",
            Self::ScoreCam => "score_cam",
            Self::AblationCam => "ablation_cam",
            Self::Rise => "rise",
            Self::GradientShap => "gradient_shap",
            Self::ShapleyValues => "shapley_values",
            Self::KernelShap => "kernel_shap",
            Self::MeaningfulPerturbation => "meaningful_perturbation",
            Self::IterativeSaliency => "iterative_saliency",
            Self::TrainedSaliency => "trained_saliency",
            Self::AttentionRollout => "attention_rollout",
            Self::AttentionRelevance => "attention_relevance",
            Self::AttentionPool => "attention_pool",
        }
    }

    /// How its values become one map.
    pub(super) fn reduction(self) -> Reduction {
        match self {
            Self::Gradient | Self::SmoothGrad | Self::GuidedBackpropagation | Self::Deconvolution => {
                Reduction::GreatestAbsolute
            }
            Self::InputXGradient
            | Self::IntegratedGradients
            | Self::DeepLift
            | Self::GradientShap
            | Self::SmoothGradSquared
            | Self::VarGrad => Reduction::Sum,
            Self::Occlusion
            | Self::Rise
            | Self::FullGradient
            | Self::ShapleyValues
            | Self::KernelShap
            | Self::MeaningfulPerturbation
            | Self::IterativeSaliency => Reduction::One,
            Self::GradCam | Self::GradCamPlusPlus | Self::LayerCam | Self::ScoreCam | Self::AblationCam => {
                Reduction::PositiveGrid
            }
            Self::Cam
            | Self::TrainedSaliency
            | Self::AttentionRollout
            | Self::AttentionRelevance
            | Self::AttentionPool
            | Self::ExcitationBackpropagation
            | Self::ContrastiveExcitationBackpropagation => Reduction::Grid,
        }
    }

    /// Whether it is an average over noisy copies of the image.
    pub(super) fn averages_noise(self) -> bool {
        matches!(self, Self::SmoothGrad | Self::SmoothGradSquared | Self::VarGrad)
    }

    /// Whether it explains a probability: what it does is an average over images that are not the one, or
    /// a price that is weighed against the score.
    pub(super) fn explains_probability(self) -> bool {
        matches!(self, Self::Rise | Self::MeaningfulPerturbation)
    }

    /// Whether it explains by how much the class leads: whether it is predicted at all.
    pub(super) fn explains_lead(self) -> bool {
        matches!(self, Self::IterativeSaliency | Self::TrainedSaliency)
    }

    /// Whether what it explains depends on the other classes too.
    pub(super) fn explains_choice(self) -> bool {
        self.explains_probability() || self.explains_lead()
    }

    /// What it explains of a score of classes.
    pub(super) fn explained(self, score: ClassScore<'_>) -> ClassScore<'_> {
        match self {
            _ if self.explains_probability() => score.probability(),
            _ if self.explains_lead() => score.lead(),
            _ => score,
        }
    }

    /// Whether it is defined here for flat images alone: its rules walk their layers, or its mask lies on them.
    pub(super) fn is_of_flat_images(self) -> bool {
        matches!(
            self,
            Self::DeepLift
                | Self::FullGradient
                | Self::ExcitationBackpropagation
                | Self::ContrastiveExcitationBackpropagation
                | Self::MeaningfulPerturbation
                | Self::IterativeSaliency
                | Self::TrainedSaliency
        )
    }

    /// Whether it compares the image with a baseline.
    pub(super) fn has_baseline(self) -> bool {
        matches!(
            self,
            Self::InputXGradient
                | Self::IntegratedGradients
                | Self::Occlusion
                | Self::DeepLift
                | Self::GradientShap
                | Self::ShapleyValues
                | Self::KernelShap
                | Self::MeaningfulPerturbation
                | Self::Rise
        )
    }

    /// Whether each pixel of a window or block has the value of the whole: the sum of such a map counts it as often as
    /// it has pixels.
    pub(super) fn repeats_values(self) -> bool {
        matches!(self, Self::Occlusion | Self::ShapleyValues | Self::KernelShap)
    }

    /// Whether its values are like a gradient: what a change of a pixel costs, per unit of the change. Others say
    /// what the pixel itself costs.
    pub(crate) fn is_local(self) -> bool {
        matches!(self, Self::Gradient | Self::SmoothGrad | Self::GuidedBackpropagation | Self::Deconvolution)
    }

    /// Where in a model its values are, in words.
    pub(super) fn layer(self, tower: &dyn ImageTower, last: Option<i64>) -> String {
        match self {
            Self::Cam
            | Self::GradCam
            | Self::GradCamPlusPlus
            | Self::LayerCam
            | Self::ScoreCam
            | Self::AblationCam => tower.cam_hook().name,
            Self::ExcitationBackpropagation | Self::ContrastiveExcitationBackpropagation => {
                explanation::EXCITED.to_owned()
            }
            Self::AttentionRollout | Self::AttentionRelevance | Self::AttentionPool => {
                let mut hooks = tower.attention_hooks();
                hooks.drain(..first_layer(hooks.len(), last));
                match (hooks.first(), hooks.last()) {
                    (Some(first), Some(last)) if first.name != last.name => {
                        format!("{} to {}", first.name, last.name)
                    }
                    (Some(only), _) => only.name.clone(),
                    _ => "no attention".to_owned(),
                }
            }
            Self::FullGradient => "input and every bias".to_owned(),
            _ => "input".to_owned(),
        }
    }
}
