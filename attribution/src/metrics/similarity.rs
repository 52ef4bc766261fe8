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
}
