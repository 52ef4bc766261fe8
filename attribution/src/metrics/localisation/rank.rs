//! How many of a map's greatest values lie in the mask.

use super::Mask;
use crate::metrics::{Mode, Undefined, Value, descending};

fn share_inside(map: &[f64], mask: &Mask, count: usize) -> f64 {
    let order = descending(map);
    let inside = order.iter().take(count).filter(|index| mask.contains(**index as usize)).count();
    inside as f64 / count as f64
}

/// The share of the `k` greatest values that lie in the mask (Theiner et al. 2022); with
/// `concept_influence` divided by the mask's share of the image. `k` beyond the map is the whole map
/// (reference) or refused (Quantus).
///
/// # Errors
/// If the mask or the choice is empty, or Quantus refuses.
pub fn top_k_intersection(map: &[f64], mask: &Mask, k: usize, concept_influence: bool, mode: Mode) -> Value {
    if mask.pixels() == 0 {
        return Err(Undefined::EmptyMask);
    }
    if mode == Mode::Quantus && k >= map.len() {
        return Err(Undefined::Refused("k has to be below the number of pixels"));
    }
    let k = k.min(map.len());
    if k == 0 {
        return Err(Undefined::NoMass);
    }
    let share = share_inside(map, mask, k);
    Ok(if concept_influence { share / mask.share() } else { share })
}

/// The share of the K greatest values that lie in the mask of K pixels (Arras et al. 2022).
///
/// # Errors
/// If the mask is empty.
pub fn relevance_rank_accuracy(map: &[f64], mask: &Mask) -> Value {
    if mask.pixels() == 0 { Err(Undefined::EmptyMask) } else { Ok(share_inside(map, mask, mask.pixels())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greatest_values_inside() {
        let mask = Mask::new(vec![true, true, false, false], 2).unwrap();
        let map = [0.9, 0.1, 0.5, 0.3];
        assert_eq!(relevance_rank_accuracy(&map, &mask), Ok(0.5));
        assert_eq!(top_k_intersection(&map, &mask, 1, false, Mode::Quantus), Ok(1.0));
        assert_eq!(top_k_intersection(&map, &mask, 1, true, Mode::Quantus), Ok(2.0));
        assert_eq!(top_k_intersection(&map, &mask, 9, false, Mode::Reference), Ok(0.5));
        assert!(top_k_intersection(&map, &mask, 9, false, Mode::Quantus).is_err());
    }
}
