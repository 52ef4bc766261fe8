//! Tails of the distributions that tests need.

/// The probability that a standard normal value is at least as far from 0 as `z`.
pub fn two_sided_normal(z: f64) -> f64 {
    libm::erfc(z.abs() * std::f64::consts::FRAC_1_SQRT_2)
}

/// The probability that a value of Student's t distribution is at least as far from 0 as `t`.
pub(super) fn two_sided_t(t: f64, degrees: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    statrs::function::beta::beta_reg(degrees / 2.0, 0.5, degrees / (degrees + t * t))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_quantiles() {
        assert!((two_sided_normal(1.959_963_984_540_054) - 0.05).abs() < 1e-14);
        // qt(0.975, 10)
        assert!((two_sided_t(2.228_138_851_986_274_4, 10.0) - 0.05).abs() < 1e-12);
        assert_eq!(two_sided_t(0.0, 3.0), 1.0);
        assert_eq!(two_sided_t(f64::INFINITY, 3.0), 0.0);
    }
}
