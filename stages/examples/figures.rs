//! Answers questions about figures, for checks against other packages (`tests/readers/check_figures.py`).
//!
//! `cargo run --release --example figures < questions.json`
//!
//! Reads a JSON list of [`Question`]s and prints the list of their answers. What is undefined is `null`.

use pipe_models::train::logistic::{self, Samples};
use pipe_stages::statistics::{
    ClassifierScores, Method, Task, Zeros, delong, holm, kendall_tau_b, mcnemar, spearman, wilcoxon,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// One figure, or several of the same values.
#[derive(Deserialize)]
#[serde(tag = "figure", rename_all = "snake_case", deny_unknown_fields)]
enum Question {
    /// Scores `[samples, classes]` with the label of each, in MedMNIST's words for the task.
    Classifier { task: String, scores: Vec<Vec<f64>>, targets: Vec<Vec<i64>> },
    /// Two scores of the same samples.
    Delong { first: Vec<f64>, second: Vec<f64>, positive: Vec<bool> },
    /// Counts of samples that one of two classifiers has right.
    Mcnemar { first_only: u64, second_only: u64 },
    /// Paired values. `zeros` is `dropped` or `ranked`; `method` is `exact`, `normal` or `continuity`.
    Wilcoxon { x: Vec<f64>, y: Vec<f64>, zeros: String, method: String },
    /// Probabilities of several tests.
    Holm { p: Vec<Option<f64>> },
    /// Paired values.
    Spearman { x: Vec<f64>, y: Vec<f64> },
    /// Paired values.
    Kendall { x: Vec<f64>, y: Vec<f64> },
    /// Features `[samples, width]` with a class each; `c` is the inverse strength of the penalty.
    Logistic { features: Vec<Vec<f32>>, labels: Vec<usize>, classes: usize, c: f64 },
}

impl Question {
    fn answer(self) -> Result<Value, Box<dyn std::error::Error>> {
        Ok(match self {
            Self::Classifier { task, scores, targets } => {
                let weights = vec![1.0; scores.len()];
                let scores = ClassifierScores::new(Task::parse(&task), scores, targets);
                json!({
                    "auroc": scores.auroc(&weights),
                    "accuracy": scores.accuracy(&weights),
                    "balanced_accuracy": scores.confusion(&weights).and_then(|table| table.balanced_accuracy()),
                    "f1": scores.macro_f1(&weights),
                    "auprc": scores.average_precision(&weights),
                    "brier": scores.brier(&weights),
                    "ece": scores.calibration(&weights).and_then(|bins| bins.expected_error()),
                    "quadratic_kappa": scores.quadratic_kappa(&weights),
                })
            }
            Self::Delong { first, second, positive } => match delong([&first, &second], &positive) {
                Some(test) => {
                    json!({ "auroc": test.auroc, "covariance": test.covariance, "z": test.z, "p": test.p })
                }
                None => Value::Null,
            },
            Self::Mcnemar { first_only, second_only } => {
                let test = mcnemar(first_only, second_only);
                json!({ "exact": test.exact, "corrected": test.corrected })
            }
            Self::Wilcoxon { x, y, zeros, method } => {
                let zeros = match zeros.as_str() {
                    "dropped" => Zeros::Dropped,
                    "ranked" => Zeros::Ranked,
                    other => return Err(format!("`zeros` is `{other}`: it may be dropped or ranked").into()),
                };
                let method = match method.as_str() {
                    "exact" => Method::Exact,
                    "normal" => Method::Normal { continuity: false },
                    "continuity" => Method::Normal { continuity: true },
                    other => {
                        let may = "it may be exact, normal or continuity";
                        return Err(format!("`method` is `{other}`: {may}").into());
                    }
                };
                let test = wilcoxon(&x, &y, zeros, method);
                json!({ "statistic": test.statistic, "p": test.p })
            }
            Self::Holm { p } => json!(holm(&p)),
            Self::Spearman { x, y } => match spearman(&x, &y) {
                Some(correlation) => json!({ "value": correlation.value, "p": correlation.p }),
                None => Value::Null,
            },
            Self::Kendall { x, y } => json!({ "value": kendall_tau_b(&x, &y) }),
            Self::Logistic { features, labels, classes, c } => {
                let width = features.first().map_or(0, Vec::len);
                let features = features.concat();
                let samples = Samples { features: &features, width, labels: &labels, classes };
                let model = logistic::fit(samples, c)?;
                json!({ "weight": model.weight, "bias": model.bias })
            }
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let questions: Vec<Question> = serde_json::from_reader(std::io::stdin().lock())?;
    let answers = questions.into_iter().map(Question::answer).collect::<Result<Vec<Value>, _>>()?;
    println!("{}", serde_json::to_string(&answers)?);
    Ok(())
}
