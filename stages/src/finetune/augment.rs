//! Changes of training images that keep their label.

use pipe_models::random::Key;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::images::Change;

/// What happens to a training image, drawn anew for each epoch. Nothing by default: whether a change
/// keeps the label depends on the data (a mirrored chest has its heart on the other side).
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Mirrors left and right in every second image.
    pub flip: bool,
    /// Moves by up to this many pixels each way; the border is repeated.
    #[schemars(range(min = 0, max = 512))]
    pub shift: i64,
}

/// Changes the images of one epoch.
pub(super) struct Augmenter<'a> {
    augment: &'a Augment,
    seed: i64,
    epoch: i64,
}

impl<'a> Augmenter<'a> {
    pub(super) fn new(augment: &'a Augment, seed: i64, epoch: i64) -> Self {
        Self { augment, seed, epoch }
    }

    /// Changes a plane of so many channels, channels last, of image `row`: a pure function of seed, epoch and
    /// row, so that all slices of a volume change alike.
    fn apply<T: Copy>(&self, row: usize, plane: &mut [T], [height, width]: [usize; 2], channels: usize) {
        let Augment { flip, shift } = *self.augment;
        if !flip && shift == 0 {
            return;
        }
        let parts = [(self.epoch as u64).into(), (row as u64).into()];
        let key = Key::derive("pipe augmentation/1", self.seed as u64, &parts);
        let mirrored = flip && key.bits(1) >> 63 == 1;
        let offset = |counter| key.below(counter, 2 * shift as u64 + 1) as i64 - shift;
        let (down, right) = (offset(2), offset(3));
        let inside = |place: i64, length: usize| place.clamp(0, length as i64 - 1) as usize;
        let original = plane.to_vec();
        for y in 0..height {
            let from_row = inside(y as i64 + down, height) * width;
            for x in 0..width {
                let moved = inside(x as i64 + right, width);
                let from = (from_row + if mirrored { width - 1 - moved } else { moved }) * channels;
                let to = (y * width + x) * channels;
                plane[to..to + channels].copy_from_slice(&original[from..from + channels]);
            }
        }
    }
}

impl Change for Augmenter<'_> {
    fn colours(&self, row: usize, square: &mut [u8], side: usize) {
        self.apply(row, square, [side; 2], 3);
    }

    fn grey(&self, row: usize, slice: &mut [f32], shape: [usize; 2]) {
        self.apply(row, slice, shape, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 6;

    fn square() -> Vec<u8> {
        (0..SIDE * SIDE * 3).map(|index| index as u8).collect()
    }

    fn changed(augment: &Augment, row: usize) -> Vec<u8> {
        let mut pixels = square();
        Augmenter::new(augment, 5, 2).colours(row, &mut pixels, SIDE);
        pixels
    }

    #[test]
    fn half_of_the_images_are_mirrored() {
        let mirrored: Vec<u8> = square()
            .chunks_exact(SIDE * 3)
            .flat_map(|row| row.chunks_exact(3).rev().flatten().copied().collect::<Vec<_>>())
            .collect();
        let all: Vec<Vec<u8>> =
            (0..1000).map(|row| changed(&Augment { flip: true, shift: 0 }, row)).collect();
        assert!(all.iter().all(|pixels| *pixels == square() || *pixels == mirrored));
        let count = all.iter().filter(|pixels| **pixels == mirrored).count();
        assert!((440..560).contains(&count), "{count} of 1000");
    }

    #[test]
    fn every_shift_within_the_bound_is_drawn_and_no_other() {
        let augment = Augment { flip: false, shift: 1 };
        let mut seen = std::collections::BTreeSet::new();
        for row in 0..400 {
            let pixels = changed(&augment, row);
            // The pixel in the middle tells where it came from.
            let from = usize::from(pixels[(2 * SIDE + 2) * 3]) / 3;
            let (y, x) = (from / SIDE, from % SIDE);
            assert!((1..=3).contains(&y) && (1..=3).contains(&x));
            seen.insert((y, x));
        }
        assert_eq!(seen.len(), 9);
    }

    #[test]
    fn nothing_changes_by_default_and_equal_draws_are_equal() {
        assert_eq!(changed(&Augment::default(), 3), square());
        let augment = Augment { flip: true, shift: 2 };
        assert_eq!(changed(&augment, 7), changed(&augment, 7));
    }
}
