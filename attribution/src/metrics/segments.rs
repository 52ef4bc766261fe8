//! Superpixels: pieces of an image that are alike and near, as orders of segments remove them.

use super::{Groups, Shape};

/// Rounds of assigning pixels and moving centres.
const ROUNDS: usize = 10;
/// What an image's range is stretched to before colours are compared: that of lightness.
const RANGE: f64 = 100.0;
/// A piece smaller than this share of a segment's expected size joins a neighbour.
const SMALLEST: f64 = 0.25;

/// Simple linear iterative clustering (Achanta et al. 2012): about `count` segments of a flat image, by k-means in
/// colour and place. The more `compactness` (10 is usual), the more place counts. Every segment is connected.
///
/// Colours are the channels as the model takes them, stretched so that the image's range is 100; centres begin on
/// a grid. Segments are numbered in the row-major order of their first pixel.
pub fn superpixels(image: &[f32], shape: Shape, count: usize, compactness: f64) -> Groups {
    let labels = clusters(image, shape, count.clamp(1, shape.pixels().max(1)), compactness);
    let expected = shape.pixels() as f64 / count.max(1) as f64;
    Groups::segments(&connected(&labels, shape, (SMALLEST * expected) as usize))
}

/// A centre: its row, its column, and its colour.
struct Centre {
    place: [f64; 2],
    colour: Vec<f64>,
}

/// The cluster of each pixel.
fn clusters(image: &[f32], shape: Shape, count: usize, compactness: f64) -> Vec<u32> {
    let (height, width, pixels) = (shape.height, shape.width, shape.pixels());
    let range = super::range(image);
    let factor = if range > 0.0 { RANGE / range } else { 0.0 };
    let colour = |pixel: usize| -> Vec<f64> {
        (0..shape.channels).map(|channel| factor * f64::from(image[channel * pixels + pixel])).collect()
    };
    let step = (pixels as f64 / count as f64).sqrt();
    let along = |length: usize| ((length as f64 / step).round() as usize).clamp(1, length.max(1));
    let (rows, columns) = (along(height), along(width));
    let middle =
        |index: usize, parts: usize, length: usize| (index as f64 + 0.5) * length as f64 / parts as f64 - 0.5;
    let mut centres: Vec<Centre> = (0..rows * columns)
        .map(|index| {
            let place = [middle(index / columns, rows, height), middle(index % columns, columns, width)];
            let nearest =
                |axis: usize, length: usize| (place[axis].round().max(0.0) as usize).min(length - 1);
            Centre { place, colour: colour(nearest(0, height) * width + nearest(1, width)) }
        })
        .collect();
    let colours: Vec<Vec<f64>> = (0..pixels).map(colour).collect();
    let near = (compactness / step) * (compactness / step);
    let mut labels = vec![0u32; pixels];
    for _ in 0..ROUNDS {
        let mut least = vec![f64::INFINITY; pixels];
        for (label, centre) in (0u32..).zip(&centres) {
            let around = |axis: usize, length: usize| {
                let low = (centre.place[axis] - step).floor().max(0.0) as usize;
                let high = (centre.place[axis] + step).ceil().max(0.0) as usize;
                low..(high + 1).min(length)
            };
            for row in around(0, height) {
                for column in around(1, width) {
                    let pixel = row * width + column;
                    let (down, right) = (row as f64 - centre.place[0], column as f64 - centre.place[1]);
                    let unlike: f64 =
                        colours[pixel].iter().zip(&centre.colour).map(|(a, b)| (a - b) * (a - b)).sum();
                    let distance = unlike + near * (down * down + right * right);
                    if distance < least[pixel] {
                        (least[pixel], labels[pixel]) = (distance, label);
                    }
                }
            }
        }
        move_centres(&mut centres, &labels, &colours, width);
    }
    labels
}

/// Puts each centre into the mean of its pixels; one without pixels stays.
fn move_centres(centres: &mut [Centre], labels: &[u32], colours: &[Vec<f64>], width: usize) {
    let channels = colours.first().map_or(0, Vec::len);
    let mut sums = vec![(0.0, [0.0; 2], vec![0.0; channels]); centres.len()];
    for (pixel, label) in labels.iter().enumerate() {
        let (number, place, colour) = &mut sums[*label as usize];
        *number += 1.0;
        place[0] += (pixel / width) as f64;
        place[1] += (pixel % width) as f64;
        colour.iter_mut().zip(&colours[pixel]).for_each(|(sum, value)| *sum += value);
    }
    for (centre, (number, place, colour)) in centres.iter_mut().zip(sums) {
        if number > 0.0 {
            centre.place = place.map(|sum| sum / number);
            centre.colour = colour.into_iter().map(|sum| sum / number).collect();
        }
    }
}

