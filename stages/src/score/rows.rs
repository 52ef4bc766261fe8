//! The rows of the table of scores.

use std::collections::BTreeMap;

use pipe_attribution::metrics::{Mask, Perturbation, Prediction, Shape, patch_depth, patches};
use serde_json::json;

use super::explaining::{BINS, QUANTUS_TRANSLATIONS, SMOOTH_NOISE, noise_of};
use super::faithfulness::{
    COMPACTNESS, EPSILON, NON_SENSITIVE, PERCENTAGES, QUANTUS_REGIONS, QUANTUS_SUBSET, ROAD_NOISE, SHARE,
    SHARES, features_in_step, score_space, steps, uses_baseline,
};
use super::map_metrics::{THRESHOLD, TOP_SHARE, epsilon};
use super::maps::Subject;
use super::metric::{Metric, Needs};
use super::{Mode, Params, ScoreSpace};
use crate::table::{Column, Table};

/// A row of the table.
pub(super) struct Row {
    pub(super) subject: usize,
    pub(super) metric: Metric,
    /// Of a metric that is a mean over layers: how many of them were drawn anew, or which of them in turn.
    pub(super) step: Option<usize>,
    pub(super) value: Result<f64, String>,
    /// Of a metric that draws changed images: the share of draws that left the predicted class, if that matters.
    pub(super) kept: Option<f64>,
}

impl Row {
    /// What stands in the column `metric`: a step is no figure of the metric itself.
    fn name(&self) -> String {
        match self.step {
            Some(_) => step_name(self.metric),
            None => self.metric.name().to_owned(),
        }
    }
}

fn step_name(metric: Metric) -> String {
    format!("{}_step", metric.name())
}

/// The rows of one method.
pub(super) struct Scored {
    pub(super) method: String,
    pub(super) map_baseline: Option<String>,
    pub(super) axes: BTreeMap<String, String>,
    /// How its maps predict what a change costs.
    pub(super) prediction: Prediction,
    /// Whether logits are margins over another class.
    pub(super) of_margins: bool,
    /// Of each subject whether the model is right about it, if the maps say so.
    pub(super) is_right: Vec<Option<bool>>,
    pub(super) rows: Vec<Row>,
}

