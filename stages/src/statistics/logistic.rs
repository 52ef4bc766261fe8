//! Multinomial logistic regression as scikit-learn's: minimise |W|^2 / 2 + C sum of cross entropies,
//! biases not penalised, by L-BFGS in f64.

use std::sync::{Mutex, PoisonError};

use argmin::core::{CostFunction, Executor, Gradient, State};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use pipe_engine::StageError;
use rayon::prelude::*;

/// Rows of the sum that one task adds up; partial sums are added in block order.
const BLOCK: usize = 256;
const ITERATIONS: u64 = 1000;
/// On the norm of the gradient. The penalty alone makes the cost convex with modulus 1, so weights are
/// within this distance of the optimum.
const TOLERANCE: f64 = 1e-7;
/// While C is being chosen, on the gradient of the mean over samples, which is what scikit-learn's default of 1e-4 is
/// of; with the iterations of the CLIP paper (appendix A.3).
const SWEEP_TOLERANCE: f64 = 1e-4;

/// Features `[rows, width]` with a class each.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// Row by row.
    pub features: &'a [f32],
    /// Features of a row.
    pub width: usize,
    /// Below `classes`.
    pub labels: &'a [usize],
    /// Number of classes.
    pub classes: usize,
}

/// A fitted model: logit = weight x + bias.
#[derive(Clone, Debug)]
pub struct Logistic {
    /// `[classes, width]`.
    pub weight: Vec<f64>,
    /// `[classes]`.
    pub bias: Vec<f64>,
}

struct Problem<'a> {
    samples: Samples<'a>,
    c: f64,
    /// The last place that was looked at, with cost and gradient: line searches ask for both.
    seen: Mutex<Option<(Vec<f64>, f64, Vec<f64>)>>,
}

impl<'a> Problem<'a> {
    fn new(samples: Samples<'a>, c: f64) -> Self {
        Self { samples, c, seen: Mutex::new(None) }
    }

    /// Cost and gradient, computed once for each place.
    fn at(&self, parameters: &[f64]) -> (f64, Vec<f64>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some((place, cost, gradient)) if place == parameters => (*cost, gradient.clone()),
            _ => {
                let (cost, gradient) = self.evaluate(parameters);
                *seen = Some((parameters.to_vec(), cost, gradient.clone()));
                (cost, gradient)
            }
        }
    }

    /// Parameters are `[classes, width + 1]`, the bias last.
    fn evaluate(&self, parameters: &[f64]) -> (f64, Vec<f64>) {
        let Samples { features, width, labels, classes } = self.samples;
        let stride = width + 1;
        let blocks: Vec<(f64, Vec<f64>)> = (0..labels.len().div_ceil(BLOCK))
            .into_par_iter()
            .map(|block| {
                let mut cost = 0.0;
                let mut gradient = vec![0.0; classes * stride];
                let mut logits = vec![0.0; classes];
                for row in block * BLOCK..((block + 1) * BLOCK).min(labels.len()) {
                    let x = &features[row * width..(row + 1) * width];
                    for (class, logit) in logits.iter_mut().enumerate() {
                        let w = &parameters[class * stride..(class + 1) * stride];
                        *logit = x.iter().zip(w).map(|(x, w)| f64::from(*x) * w).sum::<f64>() + w[width];
                    }
                    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = logits.iter().map(|logit| libm::exp(logit - max)).sum();
                    cost += max + libm::log(sum) - logits[labels[row]];
                    for (class, logit) in logits.iter().enumerate() {
                        let error = libm::exp(logit - max) / sum - f64::from(u8::from(class == labels[row]));
                        let g = &mut gradient[class * stride..(class + 1) * stride];
                        for (g, x) in g.iter_mut().zip(x) {
                            *g += error * f64::from(*x);
                        }
                        g[width] += error;
                    }
                }
                (cost, gradient)
            })
            .collect();
        let mut cost = 0.0;
        let mut gradient = vec![0.0; classes * stride];
        for (block_cost, block_gradient) in &blocks {
            cost += self.c * block_cost;
            for (sum, value) in gradient.iter_mut().zip(block_gradient) {
                *sum += self.c * value;
            }
        }
        for class in 0..classes {
            for index in class * stride..class * stride + width {
                cost += 0.5 * parameters[index] * parameters[index];
                gradient[index] += parameters[index];
            }
        }
        (cost, gradient)
    }
}

impl CostFunction for Problem<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, parameters: &Vec<f64>) -> Result<f64, argmin::core::Error> {
        Ok(self.at(parameters).0)
    }
}

impl Gradient for Problem<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, parameters: &Vec<f64>) -> Result<Vec<f64>, argmin::core::Error> {
        Ok(self.at(parameters).1)
    }
}

/// Fits from zero; `c` is the inverse strength of the penalty.
///
/// # Errors
/// If the solver fails.
pub fn fit(samples: Samples<'_>, c: f64) -> Result<Logistic, StageError> {
    minimise(samples, c, TOLERANCE, ITERATIONS)
}

