//! Occlusion as Rao, Boehle and Schiele (2022) evaluate it: falls of the score per area.

use std::ops::Range;

use crate::baseline::Baseline;
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// The fall of the score when a window over all channels is replaced by the baseline, divided by the number
/// of its places and summed over the windows that cover a place. Windows are centred on every `stride`-th
/// place; at the border only their visible part counts. Where [`crate::Occlusion`] averages falls, this adds
/// up densities: the map sums to the sum of all falls. One forward pass per window, and one for s(x).
#[derive(Clone, Debug)]
pub struct OcclusionDensity {
    /// Places of a window along every axis.
    pub side: usize,
    /// Places between windows.
    pub stride: usize,
    /// What a window is replaced by.
    pub baseline: Baseline,
}

impl OcclusionDensity {
    /// The windows along each axis.
    fn windows(&self, row_shape: &[usize]) -> Result<Vec<Vec<Range<usize>>>> {
        let places = row_shape.get(1..).unwrap_or_default();
        if self.side == 0 || self.stride == 0 || self.stride > self.side || places.is_empty() {
            return Err(AttributionError::Settings(format!(
                "windows of {} that stand {} apart do not cover inputs of {row_shape:?}",
                self.side, self.stride
            )));
        }
        let before = self.side / 2;
        let along = |length: &usize| {
            let centres =
                (0..).map(|index| index * self.stride).take_while(|centre| *centre < length + before);
            centres
                .map(|centre| centre.saturating_sub(before)..(centre + self.side - before).min(*length))
                .collect()
        };
        Ok(places.iter().map(along).collect())
    }

    /// The places of a window, flat.
    fn places(windows: &[Vec<Range<usize>>], shape: &[usize], window: usize) -> Vec<usize> {
        let mut places = vec![0];
        let mut inner: usize = windows.iter().map(Vec::len).product();
        for (along, length) in windows.iter().zip(shape) {
            inner /= along.len();
            let range = &along[window / inner % along.len()];
            places =
                places.iter().flat_map(|place| range.clone().map(move |at| place * length + at)).collect();
        }
        places
    }
}

impl Method for OcclusionDensity {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let (shape, windows) = (&inputs.row_shape()[1..], self.windows(inputs.row_shape())?);
        let count: usize = windows.iter().map(Vec::len).product();
        let places: Vec<Vec<usize>> =
            (0..count).map(|window| Self::places(&windows, shape, window)).collect();
        let (plane, length) = (shape.iter().product::<usize>(), inputs.row_length());
        let (values, baselines) = (inputs.host()?, self.baseline.of(inputs)?);
        let scores = evaluator.scores(inputs)?;
        let mut sums = vec![0.0f64; inputs.rows() * plane];
        evaluator.score_each(
            inputs.rows() * count,
            |pairs| {
                let mut occluded = Vec::with_capacity(pairs.len() * length);
                let mut samples = Vec::with_capacity(pairs.len());
                for pair in pairs {
                    let (row, start) = (pair / count, occluded.len());
                    occluded.extend_from_slice(&values[row * length..(row + 1) * length]);
                    for channel in (0..length).step_by(plane) {
                        for place in &places[pair % count] {
                            occluded[start + channel + place] = baselines.row(row)[channel + place];
                        }
                    }
                    samples.push(inputs.samples()[row]);
                }
                inputs.rows_like(occluded, samples)
            },
            |pair, score| {
                let (row, places) = (pair / count, &places[pair % count]);
                let density = (f64::from(scores[row]) - f64::from(score)) / places.len() as f64;
                places.iter().for_each(|place| sums[row * plane + place] += density);
            },
        )?;
        let sums = sums.into_iter().map(|sum| sum as f32).collect();
        let map_shape: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
        Ok(Attribution {
            values: inputs.tensor(sums, &map_shape)?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        let windows: usize = self.windows(row_shape)?.iter().map(Vec::len).product();
        Ok(Passes { forward: 1 + windows as u64, backward: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Linear, host, normal};

    #[test]
    fn windows_are_centred_and_cut_at_the_border() {
        let method = OcclusionDensity { side: 4, stride: 2, baseline: Baseline::Zero };
        let windows = method.windows(&[3, 5]).unwrap();
        assert_eq!(windows, [vec![0..2, 0..4, 2..5, 4..5]]);
        let odd = OcclusionDensity { side: 3, stride: 3, baseline: Baseline::Zero };
        assert_eq!(odd.windows(&[1, 5]).unwrap(), [vec![0..2, 2..5]]);
        assert!(OcclusionDensity { side: 2, stride: 3, baseline: Baseline::Zero }.cost(&[1, 5]).is_err());
    }

    #[test]
    fn maps_sum_to_the_sum_of_falls() {
        let score = Linear::new(1, &[2, 4, 5]);
        let x = normal(2, &[3, 2, 4, 5]);
        let inputs = Inputs::new(&x).unwrap();
        let method = OcclusionDensity { side: 3, stride: 2, baseline: Baseline::Zero };
        let evaluator = Evaluator::new(&score, 7);
        let map = host(&method.attribute(&evaluator, &inputs).unwrap().values);
        assert_eq!(evaluator.passes().forward, 3 * method.cost(&[2, 4, 5]).unwrap().forward);
        let windows = method.windows(&[2, 4, 5]).unwrap();
        let x = host(&x);
        for (row, map) in map.chunks_exact(20).enumerate() {
            let falls: f64 = (0..windows[0].len() * windows[1].len())
                .flat_map(|window| OcclusionDensity::places(&windows, &[4, 5], window))
                .map(|place| {
                    let value = |channel: usize| {
                        x[row * 40 + channel * 20 + place] * score.weight[channel * 20 + place]
                    };
                    f64::from(value(0) + value(1))
                })
                .sum();
            let total: f64 = map.iter().map(|value| f64::from(*value)).sum();
            assert!((total - falls).abs() < 1e-4, "{total} {falls}");
        }
    }
}
