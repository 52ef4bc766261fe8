//! Meaningful perturbation (Fong and Vedaldi 2017, "Interpretable Explanations of Black Boxes by Meaningful
//! Perturbation"): the smallest region without which the score is gone, found by gradient descent.

use pipe_models::random::Key;

use crate::baseline::Baseline;
use crate::blur::gaussian_blur;
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// Keeps the slope of a root from infinity.
const LEAST_SQUARE: f64 = 1e-20;
/// Adam's decays and what keeps its denominator from zero.
const DECAYS: [f64; 2] = [0.9, 0.999];
const ADAM_EPSILON: f64 = 1e-8;
/// Distance of the radii that are tried, and the greatest, for an image of 224.
const RADII: [usize; 2] = [5, 170];
/// The share of the fall of the score that the smallest disc has to reach.
const FALL: f64 = 0.99;

/// Where the mask starts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum MaskStart {
    /// This value everywhere.
    Constant(f32),
    /// One, without the smallest disc in the middle that takes 99 % of the score away which replacing
    /// everything takes. A forward pass per radius tried.
    Circle,
}

/// A mask in \[0, 1\] for each row, 1 where the input is kept, that minimises `s(x_m) + l1 sum (1 - m) + tv
/// sum |grad m|^beta`, where `x_m = m x + (1 - m) x0` and x0 is a blurred input: what the mask deletes is
/// the evidence. The map is 1 - m. The paper's score is a probability; give one that is.
///
/// The mask has a value per square of `cell` pixels, enlarged to the nearest and blurred; as in the
/// authors' code the blur has no part in the gradient. By Adam, clamped after each step; not convex, and the
/// losses of each step are given ([`Self::optimise`]). `steps` forward and backward passes per row, one
/// forward pass for s(x), and those of the start.
#[derive(Clone, Debug)]
pub struct MeaningfulPerturbation {
    /// Pixels of the input per value of the mask, along every axis.
    pub cell: usize,
    /// The deviation of the blur of the enlarged mask, in pixels; none without.
    pub mask_blur: Option<f64>,
    /// What deleted pixels are replaced by: x0.
    pub baseline: Baseline,
    /// Steps of descent.
    pub steps: usize,
    /// Of Adam.
    pub learning_rate: f64,
    /// The price of deleting a value of the mask.
    pub l1: f64,
    /// The price of its total variation.
    pub total_variation: f64,
    /// The power of the length of its gradient.
    pub beta: f64,
    /// Pixels that input and x0 are shifted by at most, at random in each step.
    pub jitter: usize,
    /// Decide the shifts, one key per sample; unused without jitter.
    pub keys: Vec<Key>,
    /// Where the mask starts.
    pub start: MaskStart,
}

impl MeaningfulPerturbation {
    /// The settings of the paper's code for images of `side` pixels, in proportion to its 224: cells of 8,
    /// blurs of 5 and 10, 300 steps.
    pub fn new(side: usize, keys: Vec<Key>) -> Self {
        let scaled = |pixels: f64| pixels * side as f64 / 224.0;
        Self {
            cell: (scaled(8.0).round() as usize).max(1),
            mask_blur: Some(scaled(5.0)),
            baseline: Baseline::Blur(scaled(10.0)),
            steps: 300,
            learning_rate: 0.1,
            l1: 1e-4,
            total_variation: 1e-2,
            beta: 3.0,
            jitter: scaled(4.0).round() as usize,
            keys,
            start: MaskStart::Circle,
        }
    }

    fn grid(&self, row_shape: &[usize]) -> Result<Grid> {
        if self.cell == 0 || self.steps == 0 || row_shape.len() < 2 {
            return Err(AttributionError::Settings(format!(
                "{} steps with cells of {} pixels do not fit inputs of {row_shape:?}",
                self.steps, self.cell
            )));
        }
        let places = row_shape[1..].to_vec();
        Ok(Grid {
            cells: places.iter().map(|length| length.div_ceil(self.cell)).collect(),
            places,
            cell: self.cell,
        })
    }

