//! Rules that approximate the integral over a path from 0 to 1.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{AttributionError, Result};

/// A rule of integration. All but [`Self::Trapezoid`] are those of Captum, under its names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quadrature {
    /// Gauss and Legendre: exact for polynomials of degree 2n - 1; never evaluates 0 or 1.
    #[default]
    #[serde(rename = "gausslegendre")]
    GaussLegendre,
    /// Left ends of n equal intervals.
    RiemannLeft,
    /// Right ends.
    RiemannRight,
    /// Middles.
    RiemannMiddle,
    /// Captum's trapezoid: n points from 0 to 1 with weights 1/n, halved at both ends. They sum to
    /// 1 - 1/n, so every attribution is too small by that share.
    RiemannTrapezoid,
    /// The trapezoid rule: n points from 0 to 1 with weights 1/(n - 1), halved at both ends.
    Trapezoid,
}

/// The points of a rule and their weights.
#[derive(Clone, PartialEq, Debug)]
pub struct Nodes {
    /// Points of the path, ascending.
    pub alphas: Vec<f64>,
    /// The weight of each point.
    pub weights: Vec<f64>,
}

impl Quadrature {
    /// The rule with `steps` points.
    ///
    /// # Errors
    /// If there are no steps, or only one for a trapezoid.
    pub fn nodes(self, steps: usize) -> Result<Nodes> {
        let least = if matches!(self, Self::RiemannTrapezoid | Self::Trapezoid) { 2 } else { 1 };
        if steps < least {
            return Err(AttributionError::Settings(format!(
                "{self:?} needs at least {least} steps, not {steps}"
            )));
        }
        let n = steps as f64;
        let equal = vec![1.0 / n; steps];
        let halved_ends = |weight: f64| {
            let mut weights = vec![weight; steps];
            weights[0] /= 2.0;
            weights[steps - 1] /= 2.0;
            weights
        };
        Ok(match self {
            Self::GaussLegendre => gauss_legendre(steps),
            Self::RiemannLeft => Nodes { alphas: spaced(0.0, 1.0 - 1.0 / n, steps), weights: equal },
            Self::RiemannRight => Nodes { alphas: spaced(1.0 / n, 1.0, steps), weights: equal },
            Self::RiemannMiddle => Nodes { alphas: spaced(0.5 / n, 1.0 - 0.5 / n, steps), weights: equal },
            Self::RiemannTrapezoid => {
                Nodes { alphas: spaced(0.0, 1.0, steps), weights: halved_ends(1.0 / n) }
            }
            Self::Trapezoid => {
                Nodes { alphas: spaced(0.0, 1.0, steps), weights: halved_ends(1.0 / (n - 1.0)) }
            }
        })
    }
}

/// `count` points from `first` to `last`, both included; the first alone if there is one.
fn spaced(first: f64, last: f64, count: usize) -> Vec<f64> {
    let gap = (last - first) / (count.max(2) - 1) as f64;
    (0..count).map(|index| first + index as f64 * gap).collect()
}

/// Roots of the Legendre polynomial of degree n by Newton's iteration, mapped from [-1, 1] to [0, 1].
fn gauss_legendre(n: usize) -> Nodes {
    let (mut alphas, mut weights) = (vec![0.0; n], vec![0.0; n]);
    for k in 0..n.div_ceil(2) {
        // The greatest root first; Tricomi's approximation is close enough for Newton.
        let mut x = libm::cos(PI * (k as f64 + 0.75) / (n as f64 + 0.5));
        let mut slope = 1.0;
        for _ in 0..100 {
            let (value, derivative) = legendre(n, x);
            slope = derivative;
            let step = value / derivative;
            x -= step;
            if step.abs() < 1e-16 {
                slope = legendre(n, x).1;
                break;
            }
        }
        // The middle root of an odd rule is exactly 0.
        if n % 2 == 1 && k == n / 2 {
            x = 0.0;
            slope = legendre(n, x).1;
        }
        // Half of 2 / ((1 - x^2) P'(x)^2): the interval has length 1 instead of 2.
        let weight = 1.0 / ((1.0 - x * x) * slope * slope);
        alphas[k] = (1.0 - x) / 2.0;
        alphas[n - 1 - k] = (1.0 + x) / 2.0;
        weights[k] = weight;
        weights[n - 1 - k] = weight;
    }
    Nodes { alphas, weights }
}

/// The Legendre polynomial of degree n and its derivative at `x` inside (-1, 1).
fn legendre(n: usize, x: f64) -> (f64, f64) {
    let (mut before, mut value) = (1.0, x);
    for degree in 2..=n {
        let degree = degree as f64;
        (before, value) = (value, ((2.0 * degree - 1.0) * x * value - (degree - 1.0) * before) / degree);
    }
    (value, n as f64 * (x * value - before) / (x * x - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Quadrature; 6] = [
        Quadrature::GaussLegendre,
        Quadrature::RiemannLeft,
        Quadrature::RiemannRight,
        Quadrature::RiemannMiddle,
        Quadrature::RiemannTrapezoid,
        Quadrature::Trapezoid,
    ];

    fn integral(rule: Quadrature, steps: usize, f: impl Fn(f64) -> f64) -> f64 {
        let nodes = rule.nodes(steps).unwrap();
        nodes.alphas.iter().zip(&nodes.weights).map(|(alpha, weight)| weight * f(*alpha)).sum()
    }

    #[test]
    fn weights_sum_to_one_but_captums_trapezoid() {
        for rule in ALL {
            for steps in [2, 3, 20, 51] {
                let expected =
                    if rule == Quadrature::RiemannTrapezoid { 1.0 - 1.0 / steps as f64 } else { 1.0 };
                assert!((integral(rule, steps, |_| 1.0) - expected).abs() < 1e-13, "{rule:?} {steps}");
            }
        }
    }

    #[test]
    fn gauss_legendre_is_exact_for_polynomials() {
        for steps in 1..40 {
            let degree = 2 * steps as i32 - 1;
            let error =
                integral(Quadrature::GaussLegendre, steps, |x| x.powi(degree)) - 1.0 / f64::from(degree + 1);
            assert!(error.abs() < 1e-14, "{steps} steps: {error}");
        }
        let nodes = Quadrature::GaussLegendre.nodes(300).unwrap();
        assert!(nodes.alphas.is_sorted() && nodes.alphas[0] > 0.0 && nodes.alphas[299] < 1.0);
    }

    #[test]
    fn rules_converge() {
        for rule in ALL {
            let error = (integral(rule, 4000, f64::exp) - (std::f64::consts::E - 1.0)).abs();
            assert!(error < 1e-3, "{rule:?}: {error}");
        }
    }

    #[test]
    fn too_few_steps_are_an_error() {
        assert!(Quadrature::GaussLegendre.nodes(0).is_err());
        assert!(Quadrature::Trapezoid.nodes(1).is_err());
        assert_eq!(Quadrature::RiemannMiddle.nodes(1).unwrap().alphas, [0.5]);
    }
}
