//! Images in formats that clinics and collections have beside PNG and JPEG, in the modes in which Pillow opens
//! them: the mode decides how an image is resized. Of several pictures in a file the first is taken.

use std::io::Cursor;

use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::picture::{BYTES_LIMIT, DecodeError, Picture, Samples, check_size, error};

/// Decodes a BMP, GIF, TIFF or WebP.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(error)?;
    let format = reader.format().filter(|format| {
        matches!(format, ImageFormat::Bmp | ImageFormat::Gif | ImageFormat::Tiff | ImageFormat::WebP)
    });
    let Some(format) = format else {
        return Err(error("it is neither PNG nor JPEG, and no TIFF, BMP, GIF or WebP"));
    };
    let mut decoder = reader.into_decoder().map_err(error)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, decoder.total_bytes())?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(BYTES_LIMIT);
    decoder.set_limits(limits).map_err(error)?;
    let is_bilevel = decoder.original_color_type() == ExtendedColorType::L1;
    let image = DynamicImage::from_decoder(decoder).map_err(error)?;
    let samples = match (format, image) {
        (ImageFormat::Gif, image) => indexed(image, gif_colours(bytes).as_deref()),
        (ImageFormat::Bmp, image) if bmp_colours(bytes).is_some() => {
            indexed(image, bmp_colours(bytes).as_deref())
        }
        (_, DynamicImage::ImageLuma8(grey)) if is_bilevel => Samples::Bilevel(grey.into_raw()),
        (_, DynamicImage::ImageLuma8(grey)) => Samples::Grey(grey.into_raw()),
        (_, DynamicImage::ImageLumaA8(grey)) => Samples::GreyAlpha(grey.into_raw()),
        (_, DynamicImage::ImageRgb8(colours)) => Samples::Rgb(colours.into_raw()),
        (_, DynamicImage::ImageRgba8(colours)) => Samples::Rgba(colours.into_raw()),
        (_, DynamicImage::ImageLuma16(grey)) => Samples::Grey16(grey.into_raw()),
        (_, DynamicImage::ImageLumaA16(grey)) => Samples::GreyAlpha(high(&grey.into_raw())),
        (_, DynamicImage::ImageRgb16(colours)) => Samples::Rgb(high(&colours.into_raw())),
        (_, DynamicImage::ImageRgba16(colours)) => Samples::Rgba(high(&colours.into_raw())),
        (_, other) => {
            let kind = other.color();
            return Err(error(format!("its samples are {kind:?}; those of 8 and 16 bits are read")));
        }
    };
    Picture::new(width as usize, height as usize, samples)
}

/// The upper halves of samples of 16 bits.
fn high(samples: &[u16]) -> Vec<u8> {
    samples.iter().map(|sample| (sample >> 8) as u8).collect()
}

/// The samples of an image that is stored as indices into `colours`: grey where these are the greys in their order,
/// as Pillow has it, and black and white alone where they are two.
fn indexed(image: DynamicImage, colours: Option<&[[u8; 3]]>) -> Samples {
    let is_ramp = |colours: &&[[u8; 3]]| {
        let last = colours.len().saturating_sub(1);
        // Of two colours the second is white.
        let grey = |place: usize| if last == 1 { place * 255 } else { place };
        colours.iter().enumerate().all(|(place, colour)| colour.map(usize::from) == [grey(place); 3])
    };
    match colours.filter(is_ramp) {
        Some(colours) if colours.len() == 2 => Samples::Bilevel(image.into_luma8().into_raw()),
        Some(_) => Samples::Grey(image.into_luma8().into_raw()),
        None => palette(image),
    }
}

/// The colours of an image as a palette. A file of indices has no more than fit into one.
fn palette(image: DynamicImage) -> Samples {
    let pixels = image.into_rgba8();
    let mut places = std::collections::BTreeMap::new();
    let mut colours = Box::new([[0, 0, 0, 255]; 256]);
    let mut indices = Vec::with_capacity(pixels.len() / 4);
    for pixel in pixels.pixels() {
        let next = places.len();
        let place = *places.entry(pixel.0).or_insert(next);
        let Some(colour) = colours.get_mut(place) else { return Samples::Rgba(pixels.into_raw()) };
        *colour = pixel.0;
        indices.push(place as u8);
    }
    Samples::Palette(indices, colours)
}

/// Colours one after the other, `width` bytes each.
fn table(bytes: &[u8], start: usize, count: usize, width: usize) -> Option<&[u8]> {
    bytes.get(start..start.checked_add(count.checked_mul(width)?)?)
}

/// The global colours of a GIF, if it has them.
fn gif_colours(bytes: &[u8]) -> Option<Vec<[u8; 3]>> {
    let flags = *bytes.get(10)?;
    let count = 2 << (flags & 7);
    let colours = table(bytes, 13, count, 3).filter(|_| flags & 0x80 != 0)?;
    Some(colours.as_chunks::<3>().0.to_vec())
}

