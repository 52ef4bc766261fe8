//! How much of a map's mass lies in the mask.

use super::Mask;
use crate::metrics::{Mode, Undefined, Value};

/// How a share of mass is related to the size of the mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weighting {
    /// Not at all.
    None,
    /// Reference: divided by the mask's share of the image, so that a uniform map has 1.
    Area,
    /// Quantus: multiplied by the mask's pixels over `features`, the number of values of all samples of
    /// the batch but the first two (an indexing mistake).
    Slice {
        /// (batch - 2) * channels * height * width.
        features: usize,
    },
}

/// The share of a map's mass inside the mask (Arras et al. 2022, relevance mass accuracy).
///
/// For maps with signs the total may be near zero or negative and the figure without bounds: give the
/// positive part or the magnitudes, and state which.
///
/// # Errors
/// If the mask is empty or the map sums to 0.
pub fn relevance_mass_accuracy(map: &[f64], mask: &Mask) -> Value {
    if mask.pixels() == 0 {
        return Err(Undefined::EmptyMask);
    }
    let total: f64 = map.iter().sum();
    if total == 0.0 || !total.is_finite() { Err(Undefined::NoMass) } else { Ok(mask.sum(map) / total) }
}

/// The share of mass inside the mask, perhaps related to the mask's size (Kohlbrenner et al. 2020).
/// `map` has no negative values.
///
/// # Errors
/// If the mask is empty or the map is zero; in Quantus mode also if the ratio is above 1, or `Slice` has
/// no features.
pub fn attribution_localisation(map: &[f64], mask: &Mask, weighting: Weighting, mode: Mode) -> Value {
    let ratio = match mode {
        Mode::Reference => relevance_mass_accuracy(map, mask)?,
        Mode::Quantus => {
            if mask.pixels() == 0 {
                return Err(Undefined::EmptyMask);
            }
            mask.sum(map) / (map.iter().sum::<f64>() + 1e-9)
        }
    };
    if mode == Mode::Quantus && ratio > 1.0 {
        return Err(Undefined::Refused("a ratio above one becomes NaN"));
    }
    match weighting {
        Weighting::None => Ok(ratio),
        Weighting::Area => Ok(ratio / mask.share()),
        Weighting::Slice { features: 0 } => {
            Err(Undefined::Refused("weighting divides by zero for batches of one or two"))
        }
        Weighting::Slice { features } => Ok(ratio * mask.pixels() as f64 / features as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_mass() {
        let mask = Mask::new(vec![true, false, false, false], 2).unwrap();
        let map = [3.0, 1.0, 0.0, 2.0];
        assert_eq!(relevance_mass_accuracy(&map, &mask), Ok(0.5));
        assert_eq!(attribution_localisation(&map, &mask, Weighting::Area, Mode::Reference), Ok(2.0));
        let slice = Weighting::Slice { features: 8 };
        let value = attribution_localisation(&map, &mask, slice, Mode::Quantus).unwrap();
        assert!((value - 0.5 / 8.0).abs() < 1e-9);
        assert_eq!(relevance_mass_accuracy(&[0.0; 4], &mask), Err(Undefined::NoMass));
        assert_eq!(relevance_mass_accuracy(&[-1.0, 1.0, 0.0, 0.0], &mask), Err(Undefined::NoMass));
        let uniform = attribution_localisation(&[1.0; 4], &mask, Weighting::Area, Mode::Reference);
        assert_eq!(uniform, Ok(1.0));
    }
}
