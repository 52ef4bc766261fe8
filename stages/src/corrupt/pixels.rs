//! What a corruption does to the pixels of one image. Values of ImageNet-C (Hendrycks and Dietterich 2019,
//! "Benchmarking neural network robustness to common corruptions and perturbations", its published code).

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use pipe_attribution::{Border, gaussian_taps, smoothed};
use pipe_engine::StageError;
use pipe_models::preprocess::{Picture, Samples};
use pipe_models::random::Key;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Corruption {
    /// Gaussian noise is added to every value: deviations 0.08, 0.12, 0.18, 0.26 and 0.38 of the range.
    Noise,
    /// Gaussian blur: deviations of 1, 2, 3, 4 and 6 pixels where the shorter side has 224, in proportion elsewhere,
    /// but at least 0.4, 0.6, 0.7, 0.8 and 1 pixel.
    Blur,
    /// Values move towards the mean of their channel, and 0.4, 0.3, 0.2, 0.1 and 0.05 of their distance remains.
    Contrast,
    /// The brightest channel of each pixel gains 0.1, 0.2, 0.3, 0.4 and 0.5 of the range, the others in proportion.
    Brightness,
    /// Stored as JPEG of quality 25, 18, 15, 10 and 7.
    Jpeg,
}

impl Corruption {
    /// Its strength at level 1 to 5.
    fn strength(self, level: usize) -> f64 {
        let strengths = match self {
            Self::Noise => [0.08, 0.12, 0.18, 0.26, 0.38],
            Self::Blur => [1.0, 2.0, 3.0, 4.0, 6.0],
            Self::Contrast => [0.4, 0.3, 0.2, 0.1, 0.05],
            Self::Brightness => [0.1, 0.2, 0.3, 0.4, 0.5],
            Self::Jpeg => [25.0, 18.0, 15.0, 10.0, 7.0],
        };
        strengths[level - 1]
    }
}

/// The side at which deviations of blur are in pixels.
const SIDE: f64 = 224.0;
/// Those of CIFAR-10-C: less does nothing to small images.
const LEAST_BLUR: [f64; 5] = [0.4, 0.6, 0.7, 0.8, 1.0];
/// A blur reaches this many deviations.
const REACH: f64 = 4.0;

/// An image file as it is after corruption at `level` 1 to 5, and its channels. Grey stays grey; alpha is
/// dropped. `key` names the noise.
///
/// # Errors
/// If the picture has 16 bits, for which no levels are defined.
pub(super) fn corrupted(
    picture: &Picture,
    corruption: Corruption,
    level: usize,
    key: Key,
) -> Result<(Vec<u8>, usize), StageError> {
    let (width, height) = (picture.width(), picture.height());
    let (values, channels) = match picture.samples() {
        Samples::Grey(values) | Samples::Bilevel(values) => (values.clone(), 1),
        Samples::GreyAlpha(values) => (values.iter().step_by(2).copied().collect(), 1),
        Samples::Grey16(_) => {
            return Err(StageError::failed("corruptions are of eight bits, and this image has sixteen"));
        }
        Samples::Rgb(_) | Samples::Rgba(_) | Samples::Palette(..) => {
            (picture.to_rgb([0.0, f64::from(u8::MAX)]), 3)
        }
    };
    let strength = corruption.strength(level);
    let values = match corruption {
        Corruption::Noise => noisy(&values, strength, key),
        Corruption::Blur => blurred(&values, [channels, height, width], strength, LEAST_BLUR[level - 1])?,
        Corruption::Contrast => flatter(&values, channels, strength),
        Corruption::Brightness => brighter(&values, channels, strength),
        Corruption::Jpeg => return Ok((jpeg(&values, width, height, channels, strength as u8)?, channels)),
    };
    Ok((crate::png::encode(&values, width, height, channels)?, channels))
}

/// A value of [0, 1] as eight bits.
fn quantised(value: f64) -> u8 {
    (value.clamp(0.0, 1.0) * f64::from(u8::MAX)).round() as u8
}

fn unit(value: u8) -> f64 {
    f64::from(value) / f64::from(u8::MAX)
}

fn noisy(values: &[u8], deviation: f64, key: Key) -> Vec<u8> {
    values
        .iter()
        .zip(1..)
        .map(|(value, draw)| quantised(unit(*value) + deviation * key.normal(draw)))
        .collect()
}

fn blurred(values: &[u8], shape: [usize; 3], deviation: f64, least: f64) -> Result<Vec<u8>, StageError> {
    let [channels, height, width] = shape;
    let deviation = (deviation * height.min(width) as f64 / SIDE).max(least);
    let taps = gaussian_taps(deviation, (REACH * deviation + 0.5) as usize);
    // The blur is of channels first.
    let planes: Vec<f32> = (0..channels)
        .flat_map(|channel| values.iter().skip(channel).step_by(channels).map(|value| f32::from(*value)))
        .collect();
    let planes = smoothed(&planes, &shape, &taps, Border::Repeated)
        .map_err(|error| StageError::because("blurring an image", error))?;
    let place = |at: usize| at % channels * height * width + at / channels;
    Ok((0..planes.len()).map(|at| planes[place(at)].round() as u8).collect())
}

