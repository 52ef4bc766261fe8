//! EMAP, the empirical multimodally-additive projection (Hessel and Lee 2020): a model of two inputs
//! without the interaction of the two.

/// The best additive function: f(q, v) becomes mean_v' f(q, v') + mean_q' f(q', v) - mean f.
/// `logits` is `[n, n, classes]` with the pair of each sample on the diagonal: all first inputs with
/// all second ones.
pub fn additive_projection(logits: &[Vec<Vec<f64>>]) -> Vec<Vec<Vec<f64>>> {
    let n = logits.len();
    let classes = logits.first().and_then(|row| row.first()).map_or(0, Vec::len);
    let mut by_first = vec![vec![0.0; classes]; n];
    let mut by_second = vec![vec![0.0; classes]; n];
    let mut all = vec![0.0; classes];
    let share = 1.0 / n as f64;
    for (first, row) in logits.iter().enumerate() {
        for (second, cell) in row.iter().enumerate() {
            for (class, value) in cell.iter().enumerate() {
                by_first[first][class] += value * share;
                by_second[second][class] += value * share;
                all[class] += value * share * share;
            }
        }
    }
    let cell = |first: usize, second: usize| {
        (0..classes).map(|class| by_first[first][class] + by_second[second][class] - all[class]).collect()
    };
    (0..n).map(|first| (0..n).map(|second| cell(first, second)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_additive_function_is_its_own_projection_and_a_product_is_not() {
        let cube = |f: fn(f64, f64) -> f64| -> Vec<Vec<Vec<f64>>> {
            (0..3).map(|q| (0..3).map(|v| vec![f(f64::from(q), f64::from(v))]).collect()).collect()
        };
        let sum = cube(|q, v| 2.0 * q - v);
        for (ours, given) in
            additive_projection(&sum).iter().flatten().flatten().zip(sum.iter().flatten().flatten())
        {
            assert!((ours - given).abs() < 1e-12);
        }
        let product = additive_projection(&cube(|q, v| (q - 1.0) * (v - 1.0)));
        assert!(product.iter().flatten().flatten().all(|value| value.abs() < 1e-12));
    }
}
