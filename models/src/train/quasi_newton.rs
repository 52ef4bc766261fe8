//! The minimum of a smooth convex function by the limited-memory BFGS method in f64 (Nocedal and Wright, Numerical
//! Optimization, section 7.2), with a preconditioner.

use std::collections::VecDeque;

/// What is minimised.
pub(super) trait Objective {
    /// The value at a place, and the gradient there.
    fn evaluate(&self, place: &[f64]) -> (f64, Vec<f64>);

    /// About the inverse of the second derivatives times `direction`: positive definite, and the same for every place.
    fn precondition(&self, direction: &[f64]) -> Vec<f64>;
}

/// When it is enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    /// On the norm of the gradient.
    pub(super) gradient: f64,
    /// Steps at most.
    pub(super) steps: usize,
}

/// Steps whose curvature is remembered.
const MEMORY: usize = 10;
/// The share of the decrease that the slope promises which a step has to bring.
const DECREASE: f64 = 1e-4;
/// Near the minimum rounding hides the decrease; then it is enough that the slope has become so much flatter.
const FLATTER: f64 = 0.9;
/// What rounding hides, as a share of the value.
const ROUNDING: f64 = 1e-13;
/// Shorter and shorter steps that are tried.
const TRIES: usize = 40;

/// A step and the change of the gradient along it.
struct Curvature {
    step: Vec<f64>,
    change: Vec<f64>,
    /// The change, preconditioned.
    seen: Vec<f64>,
    /// 1 over the product of the two.
    inverse: f64,
}

/// The place of least value, beginning at `start`. Where no step gets lower it ends before the gradient is small;
/// nothing, if the value at `start` is no finite number.
pub(super) fn minimise(objective: &impl Objective, start: Vec<f64>, stop: Stop) -> Option<Vec<f64>> {
    let mut place = start;
    let (mut value, mut gradient) = objective.evaluate(&place);
    if !value.is_finite() {
        return None;
    }
    let mut seen = objective.precondition(&gradient);
    let mut memory: VecDeque<Curvature> = VecDeque::with_capacity(MEMORY);
    for _ in 0..stop.steps {
        if dot(&gradient, &gradient).sqrt() <= stop.gradient {
            break;
        }
        let direction = direction(&gradient, &seen, &memory);
        let slope = dot(&gradient, &direction);
        let Some(found) = search(objective, &place, value, &direction, slope) else { break };
        let found_seen = objective.precondition(&found.gradient);
        let (step, change) = (difference(&found.place, &place), difference(&found.gradient, &gradient));
        let product = dot(&step, &change);
        if product > 0.0 {
            memory.truncate(MEMORY - 1);
            let seen = difference(&found_seen, &seen);
            memory.push_front(Curvature { step, change, seen, inverse: 1.0 / product });
        }
        (place, value, gradient, seen) = (found.place, found.value, found.gradient, found_seen);
    }
    Some(place)
}

/// Downhill: the gradient (and `seen`, the same preconditioned) times what is known of the inverse of the second
/// derivatives.
fn direction(gradient: &[f64], seen: &[f64], memory: &VecDeque<Curvature>) -> Vec<f64> {
    let negative = |values: &[f64]| -> Vec<f64> { values.iter().map(|value| -value).collect() };
    let (mut rest, mut direction) = (negative(gradient), negative(seen));
    let mut factors = Vec::with_capacity(memory.len());
    for known in memory {
        let factor = known.inverse * dot(&known.step, &rest);
        add(&mut rest, -factor, &known.change);
        add(&mut direction, -factor, &known.seen);
        factors.push(factor);
    }
    // How far the newest change is from what the preconditioner takes it for.
    if let Some(newest) = memory.front() {
        let scale = 1.0 / (newest.inverse * dot(&newest.change, &newest.seen));
        direction.iter_mut().for_each(|value| *value *= scale);
    }
    for (known, factor) in memory.iter().zip(factors).rev() {
        let other = known.inverse * dot(&known.change, &direction);
        add(&mut direction, factor - other, &known.step);
    }
    direction
}

struct Found {
    place: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// The first of ever shorter steps that gets low enough.
fn search(
    objective: &impl Objective,
    place: &[f64],
    value: f64,
    direction: &[f64],
    slope: f64,
) -> Option<Found> {
    let mut length = 1.0;
    for _ in 0..TRIES {
        let mut next = place.to_vec();
        add(&mut next, length, direction);
        let (next_value, gradient) = objective.evaluate(&next);
        let decreases = next_value <= value + DECREASE * length * slope;
        let is_flatter = || dot(&gradient, direction).abs() <= FLATTER * slope.abs();
        if decreases || (next_value <= value + ROUNDING * value.abs() && is_flatter()) {
            return Some(Found { place: next, value: next_value, gradient });
        }
        // Where the parabola through both values and the slope is lowest.
        let excess = next_value - value - length * slope;
        let lowest = -0.5 * slope * length * length / excess;
        length = if lowest.is_finite() { lowest.clamp(0.1 * length, 0.5 * length) } else { 0.1 * length };
    }
    None
}

fn difference(after: &[f64], before: &[f64]) -> Vec<f64> {
    after.iter().zip(before).map(|(after, before)| after - before).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], factor: f64, values: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ln(e^(x - 1) + e^(1 - x)) + 50 y^2 + xy / 10, minimal near (1, 0).
    struct Valley;

    impl Objective for Valley {
        fn evaluate(&self, place: &[f64]) -> (f64, Vec<f64>) {
            let (x, y) = (place[0], place[1]);
            let cosine = libm::exp(x - 1.0) + libm::exp(1.0 - x);
            let sine = libm::exp(x - 1.0) - libm::exp(1.0 - x);
            let value = libm::log(cosine) + 50.0 * y * y + 0.1 * x * y;
            (value, vec![sine / cosine + 0.1 * y, 100.0 * y + 0.1 * x])
        }

        fn precondition(&self, direction: &[f64]) -> Vec<f64> {
            vec![direction[0], direction[1] / 100.0]
        }
    }

    #[test]
    fn the_gradient_vanishes_from_near_and_far() {
        for start in [[1.5, 0.1], [60.0, -30.0], [-40.0, 7.0]] {
            let found = minimise(&Valley, start.to_vec(), Stop { gradient: 1e-10, steps: 100 }).unwrap();
            let (_, gradient) = Valley.evaluate(&found);
            assert!(dot(&gradient, &gradient).sqrt() <= 1e-10, "{start:?}: {found:?}, {gradient:?}");
            assert!((found[0] - 1.0).abs() < 0.01 && found[1].abs() < 0.01, "{found:?}");
        }
    }

    #[test]
    fn it_ends_after_its_steps_and_refuses_what_has_no_value() {
        let once = minimise(&Valley, vec![60.0, -30.0], Stop { gradient: 0.0, steps: 1 }).unwrap();
        let (value, _) = Valley.evaluate(&once);
        assert!(value < Valley.evaluate(&[60.0, -30.0]).0 && value > Valley.evaluate(&[1.0, 0.0]).0 + 1e-3);
        assert!(minimise(&Valley, vec![f64::NAN, 0.0], Stop { gradient: 1e-6, steps: 5 }).is_none());
    }
}
