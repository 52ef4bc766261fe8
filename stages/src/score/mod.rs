//! The stage kind `score`: how good are explanations? Always beside maps that know nothing.

mod choice;
mod controls;
mod explaining;
mod faithfulness;
mod layers;
mod map_metrics;
pub(crate) mod maps;
mod masks;
mod metric;
mod references;
mod rows;
mod scoring;
mod seen;
mod similarities;
#[cfg(test)]
mod tests;

use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::controls::is_control;
pub use self::metric::Metric;
use self::metric::Needs;
use self::scoring::Scoring;
use crate::artifact;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::lookup::{LookedUp, explained_ids};
use crate::table::{TableSchema, WriteOptions, metadata, write};

/// Which definition is meant, where the published implementation and the paper differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// What the paper defines, per sample.
    Reference,
    /// What Quantus 0.6.0 computes.
    Quantus,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Quantus => "quantus",
        }
    }
}

impl From<Mode> for pipe_attribution::metrics::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Reference => Self::Reference,
            Mode::Quantus => Self::Quantus,
        }
    }
}

/// What removed pixels become.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// Zero in the normalised space: the mean colour of the model's pre-training data.
    Zero,
    /// Black.
    Black,
    /// The mean of the training split, pixel by pixel, among images of the same modality and region.
    Mean,
    /// The image itself, blurred as insertion blurs it.
    Blur,
    /// Uniform noise between the least and the greatest value of the image, drawn for each value by itself.
    Uniform,
    /// In each channel the mean of the `patch` that a pixel lies in.
    Neighbourhood,
}

impl Baseline {
    fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Black => "black",
            Self::Mean => "mean",
            Self::Blur => "blur",
            Self::Uniform => "uniform",
            Self::Neighbourhood => "neighbourhood",
        }
    }

    /// Whether Quantus has it in a form that its batched metrics accept.
    fn is_in_quantus(self) -> bool {
        matches!(self, Self::Zero | Self::Black | Self::Mean)
    }
}

/// Which metrics are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Localisation, complexity, deletion and insertion.
    Standard,
    /// The recommended set: these, pixel flipping, region perturbation, ROAD, faithfulness correlation,
    /// infidelity, completeness, and, for a random subset of the images, sensitivity, parameter randomisation
    /// and random logit.
    Thesis,
    /// All metrics.
    All,
}

/// What a metric of faithfulness follows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScoreSpace {
    /// The class's logit; of maps that explain its margin over another class, that margin; of maps of images with texts
    /// their similarity.
    Logit,
    /// Its probability.
    Probability,
    /// 1 while the class is predicted, else 0.
    Agreement,
}

impl ScoreSpace {
    fn name(self) -> &'static str {
        match self {
            Self::Logit => "logit",
            Self::Probability => "probability",
            Self::Agreement => "agreement",
        }
    }
}

/// In which order layers are drawn anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerOrder {
    /// From the input on; each stays random when the next becomes so.
    BottomUp,
    /// From the output back.
    TopDown,
    /// One at a time.
    Independent,
}

impl From<LayerOrder> for pipe_attribution::metrics::LayerOrder {
    fn from(order: LayerOrder) -> Self {
        match order {
            LayerOrder::BottomUp => Self::BottomUp,
            LayerOrder::TopDown => Self::TopDown,
            LayerOrder::Independent => Self::Independent,
        }
    }
}

/// How like two maps are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Likeness {
    /// Spearman's correlation.
    Spearman,
    /// Pearson's correlation.
    Pearson,
    /// Kendall's tau-b.
    Kendall,
    /// The cosine of the angle between them.
    Cosine,
    /// Structural similarity in windows of seven pixels, each map over its greatest magnitude. As Quantus has it,
    /// of maps as sequences.
    Ssim,
}

/// The original's tolerance of the pointing game, for maps of 224 pixels.
const TOLERANCE_AT_224: f64 = 15.0;

/// The preset's number of images whose maps are explained again.
const EXPLAINED_BY_PRESET: i64 = 100;

