//! Occlusion (Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks").

use std::ops::Range;

use crate::baseline::Baseline;
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// How much the score falls when a window of the input is replaced by the baseline, with Captum's
/// semantics: windows stand at multiples of the stride along every axis until one reaches the end; that
/// one may overhang and is cut off at the border. A value's attribution is the mean of
/// `s(x) - s(x with the window replaced)` over the windows that cover it: positive where removing lowers
/// the score.
///
/// One forward pass per window and one for s(x); windows of several rows share batches. Where each
/// window spans all channels their attributions are equal, and one channel is given.
#[derive(Clone, Debug)]
pub struct Occlusion {
    /// The window's extent along each axis of a row: `[channels, height, width]`, or
    /// `[channels, depth, height, width]`.
    pub window: Vec<usize>,
    /// The distance between windows along each axis.
    pub strides: Vec<usize>,
    /// What stands in the window.
    pub baseline: Baseline,
}

impl Method for Occlusion {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let windows = Windows::new(inputs.row_shape(), &self.window, &self.strides)?;
        let baselines = self.baseline.of(inputs)?;
        let scores = evaluator.scores(inputs)?;
        let values = inputs.host()?;
        let (length, count) = (inputs.row_length(), windows.count());
        let map_shape = windows.map_shape();
        let map_length: usize = map_shape.iter().product();
        let mut sums = vec![0.0f64; inputs.rows() * map_length];
        evaluator.score_each(
            inputs.rows() * count,
            |pairs| {
                let mut occluded = Vec::with_capacity(pairs.len() * length);
                let mut samples = Vec::with_capacity(pairs.len());
                for pair in pairs {
                    let (row, window) = (pair / count, pair % count);
                    let start = occluded.len();
                    occluded.extend_from_slice(&values[row * length..(row + 1) * length]);
                    let baseline = baselines.row(row);
                    windows.for_each_run(window, &windows.shape, |run| {
                        occluded[start + run.start..start + run.end].copy_from_slice(&baseline[run]);
                    });
                    samples.push(inputs.samples()[row]);
                }
                inputs.rows_like(occluded, samples)
            },
            |pair, score| {
                let (row, window) = (pair / count, pair % count);
                let fall = f64::from(scores[row]) - f64::from(score);
                let sums = &mut sums[row * map_length..(row + 1) * map_length];
                windows.for_each_run(window, &map_shape, |run| {
                    sums[run].iter_mut().for_each(|sum| *sum += fall);
                });
            },
        )?;
        let mut covered = vec![0u32; map_length];
        for window in 0..count {
            windows.for_each_run(window, &map_shape, |run| {
                covered[run].iter_mut().for_each(|windows| *windows += 1);
            });
        }
        // Every value is covered: strides do not exceed windows, and the last window reaches the end.
        let means = sums.iter().enumerate().map(|(index, sum)| sum / f64::from(covered[index % map_length]));
        let means = means.map(|mean| mean as f32).collect();
        Ok(Attribution {
            values: inputs.tensor(means, &map_shape)?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        let windows = Windows::new(row_shape, &self.window, &self.strides)?;
        Ok(Passes { forward: windows.count() as u64 + 1, backward: 0 })
    }
}

/// Where windows stand on a row.
#[derive(Clone, Debug)]
struct Windows {
    shape: Vec<usize>,
    extent: Vec<usize>,
    strides: Vec<usize>,
    /// Windows along each axis.
    counts: Vec<usize>,
}

impl Windows {
    fn new(shape: &[usize], extent: &[usize], strides: &[usize]) -> Result<Self> {
        let wrong = |reason: String| Err(AttributionError::Settings(reason));
        if extent.len() != shape.len() || strides.len() != shape.len() {
            return wrong(format!(
                "a window {extent:?} with strides {strides:?} does not fit inputs of {shape:?}: they need \
                 equally many axes"
            ));
        }
        let mut counts = Vec::with_capacity(shape.len());
        for ((length, window), stride) in shape.iter().zip(extent).zip(strides) {
            if *window == 0 || window > length {
                return wrong(format!(
                    "the window {extent:?} has to lie within 1 and {shape:?} along each axis"
                ));
            }
            if *stride == 0 || (stride > window && window < length) {
                return wrong(format!(
                    "strides {strides:?} have to lie within 1 and the window {extent:?}, or parts stay uncovered"
                ));
            }
            counts.push((length - window).div_ceil(*stride) + 1);
        }
        Ok(Self { shape: shape.to_vec(), extent: extent.to_vec(), strides: strides.to_vec(), counts })
    }

