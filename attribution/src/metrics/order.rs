//! Orders of features, and the groups they are changed in.

use super::{Shape, Undefined};

/// Sorts indices by `key`; equal keys keep ascending index.
fn sorted(values: &[f64], key: impl Fn(f64) -> f64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    // `+ 0.0` makes the two zeros one: half of the zeros of a masked gradient are negative.
    let key = |index: &u32| key(values[*index as usize]) + 0.0;
    order.sort_by(|a, b| key(a).total_cmp(&key(b)));
    order
}

/// Indices by decreasing value; equal values keep ascending index.
pub fn descending(values: &[f64]) -> Vec<u32> {
    sorted(values, |value| -value)
}

/// Indices by increasing value; equal values keep ascending index.
pub fn ascending(values: &[f64]) -> Vec<u32> {
    sorted(values, |value| value)
}

/// The index of the greatest value, the first of equals; nothing for an empty map.
pub fn first_maximum(values: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (index, value) in values.iter().enumerate() {
        if best.is_none_or(|best| *value > values[best]) {
            best = Some(index);
        }
    }
    best
}

/// Whether Quantus changes so many features at a step.
///
/// # Errors
/// If they do not divide the pixels of a channel: it raises an error.
pub fn check_step(shape: Shape, features: usize) -> Result<(), Undefined> {
    match features > 0 && shape.pixels().is_multiple_of(features) {
        true => Ok(()),
        false => Err(Undefined::Refused("the features of a step have to divide the pixels of a channel")),
    }
}

/// The least number of features, `least` or more, that Quantus changes at a step. If it can be, it is one of whole
/// pixels: otherwise the channels of a pixel, whose values are equal, change at different steps.
pub fn quantus_step(shape: Shape, least: usize) -> usize {
    let pixels = shape.pixels().max(1);
    let numbers = || (least.max(1)..=pixels).filter(|number| pixels.is_multiple_of(*number));
    numbers()
        .find(|number| number.is_multiple_of(shape.channels.max(1)))
        .or_else(|| numbers().next())
        .unwrap_or(pixels)
}

/// Features in the order in which they change, cut into groups that change together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Groups {
    features: Vec<u32>,
    /// Where each group ends.
    ends: Vec<usize>,
}

impl Groups {
    /// Groups one after another.
    pub fn new(groups: impl IntoIterator<Item = impl IntoIterator<Item = u32>>) -> Self {
        let mut all = Self::default();
        for group in groups {
            all.features.extend(group);
            all.ends.push(all.features.len());
        }
        all
    }

    /// `order` cut into blocks of `size` (at least one), the last one perhaps shorter.
    pub fn blocks(order: Vec<u32>, size: usize) -> Self {
        let size = size.max(1);
        let count = order.len().div_ceil(size);
        let ends = (1..=count).map(|block| (block * size).min(order.len())).collect();
        Self { features: order, ends }
    }

    /// The groups of a `height` x `width` grid of patches with this side, row by row; patches at the
    /// right and lower border are smaller where the side does not divide, after `offset` pixels of
    /// padding before the first row and column.
    pub fn patches([height, width]: [usize; 2], side: usize, offset: [usize; 2]) -> Self {
        let side = side.max(1);
        let (rows, columns) = ((height + offset[0]).div_ceil(side), (width + offset[1]).div_ceil(side));
        // The pixels of patch `index` along one axis, padding left out.
        let span = move |index: usize, offset: usize, length: usize| {
            (index * side).saturating_sub(offset)..((index + 1) * side).saturating_sub(offset).min(length)
        };
        Self::new((0..rows * columns).map(|patch| {
            span(patch / columns, offset[0], height).flat_map(move |row| {
                span(patch % columns, offset[1], width).map(move |column| (row * width + column) as u32)
            })
        }))
    }

    /// The groups of a grid of boxes of these sides in a volume of `lengths` (slices, rows, columns), slice by slice; boxes
    /// behind are smaller where a side does not divide, after `offset` voxels of padding before the first.
    pub fn boxes(lengths: [usize; 3], sides: [usize; 3], offset: [usize; 3]) -> Self {
        let sides = sides.map(|side| side.max(1));
        let counts: [usize; 3] =
            std::array::from_fn(|axis| (lengths[axis] + offset[axis]).div_ceil(sides[axis]));
        let span = move |index: usize, axis: usize| {
            let end = |index: usize| (index * sides[axis]).saturating_sub(offset[axis]).min(lengths[axis]);
            end(index)..end(index + 1)
        };
        let [_, height, width] = lengths;
        Self::new((0..counts.iter().product()).map(|index| {
            let [slice, row, column] =
                [index / (counts[1] * counts[2]), index / counts[2] % counts[1], index % counts[2]];
            span(slice, 0).flat_map(move |z| {
                span(row, 1)
                    .flat_map(move |y| span(column, 2).map(move |x| ((z * height + y) * width + x) as u32))
            })
        }))
    }

