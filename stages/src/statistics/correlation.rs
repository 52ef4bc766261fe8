//! Rank correlation.

use super::distribution::two_sided_t;
use super::ranking::midranks;

/// A correlation with its two-sided probability.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Correlation {
    /// From -1 to 1.
    pub value: f64,
    /// By Student's t; 0 for a perfect correlation, undefined for fewer than three values.
    pub p: Option<f64>,
}

/// Spearman's correlation: Pearson's of midranks. Undefined where one side is constant.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<Correlation> {
    let value = pearson(&midranks(x), &midranks(y))?.clamp(-1.0, 1.0);
    let degrees = x.len() as f64 - 2.0;
    let p = (degrees > 0.0)
        .then(|| two_sided_t(value * (degrees / ((1.0 - value) * (1.0 + value))).sqrt(), degrees));
    Some(Correlation { value, p })
}

fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x - mean_x, y - mean_y);
        xy += x * y;
        xx += x * x;
        yy += y * y;
    }
    (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
}

/// Kendall's tau-b: concordant minus discordant pairs, over the geometric mean of the pairs that are
/// not tied on either side. Undefined where one side is constant. The cost grows with n squared.
pub fn kendall_tau_b(x: &[f64], y: &[f64]) -> Option<f64> {
    let sign = |a: f64, b: f64| f64::from(i8::from(a > b) - i8::from(a < b));
    let (mut sum, mut untied_x, mut untied_y) = (0.0, 0.0, 0.0);
    for first in 0..x.len() {
        for second in first + 1..x.len() {
            let (dx, dy) = (sign(x[first], x[second]), sign(y[first], y[second]));
            sum += dx * dy;
            untied_x += dx * dx;
            untied_y += dy * dy;
        }
    }
    (untied_x > 0.0 && untied_y > 0.0).then(|| sum / (untied_x * untied_y).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monotone_map_is_perfect_and_a_constant_undefined() {
        let x = [1.0, 2.0, 3.0, 4.0];
        let cubes = [1.0, 8.0, 27.0, 64.0];
        assert_eq!(spearman(&x, &cubes), Some(Correlation { value: 1.0, p: Some(0.0) }));
        assert_eq!(kendall_tau_b(&x, &cubes), Some(1.0));
        assert_eq!(spearman(&x, &[2.0; 4]), None);
        assert_eq!(kendall_tau_b(&[2.0; 4], &x), None);
    }
}
