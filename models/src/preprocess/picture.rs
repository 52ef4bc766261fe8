//! Decoded images in the modes that files have, bounded before they are decoded.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::{DynamicImage, ImageDecoder, Limits};
use png::{BitDepth, ColorType, Transformations};

use super::formats;

/// An image beyond this side is refused before it is decoded.
const SIDE_LIMIT: u32 = 1 << 15;
/// So is one of more bytes than this when decoded.
pub(super) const BYTES_LIMIT: u64 = 1 << 30;
/// What the decoders may use beside the pixels.
const WORK_LIMIT: usize = 64 << 20;

/// An image that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("the image cannot be decoded: {0}")]
pub struct DecodeError(String);

pub(super) fn error(reason: impl std::fmt::Display) -> DecodeError {
    DecodeError(reason.to_string())
}

/// The pixels of an image, row by row, channels beside each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Samples {
    /// Grey, one byte a pixel.
    Grey(Vec<u8>),
    /// Black (0) and white (255) only, one byte a pixel.
    Bilevel(Vec<u8>),
    /// Grey and alpha.
    GreyAlpha(Vec<u8>),
    /// Red, green, blue.
    Rgb(Vec<u8>),
    /// Red, green, blue, alpha.
    Rgba(Vec<u8>),
    /// Indices into a table of colours with their alpha.
    Palette(Vec<u8>, Box<[[u8; 4]; 256]>),
    /// Grey of 16 bits, as radiographs are stored.
    Grey16(Vec<u16>),
}

/// A decoded image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Picture {
    width: usize,
    height: usize,
    samples: Samples,
}

impl Picture {
    /// An image of its samples.
    ///
    /// # Errors
    /// If a side is zero or the number of samples is not that of the sides.
    pub fn new(width: usize, height: usize, samples: Samples) -> Result<Self, DecodeError> {
        let count = match &samples {
            Samples::Grey(values) | Samples::Bilevel(values) | Samples::Palette(values, _) => values.len(),
            Samples::GreyAlpha(values) if values.len() % 2 == 0 => values.len() / 2,
            Samples::Rgb(values) if values.len() % 3 == 0 => values.len() / 3,
            Samples::Rgba(values) if values.len() % 4 == 0 => values.len() / 4,
            Samples::Grey16(values) => values.len(),
            _ => 0,
        };
        if count == 0 || width.checked_mul(height) != Some(count) {
            return Err(error(format!("{width} x {height} pixels have other samples")));
        }
        Ok(Self { width, height, samples })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The samples in the mode of the file.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// Decodes a PNG, JPEG, TIFF, BMP, GIF or WebP, keeping the mode of the file. Colours of 16 bits lose their lower
    /// half; grey of 16 bits is kept.
    ///
    /// # Errors
    /// If the bytes are no such image, are damaged, or are a very large image.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            decode_png(bytes)
        } else if bytes.starts_with(b"\xff\xd8") {
            decode_jpeg(bytes)
        } else {
            formats::decode(bytes)
        }
    }

    /// Red, green and blue of every pixel. Alpha is dropped, as Pillow's conversion does. Grey of 16
    /// bits is scaled by `window`: its first value becomes black and its second white.
    pub fn to_rgb(&self, window: [f64; 2]) -> Vec<u8> {
        match &self.samples {
            Samples::Grey(values) | Samples::Bilevel(values) => {
                values.iter().flat_map(|grey| [*grey; 3]).collect()
            }
            Samples::GreyAlpha(values) => {
                values.as_chunks::<2>().0.iter().flat_map(|[grey, _]| [*grey; 3]).collect()
            }
            Samples::Rgb(values) => values.clone(),
            Samples::Rgba(values) => values
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|[red, green, blue, _]| [*red, *green, *blue])
                .collect(),
            Samples::Palette(indices, colours) => {
                let colour = |index: &u8| colours[usize::from(*index)];
                indices.iter().map(colour).flat_map(|[red, green, blue, _]| [red, green, blue]).collect()
            }
            Samples::Grey16(values) => to_grey(values, window).iter().flat_map(|grey| [*grey; 3]).collect(),
        }
    }

    /// As [`Self::to_rgb`], but on a white ground where the image is transparent, as transformers shows
    /// it (Pillow's `alpha_composite`).
    pub fn to_rgb_on_white(&self, window: [f64; 2]) -> Vec<u8> {
        let shown =
            |[red, green, blue, alpha]: [u8; 4]| [red, green, blue].map(|value| on_white(value, alpha));
        match &self.samples {
            Samples::GreyAlpha(values) => {
                let pixels = values.as_chunks::<2>().0.iter();
                pixels.flat_map(|[grey, alpha]| shown([*grey, *grey, *grey, *alpha])).collect()
            }
            Samples::Rgba(values) => {
                values.as_chunks::<4>().0.iter().flat_map(|pixel| shown(*pixel)).collect()
            }
            Samples::Palette(indices, colours) => {
                indices.iter().flat_map(|index| shown(colours[usize::from(*index)])).collect()
            }
            Samples::Grey(_) | Samples::Bilevel(_) | Samples::Rgb(_) | Samples::Grey16(_) => {
                self.to_rgb(window)
            }
        }
    }
}

