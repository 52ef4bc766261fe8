//! How concentrated a map is. No model is asked.

use super::{Undefined, Value, average_ranks};

/// The Gini index of magnitudes (Chalasani et al. 2020): 0 for a uniform map, near 1 for one pixel.
///
/// # Errors
/// If the map is zero. (Quantus adds 1e-7 to each magnitude and has 0 there.)
pub fn sparseness(map: &[f64]) -> Value {
    if map.iter().all(|value| *value == 0.0) {
        return Err(Undefined::NoMass);
    }
    let magnitudes: Vec<f64> = map.iter().map(|value| value.abs() + 1e-7).collect();
    let n = magnitudes.len() as f64;
    // Mean ranks give equal values the same sum as any order of them does.
    let ranks = average_ranks(&magnitudes);
    let weighted: f64 =
        magnitudes.iter().zip(&ranks).map(|(value, rank)| (2.0 * rank - n - 1.0) * value).sum();
    Ok(weighted / (n * magnitudes.iter().sum::<f64>()))
}

/// The entropy of the magnitudes' distribution over pixels, in nats (Bhatt et al. 2020): 0 for one
/// pixel, ln(n) for a uniform map of n. Divide by ln(n) to compare maps of several sizes.
///
/// # Errors
/// If the map is zero.
pub fn complexity(map: &[f64]) -> Value {
    let total: f64 = map.iter().map(|value| value.abs()).sum();
    if total == 0.0 {
        return Err(Undefined::NoMass);
    }
    let term = |value: &f64| {
        let share = value.abs() / total;
        // The addend is Quantus's.
        -share * libm::log(share + 1e-12)
    };
    Ok(map.iter().map(term).sum())
}

/// The number of magnitudes above `epsilon` (Nguyen and Martinez 2020). The map is normalised before:
/// by its own largest magnitude (reference), or by that of all maps of the call (Quantus).
pub fn effective_complexity(map: &[f64], epsilon: f64) -> f64 {
    map.iter().filter(|value| value.abs() > epsilon).count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pixel_and_all_pixels_are_the_extremes() {
        let one = [0.0, 0.0, 4.0, 0.0];
        assert!((sparseness(&one).unwrap() - 0.75).abs() < 1e-6);
        assert!(complexity(&one).unwrap().abs() < 1e-9);
        assert!(sparseness(&[1.0; 4]).unwrap().abs() < 1e-12);
        assert!((complexity(&[-1.0; 4]).unwrap() - 4f64.ln()).abs() < 1e-9);
        assert_eq!(
            (sparseness(&[0.0; 2]), complexity(&[0.0; 2])),
            (Err(Undefined::NoMass), Err(Undefined::NoMass))
        );
        assert_eq!(effective_complexity(&[0.0, 0.05, -0.06, 1.0], 0.05), 2.0);
    }
}
