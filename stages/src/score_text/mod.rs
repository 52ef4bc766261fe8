//! The stage kind `score.text`: how good are explanations by words? Always beside values that know nothing.

mod scoring;
#[cfg(test)]
mod tests;
mod words;

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::scoring::Scoring;
use crate::artifact;
use crate::attribute_text::Absent;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::table::{TableSchema, WriteOptions, write};

/// Parameters of `score.text`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// What a caption without a word has in its place.
    pub absent: Absent,
    /// At most this many captions, the first in the order of the words.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Captions that are read at once, and captions with words removed per pass through the text tower.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
    /// Decides the random values.
    pub seed: i64,
}

impl Params {
    /// Where and how precisely the model computes.
    fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            absent: Absent::Word,
            limit: None,
            batch: 32,
            device: auto(),
            precision: Precision::F32,
            seed: 0,
        }
    }
}

/// Scores explanations by words.
pub struct ScoreText;

impl StageKind for ScoreText {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "score.text",
            summary: "what a model loses when the words that explain a caption go, beside words that know nothing",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::fan_in(
                    "words",
                    &[artifact::WORD_SALIENCY],
                    "the words of one model by any methods",
                ),
                InputPort::required(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the captions' images or volumes",
                ),
                InputPort::required("checkpoint", &[artifact::CHECKPOINT], "the model that was explained"),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new(
            "scores",
            artifact::ATTRIBUTION_SCORES,
            "one row per caption, method and metric",
        )]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        compute::check(&params.device).into_iter().collect()
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
        let schema = TableSchema::attribution_scores();
        write(context.output("scores")?, &schema, &table, WriteOptions::text(&provenance))
    }
}
