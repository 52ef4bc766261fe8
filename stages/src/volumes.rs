//! A table of volumes, each brought to a model's size when it is wanted: one of full size fills 220 MB.

#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use pipe_engine::{Artifact, StageError};
use pipe_models::preprocess::volume::{CtPreprocessor, CtScan, byte_volume};

use crate::images::Pixels;
use crate::model::{DEVICE, tensor_error};
use crate::table::{Column, Table, read_columns};

/// Volumes of some splits.
pub(crate) struct VolumeSet {
    ids: Vec<String>,
    splits: Vec<String>,
    groups: Vec<Option<String>>,
    /// The part that each volume is in, and its row there.
    places: Vec<(usize, usize)>,
    parts: Vec<Artifact>,
    /// Slices, rows and columns that the model takes.
    size: [usize; 3],
    /// The part that was read last, with its place.
    last: Mutex<Option<(usize, Table)>>,
}

/// Voxels of a batch at most, unless one volume has more.
const VOXELS_AT_A_TIME: usize = 1 << 25;

impl VolumeSet {
    /// The volumes whose split is one of `splits` (all if empty); their voxels are not read yet.
    pub(crate) fn read(artifact: &Artifact, splits: &[&str], size: [usize; 3]) -> Result<Self, StageError> {
        let mut set = Self {
            ids: Vec::new(),
            splits: Vec::new(),
            groups: Vec::new(),
            places: Vec::new(),
            parts: Vec::new(),
            size,
            last: Mutex::new(None),
        };
        for file in artifact.files_ending(".parquet") {
            let part = Artifact { files: vec![file.clone()], ..artifact.clone() };
            let table = read_columns(&part, &["image_id", "split", "group_id"])?;
            let rows = table.rows_of_splits(splits);
            let chosen = table.select(&rows);
            set.ids.extend(chosen.strings("image_id")?.into_iter().map(str::to_owned));
            set.splits.extend(chosen.strings("split")?.into_iter().map(str::to_owned));
            match chosen.column("group_id") {
                Some(_) => set.groups.extend(chosen.utf8("group_id")?.iter().cloned()),
                None => set.groups.extend(rows.iter().map(|_| None)),
            }
            set.places.extend(rows.iter().map(|row| (set.parts.len(), *row)));
            set.parts.push(part);
        }
        Ok(set)
    }

    /// The values of a volume as the model takes them, `slices * rows * columns`.
    fn values(&self, volume: usize) -> Result<Vec<f32>, StageError> {
        let (part, row) = self.places[volume];
        // A panic while the lock is held would have left the part that was there before.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(read, _)| *read != part) {
            *last = None;
            let columns = ["voxels", "dtype", "shape", "spacing"];
            *last = Some((part, read_columns(&self.parts[part], &columns)?));
        }
        let (_, table) = last.as_ref().expect("it was read just now");
        let wrong = |reason: String| StageError::input(&self.ids[volume], reason);
        let Stored { voxels, dtype, shape, spacing } = Stored::of(table, row)?;
        prepared(voxels, dtype, shape, spacing, self.size).map_err(wrong)
    }
}

/// A row as it is stored.
struct Stored<'a> {
    voxels: &'a [u8],
    dtype: &'a str,
    /// Slices, rows, columns.
    shape: &'a [i32],
    /// Millimetres along these.
    spacing: Option<&'a [f32]>,
}

impl<'a> Stored<'a> {
    fn of(table: &'a Table, row: usize) -> Result<Self, StageError> {
        let lacks = |name: &str| StageError::input("volumes", format!("row {row} lacks `{name}`"));
        let voxels = match table.column("voxels") {
            Some(Column::Binary(voxels)) => voxels[row].as_deref(),
            _ => None,
        };
        let spacing = match table.column("spacing") {
            Some(Column::ListFloat32(spacings)) => spacings[row].as_deref(),
            _ => None,
        };
        Ok(Self {
            voxels: voxels.ok_or_else(|| lacks("voxels"))?,
            dtype: table.utf8("dtype")?[row].as_deref().ok_or_else(|| lacks("dtype"))?,
            shape: table.list_int32("shape")?[row].as_deref().ok_or_else(|| lacks("shape"))?,
            spacing,
        })
    }
}

/// Stored voxels as the model takes them: Hounsfield units (`i16`) resampled, cut and padded as CT-CLIP's are,
/// bytes (`u8`) stretched to the whole volume.
fn prepared(
    voxels: &[u8],
    dtype: &str,
    shape: &[i32],
    spacing: Option<&[f32]>,
    size: [usize; 3],
) -> Result<Vec<f32>, String> {
    let lengths: Vec<usize> = shape.iter().filter_map(|length| usize::try_from(*length).ok()).collect();
    let &[slices, rows, columns] = lengths.as_slice() else {
        return Err(format!("its shape is {shape:?}; slices, rows and columns are expected"));
    };
    if dtype == "u8" {
        return byte_volume(voxels, [slices, rows, columns], size).map_err(|error| error.to_string());
    }
    if dtype != "i16" {
        return Err(format!("its voxels are `{dtype}`; `u8` and `i16` (Hounsfield units) are read"));
    }
    let &[between_planes, along_rows, along_columns] = spacing.unwrap_or_default() else {
        return Err("it has no spacing of slices, rows and columns, which Hounsfield units need".to_owned());
    };
    if along_rows != along_columns {
        return Err(format!("its pixels are {along_rows} by {along_columns} mm; squares are expected"));
    }
    let count = slices.checked_mul(rows).and_then(|area| area.checked_mul(columns));
    if count.and_then(|count| count.checked_mul(2)) != Some(voxels.len()) {
        return Err(format!("it has {} bytes of voxels, its shape {shape:?} another number", voxels.len()));
    }
    // Slices fastest, as scans are stored elsewhere.
    let plane = rows * columns;
    let units: Vec<f32> = (0..plane * slices)
        .map(|place| {
            let at = 2 * (place % slices * plane + place / slices);
            f32::from(i16::from_le_bytes([voxels[at], voxels[at + 1]]))
        })
        .collect();
    let scan = CtScan {
        voxels: &units,
        shape: [rows, columns, slices],
        slope: 1.0,
        intercept: 0.0,
        spacing_in_plane: f64::from(along_rows),
        spacing_between_planes: f64::from(between_planes),
    };
    CtPreprocessor { size, ..CtPreprocessor::ct_clip() }.volume(&scan).map_err(|error| error.to_string())
}

impl Pixels for VolumeSet {
    fn ids(&self) -> &[String] {
        &self.ids
    }

    fn splits(&self) -> &[String] {
        &self.splits
    }

    fn groups(&self) -> &[Option<String>] {
        &self.groups
    }

    /// `[rows, 1, slices, height, width]`.
    fn batch(&self, rows: &[usize]) -> Result<Tensor, StageError> {
        let [slices, height, width] = self.size;
        let mut values = Vec::with_capacity(rows.len() * slices * height * width);
        for row in rows {
            values.extend(self.values(*row)?);
        }
        Tensor::from_vec(values, (rows.len(), 1, slices, height, width), &DEVICE).map_err(tensor_error)
    }

    fn at_a_time(&self, batch: i64) -> i64 {
        let voxels = self.size.iter().product::<usize>().max(1);
        batch.min((VOXELS_AT_A_TIME / voxels).max(1) as i64)
    }
}