/// A value seen on white, in Pillow's integers: seven bits more than a byte, rounded to the nearest.
fn on_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = ((value * alpha + 255 * (255 - alpha)) << 7) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

/// Grey of 16 bits through a window.
pub(super) fn to_grey(values: &[u16], [low, high]: [f64; 2]) -> Vec<u8> {
    // The cast saturates.
    let grey = |value: &u16| ((f64::from(*value) - low) * 255.0 / (high - low)).round_ties_even() as u8;
    values.iter().map(grey).collect()
}

pub(super) fn check_size(width: u32, height: u32, bytes: u64) -> Result<(), DecodeError> {
    if width > SIDE_LIMIT || height > SIDE_LIMIT || bytes > BYTES_LIMIT {
        return Err(error(format!(
            "it has {width} x {height} pixels; at most {SIDE_LIMIT} a side and {BYTES_LIMIT} bytes in all are expected"
        )));
    }
    Ok(())
}

fn decode_png(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let limits = png::Limits { bytes: WORK_LIMIT };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(error)?;
    let size = header.raw_row_length().saturating_sub(1).saturating_mul(header.height as usize);
    check_size(header.width, header.height, size as u64)?;
    let mut reader = decoder.read_info().map_err(error)?;
    let info = reader.info();
    let (width, height, depth, kind) = (info.width, info.height, info.bit_depth, info.color_type);
    let size = reader.output_buffer_size().ok_or_else(|| error("it is too large"))?;
    let mut colours = Box::new([[0, 0, 0, 255]; 256]);
    if let Some(palette) = &info.palette {
        for (colour, entry) in colours.iter_mut().zip(palette.as_chunks::<3>().0) {
            colour[..3].copy_from_slice(entry);
        }
    }
    if let Some(transparency) = &info.trns {
        for (colour, alpha) in colours.iter_mut().zip(transparency.iter()) {
            colour[3] = *alpha;
        }
    }
    let mut raw = vec![0; size];
    reader.next_frame(&mut raw).map_err(error)?;
    let (width, height) = (width as usize, height as usize);
    let samples = match (kind, depth) {
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            Samples::Grey16(raw.as_chunks::<2>().0.iter().map(|bytes| u16::from_be_bytes(*bytes)).collect())
        }
        (_, BitDepth::Sixteen) => {
            let high: Vec<u8> = raw.as_chunks::<2>().0.iter().map(|[high, _]| *high).collect();
            match kind {
                ColorType::GrayscaleAlpha => Samples::GreyAlpha(high),
                ColorType::Rgba => Samples::Rgba(high),
                _ => Samples::Rgb(high),
            }
        }
        (ColorType::Grayscale, BitDepth::One) => Samples::Bilevel(unpack(&raw, width, height, 1, 255)),
        (ColorType::Grayscale, BitDepth::Two) => Samples::Grey(unpack(&raw, width, height, 2, 85)),
        (ColorType::Grayscale, BitDepth::Four) => Samples::Grey(unpack(&raw, width, height, 4, 17)),
        (ColorType::Grayscale, BitDepth::Eight) => Samples::Grey(raw),
        (ColorType::Indexed, BitDepth::Eight) => Samples::Palette(raw, colours),
        (ColorType::Indexed, depth) => {
            Samples::Palette(unpack(&raw, width, height, depth as usize, 1), colours)
        }
        (ColorType::GrayscaleAlpha, _) => Samples::GreyAlpha(raw),
        (ColorType::Rgb, _) => Samples::Rgb(raw),
        (ColorType::Rgba, _) => Samples::Rgba(raw),
    };
    Picture::new(width, height, samples)
}

/// Samples of fewer than eight bits, times `factor`. Each row begins at a byte, its first sample in the
/// highest bits.
fn unpack(raw: &[u8], width: usize, height: usize, bits: usize, factor: u8) -> Vec<u8> {
    let per_byte = 8 / bits;
    let mask = (1u16 << bits) as u8 - 1;
    let mut samples = Vec::with_capacity(width * height);
    for row in raw.chunks(width.div_ceil(per_byte)) {
        samples.extend((0..width).map(|column| {
            let shift = 8 - bits * (column % per_byte + 1);
            ((row[column / per_byte] >> shift) & mask) * factor
        }));
    }
    samples
}

