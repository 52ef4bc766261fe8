//! A table of volumes, each brought to a model's size when it is wanted: one of full size fills 220 MB. A model
//! of flat images sees slices of them.

mod masks;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::Preprocessor;
use pipe_models::preprocess::volume::{CtPreprocessor, CtScan, byte_volume};
use pipe_models::preprocess::{Picture, Samples, Slices};

pub(crate) use self::masks::MaskSet;
use crate::images::{Change, Pixels};
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
        Self::choose(artifact, VolumeRows::OfSplits(splits), size)
    }

    /// As [`Self::read`], of chosen rows.
    pub(crate) fn choose(
        artifact: &Artifact,
        wanted: VolumeRows<'_>,
        size: [usize; 3],
    ) -> Result<Self, StageError> {
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
            let part = artifact.only(file);
            let table = read_columns(&part, &["image_id", "split", "group_id"])?;
            let rows = match wanted {
                VolumeRows::OfSplits(splits) => table.rows_of_splits(splits),
                VolumeRows::Only(ids) => {
                    let all = table.strings("image_id")?;
                    (0..all.len()).filter(|row| ids.contains(all[*row])).collect()
                }
            };
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
        self.with(volume, |stored| prepared(stored, self.size))
    }

    /// The eight-bit squares that a model of flat images sees of a volume, one after another.
    fn squares(&self, volume: usize, preprocessor: &Preprocessor) -> Result<Vec<u8>, StageError> {
        self.with(volume, |stored| squares(stored, preprocessor))
    }

    /// What `take` makes of a volume as it is stored.
    fn with<T>(
        &self,
        volume: usize,
        take: impl FnOnce(&Stored<'_>) -> Result<T, String>,
    ) -> Result<T, StageError> {
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
        take(&Stored::of(table, row)?).map_err(wrong)
    }
}

/// Which rows of a table of volumes.
#[derive(Clone, Copy)]
pub(crate) enum VolumeRows<'a> {
    /// Those whose split is one of these; all if there are none.
    OfSplits(&'a [&'a str]),
    /// Those of these ids.
    Only(&'a BTreeSet<&'a str>),
}

/// Volumes as a model of flat images sees one slice of each: ids, splits, groups, and the eight-bit squares one
/// after another.
pub(crate) struct Flattened {
    pub(crate) ids: Vec<String>,
    pub(crate) splits: Vec<String>,
    pub(crate) groups: Vec<Option<String>>,
    pub(crate) squares: Vec<u8>,
}

impl Flattened {
    /// Reads the volumes part by part, each once.
    pub(crate) fn read(
        artifact: &Artifact,
        rows: VolumeRows<'_>,
        preprocessor: &Preprocessor,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let set = VolumeSet::choose(artifact, rows, [0; 3])?;
        let mut all = Vec::new();
        for volume in 0..set.ids.len() {
            context.check_cancelled()?;
            all.extend(set.squares(volume, preprocessor)?);
        }
        let VolumeSet { ids, splits, groups, .. } = set;
        Ok(Self { ids, splits, groups, squares: all })
    }
}

/// Volumes of some splits of which a model of flat images sees several slices, read when they are wanted.
pub(crate) struct SliceSet {
    volumes: VolumeSet,
    preprocessor: Preprocessor,
}

impl SliceSet {
    /// The chosen volumes.
    pub(crate) fn choose(
        artifact: &Artifact,
        rows: VolumeRows<'_>,
        preprocessor: &Preprocessor,
    ) -> Result<Self, StageError> {
        let volumes = VolumeSet::choose(artifact, rows, [0; 3])?;
        Ok(Self { volumes, preprocessor: preprocessor.clone() })
    }
}

impl Pixels for SliceSet {
    fn ids(&self) -> &[String] {
        &self.volumes.ids
    }

    fn splits(&self) -> &[String] {
        &self.volumes.splits
    }

    fn groups(&self) -> &[Option<String>] {
        &self.volumes.groups
    }