/// New labels for the connected pieces of equal labels. A piece of fewer than `smallest` pixels takes the label of the
/// piece before it that it touches, if there is one.
fn connected(labels: &[u32], shape: Shape, smallest: usize) -> Vec<u32> {
    const NEW: u32 = u32::MAX;
    let (height, width) = (shape.height, shape.width);
    let mut pieces = vec![NEW; labels.len()];
    let mut next = 0;
    for first in 0..labels.len() {
        if pieces[first] != NEW {
            continue;
        }
        pieces[first] = next;
        let (mut members, mut touched) = (vec![first], None);
        let mut place = 0;
        while let Some(pixel) = members.get(place).copied() {
            place += 1;
            let (row, column) = (pixel / width, pixel % width);
            let neighbours = [
                (row > 0).then(|| pixel - width),
                (column > 0).then(|| pixel - 1),
                (column + 1 < width).then(|| pixel + 1),
                (row + 1 < height).then(|| pixel + width),
            ];
            for neighbour in neighbours.into_iter().flatten() {
                match pieces[neighbour] {
                    NEW if labels[neighbour] == labels[first] => {
                        pieces[neighbour] = next;
                        members.push(neighbour);
                    }
                    NEW => {}
                    piece if piece != next => touched = touched.or(Some(piece)),
                    _ => {}
                }
            }
        }
        match touched {
            Some(piece) if members.len() < smallest => {
                members.into_iter().for_each(|pixel| pieces[pixel] = piece);
            }
            _ => next += 1,
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The segment of each pixel.
    fn segments(image: &[f32], shape: Shape, count: usize) -> Vec<usize> {
        let groups = superpixels(image, shape, count, 10.0);
        let mut of = vec![usize::MAX; shape.pixels()];
        for (segment, pixels) in groups.iter().enumerate() {
            for pixel in pixels {
                assert_eq!(
                    std::mem::replace(&mut of[*pixel as usize], segment),
                    usize::MAX,
                    "in one segment only"
                );
            }
        }
        assert!(of.iter().all(|segment| *segment != usize::MAX), "every pixel is in a segment");
        of
    }

    #[test]
    fn a_flat_image_is_cut_into_a_grid() {
        let shape = Shape::flat(1, 12, 12);
        let of = segments(&[3.0; 144], shape, 9);
        let square: Vec<usize> = (0..144).map(|pixel| pixel / 12 / 4 * 3 + pixel % 12 / 4).collect();
        assert_eq!(of, square);
    }

    #[test]
    fn segments_end_where_the_image_changes() {
        // A disc that no grid of squares follows, in the second of two channels.
        let shape = Shape::flat(2, 30, 30);
        let inside = |pixel: usize| {
            let (row, column) = (pixel as f64 / 30.0 - 13.0, (pixel % 30) as f64 - 17.0);
            row * row + column * column < 70.0
        };
        let image: Vec<f32> =
            (0..1800).map(|value| if value >= 900 && inside(value - 900) { 1.0 } else { 0.0 }).collect();
        let of = segments(&image, shape, 25);
        let count = of.iter().max().unwrap() + 1;
        assert!((15..=35).contains(&count), "{count}");
        let mixed = (0..count).filter(|segment| {
            let mut sides = (0..900).filter(|pixel| of[*pixel] == *segment).map(inside);
            let first = sides.next();
            sides.any(|side| Some(side) != first)
        });
        assert_eq!(mixed.count(), 0, "a segment lies on one side of the edge");
        assert_eq!(of, segments(&image, shape, 25));
    }

    #[test]
    fn small_pieces_join_what_they_touch() {
        let shape = Shape::flat(1, 2, 4);
        // One pixel of label 7 in the middle of label 1, and a piece of label 1 that is apart from the others.
        assert_eq!(connected(&[1, 1, 7, 1, 1, 1, 1, 1], shape, 2), [0; 8]);
        assert_eq!(connected(&[1, 1, 7, 1, 1, 1, 7, 1], shape, 2), [0, 0, 1, 2, 0, 0, 1, 2]);
        assert_eq!(connected(&[1, 1, 7, 1, 1, 1, 7, 1], shape, 3), [0; 8]);
    }

    #[test]
    fn one_segment_and_one_for_each_pixel() {
        let shape = Shape::flat(1, 3, 2);
        let image = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(superpixels(&image, shape, 1, 10.0).len(), 1);
        assert_eq!(superpixels(&image, shape, 100, 10.0).len(), 6);
    }
}
