//! Judging attributions on grids of images (Rao, Boehle and Schiele 2022, "Towards Better Understanding
//! Attribution Methods"): of each cell it is known whether the score can depend on it.

use candle_core::{Result as TensorResult, Tensor, bail};
use pipe_models::MaybeProbe;

use crate::method::Inputs;
use crate::resize::{Interpolation, resize};
use crate::{AttributionError, Result, Score};

/// The name under which a [`GridScore`] shows its input to probes: where class activation maps are taken.
pub const GRID_LAYER: &str = "grid";

/// Masses below this are none.
const LEAST_MASS: f64 = 1e-7;

/// A convolutional classifier that can be cut at a layer: what attributions "at a layer" need, which explain
/// the rest of the network with the layer's activations as its input.
pub trait CutClassifier: Sync {
    /// Images `[batch, channels, rows, columns]` up to the activations of the layer to be explained, in the
    /// same layout.
    ///
    /// # Errors
    /// Whatever the model reports; likewise below.
    fn until_layer(&self, images: &Tensor) -> TensorResult<Tensor>;

    /// From there to the last map.
    ///
    /// # Errors
    /// As above.
    fn to_last_map(&self, activations: &Tensor, probe: MaybeProbe<'_>) -> TensorResult<Tensor>;

    /// Pooling and classifier: the last map to logits `[batch, classes]`.
    ///
    /// # Errors
    /// As above.
    fn classify(&self, map: &Tensor) -> TensorResult<Tensor>;
}

/// What a classification head sees of a grid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GridSetting {
    /// One head sees everything (grid pointing game): a class may be seen in any cell.
    Whole,
    /// Each head sees its own cell alone, cut out of the image (DiFull): attributions outside must be zero.
    CellOfImage,
    /// Each head sees its part of the last map (DiPart): outside only as far as receptive fields reach.
    CellOfMap,
}

/// A cell of a grid, numbered row by row, and the class that is explained there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GridTarget {
    /// The cell, whose head is explained.
    pub cell: usize,
    /// The class.
    pub class: usize,
}

/// The logit of each sample's target (or, on request, its probability), as a function of a layer's activations of its grid.
pub struct GridScore<'a> {
    network: &'a dyn CutClassifier,
    setting: GridSetting,
    /// Cells along a side.
    scale: usize,
    targets: Vec<GridTarget>,
    is_probability: bool,
}

impl<'a> GridScore<'a> {
    /// Of grids of `scale` by `scale` cells, one target per sample.
    ///
    /// # Errors
    /// If a target's cell is not one of them.
    pub fn new(
        network: &'a dyn CutClassifier,
        setting: GridSetting,
        scale: usize,
        targets: Vec<GridTarget>,
    ) -> Result<Self> {
        if let Some(target) = targets.iter().find(|target| target.cell >= scale * scale) {
            let cell = target.cell;
            return Err(AttributionError::Settings(format!(
                "a grid of {scale} x {scale} has no cell {cell}"
            )));
        }
        Ok(Self { network, setting, scale, targets, is_probability: false })
    }

    /// The probability of each target among all classes instead of its logit.
    #[must_use]
    pub fn probability(self) -> Self {
        Self { is_probability: true, ..self }
    }

    /// What is attributed: the layer's activations of grids `[samples, channels, rows, columns]`, those of
    /// single cells beside each other where heads see nothing else.
    ///
    /// # Errors
    /// If the grids have no such cells or the network fails.
    pub fn inputs(&self, grids: &Tensor) -> Result<Inputs> {
        match self.setting {
            GridSetting::Whole | GridSetting::CellOfMap => Inputs::new(&self.network.until_layer(grids)?),
            GridSetting::CellOfImage => {
                let mut lines = Vec::with_capacity(self.scale);
                for row in 0..self.scale {
                    let cells: Vec<Tensor> = (0..self.scale)
                        .map(|column| self.network.until_layer(&self.cell(grids, row * self.scale + column)?))
                        .collect::<TensorResult<_>>()?;
                    lines.push(Tensor::cat(&cells, 3)?);
                }
                Inputs::new(&Tensor::cat(&lines, 2)?)
            }
        }
    }

    /// The logits of each row, `[rows, classes]`, for the cells of these samples' targets.
    ///
    /// # Errors
    /// As [`Score::score`].
    pub fn logits(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
        let input = match probe {
            Some(probe) => probe.activation(GRID_LAYER, input.clone())?,
            None => input.clone(),
        };
        let map = match self.setting {
            GridSetting::Whole => self.network.to_last_map(&input, probe)?,
            GridSetting::CellOfImage => self.network.to_last_map(&self.cells(&input, samples)?, probe)?,
            GridSetting::CellOfMap => self.cells(&self.network.to_last_map(&input, probe)?, samples)?,
        };
        self.network.classify(&map)
    }

