//! Wilcoxon's signed-rank test of paired values, two-sided.

use super::distribution::two_sided_normal;
use super::ranking::midranks;

/// What happens to differences of 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zeros {
    /// Dropped before ranking (Wilcoxon).
    Dropped,
    /// Ranked, and their ranks dropped (Pratt 1959).
    Ranked,
    /// Ranked, and their ranks shared by both sides: where nothing differs, the probability is 1.
    Split,
}

/// How the probability is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Over all patterns of signs; needs ranks without ties and zeros.
    Exact,
    /// Normal, variance corrected for ties.
    Normal {
        /// Whether the distance from the mean is reduced by one half.
        continuity: bool,
    },
}

/// A signed-rank test.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Wilcoxon {
    /// The smaller of the sums of positive and of negative ranks.
    pub statistic: f64,
    /// Undefined if no difference is left, and for [`Method::Exact`] with ties or zeros.
    pub p: Option<f64>,
    /// Matched-pairs rank-biserial correlation: (R+ - R-) / (R+ + R-), positive where x is greater.
    pub rank_biserial: Option<f64>,
}

/// Exact probabilities are summed up to this many pairs: their table has about n^2 / 2 entries.
const EXACT_LIMIT: usize = 2000;

/// The differences `x - y`. Those that only rounding tells apart are made equal: 0.3 - 0.2 and 0.2 - 0.1
/// are a tie.
fn differences(x: &[f64], y: &[f64]) -> Vec<f64> {
    let greatest = x.iter().chain(y).fold(0.0f64, |greatest, value| greatest.max(value.abs()));
    let rounding = 4.0 * f64::EPSILON * greatest;
    let mut differences: Vec<f64> = x.iter().zip(y).map(|(x, y)| x - y).collect();
    let mut order: Vec<usize> = (0..differences.len()).collect();
    order.sort_by(|a, b| differences[*a].abs().total_cmp(&differences[*b].abs()));
    let (mut previous, mut group) = (0.0, 0.0);
    for index in order {
        let size = differences[index].abs();
        if size - previous > rounding {
            group = size;
        }
        previous = size;
        differences[index] = group.copysign(differences[index]);
    }
    differences
}

/// Tests the differences `x - y`.
pub fn wilcoxon(x: &[f64], y: &[f64], zeros: Zeros, method: Method) -> Wilcoxon {
    let mut differences = differences(x, y);
    if zeros == Zeros::Dropped {
        differences.retain(|difference| *difference != 0.0);
    }
    let ranks = midranks(&differences.iter().map(|difference| difference.abs()).collect::<Vec<_>>());
    let sum = |wanted: fn(f64) -> bool| -> f64 {
        differences
            .iter()
            .zip(&ranks)
            .filter(|(difference, _)| wanted(**difference))
            .map(|(_, rank)| rank)
            .sum()
    };
    let (mut plus, mut minus) = (sum(|difference| difference > 0.0), sum(|difference| difference < 0.0));
    let zero_count = differences.iter().filter(|difference| **difference == 0.0).count();
    let left: Vec<f64> = differences
        .iter()
        .zip(&ranks)
        .filter(|(difference, _)| **difference != 0.0 || zeros == Zeros::Split)
        .map(|(_, rank)| *rank)
        .collect();
    if zeros == Zeros::Split {
        let half = sum(|difference| difference == 0.0) / 2.0;
        (plus, minus) = (plus + half, minus + half);
    }
    let statistic = plus.min(minus);
    if left.is_empty() {
        return Wilcoxon { statistic, p: None, rank_biserial: None };
    }
    let p = match method {
        Method::Exact => exact(statistic, &left, zero_count),
        // Ranks that are shared are among those that count.
        Method::Normal { continuity } if zeros == Zeros::Split => normal(statistic, &left, 0, continuity),
        Method::Normal { continuity } => normal(statistic, &left, zero_count, continuity),
    };
    Wilcoxon { statistic, p, rank_biserial: Some((plus - minus) / (plus + minus)) }
}

