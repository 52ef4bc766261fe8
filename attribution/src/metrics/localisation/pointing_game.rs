//! The pointing game (Zhang et al. 2018, IJCV 126).

use super::Mask;
use crate::metrics::{Mode, Undefined, Value, first_maximum};

/// 1 if the map's maximum lies in the mask, else 0.
///
/// Reference: the first maximum in row-major order, a hit within `tolerance` pixels of the mask
/// (the original uses 15 at 224). Quantus: any of equal maxima, no tolerance, and an empty mask is hit.
///
/// # Errors
/// If the mask is empty (reference).
pub fn pointing_game(map: &[f64], mask: &Mask, tolerance: f64, mode: Mode) -> Value {
    let hit = match mode {
        Mode::Reference if mask.pixels() == 0 => return Err(Undefined::EmptyMask),
        Mode::Reference => first_maximum(map).is_some_and(|index| mask.is_near(index, tolerance)),
        Mode::Quantus => {
            let maximum = map.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let any = (0..map.len()).any(|index| map[index] == maximum && mask.contains(index));
            any || mask.pixels() == 0
        }
    };
    Ok(f64::from(u8::from(hit)))
}

/// The pointing game with a hit in a small mask counting more: a hit's value is the share of the image
/// outside the mask.
///
/// # Errors
/// If the mask is empty; always in Quantus mode, where it raises an error.
pub fn weighted_pointing_game(map: &[f64], mask: &Mask, tolerance: f64, mode: Mode) -> Value {
    match mode {
        Mode::Quantus => Err(Undefined::Refused("the weighted pointing game assigns into a truth value")),
        Mode::Reference => Ok(pointing_game(map, mask, tolerance, mode)? * (1.0 - mask.share())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(inside: &[usize]) -> Mask {
        Mask::new((0..16).map(|index| inside.contains(&index)).collect(), 4).unwrap()
    }

    fn peak(index: usize) -> Vec<f64> {
        (0..16).map(|pixel| f64::from(u8::from(pixel == index))).collect()
    }

    #[test]
    fn tolerance_reaches_around_the_mask() {
        let play = |index, tolerance| pointing_game(&peak(index), &mask(&[5]), tolerance, Mode::Reference);
        assert_eq!((play(5, 0.0), play(6, 0.0), play(6, 1.0)), (Ok(1.0), Ok(0.0), Ok(1.0)));
        assert_eq!((play(10, 1.0), play(10, 1.5)), (Ok(0.0), Ok(1.0)));
        let weighted = weighted_pointing_game(&peak(5), &mask(&[5]), 0.0, Mode::Reference);
        assert_eq!(weighted, Ok(15.0 / 16.0));
    }

    #[test]
    fn ties_and_empty_masks_tell_the_modes_apart() {
        let flat = [1.0; 16];
        assert_eq!(pointing_game(&flat, &mask(&[5]), 0.0, Mode::Reference), Ok(0.0));
        assert_eq!(pointing_game(&flat, &mask(&[5]), 0.0, Mode::Quantus), Ok(1.0));
        assert_eq!(pointing_game(&flat, &mask(&[]), 0.0, Mode::Reference), Err(Undefined::EmptyMask));
        assert_eq!(pointing_game(&flat, &mask(&[]), 0.0, Mode::Quantus), Ok(1.0));
    }
}
