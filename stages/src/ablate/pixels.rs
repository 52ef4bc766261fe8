//! Images with less in them: pixels as `[3, side, side]`, normalised as the model reads them.

use candle_core::Tensor;
use pipe_engine::StageError;
use pipe_models::random::Key;

use crate::images::ImageSet;
use crate::model::{DEVICE, tensor_error};

/// Bins of the histogram of brightness.
const BINS: usize = 16;
/// Mean, deviation and the bins.
pub(super) const STATISTICS: usize = 2 + BINS;

/// Mean, deviation and shares per histogram bin of an image's eight-bit values, all channels together.
pub(super) fn statistics(square: &[u8]) -> [f32; STATISTICS] {
    let count = square.len() as f64;
    let mean = square.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let variance =
        square.iter().map(|value| (f64::from(*value) - mean) * (f64::from(*value) - mean)).sum::<f64>()
            / count;
    let mut features = [0.0; STATISTICS];
    features[0] = (mean / 255.0) as f32;
    features[1] = (variance.sqrt() / 255.0) as f32;
    let mut bins = [0u32; BINS];
    for value in square {
        bins[usize::from(*value) * BINS / 256] += 1;
    }
    for (feature, bin) in features[2..].iter_mut().zip(bins) {
        *feature = (f64::from(bin) / count) as f32;
    }
    features
}

/// An image whose every pixel is black.
pub(super) fn black_image(images: &ImageSet) -> Vec<f32> {
    let plane = images.preprocessor().side * images.preprocessor().side;
    images.preprocessor().black().iter().flat_map(|value| std::iter::repeat_n(*value, plane)).collect()
}

/// The images of `rows`, each changed by `edit`, as `[rows, 3, side, side]`.
pub(super) fn edited(
    images: &ImageSet,
    rows: &[usize],
    edit: impl Fn(usize, &mut [f32]),
) -> Result<Tensor, StageError> {
    let tensor = images.batch(rows)?;
    let mut pixels = values(&tensor)?;
    let length = pixels.len() / rows.len().max(1);
    for (row, image) in rows.iter().zip(pixels.chunks_exact_mut(length)) {
        edit(*row, image);
    }
    Tensor::from_vec(pixels, tensor.shape(), &DEVICE).map_err(tensor_error)
}

fn values(pixels: &Tensor) -> Result<Vec<f32>, StageError> {
    pixels.flatten_all().and_then(|flat| flat.to_vec1()).map_err(tensor_error)
}

/// Cuts an image into `grid` by `grid` cells and gives each the content of another; what does not
/// divide evenly stays as it is on the right and below.
pub(super) fn shuffle_patches(image: &mut [f32], side: usize, grid: usize, key: Key) {
    let cell = side / grid;
    let original = image.to_vec();
    for (to, from) in key.derangement(grid * grid).into_iter().enumerate() {
        for plane in 0..3 {
            for row in 0..cell {
                let place =
                    |index: usize| (plane * side + index / grid * cell + row) * side + index % grid * cell;
                image[place(to)..place(to) + cell]
                    .copy_from_slice(&original[place(from)..place(from) + cell]);
            }
        }
    }
}

/// Keeps a rim of `width` pixels and fills what is inside it from `inside`.
pub(super) fn keep_border(image: &mut [f32], side: usize, width: usize, inside: &[f32]) {
    for plane in 0..3 {
        for row in width..side.saturating_sub(width) {
            let start = (plane * side + row) * side;
            let range = start + width..start + side - width;
            image[range.clone()].copy_from_slice(&inside[range]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_a_half_black_image() {
        let features = statistics(&[0, 0, 255, 255]);
        assert_eq!((features[0], features[1]), (0.5, 0.5));
        assert_eq!((features[2], features[17]), (0.5, 0.5));
        assert_eq!(features[3..17], [0.0; 14]);
    }

    #[test]
    fn patches_change_places_whole() {
        let side = 9;
        let image: Vec<f32> = (0..3 * side * side).map(|index| index as f32).collect();
        let mut shuffled = image.clone();
        shuffle_patches(&mut shuffled, side, 4, Key(5));
        assert_ne!(shuffled[..2], image[..2], "every cell moves");
        // Rows of a cell stay together, channels too, and the remainder stays where it was.
        assert_eq!(shuffled[1] - shuffled[0], 1.0);
        assert_eq!(shuffled[side * side] - shuffled[0], (side * side) as f32);
        assert_eq!(shuffled[8], image[8]);
        shuffled.sort_by(f32::total_cmp);
        assert_eq!(shuffled, image);
    }

    #[test]
    fn the_border_is_kept() {
        let mut image = vec![1.0; 75];
        keep_border(&mut image, 5, 1, &vec![0.0; 75]);
        assert_eq!(image.iter().sum::<f32>(), 3.0 * 16.0);
        assert_eq!((image[0], image[6], image[12]), (1.0, 0.0, 0.0));
    }
}
