//! A table of images, decoded and brought to a model's size once; and what images and volumes have in common.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use pipe_attribution::Passes;
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::Preprocessor;
use pipe_models::preprocess::Picture;
use rayon::prelude::*;

use crate::artifact;
use crate::model::{DEVICE, Model, tensor_error};
use crate::table::{Table, read_columns};
use crate::volumes::{Flattened, SliceSet, VolumeRows, VolumeSet};

/// A change of training images that keeps their label: the same for every plane of a row.
pub(crate) trait Change {
    /// Of red, green and blue in eight bits, channels last.
    fn colours(&self, row: usize, square: &mut [u8], side: usize);
    /// Of values of a slice of this height and width.
    fn grey(&self, row: usize, slice: &mut [f32], shape: [usize; 2]);
}

/// Images or volumes of some splits, as a model takes them.
pub(crate) trait Pixels: Sync {
    fn ids(&self) -> &[String];
    fn splits(&self) -> &[String];
    fn groups(&self) -> &[Option<String>];
    /// Some rows, of the shape that the model's image tower takes.
    fn batch(&self, rows: &[usize]) -> Result<Tensor, StageError>;
    /// As [`Self::batch`], of changed rows.
    fn changed_batch(&self, rows: &[usize], change: Option<&dyn Change>) -> Result<Tensor, StageError>;
    /// Height and width of a map of a row; of volumes slices, height and width.
    fn map_shape(&self) -> Vec<usize>;
    /// What the absence of everything is per channel: black, air.
    fn black(&self) -> Vec<f32>;
    /// Where each id stands.
    fn places(&self) -> BTreeMap<&str, usize> {
        self.ids().iter().enumerate().map(|(row, id)| (id.as_str(), row)).collect()
    }
    /// The rows of a split.
    fn rows(&self, split: &str) -> Vec<usize> {
        let splits = self.splits();
        (0..splits.len()).filter(|row| splits[*row] == split).collect()
    }
    /// How many rows make a batch where `batch` are asked for.
    fn at_a_time(&self, batch: i64) -> i64 {
        batch
    }
}

/// The images or volumes of a table whose split is one of `splits` (all if empty). Of volumes a model of flat
/// images sees the slices that its preprocessing says.
///
/// # Errors
/// If the table is damaged, or the model takes volumes and these are flat.
pub(crate) fn read_pixels(
    artifact: &Artifact,
    splits: &[&str],
    model: &Model,
    context: &StageContext<'_>,
) -> Result<Box<dyn Pixels>, StageError> {
    read_chosen(artifact, VolumeRows::OfSplits(splits), model, context)
}

/// As [`read_pixels`], the images or volumes of these ids, whatever their split.
pub(crate) fn read_pixels_of(
    artifact: &Artifact,
    ids: &BTreeSet<&str>,
    model: &Model,
    context: &StageContext<'_>,
) -> Result<Box<dyn Pixels>, StageError> {
    read_chosen(artifact, VolumeRows::Only(ids), model, context)
}

fn read_chosen(
    artifact: &Artifact,
    rows: VolumeRows<'_>,
    model: &Model,
    context: &StageContext<'_>,
) -> Result<Box<dyn Pixels>, StageError> {
    let flat = || -> Result<Box<dyn Pixels>, StageError> {
        Ok(Box::new(match rows {
            VolumeRows::OfSplits(splits) => ImageSet::read(artifact, splits, model.preprocessor()?, context)?,
            VolumeRows::Only(ids) => ImageSet::read_only(artifact, ids, model.preprocessor()?, context)?,
        }))
    };
    if !is_volumes(artifact) {
        return flat();
    }
    let geometry = model.image_tower()?.geometry();
    match geometry.depth {
        Some(depth) if !model.is_slice_wise() => {
            let [height, width] = geometry.image;
            Ok(Box::new(VolumeSet::choose(artifact, rows, [depth.slices, height, width])?))
        }
        Some(_) => Ok(Box::new(SliceSet::choose(artifact, rows, model.preprocessor_of_slices()?)?)),
        None => flat(),
    }
}

/// What a model of flat images sees of the volumes of a table, in words; nothing where images are flat or the
/// model takes volumes.
pub(crate) fn slices_seen(artifact: &Artifact, model: &Model) -> Option<String> {
    let preprocessor = model.preprocessor_of_slices().ok().filter(|_| is_volumes(artifact))?;
    let [black, white] = preprocessor.hounsfield;
    Some(format!("{}, {black} to {white} HU", preprocessor.slices.describe()))
}

