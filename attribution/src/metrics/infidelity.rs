//! Infidelity (Yeh et al. 2019): the squared error of the map's prediction of what a change costs.

use super::engine::{Change, Engine, Sample, Start, images, paths};
use super::faithfulness_estimate::drops;
use super::{Baseline, Groups, Undefined, Value, in_channels};
use crate::Result;

/// How a map predicts the cost of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prediction {
    /// The map is like a gradient: the change times the map, over all channels.
    Local,
    /// The map contains the factor input already (Input x Gradient, Integrated Gradients, occlusion): its
    /// sum over the changed pixels.
    Global,
}

/// The mean squared error of `predicted` against `drops`; `scaled` multiplies the predictions by the
/// factor E[predicted drop] / E[predicted^2] first, so that the scale of a map is no error.
pub fn squared_error(predicted: &[f64], drops: &[f64], scaled: bool) -> f64 {
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / predicted.len() as f64;
    let squares = mean(&mut predicted.iter().map(|value| value * value));
    let factor = match scaled && squares > 0.0 {
        true => mean(&mut predicted.iter().zip(drops).map(|(value, drop)| value * drop)) / squares,
        false => 1.0,
    };
    mean(&mut predicted.iter().zip(drops).map(|(value, drop)| (factor * value - drop).powi(2)))
}

/// Predicted and measured drops of one sample.
#[derive(Clone, PartialEq, Debug)]
pub struct Drops {
    /// What the map says.
    pub predicted: Vec<f64>,
    /// What the model says.
    pub measured: Vec<f64>,
}

impl Drops {
    /// The infidelity, see [`squared_error`].
    pub fn infidelity(&self, scaled: bool) -> f64 {
        squared_error(&self.predicted, &self.measured, scaled)
    }
}

/// Each of the patches changed to that of `ends[i]` alone.
///
/// # Errors
/// Whatever the score reports.
pub fn infidelity_of_patches(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    patches: &Groups,
    ends: &[Vec<f32>],
    prediction: Prediction,
) -> Result<Vec<Drops>> {
    let shape = engine.shape();
    let features = patches.in_all_channels(shape.channels, shape.pixels());
    let groups = vec![features; samples.len()];
    let curves = engine.curves(&paths(samples, ends, &groups, Change::Independent), Start::Included)?;
    Ok(samples
        .iter()
        .zip(ends)
        .zip(&curves)
        .map(|((sample, end), curve)| {
            let predicted = match prediction {
                Prediction::Global => patches.sums(sample.map),
                Prediction::Local => {
                    let map = in_channels(sample.map, shape.channels);
                    groups[0].sums(&change_times_map(sample.image, end, &map))
                }
            };
            Drops { predicted, measured: drops(curve) }
        })
        .collect())
}

fn change_times_map(image: &[f32], changed: &[f32], map: &[f64]) -> Vec<f64> {
    image.iter().zip(changed).zip(map).map(|((from, to), map)| map * f64::from(from - to)).collect()
}

/// Any changes: `changed[i]` are the changed images of sample i.
///
/// # Errors
/// Whatever the score reports.
pub fn infidelity_of_changes(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    changed: &[Vec<&[f32]>],
) -> Result<Vec<Drops>> {
    let scores = engine.plain(&images(samples))?;
    let all: Vec<(usize, &[f32])> = samples
        .iter()
        .zip(changed)
        .flat_map(|(sample, images)| images.iter().map(|image| (sample.index, *image)))
        .collect();
    let mut after = engine.plain(&all)?.into_iter();
    Ok(samples
        .iter()
        .zip(changed)
        .zip(scores)
        .map(|((sample, images), score)| {
            let map = in_channels(sample.map, engine.shape().channels);
            let predicted = images
                .iter()
                .map(|changed| change_times_map(sample.image, changed, &map).iter().sum())
                .collect();
            let measured = after.by_ref().take(images.len()).map(|after| score - after).collect();
            Drops { predicted, measured }
        })
        .collect())
}

/// As Quantus has it: patches of each side are set to the baseline row by row and never reset.
///
/// # Errors
/// Whatever the score reports.
pub fn infidelity_quantus(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    sides: &[usize],
    baseline: Baseline,
) -> Result<Vec<Value>> {
    let shape = engine.shape();
    let divides =
        |side: usize| side > 0 && shape.height.is_multiple_of(side) && shape.width.is_multiple_of(side);
    if !sides.iter().all(|side| divides(*side)) {
        let refused = Undefined::Refused("the side of a patch has to divide the image");
        return Ok(vec![Err(refused); samples.len()]);
    }
    let mut totals = vec![0.0; samples.len()];
    for side in sides {
        let patches = super::patches(shape, *side).in_all_channels(shape.channels, shape.pixels());
        let groups = vec![patches; samples.len()];
        let ends: Vec<Vec<f32>> =
            samples.iter().map(|sample| baseline.drifting(sample.image, &groups[0])).collect();
        let curves = engine.curves(&paths(samples, &ends, &groups, Change::Cumulative), Start::Included)?;
        for (index, (sample, curve)) in samples.iter().zip(&curves).enumerate() {
            let map = in_channels(sample.map, shape.channels);
            let predicted = groups[0].sums(&change_times_map(sample.image, &ends[index], &map));
            let predicted: Vec<f64> = predicted
                .iter()
                .scan(0.0, |sum, value| {
                    *sum += value;
                    Some(*sum)
                })
                .collect();
            totals[index] += squared_error(&predicted, &drops(curve), false);
        }
    }
    Ok(totals.into_iter().map(|total| Ok(total / sides.len() as f64)).collect())
}