    /// `[rows, 3, slices, side, side]`.
    fn batch(&self, rows: &[usize]) -> Result<Tensor, StageError> {
        self.changed_batch(rows, None)
    }

    fn changed_batch(&self, rows: &[usize], change: Option<&dyn Change>) -> Result<Tensor, StageError> {
        let (side, slices) = (self.preprocessor.side, self.preprocessor.slices.count());
        let mut all = Vec::with_capacity(rows.len() * slices * side * side * 3);
        for row in rows {
            let mut squares = self.volumes.squares(*row, &self.preprocessor)?;
            if let Some(change) = change {
                // All slices move together.
                squares
                    .chunks_exact_mut(side * side * 3)
                    .for_each(|square| change.colours(*row, square, side));
            }
            all.extend(squares);
        }
        self.preprocessor
            .tensor(&all, &DEVICE)
            .and_then(|flat| flat.reshape((rows.len(), slices, 3, side, side))?.transpose(1, 2)?.contiguous())
            .map_err(tensor_error)
    }

    fn map_shape(&self) -> Vec<usize> {
        let side = self.preprocessor.side;
        vec![self.preprocessor.slices.count(), side, side]
    }

    fn black(&self) -> Vec<f32> {
        self.preprocessor.black().to_vec()
    }

    fn at_a_time(&self, batch: i64) -> i64 {
        (batch / self.preprocessor.slices.count() as i64).max(1)
    }
}

/// A row as it is stored.
#[derive(Clone, Copy)]
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

/// Slices, rows and columns.
fn lengths(shape: &[i32]) -> Result<[usize; 3], String> {
    let lengths: Vec<usize> = shape.iter().filter_map(|length| usize::try_from(*length).ok()).collect();
    <[usize; 3]>::try_from(lengths)
        .map_err(|_| format!("its shape is {shape:?}; slices, rows and columns are expected"))
}

fn other_type(dtype: &str) -> String {
    format!("its voxels are `{dtype}`; `u8` and `i16` (Hounsfield units) are read")
}

/// Fails unless there are as many voxels of so many bytes as the shape says.
fn check_length(voxels: &[u8], shape: [usize; 3], bytes: usize) -> Result<(), String> {
    let count = shape.iter().try_fold(bytes, |count, length| count.checked_mul(*length));
    if count != Some(voxels.len()) {
        return Err(format!("it has {} bytes of voxels, its shape {shape:?} another number", voxels.len()));
    }
    Ok(())
}

/// The slices that a model of flat images sees, each preprocessed as an image: bytes (`u8`) as grey values,
/// Hounsfield units (`i16`) through a window. Spacings have no part in it.
fn squares(stored: &Stored<'_>, preprocessor: &Preprocessor) -> Result<Vec<u8>, String> {
    let Stored { voxels, dtype, shape, .. } = *stored;
    let shape = lengths(shape)?;
    let [depth, rows, columns] = shape;
    let bytes = match dtype {
        "u8" => 1,
        "i16" => 2,
        _ => return Err(other_type(dtype)),
    };
    check_length(voxels, shape, bytes)?;
    if depth == 0 {
        return Err("it has no slice".to_owned());
    }
    let plane = rows * columns;
    let [black, white] = preprocessor.hounsfield;
    let grey = |slice: usize, pixel: usize| -> u8 {
        let place = slice * plane + pixel;
        match bytes {
            1 => voxels[place],
            _ => {
                let units = f64::from(i16::from_le_bytes([voxels[2 * place], voxels[2 * place + 1]]));
                // The cast saturates.
                ((units - black) * 255.0 / (white - black)).round_ties_even() as u8
            }
        }
    };
    let mut all = Vec::new();
    for slices in preprocessor.slices.of(depth) {
        let samples = if slices[0] == slices[2] {
            Samples::Grey((0..plane).map(|pixel| grey(slices[0], pixel)).collect())
        } else {
            Samples::Rgb((0..plane).flat_map(|pixel| slices.map(|slice| grey(slice, pixel))).collect())
        };
        let picture = Picture::new(columns, rows, samples).map_err(|error| error.to_string())?;
        all.extend(preprocessor.square(&picture).map_err(|error| error.to_string())?);
    }
    Ok(all)
}

