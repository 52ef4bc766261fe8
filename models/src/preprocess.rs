//! From encoded images to pixels: decoding with bounds, Pillow's bicubic resize, centre crop,
//! normalisation.

use std::io::Cursor;

use candle_core::{Device, Result, Tensor};
use image::{ImageReader, Limits};
use serde_json::Value as Json;

use crate::checkpoint::CheckpointError;

/// OpenAI's channel means of CLIP.
pub const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// OpenAI's channel deviations of CLIP.
pub const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// An image beyond this side is refused before it is decoded.
const SIDE_LIMIT: u32 = 1 << 15;
const DECODE_LIMIT: u64 = 1 << 30;

/// An image that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("the image cannot be decoded: {0}")]
pub struct DecodeError(String);

/// Eight-bit RGB pixels, row by row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rgb {
    /// Width.
    pub width: usize,
    /// Height.
    pub height: usize,
    /// `height * width * 3` values.
    pub pixels: Vec<u8>,
}

/// Decodes a PNG or JPEG to RGB; grey becomes three equal channels, alpha is dropped.
///
/// # Errors
/// If the bytes are no such image, or a very large one.
pub fn decode(bytes: &[u8]) -> std::result::Result<Rgb, DecodeError> {
    let error = |error: &dyn std::fmt::Display| DecodeError(error.to_string());
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| error(&e))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_LIMIT);
    limits.max_image_height = Some(SIDE_LIMIT);
    limits.max_alloc = Some(DECODE_LIMIT);
    reader.limits(limits);
    let image = reader.decode().map_err(|e| error(&e))?.into_rgb8();
    Ok(Rgb { width: image.width() as usize, height: image.height() as usize, pixels: image.into_raw() })
}

/// What happens to an image before a model sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Preprocessor {
    /// Side of the square that the model takes.
    pub side: usize,
    /// Mean of each channel, in [0, 1].
    pub mean: [f64; 3],
    /// Deviation of each channel.
    pub std: [f64; 3],
}

impl Preprocessor {
    /// CLIP's, for images of this side.
    pub fn clip(side: usize) -> Self {
        Self { side, mean: CLIP_MEAN, std: CLIP_STD }
    }

    /// Reads `preprocessor_config.json`; what it leaves out is CLIP's.
    ///
    /// # Errors
    /// If it is no JSON or a value has another type.
    pub fn from_json(text: &str, side: usize) -> std::result::Result<Self, CheckpointError> {
        let error = |reason: String| CheckpointError::new("preprocessor_config.json", reason);
        let json: Json = serde_json::from_str(text).map_err(|problem| error(problem.to_string()))?;
        let triple = |key: &str, default: [f64; 3]| match &json[key] {
            Json::Null => Ok(default),
            Json::Array(items) if items.len() == 3 && items.iter().all(Json::is_number) => {
                Ok([0, 1, 2].map(|index| items[index].as_f64().unwrap_or_default()))
            }
            other => Err(error(format!("`{key}` is {other}; three numbers are expected"))),
        };
        let preprocessor =
            Self { side, mean: triple("image_mean", CLIP_MEAN)?, std: triple("image_std", CLIP_STD)? };
        if preprocessor.std.iter().any(|std| *std <= 0.0) {
            return Err(error("`image_std` has to be positive".to_owned()));
        }
        Ok(preprocessor)
    }

    /// `preprocessor_config.json` in the Hugging Face layout.
    pub fn to_json(&self) -> String {
        let json = serde_json::json!({
            "crop_size": { "height": self.side, "width": self.side },
            "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": self.mean, "image_std": self.std,
            "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 1.0 / 255.0,
            "size": { "shortest_edge": self.side },
        });
        format!("{json:#}\n")
    }

    /// Resizes the shorter side to the model's (bicubic) and crops the centre: `side * side * 3` values.
    pub fn square(&self, image: &Rgb) -> Vec<u8> {
        let side = self.side;
        let (width, height) = (image.width, image.height);
        // torchvision's rounding: the longer side is cut to an integer.
        let (new_width, new_height) =
            if width <= height { (side, side * height / width) } else { (side * width / height, side) };
        let resized = resize(image, new_width, new_height);
        let (left, top) = (centre(new_width, side), centre(new_height, side));
        let mut pixels = Vec::with_capacity(side * side * 3);
        for row in top..top + side {
            let start = (row * new_width + left) * 3;
            pixels.extend_from_slice(&resized.pixels[start..start + side * 3]);
        }
        pixels
    }

