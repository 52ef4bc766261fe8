//! Multinomial logistic regression as scikit-learn's: minimise |W|^2 / 2 + C sum of cross entropies,
//! biases not penalised, by L-BFGS in f64.

use std::sync::{Mutex, PoisonError};

use argmin::core::{CostFunction, Error, Executor, Gradient, State};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use rayon::prelude::*;

use crate::ops::vectorised;

/// Rows of the sum that one task adds up; partial sums are added in block order.
const BLOCK: usize = 256;
/// Partial sums of a dot product: the order of its sum, on every machine.
const LANES: usize = 16;
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

/// The samples as the cost reads them: in f64, each row followed by 1 (for the bias) and by zeros up to a
/// whole number of lanes. Parameters are `[classes, stride]` in the same layout; those of the zeros stay 0.
struct Design<'a> {
    rows: Vec<f64>,
    stride: usize,
    width: usize,
    labels: &'a [usize],
    classes: usize,
}

impl<'a> Design<'a> {
    fn new(samples: Samples<'a>) -> Self {
        let Samples { features, width, labels, classes } = samples;
        let stride = (width + 1).next_multiple_of(LANES);
        let mut rows = vec![0.0; labels.len() * stride];
        for (row, x) in rows.chunks_exact_mut(stride).zip(features.chunks_exact(width)) {
            for (wide, x) in row.iter_mut().zip(x) {
                *wide = f64::from(*x);
            }
            row[width] = 1.0;
        }
        Self { rows, stride, width, labels, classes }
    }

    /// Weights and biases of parameters.
    fn model(&self, parameters: &[f64]) -> Logistic {
        let mut model = Logistic { weight: Vec::new(), bias: Vec::new() };
        for class in parameters.chunks_exact(self.stride) {
            model.weight.extend_from_slice(&class[..self.width]);
            model.bias.push(class[self.width]);
        }
        model
    }

    /// Sum of cross entropies of some rows, and its gradient `[classes, stride]`.
    #[inline(always)]
    fn block(&self, rows: std::ops::Range<usize>, parameters: &[f64]) -> (f64, Vec<f64>) {
        let (stride, classes) = (self.stride, self.classes);
        let mut cost = 0.0;
        let mut gradient = vec![0.0; classes * stride];
        let mut logits = vec![0.0; classes];
        for row in rows {
            let x = &self.rows[row * stride..(row + 1) * stride];
            for (logit, w) in logits.iter_mut().zip(parameters.chunks_exact(stride)) {
                *logit = dot(x, w);
            }
            let label = self.labels[row];
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            cost += max - logits[label];
            let mut sum = 0.0;
            for logit in &mut logits {
                *logit = libm::exp(*logit - max);
                sum += *logit;
            }
            cost += libm::log(sum);
            for (class, (exponential, gradient)) in
                logits.iter().zip(gradient.chunks_exact_mut(stride)).enumerate()
            {
                let error = exponential / sum - f64::from(u8::from(class == label));
                for (sum, x) in gradient.iter_mut().zip(x) {
                    *sum += error * x;
                }
            }
        }
        (cost, gradient)
    }
}

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

struct Problem<'a> {
    design: &'a Design<'a>,
    c: f64,
    /// The last place that was looked at, with cost and gradient: line searches ask for both.
    seen: Mutex<Option<(Vec<f64>, f64, Vec<f64>)>>,
}

impl<'a> Problem<'a> {
    fn new(design: &'a Design<'a>, c: f64) -> Self {
        Self { design, c, seen: Mutex::new(None) }
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

    fn evaluate(&self, parameters: &[f64]) -> (f64, Vec<f64>) {
        let Design { stride, width, classes, .. } = *self.design;
        let count = self.design.labels.len();
        let blocks: Vec<(f64, Vec<f64>)> = (0..count.div_ceil(BLOCK))
            .into_par_iter()
            .map(|block| {
                let rows = block * BLOCK..((block + 1) * BLOCK).min(count);
                vectorised(
                    #[inline(always)]
                    || self.design.block(rows, parameters),
                )
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

    /// Parameters of least cost by L-BFGS, beginning at `start`.
    fn minimise(self, start: Vec<f64>, tolerance: f64, iterations: u64) -> Result<Vec<f64>, LogisticError> {
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10)
            .with_tolerance_grad(tolerance)
            .and_then(|solver| solver.with_tolerance_cost(1e-12))?;
        let result = Executor::new(self, solver)
            .configure(|state| state.param(start.clone()).max_iters(iterations))
            .run()?;
        Ok(result.state().get_best_param().cloned().unwrap_or(start))
    }
}

impl CostFunction for Problem<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, parameters: &Vec<f64>) -> Result<f64, Error> {
        Ok(self.at(parameters).0)
    }
}

impl Gradient for Problem<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, parameters: &Vec<f64>) -> Result<Vec<f64>, Error> {
        Ok(self.at(parameters).1)
    }
}

/// Why a regression was not fitted.
#[derive(Debug, thiserror::Error)]
#[error("logistic regression failed: {0}")]
pub struct LogisticError(#[from] Error);

/// Fits from zero; `c` is the inverse strength of the penalty.
///
/// # Errors
/// If the solver fails.
pub fn fit(samples: Samples<'_>, c: f64) -> Result<Logistic, LogisticError> {
    let design = Design::new(samples);
    let start = vec![0.0; design.classes * design.stride];
    Ok(design.model(&Problem::new(&design, c).minimise(start, TOLERANCE, ITERATIONS)?))
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
            values
                .iter()
                .enumerate()
                .fold(0, |best, (class, value)| if *value > values[best] { class } else { best })
                == **label
        });
        right.count() as f64 / samples.labels.len().max(1) as f64
    }
}

