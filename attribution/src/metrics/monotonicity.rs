//! Monotonicity (Arya et al. 2019; Nguyen and Martinez 2020).

use super::engine::{Change, Engine, Path, Sample, Start, images, paths};
use super::{Curves, Groups, Undefined, Value, ascending, in_channels, spearman};
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

/// As Quantus has it: Spearman's correlation, over groups of `per_step` features, of the group's magnitude with the
/// mean squared change of the score when the group alone takes other values, relative to the squared score. Several
/// samples of which one has a score below `epsilon` raise an error there; one alone is not related to its score then.
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
    let (maps, groups): (Vec<Vec<f64>>, Vec<Groups>) =
        samples.iter().map(|sample| by_magnitude(engine, sample, per_step)).unzip();
    if let Some(groups) = groups.iter().find(|groups| values.len() != groups.len()) {
        let reason = format!("values for {} groups are given; there are {}", values.len(), groups.len());
        return Err(AttributionError::Settings(reason));
    }
    let scores = engine.plain(&images(samples))?;
    if samples.len() > 1 && scores.iter().any(|score| score.abs() < epsilon) {
        let refused = Undefined::Refused("the score of a sample of the batch is nearly 0");
        return Ok(vec![Err(refused); samples.len()]);
    }
    let draws = values.first().map_or(0, Vec::len);
    let each = values.len() * draws;
    let rows: Vec<usize> = samples.iter().flat_map(|sample| vec![sample.index; each]).collect();
    let changed = engine.scores(&rows, |row, image| {
        let (place, group, draw) = (row / each, row % each / draws, row % draws);
        image.copy_from_slice(samples[place].image);
        for feature in groups[place].group(group) {
            image[*feature as usize] = values[group][draw][place];
        }
    })?;
    let correlation = |(place, changed): (usize, &[f64])| {
        let (score, scale) = (scores[place], scale(scores[place], epsilon));
        let variances: Vec<f64> = changed
            .chunks(draws.max(1))
            .map(|draws| {
                scale * draws.iter().map(|value| (value - score).powi(2)).sum::<f64>() / draws.len() as f64
            })
            .collect();
        spearman(&groups[place].sums(&maps[place]), &variances)
    };
    Ok(changed.chunks(each.max(1)).enumerate().map(correlation).collect())
}

/// What squared changes of a score are multiplied by.
fn scale(score: f64, epsilon: f64) -> f64 {
    if score.abs() >= epsilon { 1.0 / (score * score) } else { 1.0 }
}

/// The same of any score, where each group changes to that of `ends[i]`, which takes one draw: relative to the squared
/// score where that is at least `epsilon`.
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

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::super::engine::tests::Linear;
    use super::*;
    use crate::Evaluator;

    #[test]
    fn quantus_refuses_a_batch_with_a_score_of_nearly_nothing() {
        let score = Linear(vec![1.0, 2.0, 4.0]);
        let evaluator = Evaluator::new(&score, 2);
        let engine = Engine::new(&evaluator, Shape::flat(1, 1, 3));
        let (bright, dark) = ([1.0f32; 3], [0.0f32; 3]);
        let map = [0.1, -0.2, 0.4];
        let sample = |image| Sample { index: 0, image, map: &map };
        let of = |samples: &[Sample<'_>]| {
            let values = vec![vec![vec![0.5; samples.len()]; 2]; 3];
            monotonicity_correlation(&engine, samples, &values, 1, 1e-5).unwrap()
        };
        let both = of(&[sample(&bright), sample(&dark)]);
        assert!(both.iter().all(|value| matches!(value, Err(Undefined::Refused(_)))), "{both:?}");
        for value in of(&[sample(&bright), sample(&bright)]).into_iter().chain(of(&[sample(&dark)])) {
            assert!((value.unwrap() - 1.0).abs() < 1e-12);
        }
    }
}