/// The colours of a BMP of indices.
fn bmp_colours(bytes: &[u8]) -> Option<Vec<[u8; 3]>> {
    let number = |place: usize, length: usize| {
        let digits = bytes.get(place..place + length)?;
        Some(digits.iter().rev().fold(0usize, |number, digit| number << 8 | usize::from(*digit)))
    };
    let header = number(14, 4)?;
    // The oldest header is short, and its colours have no fourth byte.
    let (bits, used, width) = match header {
        12 => (number(24, 2)?, 0, 3),
        _ => (number(28, 2)?, number(46, 4)?, 4),
    };
    if !matches!(bits, 1 | 2 | 4 | 8) {
        return None;
    }
    let count = if used == 0 { 1 << bits } else { used };
    let colours = table(bytes, 14usize.checked_add(header)?, count, width)?;
    Some(colours.chunks_exact(width).map(|colour| [colour[2], colour[1], colour[0]]).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [ImageFormat; 4] =
        [ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff, ImageFormat::WebP];

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn colours() -> DynamicImage {
        let colour = |x: u32, y: u32| image::Rgba([x as u8 * 60, y as u8 * 80, 90, 255]);
        DynamicImage::ImageRgba8(image::RgbaImage::from_fn(4, 3, colour))
    }

    #[test]
    fn every_format_holds_the_same_pixels() {
        let expected = colours().into_rgb8().into_raw();
        for format in FORMATS {
            let picture = Picture::decode(&encode(&colours(), format)).unwrap();
            assert_eq!((picture.width(), picture.height()), (4, 3));
            assert_eq!(picture.to_rgb([0.0, 1.0]), expected, "{format:?}");
        }
    }

    #[test]
    fn modes_are_those_that_pillow_opens() {
        let decode =
            |image: &DynamicImage, format| Picture::decode(&encode(image, format)).unwrap().samples().clone();
        let grey =
            DynamicImage::ImageLuma8(image::GrayImage::from_fn(4, 1, |x, _| image::Luma([x as u8 * 9])));
        assert_eq!(decode(&grey, ImageFormat::Tiff), Samples::Grey(vec![0, 9, 18, 27]));
        // Written as indices into all greys.
        assert_eq!(decode(&grey, ImageFormat::Bmp), Samples::Grey(vec![0, 9, 18, 27]));
        let deep = image::ImageBuffer::from_fn(2, 1, |x, _| image::Luma([x as u16 * 40_000]));
        let deep = DynamicImage::ImageLuma16(deep);
        assert_eq!(decode(&deep, ImageFormat::Tiff), Samples::Grey16(vec![0, 40_000]));
        let rgb = DynamicImage::ImageRgb8(colours().into_rgb8());
        assert!(matches!(decode(&rgb, ImageFormat::Bmp), Samples::Rgb(_)));
        assert!(matches!(decode(&rgb, ImageFormat::WebP), Samples::Rgb(_)));
        assert!(matches!(decode(&colours(), ImageFormat::WebP), Samples::Rgba(_)));
        assert!(matches!(decode(&colours(), ImageFormat::Gif), Samples::Palette(..)));
    }

    /// A bitmap of indices of one bit: 3 x 1 pixels, its colours as given.
    fn two_colours(colours: [[u8; 4]; 2]) -> Vec<u8> {
        let mut bytes = b"BM".to_vec();
        for number in [66u32, 0, 62, 40, 3, 1] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend([1, 0, 1, 0]);
        for number in [0u32, 4, 0, 0, 2, 0] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(colours.concat());
        bytes.extend([0b1010_0000, 0, 0, 0]);
        bytes
    }

    #[test]
    fn a_palette_of_two_colours_is_one() {
        let decode = |colours| Picture::decode(&two_colours(colours)).unwrap().samples().clone();
        assert_eq!(decode([[0; 4], [255, 255, 255, 0]]), Samples::Bilevel(vec![255, 0, 255]));
        let Samples::Palette(indices, colours) = decode([[3, 2, 1, 0], [255, 255, 255, 0]]) else { panic!() };
        let found: Vec<[u8; 4]> = indices.iter().map(|index| colours[usize::from(*index)]).collect();
        assert_eq!(found, [[255, 255, 255, 255], [1, 2, 3, 255], [255, 255, 255, 255]]);
    }

    #[test]
    fn what_is_no_image_or_too_large_is_refused() {
        for format in FORMATS {
            let whole = encode(&colours(), format);
            Picture::decode(&whole[..whole.len() / 3]).unwrap_err();
        }
        let mut large = encode(&colours(), ImageFormat::Bmp);
        large[18..22].copy_from_slice(&40_000u32.to_le_bytes());
        let message = Picture::decode(&large).unwrap_err().to_string();
        assert!(message.contains("40000 x 3"), "{message}");
        let float = DynamicImage::ImageRgb32F(colours().into_rgb32f());
        let message = Picture::decode(&encode(&float, ImageFormat::Tiff)).unwrap_err().to_string();
        assert!(message.contains("8 and 16 bits"), "{message}");
        let message = Picture::decode(b"\0\0\x01\0 an icon").unwrap_err().to_string();
        assert!(message.contains("neither PNG nor JPEG"), "{message}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn damaged_images_end_without_a_panic(
            format in 0usize..4, place in any::<usize>(), value: u8, cut in any::<usize>()
        ) {
            let mut bytes = encode(&colours(), FORMATS[format]);
            let place = place % bytes.len();
            bytes[place] = value;
            bytes.truncate(bytes.len() - if cut % 4 == 0 { cut % bytes.len() } else { 0 });
            if let Ok(picture) = Picture::decode(&bytes) {
                prop_assert_eq!(picture.to_rgb([0.0, 65_535.0]).len(), picture.width() * picture.height() * 3);
            }
        }
    }
}
