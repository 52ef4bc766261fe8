//! Images of tables as grey squares, as the small networks of MEVF see them.

use candle_core::Tensor;
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::Preprocessor;
use pipe_models::preprocess::{Picture, grey_square};
use rayon::prelude::*;

use crate::model::{DEVICE, tensor_error};
use crate::table::read_columns;

/// Grey squares in eight bits, with what their table says of them.
pub(super) struct GreySquares {
    side: usize,
    pub(super) ids: Vec<String>,
    values: Vec<u8>,
}

impl GreySquares {
    /// Those of the images of a split, in the order of the tables and their rows.
    ///
    /// # Errors
    /// If a table is damaged, or an image cannot be decoded.
    pub(super) fn read<'a>(
        tables: impl IntoIterator<Item = &'a Artifact>,
        splits: &[&str],
        side: usize,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let mut all = Self { side, ids: Vec::new(), values: Vec::new() };
        for table in tables {
            // Files of a table one by one: only squares are kept of many images.
            for file in &table.files {
                context.check_cancelled()?;
                all.add(&table.only(file), splits)?;
            }
        }
        Ok(all)
    }

    fn add(&mut self, part: &Artifact, splits: &[&str]) -> Result<(), StageError> {
        let table = read_columns(part, &["image_id", "split", "image"])?;
        let table = table.select(&table.rows_of_splits(splits));
        let (ids, images) = (table.strings("image_id")?, table.images("image")?);
        let (side, window) = (self.side, Preprocessor::clip(self.side).window);
        let squares: Vec<Result<Vec<u8>, StageError>> = images
            .par_iter()
            .zip(&ids)
            .map(|(image, id)| {
                let (bytes, path) =
                    image.as_ref().ok_or_else(|| StageError::input(id, "the row has no image"))?;
                let picture = Picture::decode(bytes)
                    .map_err(|error| StageError::input(path, format!("{error} (image {id})")))?;
                Ok(grey_square(&picture, side, window))
            })
            .collect();
        for square in squares {
            self.values.extend(square?);
        }
        self.ids.extend(ids.into_iter().map(str::to_owned));
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Some of them in 0..1, `[rows, 1, side, side]`.
    pub(super) fn pick(&self, rows: &[usize]) -> Result<Tensor, StageError> {
        let length = self.side * self.side;
        let values = rows.iter().flat_map(|row| &self.values[row * length..(row + 1) * length]);
        let values: Vec<f32> = values.map(|value| f32::from(*value) / 255.0).collect();
        Tensor::from_vec(values, (rows.len(), 1, self.side, self.side), &DEVICE).map_err(tensor_error)
    }
}
