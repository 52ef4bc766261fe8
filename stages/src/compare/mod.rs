//! The stage kind `compare`: whether one model's answers, or one explanation's scores, are better than another's, on
//! the same items.

#[cfg(test)]
mod explained_tests;
mod explanations;
mod items;
mod pairs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::explanations::compare_explanations;
use self::items::{Answers, common, read_answers};
use self::pairs::{Pair, compare_pairs, over_datasets};
use crate::artifact;
use crate::explained::{Source, explanations};
use crate::metrics::{Metric, write_metrics};

/// Parameters of `compare`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The split whose items are compared; all rows if there is none.
    pub split: Option<String>,
    /// The axis whose values are different data: models are compared within each of them, and over all
    /// of them together.
    pub datasets: String,
    /// The model that all others are compared with, by the name of its input (if there are several), its
    /// axis values and, for an ablation, the condition, joined with `/`; every pair is compared without
    /// this. Of scores of explanations: a model (its explanations are the second of each pair of models), a
    /// method (likewise of each pair of methods), or both joined with `/`.
    pub reference: Option<String>,
    /// Retrieval: the k of recall@k.
    #[schemars(inner(range(min = 1)))]
    pub k: Vec<i64>,
    /// A column of the predictions: models are also compared within each of its values. Of questions, open and closed
    /// ones always are, and those of each value.
    pub subgroup: Option<String>,
    /// Protocols that are taken as equal, two or more: models that were asked under any of them are compared over the
    /// items that both have. Without this, figures of different protocols are refused, as they are not comparable;
    /// what the protocol itself does to the same questions is the one thing that only such a comparison shows.
    pub equal_protocols: Vec<String>,
    /// A difference that is less than this, in points of the figure as a share, counts as none: two one-sided tests
    /// say whether it is. To be fixed before the figures are known.
    #[schemars(range(min = 0.0001, max = 1.0))]
    pub margin: f64,
    /// Classifiers: draws the resamples of intervals within classes, as `evaluate.classify` does with the same parameter.
    pub stratified: bool,
    /// Decides the bootstrap.
    pub seed: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            split: None,
            datasets: "dataset".to_owned(),
            reference: None,
            k: vec![1, 5, 10],
            subgroup: None,
            equal_protocols: Vec::new(),
            margin: 0.02,
            stratified: false,
            seed: 0,
        }
    }
}

/// Compares models.
pub struct Compare;

impl StageKind for Compare {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "compare",
            summary: "paired tests of two or more models, or of explanations of models, over the same items",
            implementation: 3,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: Vec::new(),
            free_inputs: Some(InputPort::fan_in(
                "",
                &[artifact::PREDICTIONS, artifact::RANKS, artifact::ATTRIBUTION_SCORES],
                "Predictions or ranks of models, or scores of explanations; several inputs are told apart by their names",
            )),
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new(
            "metrics",
            artifact::METRICS,
            "differences with intervals, effect sizes and corrected probabilities",
        )]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let empty = params.datasets.is_empty().then(|| ParameterProblem {
            path: "datasets".to_owned(),
            message: "an axis has a name".to_owned(),
            help: Some("leave it out if no axis is one of data; the default is `dataset`".to_owned()),
        });
        let alone = (params.equal_protocols.len() == 1).then(|| ParameterProblem {
            path: "equal_protocols".to_owned(),
            message: "a protocol is equal to another one".to_owned(),
            help: Some("name two or more, or none".to_owned()),
        });
        empty.into_iter().chain(alone).collect()
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["stratified"]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut by_dataset: BTreeMap<String, Vec<Answers>> = BTreeMap::new();
        let mut explained: BTreeMap<String, Vec<Source>> = BTreeMap::new();
        let is_only = context.all_inputs().count() == 1;
        for (name, artifacts) in context.all_inputs() {
            for input in artifacts {
                context.check_cancelled()?;
                let dataset = input.axes.get(&params.datasets).cloned().unwrap_or_default();
                let axes = input.axes.iter().filter(|(axis, _)| **axis != params.datasets);
                let mut words: Vec<&str> = axes.map(|(_, value)| value.as_str()).collect();
                if !is_only || words.is_empty() {
                    words.insert(0, name);
                }
                let label = words.join("/");
                if input.artifact.artifact_type == artifact::ATTRIBUTION_SCORES.0 {
                    let source = Source::read(label, &input.artifact)?;
                    explained.entry(dataset).or_default().push(source);
                    continue;
                }
                let answers = read_answers(&label, &input.artifact, params)?;
                by_dataset.entry(dataset).or_default().extend(answers);
            }
        }
        let mut metrics: Vec<Metric> = Vec::new();
        let mut all: Vec<(String, Vec<Answers>)> = Vec::new();
        for (dataset, models) in by_dataset {
            context.check_cancelled()?;
            let pairs = pairs(params, &models, &dataset)?;
            let mut rows = compare_pairs(params, &models, &pairs)?;
            for row in &mut rows {
                row.dataset = (!dataset.is_empty()).then(|| dataset.clone());
            }
            metrics.extend(rows);
            all.push((dataset, models));
        }
        if all.len() > 1 {
            if !params.equal_protocols.is_empty() {
                // Here too only the same items are compared.
                for (_, models) in &mut all {
                    let items = common(&models.iter().collect::<Vec<_>>())?;
                    let same: Vec<Answers> = models.iter().map(|model| model.only(&items)).collect();
                    *models = same;
                }
            }
            metrics.extend(over_datasets(params, &all)?);
        }
        for (dataset, sources) in explained {
            context.check_cancelled()?;
            let mut rows = compare_explanations(params, &explanations(&sources)?)?;
            for row in &mut rows {
                row.dataset = (!dataset.is_empty()).then(|| dataset.clone());
            }
            metrics.extend(rows);
        }
        let provenance = context.provenance().to_owned();
        write_metrics(context.output("metrics")?, &metrics, &provenance)
    }
}

/// The pairs that are compared.
fn pairs(params: &Params, models: &[Answers], dataset: &str) -> Result<Vec<Pair>, StageError> {
    let labels: Vec<&str> = models.iter().map(|model| model.label.as_str()).collect();
    if models.len() < 2 {
        let message = format!("two models are needed to compare; there is {labels:?} {dataset}");
        return Err(StageError::failed(message.trim_end().to_owned()));
    }
    if let Some(label) =
        labels.iter().enumerate().find_map(|(place, label)| labels[..place].contains(label).then_some(label))
    {
        return Err(StageError::failed(format!(
            "two models are called `{label}`; let an axis tell them apart"
        )));
    }
    let Some(reference) = &params.reference else {
        let pair = |first: usize| (first + 1..models.len()).map(move |second| Pair { first, second });
        return Ok((0..models.len()).flat_map(pair).collect());
    };
    let second = labels.iter().position(|label| label == reference).ok_or_else(|| {
        StageError::failed(format!("the reference `{reference}` is none of the models {labels:?}"))
    })?;
    Ok((0..models.len()).filter(|first| *first != second).map(|first| Pair { first, second }).collect())
}
