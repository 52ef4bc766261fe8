//! Region perturbation (Samek et al. 2017) and selectivity (Montavon, Samek and Müller 2018): patches
//! instead of pixels.

use super::deletion::Curves;
use super::engine::{Change, Engine, Sample, Start, paths};
use super::{Baseline, Groups, Order, Shape};
use crate::Result;

/// The patches of an image, row by row; of a volume boxes, as many slices deep as `side` is of the height. Where
/// the side does not divide the image, the grid stands around its middle and the outer patches are smaller, as if the image
/// were padded.
pub fn patches(shape: Shape, side: usize) -> Groups {
    let side = side.max(1);
    let before = |length: usize, side: usize| (length.next_multiple_of(side) - length) / 2;
    let offset = [before(shape.height, side), before(shape.width, side)];
    match shape.depth {
        None => Groups::patches([shape.height, shape.width], side, offset),
        Some(slices) => {
            let deep = patch_depth(shape, side);
            Groups::boxes(shape.axes(), [deep, side, side], [before(slices, deep), offset[0], offset[1]])
        }
    }
}

/// Slices of a patch of this side: as great a share of the slices as the side is of the height. 1 of a flat image.
pub fn patch_depth(shape: Shape, side: usize) -> usize {
    let share = side as f64 / shape.height.max(1) as f64;
    let slices = shape.depth.unwrap_or(1);
    ((slices as f64 * share).round() as usize).clamp(1, slices.max(1))
}

/// The patches of a map in the order of their sums.
pub fn patch_order(map: &[f64], patches: &Groups, order: Order) -> Vec<u32> {
    order.of(&patches.sums(map))
}

/// The scores while patches change to those of `ends[i]`, one after another: for each sample those of
/// `orders[i]`, which may name fewer patches than there are. The curve begins with the unchanged image.
///
/// # Errors
/// Whatever the score reports.
pub fn region_perturbation(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    patches: &Groups,
    orders: &[Vec<u32>],
    ends: &[Vec<f32>],
) -> Result<Curves> {
    let groups = ordered(engine.shape(), patches, orders);
    engine.curves(&paths(samples, ends, &groups, Change::Cumulative), Start::Included)
}

/// As Quantus has it, for [`patches`] of this side: the baseline is taken again at each step, from the image padded by
/// its edges to whole patches; of volumes, which it does not know, from the volume as it is.
///
/// # Errors
/// Whatever the score reports.
pub fn region_perturbation_quantus(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    side: usize,
    orders: &[Vec<u32>],
    baseline: Baseline,
) -> Result<Curves> {
    let (shape, patches) = (engine.shape(), patches(engine.shape(), side));
    let end = |(sample, order): (&Sample<'_>, &Vec<u32>)| match shape.depth {
        None => drifting_in_padding(sample.image, shape, side.max(1), order, baseline),
        Some(_) => {
            let groups = patches.reordered(order).in_all_channels(shape.channels, shape.pixels());
            baseline.drifting(sample.image, &groups)
        }
    };
    let ends: Vec<Vec<f32>> = samples.iter().zip(orders).map(end).collect();
    region_perturbation(engine, samples, &patches, orders, &ends)
}

/// What each feature changes to where the baseline is that of the padded image at its step.
fn drifting_in_padding(
    image: &[f32],
    shape: Shape,
    side: usize,
    order: &[u32],
    baseline: Baseline,
) -> Vec<f32> {
    let [height, width] = [shape.height, shape.width];
    let whole = Shape::flat(shape.channels, height.next_multiple_of(side), width.next_multiple_of(side));
    let before = [(whole.height - height) / 2, (whole.width - width) / 2];
    let inside = |place: usize, before: usize, length: usize| place.saturating_sub(before).min(length - 1);
    let padded: Vec<f32> = (0..whole.features())
        .map(|feature| {
            let (channel, pixel) = (feature / whole.pixels(), feature % whole.pixels());
            let row = inside(pixel / whole.width, before[0], height);
            let column = inside(pixel % whole.width, before[1], width);
            image[(channel * height + row) * width + column]
        })
        .collect();
    let groups = patches(whole, side).reordered(order).in_all_channels(whole.channels, whole.pixels());
    let end = baseline.drifting(&padded, &groups);
    (0..shape.features())
        .map(|feature| {
            let (line, column) = (feature / width, feature % width);
            let (channel, row) = (line / height, line % height);
            end[(channel * whole.height + row + before[0]) * whole.width + column + before[1]]
        })
        .collect()
}

fn ordered(shape: Shape, patches: &Groups, orders: &[Vec<u32>]) -> Vec<Groups> {
    let groups = |order: &Vec<u32>| patches.reordered(order).in_all_channels(shape.channels, shape.pixels());
    orders.iter().map(groups).collect()
}

/// The area over the perturbation curve: the mean drop over all its points, the start's 0 among them.
/// High for a faithful map when the most relevant patches go first, low when the least relevant do.
pub fn area_over_curve(curve: &[f64]) -> f64 {
    curve.iter().map(|value| curve[0] - value).sum::<f64>() / curve.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_drifts_in_the_padded_image() {
        let shape = Shape::flat(1, 1, 3);
        let end = drifting_in_padding(&[0.0, 3.0, 6.0], shape, 2, &[1, 0], Baseline::Mean);
        // Rows and columns are 0 3 | 6 6, twice: the mean is 15 / 4, and then that of 0, 3 and twice 15 / 4.
        let [first, second] = [15.0 / 4.0, (3.0 + 7.5) / 4.0];
        assert_eq!(end, [second, second, first]);
        assert_eq!(drifting_in_padding(&[0.0, 3.0, 6.0], shape, 2, &[0, 1], Baseline::Black), [0.0; 3]);
    }
}
