//! Strips of a volume's maps: equidistant slices side by side on one scale, each above its overlay.

use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};
use maud::{Markup, html};
use pipe_attribution::{OUTLIERS, drawing_scale};

use super::gallery::{Under, in_words};
use super::picture::Drawn;
use super::pictures::Pictures;
use super::saliency::{Map, Slice};
use super::words::number;
use crate::framing::Framing;

/// The longest side of a slice in a strip on the page.
const LONGEST_SIDE: u32 = 112;
/// White pixels between slices.
const MARGIN: u32 = 2;

/// A slice in a strip.
struct Cell {
    slice: Slice,
    map: RgbImage,
    /// The map over what the model saw, if that is known.
    overlay: Option<RgbImage>,
}

/// The strip of one explanation of the sample `id` by `name`, on the page and, a slice in each column, on the sheet of
/// strips. Nothing without slices.
pub(super) fn strip(
    id: &str,
    name: &str,
    (slices, signed): (&[Map], bool),
    under: &Under<'_>,
    pictures: &mut Pictures,
) -> Markup {
    let all: Vec<f32> = slices.iter().flat_map(|map| &map.values).copied().collect();
    let divisor = drawing_scale(&all, OUTLIERS);
    let cells: Vec<Cell> = slices
        .iter()
        .filter_map(|map| {
            let drawn = Drawn::on_scale(map, signed, divisor);
            let overlay = under
                .of(map, Some(Framing::Whole))
                .map(|(picture, framing)| drawn.overlay(&picture, framing));
            Some(Cell { slice: map.slice?, map: drawn.picture(), overlay })
        })
        .collect();
    let (Some(first), Some(last)) = (cells.first(), cells.last()) else { return html! {} };
    let span = format!("{} to {}", in_words(first.slice), in_words(last.slice));
    let shows = format!("strip of {} slices of {name} for {id}, {span}", cells.len());
    pictures.begin_strip(&format!("{id}, {name}"));
    for (place, cell) in cells.iter().enumerate() {
        let shows = format!("{name} for {id}, {}", in_words(cell.slice));
        pictures.on_strip(
            &format!("slice {}", place + 1),
            &shows,
            cell.overlay.as_ref().unwrap_or(&cell.map),
        );
    }
    html! {
        figure .slices {
            img src=(pictures.source(&joined(&cells))) alt=(shows);
            figcaption {
                b { (name) } ", " (cells.len()) " slices at equal distances, " (span)
                @if first.overlay.is_some() { "; maps above, overlays below" }
                "; scale " (number(f64::from(divisor)))
            }
        }
    }
}

/// Maps beside each other, their overlays below them.
fn joined(cells: &[Cell]) -> RgbImage {
    let pairs: Vec<(RgbImage, Option<RgbImage>)> =
        cells.iter().map(|cell| (fitted(&cell.map), cell.overlay.as_ref().map(fitted))).collect();
    let (width, height) = pairs.first().map_or((1, 1), |(map, _)| map.dimensions());
    let lines = if pairs.iter().any(|(_, overlay)| overlay.is_some()) { 2 } else { 1 };
    let length = |count: u32, side: u32| count * (side + MARGIN) - MARGIN;
    let mut whole =
        RgbImage::from_pixel(length(pairs.len() as u32, width), length(lines, height), Rgb([255; 3]));
    for (place, (map, below)) in (0..).zip(&pairs) {
        let x = place * i64::from(width + MARGIN);
        overlay(&mut whole, map, x, 0);
        if let Some(below) = below {
            overlay(&mut whole, below, x, i64::from(height + MARGIN));
        }
    }
    whole
}

/// At most [`LONGEST_SIDE`] pixels wide and high.
fn fitted(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longest = width.max(height);
    if longest <= LONGEST_SIDE {
        return picture.clone();
    }
    let side = |length: u32| (length * LONGEST_SIDE / longest).max(1);
    resize(picture, side(width), side(height), FilterType::Triangle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::saliency::Plane;

    fn cell(colour: [u8; 3], has_overlay: bool) -> Cell {
        let slice = Slice { plane: Plane::Axial, index: 0, of: [4, 3, 2] };
        let picture = |colour| RgbImage::from_pixel(2, 3, Rgb(colour));
        Cell { slice, map: picture(colour), overlay: has_overlay.then(|| picture([9; 3])) }
    }

    #[test]
    fn slices_stand_side_by_side_above_their_overlays() {
        let whole = joined(&[cell([200, 0, 0], true), cell([0, 0, 200], true)]);
        assert_eq!(whole.dimensions(), (2 * 2 + 2, 2 * 3 + 2));
        assert_eq!([whole.get_pixel(0, 0).0, whole.get_pixel(4, 2).0], [[200, 0, 0], [0, 0, 200]]);
        assert_eq!([whole.get_pixel(2, 0).0, whole.get_pixel(0, 3).0], [[255; 3]; 2]);
        assert_eq!([whole.get_pixel(0, 5).0, whole.get_pixel(5, 7).0], [[9; 3]; 2]);
        assert_eq!(joined(&[cell([1; 3], false)]).dimensions(), (2, 3));
        assert_eq!(fitted(&RgbImage::new(448, 224)).dimensions(), (112, 56));
    }
}
