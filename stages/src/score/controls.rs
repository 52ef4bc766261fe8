//! Maps that know nothing of the model: what every figure is read against.
//!
//! A map that beats a random one may still only know that lesions are bright, central or unusual. The
//! difference to the mean training image needs no model at all and points at many lesions; only the
//! distance from it says something about the explained model.

use pipe_attribution::metrics::Shape;
use pipe_models::random::Key;

/// A control, by the name that stands in the column `method`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Control {
    /// Independent uniform noise per pixel.
    Random,
    /// A bump in the middle of the image.
    Center,
    /// The magnitude of the image's gradient (Sobel).
    Edge,
    /// |image - mean training image|, summed over channels.
    AbsDifferenceToReference,
}

impl Control {
    const ALL: [Self; 4] = [Self::Random, Self::Center, Self::Edge, Self::AbsDifferenceToReference];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Center => "center",
            Self::Edge => "edge",
            Self::AbsDifferenceToReference => "abs_difference_to_reference",
        }
    }

    /// The map of an image `[channels, height, width]`; `reference` is its mean training image.
    pub(super) fn map(self, id: &str, seed: u64, image: &[f32], reference: &[f32], shape: Shape) -> Vec<f64> {
        match self {
            Self::Random => random(id, seed, shape.pixels()),
            Self::Center => center(shape),
            Self::Edge => edge(image, shape),
            Self::AbsDifferenceToReference => abs_difference(image, reference, shape),
        }
    }
}

/// Whether the name in a table's column `method` is that of a control.
pub(crate) fn is_control(method: &str) -> bool {
    Control::ALL.iter().any(|control| control.name() == method)
}

fn random(id: &str, seed: u64, pixels: usize) -> Vec<f64> {
    let key = Key::derive("pipe random map/1", seed, &[id.into()]);
    (1..=pixels as u64).map(|draw| key.uniform(draw)).collect()
}

/// A Gaussian whose deviation is a quarter of the shorter side, along the slices of a volume of their number.
fn center(shape: Shape) -> Vec<f64> {
    let deviation = shape.height.min(shape.width) as f64 / 4.0;
    let across = 2.0 * deviation * deviation;
    let deep = shape.depth.map(|slices| 2.0 * (slices as f64 / 4.0) * (slices as f64 / 4.0));
    let middle = |length: usize| (length as f64 - 1.0) / 2.0;
    let slice = shape.height * shape.width;
    (0..shape.pixels())
        .map(|index| {
            let down = (index % slice / shape.width) as f64 - middle(shape.height);
            let right = (index % shape.width) as f64 - middle(shape.width);
            let within = -(down * down + right * right) / across;
            let forward = (index / slice) as f64 - middle(shape.depth.unwrap_or(1));
            libm::exp(deep.map_or(within, |deep| within - forward * forward / deep))
        })
        .collect()
}

/// Sobel's operator on the mean of the channels, of volumes that of three axes; border pixels are repeated outwards.
fn edge(image: &[f32], shape: Shape) -> Vec<f64> {
    let grey: Vec<f64> = (0..shape.pixels())
        .map(|pixel| {
            let channels = image[pixel..].iter().step_by(shape.pixels());
            channels.map(|value| f64::from(*value)).sum::<f64>() / shape.channels as f64
        })
        .collect();
    if let Some(slices) = shape.depth {
        return volume_edge(&grey, [slices, shape.height, shape.width]);
    }
    let (height, width) = (shape.height as i64, shape.width as i64);
    let at = |row: i64, column: i64| {
        grey[(row.clamp(0, height - 1) * width + column.clamp(0, width - 1)) as usize]
    };
    (0..shape.pixels() as i64)
        .map(|index| {
            let (row, column) = (index / width, index % width);
            let sides = [(-1, 1.0), (0, 2.0), (1, 1.0)];
            let across: f64 = sides
                .iter()
                .map(|(step, weight)| weight * (at(row + step, column + 1) - at(row + step, column - 1)))
                .sum();
            let down: f64 = sides
                .iter()
                .map(|(step, weight)| weight * (at(row + 1, column + step) - at(row - 1, column + step)))
                .sum();
            (across * across + down * down).sqrt()
        })
        .collect()
}