    /// The masks after `steps` steps with the loss before each of them; `watch` sees the number of steps
    /// done and the masks `[rows, cells...]`, first those of the start.
    ///
    /// # Errors
    /// As [`Method::attribute`].
    pub fn optimise(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
        mut watch: impl FnMut(usize, &[f32]),
    ) -> Result<OptimisedMasks> {
        let grid = self.grid(inputs.row_shape())?;
        let unkeyed = inputs.samples().iter().find(|sample| **sample >= self.keys.len());
        if let Some(sample) = unkeyed.filter(|_| self.jitter > 0) {
            return Err(AttributionError::Settings(format!("sample {sample} has no key for its jitter")));
        }
        let baselines = self.baseline.of(inputs)?;
        let values = inputs.host()?;
        let (rows, length, count, plane) = (inputs.rows(), inputs.row_length(), grid.count(), grid.plane());
        let mut masks = self.started(evaluator, inputs, &grid, &values)?;
        let mut losses = vec![Vec::with_capacity(self.steps); rows];
        let mut state = vec![[0.0f64; 2]; rows * count];
        watch(0, &masks);
        for step in 0..self.steps {
            let seen: Vec<Vec<f32>> =
                masks.chunks_exact(count).map(|mask| self.seen(mask, &grid)).collect::<Result<_>>()?;
            let shifted = |row: usize| {
                let x = &values[row * length..(row + 1) * length];
                let shift = self.shift(step, inputs.samples()[row], grid.places.len());
                [grid.shifted(x, &shift), grid.shifted(baselines.row(row), &shift)]
            };
            let mut gradients = vec![0.0f64; rows * count];
            evaluator.gradient_each(
                rows,
                |range| {
                    let mut masked = Vec::with_capacity(range.len() * length);
                    let samples = inputs.samples()[range.clone()].to_vec();
                    for row in range {
                        let [x, baseline] = shifted(row);
                        masked.extend(x.iter().zip(&baseline).enumerate().map(|(index, (x, baseline))| {
                            let kept = seen[row][index % plane];
                            kept * x + (1.0 - kept) * baseline
                        }));
                    }
                    inputs.rows_like(masked, samples)
                },
                |row, score, gradient| {
                    let [x, baseline] = shifted(row);
                    let of_mask = &mut gradients[row * count..(row + 1) * count];
                    for (index, ((x, baseline), gradient)) in
                        x.iter().zip(&baseline).zip(gradient).enumerate()
                    {
                        of_mask[grid.cell_of(index % plane)] +=
                            f64::from(*gradient) * f64::from(x - baseline);
                    }
                    let mask = &masks[row * count..(row + 1) * count];
                    losses[row].push((f64::from(score) + self.price(mask, &grid, of_mask)) as f32);
                },
            )?;
            let corrections = DECAYS.map(|decay| 1.0 - libm::pow(decay, (step + 1) as f64));
            for ((mask, gradient), [mean, square]) in masks.iter_mut().zip(&gradients).zip(&mut state) {
                *mean = DECAYS[0] * *mean + (1.0 - DECAYS[0]) * gradient;
                *square = DECAYS[1] * *square + (1.0 - DECAYS[1]) * gradient * gradient;
                let length = (*square / corrections[1]).sqrt() + ADAM_EPSILON;
                let moved = f64::from(*mask) - self.learning_rate * (*mean / corrections[0]) / length;
                *mask = moved.clamp(0.0, 1.0) as f32;
            }
            watch(step + 1, &masks);
        }
        Ok(OptimisedMasks { masks, grid: grid.cells, losses })
    }

    /// The mask as the input sees it: enlarged and blurred.
    fn seen(&self, mask: &[f32], grid: &Grid) -> Result<Vec<f32>> {
        let enlarged: Vec<f32> = (0..grid.plane()).map(|place| mask[grid.cell_of(place)]).collect();
        match self.mask_blur {
            None => Ok(enlarged),
            Some(sigma) => gaussian_blur(&enlarged, &[&[1], grid.places.as_slice()].concat(), sigma),
        }
    }

