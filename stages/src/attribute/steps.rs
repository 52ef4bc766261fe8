//! How many steps Integrated Gradients take, of images, words and answers alike.

use pipe_attribution::{Baseline, IntegratedGradients, Refined};
use pipe_engine::ParameterProblem;

use super::explanation::GREAT_GAP;
use super::params::Quadrature;

/// The steps of a stage's parameters.
pub(crate) struct Steps {
    /// Points of the path.
    pub(crate) first: i64,
    /// Up to so many where a map's sum misses the difference of scores by more than [`GREAT_GAP`].
    pub(crate) most: Option<i64>,
    /// The rule that places them.
    pub(crate) quadrature: Quadrature,
}

impl Steps {
    /// Integrated Gradients with these steps.
    pub(crate) fn method(&self, baseline: Baseline) -> Box<dyn pipe_attribution::Method> {
        let method = IntegratedGradients {
            steps: self.first.max(1) as usize,
            quadrature: self.quadrature.into(),
            baseline,
            multiply_by_inputs: true,
        };
        match self.most {
            Some(most) => {
                Box::new(Refined { method, most_steps: most.max(1) as usize, tolerance: GREAT_GAP })
            }
            None => Box::new(method),
        }
    }

    /// What is wrong with them, if they are those of `method`.
    pub(crate) fn problems(&self, method: &str) -> Vec<ParameterProblem> {
        let wrong = |path: &str, message: String, help: &str| ParameterProblem {
            path: path.to_owned(),
            message,
            help: Some(help.to_owned()),
        };
        let mut problems = Vec::new();
        let has_steps = method == "integrated_gradients";
        let trapezoid = matches!(self.quadrature, Quadrature::RiemannTrapezoid | Quadrature::Trapezoid);
        if has_steps && trapezoid && self.first < 2 {
            problems.push(wrong("steps", "a trapezoid has two ends".to_owned(), "give at least 2 steps"));
        }
        match self.most {
            Some(_) if !has_steps => problems.push(wrong(
                "most_steps",
                format!("`{method}` has no steps that could be doubled"),
                "leave it out, or choose `integrated_gradients`",
            )),
            Some(most) if most < self.first => problems.push(wrong(
                "most_steps",
                format!("{most} is less than the {} steps that are taken first", self.first),
                "200 to 300 are usual after 50",
            )),
            _ => (),
        }
        problems
    }
}