/// Whether a table holds volumes.
pub(crate) fn is_volumes(artifact: &Artifact) -> bool {
    artifact.artifact_type == artifact::VOLUMES.0
}

/// Inputs that went through an encoder from its beginning, as the cost of a result counts them.
pub(crate) const FORWARD_PASSES: &str = "forward_passes";
/// Those through which gradients came back.
const BACKWARD_PASSES: &str = "backward_passes";

/// Counts passes beside what a result cost so far.
pub(crate) fn count_passes(context: &StageContext<'_>, passes: Passes) {
    context.host().count(FORWARD_PASSES, passes.forward);
    context.host().count(BACKWARD_PASSES, passes.backward);
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
    context.host().count(FORWARD_PASSES, done);
    Ok(values)
}

/// A column of the table that some rows were read from, as text, in the order of their ids.
pub(crate) fn column_of(
    ids: &[String],
    artifact: &Artifact,
    name: &str,
) -> Result<Vec<Option<String>>, StageError> {
    let table = read_columns(artifact, &["image_id", name])?;
    let by_id: BTreeMap<&str, Option<String>> =
        table.strings("image_id")?.into_iter().zip(table.as_text(name)?).collect();
    Ok(ids.iter().map(|id| by_id.get(id.as_str()).cloned().flatten()).collect())
}

/// Images of some splits, or the slice that is seen of each volume, as eight-bit squares.
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
    /// Reads and decodes the images whose split is one of `splits` (all if empty); of a table of volumes the
    /// one slice, or the three as colours, that `preprocessor` says.
    pub(crate) fn read(
        artifact: &Artifact,
        splits: &[&str],
        preprocessor: &Preprocessor,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        if is_volumes(artifact) {
            return Self::read_volumes(artifact, VolumeRows::OfSplits(splits), preprocessor, context);
        }
        let table = read_columns(artifact, &COLUMNS)?;
        Self::from_table(&table.select(&table.rows_of_splits(splits)), preprocessor, context)
    }

    fn read_volumes(
        artifact: &Artifact,
        rows: VolumeRows<'_>,
        preprocessor: &Preprocessor,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let Flattened { ids, splits, groups, squares } =
            Flattened::read(artifact, rows, preprocessor, context)?;
        Ok(Self { ids, splits, groups, squares, preprocessor: preprocessor.clone() })
    }

    /// Reads and decodes the images of these ids, whatever their split, in the order of the table.
    pub(crate) fn read_only(
        artifact: &Artifact,
        ids: &BTreeSet<&str>,
        preprocessor: &Preprocessor,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        if is_volumes(artifact) {
            return Self::read_volumes(artifact, VolumeRows::Only(ids), preprocessor, context);
        }
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

    /// A column of the table that the images were read from, as text, in their order.
    pub(crate) fn column(&self, artifact: &Artifact, name: &str) -> Result<Vec<Option<String>>, StageError> {
        column_of(&self.ids, artifact, name)
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
        self.changed_batch(rows, None)
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

    fn batch(&self, rows: &[usize]) -> Result<Tensor, StageError> {
        Self::batch(self, rows)
    }

    fn changed_batch(&self, rows: &[usize], change: Option<&dyn Change>) -> Result<Tensor, StageError> {
        let side = self.preprocessor.side;
        let mut squares: Vec<u8> = rows.iter().flat_map(|row| self.square(*row)).copied().collect();
        if let Some(change) = change {
            for (row, square) in rows.iter().zip(squares.chunks_exact_mut(side * side * 3)) {
                change.colours(*row, square, side);
            }
        }
        self.preprocessor.tensor(&squares, &DEVICE).map_err(tensor_error)
    }

    fn map_shape(&self) -> Vec<usize> {
        vec![self.preprocessor.side; 2]
    }

    fn black(&self) -> Vec<f32> {
        self.preprocessor.black().to_vec()
    }
}

/// Runs of at most `size` rows.
pub(crate) fn batches(rows: &[usize], size: i64) -> impl Iterator<Item = &[usize]> {
    rows.chunks(size.max(1) as usize)
}