    fn count(&self) -> usize {
        self.counts.iter().product()
    }

    /// The shape of a row's attribution: one channel where all windows span all channels.
    fn map_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.extent[0] == shape[0] {
            shape[0] = 1;
        }
        shape
    }

    /// The places of a window along each axis of `shape`, cut off at its border. The first axis runs
    /// fastest through the windows.
    fn place(&self, window: usize, shape: &[usize]) -> Vec<Range<usize>> {
        let mut rest = window;
        (0..shape.len())
            .map(|axis| {
                let start = rest % self.counts[axis] * self.strides[axis];
                rest /= self.counts[axis];
                start..(start + self.extent[axis]).min(shape[axis])
            })
            .collect()
    }

    /// Calls `visit` with each run of neighbouring values, in a row of `shape`, that a window covers.
    fn for_each_run(&self, window: usize, shape: &[usize], mut visit: impl FnMut(Range<usize>)) {
        let place = self.place(window, shape);
        let Some((last, outer)) = place.split_last() else { return };
        let runs: usize = outer.iter().map(ExactSizeIterator::len).product();
        for run in 0..runs {
            let (mut rest, mut start, mut stride) = (run, last.start, shape[outer.len()]);
            for (range, length) in outer.iter().zip(shape).rev() {
                start += (range.start + rest % range.len()) * stride;
                rest /= range.len();
                stride *= length;
            }
            visit(start..start + last.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Linear, Smooth, assert_close, host, normal, permuted};

    /// Occlusion in plain loops over every axis.
    fn naive(score: &dyn crate::Score, x: &Tensor, method: &Occlusion, baseline: f32) -> Vec<f32> {
        let shape = x.dims()[1..].to_vec();
        let evaluator = Evaluator::new(score, 1);
        let rows = x.dims()[0];
        let mut all = Vec::new();
        for row in 0..rows {
            let one = x.narrow(0, row, 1).unwrap();
            let s = |values: Vec<f32>| {
                let tensor = Tensor::from_vec(values, one.shape(), one.device()).unwrap();
                evaluator.scores(&Inputs::of_samples(&tensor, vec![row]).unwrap()).unwrap()[0]
            };
            let values = host(&one);
            let full = s(values.clone());
            let (mut sum, mut cover) = (vec![0.0; values.len()], vec![0.0; values.len()]);
            let mut starts = vec![vec![]];
            for ((length, window), stride) in shape.iter().zip(&method.window).zip(&method.strides) {
                let mut positions = vec![0];
                while positions.last().unwrap() + window < *length {
                    positions.push(positions.last().unwrap() + stride);
                }
                starts = starts
                    .iter()
                    .flat_map(|start: &Vec<usize>| {
                        positions.iter().map(move |position| [start.clone(), vec![*position]].concat())
                    })
                    .collect();
            }
            for start in starts {
                let inside: Vec<usize> = (0..values.len())
                    .filter(|index| {
                        let mut rest = *index;
                        (0..shape.len()).rev().all(|axis| {
                            let place = rest % shape[axis];
                            rest /= shape[axis];
                            place >= start[axis] && place < start[axis] + method.window[axis]
                        })
                    })
                    .collect();
                let mut occluded = values.clone();
                inside.iter().for_each(|index| occluded[*index] = baseline);
                let fall = full - s(occluded);
                for index in inside {
                    sum[index] += fall;
                    cover[index] += 1.0;
                }
            }
            all.extend(sum.iter().zip(cover).map(|(sum, cover)| sum / cover));
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn random_windows_agree_with_plain_loops(
            axes in prop::collection::vec((1usize..6, 0usize..6, 0usize..6), 2..=4),
            rows in 1usize..3,
            batch in 1usize..9,
        ) {
            let shape: Vec<usize> = axes.iter().map(|axis| axis.0).collect();
            let window: Vec<usize> = axes.iter().map(|axis| axis.1 % axis.0 + 1).collect();
            let strides: Vec<usize> = axes.iter().zip(&window).map(|(axis, window)| axis.2 % window + 1).collect();
            let score = Smooth::new(3, &shape);
            let x = normal(4, &[vec![rows], shape.clone()].concat());
            let method = Occlusion { window, strides, baseline: Baseline::Constant(0.5) };
            let attribution = method.attribute(&Evaluator::new(&score, batch), &Inputs::new(&x).unwrap()).unwrap();
            let full = attribution.values.broadcast_as(x.shape()).unwrap();
            let expected = naive(&score, &x, &method, 0.5);
            for (ours, expected) in host(&full).iter().zip(&expected) {
                prop_assert!((ours - expected).abs() < 1e-4, "{ours} {expected} {method:?}");
            }
        }
    }

    #[test]
    fn windows_of_one_value_on_a_linear_score_give_weight_times_input() {
        let score = Linear::new(1, &[2, 3, 4]);
        let x = normal(2, &[2, 2, 3, 4]);
        let method = Occlusion { window: vec![1, 1, 1], strides: vec![1, 1, 1], baseline: Baseline::Zero };
        let evaluator = Evaluator::new(&score, 7);
        let attribution = method.attribute(&evaluator, &Inputs::new(&x).unwrap()).unwrap();
        for (index, value) in host(&attribution.values).iter().enumerate() {
            assert!((value - host(&x)[index] * score.weight[index % 24]).abs() < 1e-5);
        }
        assert_eq!(evaluator.passes().forward, 2 * 25);
        assert_eq!(evaluator.passes().backward, 0);
    }

    #[test]
    fn permuted_rows_give_permuted_maps() {
        let score = Smooth::new(7, &[3, 4, 4]);
        let x = normal(8, &[3, 3, 4, 4]);
        let method = Occlusion {
            window: vec![3, 3, 2],
            strides: vec![3, 2, 1],
            baseline: Baseline::Tensor(normal(9, &[3, 3, 4, 4])),
        };
        let reference = method.attribute(&Evaluator::new(&score, 5), &Inputs::new(&x).unwrap()).unwrap();
        assert_eq!(reference.values.dims(), [3, 1, 4, 4]);
        let order = [2, 0, 1];
        let inputs = Inputs::of_samples(&permuted(&x, &order), order.to_vec()).unwrap();
        let other = method.attribute(&Evaluator::new(&score, 64), &inputs).unwrap();
        assert_close(&other.values, &permuted(&reference.values, &order), 1e-6);
    }

    #[test]
    fn windows_that_do_not_fit_are_errors() {
        let score = Linear::new(1, &[2, 3, 4]);
        let inputs = Inputs::new(&normal(2, &[1, 2, 3, 4])).unwrap();
        for (window, strides) in [
            (vec![2, 3], vec![2, 3]),
            (vec![2, 4, 4], vec![2, 1, 1]),
            (vec![2, 0, 1], vec![2, 1, 1]),
            (vec![2, 1, 1], vec![2, 2, 1]),
            (vec![2, 1, 1], vec![2, 1, 0]),
        ] {
            let method = Occlusion { window, strides, baseline: Baseline::Zero };
            let result = method.attribute(&Evaluator::new(&score, 8), &inputs);
            assert!(matches!(result, Err(AttributionError::Settings(_))), "{method:?}");
        }
    }
}
