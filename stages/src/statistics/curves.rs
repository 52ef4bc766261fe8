//! Curves that figures of a classifier are areas under.

use super::ranking::descending_thresholds;

/// The ROC curve of scores against labels: false positive rate and true positive rate at every distinct score from
/// the highest, from (0, 0) to (1, 1). Nothing without both classes.
pub fn roc(scores: &[f64], positive: &[bool]) -> Option<Vec<(f64, f64)>> {
    let counts = descending_thresholds(scores, positive);
    let (negatives, positives) = counts.last().copied().filter(|(no, yes)| *no > 0 && *yes > 0)?;
    let rate = |(no, yes): (usize, usize)| (no as f64 / negatives as f64, yes as f64 / positives as f64);
    Some(std::iter::once((0.0, 0.0)).chain(counts.into_iter().map(rate)).collect())
}

/// Recall and precision at every distinct score from the highest. Nothing without positives.
pub fn precision_recall(scores: &[f64], positive: &[bool]) -> Option<Vec<(f64, f64)>> {
    let counts = descending_thresholds(scores, positive);
    let (_, positives) = counts.last().copied().filter(|(_, yes)| *yes > 0)?;
    let point = |(no, yes): (usize, usize)| (yes as f64 / positives as f64, yes as f64 / (no + yes) as f64);
    Some(counts.into_iter().map(point).collect())
}

/// The value of a curve of ascending x at `x`: of points with one x the highest, linear between points; the first
/// point's before it.
fn at(points: &[(f64, f64)], x: f64) -> Option<f64> {
    let after = points.partition_point(|point| point.0 <= x);
    let Some((from, low)) = after.checked_sub(1).map(|place| points[place]) else {
        return points.first().map(|point| point.1);
    };
    Some(match points.get(after) {
        Some((to, high)) if *to > from => low + (high - low) * (x - from) / (to - from),
        _ => low,
    })
}

/// Points on which a mean of curves is taken.
const GRID: usize = 100;

/// The mean of several curves at equally many places from 0 to 1; nothing if there is none.
pub fn mean_curve(curves: &[Vec<(f64, f64)>]) -> Option<Vec<(f64, f64)>> {
    if curves.is_empty() {
        return None;
    }
    let place = |step: usize| {
        let x = step as f64 / GRID as f64;
        let values: Option<Vec<f64>> = curves.iter().map(|points| at(points, x)).collect();
        Some((x, values?.iter().sum::<f64>() / curves.len() as f64))
    };
    (0..=GRID).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ranking::Ranking;
    use super::*;

    const SCORES: [f64; 5] = [0.9, 0.7, 0.7, 0.3, 0.2];
    const POSITIVE: [bool; 5] = [true, false, true, true, false];

    #[test]
    fn equal_scores_enter_together_and_the_area_is_the_auroc() {
        let third = 1.0 / 3.0;
        let points = roc(&SCORES, &POSITIVE).unwrap();
        let expected = [(0.0, 0.0), (0.0, third), (0.5, 2.0 * third), (0.5, 1.0), (1.0, 1.0)];
        for (point, expected) in points.iter().zip(expected) {
            assert!((point.0 - expected.0).abs() + (point.1 - expected.1).abs() < 1e-12, "{points:?}");
        }
        let area: f64 =
            points.windows(2).map(|pair| (pair[1].0 - pair[0].0) * (pair[0].1 + pair[1].1) / 2.0).sum();
        let auroc = Ranking::new(&SCORES, &POSITIVE).auroc(&[1.0; 5]).unwrap();
        assert!((area - auroc).abs() < 1e-12);
        assert_eq!(roc(&SCORES, &[true; 5]), None);
    }

    #[test]
    fn precision_falls_while_recall_rises_and_their_area_is_the_average_precision() {
        let points = precision_recall(&SCORES, &POSITIVE).unwrap();
        assert_eq!(points.first(), Some(&(1.0 / 3.0, 1.0)));
        assert_eq!(points.last(), Some(&(1.0, 0.6)));
        let mut before = 0.0;
        let mut area = 0.0;
        for (recall, precision) in &points {
            area += (recall - before) * precision;
            before = *recall;
        }
        let average = Ranking::new(&SCORES, &POSITIVE).average_precision(&[1.0; 5]).unwrap();
        assert!((area - average).abs() < 1e-12);
        assert_eq!(precision_recall(&SCORES, &[false; 5]), None);
    }

    #[test]
    fn means_are_taken_at_common_places() {
        let steep = vec![(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)];
        let flat = vec![(0.0, 0.0), (1.0, 1.0)];
        let mean = mean_curve(&[steep, flat]).unwrap();
        assert_eq!((mean[0], mean[50], mean[100]), ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)));
        assert_eq!(mean_curve(&[]), None);
        assert_eq!(at(&[(0.5, 0.2)], 0.0), Some(0.2));
    }
}
