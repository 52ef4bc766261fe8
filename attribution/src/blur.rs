//! Gaussian blur along the axes of an image or a volume.

use crate::{AttributionError, Result};

/// A kernel reaches this many standard deviations to either side.
const REACH: f64 = 4.0;
/// Wider kernels than this are a mistake, not a blur.
const GREATEST_SIGMA: f64 = 1e4;

/// `values` of `shape` `[channels, ...]`, each channel convolved with a Gaussian of standard deviation
/// `sigma` (in pixels) along every further axis. The kernel is cut at four deviations; beyond the
/// border values are mirrored, edge included (d c b a | a b c d | d c b a), as in
/// `scipy.ndimage.gaussian_filter`. Sums are f64.
///
/// # Errors
/// If `sigma` is not positive, or the shape is not that of the values.
pub fn gaussian_blur(values: &[f32], shape: &[usize], sigma: f64) -> Result<Vec<f32>> {
    if !(sigma > 0.0 && sigma <= GREATEST_SIGMA) {
        return Err(AttributionError::Settings(format!(
            "a blur has a deviation above 0 and at most {GREATEST_SIGMA}, not {sigma}"
        )));
    }
    if shape.iter().product::<usize>() != values.len() {
        return Err(AttributionError::Settings(format!("{} values are blurred as {shape:?}", values.len())));
    }
    let kernel = kernel(sigma);
    let mut blurred = values.to_vec();
    let mut line = Vec::new();
    for axis in 1..shape.len() {
        let (length, stride) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        for start in (0..values.len()).filter(|index| index / stride % length == 0) {
            line.clear();
            line.extend((0..length).map(|place| f64::from(blurred[start + place * stride])));
            for place in 0..length {
                let sum: f64 = kernel
                    .iter()
                    .enumerate()
                    .map(|(tap, weight)| {
                        weight * line[mirrored(place as i64 + tap as i64 - kernel.len() as i64 / 2, length)]
                    })
                    .sum();
                blurred[start + place * stride] = sum as f32;
            }
        }
    }
    Ok(blurred)
}

/// Weights of odd number that sum to 1.
fn kernel(sigma: f64) -> Vec<f64> {
    let radius = (REACH * sigma + 0.5) as i64;
    let raw: Vec<f64> =
        (-radius..=radius).map(|tap| libm::exp(-0.5 * (tap as f64 / sigma) * (tap as f64 / sigma))).collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|weight| weight / sum).collect()
}

/// The place inside `0..length` that `place` mirrors to.
fn mirrored(place: i64, length: usize) -> usize {
    let period = 2 * length as i64;
    let place = place.rem_euclid(period);
    place.min(period - 1 - place) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirroring_repeats_the_edge() {
        let places: Vec<usize> = (-4..8).map(|place| mirrored(place, 3)).collect();
        assert_eq!(places, [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]);
    }

    #[test]
    fn constants_stay_and_mass_is_kept() {
        let blurred = gaussian_blur(&[0.75; 24], &[2, 3, 4], 1.7).unwrap();
        assert!(blurred.iter().all(|value| (value - 0.75).abs() < 1e-6));
        let mut impulse = vec![0.0; 2 * 9 * 7];
        impulse[63 + 4 * 7 + 3] = 1.0;
        let blurred = gaussian_blur(&impulse, &[2, 9, 7], 0.8).unwrap();
        assert!(blurred[..63].iter().all(|value| *value == 0.0), "channels do not mix");
        assert!((blurred.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        // exp(-(1 + 4) / (2 * 0.64)) relative to the centre.
        let ratio = blurred[63 + 5 * 7 + 5] / blurred[63 + 4 * 7 + 3];
        assert!((f64::from(ratio) - (-5.0f64 / 1.28).exp()).abs() < 1e-6);
    }

    /// `scipy.ndimage.gaussian_filter1d([1, 2, 4, 8, 16], 1.0)`.
    #[test]
    fn a_line_is_blurred_as_scipy_does() {
        let blurred = gaussian_blur(&[1.0, 2.0, 4.0, 8.0, 16.0], &[1, 5], 1.0).unwrap();
        let expected = [1.505_198_845, 2.576_114_435, 5.010_017_454, 9.043_372_869, 12.865_296_396];
        for (value, expected) in blurred.iter().zip(expected) {
            assert!((f64::from(*value) - expected).abs() < 1e-6, "{blurred:?}");
        }
    }
}
