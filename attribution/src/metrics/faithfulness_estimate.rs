//! Faithfulness estimate (Alvarez-Melis and Jaakkola 2018): does removing a group of features alone
//! change the score as much as the map says?

use super::engine::{Change, Engine, Sample, Start, paths};
use super::{Groups, Similarity, Value, descending, in_channels};
use crate::Result;

/// The correlation, over groups of `per_step` features in decreasing order of the map, of the group's
/// attribution with the drop of the score when only this group changes to that of `ends[i]`.
///
/// # Errors
/// Whatever the score reports.
pub fn faithfulness_estimate(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    ends: &[Vec<f32>],
    per_step: usize,
    similarity: Similarity,
) -> Result<Vec<Value>> {
    let maps: Vec<Vec<f64>> =
        samples.iter().map(|sample| in_channels(sample.map, engine.shape().channels)).collect();
    let groups: Vec<Groups> = maps.iter().map(|map| Groups::blocks(descending(map), per_step)).collect();
    let curves = engine.curves(&paths(samples, ends, &groups, Change::Independent), Start::Included)?;
    Ok(curves
        .iter()
        .zip(maps.iter().zip(&groups))
        .map(|(curve, (map, groups))| similarity.of(&groups.sums(map), &drops(curve)))
        .collect())
}

/// What is lost against the first value of a curve, at each later one.
pub(super) fn drops(curve: &[f64]) -> Vec<f64> {
    curve.iter().skip(1).map(|value| curve[0] - value).collect()
}
