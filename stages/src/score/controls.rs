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

fn random(id: &str, seed: u64, pixels: usize) -> Vec<f64> {
    let key = Key::derive("pipe random map/1", seed, &[id.into()]);
    (1..=pixels as u64).map(|draw| key.uniform(draw)).collect()
}

/// A Gaussian whose deviation is a quarter of the shorter side.
fn center(shape: Shape) -> Vec<f64> {
    let deviation = shape.height.min(shape.width) as f64 / 4.0;
    let middle = |length: usize| (length as f64 - 1.0) / 2.0;
    (0..shape.pixels())
        .map(|index| {
            let down = (index / shape.width) as f64 - middle(shape.height);
            let right = (index % shape.width) as f64 - middle(shape.width);
            libm::exp(-(down * down + right * right) / (2.0 * deviation * deviation))
        })
        .collect()
}

/// Sobel's operator on the mean of the channels; border pixels are repeated outwards.
fn edge(image: &[f32], shape: Shape) -> Vec<f64> {
    let (height, width) = (shape.height as i64, shape.width as i64);
    let grey: Vec<f64> = (0..shape.pixels())
        .map(|pixel| {
            let channels = image[pixel..].iter().step_by(shape.pixels());
            channels.map(|value| f64::from(*value)).sum::<f64>() / shape.channels as f64
        })
        .collect();
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

    const SHAPE: Shape = Shape { channels: 2, height: 3, width: 4 };

    #[test]
    fn a_random_map_is_of_its_sample_and_seed() {
        let map = |id, seed| Control::Random.map(id, seed, &[], &[], SHAPE);
        assert_eq!(map("a", 1), map("a", 1));
        assert!(map("a", 1) != map("b", 1) && map("a", 1) != map("a", 2));
        assert!(map("a", 1).iter().all(|value| (0.0..1.0).contains(value)));
    }

    #[test]
    fn the_bump_is_symmetric_and_greatest_in_the_middle() {
        let map = center(Shape { channels: 1, height: 3, width: 3 });
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
    fn differences_are_summed_over_channels() {
        let mut image = [1.0f32; 24];
        image[5] = 3.0;
        image[17] = -1.0;
        let map = abs_difference(&image, &[1.0; 24], SHAPE);
        assert_eq!(map[5], 4.0);
        assert_eq!(map.iter().sum::<f64>(), 4.0);
    }
}
