//! Pictures of the gallery: originals, maps, overlays and masks, as small PNG files.
//!
//! Maps are drawn on one scale from -1 to 1 (signed, red for, blue against) or 0 to 1 (unsigned,
//! viridis), after division by the value below which 98 % of the map's absolute mass lies: a few extreme
//! pixels then do not make the rest invisible. The divisor is printed beside each map.

use std::io::Cursor;

use image::imageops::{FilterType, resize};
use image::{DynamicImage, GrayImage, ImageFormat, ImageReader, Limits, Rgb, RgbImage};
use pipe_attribution::{OUTLIERS, drawing_scale};

use super::saliency::Map;
use crate::framing::Framing;

/// The longest side of a picture on the page.
const LONGEST_SIDE: u32 = 256;

/// Decodes an image and makes it fit the page; none if it cannot be decoded.
pub(super) fn decode(bytes: &[u8]) -> Option<DynamicImage> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(20_000);
    limits.max_image_height = Some(20_000);
    limits.max_alloc = Some(1 << 30);
    reader.limits(limits);
    reader.decode().ok()
}

/// The original, at most [`LONGEST_SIDE`] pixels wide and high.
pub(super) fn original(image: &DynamicImage) -> RgbImage {
    let longest = image.width().max(image.height());
    if longest <= LONGEST_SIDE {
        return image.to_rgb8();
    }
    let side = |length: u32| (u64::from(length) * u64::from(LONGEST_SIDE) / u64::from(longest)).max(1) as u32;
    resize(&image.to_rgb8(), side(image.width()), side(image.height()), FilterType::Triangle)
}

/// A map with its colours decided.
pub(super) struct Drawn {
    /// Values in [-1, 1].
    scaled: Map,
    /// Whether it has both signs: then the colours diverge around 0.
    pub(super) signed: bool,
    /// What the values were divided by; 0 for a map of zeros.
    pub(super) divisor: f32,
}

impl Drawn {
    /// Decides scale and colours; `signed` where any map of the same method has negative values.
    pub(super) fn new(map: &Map, signed: bool) -> Self {
        Self::on_scale(map, signed, drawing_scale(&map.values, OUTLIERS))
    }

    /// As [`Self::new`] with a scale that several maps share; 0 for maps of zeros.
    pub(super) fn on_scale(map: &Map, signed: bool, divisor: f32) -> Self {
        let scale = |value: &f32| if divisor > 0.0 { (value / divisor).clamp(-1.0, 1.0) } else { 0.0 };
        let values = map.values.iter().map(scale).collect();
        Self { scaled: Map { values, ..*map }, signed, divisor }
    }

    /// The map alone, one pixel per value.
    pub(super) fn picture(&self) -> RgbImage {
        RgbImage::from_fn(self.scaled.width as u32, self.scaled.height as u32, |x, y| {
            self.colour(x as usize, y as usize)
        })
    }

    /// Half map, half grey original where the model looked, the grey original alone elsewhere; the map is enlarged
    /// without smoothing.
    pub(super) fn overlay(&self, original: &RgbImage, framing: Framing) -> RgbImage {
        let (width, height) = original.dimensions();
        let part = framing.part(width, height);
        RgbImage::from_fn(width, height, |x, y| {
            let Rgb([red, green, blue]) = *original.get_pixel(x, y);
            let grey = (u16::from(red) * 77 + u16::from(green) * 150 + u16::from(blue) * 29) >> 8;
            let Some([column, row]) = part.cell([x, y], self.scaled.width, self.scaled.height) else {
                return Rgb([grey as u8; 3]);
            };
            let Rgb(colour) = self.colour(column, row);
            Rgb(colour.map(|channel| ((u16::from(channel) + grey) / 2) as u8))
        })
    }

    fn colour(&self, x: usize, y: usize) -> Rgb<u8> {
        colour(f64::from(self.scaled.values[y * self.scaled.width + x]), self.signed)
    }
}

