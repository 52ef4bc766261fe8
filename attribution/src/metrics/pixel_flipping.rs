//! Pixel flipping (Bach et al. 2015), most or least relevant first, and the area between both curves
//! (Blücher et al. 2024).

use super::deletion::Curves;
use super::engine::{Change, Engine, Sample, Start, paths};
use super::{Baseline, Groups, ascending, descending, in_channels};
use crate::Result;

/// Which features change first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The score of a faithful map falls early.
    MostRelevantFirst,
    /// The score of a faithful map holds long.
    LeastRelevantFirst,
}

impl Order {
    /// The indices of `values` in this order, stable.
    pub fn of(self, values: &[f64]) -> Vec<u32> {
        match self {
            Self::MostRelevantFirst => descending(values),
            Self::LeastRelevantFirst => ascending(values),
        }
    }
}

/// From the image to `ends[i]`, `per_step` pixels at a time, all channels of a pixel together. The curve
/// begins with the unchanged image; [`super::area`] of it lies in [0, 1] for a probability.
///
/// # Errors
/// Whatever the score reports.
pub fn pixel_flipping(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    ends: &[Vec<f32>],
    per_step: usize,
    order: Order,
) -> Result<Curves> {
    let shape = engine.shape();
    let groups: Vec<Groups> = samples
        .iter()
        .map(|sample| {
            Groups::blocks(order.of(sample.map), per_step).in_all_channels(shape.channels, shape.pixels())
        })
        .collect();
    engine.curves(&paths(samples, ends, &groups, Change::Cumulative), Start::Included)
}

/// As Quantus has it: each channel of a pixel is a feature, `per_step` features at a time, the baseline
/// taken again at each step, and the curve without the unchanged image.
///
/// # Errors
/// Whatever the score reports.
pub fn pixel_flipping_quantus(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    baseline: Baseline,
    per_step: usize,
) -> Result<Curves> {
    let groups: Vec<Groups> = samples
        .iter()
        .map(|sample| Groups::blocks(descending(&in_channels(sample.map, engine.shape().channels)), per_step))
        .collect();
    let ends: Vec<Vec<f32>> =
        samples.iter().zip(&groups).map(|(sample, groups)| baseline.drifting(sample.image, groups)).collect();
    engine.curves(&paths(samples, &ends, &groups, Change::Cumulative), Start::LeftOut)
}

/// The area under a curve by trapezoids of width 1, as Quantus gives it: it grows with the number of
/// steps.
pub fn trapezoid(curve: &[f64]) -> f64 {
    curve.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).sum()
}
