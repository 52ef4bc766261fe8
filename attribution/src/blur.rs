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
    smoothed(values, shape, &gaussian_taps(sigma, (REACH * sigma + 0.5) as usize), Border::Mirrored)
}

/// What stands beyond the border of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Border {
    /// The line, mirrored with its edge: d c b a | a b c d | d c b a.
    Mirrored,
    /// The edge, repeated: a a a a | a b c d | d d d d.
    Repeated,
}

/// `2 radius + 1` weights of a Gaussian of deviation `sigma` that sum to 1.
pub fn gaussian_taps(sigma: f64, radius: usize) -> Vec<f64> {
    let radius = radius as i64;
    let raw: Vec<f64> =
        (-radius..=radius).map(|tap| libm::exp(-0.5 * (tap as f64 / sigma) * (tap as f64 / sigma))).collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|weight| weight / sum).collect()
}

/// `values` of `shape` `[channels, ...]`, each channel convolved with `taps` (an odd number) along every
/// further axis. Sums are f64.
///
/// # Errors
/// If the shape is not that of the values, or the number of taps is even.
pub fn smoothed(values: &[f32], shape: &[usize], taps: &[f64], border: Border) -> Result<Vec<f32>> {
    if shape.iter().product::<usize>() != values.len() || taps.len().is_multiple_of(2) {
        return Err(AttributionError::Settings(format!(
            "{} values are blurred as {shape:?} with {} taps",
            values.len(),
            taps.len()
        )));
    }
    let mut blurred = values.to_vec();
    let mut line = Vec::new();
    for axis in 1..shape.len() {
        let (length, stride) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        for start in (0..values.len()).filter(|index| index / stride % length == 0) {
            line.clear();
            line.extend((0..length).map(|place| f64::from(blurred[start + place * stride])));
            for place in 0..length {
                let first = place as i64 - taps.len() as i64 / 2;
                let at = |place: i64| line[border.inside(place, length)];
                let sum: f64 = taps.iter().zip(first..).map(|(weight, place)| weight * at(place)).sum();
                blurred[start + place * stride] = sum as f32;
            }
        }
    }
    Ok(blurred)
}

impl Border {
    /// The place inside `0..length` that stands for `place`.
    fn inside(self, place: i64, length: usize) -> usize {
        match self {
            Self::Mirrored => {
                let period = 2 * length as i64;
                let place = place.rem_euclid(period);
                place.min(period - 1 - place) as usize
            }
            Self::Repeated => place.clamp(0, length as i64 - 1) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirroring_repeats_the_edge() {
        let places = |border: Border| (-4..8).map(|place| border.inside(place, 3)).collect::<Vec<usize>>();
        assert_eq!(places(Border::Mirrored), [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]);
        assert_eq!(places(Border::Repeated), [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2]);
        assert!(smoothed(&[0.0; 4], &[1, 4], &[0.5, 0.5], Border::Repeated).is_err());
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
