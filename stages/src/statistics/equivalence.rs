//! Whether two figures are equal but for a margin that was fixed beforehand: no difference that is shown is not yet
//! an equality that is.

/// The probability of two one-sided tests (Schuirmann 1987) that a difference lies outside of `margin` on either
/// side, given the replicates of its bootstrap: the greater share of replicates at or beyond a bound, with the figure
/// itself counted among the replicates, so that it is never 0 (Davison and Hinkley 1997, section 4.4). Below 0.05 the
/// 90 % percentile interval lies within the margins. Undefined without replicates.
pub fn equivalence(replicates: &[f64], margin: f64) -> Option<f64> {
    let share = |is_beyond: &dyn Fn(f64) -> bool| {
        let beyond = replicates.iter().filter(|difference| is_beyond(**difference)).count();
        (beyond + 1) as f64 / (replicates.len() + 1) as f64
    };
    let greater = share(&|difference| difference <= -margin).max(share(&|difference| difference >= margin));
    (!replicates.is_empty()).then_some(greater)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::percentile;

    #[test]
    fn equal_is_what_lies_within_the_margin_on_both_sides() {
        // A thousand differences from -0.01 to 0.03.
        let replicates: Vec<f64> = (0..1000).map(|place| -0.01 + 0.04 * f64::from(place) / 999.0).collect();
        // A quarter lies at or beyond 0.02, none below -0.02.
        assert!((equivalence(&replicates, 0.02).unwrap() - 251.0 / 1001.0).abs() < 1e-12);
        assert!(equivalence(&replicates, 0.05).unwrap() < 0.001);
        assert_eq!(equivalence(&replicates, 0.0), Some(751.0 / 1001.0));
        assert_eq!(equivalence(&[], 0.02), None);
    }

    #[test]
    fn the_test_says_what_the_ninety_per_cent_interval_says() {
        let replicates: Vec<f64> = (0..2000).map(|place| f64::from(place) / 2000.0 - 0.5).collect();
        let (low, high) = (percentile(&replicates, 0.05), percentile(&replicates, 0.95));
        for (margin, is_equal) in [(0.44, false), (0.46, true)] {
            assert_eq!(equivalence(&replicates, margin).unwrap() < 0.05, is_equal);
            assert_eq!(-margin < low && high < margin, is_equal);
        }
    }
}
