//! A table of images, decoded and brought to a model's size once; and what images and volumes have in common.

use std::collections::BTreeSet;

use candle_core::Tensor;
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::Preprocessor;
use pipe_models::preprocess::Picture;
use rayon::prelude::*;

use crate::artifact;
use crate::model::{DEVICE, Model, tensor_error};
use crate::table::{Table, read_columns};
use crate::volumes::VolumeSet;

/// Images or volumes of some splits, as a model takes them.
pub(crate) trait Pixels {
    fn ids(&self) -> &[String];
    fn splits(&self) -> &[String];
    fn groups(&self) -> &[Option<String>];
    /// Some rows, of the shape that the model's image tower takes.
    fn batch(&self, rows: &[usize]) -> Result<Tensor, StageError>;
    /// How many rows make a batch where `batch` are asked for.
    fn at_a_time(&self, batch: i64) -> i64 {
        batch
    }
}

/// The images or volumes of a table whose split is one of `splits` (all if empty).
///
/// # Errors
/// If the table is damaged, or the model takes the other kind.
pub(crate) fn read_pixels(
    artifact: &Artifact,
    splits: &[&str],
    model: &Model,
    context: &StageContext<'_>,
) -> Result<Box<dyn Pixels>, StageError> {
    if artifact.artifact_type != artifact::VOLUMES.0 {
        return Ok(Box::new(ImageSet::read(artifact, splits, model.preprocessor()?, context)?));
    }
    let geometry = model.image_tower()?.geometry();
    let Some(depth) = geometry.depth else {
        let reason = "the checkpoint takes flat images, and these are volumes";
        return Err(StageError::input("config.json", reason));
    };
    let [height, width] = geometry.image;
    Ok(Box::new(VolumeSet::read(artifact, splits, [depth.slices, height, width])?))
}

/// Embeddings of some rows, `[rows, width]` flat.
pub(crate) fn embed_pixels(
    pixels: &dyn Pixels,
    model: &Model,
    rows: &[usize],
    batch: i64,
    context: &StageContext<'_>,
) -> Result<Vec<f32>, StageError> {
    let tower = model.image_tower()?;
    let mut values = Vec::new();
    let mut done = 0;
    for part in batches(rows, pixels.at_a_time(batch)) {
        context.check_cancelled()?;
        let embeddings = tower.embed_images(&pixels.batch(part)?, None).map_err(tensor_error)?;
        values.extend(embeddings.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(tensor_error)?);
        done += part.len() as u64;
        context.progress(done, rows.len() as u64, "images", &[]);
    }
    Ok(values)
}

/// A column of the table that some rows were read from, as text, in the order of their ids.
pub(crate) fn column_of(
    ids: &[String],
    artifact: &Artifact,
    name: &str,
) -> Result<Vec<Option<String>>, StageError> {
    let table = read_columns(artifact, &["image_id", name])?;
    let by_id: std::collections::BTreeMap<&str, Option<String>> =
        table.strings("image_id")?.into_iter().zip(table.as_text(name)?).collect();
    Ok(ids.iter().map(|id| by_id.get(id.as_str()).cloned().flatten()).collect())
}

/// Images of some splits as eight-bit squares.
pub(crate) struct ImageSet {
    pub(crate) ids: Vec<String>,
    pub(crate) splits: Vec<String>,
    pub(crate) groups: Vec<Option<String>>,
    squares: Vec<u8>,
    preprocessor: Preprocessor,
}

/// The columns of an images table that an image set and its users read.
const COLUMNS: [&str; 4] = ["image_id", "split", "image", "group_id"];

impl ImageSet {
    /// Reads and decodes the images whose split is one of `splits` (all if empty).
    pub(crate) fn read(
        artifact: &Artifact,
        splits: &[&str],
        preprocessor: &Preprocessor,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let table = read_columns(artifact, &COLUMNS)?;
        Self::from_table(&table.select(&table.rows_of_splits(splits)), preprocessor, context)
    }

    /// Reads and decodes the images of these ids, whatever their split, in the order of the table.
    pub(crate) fn read_only(
        artifact: &Artifact,
        ids: &BTreeSet<&str>,
        preprocessor: &Preprocessor,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let table = read_columns(artifact, &COLUMNS)?;
        let all = table.strings("image_id")?;
        let rows: Vec<usize> = (0..all.len()).filter(|row| ids.contains(all[*row])).collect();
        Self::from_table(&table.select(&rows), preprocessor, context)
    }

