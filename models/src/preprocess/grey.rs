//! Grey squares: what networks of one channel see.

use super::pipeline::plane;
use super::resize::{Filter, Part, Rounding, resize};
use super::{Picture, Samples};

/// A picture as `side * side` grey values, its proportions given up: colours become eight-bit luma as in Pillow's
/// mode `L`, which is resized by an antialiased cubic. Grey of 16 bits is scaled by `window`, whose first value
/// becomes black and whose second white.
pub fn grey_square(picture: &Picture, side: usize, window: [f64; 2]) -> Vec<u8> {
    let grey = match picture.samples() {
        Samples::Grey(values) => values.clone(),
        _ => picture.to_rgb(window).as_chunks::<3>().0.iter().map(|pixel| luma(*pixel)).collect(),
    };
    let part = Part { width: side, height: side, columns: 0..side, rows: 0..side };
    resize::<1>(&plane(picture, &grey), &part, Filter::Bicubic, Rounding::Pillow)
}

/// ITU-R 601-2 luma in 16 bits of fraction.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((19_595 * u32::from(red) + 38_470 * u32::from(green) + 7_471 * u32::from(blue) + 32_768) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_kept_and_colours_weighted() {
        for value in [0, 1, 127, 255] {
            assert_eq!(luma([value; 3]), value);
        }
        assert_eq!([luma([255, 0, 0]), luma([0, 255, 0]), luma([0, 0, 255])], [76, 150, 29]);
        let picture = Picture::new(2, 1, Samples::Rgb(vec![9, 9, 9, 9, 9, 9])).unwrap();
        assert_eq!(grey_square(&picture, 3, [0.0, 65_535.0]), [9; 9]);
    }
}
