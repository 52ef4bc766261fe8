//! Pixels as PNG files: equal pixels give equal bytes.

use std::io::Cursor;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use pipe_engine::StageError;

/// Encodes eight-bit grey (`channels` 1) or RGB (3) pixels, row by row, channels last; filter and level
/// are fixed.
pub(crate) fn encode(
    pixels: &[u8],
    width: usize,
    height: usize,
    channels: usize,
) -> Result<Vec<u8>, StageError> {
    let mut bytes = Cursor::new(Vec::with_capacity(pixels.len() + 1024));
    let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
        .write_image(pixels, width as u32, height as u32, colour)
        .map_err(|error| StageError::because("encoding a PNG", error))?;
    Ok(bytes.into_inner())
}
