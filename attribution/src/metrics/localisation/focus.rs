//! Focus (Arias-Duart et al. 2022): mosaics instead of masks.

use crate::metrics::{Undefined, Value};

/// The share of positive mass in the quadrants of a 2 x 2 mosaic that show the target class.
/// `shows_target`: top left, top right, bottom left, bottom right; halves meet at `height / 2`,
/// `width / 2`.
///
/// # Errors
/// If the map has no positive value.
pub fn focus(map: &[f64], width: usize, shows_target: [bool; 4]) -> Value {
    let height = map.len() / width.max(1);
    let (mut inside, mut total) = (0.0, 0.0);
    for (index, value) in map.iter().enumerate() {
        let (row, column) = (index / width, index % width);
        let quadrant = 2 * usize::from(row >= height / 2) + usize::from(column >= width / 2);
        total += value.max(0.0);
        if shows_target[quadrant] {
            inside += value.max(0.0);
        }
    }
    // Quantus adds 1e-9 to the total, which shows in no digit that it prints.
    if total > 0.0 { Ok(inside / total) } else { Err(Undefined::NoMass) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quadrants_of_a_mosaic() {
        let map = [1.0, 2.0, 3.0, -4.0];
        assert_eq!(focus(&map, 2, [true, false, false, true]), Ok(1.0 / 6.0));
        assert_eq!(focus(&[-1.0; 4], 2, [true; 4]), Err(Undefined::NoMass));
    }
}
