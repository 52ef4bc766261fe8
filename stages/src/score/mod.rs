//! The stage kind `score`: how good are explanations? Always beside maps that know nothing.

mod controls;
mod faithfulness;
mod map_metrics;
mod maps;
mod masks;
mod metric;
mod references;
mod scoring;
#[cfg(test)]
mod tests;

use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::metric::Metric;
use self::scoring::Scoring;
use crate::artifact;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::lookup::{LookedUp, explained_ids};
use crate::table::{TableSchema, WriteOptions, write};

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
}

impl Baseline {
    fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Black => "black",
            Self::Mean => "mean",
        }
    }
}

/// Parameters of `score`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The metrics; if empty, all that the inputs allow: localisation needs `masks`, deletion and
    /// insertion a `checkpoint`.
    pub metrics: Vec<Metric>,
    /// The tolerant pointing game accepts a maximum this many pixels from the mask; by default 15 for
    /// maps of 224 pixels, in proportion.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub tolerance: Option<f64>,
    /// Only masks of these regions; all if empty. Several masks of an image are taken together.
    pub regions: Vec<String>,
    /// Deletion and insertion: steps from one image to the other.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: i64,
    /// Deletion: what removed pixels become. Insertion starts from a blurred image.
    pub baseline: Baseline,
    /// Which definition is meant, where two exist.
    pub mode: Mode,
    /// The splits that are scored; all if empty.
    pub splits: Vec<String>,
    /// At most this many images, the first in the order of the maps. With this limit or the next, all maps
    /// are one action.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Deletion and insertion of at most this many images, the first in the order of the maps: they are
    /// by far the most expensive metrics. All if left out.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub model_limit: Option<i64>,
    /// Images per pass through the model.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory, not time.
    pub precision: Precision,
    /// Decides the random map.
    pub seed: i64,
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
            metrics: Vec::new(),
            tolerance: None,
            regions: Vec::new(),
            steps: 50,
            baseline: Baseline::Zero,
            mode: Mode::Reference,
            splits: Vec::new(),
            limit: None,
            model_limit: None,
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
            implementation: 2,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::fan_in("saliency", &[artifact::SALIENCY], "the maps of one model by any methods")
                    .class(InputClass::Map),
                InputPort::required("images", &[artifact::IMAGES], "the images that were explained")
                    .class(InputClass::Lookup),
                InputPort::optional("masks", &[artifact::MASKS], "where the lesions are: for localisation")
                    .class(InputClass::Lookup),
                InputPort::optional(
                    "checkpoint",
                    &[artifact::CHECKPOINT],
                    "the model that was explained: for deletion and insertion",
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
        wrong.chain(compute::check(&params.device)).collect()
    }

    /// Not with a limit, which counts images of all maps, nor as Quantus does it, which divides by the
    /// greatest value of all maps. Maps of several methods are scored together, their images once.
    fn is_row_wise(&self, params: &Params, has: &dyn Fn(&str) -> bool) -> bool {
        let needs_all = params.baseline == Baseline::Mean && !has("reference");
        let is_limited = params.limit.is_some() || params.model_limit.is_some();
        !is_limited && !needs_all && params.mode == Mode::Reference
    }

    fn lookup(
        &self,
        _params: &Params,
        (_, parts): (&str, &[Artifact]),
        (_, input): (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        let found = LookedUp::read(input, "image_id", "")?;
        parts.iter().map(|part| Ok(found.digest(&explained_ids(part)?))).collect::<Result<_, _>>().map(Some)
    }

    fn outside_key(&self) -> &'static [&'static str] {
        &OUTSIDE_KEY
    }

    fn numerics(&self, params: &Params) -> Option<String> {
        params.compute().numerics()
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let table = Scoring::read(params, context)?.table()?;
        let provenance = context.provenance().to_owned();
        let options = WriteOptions::row_wise(context, &provenance);
        write(context.output("scores")?, &TableSchema::attribution_scores(), &table, options)
    }
}
