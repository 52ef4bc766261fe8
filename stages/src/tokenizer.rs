//! The stage kind `tokenizer`: trains a small byte-level BPE on captions and questions.

use std::collections::BTreeSet;

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, PortAxes, StageContext, StageError,
    StageKind,
};
use pipe_models::Tokenizer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::model::{checkpoint_error, write_text};
use crate::table::read_columns;

/// Parameters of `tokenizer`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The greatest number of ids, the two marks left out.
    #[schemars(range(min = 512, max = 65536))]
    pub vocab_size: i64,
    /// The splits whose texts are read.
    pub splits: Vec<String>,
}

impl Default for Params {
    fn default() -> Self {
        Self { vocab_size: 1024, splits: vec!["train".to_owned()] }
    }
}

/// Trains a tokeniser.
pub struct TrainTokenizer;

impl StageKind for TrainTokenizer {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "tokenizer",
            summary: "trains a byte-level BPE in CLIP's format on the texts of tables",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![InputPort {
                axes: PortAxes::Ignored,
                ..InputPort::fan_in(
                    "text",
                    &[artifact::CAPTIONS, artifact::QUESTIONS],
                    "the tables whose captions or questions are read",
                )
            }],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("tokenizer", artifact::TOKENIZER, "tokenizer.json")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let mut texts = BTreeSet::new();
        for input in context.inputs("text") {
            let table = read_columns(&input.artifact, &["split", "caption", "question"])?;
            let rows = table.rows_of_splits(&splits);
            for column in ["caption", "question"] {
                if table.column(column).is_some() {
                    let values = table.strings(column)?;
                    texts.extend(rows.iter().map(|row| values[*row].to_owned()));
                }
            }
        }
        context.check_cancelled()?;
        let tokenizer = Tokenizer::train(texts.iter().map(String::as_str), params.vocab_size as usize)
            .map_err(checkpoint_error)?;
        let json = tokenizer.to_json().map_err(checkpoint_error)?;
        let path = context.output("tokenizer")?.path("tokenizer.json")?;
        write_text(&path, &json)
    }
}