    /// Eight-bit squares, one after another, as a normalised tensor `[batch, 3, side, side]`.
    ///
    /// # Errors
    /// If the number of values does not fit.
    pub fn tensor(&self, squares: &[u8], device: &Device) -> Result<Tensor> {
        let plane = self.side * self.side;
        let mut values = vec![0.0f32; squares.len()];
        let scale: Vec<(f32, f32)> = (0..3)
            .map(|channel| {
                ((1.0 / (255.0 * self.std[channel])) as f32, (self.mean[channel] / self.std[channel]) as f32)
            })
            .collect();
        for (square, out) in squares.chunks_exact(plane * 3).zip(values.chunks_exact_mut(plane * 3)) {
            for (channel, (factor, offset)) in scale.iter().enumerate() {
                for (pixel, out) in out[channel * plane..(channel + 1) * plane].iter_mut().enumerate() {
                    *out = f32::from(square[pixel * 3 + channel]) * factor - offset;
                }
            }
        }
        Tensor::from_vec(values, (squares.len() / (plane * 3), 3, self.side, self.side), device)
    }

    /// The normalised values of black: what a zero pixel becomes, per channel.
    pub fn black(&self) -> [f32; 3] {
        [0, 1, 2].map(|channel| (-self.mean[channel] / self.std[channel]) as f32)
    }
}

/// torchvision's centre: half of the surplus, rounded to even.
fn centre(length: usize, side: usize) -> usize {
    let half = (length - side) as f64 / 2.0;
    half.round_ties_even() as usize
}

/// Fixed-point precision of Pillow's eight-bit resampling.
const PRECISION: u32 = 32 - 8 - 2;

/// Pillow's bicubic kernel, a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// First input pixel and integer weights of each output pixel along one axis.
fn weights(input: usize, output: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = input as f64 / output as f64;
    // Shrinking widens the kernel: that is the antialiasing.
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..output)
        .map(|index| {
            let centre = (index as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0) as usize;
            let last = ((centre + support + 0.5) as usize).min(input);
            let raw: Vec<f64> =
                (first..last).map(|pixel| bicubic((pixel as f64 - centre + 0.5) / stretch)).collect();
            let sum: f64 = raw.iter().sum();
            let fixed = raw
                .iter()
                .map(|weight| {
                    let value = weight / sum * f64::from(1u32 << PRECISION);
                    if value < 0.0 { (value - 0.5) as i32 } else { (value + 0.5) as i32 }
                })
                .collect();
            (first, fixed)
        })
        .collect()
}

/// Resizes as Pillow's `Image.resize(..., BICUBIC)` does, rows first, to the bit.
pub fn resize(image: &Rgb, width: usize, height: usize) -> Rgb {
    let clip = |sum: i32| (sum >> PRECISION).clamp(0, 255) as u8;
    let mut rows = image.clone();
    if image.width != width {
        let weights = weights(image.width, width);
        let mut pixels = Vec::with_capacity(image.height * width * 3);
        for row in image.pixels.chunks_exact(image.width * 3) {
            for (first, weights) in &weights {
                for channel in 0..3 {
                    let sum =
                        weights.iter().enumerate().fold(1i32 << (PRECISION - 1), |sum, (offset, weight)| {
                            sum + i32::from(row[(first + offset) * 3 + channel]) * weight
                        });
                    pixels.push(clip(sum));
                }
            }
        }
        rows = Rgb { width, height: image.height, pixels };
    }
    if rows.height == height {
        return rows;
    }
    let stride = width * 3;
    let mut pixels = Vec::with_capacity(height * stride);
    for (first, weights) in &weights(rows.height, height) {
        for column in 0..stride {
            let sum = weights.iter().enumerate().fold(1i32 << (PRECISION - 1), |sum, (offset, weight)| {
                sum + i32::from(rows.pixels[(first + offset) * stride + column]) * weight
            });
            pixels.push(clip(sum));
        }
    }
    Rgb { width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_of_the_right_size_is_left_alone() {
        let image = Rgb { width: 4, height: 4, pixels: (0..48).collect() };
        assert_eq!(Preprocessor::clip(4).square(&image), image.pixels);
    }

    #[test]
    fn a_constant_image_stays_constant() {
        let image = Rgb { width: 5, height: 9, pixels: vec![77; 135] };
        assert!(Preprocessor::clip(7).square(&image).iter().all(|value| *value == 77));
    }

    #[test]
    fn bytes_that_are_no_image_are_an_error() {
        assert!(decode(b"not an image").is_err());
        assert!(decode(&[]).is_err());
    }
}
