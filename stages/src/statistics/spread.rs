//! How far runs are apart that differ in chance alone.

use super::distribution::t_quantile;

/// Values of several runs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, of a sample: over the number of runs less one.
    pub deviation: f64,
    /// Their number.
    pub runs: usize,
}

impl Spread {
    /// Of at least two values.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.len() < 2 {
            return None;
        }
        let runs = values.len();
        let mean = values.iter().sum::<f64>() / runs as f64;
        let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        Some(Self { mean, deviation: (squares / (runs - 1) as f64).sqrt(), runs })
    }

    /// The 95 % interval of the mean, by Student's t: how far that of other seeds may lie.
    pub fn interval(&self) -> (f64, f64) {
        let half = t_quantile(0.05, (self.runs - 1) as f64) * self.deviation / (self.runs as f64).sqrt();
        (self.mean - half, self.mean + half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_has_no_spread() {
        assert_eq!(Spread::of(&[1.0]), None);
        let spread = Spread::of(&[1.0, 2.0, 6.0]).unwrap();
        assert_eq!((spread.mean, spread.runs), (3.0, 3));
        assert!((spread.deviation - 7.0f64.sqrt()).abs() < 1e-15);
        // qt(0.975, 2)
        let half = 4.302_652_729_749_464 * (7.0f64 / 3.0).sqrt();
        let (low, high) = spread.interval();
        assert!((low - (3.0 - half)).abs() < 1e-9 && (high - (3.0 + half)).abs() < 1e-9, "{low}, {high}");
        let same = Spread::of(&[0.5; 4]).unwrap();
        assert_eq!(same.interval(), (0.5, 0.5));
    }
}
