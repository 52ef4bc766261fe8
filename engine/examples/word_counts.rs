//! A program with one stage kind of its own: `word_counts` counts the words of a text.
//!
//!     cargo run --release -p pipe-engine --example word_counts -- run study.toml

use std::collections::BTreeMap;
use std::process::ExitCode;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, Registry,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `word_counts`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Params {
    /// Words of fewer letters are left out.
    #[schemars(range(min = 1))]
    shortest: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { shortest: 1 }
    }
}

struct WordCounts;

impl StageKind for WordCounts {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "word_counts",
            summary: "counts the words of a text",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![InputPort::required("text", &[ArtifactType::FILE], "a file of text")],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("counts", ArtifactType::TREE, "`counts.tsv`: each word and how often it stands")]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let problem = ParameterProblem {
            path: "shortest".to_owned(),
            message: format!("{} letters are no word", params.shortest),
            help: Some("1 takes all words".to_owned()),
        };
        if params.shortest < 1 { vec![problem] } else { Vec::new() }
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let file = context.input("text")?.single_file()?.clone();
        let text = std::fs::read_to_string(&file.location)
            .map_err(|error| StageError::input(&file.path, error.to_string()))?;
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        let (lines, long) = (text.lines().count() as u64, params.shortest as usize);
        for (place, line) in text.lines().enumerate() {
            context.check_cancelled()?;
            for word in line.split_whitespace().filter(|word| word.chars().count() >= long) {
                *counts.entry(word).or_default() += 1;
            }
            context.progress(place as u64 + 1, lines, "lines", &[]);
        }
        let table: String = counts.iter().map(|(word, count)| format!("{word}\t{count}\n")).collect();
        let path = context.output("counts")?.path("counts.tsv")?;
        std::fs::write(&path, table).map_err(|error| StageError::environment("writing the counts", error))
    }
}

fn main() -> ExitCode {
    pipe_engine::main(&Registry::new().with(WordCounts))
}
