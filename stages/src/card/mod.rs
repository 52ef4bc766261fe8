//! `card`: a data set as a folder that stands alone, to hand on or to publish: its tables as one Parquet file
//! per split, a Croissant description for machines, and a page with counts for people. The page begins as
//! Hugging Face's data set cards do, so that the folder loads with `datasets`.

mod croissant;
mod model;
mod page;
mod split;
#[cfg(test)]
mod tests;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;

pub use model::ModelCard;

/// Parameters of `card`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The name of the data set.
    pub name: String,
    /// What it is, in a sentence or more.
    pub description: String,
    /// The terms under which it may be used: an SPDX identifier such as `CC-BY-4.0`, or an address.
    pub licence: String,
    /// How to cite it.
    pub citation: String,
    /// Where it comes from.
    pub url: String,
}

impl Default for Params {
    fn default() -> Self {
        let none = String::new;
        Self {
            name: "data set".to_owned(),
            description: none(),
            licence: none(),
            citation: none(),
            url: none(),
        }
    }
}

/// Writes a data set as a folder.
pub struct Card;

const ACCEPTS: &[ArtifactType] = &[
    artifact::IMAGES,
    artifact::VOLUMES,
    artifact::LABELS,
    artifact::CAPTIONS,
    artifact::QUESTIONS,
    artifact::MASKS,
    artifact::VOLUME_MASKS,
    artifact::BOXES,
    artifact::KNOWLEDGE,
];

/// One file of a table.
struct SplitFile {
    /// The name of the input.
    table: String,
    /// `train`, `validation`, `test`; `all` of a table without splits.
    split: String,
    /// From the folder of the card.
    path: String,
    bytes: u64,
    sha256: String,
    rows: u64,
}

/// A table with its files.
struct CardTable {
    name: String,
    schema: arrow_schema::SchemaRef,
    files: Vec<SplitFile>,
    /// Of labels: rows of each split and class, by the class's name.
    classes: Vec<(String, String, u64)>,
}

impl StageKind for Card {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "card",
            summary: "writes a data set as a folder that stands alone: Parquet by split, Croissant, a page",
            implementation: 2,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: Vec::new(),
            free_inputs: Some(InputPort::required(
                "",
                ACCEPTS,
                "A table; its name is the name in the folder",
            )),
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new(
            "folder",
            artifact::DATASET,
            "`README.md`, `croissant.json` and the tables under `data/`",
        )]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let problem = |path: &str, message: &str, help: &str| ParameterProblem {
            path: path.to_owned(),
            message: message.to_owned(),
            help: Some(help.to_owned()),
        };
        let mut problems = Vec::new();
        if params.name.trim().is_empty() {
            problems.push(problem("name", "a data set has a name", "such as `name = \"Chest phantoms\"`"));
        }
        if !params.url.is_empty() && !params.url.starts_with("https://") && !params.url.starts_with("http://")
        {
            problems.push(problem(
                "url",
                "it is no address of the net",
                "such as `url = \"https://medmnist.com\"`",
            ));
        }
        problems
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let given: Vec<_> = context
            .all_inputs()
            .filter_map(|(name, artifacts)| Some((name.to_owned(), artifacts.first()?.artifact.clone())))
            .collect();
        let mut tables = Vec::new();
        for (place, (name, artifact)) in given.iter().enumerate() {
            context.check_cancelled()?;
            tables.push(split::write(name, artifact, context.output("folder")?)?);
            context.progress(place as u64 + 1, given.len() as u64, "tables", &[]);
        }
        let output = context.output("folder")?;
        let texts = [
            ("croissant.json", format!("{:#}\n", croissant::describe(params, &tables))),
            ("README.md", page::page(params, &tables)),
        ];
        for (name, text) in texts {
            std::fs::write(output.path(name)?, text)
                .map_err(|error| StageError::environment(format!("writing `{name}`"), error))?;
        }
        Ok(())
    }
}