    /// The price of a mask, whose gradient is added to `gradient`.
    fn price(&self, mask: &[f32], grid: &Grid, gradient: &mut [f64]) -> f64 {
        let mut price = 0.0;
        for (cell, gradient) in gradient.iter_mut().enumerate() {
            let deleted = 1.0 - f64::from(mask[cell]);
            price += self.l1 * deleted.abs();
            *gradient -= if deleted == 0.0 { 0.0 } else { self.l1 * deleted.signum() };
        }
        let strides = grid.strides();
        for cell in 0..mask.len() {
            // Differences to the next cell along each axis; none behind the last.
            let differences: Vec<(usize, f64)> = strides
                .iter()
                .zip(&grid.cells)
                .filter(|(stride, length)| cell / *stride % *length + 1 < **length)
                .map(|(stride, _)| (cell + stride, f64::from(mask[cell + stride]) - f64::from(mask[cell])))
                .collect();
            let square: f64 = differences.iter().map(|(_, difference)| difference * difference).sum();
            let length = (square + LEAST_SQUARE).sqrt();
            price += self.total_variation * libm::pow(length, self.beta);
            let slope = self.total_variation * self.beta * libm::pow(length, self.beta - 2.0);
            for (next, difference) in differences {
                gradient[next] += slope * difference;
                gradient[cell] -= slope * difference;
            }
        }
        price
    }

    /// The offset along each axis in a step, from minus to plus `jitter`.
    fn shift(&self, step: usize, sample: usize, axes: usize) -> Vec<i64> {
        let key = match self.keys.get(sample) {
            Some(key) if self.jitter > 0 => key.sub(step as u64 + 1),
            _ => return vec![0; axes],
        };
        let range = 2 * self.jitter as u64 + 1;
        (1..=axes as u64).map(|axis| key.below(axis, range) as i64 - self.jitter as i64).collect()
    }

    /// The masks that the descent starts from.
    fn started(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
        grid: &Grid,
        values: &[f32],
    ) -> Result<Vec<f32>> {
        let (rows, length, plane) = (inputs.rows(), inputs.row_length(), grid.plane());
        if let MaskStart::Constant(value) = self.start {
            return Ok(vec![value; rows * grid.count()]);
        }
        let longest = grid.places.iter().copied().max().unwrap_or(1);
        let radii = (0..=RADII[1] / RADII[0]).map(|index| (index * RADII[0] * longest) as f64 / 224.0);
        let discs: Vec<Vec<f32>> = radii.map(|radius| grid.without_disc(radius)).collect();
        let mut seen: Vec<Vec<f32>> =
            discs.iter().map(|mask| self.seen(mask, grid)).collect::<Result<_>>()?;
        // What everything replaced takes away is the fall that discs are measured by.
        seen.push(vec![0.0; plane]);
        let baselines = self.baseline.of(inputs)?;
        let mut scores = Vec::with_capacity(rows * seen.len());
        evaluator.score_each(
            rows * seen.len(),
            |pairs| {
                let mut masked = Vec::with_capacity(pairs.len() * length);
                let mut samples = Vec::with_capacity(pairs.len());
                for pair in pairs {
                    let (row, mask) = (pair / seen.len(), &seen[pair % seen.len()]);
                    let x = &values[row * length..(row + 1) * length];
                    masked.extend(x.iter().zip(baselines.row(row)).enumerate().map(
                        |(index, (x, baseline))| {
                            let kept = mask[index % plane];
                            kept * x + (1.0 - kept) * baseline
                        },
                    ));
                    samples.push(inputs.samples()[row]);
                }
                inputs.rows_like(masked, samples)
            },
            |_, score| scores.push(score),
        )?;
        // The first disc has no radius: nothing is replaced.
        let chosen = scores.chunks_exact(seen.len()).flat_map(|scores| {
            let fall = scores[0] - scores[discs.len()];
            let enough = |score: &f32| f64::from(scores[0] - score) >= FALL * f64::from(fall);
            let disc = scores[..discs.len()].iter().position(enough).unwrap_or(discs.len() - 1);
            discs[disc].iter().copied()
        });
        Ok(chosen.collect())
    }
}