/// Differences along each axis, smoothed by 1, 2, 1 along the others.
fn volume_edge(grey: &[f64], lengths: [usize; 3]) -> Vec<f64> {
    let strides = [lengths[1] * lengths[2], lengths[2], 1];
    // `weights` of the voxel before, the voxel itself and the one behind it.
    let along = |values: &[f64], axis: usize, weights: [f64; 3]| -> Vec<f64> {
        let value = |index: usize| {
            let place = index / strides[axis] % lengths[axis];
            let before = if place == 0 { index } else { index - strides[axis] };
            let behind = if place + 1 == lengths[axis] { index } else { index + strides[axis] };
            weights[0] * values[before] + weights[1] * values[index] + weights[2] * values[behind]
        };
        (0..values.len()).map(value).collect()
    };
    let difference = |axis: usize| {
        let smooth = |values: Vec<f64>, other: usize| along(&values, other, [1.0, 2.0, 1.0]);
        let own = along(grey, axis, [-1.0, 0.0, 1.0]);
        (0..3).filter(|other| *other != axis).fold(own, smooth)
    };
    let [z, y, x] = [0, 1, 2].map(difference);
    (0..grey.len())
        .map(|index| (z[index] * z[index] + y[index] * y[index] + x[index] * x[index]).sqrt())
        .collect()
}

fn abs_difference(image: &[f32], reference: &[f32], shape: Shape) -> Vec<f64> {
    (0..shape.pixels())
        .map(|pixel| {
            let pairs = image[pixel..].iter().zip(&reference[pixel..]).step_by(shape.pixels());
            pairs.map(|(value, mean)| f64::from((value - mean).abs())).sum()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape::flat(2, 3, 4);

    #[test]
    fn a_random_map_is_of_its_sample_and_seed() {
        let map = |id, seed| Control::Random.map(id, seed, &[], &[], SHAPE);
        assert_eq!(map("a", 1), map("a", 1));
        assert!(map("a", 1) != map("b", 1) && map("a", 1) != map("a", 2));
        assert!(map("a", 1).iter().all(|value| (0.0..1.0).contains(value)));
    }

    #[test]
    fn the_bump_is_symmetric_and_greatest_in_the_middle() {
        let map = center(Shape::flat(1, 3, 3));
        assert_eq!((map[0], map[1]), (map[8], map[7]));
        assert!(map[4] == 1.0 && map[4] > map[1] && map[1] > map[0]);
    }

    #[test]
    fn a_step_is_an_edge_and_a_plain_is_none() {
        // Columns 0, 0, 1, 1 in one channel, and nothing in the other: grey is half of it.
        let step: Vec<f32> =
            (0..24).map(|index| if index < 12 && index % 4 >= 2 { 1.0 } else { 0.0 }).collect();
        let map = edge(&step, SHAPE);
        assert_eq!(map[4..8], [0.0, 2.0, 2.0, 0.0]);
        assert!(edge(&[0.7; 24], SHAPE).iter().all(|value| value.abs() < 1e-6));
    }

    #[test]
    fn volumes_have_a_middle_and_edges_along_three_axes() {
        let shape = Shape::volume(1, [3, 3, 3]);
        let map = center(shape);
        assert_eq!((map[13], map[0], map[4]), (1.0, map[26], map[22]));
        assert!(map[4] < map[13] && map[0] < map[4]);
        // Slices 0, 0, 1: a step of 1 under weights of 4 x 4.
        let step: Vec<f32> = (0..27).map(|index| if index < 18 { 0.0 } else { 1.0 }).collect();
        let edges = edge(&step, shape);
        assert_eq!((edges[0], edges[9], edges[18]), (0.0, 16.0, 16.0));
    }

    #[test]
    fn differences_are_summed_over_channels() {
        let mut image = [1.0f32; 24];
        image[5] = 3.0;
        image[17] = -1.0;
        let map = abs_difference(&image, &[1.0; 24], SHAPE);
        assert_eq!(map[5], 4.0);
        assert_eq!(map.iter().sum::<f64>(), 4.0);
    }
}