/// The colour of a value: RdBu reversed for signed maps in [-1, 1], viridis for unsigned in [0, 1].
pub(crate) fn colour(value: f64, signed: bool) -> Rgb<u8> {
    let colour = if signed {
        colorous::RED_BLUE.eval_continuous(0.5 - value.clamp(-1.0, 1.0) / 2.0)
    } else {
        colorous::VIRIDIS.eval_continuous(value.clamp(0.0, 1.0))
    };
    Rgb(colour.as_array())
}

/// The original with the mask's outline in yellow; any value but 0 is inside.
pub(super) fn outlined(original: &RgbImage, mask: &GrayImage) -> RgbImage {
    let (width, height) = original.dimensions();
    let inside = |x: u32, y: u32| {
        let column = (u64::from(x) * u64::from(mask.width()) / u64::from(width)) as u32;
        let row = (u64::from(y) * u64::from(mask.height()) / u64::from(height)) as u32;
        mask.get_pixel(column, row).0[0] != 0
    };
    RgbImage::from_fn(width, height, |x, y| {
        let on_edge = inside(x, y)
            && (x == 0
                || y == 0
                || x + 1 == width
                || y + 1 == height
                || !inside(x - 1, y)
                || !inside(x + 1, y)
                || !inside(x, y - 1)
                || !inside(x, y + 1));
        if on_edge { Rgb([255, 214, 0]) } else { *original.get_pixel(x, y) }
    })
}

/// A strip of the scale, from its lowest to its highest value.
pub(super) fn colour_bar(signed: bool) -> RgbImage {
    RgbImage::from_fn(128, 1, |x, _| {
        let share = f64::from(x) / 127.0;
        colour(if signed { share * 2.0 - 1.0 } else { share }, signed)
    })
}

/// PNG bytes.
pub(super) fn png(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).expect("a picture in memory is always encodable");
    bytes.into_inner()
}

/// Base64 with padding (RFC 4648, section 4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (group >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_the_rfc() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn positive_is_red_and_negative_blue() {
        let Rgb([red, _, blue]) = colour(1.0, true);
        assert!(red > blue);
        let Rgb([red, _, blue]) = colour(-1.0, true);
        assert!(blue > red);
    }

    /// On an image twice as wide as high the map of the middle square leaves both ends alone.
    #[test]
    fn an_overlay_lies_where_the_model_looked() {
        let original = RgbImage::from_pixel(24, 12, Rgb([100; 3]));
        let map = Map { slice: None, height: 2, width: 2, values: vec![1.0, 0.0, 0.0, -1.0] };
        let drawn = Drawn::new(&map, true);
        let grey = Rgb([100; 3]);
        let centre = drawn.overlay(&original, Framing::Centre { shorter: 8, side: 8 });
        for (x, y, touched) in [(5, 6, false), (6, 0, true), (17, 11, true), (18, 6, false)] {
            assert_eq!(*centre.get_pixel(x, y) != grey, touched, "{x} {y}");
        }
        let Rgb([red, _, blue]) = *centre.get_pixel(6, 0);
        assert!(red > blue);
        let Rgb([red, _, blue]) = *centre.get_pixel(17, 11);
        assert!(blue > red);
        // A model that cuts a smaller square out of the middle leaves all borders alone.
        let inner = drawn.overlay(&original, Framing::Centre { shorter: 8, side: 4 });
        assert!(*inner.get_pixel(12, 2) == grey && *inner.get_pixel(9, 3) != grey);
        let whole = drawn.overlay(&original, Framing::Whole);
        assert!(*whole.get_pixel(0, 0) != grey && *whole.get_pixel(23, 11) != grey);
    }

    #[test]
    fn the_outline_encloses_the_mask() {
        let original = RgbImage::new(6, 6);
        let mask = GrayImage::from_fn(3, 3, |x, y| image::Luma([u8::from(x == 1 && y == 1)]));
        let outlined = outlined(&original, &mask);
        let yellow = outlined.pixels().filter(|pixel| pixel.0 != [0, 0, 0]).count();
        assert_eq!(yellow, 4);
    }
}
