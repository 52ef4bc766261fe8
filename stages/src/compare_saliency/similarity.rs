//! How alike two maps of one image are, and their difference.

use std::collections::HashSet;

use pipe_attribution::metrics::{descending, spearman, volume_ssim};
use pipe_attribution::{Interpolation, resize};

/// How two maps are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Measure {
    /// Spearman's rank correlation of all pixels.
    Spearman,
    /// The greatest tenth of either map: those in both over those in either.
    TopTenth,
    /// Structural similarity of both maps as images, or as volumes.
    Ssim,
}

impl Measure {
    pub(super) const ALL: [Self; 3] = [Self::Spearman, Self::TopTenth, Self::Ssim];

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spearman => "spearman",
            Self::TopTenth => "top_10_percent_iou",
            Self::Ssim => "ssim",
        }
    }

    /// Of two maps of the same grid of slices, rows and columns.
    ///
    /// # Errors
    /// If it is undefined for these.
    pub(super) fn of(self, first: &[f64], second: &[f64], grid: [usize; 3]) -> Result<f64, String> {
        let value = match self {
            Self::Spearman => spearman(first, second),
            Self::TopTenth => return Ok(top_tenth(first, second)),
            Self::Ssim => volume_ssim(first, second, grid),
        };
        value.map_err(|reason| reason.to_string())
    }
}

/// Intersection over union of the greatest tenths; of equal values the first ones count.
fn top_tenth(first: &[f64], second: &[f64]) -> f64 {
    let count = first.len().div_ceil(10);
    let greatest = |map: &[f64]| -> HashSet<u32> { descending(map).into_iter().take(count).collect() };
    let (first, second) = (greatest(first), greatest(second));
    let shared = first.intersection(&second).count();
    shared as f64 / (2 * count - shared) as f64
}

/// The smaller of two grids, side by side.
pub(super) fn common_grid(first: [usize; 3], second: [usize; 3]) -> [usize; 3] {
    std::array::from_fn(|axis| first[axis].min(second[axis]))
}

/// A map of grid `from` on grid `to`, divided by the sum of its absolute values.
///
/// # Errors
/// If that is 0.
pub(super) fn share(map: &[f64], from: [usize; 3], to: [usize; 3]) -> Result<Vec<f64>, String> {
    let map = match from == to {
        true => map.to_vec(),
        false => {
            let values: Vec<f32> = map.iter().map(|value| *value as f32).collect();
            resize(&values, &from, &to, Interpolation::Centres).into_iter().map(f64::from).collect()
        }
    };
    let sum: f64 = map.iter().map(|value| value.abs()).sum();
    if sum > 0.0 {
        Ok(map.into_iter().map(|value| value / sum).collect())
    } else {
        Err("the map is zero everywhere".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp() -> Vec<f64> {
        (0..100).map(f64::from).collect()
    }

    #[test]
    fn a_map_is_like_itself_and_unlike_its_inverse() {
        let first = share(&ramp(), [1, 10, 10], [1, 10, 10]).unwrap();
        let inverse: Vec<f64> = first.iter().rev().copied().collect();
        for measure in Measure::ALL {
            assert!((measure.of(&first, &first, [1, 10, 10]).unwrap() - 1.0).abs() < 1e-12, "{measure:?}");
        }
        assert!((Measure::Spearman.of(&first, &inverse, [1, 10, 10]).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(Measure::TopTenth.of(&first, &inverse, [1, 10, 10]), Ok(0.0));
        assert!(Measure::Ssim.of(&first, &inverse, [1, 10, 10]).unwrap() < 0.5);
    }

    #[test]
    fn the_greatest_tenths_are_counted() {
        let mut second = ramp();
        // Five of the ten greatest are gone, five others are there.
        second[90..95].fill(-1.0);
        assert_eq!(top_tenth(&ramp(), &second), 5.0 / 15.0);
    }

    #[test]
    fn the_scale_of_a_map_does_not_matter() {
        let scaled: Vec<f64> = ramp().iter().map(|value| 7.0 * value).collect();
        assert_eq!(
            share(&ramp(), [1, 10, 10], [1, 10, 10]).unwrap(),
            share(&scaled, [1, 10, 10], [1, 10, 10]).unwrap()
        );
        let finer = share(&[0.5; 400], [1, 20, 20], [1, 10, 10]).unwrap();
        assert!(finer.len() == 100 && finer.iter().all(|value| (value - 0.01).abs() < 1e-9));
        assert!(share(&[0.0; 4], [1, 2, 2], [1, 2, 2]).unwrap_err().contains("zero"));
    }

    #[test]
    fn constant_maps_have_no_correlation() {
        let even = share(&[1.0; 100], [1, 10, 10], [1, 10, 10]).unwrap();
        assert!(Measure::Spearman.of(&even, &ramp(), [1, 10, 10]).is_err());
    }
}
