//! Shares of the question, and scores of explanations, as rows of a table.

use super::Params;
use super::explanation::{Explained, NOTHING};
use super::removal::{Pieces, Removed};
use crate::table::{Column, Table};
use crate::vqa::Examples;

/// A row of the table of shares and scores.
struct Share {
    id: String,
    method: &'static str,
    metric: String,
    /// What stands for what is absent.
    baseline: Option<&'static str>,
    better: &'static str,
    /// Whether the model is asked for it.
    asks: bool,
    /// Of scores: what is scored, which is the method or a control.
    explanation: Option<&'static str>,
    value: Result<f64, String>,
    parameters: serde_json::Value,
    values: Option<Vec<f32>>,
    target: Option<String>,
    correct: bool,
    image: String,
    split: String,
}

/// The table of shares.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Share>,
}

/// The share of the question in the sum of absolute Shapley values: T-SHAP.
const TEXT_SHARE: &str = "text_share";
/// The same of absolute Integrated Gradients. It depends on the baselines of both modalities, and has a name of its own.
const GRADIENT_SHARE: &str = "ig_text_share";

impl Rows {
    pub(super) fn add(
        &mut self,
        params: &Params,
        examples: &Examples,
        explained: &Explained,
        answer: Option<&str>,
    ) {
        let asked = &examples.asked[explained.question];
        let share = |method, metric: &str, value, parameters, values| Share {
            id: asked.id.clone(),
            method,
            metric: metric.to_owned(),
            baseline: Some(params.baseline.name()),
            better: "none",
            asks: true,
            explanation: None,
            value,
            parameters,
            values,
            target: answer.map(str::to_owned),
            correct: explained.correct,
            image: examples.images[asked.image].id.clone(),
            split: asked.split.clone(),
        };
        if let Some(shares) = &explained.shares {
            let settings = params.modality_share.clone().unwrap_or_default();
            let mut parameters = serde_json::json!({
                "absent": params.absent.name(), "samples": settings.samples, "seed": params.seed,
            });
            let (value, values) = match shares {
                Ok(shares) => {
                    parameters["patches"] = serde_json::json!(shares.patches);
                    parameters["tokens"] = serde_json::json!(shares.tokens);
                    parameters["exact"] = serde_json::json!(shares.exact);
                    parameters["score"] = serde_json::json!(shares.scores[0]);
                    parameters["score_baseline"] = serde_json::json!(shares.scores[1]);
                    let values = shares.values.iter().map(|value| *value as f32).collect();
                    (shares.text().ok_or_else(|| NOTHING.to_owned()), Some(values))
                }
                Err(reason) => (Err(reason.clone()), None),
            };
            self.rows.push(share("mm_shap", TEXT_SHARE, value, parameters, values));
        }
        if let Some(gradient) = &explained.gradient_share {
            let parameters = serde_json::json!({ "absent": params.absent.name(), "steps": params.steps });
            let value = gradient.clone();
            self.rows.push(share(params.method.name(), GRADIENT_SHARE, value, parameters, None));
        }
        for Removed { method, pieces, scores } in explained.removed.iter().flatten() {
            let (baseline, parameters) = match pieces {
                Pieces::Words => (params.absent.name(), serde_json::json!({})),
                Pieces::Patches => {
                    let patches = params.removal.clone().unwrap_or_default().patches;
                    (params.baseline.name(), serde_json::json!({ "patches": patches }))
                }
            };
            for score in scores {
                let metric = format!("{}_{}", pieces.name(), score.metric);
                self.rows.push(Share {
                    baseline: score.asks.then_some(baseline),
                    better: score.better,
                    asks: score.asks,
                    explanation: Some(*method),
                    ..share(*method, &metric, score.value.clone(), parameters.clone(), None)
                });
            }
        }
    }

    /// The table. The explanation tells scores of the method from those of the control; it stands there only if there are
    /// any.
    pub(super) fn table(&self, params: &Params) -> Table {
        let text = |of: &dyn Fn(&Share) -> Option<String>| Column::Utf8(self.rows.iter().map(of).collect());
        let finite = |row: &Share| row.value.as_ref().ok().copied().filter(|value| value.is_finite());
        let reason = |row: &Share| match &row.value {
            Err(reason) => Some(reason.clone()),
            Ok(value) if !value.is_finite() => Some("the value is not finite".to_owned()),
            Ok(_) => None,
        };
        let facts = serde_json::json!({ "direction": "none", "score": "logit" });
        let table = Table::new()
            .with("id", text(&|row| Some(row.id.clone())))
            .with("method", text(&|row| Some(row.method.to_owned())))
            .with("metric", text(&|row| Some(row.metric.clone())))
            .with("baseline", text(&|row| row.baseline.map(str::to_owned)))
            .with("value", Column::Float64(self.rows.iter().map(finite).collect()))
            .with("mask_share", Column::Float64(vec![None; self.rows.len()]))
            .with("mode", text(&|_| Some("reference".to_owned())))
            .with("reason", text(&reason))
            .with("target", text(&|row| row.target.clone()))
            .with("score", text(&|row| row.asks.then(|| "logit".to_owned())))
            .with("better", text(&|row| Some(row.better.to_owned())))
            .with("parameters", text(&|row| Some(row.parameters.to_string())))
            .with("values", Column::ListFloat32(self.rows.iter().map(|row| row.values.clone()).collect()))
            .with("correct", Column::Bool(self.rows.iter().map(|row| Some(row.correct)).collect()))
            .with("image_id", text(&|row| Some(row.image.clone())))
            .with("split", text(&|row| Some(row.split.clone())))
            // The metric says the method; `method` may be an axis of the models.
            .with_metadata("keys", "[]")
            .with_metadata(
                "metrics",
                serde_json::json!({ TEXT_SHARE: facts, GRADIENT_SHARE: facts }).to_string(),
            );
        match params.removal {
            None => table,
            Some(_) => table
                .with("explanation", text(&|row| row.explanation.map(str::to_owned)))
                .with_metadata("axes", r#"["explanation"]"#),
        }
    }
}
