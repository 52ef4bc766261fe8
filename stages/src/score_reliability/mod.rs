//! The stage kind `score.reliability`: can a metric of explanations be trusted on this data (MetaQuantus: Hedström et
//! al. 2023, TMLR)?

mod consistency;
#[cfg(test)]
mod tests;

use pipe_engine::{
    DefaultCpu, InputArtifact, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::consistency::{Consistency, consistency};
use crate::artifact;
use crate::explained::{Explained, Source, explanations};
use crate::metrics::{Metric, write_metrics};
use crate::statistics::Estimate;

/// `score.reliability` has no parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {}

/// Judges metrics of explanations.
pub struct ScoreReliability;

/// What the figures are of, as metrics have it.
const TASK: &str = "explanation metric";

impl StageKind for ScoreReliability {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "score.reliability",
            summary: "whether metrics of explanations stay when little changes, and fall when the prediction does",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![
                InputPort::required(
                    "scores",
                    &[artifact::ATTRIBUTION_SCORES],
                    "scores of one model's explanations",
                ),
                InputPort::fan_in(
                    "minor",
                    &[artifact::ATTRIBUTION_SCORES],
                    "the same after changes that should not matter, one table for each draw",
                ),
                InputPort::fan_in(
                    "disruptive",
                    &[artifact::ATTRIBUTION_SCORES],
                    "the same after changes that should, one table for each draw",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("metrics", artifact::METRICS, "the consistency of each metric, in four parts")]
    }

    fn run(&self, _params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let before = methods(&Source::read("scores".to_owned(), context.input("scores")?)?)?;
        let read = |input: &InputArtifact| methods(&Source::read(input.stage.clone(), &input.artifact)?);
        let draws = |port: &str| context.inputs(port).iter().map(read).collect::<Result<Vec<_>, _>>();
        let (minor, disruptive) = (draws("minor")?, draws("disruptive")?);
        if before.is_empty() {
            context.warn("there are no scores of methods: controls alone say nothing of a metric");
        }
        let mut metrics = Vec::new();
        for Consistency { metric, parts, n } in consistency(&before, &minor, &disruptive) {
            let mut row = |name: &str, value: Result<f64, String>, n: usize| {
                let estimate = value.as_ref().ok().map(|value| Estimate::exact(*value));
                let mut row = Metric::new(TASK, "", name, estimate, n);
                row.method = Some(metric.clone());
                row.reason = value.err();
                metrics.push(row);
            };
            let mut whole = Ok(0.0);
            for ((name, value), n) in parts.into_iter().zip(n) {
                whole = whole.and_then(|sum: f64| Ok(sum + value.clone()? / 4.0));
                row(name, value, n);
            }
            row("meta_consistency", whole, n.iter().sum());
        }
        let provenance = context.provenance().to_owned();
        write_metrics(context.output("metrics")?, &metrics, &provenance)
    }
}

/// The explanations of a table but the controls, which no change of the model's answer reaches.
fn methods(source: &Source) -> Result<Vec<Explained>, StageError> {
    let all = explanations(std::slice::from_ref(source))?;
    Ok(all.into_iter().filter(|one| !one.is_control).collect())
}
