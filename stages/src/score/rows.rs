//! The rows of the table of scores.

use std::collections::BTreeMap;

use pipe_attribution::metrics::{Mask, Shape};

use super::faithfulness::{score_space, uses_baseline};
use super::maps::Subject;
use super::metric::{Metric, Needs};
use super::{Mode, Params};
use crate::table::{Column, Table};

/// A row of the table.
pub(super) struct Row {
    pub(super) subject: usize,
    pub(super) metric: Metric,
    pub(super) value: Result<f64, String>,
}

/// The rows of one method.
pub(super) struct Scored {
    pub(super) method: String,
    pub(super) map_baseline: Option<String>,
    pub(super) axes: BTreeMap<String, String>,
    pub(super) rows: Vec<Row>,
}

/// What all rows have in common.
pub(super) struct Rows<'a> {
    pub(super) params: &'a Params,
    pub(super) metrics: &'a [Metric],
    pub(super) subjects: &'a [Subject],
    pub(super) masks: Option<&'a BTreeMap<String, Mask>>,
    pub(super) shape: Shape,
    /// Axes that tell maps of one method apart.
    pub(super) axes: &'a [String],
}

impl Rows<'_> {
    /// The mask of a subject's image.
    fn mask(&self, subject: usize) -> Option<&Mask> {
        self.masks?.get(&self.subjects[subject].image)
    }

    /// What removed pixels become, where a metric removes any.
    fn baseline(&self, metric: Metric) -> Option<String> {
        Some(match metric {
            Metric::Insertion => "blur".to_owned(),
            Metric::Irof => "channel mean".to_owned(),
            Metric::Road | Metric::RoadLeastFirst | Metric::RoadGap => "neighbours".to_owned(),
            _ if metric.needs() == Needs::Model && uses_baseline(metric) => {
                self.params.baseline.name().to_owned()
            }
            _ => return None,
        })
    }

    /// What a metric follows.
    fn score(&self, metric: Metric) -> Option<&'static str> {
        (metric.needs() == Needs::Model).then(|| score_space(metric, self.params).name())
    }

    /// The parameters that a metric's values depend on, as JSON.
    fn parameters(&self, metric: Metric) -> String {
        use Metric::*;
        let params = self.params;
        let patch = params.patch_side(self.shape);
        let json = match metric {
            Deletion
            | Insertion
            | PixelFlipping
            | PixelFlippingLeastFirst
            | PixelFlippingGap
            | FaithfulnessEstimate
            | Monotonicity => serde_json::json!({ "steps": params.steps }),
            MonotonicityCorrelation if params.mode == Mode::Quantus => {
                serde_json::json!({ "steps": params.steps, "draws": params.draws, "seed": params.seed })
            }
            MonotonicityCorrelation => serde_json::json!({ "steps": params.steps }),
            RegionPerturbation
            | RegionPerturbationLeastFirst
            | RegionPerturbationGap
            | Selectivity
            | Irof
            | Infidelity
            | NonSensitivity
            | Consistency => serde_json::json!({ "patch": patch }),
            FaithfulnessCorrelation | SensitivityN => {
                serde_json::json!({ "patch": patch, "subsets": params.subsets, "seed": params.seed })
            }
            Road | RoadLeastFirst | RoadGap => serde_json::json!({ "seed": params.seed }),
            MaxSensitivity
            | AvgSensitivity
            | LocalLipschitzEstimate
            | RelativeInputStability
            | RelativeOutputStability
            | RelativeRepresentationStability => {
                serde_json::json!({ "draws": params.draws, "noise": params.noise, "seed": params.seed })
            }
            Continuity => serde_json::json!({ "draws": params.draws }),
            RandomLogit | EfficientParameterRandomisation => serde_json::json!({ "seed": params.seed }),
            ParameterRandomisation => {
                serde_json::json!({ "layer_order": params.layer_order, "seed": params.seed })
            }
            SmoothParameterRandomisation => serde_json::json!({
                "layer_order": params.layer_order, "draws": params.draws, "seed": params.seed,
            }),
            PointingGameTolerant => serde_json::json!({ "tolerance": params.tolerance }),
            _ => serde_json::json!({}),
        };
        json.to_string()
    }

    /// The table of all rows.
    pub(super) fn tabulate(&self, all: &[Scored]) -> Table {
        let rows = || all.iter().flat_map(|scored| scored.rows.iter().map(move |row| (scored, row)));
        let text = |value: &dyn Fn(&Scored, &Row) -> Option<String>| {
            Column::Utf8(rows().map(|(scored, row)| value(scored, row)).collect())
        };
        let number = |value: &dyn Fn(&Row) -> Option<f64>| {
            Column::Float64(rows().map(|(_, row)| value(row)).collect())
        };
        let finite = |row: &Row| row.value.as_ref().ok().copied().filter(|value| value.is_finite());
        let reason = |row: &Row| match &row.value {
            Err(reason) => Some(reason.clone()),
            Ok(value) if !value.is_finite() => Some("the value is not finite".to_owned()),
            Ok(_) => None,
        };
        let mut table = Table::new()
            .with("id", text(&|_, row| Some(self.subjects[row.subject].id.clone())))
            .with("method", text(&|scored, _| Some(scored.method.clone())))
            .with("metric", text(&|_, row| Some(row.metric.name().to_owned())))
            .with("baseline", text(&|_, row| self.baseline(row.metric)))
            .with("value", number(&finite))
            .with("mask_share", number(&|row| self.mask(row.subject).map(Mask::share)))
            .with("mode", text(&|_, _| Some(self.params.mode.name().to_owned())))
            .with("reason", text(&|_, row| reason(row)))
            .with("target", text(&|_, row| self.subjects[row.subject].target.clone()))
            .with("map_baseline", text(&|scored, _| scored.map_baseline.clone()))
            .with("score", text(&|_, row| self.score(row.metric).map(str::to_owned)))
            .with("better", text(&|_, row| Some(row.metric.better().name().to_owned())))
            .with("parameters", text(&|_, row| Some(self.parameters(row.metric))));
        for axis in self.axes {
            table = table.with(axis, text(&|scored, _| scored.axes.get(axis).cloned()));
        }
        let facts = |metric: &Metric| {
            let (better, score) = (metric.better().name(), self.score(*metric));
            let facts = serde_json::json!({ "direction": better, "score": score });
            (metric.name().to_owned(), facts)
        };
        let axes: Vec<&str> =
            std::iter::once("map_baseline").chain(self.axes.iter().map(String::as_str)).collect();
        let facts: serde_json::Map<String, serde_json::Value> = self.metrics.iter().map(facts).collect();
        table
            .with_metadata("metrics", serde_json::Value::Object(facts).to_string())
            .with_metadata("axes", serde_json::json!(axes).to_string())
    }
}