/// Stored voxels as the model takes them: Hounsfield units (`i16`) resampled, cut and padded as CT-CLIP's are,
/// bytes (`u8`) stretched to the whole volume.
fn prepared(stored: &Stored<'_>, size: [usize; 3]) -> Result<Vec<f32>, String> {
    let Stored { voxels, dtype, shape, spacing } = *stored;
    let shape = lengths(shape)?;
    let [slices, rows, columns] = shape;
    if dtype == "u8" {
        return byte_volume(voxels, shape, size).map_err(|error| error.to_string());
    }
    if dtype != "i16" {
        return Err(other_type(dtype));
    }
    let &[between_planes, along_rows, along_columns] = spacing.unwrap_or_default() else {
        return Err("it has no spacing of slices, rows and columns, which Hounsfield units need".to_owned());
    };
    if along_rows != along_columns {
        return Err(format!("its pixels are {along_rows} by {along_columns} mm; squares are expected"));
    }
    check_length(voxels, shape, 2)?;
    // Slices fastest, as scans are stored elsewhere.
    let plane = rows * columns;
    let units: Vec<i16> = (0..plane * slices)
        .map(|place| {
            let at = 2 * (place % slices * plane + place / slices);
            i16::from_le_bytes([voxels[at], voxels[at + 1]])
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

/// What a model saw of the volume `id` as grey values in C order, in the geometry of maps of `shape` (slices, height
/// and width): of the whole volume as it takes it, or slice by slice as flat images. `None` if there is no such
/// volume.
///
/// # Errors
/// If the table is damaged.
pub(crate) fn grey_volume(
    artifact: &Artifact,
    id: &str,
    shape: [usize; 3],
    by_slices: bool,
) -> Result<Option<Vec<u8>>, StageError> {
    let set = VolumeSet::read(artifact, &[], shape)?;
    let Some(volume) = set.ids.iter().position(|own| own == id) else { return Ok(None) };
    let [slices, _, width] = shape;
    let grey: Vec<u8> = if by_slices {
        let preprocessor = Preprocessor { slices: Slices::Mean(slices), ..Preprocessor::clip(width) };
        let squares = set.squares(volume, &preprocessor)?;
        squares.as_chunks::<3>().0.iter().map(|pixel| pixel[0]).collect()
    } else {
        // -1 is air.
        set.values(volume)?.iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect()
    };
    Ok((grey.len() == shape.iter().product::<usize>()).then_some(grey))
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
        self.changed_batch(rows, None)
    }

    fn changed_batch(&self, rows: &[usize], change: Option<&dyn Change>) -> Result<Tensor, StageError> {
        let [slices, height, width] = self.size;
        let mut values = Vec::with_capacity(rows.len() * slices * height * width);
        for row in rows {
            let mut volume = self.values(*row)?;
            if let Some(change) = change {
                // All slices move together.
                for slice in volume.chunks_exact_mut((height * width).max(1)) {
                    change.grey(*row, slice, [height, width]);
                }
            }
            values.extend(volume);
        }
        Tensor::from_vec(values, (rows.len(), 1, slices, height, width), &DEVICE).map_err(tensor_error)
    }

    fn map_shape(&self) -> Vec<usize> {
        self.size.to_vec()
    }

    /// Air.
    fn black(&self) -> Vec<f32> {
        vec![-1.0]
    }

    fn at_a_time(&self, batch: i64) -> i64 {
        let voxels = self.size.iter().product::<usize>().max(1);
        batch.min((VOXELS_AT_A_TIME / voxels).max(1) as i64)
    }
}
