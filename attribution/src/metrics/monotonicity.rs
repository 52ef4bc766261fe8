//! Monotonicity (Arya et al. 2019; Nguyen and Martinez 2020).

use super::engine::{Change, Engine, Path, Sample, Start, images, paths};
use super::{Curves, Groups, Value, ascending, in_channels, spearman};
use crate::{AttributionError, Result};

/// Groups of `per_step` features by increasing magnitude of the map, with their magnitudes.
fn by_magnitude(engine: &Engine<'_>, sample: &Sample<'_>, per_step: usize) -> (Vec<f64>, Groups) {
    let map: Vec<f64> =
        in_channels(sample.map, engine.shape().channels).iter().map(|value| value.abs()).collect();
    let groups = Groups::blocks(ascending(&map), per_step);
    (map, groups)
}

/// The scores while an image is restored from `starts[i]`, the least relevant features first; the curve
/// begins with that. (Quantus 0.6.0 replaces the baseline by itself: its predictions never
/// change, and it calls every map monotone.)
///
/// # Errors
/// Whatever the score reports.
pub fn monotonicity(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    starts: &[Vec<f32>],
    per_step: usize,
) -> Result<Curves> {
    let groups: Vec<Groups> = samples.iter().map(|sample| by_magnitude(engine, sample, per_step).1).collect();
    let paths: Vec<Path<'_>> = samples
        .iter()
        .zip(starts)
        .zip(&groups)
        .map(|((sample, start), groups)| Path {
            sample: sample.index,
            start,
            end: sample.image,
            groups,
            change: Change::Cumulative,
        })
        .collect();
    engine.curves(&paths, Start::Included)
}

/// The share of steps of a curve that do not go down: hardly any curve is monotone altogether.
pub fn non_decreasing_share(curve: &[f64]) -> f64 {
    let steps = curve.windows(2);
    let count = steps.len().max(1) as f64;
    steps.filter(|pair| pair[1] >= pair[0]).count() as f64 / count
}

/// Spearman's correlation, over groups of `per_step` features, of the group's magnitude with the mean
/// squared change of the score when the group alone takes other values, relative to the squared score
/// where that is at least `epsilon`.
///
/// `values[t][j][i]`: what group t of sample i changes to in draw j.
///
/// # Errors
/// Whatever the score reports.
pub fn monotonicity_correlation(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    values: &[Vec<Vec<f32>>],
    per_step: usize,
    epsilon: f64,
) -> Result<Vec<Value>> {
    let scores = engine.plain(&images(samples))?;
    let draws = values.first().map_or(0, Vec::len);
    let mut correlations = Vec::with_capacity(samples.len());
    for (place, (sample, score)) in samples.iter().zip(scores).enumerate() {
        let (map, groups) = by_magnitude(engine, sample, per_step);
        if values.len() != groups.len() {
            let reason = format!("values for {} groups are given; there are {}", values.len(), groups.len());
            return Err(AttributionError::Settings(reason));
        }
        let rows = vec![sample.index; groups.len() * draws];
        let changed = engine.scores(&rows, |row, image| {
            image.copy_from_slice(sample.image);
            for feature in groups.group(row / draws) {
                image[*feature as usize] = values[row / draws][row % draws][place];
            }
        })?;
        let scale = scale(score, epsilon);
        let variances: Vec<f64> = changed
            .chunks(draws.max(1))
            .map(|draws| {
                scale * draws.iter().map(|value| (value - score).powi(2)).sum::<f64>() / draws.len() as f64
            })
            .collect();
        correlations.push(spearman(&groups.sums(&map), &variances));
    }
    Ok(correlations)
}

/// What squared changes of a score are multiplied by.
fn scale(score: f64, epsilon: f64) -> f64 {
    if score.abs() >= epsilon { 1.0 / (score * score) } else { 1.0 }
}

/// The same where each group changes to that of `ends[i]`, which takes one draw.
///
/// # Errors
/// Whatever the score reports.
pub fn monotonicity_correlation_of_ends(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    ends: &[Vec<f32>],
    per_step: usize,
    epsilon: f64,
) -> Result<Vec<Value>> {
    let (maps, groups): (Vec<Vec<f64>>, Vec<Groups>) =
        samples.iter().map(|sample| by_magnitude(engine, sample, per_step)).unzip();
    let curves = engine.curves(&paths(samples, ends, &groups, Change::Independent), Start::Included)?;
    let correlation = |(curve, (map, groups)): (&Vec<f64>, (&Vec<f64>, &Groups))| {
        let scale = scale(curve[0], epsilon);
        let variances: Vec<f64> = curve[1..].iter().map(|value| scale * (value - curve[0]).powi(2)).collect();
        spearman(&groups.sums(map), &variances)
    };
    Ok(curves.iter().zip(maps.iter().zip(&groups)).map(correlation).collect())
}