/// What all rows have in common.
pub(super) struct Rows<'a> {
    pub(super) params: &'a Params,
    pub(super) metrics: &'a [Metric],
    pub(super) subjects: &'a [Subject],
    /// What the image of each subject belongs to, such as a patient.
    pub(super) groups: Vec<Option<String>>,
    pub(super) masks: Option<&'a BTreeMap<String, Mask>>,
    pub(super) shape: Shape,
    /// Whether they explain the similarity of images and texts.
    pub(super) of_texts: bool,
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
            Metric::Road | Metric::RoadLeastFirst | Metric::RoadGap | Metric::RoadAgreementGap => {
                "neighbours".to_owned()
            }
            Metric::MonotonicityCorrelation if self.params.mode == Mode::Quantus => "uniform".to_owned(),
            _ if metric.needs() == Needs::Model && uses_baseline(metric) => {
                self.params.removal().name().to_owned()
            }
            _ => return None,
        })
    }

    /// What a metric follows.
    fn score(&self, metric: Metric) -> Option<&'static str> {
        (metric.needs() == Needs::Model).then(|| match score_space(metric, self.params) {
            ScoreSpace::Logit | ScoreSpace::Probability if self.of_texts => "similarity",
            space => space.name(),
        })
    }

    /// The same of the maps of one method.
    fn score_of(&self, scored: &Scored, metric: Metric) -> Option<&'static str> {
        let is_margin = |name| scored.of_margins && ["logit", "similarity"].contains(&name);
        self.score(metric).map(|name| if is_margin(name) { "margin" } else { name })
    }

    /// The parameters that a metric's values depend on, as JSON: those that are in effect, whether they were given
    /// or are the stage's.
    fn parameters(&self, metric: Metric, prediction: Prediction) -> String {
        use Metric::*;
        let (params, shape) = (self.params, self.shape);
        let is_quantus = params.mode == Mode::Quantus;
        let side = params.patch_side(shape);
        let patches = || patches(shape, side).len();
        let patch = match shape.depth {
            Some(_) => json!([patch_depth(shape, side), side, side]),
            None => json!(side),
        };
        let steps = steps(params, shape);
        let json = match metric {
            PixelFlipping | FaithfulnessEstimate | Monotonicity if is_quantus => {
                json!({ "features_in_step": features_in_step(params, shape) })
            }
            Deletion
            | Insertion
            | PixelFlipping
            | PixelFlippingLeastFirst
            | PixelFlippingGap
            | FaithfulnessEstimate
            | Monotonicity => json!({ "steps": steps }),
            MonotonicityCorrelation if is_quantus => json!({
                "features_in_step": features_in_step(params, shape), "draws": params.draws, "epsilon": EPSILON,
                "seed": params.seed,
            }),
            MonotonicityCorrelation => json!({ "steps": steps, "epsilon": EPSILON }),
            RegionPerturbation | RegionPerturbationLeastFirst if is_quantus => {
                json!({ "patch": patch, "regions": patches().min(QUANTUS_REGIONS) })
            }
            Irof if shape.depth.is_none() => {
                json!({ "segments": params.segments, "compactness": COMPACTNESS })
            }
            RegionPerturbation
            | RegionPerturbationLeastFirst
            | RegionPerturbationGap
            | Selectivity
            | Irof
            | Consistency => json!({ "patch": patch }),
            Infidelity if is_quantus => json!({ "patch": patch, "prediction": "local", "scaled": false }),
            Infidelity => {
                let prediction = match prediction {
                    Prediction::Local => "local",
                    Prediction::Global => "global",
                };
                json!({ "patch": patch, "prediction": prediction, "scaled": true })
            }
            NonSensitivity if is_quantus => json!({ "epsilon": EPSILON }),
            NonSensitivity => json!({ "patch": patch, "epsilon": NON_SENSITIVE }),
            FaithfulnessCorrelation if is_quantus => {
                json!({ "subsets": params.subsets, "features": QUANTUS_SUBSET, "seed": params.seed })
            }
            FaithfulnessCorrelation => json!({
                "patch": patch, "subsets": params.subsets, "share": SHARE, "seed": params.seed,
            }),
            SensitivityN => json!({
                "patch": patch, "subsets": params.subsets, "share": SHARES, "seed": params.seed,
            }),
            Road | RoadLeastFirst | RoadGap | RoadAgreementGap => {
                json!({ "percentages": PERCENTAGES, "noise": ROAD_NOISE, "seed": params.seed })
            }
            MaxSensitivity
            | AvgSensitivity
            | LocalLipschitzEstimate
            | RelativeInputStability
            | RelativeOutputStability
            | RelativeRepresentationStability => {
                let noise = match noise_of(metric, params) {
                    Perturbation::Normal { deviation } => json!({ "normal": deviation }),
                    Perturbation::Uniform { low, high } => json!({ "uniform": [low, high] }),
                };
                json!({
                    "draws": params.draws, "noise": noise, "of_range": !is_quantus, "seed": params.seed,
                })
            }
            Continuity if is_quantus => json!({ "draws": QUANTUS_TRANSLATIONS }),
            Continuity => json!({ "draws": params.draws }),
            RandomLogit => json!({ "likeness": params.likeness_of(metric), "seed": params.seed }),
            EfficientParameterRandomisation => json!({ "bins": BINS, "seed": params.seed }),
            EntropyCorrelation => json!({
                "layer_order": params.order_of(metric), "bins": BINS, "seed": params.seed,
            }),
            ParameterRandomisation => {
                json!({
                    "layer_order": params.order_of(metric), "likeness": params.likeness_of(metric),
                    "seed": params.seed,
                })
            }
            SmoothParameterRandomisation => json!({
                "layer_order": params.order_of(metric), "likeness": params.likeness_of(metric),
                "draws": params.draws, "noise": SMOOTH_NOISE,
                "seed": params.seed,
            }),
            PointingGameTolerant => json!({ "tolerance": params.tolerance_of(shape) }),
            TopKIntersection => json!({ "share": TOP_SHARE }),
            EffectiveComplexity => json!({ "epsilon": epsilon(params.mode.into()) }),
            Sufficiency => json!({ "threshold": THRESHOLD }),
            _ => json!({}),
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
            .with("metric", text(&|_, row| Some(row.name())))
            .with("baseline", text(&|_, row| self.baseline(row.metric)))
            .with("value", number(&finite))
            .with("mask_share", number(&|row| self.mask(row.subject).map(Mask::share)))
            .with("mode", text(&|_, _| Some(self.params.mode.name().to_owned())))
            .with("reason", text(&|_, row| reason(row)))
            .with("target", text(&|_, row| self.subjects[row.subject].target.clone()))
            .with("map_baseline", text(&|scored, _| scored.map_baseline.clone()))
            .with("score", text(&|scored, row| self.score_of(scored, row.metric).map(str::to_owned)))
            .with("better", text(&|_, row| Some(row.metric.better().name().to_owned())))
            .with("parameters", text(&|scored, row| Some(self.parameters(row.metric, scored.prediction))))
            .with("correct", Column::Bool(rows().map(|(scored, row)| scored.is_right[row.subject]).collect()))
            .with("group_id", text(&|_, row| self.groups[row.subject].clone()))
            .with("step", Column::Int64(rows().map(|(_, row)| row.step.map(|step| step as i64)).collect()))
            .with("kept_share", number(&|row| row.kept));
        for axis in self.axes {
            table = table.with(axis, text(&|scored, _| scored.axes.get(axis).cloned()));
        }
        let facts = |metric: &Metric| {
            let (better, score) = (metric.better().name(), self.score(*metric));
            let facts = json!({ "direction": better, "score": score });
            let names = std::iter::once(metric.name().to_owned())
                .chain(metric.is_of_layers().then(|| step_name(*metric)));
            names.map(move |name| (name, facts.clone())).collect::<Vec<_>>()
        };
        let axes: Vec<&str> =
            std::iter::once("map_baseline").chain(self.axes.iter().map(String::as_str)).collect();
        let facts: serde_json::Map<String, serde_json::Value> = self.metrics.iter().flat_map(facts).collect();
        table
            .with_metadata("metrics", serde_json::Value::Object(facts).to_string())
            .with_metadata("axes", json!(axes).to_string())
    }
}
