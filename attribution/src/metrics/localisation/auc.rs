//! The map as a classifier of pixels.

use super::Mask;
use crate::metrics::{Undefined, Value, average_ranks};

/// The area under the ROC curve of the map as a score for "inside the mask" (Mann-Whitney, ties one
/// half). 0.5 for a map that knows nothing; central lesions alone give a centred bump .8.
///
/// # Errors
/// If the mask is empty or covers everything.
pub fn auc(map: &[f64], mask: &Mask) -> Value {
    let (inside, outside) = (mask.pixels() as f64, (mask.area() - mask.pixels()) as f64);
    if inside == 0.0 {
        return Err(Undefined::EmptyMask);
    }
    if outside == 0.0 {
        return Err(Undefined::FullMask);
    }
    let rank_sum = mask.sum(&average_ranks(map));
    Ok((rank_sum - inside * (inside + 1.0) / 2.0) / (inside * outside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_are_in_order() {
        let mask = Mask::new(vec![true, true, false, false], 2).unwrap();
        assert_eq!(auc(&[0.9, 0.4, 0.5, 0.3], &mask), Ok(0.75));
        assert_eq!(auc(&[1.0; 4], &mask), Ok(0.5));
        assert_eq!(auc(&[1.0; 4], &Mask::new(vec![true; 4], 2).unwrap()), Err(Undefined::FullMask));
    }
}
