//! The parameters of `attribute`.

use pipe_engine::ParameterProblem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pairs::class_parameters;
use super::wrapper::check_noise;
use super::{Method, Reduction, Steps, Wrapper};
use crate::compute::{self, Compute, Precision, auto};

/// The rule that places the steps of Integrated Gradients; names are Captum's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quadrature {
    /// Gauss-Legendre nodes.
    #[serde(rename = "gausslegendre")]
    GaussLegendre,
    /// Left ends of equal intervals.
    RiemannLeft,
    /// Right ends.
    RiemannRight,
    /// Middles.
    RiemannMiddle,
    /// Captum's trapezoid, whose weights sum to 1 - 1/steps.
    RiemannTrapezoid,
    /// The trapezoid rule.
    Trapezoid,
}

impl From<Quadrature> for pipe_attribution::Quadrature {
    fn from(rule: Quadrature) -> Self {
        match rule {
            Quadrature::GaussLegendre => Self::GaussLegendre,
            Quadrature::RiemannLeft => Self::RiemannLeft,
            Quadrature::RiemannRight => Self::RiemannRight,
            Quadrature::RiemannMiddle => Self::RiemannMiddle,
            Quadrature::RiemannTrapezoid => Self::RiemannTrapezoid,
            Quadrature::Trapezoid => Self::Trapezoid,
        }
    }
}

/// What an image is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// Zero in the normalised space: the mean colour of the model's pre-training data, a mid grey.
    Zero,
    /// Black.
    Black,
    /// The value `constant` of the normalised space.
    Constant,
    /// The image itself, blurred.
    Blur,
    /// The mean of the training split, pixel by pixel, among images of the same modality and region.
    Mean,
    /// The image's lesion-free twin.
    Twin,
}

impl Baseline {
    /// Its name in parameters and metadata.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Black => "black",
            Self::Constant => "constant",
            Self::Blur => "blur",
            Self::Mean => "mean",
            Self::Twin => "twin",
        }
    }
}

/// Parameters of `attribute`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The method.
    pub method: Method,
    /// What is wrapped around the method, from the inside out: `["noise_mean", "smoothing"]` blurs the mean over noisy
    /// copies of the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wrap: Vec<Wrapper>,
    /// The class whose logit is explained: `predicted`, `true`, or a class by its name. Multi-label
    /// heads: each predicted label (the likeliest if there is none), or each true one.
    pub target: String,
    /// A text: what is explained is each image's similarity with it, `exp(scale) * cosine`, and the checkpoint needs no
    /// head. With the input `captions` it is the similarity with the image's own captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// A class whose logit is subtracted: what is explained is then the margin between the two. Of similarities: a
    /// text whose similarity is subtracted, or `others`, the mean over the captions of all other images.
    pub against: Option<String>,
    /// What the image is compared with, by Input x Gradient, Integrated Gradients, DeepLIFT, occlusion, RISE, the
    /// Shapley family and meaningful perturbation.
    pub baseline: Baseline,
    /// Baseline `constant`: the value, in the normalised space.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub constant: f64,
    /// Baseline `blur`: the standard deviation in pixels; by default 10 for an image of 224.
    #[schemars(range(min = 0.01, max = 1000.0))]
    pub blur_sigma: Option<f64>,
    /// Integrated Gradients: points between baseline and image.
    #[schemars(range(min = 1, max = 10_000))]
    pub steps: i64,
    /// Integrated Gradients: where the sum of a map misses the difference of scores by more than 5 %, the steps are
    /// doubled until it does not, up to so many. By default they stay what they are.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_steps: Option<i64>,
    /// Integrated Gradients: the rule that places them.
    pub quadrature: Quadrature,
    /// Occlusion: side of the window in pixels; by default the multiple of the patch that is nearest to
    /// 32 in 224, at least one patch.
    #[schemars(range(min = 1, max = 4096))]
    pub window: Option<i64>,
    /// Occlusion: distance between windows in pixels; by default half of that, at least one patch.
    #[schemars(range(min = 1, max = 4096))]
    pub stride: Option<i64>,
    /// Occlusion: whether each window covers one channel alone. The map is then the sum over channels of their falls, and
    /// costs a pass per window and channel.
    #[serde(skip_serializing_if = "is_false")]
    pub per_channel: bool,
    /// Occlusion of volumes: slices of a window; by default in proportion, as `window`.
    #[schemars(range(min = 1, max = 4096))]
    pub slices: Option<i64>,
    /// Occlusion of volumes: slices from one window to the next; by default in proportion, as `stride`.
    #[schemars(range(min = 1, max = 4096))]
    pub slice_stride: Option<i64>,
    /// SmoothGrad, its relatives, Gradient SHAP and what wraps by noise: noisy copies of each image.
    #[schemars(range(min = 1, max = 10_000))]
    pub draws: i64,
    /// SmoothGrad, its relatives, Gradient SHAP and what wraps by noise: the deviation of the noise, as a share of the
    /// range of the image.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub noise: f64,
    /// `wrap` with `smoothing`: the standard deviation in pixels; by default 16 for an image of 224.
    #[schemars(range(min = 0.01, max = 1000.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<f64>,
    /// Attention rollout and relevance: only so many of the last layers; all by default. Chefer et al. take 1 of CLIP.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_layers: Option<i64>,
    /// RISE: masks.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub masks: i64,
    /// RISE: cells of a mask along a side.
    #[schemars(range(min = 1, max = 64))]
    pub cells: i64,
    /// Shapley values and Kernel SHAP: blocks along each side of the image.
    #[schemars(range(min = 1, max = 64))]
    pub blocks: i64,
    /// Kernel SHAP: subsets of blocks; at least two more than blocks.
    #[schemars(range(min = 3, max = 1_000_000))]
    pub coalitions: i64,
    /// Meaningful perturbation and iterative saliency (whose authors take 200): steps of descent.
    #[schemars(range(min = 1, max = 100_000))]
    pub descent_steps: i64,
    /// The splits that are explained; all if empty.
    pub splits: Vec<String>,
    /// At most this many images, the first in the order of the table that pass the filters below. With a
    /// limit the whole table is one action: which images are the first depends on all before them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Only images of these true classes; all if empty.
    pub classes: Vec<String>,
    /// Only images that the model classifies correctly.
    pub only_correct: bool,
    /// Whether random weights take the place of the model's: the control for an explanation. Images,
    /// targets and baselines are still chosen by the model as it is.
    pub random_weights: bool,
    /// Decides random weights, noise and masks.
    pub seed: i64,
    /// Images, steps or windows per pass through the model.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
}

