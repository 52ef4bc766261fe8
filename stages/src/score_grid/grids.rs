//! Grids of images of distinct classes, as a model sees them.

use std::collections::BTreeSet;

use candle_core::Tensor;
use pipe_engine::{StageContext, StageError};
use rayon::prelude::*;

use super::Params;
use crate::images::{FORWARD_PASSES, ImageSet, Pixels as _, batches};
use crate::labels::Labels;
use crate::model::{Model, tensor_error};
use crate::mosaic::{self, Candidates, Cell, choose, sure};

/// The images that stand in grids.
pub(super) struct Grids {
    images: ImageSet,
    /// Of each grid the places in `images` of its cells, and their classes, row by row.
    cells: Vec<Vec<(usize, usize)>>,
    scale: usize,
}

impl Grids {
    /// Chooses images that are classified right and with certainty.
    ///
    /// # Errors
    /// If an input is damaged, its classes are not those of the model, or there are fewer of them than cells.
    pub(super) fn read(
        params: &Params,
        model: &Model,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let labels = Labels::read(context.input("labels")?)?;
        if labels.description.is_multi_label() {
            let reason = "an image has several of these labels at once; a cell has one class";
            return Err(StageError::input("labels", reason));
        }
        let classes = &model.head()?.description.classes;
        if *classes != labels.description.classes {
            let reason =
                format!("its classes are {classes:?}, those of the labels {:?}", labels.description.classes);
            return Err(StageError::input("head.json", reason));
        }
        let split = [params.split.as_str()];
        let images = ImageSet::read(context.input("images")?, &split, model.preprocessor()?, context)?;
        let certain = match sure(params.confidence, context)? {
            Some(certain) => Some(certain),
            None if params.confidence == 0.0 => None,
            None => Some(certain_to(model, &images, &labels, params, context)?),
        };
        let chosen_by = mosaic::Params {
            side: params.side,
            count: params.count,
            split: params.split.clone(),
            confidence: params.confidence,
            cell: None,
            seed: params.seed,
        };
        let candidates = Candidates::new(&chosen_by, &labels, certain.as_ref());
        let chosen = choose(&chosen_by, &candidates, classes)?;
        if chosen.len() < params.count as usize {
            context.warn(&format!("images suffice for {} grids of {}", chosen.len(), params.count));
        }
        let places = images.places();
        let place = |Cell { id, class }: &Cell| {
            let missing = || StageError::input("images", format!("the image `{id}` is not there"));
            Ok((*places.get(id.as_str()).ok_or_else(missing)?, *class))
        };
        let cells = chosen
            .iter()
            .map(|grid| grid.iter().map(place).collect::<Result<Vec<_>, StageError>>())
            .collect::<Result<Vec<_>, _>>()?;
        drop(places);
        Ok(Self { images, cells, scale: params.side as usize })
    }

    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// The class of a cell of a grid.
    pub(super) fn class(&self, grid: usize, cell: usize) -> usize {
        self.cells[grid][cell].1
    }

    /// Pixels of a cell along a side, as the model takes its images.
    pub(super) fn cell_side(&self) -> usize {
        self.images.preprocessor().side
    }

    /// Some grids, `[grids, 3, side, side]`, of whole cells, or of cells that are as much smaller as a whole grid fits
    /// the model: then each of their pixels is the mean of those that it stands for.
    pub(super) fn batch(&self, grids: &[usize], of_whole_cells: bool) -> Result<Tensor, StageError> {
        let grid = |grid: &usize| -> Result<Tensor, StageError> {
            let rows: Vec<usize> = self.cells[*grid].iter().map(|(place, _)| *place).collect();
            let cells = self.images.batch(&rows)?;
            let assembled = || {
                let (count, channels, side, _) = cells.dims4()?;
                let cells = match of_whole_cells {
                    true => cells.clone(),
                    false => {
                        let small = side / self.scale;
                        let split = (count, channels, small, self.scale, small * self.scale);
                        let rows = cells.reshape(split)?.mean(3)?;
                        rows.reshape((count, channels, small, small, self.scale))?.mean(4)?
                    }
                };
                let line = |row: usize| {
                    let cells = (0..self.scale).map(|column| cells.get(row * self.scale + column));
                    Tensor::cat(&cells.collect::<candle_core::Result<Vec<_>>>()?, 2)
                };
                Tensor::cat(&(0..self.scale).map(line).collect::<candle_core::Result<Vec<_>>>()?, 1)
            };
            assembled().map_err(tensor_error)
        };
        let grids: Vec<Tensor> = grids.par_iter().map(grid).collect::<Result<_, _>>()?;
        Tensor::stack(&grids, 0).map_err(tensor_error)
    }
}

/// The images that the model itself classifies correctly with at least the probability that is asked for.
fn certain_to(
    model: &Model,
    images: &ImageSet,
    labels: &Labels,
    params: &Params,
    context: &StageContext<'_>,
) -> Result<BTreeSet<String>, StageError> {
    let places = images.places();
    let rows: Vec<(usize, &str, usize)> = labels
        .rows
        .iter()
        .filter(|(_, split, _)| *split == params.split)
        .filter_map(|(id, _, label)| Some((*places.get(id.as_str())?, id.as_str(), label[0] as usize)))
        .collect();
    let mut certain = BTreeSet::new();
    let order: Vec<usize> = (0..rows.len()).collect();
    for part in batches(&order, params.batch) {
        context.check_cancelled()?;
        let pixels = images.batch(&part.iter().map(|row| rows[*row].0).collect::<Vec<_>>())?;
        let logits = model.logits(&pixels, None)?.to_vec2::<f32>().map_err(tensor_error)?;
        for (row, logits) in part.iter().zip(logits) {
            let (_, id, class) = rows[*row];
            let own = f64::from(logits[class]);
            let is_greatest = logits.iter().all(|logit| f64::from(*logit) <= own);
            let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(*logit) - own)).sum();
            if is_greatest && 1.0 / sum >= params.confidence {
                certain.insert(id.to_owned());
            }
        }
    }
    context.host().count(FORWARD_PASSES, rows.len() as u64);
    Ok(certain)
}
