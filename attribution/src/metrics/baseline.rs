//! What features change to.

use super::{Groups, Sample, Shape};

/// A value that stands for "removed", taken over all channels of one image.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Baseline {
    /// This value.
    Constant(f32),
    /// The image's least value: not 0 after mean and deviation were taken off.
    Black,
    /// The image's greatest value.
    White,
    /// The image's mean.
    Mean,
}

impl Baseline {
    /// The value for an image.
    pub fn value(self, image: &[f32]) -> f32 {
        match self {
            Self::Constant(value) => value,
            Self::Black => image.iter().copied().fold(f32::INFINITY, f32::min),
            Self::White => image.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            Self::Mean => {
                let sum: f64 = image.iter().map(|value| f64::from(*value)).sum();
                (sum / image.len().max(1) as f64) as f32
            }
        }
    }

    /// The image of this value everywhere.
    pub fn image(self, image: &[f32]) -> Vec<f32> {
        vec![self.value(image); image.len()]
    }

    /// These images for a set of samples.
    pub fn images(self, samples: &[Sample<'_>]) -> Vec<Vec<f32>> {
        samples.iter().map(|sample| self.image(sample.image)).collect()
    }

    /// What each feature of `groups` changes to where the value is taken again before every step, from
    /// the image as changed so far (Quantus). Only the mean drifts.
    pub fn drifting(self, image: &[f32], groups: &Groups) -> Vec<f32> {
        let mut end = self.image(image);
        if self == Self::Mean {
            let mut sum: f64 = image.iter().map(|value| f64::from(*value)).sum();
            for group in groups.iter() {
                let mean = (sum / image.len() as f64) as f32;
                for feature in group {
                    let feature = *feature as usize;
                    sum += f64::from(mean) - f64::from(image[feature]);
                    end[feature] = mean;
                }
            }
        }
        end
    }
}

/// The side of the blur's window.
const BLUR_SIDE: usize = 11;
/// The deviation of the Gaussian that makes it.
const BLUR_DEVIATION: f64 = 5.0;

/// One axis of the blur of Petsiuk et al. (2018): a unit impulse in the middle of eleven values, filtered
/// by a Gaussian of deviation 5 with reflecting borders. The reflections make it nearly flat; it sums to
/// 1, and the two-dimensional kernel is its outer product.
pub fn blur_weights() -> [f64; BLUR_SIDE] {
    // A Gaussian filter ends at four deviations.
    let reach = (4.0 * BLUR_DEVIATION + 0.5) as i64;
    let gaussian =
        |offset: i64| libm::exp(-0.5 * (offset * offset) as f64 / (BLUR_DEVIATION * BLUR_DEVIATION));
    let total: f64 = (-reach..=reach).map(gaussian).sum();
    let side = BLUR_SIDE as i64;
    let mut weights = [0.0; BLUR_SIDE];
    for (index, weight) in weights.iter_mut().enumerate() {
        for offset in -reach..=reach {
            // (d c b a | a b c d | d c b a)
            let place = (index as i64 + offset).rem_euclid(2 * side);
            let reflected = if place < side { place } else { 2 * side - 1 - place };
            if reflected == side / 2 {
                *weight += gaussian(offset) / total;
            }
        }
    }
    weights
}

/// Where insertion starts: each channel of the image blurred (11 x 11, zeros beyond the border), of a volume along its
/// slices too.
pub fn blurred(image: &[f32], shape: Shape) -> Vec<f32> {
    let weights = blur_weights();
    let [slices, height, width] = shape.axes();
    let mut result = Vec::with_capacity(image.len());
    for channel in image.chunks_exact(shape.pixels().max(1)) {
        let channel: Vec<f64> = channel.iter().map(|value| f64::from(*value)).collect();
        let rows = blurred_along(&channel, 1, width, &weights);
        let mut plane = blurred_along(&rows, width, height, &weights);
        if shape.depth.is_some() {
            plane = blurred_along(&plane, height * width, slices, &weights);
        }
        result.extend(plane.into_iter().map(|value| value as f32));
    }
    result
}

/// Values blurred along an axis of this length, whose neighbours stand `stride` apart.
fn blurred_along(values: &[f64], stride: usize, length: usize, weights: &[f64]) -> Vec<f64> {
    let half = weights.len() / 2;
    let value = |index: usize| {
        let place = index / stride % length;
        let first = index - place * stride;
        let near = place.saturating_sub(half)..=(place + half).min(length - 1);
        near.fold(0.0, |sum, other| sum + weights[other + half - place] * values[first + other * stride])
    };
    (0..values.len()).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_an_image() {
        let image = [1.0, -2.0, 4.0];
        let values = [Baseline::Constant(0.5), Baseline::Black, Baseline::White, Baseline::Mean];
        assert_eq!(values.map(|baseline| baseline.value(&image)), [0.5, -2.0, 4.0, 1.0]);
    }

    #[test]
    fn volumes_are_blurred_along_their_slices_too() {
        let mut image = vec![0.0f32; 13 * 13 * 13];
        image[6 * 169 + 6 * 13 + 6] = 1.0;
        let blurred = blurred(&image, Shape::volume(1, [13, 13, 13]));
        let weights = blur_weights();
        let at = |z: usize, y: usize, x: usize| f64::from(blurred[z * 169 + y * 13 + x]);
        assert!((at(6, 6, 6) - weights[5].powi(3)).abs() < 1e-9);
        assert!((at(2, 6, 8) - weights[9] * weights[5] * weights[3]).abs() < 1e-9);
        assert_eq!(at(0, 6, 6), 0.0);
    }

    #[test]
    fn a_mean_that_is_taken_again_drifts() {
        let groups = Groups::new([[0], [1], [2]]);
        // Means of (3, 0, 0), (1, 0, 0) and (1, 1/3, 0).
        let end = Baseline::Mean.drifting(&[3.0, 0.0, 0.0], &groups);
        for (ours, expected) in end.iter().zip([1.0, 1.0 / 3.0, 4.0 / 9.0]) {
            assert!((ours - expected).abs() < 1e-6, "{end:?}");
        }
        assert_eq!(Baseline::White.drifting(&[3.0, 0.0], &groups), [3.0, 3.0]);
    }

    #[test]
    fn the_blur_keeps_a_constant_away_from_the_border() {
        let shape = Shape::flat(2, 23, 13);
        let weights = blur_weights();
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(weights.iter().all(|weight| (weight - 1.0 / 11.0).abs() < 0.03), "{weights:?}");
        let blurred = blurred(&vec![2.0; shape.features()], shape);
        assert!((blurred[11 * 13 + 6] - 2.0).abs() < 1e-6);
        assert!(blurred[0] < 1.0);
    }
}