fn decode_jpeg(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let mut decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(error)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, decoder.total_bytes())?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(BYTES_LIMIT);
    decoder.set_limits(limits).map_err(error)?;
    let samples = match DynamicImage::from_decoder(decoder).map_err(error)? {
        DynamicImage::ImageLuma8(grey) => Samples::Grey(grey.into_raw()),
        DynamicImage::ImageLuma16(grey) => Samples::Grey16(grey.into_raw()),
        other => Samples::Rgb(other.into_rgb8().into_raw()),
    };
    Picture::new(width as usize, height as usize, samples)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(width: u32, height: u32, kind: ColorType, depth: BitDepth, raw: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(kind);
        encoder.set_depth(depth);
        if kind == ColorType::Indexed {
            encoder.set_palette(vec![10, 11, 12, 20, 21, 22]);
            encoder.set_trns(vec![0]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(raw).unwrap();
        writer.finish().unwrap();
        bytes
    }

    /// Whatever an image file holds, it is a picture of the size it says or an error.
    #[test]
    fn fuzz_pictures() {
        let jpeg = {
            let mut bytes = Vec::new();
            let encoder = image::codecs::jpeg::JpegEncoder::new(&mut bytes);
            image::ImageEncoder::write_image(
                encoder,
                &[9; 16 * 8 * 3],
                16,
                8,
                image::ExtendedColorType::Rgb8,
            )
            .unwrap();
            bytes
        };
        let seeds = [
            encode(2, 2, ColorType::Rgb, BitDepth::Eight, &[7; 12]),
            encode(3, 2, ColorType::Indexed, BitDepth::One, &[0b1010_0000, 0b0100_0000]),
            encode(2, 1, ColorType::GrayscaleAlpha, BitDepth::Sixteen, &[1, 2, 3, 4, 5, 6, 7, 8]),
            jpeg,
        ];
        let words: [&[u8]; 8] =
            [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"IEND", b"\xff\xc0", b"\xff\xda", b"\xff\xd9"];
        pipe_fuzz::fuzz("pictures", &seeds, &words, |bytes| {
            if let Ok(picture) = Picture::decode(bytes) {
                let rgb = picture.to_rgb([0.0, 255.0]);
                assert_eq!(rgb.len(), picture.width() * picture.height() * 3);
            }
        });
    }

    #[test]
    fn every_mode_is_kept() {
        let decode = |kind, depth, raw: &[u8]| {
            Picture::decode(&encode(3, 1, kind, depth, raw)).unwrap().samples().clone()
        };
        assert_eq!(
            decode(ColorType::Grayscale, BitDepth::One, &[0b1010_0000]),
            Samples::Bilevel(vec![255, 0, 255])
        );
        assert_eq!(
            decode(ColorType::Grayscale, BitDepth::Two, &[0b0110_1100]),
            Samples::Grey(vec![85, 170, 255])
        );
        assert_eq!(
            decode(ColorType::Grayscale, BitDepth::Four, &[0x0f, 0x20]),
            Samples::Grey(vec![0, 255, 34])
        );
        assert_eq!(decode(ColorType::Grayscale, BitDepth::Eight, &[1, 2, 3]), Samples::Grey(vec![1, 2, 3]));
        assert_eq!(
            decode(ColorType::Grayscale, BitDepth::Sixteen, &[1, 2, 3, 4, 5, 6]),
            Samples::Grey16(vec![0x102, 0x304, 0x506])
        );
        assert_eq!(
            decode(ColorType::GrayscaleAlpha, BitDepth::Eight, &[1, 2, 3, 4, 5, 6]),
            Samples::GreyAlpha(vec![1, 2, 3, 4, 5, 6])
        );
        let wide: Vec<u8> = (0..18).collect();
        assert_eq!(
            decode(ColorType::Rgb, BitDepth::Sixteen, &wide),
            Samples::Rgb(vec![0, 2, 4, 6, 8, 10, 12, 14, 16])
        );
        for (depth, raw) in [(BitDepth::Two, vec![0b0100_0100]), (BitDepth::Eight, vec![1, 0, 1])] {
            let Samples::Palette(indices, colours) = decode(ColorType::Indexed, depth, &raw) else {
                panic!()
            };
            assert_eq!(indices, [1, 0, 1]);
            assert_eq!(colours[..3], [[10, 11, 12, 0], [20, 21, 22, 255], [0, 0, 0, 255]]);
        }
    }

    /// Pillow 13 (libjpeg-turbo 3) wrote the JPEG files and decoded them into the PNG files beside them. The
    /// standard leaves the rounding of the inverse transform and of the enlarged colours open.
    #[test]
    fn jpeg_is_decoded_nearly_as_pillow_does() {
        macro_rules! pair {
            ($name:literal) => {
                (
                    $name,
                    include_bytes!(concat!("../../fixtures/jpeg/", $name, ".jpg")).as_slice(),
                    include_bytes!(concat!("../../fixtures/jpeg/", $name, ".png")).as_slice(),
                )
            };
        }
        for (name, jpeg, png) in
            [pair!("444"), pair!("422"), pair!("420"), pair!("progressive"), pair!("restart"), pair!("grey")]
        {
            let (ours, pillows) = (Picture::decode(jpeg).unwrap(), Picture::decode(png).unwrap());
            assert_eq!((ours.width(), ours.height()), (pillows.width(), pillows.height()), "{name}");
            assert_eq!(
                matches!(ours.samples(), Samples::Grey(_)),
                name == "grey",
                "the mode of the file is kept"
            );
            let [ours, pillows] = [ours, pillows].map(|picture| picture.to_rgb([0.0, 1.0]));
            let differences = ours.iter().zip(&pillows).map(|(ours, pillows)| ours.abs_diff(*pillows));
            let greatest = differences.clone().max().unwrap();
            let mean = differences.map(f64::from).sum::<f64>() / ours.len() as f64;
            println!("{name}: at most {greatest} levels of 255, {mean:.3} on average");
            assert!(greatest <= 5 && mean < 0.5, "{name}: {greatest}, {mean}");
        }
    }

    #[test]
    fn what_is_transparent_is_white_only_where_asked() {
        let pictures = [
            Samples::Rgba(vec![0, 100, 200, 0, 0, 100, 200, 128, 0, 100, 200, 255]),
            Samples::Palette(vec![0, 1, 2], {
                let mut colours = Box::new([[0; 4]; 256]);
                for (colour, alpha) in colours.iter_mut().zip([0, 128, 255]) {
                    *colour = [0, 100, 200, alpha];
                }
                colours
            }),
        ];
        for samples in pictures {
            let picture = Picture::new(3, 1, samples).unwrap();
            assert_eq!(picture.to_rgb_on_white([0.0, 1.0]), [255, 255, 255, 127, 177, 227, 0, 100, 200]);
            assert_eq!(picture.to_rgb([0.0, 1.0]), [0, 100, 200].repeat(3));
        }
        let picture = Picture::new(2, 1, Samples::GreyAlpha(vec![7, 0, 7, 255])).unwrap();
        assert_eq!(picture.to_rgb_on_white([0.0, 1.0]), [255, 255, 255, 7, 7, 7]);
    }

    #[test]
    fn a_window_maps_sixteen_bits() {
        assert_eq!(to_grey(&[0, 100, 200, 300, 400], [100.0, 300.0]), [0, 0, 128, 255, 255]);
        assert_eq!(to_grey(&[0, 65_535], [0.0, 65_535.0]), [0, 255]);
    }

    /// A header that claims a very large image costs nothing.
    #[test]
    fn very_large_images_are_refused() {
        for (width, height) in [(1 << 30, 1), (1, 1 << 30), (32_768, 32_768)] {
            let mut bytes = encode(1, 1, ColorType::Rgb, BitDepth::Eight, &[0; 3]);
            bytes[16..20].copy_from_slice(&u32::to_be_bytes(width));
            bytes[20..24].copy_from_slice(&u32::to_be_bytes(height));
            let crc = crc(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&crc.to_be_bytes());
            let message = Picture::decode(&bytes).unwrap_err().to_string();
            assert!(message.contains(&format!("{width} x {height}")), "{message}");
        }
    }

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        })
    }

    proptest! {
        #[test]
        fn damaged_images_end_without_a_panic(
            place in any::<usize>(), value in any::<u8>(), cut in any::<usize>(), jpeg in any::<bool>()
        ) {
            let mut bytes = if jpeg {
                let mut bytes = Vec::new();
                let pixels: Vec<u8> = (0..16 * 16 * 3).map(|value| value as u8).collect();
                image::codecs::jpeg::JpegEncoder::new(&mut bytes)
                    .encode(&pixels, 16, 16, image::ExtendedColorType::Rgb8)
                    .unwrap();
                bytes
            } else {
                encode(8, 4, ColorType::Indexed, BitDepth::Four, &[0x10; 16])
            };
            let place = place % bytes.len();
            bytes[place] = value;
            bytes.truncate(bytes.len() - if cut % 4 == 0 { cut % bytes.len() } else { 0 });
            if let Ok(picture) = Picture::decode(&bytes) {
                prop_assert_eq!(picture.to_rgb([0.0, 65_535.0]).len(), picture.width() * picture.height() * 3);
            }
        }

        #[test]
        fn random_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(Picture::decode(&bytes).is_err());
        }
    }
}