    /// One cell of every row.
    fn cell(&self, grids: &Tensor, cell: usize) -> TensorResult<Tensor> {
        let (_, _, rows, columns) = grids.dims4()?;
        if !rows.is_multiple_of(self.scale) || !columns.is_multiple_of(self.scale) {
            bail!("{rows} x {columns} places are no grid of {0} x {0} cells", self.scale);
        }
        let (height, width) = (rows / self.scale, columns / self.scale);
        grids
            .narrow(2, cell / self.scale * height, height)?
            .narrow(3, cell % self.scale * width, width)?
            .contiguous()
    }

    /// Of each row the cell of its sample's target.
    fn cells(&self, grids: &Tensor, samples: &[usize]) -> TensorResult<Tensor> {
        let rows: Vec<Tensor> = samples
            .iter()
            .enumerate()
            .map(|(row, sample)| self.cell(&grids.narrow(0, row, 1)?, self.targets[*sample].cell))
            .collect::<TensorResult<_>>()?;
        Tensor::cat(&rows, 0)
    }
}

impl Score for GridScore<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
        let mut logits = self.logits(input, samples, probe)?;
        if self.is_probability {
            let raised = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?.exp()?;
            logits = raised.broadcast_div(&raised.sum_keepdim(1)?)?;
        }
        let classes: Vec<u32> = samples.iter().map(|sample| self.targets[*sample].class as u32).collect();
        let classes = Tensor::from_vec(classes, (samples.len(), 1), logits.device())?;
        logits.gather(&classes, 1)?.squeeze(1)
    }
}

/// The positive part of an attribution, enlarged linearly to the grid's size: what is localised.
pub fn grid_evidence(map: &[f32], from: [usize; 2], to: [usize; 2]) -> Vec<f32> {
    resize(map, &from, &to, Interpolation::Centres).into_iter().map(|value| value.max(0.0)).collect()
}

/// The share of the evidence `[rows, columns]` that lies in `cell` of `scale` by `scale`: 1 is perfect, an
/// even map has `1 / scale^2`. Zero without any evidence.
pub fn localisation(evidence: &[f32], [rows, columns]: [usize; 2], scale: usize, cell: usize) -> f32 {
    let (height, width) = (rows / scale, columns / scale);
    let total: f64 = evidence.iter().map(|value| f64::from(*value)).sum();
    let within: f64 = (0..height * width)
        .map(|place| {
            let row = cell / scale * height + place / width;
            f64::from(evidence[row * columns + cell % scale * width + place % width])
        })
        .sum();
    if total <= LEAST_MASS { 0.0 } else { (within / total) as f32 }
}

/// Ranks that a bin of [`aggregated`] maps begins at, as shares of all maps, and the last one's end.
pub const AGGREGATE_BINS: [f64; 7] = [0.0, 0.02, 0.05, 0.5, 0.95, 0.98, 1.0];

/// Maps of one cell from the best localised to the worst, averaged in bins (AggAtt).
#[derive(Clone, Debug)]
pub struct AggregatedMaps {
    /// The maps' numbers, best first; among equals the one with more evidence.
    pub order: Vec<usize>,
    /// How many maps each bin holds.
    pub counts: Vec<usize>,
    /// The mean evidence of each bin.
    pub means: Vec<Vec<f32>>,
}

