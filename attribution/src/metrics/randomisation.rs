//! Randomisation: does a map depend on the model and on the class at all? A map that stays the same when
//! parameters are drawn anew (Adebayo et al. 2018), or when another class is explained (Sixt, Granz and
//! Landgraf 2020), explains the image and not the model.

use super::{Undefined, Value};

/// Similarity of each map with that of the model randomised up to a layer, or of another class.
pub fn similarities(
    maps: &[Vec<f64>],
    others: &[Vec<f64>],
    similarity: impl Fn(&[f64], &[f64]) -> Value,
) -> Vec<Value> {
    maps.iter().zip(others).map(|(map, other)| similarity(map, other)).collect()
}

/// The mean over layers. Quantus puts the unchanged model's 1 among them, which moves the mean up.
///
/// # Errors
/// If a layer has none.
pub fn mean_over_layers(layers: &[Value]) -> Value {
    let values: Vec<f64> = layers.iter().cloned().collect::<Result<_, _>>()?;
    if values.is_empty() {
        Err(Undefined::Constant)
    } else {
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    }
}

/// The entropy in nats of the values' histogram: equal bins between the map's least and greatest value,
/// the last one closed.
pub fn discrete_entropy(map: &[f64], bins: usize) -> f64 {
    let low = map.iter().copied().fold(f64::INFINITY, f64::min);
    let high = map.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Equal values have a bin around them.
    let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    let mut counts = vec![0usize; bins.max(1)];
    for value in map {
        let place = ((value - low) / (high - low) * bins as f64) as usize;
        counts[place.min(bins.max(1) - 1)] += 1;
    }
    let total = map.len() as f64;
    let term = |count: &usize| {
        let share = *count as f64 / total;
        -share * libm::log(share)
    };
    counts.iter().filter(|count| **count > 0).map(term).sum()
}

/// Efficient model parameter randomisation (Hedström et al. 2023): the relative rise of the entropy of
/// the map when the whole model is randomised. Higher is better.
pub fn relative_rise(original: f64, randomised: f64) -> f64 {
    (randomised - original) / original
}

/// Side of the window of [`flat_ssim`].
const WINDOW: usize = 7;

/// The structural similarity of two maps as sequences, row by row, as Quantus computes it: windows of seven
/// values, sample variances, the range of both maps together. It is not that of images.
///
/// # Errors
/// If the maps are shorter than a window.
pub fn flat_ssim(a: &[f64], b: &[f64]) -> Value {
    if a.len() < WINDOW || b.len() < a.len() {
        return Err(Undefined::Constant);
    }
    let both = || a.iter().chain(b).copied();
    let range = both().fold(f64::NEG_INFINITY, f64::max) - both().fold(f64::INFINITY, f64::min);
    let (c1, c2) = ((0.01 * range).powi(2), (0.03 * range).powi(2));
    let n = WINDOW as f64;
    let sample = n / (n - 1.0);
    let local = |(a, b): (&[f64], &[f64])| {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / n;
        let (mean_a, mean_b) = (mean(&mut a.iter().copied()), mean(&mut b.iter().copied()));
        let variance_a = sample * (mean(&mut a.iter().map(|a| a * a)) - mean_a * mean_a);
        let variance_b = sample * (mean(&mut b.iter().map(|b| b * b)) - mean_b * mean_b);
        let covariance = sample * (mean(&mut a.iter().zip(b).map(|(a, b)| a * b)) - mean_a * mean_b);
        (2.0 * mean_a * mean_b + c1) * (2.0 * covariance + c2)
            / ((mean_a * mean_a + mean_b * mean_b + c1) * (variance_a + variance_b + c2))
    };
    let windows: Vec<f64> = a.windows(WINDOW).zip(b.windows(WINDOW)).map(local).collect();
    if range > 0.0 {
        Ok(windows.iter().sum::<f64>() / windows.len() as f64)
    } else {
        Err(Undefined::Constant)
    }
}

/// Input invariance (Kindermans et al. 2017): 1 if a map stays the same, to 1e-4 + 1e-5 |value|, when the
/// input is shifted by a constant and the first layer's bias takes the shift back.
pub fn is_invariant(map: &[f64], shifted: &[f64]) -> f64 {
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 + 1e-5 * b.abs();
    f64::from(u8::from(map.iter().zip(shifted).all(close)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_of_histograms() {
        assert_eq!(discrete_entropy(&[1.0; 5], 10), 0.0);
        assert!((discrete_entropy(&[0.0, 0.0, 1.0, 1.0], 2) - 2f64.ln()).abs() < 1e-12);
        // The last bin is closed: 1.0 shares it with 0.9.
        assert!((discrete_entropy(&[0.0, 0.9, 1.0], 2) - 0.636_514_168_294_813).abs() < 1e-12);
        assert_eq!(relative_rise(2.0, 3.0), 0.5);
    }

    #[test]
    fn a_map_is_like_itself() {
        let map: Vec<f64> = (0..20).map(|index| f64::from(index * index % 7)).collect();
        assert!((flat_ssim(&map, &map).unwrap() - 1.0).abs() < 1e-12);
        let negative: Vec<f64> = map.iter().map(|value| -value).collect();
        assert!(flat_ssim(&map, &negative).unwrap() < 0.0);
        assert!(flat_ssim(&map[..3], &map[..3]).is_err());
        assert!(flat_ssim(&[1.0; 9], &[1.0; 9]).is_err());
    }

    #[test]
    fn invariance_has_a_tolerance() {
        assert_eq!(is_invariant(&[1.0, 2.0], &[1.000_05, 2.0]), 1.0);
        assert_eq!(is_invariant(&[1.0, 2.0], &[1.0, 2.001]), 0.0);
    }

    #[test]
    fn layers_are_averaged() {
        assert_eq!(mean_over_layers(&[Ok(1.0), Ok(0.5)]), Ok(0.75));
        assert!(mean_over_layers(&[Ok(1.0), Err(Undefined::Constant)]).is_err());
    }
}
