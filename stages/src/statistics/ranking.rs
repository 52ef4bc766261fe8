//! Scores in order: the area under the ROC curve, average precision, thresholds.

/// Scores in ascending order with their places.
#[derive(Clone, Debug)]
struct Order {
    places: Vec<usize>,
    /// Whether the score at a place of `places` equals the one before it.
    tied: Vec<bool>,
}

impl Order {
    fn new(scores: &[f64]) -> Self {
        let mut places: Vec<usize> = (0..scores.len()).collect();
        places.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
        let tied = places
            .iter()
            .enumerate()
            .map(|(at, index)| at > 0 && scores[places[at - 1]] == scores[*index])
            .collect();
        Self { places, tied }
    }
}

/// Scores in ascending order with what is positive among them, computed once for many resamples.
#[derive(Clone, Debug)]
pub struct Ranking {
    order: Order,
    /// 1 where the score at a place of the order is that of a positive, else 0: a product takes less than a
    /// branch that goes either way.
    positive: Vec<f64>,
}

impl Ranking {
    /// Sorts the scores; `positive` says of each whether it is one of a positive.
    pub fn new(scores: &[f64], positive: &[bool]) -> Self {
        let order = Order::new(scores);
        let positive = order.places.iter().map(|index| f64::from(u8::from(positive[*index]))).collect();
        Self { order, positive }
    }

    /// The area under the ROC curve (Mann-Whitney, ties one half); undefined without both classes.
    pub fn auroc(&self, weights: &[f64]) -> Option<f64> {
        let (mut positives, mut negatives, mut area) = (0.0, 0.0, 0.0);
        // Negatives below the current group of ties, and the group's own counts.
        let (mut below, mut group_positives, mut group_negatives) = (0.0, 0.0, 0.0);
        let places = self.order.places.iter().zip(&self.order.tied).zip(&self.positive);
        for ((index, tied), positive) in places {
            if !tied {
                area += group_positives * (below + 0.5 * group_negatives);
                below += group_negatives;
                (group_positives, group_negatives) = (0.0, 0.0);
            }
            let of_positives = weights[*index] * positive;
            let of_negatives = weights[*index] - of_positives;
            positives += of_positives;
            group_positives += of_positives;
            negatives += of_negatives;
            group_negatives += of_negatives;
        }
        area += group_positives * (below + 0.5 * group_negatives);
        (positives > 0.0 && negatives > 0.0).then(|| area / (positives * negatives))
    }

    /// Average precision: over the distinct scores from the highest, the gain in recall times the
    /// precision there (no interpolation; equal scores enter together). Undefined without positives.
    pub fn average_precision(&self, weights: &[f64]) -> Option<f64> {
        let places = self.order.places.iter().zip(&self.positive);
        let total: f64 = places.map(|(index, positive)| weights[*index] * positive).sum();
        if total <= 0.0 {
            return None;
        }
        let (mut right, mut all, mut sum, mut group_right) = (0.0, 0.0, 0.0, 0.0);
        let places = self.order.places.iter().zip(&self.order.tied).zip(&self.positive);
        for ((index, tied), positive) in places.rev() {
            let weight = weights[*index];
            all += weight;
            group_right += weight * positive;
            if !tied {
                right += group_right;
                if group_right > 0.0 {
                    sum += group_right / total * (right / all);
                }
                group_right = 0.0;
            }
        }
        Some(sum)
    }
}

/// Negatives and positives among the scores that are at least as high as each distinct one, from the highest.
pub(super) fn descending_thresholds(scores: &[f64], positive: &[bool]) -> Vec<(usize, usize)> {
    let order = Order::new(scores);
    let (mut negatives, mut positives) = (0, 0);
    let mut counts = Vec::new();
    for (place, index) in order.places.iter().enumerate().rev() {
        *(if positive[*index] { &mut positives } else { &mut negatives }) += 1;
        if !order.tied[place] {
            counts.push((negatives, positives));
        }
    }
    counts
}

/// Ranks from 1; equal values share the mean of theirs.
pub fn midranks(values: &[f64]) -> Vec<f64> {
    let order = Order::new(values);
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < values.len() {
        let mut end = start + 1;
        while end < values.len() && order.tied[end] {
            end += 1;
        }
        let rank = (start + end + 1) as f64 / 2.0;
        for index in &order.places[start..end] {
            ranks[*index] = rank;
        }
        start = end;
    }
    ranks
}

/// The smallest distinct score that leaves at least `specificity` of the negatives strictly below it,
/// infinity where none does: "positive" is a score of at least this. Undefined without negatives.
pub fn threshold_at_specificity(scores: &[f64], positive: &[bool], specificity: f64) -> Option<f64> {
    let mut negatives: Vec<f64> =
        scores.iter().zip(positive).filter(|(_, positive)| !**positive).map(|(score, _)| *score).collect();
    if negatives.is_empty() {
        return None;
    }
    negatives.sort_by(f64::total_cmp);
    let mut candidates = scores.to_vec();
    candidates.sort_by(f64::total_cmp);
    let reaches = |candidate: &f64| {
        let below = negatives.partition_point(|score| score < candidate);
        below as f64 / negatives.len() as f64 >= specificity
    };
    Some(candidates.into_iter().find(reaches).unwrap_or(f64::INFINITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auroc(scores: &[f64], positive: &[bool]) -> Option<f64> {
        Ranking::new(scores, positive).auroc(&vec![1.0; scores.len()])
    }

    #[test]
    fn auroc_counts_pairs_and_halves_ties() {
        assert_eq!(auroc(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]), Some(0.75));
        assert_eq!(auroc(&[0.5, 0.5], &[false, true]), Some(0.5));
        assert_eq!(auroc(&[0.5, 0.6], &[true, true]), None);
    }

    #[test]
    fn a_weight_of_two_is_a_sample_that_stands_twice() {
        let scores = [0.3, 0.7, 0.7, 0.2, 0.9];
        let positive = [false, true, false, true, true];
        let (twice, doubled) = ([1.0, 1.0, 2.0, 1.0, 1.0], [0.3, 0.7, 0.7, 0.2, 0.9, 0.7]);
        let again = [false, true, false, true, true, false];
        let (ranking, longer) = (Ranking::new(&scores, &positive), Ranking::new(&doubled, &again));
        assert_eq!(ranking.auroc(&twice), longer.auroc(&[1.0; 6]));
        assert_eq!(ranking.average_precision(&twice), longer.average_precision(&[1.0; 6]));
    }

    #[test]
    fn equal_values_share_their_ranks() {
        assert_eq!(midranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
    }

    #[test]
    fn a_threshold_that_no_score_reaches_is_infinite() {
        let scores = [0.9, 0.9, 0.1];
        assert_eq!(threshold_at_specificity(&scores, &[false, false, true], 0.9), Some(f64::INFINITY));
        assert_eq!(threshold_at_specificity(&scores, &[true, true, false], 0.9), Some(0.9));
        assert_eq!(threshold_at_specificity(&scores, &[true; 3], 0.9), None);
    }
}
