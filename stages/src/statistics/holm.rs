//! Holm's correction for several tests (Holm 1979).

/// Adjusted probabilities in the order given: with p sorted, the greatest (m - j + 1) p_j so far, at
/// most 1. Undefined tests stay so and do not count.
pub fn holm(p: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<(usize, f64)> =
        p.iter().enumerate().filter_map(|(place, value)| Some((place, (*value)?))).collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let count = order.len();
    let mut adjusted = vec![None; p.len()];
    let mut greatest = 0.0f64;
    for (rank, (place, value)) in order.into_iter().enumerate() {
        greatest = greatest.max((value * (count - rank) as f64).min(1.0));
        adjusted[place] = Some(greatest);
    }
    adjusted
}

#[cfg(test)]
mod tests {
    #[test]
    fn undefined_tests_do_not_count() {
        let adjusted = super::holm(&[Some(0.01), None, Some(0.04), Some(0.9)]);
        assert_eq!(adjusted, [Some(0.03), None, Some(0.08), Some(0.9)]);
    }
}
