//! The stage kind `ablate`: what can be had without one of the modalities.
//!
//! A family of tasks has a module of its own, which asks a model again under [`Condition`]s and hands
//! the answers to [`figures`]; what is lost, and whether that is more than chance, is counted there, the
//! same way for all.

mod captions;
mod classification;
mod condition;
mod embedded;
mod figures;
mod image_strata;
mod modality;
mod pixels;
mod prompts;
mod questions;
mod retrieval;
mod strata;
#[cfg(test)]
mod tests;

pub use condition::Condition;

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::classifier::{Prompts, check_prompts};
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::metrics::{Metric, write_metrics};
use crate::table::{Table, TableSchema, WriteOptions, write};

/// What a model of the image alone starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// The CLIP's own image tower.
    Clip,
    /// Its counterpart that was trained without text: the input `unimodal`.
    Unimodal,
    /// The same architecture with random weights.
    Random,
}

/// Parameters of `ablate`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// What is set against the full model; all that the inputs allow, if empty.
    pub conditions: Vec<Condition>,
    /// What the model of the image alone starts from.
    pub init: Init,
    /// The split that is tested.
    pub split: String,
    /// Zero-shot: the texts of each class, by its name. Without this the checkpoint's head is used.
    pub prompts: Prompts,
    /// Zero-shot of independent labels, which need it: the texts that say that a class is not there.
    pub absent: Prompts,
    /// A column of the images table: permutations also stay within its values. In retrieval `modality`
    /// by default, if there is such a column.
    pub stratum: Option<String>,
    /// Permutations of samples, and draws of nonsense.
    #[schemars(range(min = 1, max = 1000))]
    pub permutations: i64,
    /// Image alone and image statistics: inverse strength of regularisation; without it the value of
    /// best accuracy on the validation split (on every fifth training row, if there is none) is taken.
    #[schemars(range(min = 1e-9, max = 1e9))]
    pub c: Option<f64>,
    /// Cells per side of a patch-shuffled image.
    #[schemars(range(min = 2, max = 64))]
    pub grid: i64,
    /// The width of the rim that is kept, as a share of the side.
    #[schemars(range(min = 0.01, max = 0.49))]
    pub border: f64,
    /// Retrieval: the first images of the split that make the pool; all by default.
    #[schemars(range(min = 2, max = 1_000_000))]
    pub pool: Option<i64>,
    /// Retrieval: the k of recall@k.
    #[schemars(inner(range(min = 1)))]
    pub k: Vec<i64>,
    /// Questions: so many of them make the square of images and questions that the closest additive model is taken
    /// from; none with 0.
    #[schemars(range(min = 0, max = 1000))]
    pub additive: i64,
    /// Rows per forward pass.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
    /// A loss against the full model that is less than this, in points of the figure as a share, counts as none: two
    /// one-sided tests say whether it is. To be fixed before the figures are known.
    #[schemars(range(min = 0.0001, max = 1.0))]
    pub margin: f64,
    /// Decides permutations, random weights and the bootstrap.
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
            conditions: Vec::new(),
            init: Init::Clip,
            split: "test".to_owned(),
            prompts: Prompts::new(),
            absent: Prompts::new(),
            stratum: None,
            permutations: 10,
            c: None,
            grid: 4,
            border: 0.2,
            pool: None,
            k: vec![1, 5, 10],
            additive: 100,
            batch: 64,
            device: auto(),
            precision: Precision::F32,
            margin: 0.02,
            seed: 0,
        }
    }
}

/// The splits that models of one modality learn from and are chosen on.
const TRAIN: &str = "train";
const VAL: &str = "val";

/// Asks a model again with less to see.
pub struct Ablate;