/// Twice the share of sign patterns with a sum of ranks of at most `statistic`.
fn exact(statistic: f64, ranks: &[f64], zeros: usize) -> Option<f64> {
    let count = ranks.len();
    let mut sorted = ranks.to_vec();
    sorted.sort_by(f64::total_cmp);
    let plain = sorted.iter().enumerate().all(|(place, rank)| *rank == (place + 1) as f64);
    if !plain || zeros > 0 || count > EXACT_LIMIT {
        return None;
    }
    let greatest = statistic as usize;
    // Shares instead of numbers of patterns: those overflow from 1,000 pairs on.
    let mut shares = vec![0.0f64; greatest + 1];
    shares[0] = 1.0;
    for rank in 1..=count {
        for sum in (0..=greatest).rev() {
            let with = if sum >= rank { shares[sum - rank] } else { 0.0 };
            shares[sum] = 0.5 * (shares[sum] + with);
        }
    }
    Some((2.0 * shares.iter().sum::<f64>()).min(1.0))
}

fn normal(statistic: f64, ranks: &[f64], zeros: usize, continuity: bool) -> Option<f64> {
    let (all, zeros) = ((ranks.len() + zeros) as f64, zeros as f64);
    let mean = (all * (all + 1.0) - zeros * (zeros + 1.0)) / 4.0;
    let mut variance = all * (all + 1.0) * (2.0 * all + 1.0) - zeros * (zeros + 1.0) * (2.0 * zeros + 1.0);
    let mut sorted = ranks.to_vec();
    sorted.sort_by(f64::total_cmp);
    for group in sorted.chunk_by(|a, b| a == b) {
        let size = group.len() as f64;
        variance -= 0.5 * (size * size * size - size);
    }
    let deviation = (variance / 24.0).sqrt();
    let mut distance = statistic - mean;
    if continuity && distance != 0.0 {
        distance -= 0.5 * distance.signum();
    }
    (deviation > 0.0).then(|| two_sided_normal(distance / deviation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_gains_of_four_are_one_pattern_in_eight() {
        let test = wilcoxon(&[1.0, 2.0, 3.0, 4.0], &[0.0; 4], Zeros::Dropped, Method::Exact);
        assert_eq!((test.statistic, test.p, test.rank_biserial), (0.0, Some(0.125), Some(1.0)));
    }

    #[test]
    fn differences_that_rounding_tells_apart_are_ties() {
        assert_ne!(0.3 - 0.2, 0.2 - 0.1);
        let test = wilcoxon(&[0.3, 0.1, 0.5], &[0.2, 0.2, 0.5], Zeros::Dropped, Method::Exact);
        assert_eq!((test.statistic, test.p), (1.5, None));
    }

    #[test]
    fn ties_have_no_exact_probability_and_no_difference_has_none() {
        let tied = wilcoxon(&[1.0, 1.0], &[0.0; 2], Zeros::Dropped, Method::Exact);
        assert_eq!(tied.p, None);
        let none = wilcoxon(&[1.0, 2.0], &[1.0, 2.0], Zeros::Ranked, Method::Normal { continuity: false });
        assert_eq!((none.p, none.rank_biserial), (None, None));
    }

    #[test]
    fn zeros_that_are_shared_count_for_both_sides() {
        // scipy.stats.wilcoxon(x, zero_method="zsplit", method="approx")
        for (x, statistic, p) in [
            (&[1.0, 2.0, 0.0, 4.0, -1.0][..], 3.0, 0.222_800_991_181_134_5),
            (&[0.5, 1.5, 0.0, 0.0, -1.0, 2.5], 5.5, 0.293_177_459_564_511_5),
            (&[0.0; 3], 3.0, 1.0),
        ] {
            let normal = Method::Normal { continuity: false };
            let test = wilcoxon(x, &vec![0.0; x.len()], Zeros::Split, normal);
            assert_eq!(test.statistic, statistic);
            assert!((test.p.unwrap() - p).abs() < 1e-12, "{test:?}");
            assert_eq!(wilcoxon(x, &vec![0.0; x.len()], Zeros::Split, Method::Exact).p, None);
        }
    }

    #[test]
    fn many_pairs_agree_with_the_normal_approximation() {
        let x: Vec<f64> = (1..=1500)
            .map(|value| if value % 3 == 0 { -f64::from(value) } else { f64::from(value) })
            .collect();
        let test = |method| wilcoxon(&x, &vec![0.0; 1500], Zeros::Dropped, method).p.unwrap();
        let (exact, normal) = (test(Method::Exact), test(Method::Normal { continuity: true }));
        assert!(exact > 0.0 && exact < 1e-10 && normal < 1e-10);
    }
}
