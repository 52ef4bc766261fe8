//! `card.model`: a trained model as a folder to hand on or to publish: its files, and a card with what it is for,
//! how it was trained and what it reaches (the headings of Mitchell et al. 2019, "Model Cards for Model
//! Reporting"). The card begins as Hugging Face's model cards do, with the results as its `model-index`.

mod page;
#[cfg(test)]
mod tests;

use pipe_engine::cache::reflink_or_copy;
use pipe_engine::{
    Artifact, ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::table::{provenance, read};

/// Parameters of `card.model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The name of the model.
    pub name: String,
    /// What it is, in a sentence or more.
    pub description: String,
    /// The terms under which it may be used: an SPDX identifier such as `MIT`, or an address.
    pub licence: String,
    /// The models that it was made of, as the hub names them: `openai/clip-vit-base-patch32`.
    pub base_models: Vec<String>,
    /// Who may use it for what.
    pub intended_use: String,
    /// What it must not be used for, and what is known to go wrong.
    pub limits: String,
    /// What it was trained on, in words.
    pub training_data: String,
    /// What the figures were taken on: the name of the data set.
    pub evaluation_data: String,
    /// How to cite it.
    pub citation: String,
}

impl Default for Params {
    fn default() -> Self {
        let none = String::new;
        Self {
            name: "model".to_owned(),
            description: none(),
            licence: none(),
            base_models: Vec::new(),
            intended_use: "Research on methods.".to_owned(),
            limits: "Not a medical device: no finding of it may decide on a patient.".to_owned(),
            training_data: none(),
            evaluation_data: "test data".to_owned(),
            citation: none(),
        }
    }
}

/// Writes a model with its card.
pub struct ModelCard;

const MODELS: &[ArtifactType] = &[artifact::CHECKPOINT, artifact::ANSWER_MODEL];

/// A figure of the model.
struct Figure {
    /// The axes of the evaluation, as `name=value`.
    of: String,
    task: String,
    split: String,
    method: Option<String>,
    /// With its k: `recall@5`.
    metric: String,
    class: Option<String>,
    subgroup: Option<String>,
    dataset: Option<String>,
    protocol: Option<String>,
    value: f64,
    interval: Option<(f64, f64)>,
    n: i64,
}

/// How the model was trained, by what its learning curves tell of themselves.
struct Training {
    kind: String,
    /// Those that were set, and the defaults.
    params: serde_json::Map<String, serde_json::Value>,
    /// The name of each input with its digests.
    inputs: Vec<(String, Vec<String>)>,
}

impl StageKind for ModelCard {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "card.model",
            summary: "writes a trained model as a folder that stands alone: its files and a card with its results",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![
                InputPort::required("model", MODELS, "the model"),
                InputPort {
                    required: false,
                    ..InputPort::fan_in("metrics", &[artifact::METRICS], "what it reached")
                },
                InputPort::optional(
                    "log",
                    &[artifact::TRAINING_LOG],
                    "its learning curves: how it was trained",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("folder", artifact::MODEL_FOLDER, "`README.md` and the files of the model")]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        if !params.name.trim().is_empty() {
            return Vec::new();
        }
        let help = Some("such as `name = \"BiomedCLIP on BreastMNIST\"`".to_owned());
        vec![ParameterProblem { path: "name".to_owned(), message: "a model has a name".to_owned(), help }]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut figures = Vec::new();
        for input in context.inputs("metrics") {
            let axes: Vec<String> =
                input.axes.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
            figures.extend(self::figures(&input.artifact, &axes.join(", "))?);
        }
        let training = context.optional_input("log").map(training).transpose()?.flatten();
        let model = context.input("model")?.clone();
        let output = context.output("folder")?;
        for file in &model.files {
            // The card is this stage's; a card that came with the weights is kept beside it.
            let name = if file.path == "README.md" { "README.source.md" } else { &file.path };
            let to = output.path(name)?;
            reflink_or_copy(&file.location, &to)
                .map_err(|error| StageError::environment(format!("writing `{name}`"), error.source))?;
        }
        let text = page::page(params, &model, training.as_ref(), &figures);
        std::fs::write(output.path("README.md")?, text)
            .map_err(|error| StageError::environment("writing `README.md`", error))
    }
}

/// The defined rows of a table of metrics.
fn figures(artifact: &Artifact, of: &str) -> Result<Vec<Figure>, StageError> {
    let table = read(artifact)?;
    let texts = |name: &str| -> Result<Vec<Option<String>>, StageError> {
        match table.column(name) {
            Some(_) => table.as_text(name),
            None => Ok(vec![None; table.rows()]),
        }
    };
    let (values, low, high) = (table.float64("value")?, table.float64("ci_low")?, table.float64("ci_high")?);
    let n = table.int64("n")?;
    let [task, split, method, metric, k, class, subgroup, dataset, protocol] =
        ["task", "split", "method", "metric", "k", "class", "subgroup", "dataset", "protocol"].map(texts);
    let (task, split, method, metric, k) = (task?, split?, method?, metric?, k?);
    let (class, subgroup, dataset, protocol) = (class?, subgroup?, dataset?, protocol?);
    let figure = |row: usize| {
        let name = metric[row].clone()?;
        let k = k[row].as_ref().filter(|_| !name.contains('@')).map(|k| format!("@{k}"));
        Some(Figure {
            of: of.to_owned(),
            task: task[row].clone().unwrap_or_default(),
            split: split[row].clone().unwrap_or_default(),
            method: method[row].clone(),
            metric: format!("{name}{}", k.unwrap_or_default()),
            class: class[row].clone(),
            subgroup: subgroup[row].clone(),
            dataset: dataset[row].clone(),
            protocol: protocol[row].clone(),
            value: values[row]?,
            interval: low[row].zip(high[row]),
            n: n[row].unwrap_or_default(),
        })
    };
    Ok((0..table.rows()).filter_map(figure).collect())
}

/// What the learning curves tell of their making; none if they tell nothing.
fn training(log: &Artifact) -> Result<Option<Training>, StageError> {
    let Some(json) = provenance(log)? else { return Ok(None) };
    let Some(kind) = json["kind"].as_str() else { return Ok(None) };
    let digests = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|one| Some(one.as_str()?.to_owned())).collect()
    };
    let inputs = json["inputs"].as_object().into_iter().flatten();
    Ok(Some(Training {
        kind: kind.to_owned(),
        params: json["params"].as_object().cloned().unwrap_or_default(),
        inputs: inputs.map(|(name, value)| (name.clone(), digests(value))).collect(),
    }))
}