fn flatter(values: &[u8], channels: usize, share: f64) -> Vec<u8> {
    let mean = |channel: usize| {
        let own = values.iter().skip(channel).step_by(channels);
        own.clone().map(|value| unit(*value)).sum::<f64>() / own.count().max(1) as f64
    };
    let means: Vec<f64> = (0..channels).map(mean).collect();
    let of = |(place, value): (usize, &u8)| {
        let mean = means[place % channels];
        quantised((unit(*value) - mean) * share + mean)
    };
    values.iter().enumerate().map(of).collect()
}

/// The value of HSV grows; hue and saturation stay.
fn brighter(values: &[u8], channels: usize, gain: f64) -> Vec<u8> {
    let of =
        |pixel: &[u8]| {
            let value = unit(pixel.iter().copied().max().unwrap_or_default());
            let brighter = (value + gain).min(1.0);
            pixel
                .iter()
                .map(|channel| {
                    if value > 0.0 {
                        quantised(unit(*channel) * brighter / value)
                    } else {
                        quantised(brighter)
                    }
                })
                .collect::<Vec<u8>>()
        };
    values.chunks_exact(channels).flat_map(of).collect()
}

fn jpeg(
    values: &[u8],
    width: usize,
    height: usize,
    channels: usize,
    quality: u8,
) -> Result<Vec<u8>, StageError> {
    let mut bytes = Vec::new();
    let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .write_image(values, width as u32, height as u32, colour)
        .map_err(|error| StageError::because("encoding a JPEG", error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Corruption; 5] =
        [Corruption::Noise, Corruption::Blur, Corruption::Contrast, Corruption::Brightness, Corruption::Jpeg];

    fn key() -> Key {
        Key::derive("test", 0, &[])
    }

    /// A grey ramp with a bright square.
    fn grey() -> Vec<u8> {
        let square = |x: usize, y: usize| (10..20).contains(&x) && (10..20).contains(&y);
        (0..32 * 32).map(|at| if square(at % 32, at / 32) { 220 } else { (at / 32 * 4) as u8 + 20 }).collect()
    }

    fn values(picture: Picture, corruption: Corruption, level: usize) -> Vec<u8> {
        let (bytes, _) = corrupted(&picture, corruption, level, key()).unwrap();
        match Picture::decode(&bytes).unwrap().samples() {
            Samples::Grey(values) | Samples::Rgb(values) => values.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn distance(a: &[u8], b: &[u8]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).map(|d| d * d).sum::<f64>().sqrt()
    }

    #[test]
    fn every_level_is_further_from_the_image_than_the_one_before() {
        let colours: Vec<u8> = grey().iter().flat_map(|grey| [*grey, grey / 2, 255 - grey]).collect();
        for (samples, values_of) in
            [(Samples::Grey(grey()), grey()), (Samples::Rgb(colours.clone()), colours)]
        {
            let picture = Picture::new(32, 32, samples).unwrap();
            for corruption in ALL {
                let mut last = 0.0;
                for level in 1..=5 {
                    let away = distance(&values(picture.clone(), corruption, level), &values_of);
                    assert!(away > last, "{corruption:?} {level}: {away} after {last}");
                    last = away;
                }
            }
        }
    }

    #[test]
    fn noise_has_the_deviation_that_is_named() {
        let picture = Picture::new(64, 64, Samples::Grey(vec![128; 64 * 64])).unwrap();
        let noisy = values(picture, Corruption::Noise, 1);
        let mean = noisy.iter().map(|value| f64::from(*value)).sum::<f64>() / 4096.0;
        let variance = noisy.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / 4096.0;
        assert!((mean - 128.0).abs() < 1.5, "{mean}");
        assert!((variance.sqrt() / 255.0 - 0.08).abs() < 0.004, "{variance}");
    }

    #[test]
    fn an_even_image_stays_even() {
        for corruption in [Corruption::Blur, Corruption::Contrast, Corruption::Jpeg] {
            let picture = Picture::new(16, 16, Samples::Rgb([200, 60, 60].repeat(256))).unwrap();
            let values = values(picture, corruption, 3);
            assert!(distance(&values[..3], &[200, 60, 60]) < 8.0, "{corruption:?} {:?}", &values[..3]);
            assert_eq!(values[..3], values[3 * 255..]);
        }
    }

    #[test]
    fn brightness_keeps_the_hue() {
        let picture = Picture::new(1, 1, Samples::Rgb(vec![100, 50, 0])).unwrap();
        // 100 / 255 + 0.2 is 151 / 255, and half of that.
        assert_eq!(values(picture, Corruption::Brightness, 2), [151, 76, 0]);
        let black = Picture::new(1, 1, Samples::Grey(vec![0])).unwrap();
        assert_eq!(values(black, Corruption::Brightness, 1), [26]);
    }

    #[test]
    fn contrast_moves_towards_the_mean() {
        let picture = Picture::new(2, 1, Samples::Grey(vec![0, 200])).unwrap();
        assert_eq!(values(picture, Corruption::Contrast, 1), [60, 140]);
    }

    #[test]
    fn sixteen_bits_are_refused() {
        let picture = Picture::new(1, 1, Samples::Grey16(vec![7])).unwrap();
        assert!(corrupted(&picture, Corruption::Blur, 1, key()).unwrap_err().to_string().contains("sixteen"));
    }
}