    /// Decodes the images of a table.
    pub(crate) fn from_table(
        table: &Table,
        preprocessor: &Preprocessor,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        context.check_cancelled()?;
        let ids: Vec<String> = table.strings("image_id")?.into_iter().map(str::to_owned).collect();
        let splits = table.strings("split")?.into_iter().map(str::to_owned).collect();
        let groups = match table.column("group_id") {
            Some(_) => table.utf8("group_id")?.to_vec(),
            None => vec![None; ids.len()],
        };
        let images = table.images("image")?;
        let squares: Vec<Result<Vec<u8>, StageError>> = images
            .par_iter()
            .zip(&ids)
            .map(|(image, id)| {
                let (bytes, path) =
                    image.as_ref().ok_or_else(|| StageError::input(id, "the row has no image"))?;
                let error =
                    |error: &dyn std::fmt::Display| StageError::input(path, format!("{error} (row {id})"));
                let picture = Picture::decode(bytes).map_err(|problem| error(&problem))?;
                preprocessor.square(&picture).map_err(|problem| error(&problem))
            })
            .collect();
        let mut all = Vec::with_capacity(ids.len() * preprocessor.side * preprocessor.side * 3);
        for square in squares {
            all.extend(square?);
        }
        Ok(Self { ids, splits, groups, squares: all, preprocessor: preprocessor.clone() })
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The rows of a split.
    pub(crate) fn rows(&self, split: &str) -> Vec<usize> {
        (0..self.len()).filter(|row| self.splits[*row] == split).collect()
    }

    /// A column of the table that the images were read from, as text, in their order.
    pub(crate) fn column(&self, artifact: &Artifact, name: &str) -> Result<Vec<Option<String>>, StageError> {
        column_of(&self.ids, artifact, name)
    }

    /// Where each id stands.
    pub(crate) fn places(&self) -> std::collections::BTreeMap<&str, usize> {
        self.ids.iter().enumerate().map(|(row, id)| (id.as_str(), row)).collect()
    }

    /// The eight-bit values of a row's square, `side * side * 3`.
    pub(crate) fn square(&self, row: usize) -> &[u8] {
        let length = self.preprocessor.side * self.preprocessor.side * 3;
        &self.squares[row * length..(row + 1) * length]
    }

    /// What happened to the images.
    pub(crate) fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Embeddings of some images, `[rows, width]` flat.
    pub(crate) fn embed(
        &self,
        model: &Model,
        rows: &[usize],
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Vec<f32>, StageError> {
        embed_pixels(self, model, rows, batch, context)
    }

    /// Normalised pixels `[rows, 3, side, side]`.
    pub(crate) fn batch(&self, rows: &[usize]) -> Result<Tensor, StageError> {
        self.batch_with(rows, |_, _, _| {})
    }

    /// As [`Self::batch`], after `change(row, square, side)` of each square: eight bits, channels last.
    pub(crate) fn batch_with(
        &self,
        rows: &[usize],
        change: impl Fn(usize, &mut [u8], usize),
    ) -> Result<Tensor, StageError> {
        let length = self.preprocessor.side * self.preprocessor.side * 3;
        let mut squares: Vec<u8> = rows.iter().flat_map(|row| self.square(*row)).copied().collect();
        for (row, square) in rows.iter().zip(squares.chunks_exact_mut(length)) {
            change(*row, square, self.preprocessor.side);
        }
        self.preprocessor.tensor(&squares, &DEVICE).map_err(tensor_error)
    }
}

impl Pixels for ImageSet {
    fn ids(&self) -> &[String] {
        &self.ids
    }

    fn splits(&self) -> &[String] {
        &self.splits
    }

    fn groups(&self) -> &[Option<String>] {
        &self.groups
    }

    /// `[rows, 3, side, side]`.
    fn batch(&self, rows: &[usize]) -> Result<Tensor, StageError> {
        Self::batch(self, rows)
    }
}

/// Runs of at most `size` rows.
pub(crate) fn batches(rows: &[usize], size: i64) -> impl Iterator<Item = &[usize]> {
    rows.chunks(size.max(1) as usize)
}
