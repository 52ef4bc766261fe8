//! Multinomial logistic regression as scikit-learn's: minimise |W|^2 / 2 + C sum of cross entropies,
//! biases not penalised, by L-BFGS in f64.
//!
//! Features of embeddings are correlated, so that the cost is a long valley. Where there are at least as many rows as
//! features, steps are therefore seen through the second derivatives at equal probabilities, C / classes X'X plus the
//! penalty (Boehning 1992 bounds by a multiple of these), which are the same for all classes.

use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::cholesky::Cholesky;
use super::lanes::{LANES, Lanes, TOGETHER, add_multiples, at_mut, pieces, products, values};
use super::quasi_newton::{Objective, Stop, minimise};
use crate::ops::vectorised;

/// Rows of the sum that one task adds up; partial sums are added in block order.
const BLOCK: usize = 256;
/// Rows that are in f64 at a time.
const BATCH: usize = 16;
/// Pieces of the gradient of each class that rows are added to before the next ones.
const NEAR: usize = 32;
const ITERATIONS: usize = 1000;
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

/// The samples, and how the cost reads their rows: widened to f64, followed by 1 (for the bias) and by zeros up to a
/// whole number of pieces. Parameters are `[classes, stride]` in the same layout; those of the zeros stay 0.
struct Design<'a> {
    samples: Samples<'a>,
    /// Pieces of a row.
    length: usize,
    /// Values of a row.
    stride: usize,
    /// The lower triangle of X'X, `[width + 1, length]`, once it was asked for.
    products: OnceLock<Vec<Lanes>>,
}

impl<'a> Design<'a> {
    fn new(samples: Samples<'a>) -> Self {
        let length = (samples.width + 1).div_ceil(LANES);
        Self { samples, length, stride: length * LANES, products: OnceLock::new() }
    }

    /// Weights and biases of parameters.
    fn model(&self, parameters: &[f64]) -> Logistic {
        let width = self.samples.width;
        let mut model = Logistic { weight: Vec::new(), bias: Vec::new() };
        for class in parameters.chunks_exact(self.stride) {
            model.weight.extend_from_slice(&class[..width]);
            model.bias.push(class[width]);
        }
        model
    }

    /// Writes some rows to `wide`, `[rows, length]`, as the cost reads them.
    #[inline(always)]
    fn widen(&self, rows: Range<usize>, wide: &mut [Lanes]) {
        let width = self.samples.width;
        for (row, wide) in rows.zip(wide.chunks_exact_mut(self.length)) {
            let (whole, rest) = self.samples.features[row * width..(row + 1) * width].as_chunks::<LANES>();
            for (wide, x) in wide.iter_mut().zip(whole) {
                for (wide, x) in wide.0.iter_mut().zip(x) {
                    *wide = f64::from(*x);
                }
            }
            let mut last = [0.0; LANES];
            for (wide, x) in last.iter_mut().zip(rest) {
                *wide = f64::from(*x);
            }
            last[rest.len()] = 1.0;
            wide[whole.len()] = Lanes(last);
        }
    }

    /// Sum of cross entropies of some rows, and its gradient `[classes, length]`.
    #[inline(always)]
    fn block(&self, rows: Range<usize>, parameters: &[Lanes]) -> (f64, Vec<Lanes>) {
        let (length, classes) = (self.length, self.samples.classes);
        let mut cost = 0.0;
        let mut gradient = vec![Lanes::default(); classes * length];
        let mut errors = vec![0.0; BATCH * classes];
        let mut wide = vec![Lanes::default(); BATCH * length];
        for first in rows.clone().step_by(BATCH) {
            let rows = first..rows.end.min(first + BATCH);
            let x = &mut wide[..rows.len() * length];
            self.widen(rows.clone(), x);
            multiply(x, parameters, length, &mut errors);
            for (errors, label) in errors.chunks_exact_mut(classes).zip(&self.samples.labels[rows]) {
                cost += cross_entropy(errors, *label);
            }
            // As much of the gradient as stays near the processor while the rows pass.
            for begin in (0..length).step_by(NEAR) {
                let part = begin..length.min(begin + NEAR);
                for (place, x) in x.chunks(TOGETHER * length).enumerate() {
                    let errors = &errors[place * TOGETHER * classes..];
                    add_rows(&mut gradient, x, length, part.clone(), |row, class| {
                        errors[row * classes + class]
                    });
                }
            }
        }
        (cost, gradient)
    }

