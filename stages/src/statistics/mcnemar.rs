//! McNemar's test: whether one of two classifiers is right more often, on the same samples.

use super::distribution::two_sided_normal;

/// The samples that only one of the two has right, and what they say.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct McNemar {
    /// Only the first is right.
    pub first_only: u64,
    /// Only the second is right.
    pub second_only: u64,
    /// Two-sided binomial probability; 1 if there are no such samples.
    pub exact: f64,
    /// Chi-square with continuity correction: nearly equal from 25 such samples on.
    pub corrected: f64,
}

/// Tests the counts of samples that only the first and only the second has right.
pub fn mcnemar(first_only: u64, second_only: u64) -> McNemar {
    let total = first_only + second_only;
    if total == 0 {
        return McNemar { first_only, second_only, exact: 1.0, corrected: 1.0 };
    }
    let distance = (first_only.abs_diff(second_only) as f64 - 1.0).max(0.0);
    McNemar {
        first_only,
        second_only,
        exact: (2.0 * half_binomial_below(total, first_only.min(second_only))).min(1.0),
        // A chi-square of one degree is a squared normal.
        corrected: two_sided_normal(distance / (total as f64).sqrt()),
    }
}

/// P(X <= k) of a binomial of `n` fair coins, summed from its greatest term.
fn half_binomial_below(n: u64, k: u64) -> f64 {
    let (n, k) = (n as f64, k as f64);
    let logarithm = libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
    let mut term = libm::exp(logarithm - n * std::f64::consts::LN_2);
    let (mut sum, mut place) = (0.0, k);
    loop {
        sum += term;
        if place == 0.0 || term < sum * f64::EPSILON {
            return sum;
        }
        term *= place / (n - place + 1.0);
        place -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_against_five() {
        let test = mcnemar(1, 5);
        // (1 + 6) / 64, twice.
        assert!((test.exact - 0.21875).abs() < 1e-12);
        assert_eq!(mcnemar(5, 1).exact, test.exact);
        assert_eq!(mcnemar(7, 7).corrected, 1.0);
        assert_eq!(mcnemar(0, 0).exact, 1.0);
    }
}
