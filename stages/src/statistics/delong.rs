//! The areas under two correlated ROC curves (DeLong, DeLong and Clarke-Pearson 1988; midranks as Sun
//! and Xu 2014).

use super::distribution::two_sided_normal;
use super::ranking::midranks;
use super::resampling::Estimate;

/// The 97.5 percentile of the standard normal distribution.
const NORMAL: f64 = 1.959_963_984_540_054;
/// Rounding leaves a trace of variance where there is none.
const NO_VARIANCE: f64 = 1e-15;

/// Two areas over the same samples, and their difference.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DeLong {
    /// The two areas.
    pub auroc: [f64; 2],
    /// Their covariance matrix.
    pub covariance: [[f64; 2]; 2],
    /// The difference over its standard error; undefined if that is 0 (perfect or identical scores).
    pub z: Option<f64>,
    /// Two-sided.
    pub p: Option<f64>,
}

/// Compares two scores of the same samples. `None` with fewer than two positives or negatives, which
/// leave the variance undefined.
pub fn delong(scores: [&[f64]; 2], positive: &[bool]) -> Option<DeLong> {
    let places = |wanted: bool| -> Vec<usize> {
        (0..positive.len()).filter(|index| positive[*index] == wanted).collect()
    };
    let (positives, negatives) = (places(true), places(false));
    let (p, q) = (positives.len() as f64, negatives.len() as f64);
    if positives.len() < 2 || negatives.len() < 2 {
        return None;
    }
    // The structural components: each positive's share of negatives below it, and the reverse.
    let components = scores.map(|scores| {
        let all = midranks(scores);
        let own = |places: &[usize]| midranks(&places.iter().map(|place| scores[*place]).collect::<Vec<_>>());
        let (own_positive, own_negative) = (own(&positives), own(&negatives));
        let v10: Vec<f64> =
            positives.iter().zip(&own_positive).map(|(place, own)| (all[*place] - own) / q).collect();
        let v01: Vec<f64> =
            negatives.iter().zip(&own_negative).map(|(place, own)| 1.0 - (all[*place] - own) / p).collect();
        (v10, v01)
    });
    let auroc = [0, 1].map(|model| components[model].0.iter().sum::<f64>() / p);
    let covariance = [0, 1].map(|a| {
        [0, 1].map(|b| {
            sample_covariance(&components[a].0, &components[b].0) / p
                + sample_covariance(&components[a].1, &components[b].1) / q
        })
    });
    let variance = covariance[0][0] + covariance[1][1] - 2.0 * covariance[0][1];
    let z = (variance > NO_VARIANCE).then(|| (auroc[0] - auroc[1]) / variance.sqrt());
    Some(DeLong { auroc, covariance, z, p: z.map(two_sided_normal) })
}

/// An area with its 95 % interval on the scale of logits, where it stays between 0 and 1. Samples have to be
/// independent. `None` where the variance is 0, at perfect separation, or undefined.
pub fn delong_interval(scores: &[f64], positive: &[bool]) -> Option<Estimate> {
    let DeLong { auroc: [area, _], covariance, .. } = delong([scores, scores], positive)?;
    let variance = covariance[0][0];
    if variance <= NO_VARIANCE || area <= 0.0 || area >= 1.0 {
        return None;
    }
    let (logit, reach) = (libm::log(area / (1.0 - area)), NORMAL * variance.sqrt() / (area * (1.0 - area)));
    let area_at = |logit: f64| Some(1.0 / (1.0 + libm::exp(-logit)));
    Some(Estimate { value: area, low: area_at(logit - reach), high: area_at(logit + reach) })
}

fn sample_covariance(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum::<f64>() / (a.len() - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_are_not_testable() {
        let scores = [0.1, 0.4, 0.35, 0.8];
        let result = delong([&scores, &scores], &[false, false, true, true]).unwrap();
        assert_eq!(result.auroc, [0.75, 0.75]);
        assert_eq!((result.z, result.p), (None, None));
        assert!(delong([&scores, &scores], &[true, false, false, false]).is_none());
    }

    /// By hand: components 1/2 and 1 of either class, so a variance of 1/8 and a standard error on the scale of logits
    /// of 1.8856.
    #[test]
    fn an_interval_stays_between_0_and_1() {
        let scores = [0.1, 0.4, 0.35, 0.8];
        let area = delong_interval(&scores, &[false, false, true, true]).unwrap();
        let (low, high) = (area.low.unwrap(), area.high.unwrap());
        assert_eq!(area.value, 0.75);
        assert!((low - 0.069_32).abs() < 1e-5 && (high - 0.991_79).abs() < 1e-5, "{low} {high}");
        assert!(delong_interval(&scores, &[true, false, false, true]).is_some());
        assert!(delong_interval(&[0.1, 0.2, 0.8, 0.9], &[false, false, true, true]).is_none());
    }
}
