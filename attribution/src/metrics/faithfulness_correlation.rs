//! Faithfulness correlation (Bhatt, Weller and Moura 2020) and the paper's Sensitivity-n (Ancona et al.
//! 2018): random subsets of features are removed.

use pipe_models::random::Key;

use super::engine::{Change, Engine, Sample, Start, paths};
use super::faithfulness_estimate::drops;
use super::{Baseline, Groups, Undefined, Value, descending, in_channels, pearson};
use crate::Result;

/// `runs` random subsets of `size` of `features`, without replacement, a pure function of the key.
pub fn random_subsets(key: Key, runs: usize, size: usize, features: usize) -> Groups {
    Groups::new((0..runs).map(|run| {
        let order = key.sub(run as u64).permutation(features);
        order.into_iter().take(size).map(|feature| feature as u32)
    }))
}

/// Pearson's correlation, over the subsets of each sample, of the subset's attribution with the drop of
/// the score when it is removed. `subsets[i]` are those of sample i, indices into
/// `[channels, height, width]`; `ends[i]` is what they change to. One forward pass per subset, and one.
///
/// Sensitivity-n is the same figure for subsets of n features and ends of zeros.
///
/// # Errors
/// Whatever the score reports.
pub fn faithfulness_correlation(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    subsets: &[Groups],
    ends: &[Vec<f32>],
) -> Result<Vec<Value>> {
    let curves = engine.curves(&paths(samples, ends, subsets, Change::Independent), Start::Included)?;
    let sums = samples
        .iter()
        .zip(subsets)
        .map(|(sample, subsets)| subsets.sums(&in_channels(sample.map, engine.shape().channels)));
    Ok(sums.zip(&curves).map(|(sums, curve)| pearson(&sums, &drops(curve))).collect())
}

/// Sensitivity-n as Quantus has it: features are removed cumulatively in decreasing order, but the
/// attribution is that of the last group alone, and the correlation runs over the samples: one value per
/// step, up to the share `greatest` of the pixels.
///
/// # Errors
/// Whatever the score reports.
pub fn sensitivity_n_quantus(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    baseline: Baseline,
    per_step: usize,
    greatest: f64,
) -> Result<Vec<Value>> {
    let shape = engine.shape();
    let steps = (greatest * shape.pixels() as f64 / per_step.max(1) as f64).floor() as usize;
    let maps: Vec<Vec<f64>> = samples.iter().map(|sample| in_channels(sample.map, shape.channels)).collect();
    let groups: Vec<Groups> = maps
        .iter()
        .map(|map| {
            let mut order = descending(map);
            order.truncate(steps * per_step);
            Groups::blocks(order, per_step)
        })
        .collect();
    let ends: Vec<Vec<f32>> =
        samples.iter().zip(&groups).map(|(sample, groups)| baseline.drifting(sample.image, groups)).collect();
    let curves = engine.curves(&paths(samples, &ends, &groups, Change::Cumulative), Start::Included)?;
    let drops: Vec<Vec<f64>> = curves.iter().map(|curve| drops(curve)).collect();
    let sums: Vec<Vec<f64>> = maps.iter().zip(&groups).map(|(map, groups)| groups.sums(map)).collect();
    Ok((0..steps)
        .map(|step| {
            if samples.len() < 2 {
                return Err(Undefined::Refused(
                    "it correlates over the samples of a batch, and there is one",
                ));
            }
            let column = |rows: &[Vec<f64>]| -> Vec<f64> { rows.iter().map(|row| row[step]).collect() };
            pearson(&column(&drops), &column(&sums))
        })
        .collect())
}
