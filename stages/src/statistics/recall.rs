//! Ranks of the right candidate, and recall.

use super::resampling::mean;

/// Where the right candidate stands, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rank {
    /// Strictly better candidates, and equal ones of lower index.
    pub rank: usize,
    /// Strictly better ones: the optimistic rank.
    pub greater: usize,
    /// Equal ones: with the better ones the pessimistic rank.
    pub equal: usize,
}

impl Rank {
    /// The rank of candidate `own`; only candidates that `counts` are its rivals. A constant model
    /// does not win: equal scores count by their place; nor does a broken one: a right candidate without a
    /// number for a score stands behind all others.
    pub fn of<T: PartialOrd + Copy>(scores: &[T], own: usize, counts: impl Fn(usize) -> bool) -> Self {
        let (mut greater, mut equal, mut before) = (0, 0, 0);
        let is_nan = is_nan(&scores[own]);
        for (index, score) in scores.iter().enumerate() {
            if index == own || !counts(index) {
                continue;
            }
            if is_nan || *score > scores[own] {
                greater += 1;
            } else if *score == scores[own] {
                equal += 1;
                before += usize::from(index < own);
            }
        }
        Self { rank: greater + before, greater, equal }
    }

    /// The rank of the best of several right candidates, the first of equals; the others are no
    /// rivals. `None` if there is no right candidate.
    pub fn of_best<T: PartialOrd + Copy>(
        scores: &[T],
        own: &[usize],
        counts: impl Fn(usize) -> bool,
    ) -> Option<Self> {
        let better = |a: usize, b: usize| if scores[b] > scores[a] || is_nan(&scores[a]) { b } else { a };
        let best = own.iter().copied().reduce(better)?;
        Some(Self::of(scores, best, |other| counts(other) && !own.contains(&other)))
    }
}

/// Whether a score is no number: it cannot be compared even with itself.
fn is_nan<T: PartialOrd>(score: &T) -> bool {
    score.partial_cmp(score).is_none()
}

/// The share of queries whose rank is below `k`.
pub fn recall(ranks: &[usize], k: usize, weights: &[f64]) -> Option<f64> {
    mean(&ranks.iter().map(|rank| f64::from(u8::from(*rank < k))).collect::<Vec<_>>(), weights)
}

/// The median of the ranks, rounded down, counted from 1.
pub fn median_rank(ranks: &[usize]) -> Option<f64> {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    let (low, high) = (sorted.get(ranks.len().checked_sub(1)? / 2)?, sorted.get(ranks.len() / 2)?);
    Some(((low + high) / 2 + 1) as f64)
}

/// The mean of the ranks, counted from 1.
pub fn mean_rank(ranks: &[usize]) -> Option<f64> {
    (!ranks.is_empty()).then(|| ranks.iter().sum::<usize>() as f64 / ranks.len() as f64 + 1.0)
}

/// The chance that the best of `own` right candidates has fewer than `k` of `others` before it in a
/// random order: 1 - prod_{j<k} (others - j) / (others + own - j).
pub fn random_hit(own: usize, others: usize, k: usize) -> f64 {
    let factor = |j: usize| others.saturating_sub(j) as f64 / (others + own - j).max(1) as f64;
    1.0 - (0..k.min(others + own)).map(factor).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_model_does_not_win() {
        let rank = Rank::of(&[0.5; 10], 7, |_| true);
        assert_eq!((rank.rank, rank.greater, rank.greater + rank.equal), (7, 0, 9));
    }

    #[test]
    fn a_model_without_numbers_does_not_win() {
        let rank = Rank::of(&[f32::NAN; 10], 0, |_| true);
        assert_eq!((rank.rank, rank.greater, rank.equal), (9, 9, 0));
        assert_eq!(Rank::of(&[0.1, f32::NAN, 0.3], 1, |_| true).rank, 2);
        // A rival without a score is none; of several right candidates one without a score is not the best.
        assert_eq!(Rank::of(&[0.1, f32::NAN, 0.3], 2, |_| true).rank, 0);
        assert_eq!(Rank::of_best(&[f32::NAN, 0.8, 0.7], &[0, 1], |_| true).unwrap().rank, 0);
    }

    #[test]
    fn other_right_candidates_are_no_rivals() {
        assert_eq!(Rank::of_best(&[0.9, 0.8, 0.95], &[0, 1], |_| true).unwrap().rank, 1);
        assert_eq!(Rank::of_best(&[0.9, 0.8, 0.7], &[1, 0], |_| true).unwrap().rank, 0);
        assert_eq!(Rank::of_best(&[0.9], &[], |_| true), None);
    }

    #[test]
    fn the_median_is_rounded_down_and_counts_from_one() {
        assert_eq!(median_rank(&[0, 3]), Some(2.0));
        assert_eq!(median_rank(&[]), None);
        assert_eq!(mean_rank(&[0, 3]), Some(2.5));
    }

    #[test]
    fn chance_is_k_over_the_pool_for_one_right_candidate() {
        assert!((random_hit(1, 99, 10) - 0.1).abs() < 1e-12);
        // Two of four: the first place is wrong with one half.
        assert!((random_hit(2, 2, 1) - 0.5).abs() < 1e-12);
        assert_eq!(random_hit(1, 3, 10), 1.0);
    }
}
