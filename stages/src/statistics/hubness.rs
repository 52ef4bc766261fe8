//! Hubness: whether few candidates are near to many queries (Radovanovic et al. 2010).

/// The skewness of how often each candidate occurs among the first k of a query. Undefined where all
/// occur equally often.
pub fn hubness_skewness(occurrences: &[f64]) -> Option<f64> {
    let count = occurrences.len() as f64;
    let mean = occurrences.iter().sum::<f64>() / count;
    let moment = |power: i32| occurrences.iter().map(|value| (value - mean).powi(power)).sum::<f64>() / count;
    let variance = moment(2);
    (variance > 0.0).then(|| moment(3) / (variance * variance.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hub_is_skewed_and_equals_are_undefined() {
        // scipy.stats.skew([0, 0, 0, 4])
        assert!((hubness_skewness(&[0.0, 0.0, 0.0, 4.0]).unwrap() - 1.154_700_538_379_251_7).abs() < 1e-12);
        assert_eq!(hubness_skewness(&[2.0, 2.0]), None);
        assert_eq!(hubness_skewness(&[]), None);
    }
}