impl StageKind for Ablate {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ablate",
            summary: "what a task's figures are without one of the modalities: floors, monomodal models, permutations",
            implementation: 5,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::optional(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images, or volumes that a model of flat images sees one slice of; retrieval from embeddings \
                     needs them for strata",
                ),
                InputPort::optional("labels", &[artifact::LABELS], "classification: their classes"),
                InputPort::optional(
                    "captions",
                    &[artifact::CAPTIONS],
                    "retrieval: their captions; from embeddings it needs them for words; classification: texts of the \
                     images, such as reports, for `text_only`",
                ),
                InputPort::optional(
                    "checkpoint",
                    &[artifact::CHECKPOINT],
                    "the model, with a head unless there are prompts; retrieval needs it only for keywords, or without embeddings",
                ),
                InputPort::optional(
                    "base",
                    &[artifact::CHECKPOINT],
                    "the model that the checkpoint was trained from: the image alone starts there; the checkpoint itself by default",
                ),
                InputPort::optional(
                    "unimodal",
                    &[artifact::CHECKPOINT],
                    "a counterpart that was trained without text, for `init = \"unimodal\"`",
                ),
                InputPort::optional(
                    "image_embeddings",
                    &[artifact::EMBEDDINGS],
                    "embeddings of the images as they are, by the checkpoint (of classification, by it or by `base`); \
                     computed by default",
                ),
                InputPort::optional("text_embeddings", &[artifact::EMBEDDINGS], "those of the captions"),
                InputPort::optional("questions", &[artifact::QUESTIONS], "questions about the images"),
                InputPort::optional("model", &[artifact::ANSWER_MODEL], "questions: the model that answers"),
                InputPort::optional(
                    "question_only",
                    &[artifact::ANSWER_MODEL],
                    "questions: its counterpart that learned from questions alone",
                ),
                InputPort::optional(
                    "image_only",
                    &[artifact::ANSWER_MODEL],
                    "questions: its counterpart that learned from images alone",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("predictions", artifact::PREDICTIONS, "one row per sample, condition and draw"),
            OutputPort::new(
                "metrics",
                artifact::METRICS,
                "figures of every condition and what they lose, with intervals",
            ),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        check_prompts(&params.prompts, &params.absent)
            .into_iter()
            .chain(compute::check(&params.device))
            .collect()
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["absent", "additive"]
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
        let given = |ports: &[&str]| ports.iter().any(|port| context.optional_input(port).is_some());
        let families = [
            given(&["labels"]),
            given(&["text_embeddings"]) || (given(&["captions", "image_embeddings"]) && !given(&["labels"])),
            given(&["questions", "model"]),
        ];
        let results = match families {
            [true, false, false] => classification::ablate(params, context)?,
            [false, true, false] => retrieval::ablate(params, context)?,
            [false, false, true] => questions::ablate(params, context)?,
            _ => {
                let count = families.iter().filter(|given| **given).count();
                let message = format!(
                    "`labels` (classification), captions or embeddings without labels (retrieval) and `questions` \
                     exclude each other; {} given",
                    if count == 0 { "none is" } else { "several are" }
                );
                return Err(StageError::failed(message));
            }
        };
        let provenance = context.provenance().to_owned();
        write(
            context.output("predictions")?,
            &TableSchema::predictions(),
            &results.predictions,
            WriteOptions::text(&provenance),
        )?;
        write_metrics(context.output("metrics")?, &results.metrics, &provenance)
    }
}

/// What a family of tasks gives.
struct Results {
    metrics: Vec<Metric>,
    predictions: Table,
}

impl Params {
    /// The conditions that are asked for: those named, which are refused aloud where the inputs do not
    /// allow them, or all of a family.
    fn wanted(&self, family: &[Condition]) -> Vec<Condition> {
        let wanted = |condition: &Condition| match self.conditions.is_empty() {
            true => family.contains(condition),
            false => self.conditions.contains(condition),
        };
        Condition::ALL.into_iter().filter(wanted).collect()
    }

    /// Whether a condition that the inputs do not allow is shown with the reason: it was asked for.
    fn is_named(&self, condition: Condition) -> bool {
        self.conditions.contains(&condition)
    }
}