/// Sorts evidence by its `localisation` and averages it between the ranks of `bins`. Every bin is divided by
/// the number of its maps.
pub fn aggregated(evidence: &[Vec<f32>], localisation: &[f32], bins: &[f64]) -> AggregatedMaps {
    let mass: Vec<f64> = evidence.iter().map(|map| map.iter().map(|value| f64::from(*value)).sum()).collect();
    let mut order: Vec<usize> = (0..evidence.len()).collect();
    order.sort_by(|a, b| {
        localisation[*b].total_cmp(&localisation[*a]).then(mass[*b].total_cmp(&mass[*a])).then(a.cmp(b))
    });
    let ranks: Vec<usize> =
        bins.iter().map(|share| (share * evidence.len() as f64).round() as usize).collect();
    let (mut counts, mut means) = (Vec::new(), Vec::new());
    for bin in ranks.windows(2) {
        let members = &order[bin[0]..bin[1]];
        let mut sum = vec![0.0f64; evidence.first().map_or(0, Vec::len)];
        for map in members {
            sum.iter_mut().zip(&evidence[*map]).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        counts.push(members.len());
        means.push(sum.iter().map(|sum| (sum / members.len().max(1) as f64) as f32).collect());
    }
    AggregatedMaps { order, counts, means }
}

/// The value that all bins are drawn on: a percentile of the values of all bins.
pub fn aggregate_scale<'a>(means: impl IntoIterator<Item = &'a f32>, percentile: f64) -> f32 {
    let mut values: Vec<f32> = means.into_iter().copied().collect();
    values.sort_unstable_by(f32::total_cmp);
    let index = (values.len() as f64 * percentile / 100.0) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{host, normal};
    use crate::{Evaluator, Gradient, InputXGradient, Method};

    /// Pixels to the power 2 in the middle, then the mean of each channel: logit c sees channel c.
    struct Squares;

    impl CutClassifier for Squares {
        fn until_layer(&self, images: &Tensor) -> TensorResult<Tensor> {
            images.sqr()
        }
        fn to_last_map(&self, activations: &Tensor, _: MaybeProbe<'_>) -> TensorResult<Tensor> {
            activations * 3.0
        }
        fn classify(&self, map: &Tensor) -> TensorResult<Tensor> {
            map.mean((2, 3))
        }
    }

    #[test]
    fn heads_see_their_cell() {
        let grids = normal(1, &[4, 2, 4, 6]);
        let targets: Vec<GridTarget> = (0..4).map(|cell| GridTarget { cell, class: cell % 2 }).collect();
        for setting in [GridSetting::Whole, GridSetting::CellOfImage, GridSetting::CellOfMap] {
            let score = GridScore::new(&Squares, setting, 2, targets.clone()).unwrap();
            let inputs = score.inputs(&grids).unwrap();
            assert_eq!(host(inputs.values()), host(&grids.sqr().unwrap()));
            let evaluator = Evaluator::new(&score, 3);
            let gradient = host(&Gradient.attribute(&evaluator, &inputs).unwrap().values);
            for (cell, row) in gradient.chunks_exact(48).enumerate() {
                for (index, value) in row.iter().enumerate() {
                    let (channel, y, x) = (index / 24, index / 6 % 4, index % 6);
                    let inside = setting == GridSetting::Whole || y / 2 * 2 + x / 3 == cell;
                    let places = if setting == GridSetting::Whole { 24.0 } else { 6.0 };
                    let expected = if inside && channel == cell % 2 { 3.0 / places } else { 0.0 };
                    assert!((value - expected).abs() < 1e-6, "{setting:?} {cell} {index}: {value}");
                }
            }
            // Squares are positive, so that all evidence lies where the head looks.
            let product = InputXGradient::default().attribute(&evaluator, &inputs).unwrap();
            for (cell, row) in host(&product.values.sum(1).unwrap()).chunks_exact(24).enumerate() {
                let found = localisation(&grid_evidence(row, [4, 6], [4, 6]), [4, 6], 2, cell);
                assert!(setting == GridSetting::Whole || (found - 1.0).abs() < 1e-6, "{found}");
            }
        }
        assert!(
            GridScore::new(&Squares, GridSetting::Whole, 2, vec![GridTarget { cell: 4, class: 0 }]).is_err()
        );
    }

    #[test]
    fn even_maps_are_localised_by_area() {
        assert!((localisation(&[0.5; 36], [6, 6], 3, 4) - 1.0 / 9.0).abs() < 1e-6);
        assert_eq!(localisation(&[0.0; 36], [6, 6], 3, 4), 0.0);
        let evidence = grid_evidence(&[-1.0, 2.0, 0.0, 0.0], [2, 2], [2, 2]);
        assert_eq!(localisation(&evidence, [2, 2], 2, 1), 1.0);
    }

    #[test]
    fn bins_are_means_of_ranks() {
        let maps: Vec<Vec<f32>> = (0..4).map(|index| vec![index as f32, 1.0]).collect();
        let found = aggregated(&maps, &[0.1, 0.9, 0.5, 0.5], &[0.0, 0.25, 1.0]);
        assert_eq!(found.order, [1, 3, 2, 0]);
        assert_eq!(found.counts, [1, 3]);
        assert_eq!(found.means, [vec![1.0, 1.0], vec![5.0 / 3.0, 1.0]]);
        assert_eq!(aggregate_scale(found.means.iter().flatten(), 50.0), 1.0);
        assert_eq!(aggregate_scale(&[], 99.5), 0.0);
    }
}