impl Params {
    /// Where and how precisely the model computes.
    pub(crate) fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            method: Method::IntegratedGradients,
            wrap: Vec::new(),
            target: "predicted".to_owned(),
            text: None,
            against: None,
            baseline: Baseline::Zero,
            constant: 0.0,
            blur_sigma: None,
            steps: 50,
            most_steps: None,
            quadrature: Quadrature::GaussLegendre,
            window: None,
            stride: None,
            per_channel: false,
            slices: None,
            slice_stride: None,
            draws: 25,
            noise: 0.15,
            smoothing: None,
            last_layers: None,
            masks: 4000,
            cells: 7,
            blocks: 3,
            coalitions: 200,
            descent_steps: 300,
            splits: vec!["test".to_owned()],
            limit: None,
            classes: Vec::new(),
            only_correct: false,
            random_weights: false,
            seed: 0,
            batch: 32,
            device: auto(),
            precision: Precision::F32,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Params {
    /// The steps of Integrated Gradients.
    pub(super) fn integration(&self) -> Steps {
        Steps { first: self.steps, most: self.most_steps, quadrature: self.quadrature }
    }

    /// How the values of an attribution become one map.
    pub(crate) fn reduction(&self) -> Reduction {
        if self.per_channel { Reduction::Sum } else { self.method.reduction() }
    }

    /// The baseline's name, or that there is none.
    pub(super) fn baseline_name(&self) -> &'static str {
        if self.method.has_baseline() { self.baseline.name() } else { "none" }
    }
}

impl Params {
    /// What is wrong with them, whatever the inputs are.
    pub(super) fn problems(&self) -> Vec<ParameterProblem> {
        let mut problems: Vec<ParameterProblem> = compute::check(&self.device).into_iter().collect();
        problems.extend(self.integration().problems(self.method.name()));
        let mut wrong = |path: &str, message: String, help: &str| {
            problems.push(ParameterProblem { path: path.to_owned(), message, help: Some(help.to_owned()) });
        };
        for (path, window, stride) in
            [("stride", self.window, self.stride), ("slice_stride", self.slices, self.slice_stride)]
        {
            if let (Some(window), Some(stride)) = (window, stride)
                && stride > window
            {
                wrong(
                    path,
                    format!("windows of {window} that stand {stride} apart leave gaps"),
                    "a stride of at most the window covers everything",
                );
            }
        }
        let blocks = self.blocks * self.blocks;
        if self.method == Method::ShapleyValues && blocks > 16 {
            wrong(
                "blocks",
                format!("{blocks} blocks have 2^{blocks} subsets"),
                "at most 4 a side can be exact; `kernel_shap` takes more",
            );
        }
        if self.method == Method::KernelShap && self.coalitions < blocks + 2 {
            wrong(
                "coalitions",
                format!("{} subsets do not tell {blocks} blocks apart", self.coalitions),
                "give several times as many as there are blocks",
            );
        }
        let target = self.text.as_ref().unwrap_or(&self.target);
        if self.against.as_ref() == Some(target) {
            wrong(
                "against",
                format!("`{target}` minus itself is 0 everywhere"),
                "name another one, or leave it out",
            );
        }
        problems.extend(check_noise(&self.wrap, self.method.averages_noise()));
        if self.per_channel && self.method != Method::Occlusion {
            problems.push(ParameterProblem {
                path: "per_channel".to_owned(),
                message: format!("`{}` moves no window", self.method.name()),
                help: Some("leave it out, or choose `occlusion`".to_owned()),
            });
        }
        if self.text.is_some() {
            problems.extend(class_parameters(self));
        }
        problems
    }
}
