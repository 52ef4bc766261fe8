//! Rows that an image shares with the image before it are computed once.
//!
//! Occlusion shows a model one image many times, each time with another window hidden: most patches of a batch stand in
//! the same place of the image before, and what is made of each patch on its own needs to be made once.

use rayon::prelude::*;

/// Rows that are compared sooner than other threads are woken.
const SMALL: usize = 256;

/// The rows of `out` values that `compute` makes of the rows of `x`, `[images, places, width]`, each of its row alone.
/// `compute` is given those that differ from what the image before has in the same place, if they are few enough to be
/// worth a copy.
pub(super) fn computed_once(
    x: &[f32],
    images: usize,
    [width, out]: [usize; 2],
    compute: impl Fn(&[f32]) -> Vec<f32>,
) -> Vec<f32> {
    let rows = x.len() / width.max(1);
    let places = rows / images.max(1);
    if images < 2 || places == 0 {
        return compute(x);
    }
    let row = |row: usize| &x[row * width..(row + 1) * width];
    let is_new = |index: usize| index < places || row(index) != row(index - places);
    let is_new: Vec<bool> = (0..rows).into_par_iter().with_min_len(SMALL).map(is_new).collect();
    let count = is_new.iter().filter(|is_new| **is_new).count();
    if 4 * count > 3 * rows {
        return compute(x);
    }
    let mut new = Vec::with_capacity(count * width);
    (0..rows).filter(|index| is_new[*index]).for_each(|index| new.extend_from_slice(row(index)));
    let computed = compute(&new);
    let mut values = Vec::with_capacity(rows * out);
    let mut taken = 0;
    for (index, is_new) in is_new.into_iter().enumerate() {
        if is_new {
            values.extend_from_slice(&computed[taken..taken + out]);
            taken += out;
        } else {
            values.extend_from_within((index - places) * out..(index - places + 1) * out);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_repeats_is_given_once_and_all_is_as_if_it_were_given(
            cells in prop::collection::vec(0u8..3, 0..120),
            images in 1usize..5,
            width in 1usize..4,
        ) {
            let cells = &cells[..cells.len() / (images * width) * images * width];
            let x: Vec<f32> = cells.iter().map(|cell| f32::from(*cell) - 1.0).collect();
            let given = Cell::new(0);
            let compute = |x: &[f32]| {
                given.set(given.get() + x.len() / width);
                x.chunks_exact(width).flat_map(|row| [row.iter().sum::<f32>(), row[0] * 3.0]).collect()
            };
            let found = computed_once(&x, images, [width, 2], compute);
            let (rows, places) = (x.len() / width, x.len() / width / images);
            let new = (0..rows).filter(|row| {
                let at = |row: usize| &x[row * width..(row + 1) * width];
                *row < places || at(*row) != at(row - places)
            });
            let new = new.count();
            prop_assert_eq!(given.get(), if 4 * new > 3 * rows { rows } else { new });
            let all: Vec<f32> = compute(&x);
            prop_assert_eq!(found, all);
        }
    }
}
