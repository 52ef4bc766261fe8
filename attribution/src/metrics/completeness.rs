//! Axioms: completeness (Sundararajan, Taly and Yan 2017) and non-sensitivity (Nguyen and Martinez
//! 2020).

use super::engine::{Change, Engine, Path, Sample, Start, images, paths};
use super::{Baseline, Groups, Mode, Part, Undefined, Value, in_channels};
use crate::Result;

/// How far a map's sum is from the difference that it should explain.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CompletenessGap {
    /// |sum of the map - (f(image) - f(baseline))|.
    pub absolute: f64,
    /// The same over |f(image) - f(baseline)|.
    pub relative: f64,
}

/// The completeness gap of each map as the method gave it, for the baseline images that the method used.
///
/// # Errors
/// Whatever the score reports.
pub fn completeness(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    baselines: &[Vec<f32>],
) -> Result<Vec<CompletenessGap>> {
    let starts: Vec<(usize, &[f32])> =
        samples.iter().zip(baselines).map(|(sample, image)| (sample.index, image.as_slice())).collect();
    let (scores, bases) = (engine.plain(&images(samples))?, engine.plain(&starts)?);
    Ok(samples
        .iter()
        .zip(scores.iter().zip(bases))
        .map(|(sample, (score, base))| {
            let difference = score - base;
            let absolute = (sample.map.iter().sum::<f64>() - difference).abs();
            CompletenessGap { absolute, relative: absolute / difference.abs() }
        })
        .collect())
}

/// As Quantus has it: 1 if the sum equals the difference to the last bit, which it never does; of images
/// of several channels only the first becomes the baseline.
///
/// # Errors
/// Whatever the score reports.
pub fn completeness_quantus(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    baseline: Baseline,
) -> Result<Vec<f64>> {
    let baselines: Vec<Vec<f32>> = samples
        .iter()
        .map(|sample| {
            let mut image = sample.image.to_vec();
            image[..engine.shape().pixels()].fill(baseline.value(sample.image));
            image
        })
        .collect();
    let gaps = completeness(engine, samples, &baselines)?;
    Ok(gaps.iter().map(|gap| f64::from(u8::from(gap.absolute == 0.0))).collect())
}

/// The number of features for which map and model disagree on whether they matter: the magnitude of one
/// is below `epsilon` and the change of the score when the feature is set to the baseline is not, or the
/// reverse. Reference: one feature is one pixel, all channels at once. Quantus: each channel of a pixel.
///
/// # Errors
/// Whatever the score reports.
pub fn non_sensitivity(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    baseline: Baseline,
    epsilon: f64,
    mode: Mode,
) -> Result<Vec<f64>> {
    let shape = engine.shape();
    let (map, groups): (fn(&[f64], usize) -> Vec<f64>, Groups) = match mode {
        Mode::Quantus => (in_channels, Groups::blocks((0..shape.features() as u32).collect(), 1)),
        Mode::Reference => {
            let pixels = Groups::blocks((0..shape.pixels() as u32).collect(), 1);
            (|map, _| map.to_vec(), pixels.in_all_channels(shape.channels, shape.pixels()))
        }
    };
    let ends: Vec<Vec<f32>> = samples.iter().map(|sample| baseline.image(sample.image)).collect();
    let paths: Vec<Path<'_>> = samples
        .iter()
        .zip(&ends)
        .map(|(sample, end)| Path {
            sample: sample.index,
            start: sample.image,
            end,
            groups: &groups,
            change: Change::Independent,
        })
        .collect();
    let curves = engine.curves(&paths, Start::Included)?;
    Ok(samples
        .iter()
        .zip(&curves)
        .map(|(sample, curve)| {
            let map = map(sample.map, shape.channels);
            let disagree = map
                .iter()
                .zip(&curve[1..])
                .filter(|(value, score)| (value.abs() < epsilon) != ((*score - curve[0]).abs() < epsilon));
            disagree.count() as f64
        })
        .collect())
}

/// As [`non_sensitivity`] by patches, which costs as many forward passes as there are patches, and one: the
/// share of patches for which map and model disagree. A patch does not matter to the map if it has less than
/// `share` of the magnitudes, and to the model if its score changes by less than `drop` when the patch changes
/// to that of `ends[i]`.
///
/// # Errors
/// Whatever the score reports.
pub fn non_sensitivity_of_patches(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    patches: &Groups,
    ends: &[Vec<f32>],
    [share, drop]: [f64; 2],
) -> Result<Vec<Value>> {
    let shape = engine.shape();
    let groups = vec![patches.in_all_channels(shape.channels, shape.pixels()); samples.len()];
    let curves = engine.curves(&paths(samples, ends, &groups, Change::Independent), Start::Included)?;
    let disagreement = |(sample, curve): (&Sample<'_>, &Vec<f64>)| {
        let magnitudes = patches.sums(&Part::Absolute.of(sample.map));
        let total: f64 = magnitudes.iter().sum();
        if total <= 0.0 {
            return Err(Undefined::NoMass);
        }
        let disagree = magnitudes
            .iter()
            .zip(&curve[1..])
            .filter(|(mass, score)| (**mass / total < share) != ((*score - curve[0]).abs() < drop));
        Ok(disagree.count() as f64 / magnitudes.len() as f64)
    };
    Ok(samples.iter().zip(&curves).map(disagreement).collect())
}
