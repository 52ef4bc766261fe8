//! Iterative removal of features (Rieger and Hansen 2020): segments instead of patches.

use super::engine::{Change, Engine, Sample, Start, images, paths};
use super::pixel_flipping::trapezoid;
use super::{Baseline, Curves, Groups, Shape, Undefined, Value, area, descending};
use crate::Result;

/// Segments by decreasing mean of the map.
fn ordered(map: &[f64], segments: &Groups) -> Groups {
    let means: Vec<f64> = segments
        .sums(map)
        .iter()
        .zip(segments.iter())
        .map(|(sum, segment)| sum / segment.len().max(1) as f64)
        .collect();
    segments.reordered(&descending(&means))
}

fn relative(curve: &[f64]) -> Vec<f64> {
    curve.iter().map(|value| value / curve[0]).collect()
}

/// The area above the curve of the relative score, from 1 at the unchanged image on, over the number of
/// segments. A removed pixel changes to that of `ends[i]`; the paper's is its channel's mean
/// ([`channel_means`]). High for a faithful map.
///
/// # Errors
/// Whatever the score reports.
pub fn irof(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    segments: &[Groups],
    ends: &[Vec<f32>],
) -> Result<Vec<f64>> {
    let shape = engine.shape();
    let groups: Vec<Groups> = samples
        .iter()
        .zip(segments)
        .map(|(sample, segments)| {
            ordered(sample.map, segments).in_all_channels(shape.channels, shape.pixels())
        })
        .collect();
    let curves = engine.curves(&paths(samples, ends, &groups, Change::Cumulative), Start::Included)?;
    Ok(curves.iter().map(|curve| 1.0 - area(&relative(curve))).collect())
}

/// An image with each channel's mean everywhere.
pub fn channel_means(image: &[f32], shape: Shape) -> Vec<f32> {
    image.chunks_exact(shape.pixels().max(1)).flat_map(|plane| Baseline::Mean.image(plane)).collect()
}

/// As Quantus has it: the baseline is taken from all images of the batch as changed so far, the curve
/// begins after the first segment, zeros fill it up to the greatest number of segments of the batch
/// before its area is taken, and the area over it is not divided by the number of segments.
///
/// # Errors
/// Whatever the score reports.
pub fn irof_quantus(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    segments: &[Groups],
    baseline: Baseline,
) -> Result<Vec<Value>> {
    let shape = engine.shape();
    if shape.channels > 1 {
        let refused = Undefined::Refused("its mask has one channel and fits no image of several");
        return Ok(vec![Err(refused); samples.len()]);
    }
    let groups: Vec<Groups> =
        samples.iter().zip(segments).map(|(sample, segments)| ordered(sample.map, segments)).collect();
    let most = groups.iter().map(Groups::len).max().unwrap_or(0);
    let ends = ends_of_the_batch(samples, &groups, most, baseline);
    let scores = engine.plain(&images(samples))?;
    let curves: Curves =
        engine.curves(&paths(samples, &ends, &groups, Change::Cumulative), Start::LeftOut)?;
    Ok(curves
        .into_iter()
        .zip(scores)
        .map(|(mut curve, score)| {
            let segments = curve.len() as f64;
            curve.iter_mut().for_each(|value| *value /= score);
            curve.resize(most, 0.0);
            Ok(segments - trapezoid(&curve))
        })
        .collect())
}

/// What each pixel changes to where the baseline is that of the whole batch at its step.
fn ends_of_the_batch(
    samples: &[Sample<'_>],
    groups: &[Groups],
    steps: usize,
    baseline: Baseline,
) -> Vec<Vec<f32>> {
    let mut current: Vec<f32> = samples.iter().flat_map(|sample| sample.image.iter().copied()).collect();
    let mut ends: Vec<Vec<f32>> = samples.iter().map(|sample| sample.image.to_vec()).collect();
    let starts: Vec<usize> = samples
        .iter()
        .scan(0, |start, sample| {
            *start += sample.image.len();
            Some(*start - sample.image.len())
        })
        .collect();
    for step in 0..steps {
        let value = baseline.value(&current);
        for (index, groups) in groups.iter().enumerate().filter(|(_, groups)| step < groups.len()) {
            for feature in groups.group(step) {
                current[starts[index] + *feature as usize] = value;
                ends[index][*feature as usize] = value;
            }
        }
    }
    ends
}