fn minimise(samples: Samples<'_>, c: f64, tolerance: f64, iterations: u64) -> Result<Logistic, StageError> {
    let stride = samples.width + 1;
    let start = vec![0.0; samples.classes * stride];
    let failed =
        |error: argmin::core::Error| StageError::failed(format!("logistic regression failed: {error}"));
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10)
        .with_tolerance_grad(tolerance)
        .and_then(|solver| solver.with_tolerance_cost(1e-12))
        .map_err(failed)?;
    let result = Executor::new(Problem::new(samples, c), solver)
        .configure(|state| state.param(start.clone()).max_iters(iterations))
        .run()
        .map_err(failed)?;
    let parameters = result.state().get_best_param().cloned().unwrap_or(start);
    let mut model = Logistic { weight: Vec::new(), bias: Vec::new() };
    for class in parameters.chunks_exact(stride) {
        model.weight.extend_from_slice(&class[..samples.width]);
        model.bias.push(class[samples.width]);
    }
    Ok(model)
}

impl Logistic {
    /// Logits of rows of features: `[rows, classes]`.
    pub fn logits(&self, features: &[f32], width: usize) -> Vec<Vec<f32>> {
        features
            .chunks_exact(width)
            .map(|x| {
                self.weight
                    .chunks_exact(width)
                    .zip(&self.bias)
                    .map(|(w, bias)| {
                        (x.iter().zip(w).map(|(x, w)| f64::from(*x) * w).sum::<f64>() + bias) as f32
                    })
                    .collect()
            })
            .collect()
    }

    /// Share of rows whose greatest logit is their class.
    pub fn accuracy(&self, samples: Samples<'_>) -> f64 {
        let logits = self.logits(samples.features, samples.width);
        let right = logits.iter().zip(samples.labels).filter(|(logits, label)| {
            let values: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
            super::argmax(&values) == **label
        });
        right.count() as f64 / samples.labels.len().max(1) as f64
    }
}

/// The model that a strength is judged by while C is being chosen.
fn candidate(train: Samples<'_>, c: f64) -> Result<Logistic, StageError> {
    minimise(train, c, sweep_tolerance(train, c), ITERATIONS)
}

/// On the gradient of the whole cost, which is C times the number of samples that of the mean.
fn sweep_tolerance(train: Samples<'_>, c: f64) -> f64 {
    SWEEP_TOLERANCE * c * train.labels.len() as f64
}

/// The C of best validation accuracy: seven decades apart, then halving the step in log space around
/// the peak until there are eight steps a decade (CLIP paper, appendix A.3).
///
/// # Errors
/// As [`fit`].
pub fn sweep(train: Samples<'_>, validation: Samples<'_>) -> Result<f64, StageError> {
    let score = |exponent: f64| -> Result<f64, StageError> {
        Ok(candidate(train, libm::pow(10.0, exponent))?.accuracy(validation))
    };
    let (mut best, mut best_score) = (0.0, f64::NEG_INFINITY);
    for exponent in [-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0] {
        let score = score(exponent)?;
        if score > best_score {
            (best, best_score) = (exponent, score);
        }
    }
    let mut step = 1.0;
    while step >= 0.125 {
        for exponent in [best - step, best + step] {
            let score = score(exponent)?;
            if score > best_score {
                (best, best_score) = (exponent, score);
            }
        }
        step /= 2.0;
    }
    Ok(libm::pow(10.0, best))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_that_of_the_cost() {
        let features = [0.5f32, -1.0, 2.0, 0.25, -0.75, 1.5];
        let samples = Samples { features: &features, width: 2, labels: &[0, 2, 1], classes: 3 };
        let problem = Problem::new(samples, 0.7);
        let at: Vec<f64> = (0..9).map(|index| f64::from(index) * 0.1 - 0.3).collect();
        let gradient = problem.gradient(&at).unwrap();
        for index in 0..9 {
            let moved = |by: f64| {
                let mut at = at.clone();
                at[index] += by;
                problem.cost(&at).unwrap()
            };
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((numeric - gradient[index]).abs() < 1e-8, "{index}");
        }
    }

    /// Features of very different scales, weakly penalised, take several hundred steps.
    #[test]
    fn a_strength_is_judged_by_a_model_that_has_converged() {
        let width = 24;
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let scale = |column: usize| libm::powf(10.0, 0.5 - 2.0 * column as f32 / width as f32);
        let features: Vec<f32> = (0..200 * width).map(|place| uniform() * scale(place % width)).collect();
        let labels: Vec<usize> = (0..200).map(|_| usize::from(uniform() > 0.0)).collect();
        let samples = Samples { features: &features, width, labels: &labels, classes: 2 };
        let slope = |model: &Logistic| {
            let parameters: Vec<f64> = (0..2)
                .flat_map(|class| {
                    let weight = &model.weight[class * width..(class + 1) * width];
                    weight.iter().copied().chain([model.bias[class]]).collect::<Vec<_>>()
                })
                .collect();
            let gradient = Problem::new(samples, 100.0).gradient(&parameters).unwrap();
            gradient.iter().map(|value| value * value).sum::<f64>().sqrt()
        };
        let bound = sweep_tolerance(samples, 100.0);
        let cut = slope(&minimise(samples, 100.0, bound, 100).unwrap());
        let converged = slope(&candidate(samples, 100.0).unwrap());
        assert!(cut > bound && converged <= bound, "{cut} after 100 steps, {converged}, {bound}");
    }

    #[test]
    fn separable_classes_are_separated() {
        let features = [0.0f32, 0.0, 0.1, 0.2, 3.0, 3.0, 3.1, 2.9];
        let samples = Samples { features: &features, width: 2, labels: &[0, 0, 1, 1], classes: 2 };
        let model = fit(samples, 10.0).unwrap();
        assert_eq!(model.accuracy(samples), 1.0);
    }
}
