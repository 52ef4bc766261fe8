//! Correlations of two sequences.

use super::{Undefined, Value};

/// How two sequences are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// [`pearson`].
    #[default]
    Pearson,
    /// [`spearman`].
    Spearman,
    /// [`kendall`].
    Kendall,
    /// [`cosine`].
    Cosine,
}

impl Similarity {
    /// The similarity of two sequences.
    ///
    /// # Errors
    /// If it is undefined.
    pub fn of(self, a: &[f64], b: &[f64]) -> Value {
        match self {
            Self::Pearson => pearson(a, b),
            Self::Spearman => spearman(a, b),
            Self::Kendall => kendall(a, b),
            Self::Cosine => cosine(a, b),
        }
    }
}

/// Pearson's correlation.
///
/// # Errors
/// If either sequence does not vary, or they have fewer than two values.
pub fn pearson(a: &[f64], b: &[f64]) -> Value {
    let n = a.len().min(b.len()) as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut covariance, mut variance_a, mut variance_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        covariance += x * y;
        variance_a += x * x;
        variance_b += y * y;
    }
    let scale = variance_a.sqrt() * variance_b.sqrt();
    if scale > 0.0 { Ok((covariance / scale).clamp(-1.0, 1.0)) } else { Err(Undefined::Constant) }
}

/// Ranks from 1, equal values sharing the mean of their ranks.
pub fn average_ranks(values: &[f64]) -> Vec<f64> {
    let order = super::ascending(values);
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start] as usize];
        let tied = order[start..].iter().take_while(|index| values[**index as usize] == value).count().max(1);
        let rank = start as f64 + (tied as f64 + 1.0) / 2.0;
        for index in &order[start..start + tied] {
            ranks[*index as usize] = rank;
        }
        start += tied;
    }
    ranks
}

/// Spearman's rank correlation, ties sharing their mean rank.
///
/// # Errors
/// As [`pearson`].
pub fn spearman(a: &[f64], b: &[f64]) -> Value {
    pearson(&average_ranks(a), &average_ranks(b))
}

/// Kendall's tau-b: concordant minus discordant pairs, over the geometric mean of the pairs that are no ties
/// in either. Discordant pairs are the exchanges of a merge sort (Knight 1966).
///
/// # Errors
/// As [`pearson`].
pub fn kendall(a: &[f64], b: &[f64]) -> Value {
    let n = a.len().min(b.len());
    let mut pairs: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).collect();
    pairs.sort_by(|x, y| x.0.total_cmp(&y.0).then(x.1.total_cmp(&y.1)));
    let tied = |values: &mut dyn Iterator<Item = bool>| {
        let (mut ties, mut run) = (0u64, 0u64);
        for is_same in values {
            run = if is_same { run + 1 } else { 0 };
            ties += run;
        }
        ties
    };
    let in_a = tied(&mut pairs.windows(2).map(|pair| pair[0].0 == pair[1].0));
    let in_both = tied(&mut pairs.windows(2).map(|pair| pair[0] == pair[1]));
    let mut others: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    let discordant = exchanges(&mut others);
    let in_b = tied(&mut others.windows(2).map(|pair| pair[0] == pair[1]));
    let all = n as u64 * (n as u64).saturating_sub(1) / 2;
    let scale = ((all - in_a) as f64).sqrt() * ((all - in_b) as f64).sqrt();
    let difference = (all + in_both) as f64 - (in_a + in_b) as f64 - 2.0 * discordant as f64;
    if scale > 0.0 { Ok((difference / scale).clamp(-1.0, 1.0)) } else { Err(Undefined::Constant) }
}

/// Sorts, and counts the pairs that stood in the wrong order.
fn exchanges(values: &mut [f64]) -> u64 {
    if values.len() < 2 {
        return 0;
    }
    let middle = values.len() / 2;
    let (left, right) = values.split_at_mut(middle);
    let mut count = exchanges(left) + exchanges(right);
    let mut merged = Vec::with_capacity(values.len());
    let (mut i, mut j) = (0, middle);
    while i < middle || j < values.len() {
        if j == values.len() || (i < middle && values[i] <= values[j]) {
            merged.push(values[i]);
            i += 1;
        } else {
            count += (middle - i) as u64;
            merged.push(values[j]);
            j += 1;
        }
    }
    values.copy_from_slice(&merged);
    count
}

/// The cosine of the angle between two sequences.
///
/// # Errors
/// If either is zero everywhere.
pub fn cosine(a: &[f64], b: &[f64]) -> Value {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = product(a, a).sqrt() * product(b, b).sqrt();
    if scale > 0.0 { Ok((product(a, b) / scale).clamp(-1.0, 1.0)) } else { Err(Undefined::NoMass) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations_of_lines_and_curves() {
        assert!((pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]).unwrap() - 1.0).abs() < 1e-15);
        assert!((spearman(&[1.0, 2.0, 3.0], &[1.0, 8.0, 27.0]).unwrap() - 1.0).abs() < 1e-15);
        assert!((spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]).unwrap() + 1.0).abs() < 1e-15);
        assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), Err(Undefined::Constant));
        assert_eq!(pearson(&[], &[]), Err(Undefined::Constant));
        // scipy.stats.spearmanr([1, 2, 2, 4], [1, 3, 2, 4])
        assert!(
            (spearman(&[1.0, 2.0, 2.0, 4.0], &[1.0, 3.0, 2.0, 4.0]).unwrap() - 0.948_683_298_050_513_8).abs()
                < 1e-12
        );
    }

    #[test]
    fn ties_share_their_rank() {
        assert_eq!(average_ranks(&[5.0, 1.0, 5.0, 9.0]), [2.5, 1.0, 2.5, 4.0]);
    }

    #[test]
    fn kendall_counts_pairs() {
        // Every pair by its signs.
        let slow = |a: &[f64], b: &[f64]| {
            let sign = |x: f64, y: f64| if x == y { 0.0 } else { (x - y).signum() };
            let (mut sum, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
            for i in 0..a.len() {
                for j in 0..i {
                    let (x, y) = (sign(a[i], a[j]), sign(b[i], b[j]));
                    sum += x * y;
                    of_a += x * x;
                    of_b += y * y;
                }
            }
            sum / f64::sqrt(of_a * of_b)
        };
        let values = |key: u64, count: u64| -> Vec<f64> {
            (1..=30).map(|draw| pipe_models::random::Key(key).below(draw, count) as f64).collect()
        };
        for (seed, count) in [(1, 4), (2, 10), (3, 1000)] {
            let (a, b) = (values(seed, count), values(seed + 10, count));
            assert!((kendall(&a, &b).unwrap() - slow(&a, &b)).abs() < 1e-12);
        }
        assert_eq!(kendall(&[1.0, 1.0], &[1.0, 2.0]), Err(Undefined::Constant));
        assert_eq!(kendall(&[], &[]), Err(Undefined::Constant));
    }

    #[test]
    fn cosines_of_angles() {
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]).unwrap() - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[0.0], &[1.0]), Err(Undefined::NoMass));
    }
}