/// Parameters of `score`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The metrics; if empty, those of `preset` that the inputs allow: localisation needs `masks`, everything
    /// that asks the model or explains again a `checkpoint`.
    pub metrics: Vec<Metric>,
    /// Which metrics are computed, if `metrics` names none.
    pub preset: Preset,
    /// The tolerant pointing game accepts a maximum this many pixels from the mask; by default 15 for
    /// maps of 224 pixels, in proportion.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub tolerance: Option<f64>,
    /// Only masks of these regions; all if empty. Several masks of an image are taken together.
    pub regions: Vec<String>,
    /// Steps from one image to the other, where pixels are removed or added.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: i64,
    /// What removed pixels become. Insertion starts from a blurred image, ROAD fills in from neighbours, and
    /// iterative removal of features takes each channel's mean. By default `zero`, in Quantus' mode `black`, which is
    /// the least value of the image there, as `mean` is its mean.
    pub baseline: Option<Baseline>,
    /// What faithfulness follows, where `logit` is the margin of maps that explain one; by default the probability for deletion, insertion, ROAD, iterative removal
    /// of features, monotonicity and non-sensitivity, and the logit for the others. Deletion and insertion
    /// always follow the probability, and `road_agreement_gap` whether the class is predicted. Maps of images with texts
    /// are judged by the similarity.
    pub score: Option<ScoreSpace>,
    /// Side of a patch in pixels, where patches are removed; by default 16 for images of 224, in proportion.
    #[schemars(range(min = 1, max = 4096))]
    pub patch: Option<i64>,
    /// Iterative removal of features: superpixels of an image; volumes have patches.
    #[schemars(range(min = 2, max = 10_000))]
    pub segments: i64,
    /// Faithfulness correlation and sensitivity-n: random subsets.
    #[schemars(range(min = 2, max = 100_000))]
    pub subsets: i64,
    /// Robustness and smooth parameter randomisation: changed images per map.
    #[schemars(range(min = 1, max = 10_000))]
    pub draws: i64,
    /// Robustness: the noise as a share of the range of the image; uniform to both sides, for the Lipschitz
    /// estimate a standard deviation. Quantus' mode has its own.
    #[schemars(range(min = 0.000_001, max = 10.0))]
    pub noise: f64,
    /// Parameter randomisation: in which order layers are drawn anew; by default `bottom_up`, in Quantus' mode
    /// `top_down`.
    pub layer_order: Option<LayerOrder>,
    /// Parameter randomisation and random logit: how like two maps are; by default `spearman`, for random logit in
    /// Quantus' mode `ssim`.
    pub likeness: Option<Likeness>,
    /// Which definition is meant, where two exist.
    pub mode: Mode,
    /// The splits that are scored; all if empty.
    pub splits: Vec<String>,
    /// At most this many images, the first in the order of the maps. With this limit or the next, all maps
    /// are one action.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Metrics that ask the model (deletion, insertion and all that follow) of at most this many images, the
    /// first in the order of the maps. All if left out.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub model_limit: Option<i64>,
    /// Metrics that explain again (robustness, randomisation) of at most this many images, a random subset
    /// that the seed decides: they are by far the most expensive. All if left out; 100 with `preset =
    /// "thesis"`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub explain_limit: Option<i64>,
    /// Images per pass through the model.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
    /// Decides the random map, subsets, noise, random layers and other classes.
    pub seed: i64,
}

impl Params {
    /// Where and how precisely the model computes.
    pub(crate) fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }

    /// The metrics that are asked for, whatever the inputs allow.
    fn wanted(&self) -> Vec<Metric> {
        let is_chosen = |metric: &Metric| match self.preset {
            Preset::Standard => metric.is_standard(),
            Preset::Thesis => metric.is_recommended(),
            Preset::All => true,
        };
        let is_defined = |metric: &Metric| self.mode == Mode::Reference || metric.is_in_quantus();
        match self.metrics.is_empty() {
            true => Metric::ALL.iter().copied().filter(is_chosen).filter(is_defined).collect(),
            false => self.metrics.clone(),
        }
    }

    /// What removed pixels become.
    fn removal(&self) -> Baseline {
        self.baseline.unwrap_or(match self.mode {
            Mode::Reference => Baseline::Zero,
            Mode::Quantus => Baseline::Black,
        })
    }

    /// The number of images whose maps are explained again.
    fn explained(&self) -> Option<usize> {
        let by_preset = self.metrics.is_empty() && self.preset == Preset::Thesis;
        let limit = self.explain_limit.or(by_preset.then_some(EXPLAINED_BY_PRESET));
        limit.map(|limit| limit.max(1) as usize)
    }

    /// The tolerance of the pointing game in pixels of maps of this shape.
    fn tolerance_of(&self, shape: pipe_attribution::metrics::Shape) -> f64 {
        self.tolerance.unwrap_or(TOLERANCE_AT_224 * shape.height as f64 / 224.0)
    }

    /// The order of layers of a metric of parameter randomisation.
    fn order_of(&self, metric: Metric) -> LayerOrder {
        self.layer_order.unwrap_or(match metric {
            Metric::ParameterRandomisation if self.mode == Mode::Quantus => LayerOrder::TopDown,
            _ => LayerOrder::BottomUp,
        })
    }

    /// How a metric compares maps.
    fn likeness_of(&self, metric: Metric) -> Likeness {
        self.likeness.unwrap_or(match metric {
            Metric::RandomLogit if self.mode == Mode::Quantus => Likeness::Ssim,
            _ => Likeness::Spearman,
        })
    }

    /// The side of a patch of images of this shape.
    fn patch_side(&self, shape: pipe_attribution::metrics::Shape) -> usize {
        let by_size = || (shape.height as f64 * 16.0 / 224.0).round().max(1.0) as usize;
        self.patch.map_or_else(by_size, |side| side.max(1) as usize).min(shape.height)
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            metrics: Vec::new(),
            preset: Preset::Standard,
            tolerance: None,
            regions: Vec::new(),
            steps: 50,
            baseline: None,
            score: None,
            patch: None,
            segments: 100,
            subsets: 100,
            draws: 10,
            noise: 0.1,
            layer_order: None,
            likeness: None,
            mode: Mode::Reference,
            splits: Vec::new(),
            limit: None,
            model_limit: None,
            explain_limit: None,
            batch: 64,
            device: auto(),
            precision: Precision::F32,
            seed: 0,
        }
    }
}

