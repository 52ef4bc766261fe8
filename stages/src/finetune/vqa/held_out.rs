//! Training questions that are kept back to choose an epoch on.

use std::collections::BTreeSet;

use pipe_models::random::Key;

/// The rows that learn and those that are held out: all about `share` of the images, which `seed` draws. `image` tells
/// the image of a row.
pub(super) fn hold_out(
    rows: Vec<usize>,
    image: impl Fn(usize) -> usize,
    share: f64,
    seed: i64,
) -> (Vec<usize>, Vec<usize>) {
    let mut images: Vec<usize> = rows.iter().map(|row| image(*row)).collect();
    images.sort_unstable();
    images.dedup();
    let count = (images.len() as f64 * share).round() as usize;
    let order = Key::derive("pipe held-out images/1", seed as u64, &[]).permutation(images.len());
    let held: BTreeSet<usize> = order.into_iter().take(count).map(|place| images[place]).collect();
    rows.into_iter().partition(|row| !held.contains(&image(*row)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn images_are_on_one_side(
            of in prop::collection::vec(0usize..20, 1..80),
            share in 0.0f64..0.5,
            seed in any::<i64>(),
        ) {
            let rows: Vec<usize> = (0..of.len()).collect();
            let (learning, held) = hold_out(rows.clone(), |row| of[row], share, seed);
            let mut all = [&learning[..], &held].concat();
            all.sort_unstable();
            prop_assert_eq!(all, rows.clone(), "each row once");
            prop_assert!(learning.is_sorted() && held.is_sorted(), "in their order");
            let images = |rows: &[usize]| rows.iter().map(|row| of[*row]).collect::<BTreeSet<_>>();
            prop_assert!(images(&learning).is_disjoint(&images(&held)));
            let count = (images(&rows).len() as f64 * share).round() as usize;
            prop_assert_eq!(images(&held).len(), count);
            prop_assert_eq!(hold_out(rows, |row| of[row], share, seed), (learning, held), "again the same");
        }
    }

    #[test]
    fn a_seed_draws_others() {
        let held = |seed| hold_out((0..100).collect(), |row| row, 0.2, seed).1;
        assert_ne!(held(1), held(2));
    }
}