/// What the descent found.
#[derive(Clone, Debug)]
pub struct OptimisedMasks {
    /// `[rows, cells...]`, 1 where the input is kept.
    pub masks: Vec<f32>,
    /// Cells along each axis.
    pub grid: Vec<usize>,
    /// The loss of each row before each step.
    pub losses: Vec<Vec<f32>>,
}

/// How a mask lies on an input.
struct Grid {
    places: Vec<usize>,
    cells: Vec<usize>,
    cell: usize,
}

impl Grid {
    fn count(&self) -> usize {
        self.cells.iter().product()
    }

    fn plane(&self) -> usize {
        self.places.iter().product()
    }

    /// Steps between neighbouring cells along each axis.
    fn strides(&self) -> Vec<usize> {
        (0..self.cells.len()).map(|axis| self.cells[axis + 1..].iter().product()).collect()
    }

    /// The cell that a place lies in.
    fn cell_of(&self, place: usize) -> usize {
        let (mut rest, mut cell, mut stride) = (place, 0, 1);
        for (places, cells) in self.places.iter().zip(&self.cells).rev() {
            cell += rest % places / self.cell * stride;
            rest /= places;
            stride *= cells;
        }
        cell
    }

    /// `values` `[channels, places...]` moved by whole places; the border is repeated.
    fn shifted(&self, values: &[f32], shift: &[i64]) -> Vec<f32> {
        if shift.iter().all(|offset| *offset == 0) {
            return values.to_vec();
        }
        let plane = self.plane();
        let from = |place: usize| {
            let (mut rest, mut source, mut stride) = (place, 0, 1);
            for (length, offset) in self.places.iter().zip(shift).rev() {
                let at = (rest % length) as i64 + offset;
                source += at.clamp(0, *length as i64 - 1) as usize * stride;
                rest /= length;
                stride *= length;
            }
            source
        };
        let sources: Vec<usize> = (0..plane).map(from).collect();
        values.chunks_exact(plane).flat_map(|channel| sources.iter().map(|source| channel[*source])).collect()
    }

    /// 1 without the cells whose centre is less than `radius` places from the middle.
    fn without_disc(&self, radius: f64) -> Vec<f32> {
        let strides = self.strides();
        let outside = |cell: usize| {
            let square: f64 = strides
                .iter()
                .zip(self.cells.iter().zip(&self.places))
                .map(|(stride, (cells, places))| {
                    let centre = ((cell / stride % cells) as f64 + 0.5) * self.cell as f64;
                    let distance = centre - *places as f64 / 2.0;
                    distance * distance
                })
                .sum();
            f32::from(u8::from(square >= radius * radius))
        };
        (0..self.count()).map(outside).collect()
    }
}

