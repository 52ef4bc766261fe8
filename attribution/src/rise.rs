//! RISE (Petsiuk, Das and Saenko 2018, "Randomized Input Sampling for Explanation").

use pipe_models::random::Key;

use crate::baseline::Baseline;
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// One mask before it is drawn: which cells of the grid are kept, row by row, and where the image lies on
/// the enlarged grid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RiseMask {
    /// `grid^axes` cells.
    pub cells: Vec<bool>,
    /// The offset along each axis, below the size of a cell.
    pub shift: Vec<usize>,
}

/// The masks, which all samples share.
#[derive(Clone, Debug)]
pub enum RiseMasks {
    /// These.
    Given(Vec<RiseMask>),
    /// As many draws.
    Drawn {
        /// Masks; 4000 to 8000 in the paper.
        count: usize,
        /// Decides them.
        key: Key,
    },
}

/// What the weighted sum of masks is divided by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RiseScale {
    /// The number of masks times the probability that a cell is kept (the paper).
    #[default]
    Expected,
    /// The number of masks.
    Count,
    /// At each place the sum of the masks there, which is smaller towards the border.
    Coverage,
}

/// The score averaged over random masks of the input, in which a place counts as much as a mask shows of
/// it. What is hidden is the baseline. The map is not centred: only the ranking of its values means something. One forward pass per mask, and one for s(x); no gradient. The
/// paper explains a probability: give a score that is one.
#[derive(Clone, Debug)]
pub struct Rise {
    /// Cells along each axis.
    pub grid: usize,
    /// The probability that a cell is kept.
    pub keep: f64,
    /// The masks.
    pub masks: RiseMasks,
    /// The scale of the map.
    pub scale: RiseScale,
    /// What hidden places become; zero in the paper, the mean colour of normalised inputs.
    pub baseline: Baseline,
}

impl Rise {
    /// As in the paper: 7 cells a side, half of them kept, the others zero.
    pub fn new(count: usize, key: Key) -> Self {
        let masks = RiseMasks::Drawn { count, key };
        Self { grid: 7, keep: 0.5, masks, scale: RiseScale::Expected, baseline: Baseline::Zero }
    }

    fn count(&self) -> usize {
        match &self.masks {
            RiseMasks::Given(masks) => masks.len(),
            RiseMasks::Drawn { count, .. } => *count,
        }
    }

    /// The length of a cell along each axis of an image or volume.
    fn cells(&self, places: &[usize]) -> Result<Vec<usize>> {
        let fits = self.grid > 0 && self.keep > 0.0 && self.keep <= 1.0 && self.count() > 0;
        if !fits || places.is_empty() || places.iter().any(|length| self.grid > *length) {
            return Err(AttributionError::Settings(format!(
                "{} masks of {} cells a side kept with probability {} do not fit inputs of {places:?}",
                self.count(),
                self.grid,
                self.keep
            )));
        }
        Ok(places.iter().map(|length| length.div_ceil(self.grid)).collect())
    }

    /// Mask `index` over the places of an image or volume: 1 where the input is seen.
    ///
    /// # Errors
    /// If the settings do not fit.
    pub fn mask(&self, index: usize, places: &[usize]) -> Result<Vec<f32>> {
        let lengths = self.cells(places)?;
        let count = self.grid.pow(places.len() as u32);
        let drawn = match &self.masks {
            RiseMasks::Given(masks) => masks[index].clone(),
            RiseMasks::Drawn { key, .. } => {
                let key = key.sub(index as u64 + 1);
                let cells = (1..=count as u64).map(|cell| key.uniform(cell) < self.keep).collect();
                let shifts = key.sub(1);
                let shift =
                    lengths.iter().zip(1..).map(|(length, axis)| shifts.below(axis, *length as u64) as usize);
                RiseMask { cells, shift: shift.collect() }
            }
        };
        if drawn.cells.len() != count || drawn.shift.len() != places.len() {
            return Err(AttributionError::Settings(format!("mask {index} has other cells than its grid")));
        }
        let mut values: Vec<f64> = drawn.cells.iter().map(|kept| f64::from(u8::from(*kept))).collect();
        let mut shape = vec![self.grid; places.len()];
        for axis in 0..places.len() {
            let stride: usize = shape[axis + 1..].iter().product();
            let outer: usize = shape[..axis].iter().product();
            let whole = (self.grid + 1) * lengths[axis];
            let mut resized = Vec::with_capacity(outer * places[axis] * stride);
            for line in 0..outer {
                for place in 0..places[axis] {
                    let (first, second, share) = between(place + drawn.shift[axis], self.grid, whole);
                    let at = |cell: usize| (line * self.grid + cell) * stride;
                    for inner in 0..stride {
                        let (a, b) = (values[at(first) + inner], values[at(second) + inner]);
                        resized.push(a * (1.0 - share) + b * share);
                    }
                }
            }
            values = resized;
            shape[axis] = places[axis];
        }
        Ok(values.into_iter().map(|value| value as f32).collect())
    }

