//! What removed pixels become, and what images are compared with.

use pipe_attribution::metrics::{Shape, blurred, patches};
use pipe_engine::StageError;
use pipe_models::random::Key;

use crate::mean_image::MeanImages;

/// The image that stands for "nothing there", for each image of a set.
pub(super) enum References {
    /// One value per channel: zero of the normalised space (the mean colour of the pre-training data), or
    /// black.
    Plain {
        /// Values of the channels.
        channels: Vec<f32>,
        /// Pixels of a channel.
        pixels: usize,
    },
    /// The mean training image of the image's modality and region.
    Mean(MeanImages),
    /// The image itself, blurred as insertion blurs it.
    Blur(Shape),
    /// Independent values between the least and the greatest of the image.
    Uniform {
        /// Decides them, with the id of the image.
        seed: u64,
    },
    /// In each channel the mean of the patch that a pixel lies in.
    Neighbourhood {
        /// Shape of the images.
        shape: Shape,
        /// Side of a patch in pixels.
        patch: usize,
    },
}

impl References {
    /// The values for the image at `row`, `[channels, height, width]`, whose id and pixels are given.
    ///
    /// # Errors
    /// If its site has no training images.
    pub(super) fn image(&self, row: usize, id: &str, image: &[f32]) -> Result<Vec<f32>, StageError> {
        match self {
            Self::Plain { channels, pixels } => {
                Ok(channels.iter().flat_map(|value| std::iter::repeat_n(*value, *pixels)).collect())
            }
            Self::Mean(means) => match means.of(row) {
                Ok(mean) => Ok(mean.to_vec()),
                Err(reason) => Err(StageError::failed(reason)),
            },
            Self::Blur(shape) => Ok(blurred(image, *shape)),
            Self::Uniform { seed } => Ok(uniform(Key::derive("pipe removed/1", *seed, &[id.into()]), image)),
            Self::Neighbourhood { shape, patch } => Ok(neighbourhood(image, *shape, *patch)),
        }
    }

    /// Why the image at `row` has none, if so.
    pub(super) fn check(&self, row: usize) -> Result<(), String> {
        match self {
            Self::Mean(means) => means.of(row).map(|_| ()),
            _ => Ok(()),
        }
    }
}

/// One draw per value.
fn uniform(key: Key, image: &[f32]) -> Vec<f32> {
    let ends = |[least, most]: [f32; 2], value: &f32| [least.min(*value), most.max(*value)];
    let [least, most] = image.iter().fold([f32::INFINITY, f32::NEG_INFINITY], ends);
    (1..=image.len() as u64).map(|draw| least + (most - least) * key.uniform(draw) as f32).collect()
}

fn neighbourhood(image: &[f32], shape: Shape, patch: usize) -> Vec<f32> {
    let patches = patches(shape, patch);
    let mut means = image.to_vec();
    for channel in means.chunks_exact_mut(shape.pixels().max(1)) {
        for group in patches.iter() {
            let sum: f64 = group.iter().map(|pixel| f64::from(channel[*pixel as usize])).sum();
            let mean = (sum / group.len().max(1) as f64) as f32;
            group.iter().for_each(|pixel| channel[*pixel as usize] = mean);
        }
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape::flat(2, 2, 4);

    #[test]
    fn a_neighbourhood_is_a_patch_of_a_channel() {
        let image: Vec<f32> = (0..16).map(|value| value as f32).collect();
        let references = References::Neighbourhood { shape: SHAPE, patch: 2 };
        let means = references.image(0, "a", &image).unwrap();
        // Left and right patch of the first channel, then of the second.
        assert_eq!(means[..4], [2.5, 2.5, 4.5, 4.5]);
        assert_eq!(means[4..8], means[..4]);
        assert_eq!(means[8..12], [10.5, 10.5, 12.5, 12.5]);
    }

    #[test]
    fn noise_lies_within_the_image_and_is_of_its_sample() {
        let image: Vec<f32> = (0..16).map(|value| value as f32 - 3.0).collect();
        let of = |id| References::Uniform { seed: 4 }.image(0, id, &image).unwrap();
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert!(of("a").iter().all(|value| (-3.0..12.0).contains(value)));
    }

    #[test]
    fn a_blur_keeps_what_is_the_same_everywhere_but_at_the_border() {
        let shape = Shape::flat(1, 13, 13);
        let blurred = References::Blur(shape).image(0, "a", &[2.0; 169]).unwrap();
        assert!((blurred[6 * 13 + 6] - 2.0).abs() < 1e-5 && blurred[0] < 1.0);
    }
}
