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

/// The value that Student's t is at least as far from 0 as with this probability, in (0, 1): by bisection.
pub(super) fn t_quantile(probability: f64, degrees: f64) -> f64 {
    let (mut near, mut far) = (0.0, 1.0);
    while two_sided_t(far, degrees) > probability {
        far *= 2.0;
    }
    // Until no number lies between.
    loop {
        let middle = 0.5 * (near + far);
        if middle <= near || middle >= far {
            return far;
        }
        if two_sided_t(middle, degrees) > probability {
            near = middle;
        } else {
            far = middle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_quantiles() {
        assert!((two_sided_normal(1.959_963_984_540_054) - 0.05).abs() < 1e-14);
        // qt(0.975, 10)
        assert!((two_sided_t(2.228_138_851_986_274_4, 10.0) - 0.05).abs() < 1e-12);
        for (degrees, quantile) in
            [(1.0, 12.706_204_736_432_095), (4.0, 2.776_445_105_197_793_4), (10.0, 2.228_138_851_986_274_4)]
        {
            assert!((t_quantile(0.05, degrees) - quantile).abs() < 1e-9, "{degrees}");
        }
        assert_eq!(two_sided_t(0.0, 3.0), 1.0);
        assert_eq!(two_sided_t(f64::INFINITY, 3.0), 0.0);
    }
}