/// Scores explanations.
pub struct Score;

impl StageKind for Score {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "score",
            summary: "how well saliency maps point at lesions and at what the model uses, beside maps that know nothing",
            implementation: 7,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::fan_in("saliency", &[artifact::SALIENCY], "the maps of one model by any methods")
                    .class(InputClass::Map),
                InputPort::required(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images or volumes that were explained",
                )
                .class(InputClass::Lookup),
                InputPort::optional(
                    "masks",
                    &[artifact::MASKS, artifact::VOLUME_MASKS],
                    "where the lesions are: for localisation",
                )
                .class(InputClass::Lookup),
                InputPort::optional(
                    "checkpoint",
                    &[artifact::CHECKPOINT],
                    "the model that was explained: for metrics that ask it or explain again",
                ),
                InputPort::optional(
                    "reference",
                    &[artifact::IMAGES],
                    "the images whose training split is averaged: for baseline `mean`, and for the control \
                     |image - mean|",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new(
            "scores",
            artifact::ATTRIBUTION_SCORES,
            "one row per image, class, method and metric",
        )]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let wrong = params.metrics.iter().enumerate().filter_map(|(index, metric)| {
            let message = match metric {
                _ if params.metrics[..index].contains(metric) => {
                    format!("`{}` stands twice", metric.name())
                }
                _ if params.mode == Mode::Quantus && !metric.is_in_quantus() => {
                    format!("Quantus has no `{}`", metric.name())
                }
                _ => return None,
            };
            Some(ParameterProblem { path: format!("metrics[{index}]"), message, help: None })
        });
        let baseline =
            (params.mode == Mode::Quantus && !params.removal().is_in_quantus()).then(|| ParameterProblem {
                path: "baseline".to_owned(),
                message: format!("Quantus has no `{}` for whole batches", params.removal().name()),
                help: Some("`zero`, `black` or `mean`; or leave out `mode`".to_owned()),
            });
        wrong.chain(baseline).chain(compute::check(&params.device)).collect()
    }

    /// Not with a limit, which counts images of all maps, nor with metrics that compare images, nor as Quantus
    /// does it, which divides by the greatest value of all maps. Maps of several methods are scored together, their images once.
    fn is_row_wise(&self, params: &Params, has: &dyn Fn(&str) -> bool) -> bool {
        let needs_all = params.removal() == Baseline::Mean && !has("reference");
        let is_limited =
            params.limit.is_some() || params.model_limit.is_some() || params.explained().is_some();
        let compares_images = params.wanted().iter().any(|metric| metric.needs() == Needs::Predictions);
        !is_limited && !needs_all && !compares_images && params.mode == Mode::Reference
    }

    fn lookup(
        &self,
        _params: &Params,
        (_, parts): (&str, &[Artifact]),
        (port, input): (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        // What the numbers in masks of volumes stand for.
        let regions = match port {
            "masks" => metadata(input)?.get("regions").cloned().unwrap_or_default(),
            _ => String::new(),
        };
        let found = LookedUp::read(input, "image_id", &regions)?;
        parts.iter().map(|part| Ok(found.digest(&explained_ids(part)?))).collect::<Result<_, _>>().map(Some)
    }

    fn outside_key(&self) -> &'static [&'static str] {
        &OUTSIDE_KEY
    }

    fn numerics(&self, params: &Params) -> Option<String> {
        params.compute().numerics()
    }

    fn take_devices(&self, params: &mut Params, gpus: &[usize]) {
        compute::take_gpu(&mut params.device, gpus);
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let table = Scoring::read(params, context)?.table()?;
        let provenance = context.provenance().to_owned();
        let options = WriteOptions::row_wise(context, &provenance);
        write(context.output("scores")?, &TableSchema::attribution_scores(), &table, options)
    }
}