impl Method for MeaningfulPerturbation {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let grid = self.grid(inputs.row_shape())?;
        let scores = evaluator.scores(inputs)?;
        let found = self.optimise(evaluator, inputs, |_, _| {})?;
        let mut maps = Vec::with_capacity(inputs.rows() * grid.plane());
        for mask in found.masks.chunks_exact(grid.count()) {
            maps.extend(self.seen(mask, &grid)?.into_iter().map(|kept| 1.0 - kept));
        }
        Ok(Attribution {
            values: inputs.tensor(maps, &[&[1], grid.places.as_slice()].concat())?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.grid(row_shape)?;
        let discs = match self.start {
            MaskStart::Constant(_) => 0,
            MaskStart::Circle => RADII[1] / RADII[0] + 2,
        };
        Ok(Passes { forward: (1 + self.steps + discs) as u64, backward: self.steps as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Linear, assert_close, host, normal};

    fn plain(steps: usize) -> MeaningfulPerturbation {
        MeaningfulPerturbation {
            cell: 2,
            mask_blur: None,
            baseline: Baseline::Zero,
            steps,
            learning_rate: 0.1,
            l1: 0.05,
            total_variation: 0.02,
            beta: 3.0,
            jitter: 0,
            keys: Vec::new(),
            start: MaskStart::Constant(0.5),
        }
    }

    /// The price's own gradient by finite differences.
    #[test]
    fn prices_have_their_gradient() {
        let method = plain(1);
        let grid = method.grid(&[1, 5, 6]).unwrap();
        assert_eq!(grid.cells, [3, 3]);
        let mask: Vec<f32> = host(&normal(4, &[9])).iter().map(|value| 0.5 + 0.1 * value).collect();
        let mut gradient = vec![0.0; 9];
        method.price(&mask, &grid, &mut gradient);
        for cell in 0..9 {
            let at = |delta: f32| {
                let mut moved = mask.clone();
                moved[cell] += delta;
                (method.price(&moved, &grid, &mut [0.0; 9]), f64::from(moved[cell]))
            };
            let ((above, high), (below, low)) = (at(1e-3), at(-1e-3));
            let difference = (above - below) / (high - low);
            assert!((difference - gradient[cell]).abs() < 1e-5, "{cell}: {difference} {}", gradient[cell]);
        }
    }

    /// Of a linear score the mask deletes what adds to it more than the price, and keeps the rest.
    #[test]
    fn what_adds_to_a_linear_score_is_deleted() {
        let score = Linear { weight: [vec![1.0; 8], vec![-1.0; 8]].concat() };
        let ones = vec![1.0f32; 2 * 16];
        let x = candle_core::Tensor::from_vec(ones, (2, 1, 4, 4), &candle_core::Device::Cpu).unwrap();
        let inputs = Inputs::new(&x).unwrap();
        let evaluator = Evaluator::new(&score, 3);
        let method = MeaningfulPerturbation { total_variation: 0.0, ..plain(40) };
        let map = method.attribute(&evaluator, &inputs).unwrap();
        let expected = [vec![1.0f32; 8], vec![0.0; 8]].concat().repeat(2);
        assert_eq!(host(&map.values), expected);
        assert_eq!(evaluator.passes(), Passes { forward: 2 * 41, backward: 2 * 40 });
        assert_eq!(method.cost(&[1, 4, 4]).unwrap(), Passes { forward: 41, backward: 40 });
    }

    #[test]
    fn losses_fall_and_batches_change_nothing() {
        let score = crate::testing::Smooth::new(5, &[2, 8, 8]);
        let inputs = Inputs::new(&normal(6, &[3, 2, 8, 8])).unwrap();
        let method = MeaningfulPerturbation {
            jitter: 1,
            keys: vec![Key(1), Key(2), Key(3)],
            mask_blur: Some(1.0),
            start: MaskStart::Circle,
            ..plain(20)
        };
        let of = |batch| {
            let evaluator = Evaluator::new(&score, batch);
            let mut seen = 0;
            let found = method.optimise(&evaluator, &inputs, |step, _| {
                assert_eq!(step, seen);
                seen += 1;
            });
            assert_eq!(seen, 21);
            found.unwrap()
        };
        let found = of(1);
        assert!(found.masks.iter().all(|value| (0.0..=1.0).contains(value)));
        let still = MeaningfulPerturbation { jitter: 0, start: MaskStart::Constant(0.5), ..method.clone() };
        let losses = still.optimise(&Evaluator::new(&score, 8), &inputs, |_, _| {}).unwrap().losses;
        assert!(losses.iter().all(|row| row[19] < row[0]), "{losses:?}");
        let tensor = |found: &OptimisedMasks| {
            candle_core::Tensor::new(found.masks.as_slice(), &candle_core::Device::Cpu).unwrap()
        };
        assert_close(&tensor(&of(7)), &tensor(&found), 1e-4);
        assert_eq!(method.cost(&[2, 8, 8]).unwrap().forward, 1 + 20 + 36);
    }

    #[test]
    fn shifts_repeat_the_border() {
        let grid = plain(1).grid(&[1, 2, 3]).unwrap();
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(grid.shifted(&values, &[0, 1]), [2.0, 3.0, 3.0, 5.0, 6.0, 6.0]);
        assert_eq!(grid.shifted(&values, &[-1, 0]), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        let cells: Vec<usize> = (0..6).map(|place| grid.cell_of(place)).collect();
        assert_eq!(cells, [0, 0, 1, 0, 0, 1]);
    }
}