    /// The lower triangle of X'X.
    fn products(&self) -> &[Lanes] {
        self.products.get_or_init(|| {
            let mut sums = vec![Lanes::default(); (self.samples.width + 1) * self.length];
            sums.par_chunks_mut(LANES * self.length).enumerate().for_each(|(band, sums)| {
                vectorised(
                    #[inline(always)]
                    || self.band(band, sums),
                );
            });
            sums
        })
    }

    /// The rows of it whose diagonal lies in piece `band`: up to that piece they are read.
    #[inline(always)]
    fn band(&self, band: usize, sums: &mut [Lanes]) {
        let (count, length) = (self.samples.labels.len(), self.length);
        let mut wide = vec![Lanes::default(); TOGETHER * length];
        for first in (0..count).step_by(TOGETHER) {
            let rows = first..count.min(first + TOGETHER);
            let x = &mut wide[..rows.len() * length];
            self.widen(rows, x);
            add_rows(sums, x, length, 0..band + 1, |row, column| x[row * length + band].0[column]);
        }
    }
}

/// The products of each of `x` with each of `others`, `[x, others]`. Some of the latter stay near the processor while all
/// of the former pass.
#[inline(always)]
fn multiply(x: &[Lanes], others: &[Lanes], length: usize, results: &mut [f64]) {
    let (count, width) = (x.len() / length, others.len() / length);
    let row = |row: usize| &x[row * length..(row + 1) * length];
    let other = |place: usize| &others[place * length..(place + 1) * length];
    let groups = width / TOGETHER * TOGETHER;
    for group in (0..groups).step_by(TOGETHER) {
        let others = [other(group), other(group + 1), other(group + 2), other(group + 3)];
        for first in (0..count).step_by(2) {
            let place = first * width + group;
            if first + 1 < count {
                let [found, next] = products([row(first), row(first + 1)], others);
                results[place..place + TOGETHER].copy_from_slice(&found);
                results[place + width..][..TOGETHER].copy_from_slice(&next);
            } else {
                let [found] = products([row(first)], others);
                results[place..place + TOGETHER].copy_from_slice(&found);
            }
        }
    }
    for place in groups..width {
        for first in (0..count).step_by(TOGETHER) {
            if first + TOGETHER <= count {
                let rows = [row(first), row(first + 1), row(first + 2), row(first + 3)];
                for (row, [found]) in products(rows, [other(place)]).into_iter().enumerate() {
                    results[(first + row) * width + place] = found;
                }
            } else {
                for index in first..count {
                    [[results[index * width + place]]] = products([row(index)], [other(place)]);
                }
            }
        }
    }
}

/// Adds multiples of up to [`TOGETHER`] rows to each of `sums`, one after the other, in `part` of their pieces; `factor` is
/// of a row for a sum.
#[inline(always)]
fn add_rows(
    sums: &mut [Lanes],
    rows: &[Lanes],
    length: usize,
    part: Range<usize>,
    factor: impl Fn(usize, usize) -> f64,
) {
    let row = |row: usize| &rows[row * length..][part.clone()];
    let factors = |sum: usize| [factor(0, sum), factor(1, sum), factor(2, sum), factor(3, sum)];
    let count = rows.len() / length;
    for (pair, sums) in sums.chunks_mut(2 * length).enumerate() {
        let (first, second) = sums.split_at_mut(length);
        if count < TOGETHER {
            for (place, sum) in [first, second].into_iter().enumerate() {
                for index in 0..if sum.is_empty() { 0 } else { count } {
                    add_multiples(
                        [&mut sum[part.clone()]],
                        [row(index)],
                        [[factor(index, 2 * pair + place)]],
                    );
                }
            }
        } else if second.is_empty() {
            add_multiples([&mut first[part.clone()]], [row(0), row(1), row(2), row(3)], [factors(2 * pair)]);
        } else {
            let both = [&mut first[part.clone()], &mut second[part.clone()]];
            let factors = [factors(2 * pair), factors(2 * pair + 1)];
            add_multiples(both, [row(0), row(1), row(2), row(3)], factors);
        }
    }
}

/// The cross entropy of logits, which become the errors of the probabilities.
fn cross_entropy(logits: &mut [f64], label: usize) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let distance = max - logits[label];
    let mut sum = 0.0;
    for logit in &mut *logits {
        *logit = libm::exp(*logit - max);
        sum += *logit;
    }
    for (class, value) in logits.iter_mut().enumerate() {
        *value = *value / sum - f64::from(u8::from(class == label));
    }
    distance + libm::log(sum)
}