    /// The groups of equal labels, in ascending order of the label.
    pub fn segments(labels: &[u32]) -> Self {
        let mut distinct = labels.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let pixels =
            |label: u32| (0..labels.len() as u32).filter(move |pixel| labels[*pixel as usize] == label);
        Self::new(distinct.into_iter().map(pixels))
    }

    /// The number of groups.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The features of one group.
    pub fn group(&self, index: usize) -> &[u32] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.features[start..self.ends[index]]
    }

    /// The features of the first `count` groups.
    pub fn first(&self, count: usize) -> &[u32] {
        &self.features[..if count == 0 { 0 } else { self.ends[count - 1] }]
    }

    /// The groups one after another.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.len()).map(|index| self.group(index))
    }

    /// These groups in another order; `order` may leave some out.
    #[must_use]
    pub fn reordered(&self, order: &[u32]) -> Self {
        Self::new(order.iter().map(|index| self.group(*index as usize).iter().copied()))
    }

    /// Groups of pixels as groups of features: every pixel in each of `channels` planes of `pixels`.
    #[must_use]
    pub fn in_all_channels(&self, channels: usize, pixels: usize) -> Self {
        Self::new(self.iter().map(|group| {
            group
                .iter()
                .flat_map(move |pixel| (0..channels).map(move |channel| (channel * pixels) as u32 + pixel))
        }))
    }

    /// The sum of `values` over each group.
    pub fn sums(&self, values: &[f64]) -> Vec<f64> {
        self.iter().map(|group| group.iter().map(|index| values[*index as usize]).sum()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_keep_their_order_and_zeros_are_one() {
        assert_eq!(descending(&[1.0, 3.0, 1.0, 3.0]), [1, 3, 0, 2]);
        assert_eq!(ascending(&[1.0, 3.0, 1.0, 3.0]), [0, 2, 1, 3]);
        assert_eq!(descending(&[0.0, -0.0, 0.0]), [0, 1, 2]);
        assert_eq!(ascending(&[0.0, -0.0, 0.0]), [0, 1, 2]);
        assert_eq!(first_maximum(&[1.0, 2.0, 2.0]), Some(1));
        assert_eq!(first_maximum(&[]), None);
    }

    #[test]
    fn steps_that_quantus_takes_divide_the_pixels() {
        let shape = Shape::flat(3, 4, 6);
        assert_eq!([1, 4, 7, 13].map(|least| quantus_step(shape, least)), [3, 6, 12, 24]);
        // No divisor of 16 is one of three channels.
        let square = Shape::flat(3, 4, 4);
        assert_eq!([3, 5, 99].map(|least| quantus_step(square, least)), [4, 8, 16]);
        assert!(
            check_step(shape, 8).is_ok() && check_step(shape, 5).is_err() && check_step(shape, 0).is_err()
        );
    }

    #[test]
    fn blocks_end_with_what_is_left() {
        let groups = Groups::blocks(vec![4, 3, 2, 1, 0], 2);
        assert_eq!(groups.iter().collect::<Vec<_>>(), [&[4, 3][..], &[2, 1], &[0]]);
        assert_eq!((groups.first(0), groups.first(2)), (&[][..], &[4, 3, 2, 1][..]));
        assert_eq!(groups.sums(&[1.0, 2.0, 4.0, 8.0, 16.0]), [24.0, 6.0, 1.0]);
    }

    #[test]
    fn patches_cover_every_pixel_once() {
        for (shape, side, offset) in [([4, 6], 2, [0, 0]), ([5, 5], 2, [0, 0]), ([5, 4], 3, [0, 1])] {
            let groups = Groups::patches(shape, side, offset);
            let mut all: Vec<u32> = groups.first(groups.len()).to_vec();
            all.sort_unstable();
            assert_eq!(all, (0..(shape[0] * shape[1]) as u32).collect::<Vec<_>>(), "{shape:?}");
        }
        let groups = Groups::patches([2, 4], 2, [0, 0]);
        assert_eq!(groups.iter().collect::<Vec<_>>(), [&[0, 1, 4, 5][..], &[2, 3, 6, 7]]);
        // One column of padding on the left: the first patch has one real column.
        assert_eq!(Groups::patches([1, 4], 2, [0, 1]).group(0), [0]);
    }

    #[test]
    fn segments_and_channels() {
        let groups = Groups::segments(&[7, 2, 7, 2]);
        assert_eq!(groups.iter().collect::<Vec<_>>(), [&[1, 3][..], &[0, 2]]);
        assert_eq!(groups.reordered(&[1]).in_all_channels(2, 4).group(0), [0, 4, 2, 6]);
    }
}