    /// The score of every row behind every mask, `[rows, masks]` flat: what the map is made of.
    ///
    /// # Errors
    /// As [`Method::attribute`].
    pub fn masked_scores(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Vec<f32>> {
        let count = self.count();
        let mut scores = vec![0.0; inputs.rows() * count];
        self.each(evaluator, inputs, |row, mask, _, score| scores[row * count + mask] = score)?;
        Ok(scores)
    }

    /// Calls `take` with row, number and values of a mask, and the score of the row behind it.
    fn each(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
        mut take: impl FnMut(usize, usize, &[f32], f32),
    ) -> Result<()> {
        let places = &inputs.row_shape()[1..];
        let plane: usize = places.iter().product();
        let (rows, length, values) = (inputs.rows(), inputs.row_length(), inputs.host()?);
        let baselines = self.baseline.of(inputs)?;
        // Pairs of mask and row, so that a mask is drawn once for all rows of a batch.
        let pairs: Vec<usize> = (0..rows * self.count()).collect();
        for batch in pairs.chunks(evaluator.batch()) {
            let (first, last) = (batch[0] / rows, batch[batch.len() - 1] / rows);
            let masks: Vec<Vec<f32>> =
                (first..=last).map(|mask| self.mask(mask, places)).collect::<Result<_>>()?;
            let mut masked = Vec::with_capacity(batch.len() * length);
            let mut samples = Vec::with_capacity(batch.len());
            for pair in batch {
                let (mask, row) = (&masks[pair / rows - first], pair % rows);
                let x = &values[row * length..(row + 1) * length];
                masked.extend(x.iter().zip(baselines.row(row)).enumerate().map(|(index, (x, hidden))| {
                    let seen = mask[index % plane];
                    x * seen + hidden * (1.0 - seen)
                }));
                samples.push(inputs.samples()[row]);
            }
            let scores = evaluator.scores(&inputs.rows_like(masked, samples)?)?;
            for (pair, score) in batch.iter().zip(scores) {
                take(pair % rows, pair / rows, &masks[pair / rows - first], score);
            }
        }
        Ok(())
    }
}

/// Where pixel `place` of `whole` lies among `cells`, linear between their centres and mirrored at the
/// outermost centres, which scikit-image calls `reflect`.
fn between(place: usize, cells: usize, whole: usize) -> (usize, usize, f64) {
    let last = cells as f64 - 1.0;
    let at = (place as f64 + 0.5) * cells as f64 / whole as f64 - 0.5;
    let at = if at < 0.0 { -at } else { at };
    let at = if at > last { 2.0 * last - at } else { at };
    let at = at.clamp(0.0, last);
    let first = (at as usize).min(cells - 1);
    (first, (first + 1).min(cells - 1), at - first as f64)
}

impl Method for Rise {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let places = &inputs.row_shape()[1..];
        let plane: usize = places.iter().product();
        let (rows, count) = (inputs.rows(), self.count());
        self.cells(places)?;
        let scores = evaluator.scores(inputs)?;
        let mut sums = vec![0.0f64; rows * plane];
        let mut coverage = vec![0.0f64; plane];
        self.each(evaluator, inputs, |row, _, mask, score| {
            let sums = &mut sums[row * plane..(row + 1) * plane];
            sums.iter_mut().zip(mask).for_each(|(sum, seen)| *sum += f64::from(score) * f64::from(*seen));
            if row == 0 {
                coverage.iter_mut().zip(mask).for_each(|(sum, seen)| *sum += f64::from(*seen));
            }
        })?;
        let expected = count as f64 * self.keep;
        let scaled = sums.iter().enumerate().map(|(index, sum)| match self.scale {
            RiseScale::Expected => sum / expected,
            RiseScale::Count => sum / count as f64,
            RiseScale::Coverage => {
                let seen = coverage[index % plane];
                if seen > 0.0 { sum / seen } else { 0.0 }
            }
        });
        let scaled = scaled.map(|value| value as f32).collect();
        let mut map_shape = inputs.row_shape().to_vec();
        map_shape[0] = 1;
        Ok(Attribution {
            values: inputs.tensor(scaled, &map_shape)?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.cells(row_shape.get(1..).unwrap_or_default())?;
        Ok(Passes { forward: 1 + self.count() as u64, backward: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Linear, Smooth, assert_close, host, normal};

    #[test]
    fn the_place_that_decides_ranks_first() {
        let mut score = Linear::new(1, &[1, 12, 12]);
        score
            .weight
            .iter_mut()
            .enumerate()
            .for_each(|(index, weight)| *weight = f32::from(u8::from(index == 40)));
        let ones = normal(2, &[2, 1, 12, 12]).ones_like().unwrap();
        let inputs = Inputs::new(&ones).unwrap();
        let evaluator = Evaluator::new(&score, 7);
        let method = Rise { grid: 4, ..Rise::new(300, Key(3)) };
        let map = host(&method.attribute(&evaluator, &inputs).unwrap().values);
        let greatest = (0..144).max_by(|a, b| map[*a].total_cmp(&map[*b])).unwrap();
        let (row, column) = (greatest / 12, greatest % 12);
        assert!(row.abs_diff(3) <= 2 && column.abs_diff(4) <= 2, "{row} {column}");
        assert_eq!(evaluator.passes(), Passes { forward: 2 * 301, backward: 0 });
    }

    #[test]
    fn results_do_not_depend_on_the_batch() {
        let score = Smooth::new(5, &[2, 6, 8]);
        let inputs = Inputs::new(&normal(6, &[3, 2, 6, 8])).unwrap();
        for scale in [RiseScale::Expected, RiseScale::Count, RiseScale::Coverage] {
            let method = Rise { grid: 3, scale, ..Rise::new(20, Key(3)) };
            let of = |batch| method.attribute(&Evaluator::new(&score, batch), &inputs).unwrap().values;
            for batch in [1, 4, 7] {
                assert_close(&of(batch), &of(64), 1e-5);
            }
        }
    }

    /// A linear score of half-hidden inputs is that of the input's and the baseline's shares.
    #[test]
    fn what_is_hidden_becomes_the_baseline() {
        let score = Linear::new(1, &[2, 6, 8]);
        let inputs = Inputs::new(&normal(2, &[1, 2, 6, 8])).unwrap();
        let evaluator = Evaluator::new(&score, 7);
        let of = |baseline| Rise { grid: 3, baseline, ..Rise::new(12, Key(3)) };
        let [zero, two] = [Baseline::Zero, Baseline::Constant(2.0)].map(of);
        let [hidden, seen] = [&two, &zero].map(|rise| rise.masked_scores(&evaluator, &inputs).unwrap());
        for (index, (hidden, seen)) in hidden.iter().zip(seen).enumerate() {
            let mask = zero.mask(index, &[6, 8]).unwrap();
            let missing: f32 = score
                .weight
                .iter()
                .enumerate()
                .map(|(feature, weight)| weight * 2.0 * (1.0 - mask[feature % 48]))
                .sum();
            assert!((hidden - seen - missing).abs() < 1e-3, "{index}: {hidden} {seen} {missing}");
        }
        // The image itself as the baseline hides nothing: the map knows nothing.
        let own = of(Baseline::Tensor(inputs.values().clone()));
        let scores = own.masked_scores(&evaluator, &inputs).unwrap();
        assert!(scores.iter().all(|score| (score - scores[0]).abs() < 1e-4));
    }

    #[test]
    fn masks_are_shares_and_grids_that_do_not_fit_are_refused() {
        let method = Rise { grid: 3, ..Rise::new(20, Key(3)) };
        for places in [vec![6, 8], vec![4, 6, 5]] {
            let mask = method.mask(7, &places).unwrap();
            assert_eq!(mask.len(), places.iter().product::<usize>());
            assert!(mask.iter().all(|seen| (0.0..=1.0).contains(seen)));
        }
        assert!(method.cost(&[3, 2, 8]).is_err() && Rise::new(0, Key(1)).cost(&[1, 8, 8]).is_err());
    }
}