struct Problem<'a> {
    design: &'a Design<'a>,
    c: f64,
    /// Of the second derivatives, where there are enough rows.
    curvature: Option<Cholesky>,
}

impl<'a> Problem<'a> {
    fn new(design: &'a Design<'a>, c: f64) -> Self {
        let (length, Samples { width, labels, classes, .. }) = (design.length, design.samples);
        let curvature = (labels.len() >= width).then(|| {
            let mut matrix = design.products().to_vec();
            matrix.iter_mut().flat_map(|piece| &mut piece.0).for_each(|value| *value *= c / classes as f64);
            (0..width).for_each(|place| *at_mut(&mut matrix[place * length..], place) += 1.0);
            Cholesky::new(&matrix, width + 1, length)
        });
        Self { design, c, curvature: curvature.flatten() }
    }

    /// Parameters of least cost, beginning at `start`.
    fn minimise(&self, start: &[f64], tolerance: f64, steps: usize) -> Result<Vec<f64>, LogisticError> {
        minimise(self, start.to_vec(), Stop { gradient: tolerance, steps }).ok_or(LogisticError { c: self.c })
    }
}

impl Objective for Problem<'_> {
    fn evaluate(&self, parameters: &[f64]) -> (f64, Vec<f64>) {
        let (stride, Samples { width, labels, classes, .. }) = (self.design.stride, self.design.samples);
        let count = labels.len();
        let aligned = pieces(parameters);
        let blocks: Vec<(f64, Vec<Lanes>)> = (0..count.div_ceil(BLOCK))
            .into_par_iter()
            .map(|block| {
                let rows = block * BLOCK..((block + 1) * BLOCK).min(count);
                vectorised(
                    #[inline(always)]
                    || self.design.block(rows, &aligned),
                )
            })
            .collect();
        let mut cost = 0.0;
        let mut gradient = vec![0.0; classes * stride];
        for (block_cost, block_gradient) in &blocks {
            cost += self.c * block_cost;
            for (sum, value) in gradient.iter_mut().zip(values(block_gradient)) {
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

    fn precondition(&self, direction: &[f64]) -> Vec<f64> {
        let mut seen = direction.to_vec();
        if let Some(curvature) = &self.curvature {
            curvature.solve(&mut seen);
        }
        seen
    }
}

/// Why a regression was not fitted.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
#[error(
    "logistic regression at C = {c} has no finite cost: features have to be finite, and not so large that their squares overflow"
)]
pub struct LogisticError {
    c: f64,
}

/// Fits from zero; `c` is the inverse strength of the penalty.
///
/// # Errors
/// If the cost is no finite number.
pub fn fit(samples: Samples<'_>, c: f64) -> Result<Logistic, LogisticError> {
    let design = Design::new(samples);
    let start = vec![0.0; samples.classes * design.stride];
    Ok(design.model(&Problem::new(&design, c).minimise(&start, TOLERANCE, ITERATIONS)?))
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
        Problem::new(self.design, c).minimise(start, tolerance, ITERATIONS)
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
    SWEEP_TOLERANCE * c * design.samples.labels.len() as f64
}

/// The C of best validation accuracy: seven decades apart, then halving the step in log space around
/// the peak until there are eight steps a decade (CLIP paper, appendix A.3). Each regression begins at the
/// weights of a neighbouring strength.
///
/// # Errors
/// As [`fit`].
pub fn sweep(train: Samples<'_>, validation: Samples<'_>) -> Result<f64, LogisticError> {
    let design = Design::new(train);
    let mut parameters = vec![0.0; train.classes * design.stride];
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
        let gradient = problem.evaluate(&at).1;
        for place in places {
            let moved = |by: f64| {
                let mut at = at.clone();
                at[place] += by;
                problem.evaluate(&at).0
            };
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((numeric - gradient[place]).abs() < 1e-8, "{place}");
        }
        assert!(gradient[3..design.stride].iter().all(|value| *value == 0.0), "{gradient:?}");
    }

    /// Features of very different scales, weakly penalised.
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
        let cut = slope(&Problem::new(&design, 100.0).minimise(&start, bound, 2).unwrap());
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
            "{cut} after two steps, {bound}"
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