/// The strengths that were tried, each judged by a model that has converged.
struct Sweep<'a> {
    design: &'a Design<'a>,
    validation: Samples<'a>,
    exponent: f64,
    accuracy: f64,
    parameters: Vec<f64>,
}

impl Sweep<'_> {
    /// Parameters at C = 10^`exponent`, beginning at those of another strength.
    fn converged(&self, exponent: f64, start: &[f64]) -> Result<Vec<f64>, LogisticError> {
        let c = libm::pow(10.0, exponent);
        let tolerance = sweep_tolerance(self.design, c);
        Problem::new(self.design, c).minimise(start.to_vec(), tolerance, ITERATIONS)
    }

    /// Keeps what is better than the best so far; of equals the first.
    fn judge(&mut self, exponent: f64, parameters: &[f64]) {
        let accuracy = self.design.model(parameters).accuracy(self.validation);
        if accuracy > self.accuracy {
            (self.exponent, self.accuracy) = (exponent, accuracy);
            self.parameters = parameters.to_vec();
        }
    }
}

/// On the gradient of the whole cost, which is C times the number of samples that of the mean.
fn sweep_tolerance(design: &Design<'_>, c: f64) -> f64 {
    SWEEP_TOLERANCE * c * design.labels.len() as f64
}

/// The C of best validation accuracy: seven decades apart, then halving the step in log space around
/// the peak until there are eight steps a decade (CLIP paper, appendix A.3). Each regression begins at the
/// weights of a neighbouring strength.
///
/// # Errors
/// As [`fit`].
pub fn sweep(train: Samples<'_>, validation: Samples<'_>) -> Result<f64, LogisticError> {
    let design = Design::new(train);
    let mut parameters = vec![0.0; design.classes * design.stride];
    let mut sweep = Sweep {
        design: &design,
        validation,
        exponent: 0.0,
        accuracy: f64::NEG_INFINITY,
        parameters: parameters.clone(),
    };
    for exponent in [-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0] {
        parameters = sweep.converged(exponent, &parameters)?;
        sweep.judge(exponent, &parameters);
    }
    let mut step = 1.0;
    while step >= 0.125 {
        let (centre, start) = (sweep.exponent, sweep.parameters.clone());
        for exponent in [centre - step, centre + step] {
            let parameters = sweep.converged(exponent, &start)?;
            sweep.judge(exponent, &parameters);
        }
        step /= 2.0;
    }
    Ok(libm::pow(10.0, sweep.exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_that_of_the_cost() {
        let features = [0.5f32, -1.0, 2.0, 0.25, -0.75, 1.5];
        let samples = Samples { features: &features, width: 2, labels: &[0, 2, 1], classes: 3 };
        let design = Design::new(samples);
        let problem = Problem::new(&design, 0.7);
        let mut at = vec![0.0; 3 * design.stride];
        let places: Vec<usize> = (0..9).map(|index| index / 3 * design.stride + index % 3).collect();
        for (index, place) in places.iter().enumerate() {
            at[*place] = index as f64 * 0.1 - 0.3;
        }
        let gradient = problem.gradient(&at).unwrap();
        for place in places {
            let moved = |by: f64| {
                let mut at = at.clone();
                at[place] += by;
                problem.cost(&at).unwrap()
            };
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((numeric - gradient[place]).abs() < 1e-8, "{place}");
        }
        assert!(gradient[3..design.stride].iter().all(|value| *value == 0.0), "{gradient:?}");
    }

    /// Features of very different scales, weakly penalised, take several hundred steps.
    #[test]
    fn a_strength_is_judged_by_a_model_that_has_converged_from_wherever_it_began() {
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
        let design = Design::new(samples);
        let slope = |parameters: &[f64]| {
            let (_, gradient) = Problem::new(&design, 100.0).evaluate(parameters);
            gradient.iter().map(|value| value * value).sum::<f64>().sqrt()
        };
        let bound = sweep_tolerance(&design, 100.0);
        let start = vec![0.0; 2 * design.stride];
        let cut = slope(&Problem::new(&design, 100.0).minimise(start.clone(), bound, 100).unwrap());
        let nothing = Samples { features: &[], width, labels: &[], classes: 2 };
        let sweep = Sweep {
            design: &design,
            validation: nothing,
            exponent: 0.0,
            accuracy: 0.0,
            parameters: Vec::new(),
        };
        let cold = sweep.converged(2.0, &start).unwrap();
        let warm = sweep.converged(2.0, &sweep.converged(1.0, &start).unwrap()).unwrap();
        assert!(
            cut > bound && slope(&cold) <= bound && slope(&warm) <= bound,
            "{cut} after 100 steps, {bound}"
        );
        let accuracy = |parameters: &[f64]| design.model(parameters).accuracy(samples);
        assert_eq!(accuracy(&cold), accuracy(&warm));
    }

    #[test]
    fn separable_classes_are_separated() {
        let features = [0.0f32, 0.0, 0.1, 0.2, 3.0, 3.0, 3.1, 2.9];
        let samples = Samples { features: &features, width: 2, labels: &[0, 0, 1, 1], classes: 2 };
        let model = fit(samples, 10.0).unwrap();
        assert_eq!(model.accuracy(samples), 1.0);
    }
}
