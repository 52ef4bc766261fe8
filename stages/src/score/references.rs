//! What removed pixels become, and what images are compared with.

use pipe_engine::StageError;

use crate::mean_image::MeanImages;

/// The image that stands for "nothing there", for each image of a set.
pub(super) enum References {
    /// One value per channel: zero of the normalised space (the mean colour of the pre-training data), or
    /// black.
    Plain {
        /// Values of the channels.
        channels: [f32; 3],
        /// Pixels of a channel.
        pixels: usize,
    },
    /// The mean training image of the image's modality and region.
    Mean(MeanImages),
}

impl References {
    /// The values for the image at `row`, `[channels, height, width]`.
    ///
    /// # Errors
    /// If its site has no training images.
    pub(super) fn image(&self, row: usize) -> Result<Vec<f32>, StageError> {
        match self {
            Self::Plain { channels, pixels } => {
                Ok(channels.iter().flat_map(|value| std::iter::repeat_n(*value, *pixels)).collect())
            }
            Self::Mean(means) => match means.of(row) {
                Ok(mean) => Ok(mean.to_vec()),
                Err(reason) => Err(StageError::failed(reason)),
            },
        }
    }

    /// Why the image at `row` has none, if so.
    pub(super) fn check(&self, row: usize) -> Result<(), String> {
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Mean(means) => means.of(row).map(|_| ()),
        }
    }
}
