//! Saliency maps as they are stored: an Arrow file with one map per row.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Float32Type;
use arrow_array::{Array as _, RecordBatch};
use arrow_schema::{Field, Schema};
use pipe_engine::{Artifact, StageError};

use super::columns::{numbers, texts};
use crate::arrow_file::ArrowFile;

/// Slices of a strip at most.
const STRIP: usize = 8;

/// Maps with more values than this on one side are no pictures.
const LONGEST_SIDE: usize = 4096;

/// The direction of a slice through a volume of slices, rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plane {
    /// One of the slices: rows and columns.
    Axial,
    /// One row of all slices: slices and columns.
    Coronal,
    /// One column of all slices: slices and rows.
    Sagittal,
}

impl Plane {
    /// The three of them.
    pub(super) const ALL: [Self; 3] = [Self::Axial, Self::Coronal, Self::Sagittal];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Axial => "axial",
            Self::Coronal => "coronal",
            Self::Sagittal => "sagittal",
        }
    }

    /// How many slices of this direction a volume of `[slices, rows, columns]` has.
    pub(super) fn count(self, [slices, rows, columns]: [usize; 3]) -> usize {
        match self {
            Self::Axial => slices,
            Self::Coronal => rows,
            Self::Sagittal => columns,
        }
    }

    /// Height and width of such a slice.
    pub(super) fn size(self, [slices, rows, columns]: [usize; 3]) -> [usize; 2] {
        match self {
            Self::Axial => [rows, columns],
            Self::Coronal => [slices, columns],
            Self::Sagittal => [slices, rows],
        }
    }

    /// Slice `index` of a volume, row-major.
    pub(super) fn cut<T: Copy>(self, values: &[T], shape: [usize; 3], index: usize) -> Vec<T> {
        let [_, rows, columns] = shape;
        let [height, width] = self.size(shape);
        let place = |y: usize, x: usize| match self {
            Self::Axial => (index * rows + y) * columns + x,
            Self::Coronal => (y * rows + index) * columns + x,
            Self::Sagittal => (y * rows + x) * columns + index,
        };
        (0..height).flat_map(|y| (0..width).map(move |x| values[place(y, x)])).collect()
    }
}

/// A slice of a map of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) plane: Plane,
    pub(super) index: usize,
    /// Shape of the whole map: slices, rows, columns.
    pub(super) of: [usize; 3],
}

/// One map, row-major; of a volume a slice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Map {
    /// Which slice it is, if it is one.
    pub(super) slice: Option<Slice>,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Finite values; those that were not are 0.
    pub(super) values: Vec<f32>,
}

/// What is stored for one sample.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Explanation {
    /// The id of its image; that of the sample unless several samples share an image, as questions do.
    pub(super) image: String,
    /// The question whose answer is explained, if there is one.
    pub(super) question: Option<String>,
    pub(super) target: Option<String>,
    pub(super) score: Option<f64>,
    pub(super) completeness_gap: Option<f64>,
    pub(super) status: String,
    /// Nothing where the method gave no map; of a volume the most salient slice of each direction.
    pub(super) maps: Vec<Map>,
    /// Of a volume axial slices at equal distances, or all if they are few; else nothing.
    pub(super) strip: Vec<Map>,
}

/// What is stored of each sample: an explanation per target, in the order of the file.
pub(super) type Explanations = BTreeMap<String, Vec<Explanation>>;

/// The metadata of the file's schema: method, model, layer, baseline and parameters.
pub(super) type Metadata = BTreeMap<String, String>;

/// Calls `wanted` with the id of each sample and that of its image; where it answers yes, its row is read.
///
/// # Errors
/// If the artifact holds no Arrow file of this layout.
pub(super) fn read(
    artifact: &Artifact,
    mut wanted: impl FnMut(&str, &str) -> bool,
) -> Result<(Metadata, Explanations), StageError> {
    let mut metadata = Metadata::new();
    let mut explanations = Explanations::new();
    for file in artifact.files_ending(".arrow") {
        let mut rows = ArrowFile::open(&file.location)?;
        let schema = rows.schema();
        metadata.extend(schema.metadata().clone());
        let shape = shape_of(&schema);
        while let Some(batch) = rows.next()? {
            read_batch(&batch, shape, &mut wanted, &mut explanations);
        }
    }
    Ok((metadata, explanations))
}

fn read_batch(
    batch: &RecordBatch,
    shape: Option<[usize; 3]>,
    wanted: &mut impl FnMut(&str, &str) -> bool,
    explanations: &mut Explanations,
) {
    let [ids, images, questions] = ["id", "image_id", "question"].map(|name| texts(batch, name));
    let targets = texts(batch, "target");
    let scores = numbers(batch, "score");
    let gaps = numbers(batch, "completeness_gap");
    let statuses = texts(batch, "status");
    let valid = numbers(batch, "valid");
    for (row, id) in ids.into_iter().enumerate() {
        let Some(id) = id else { continue };
        let image = images[row].clone().unwrap_or_else(|| id.clone());
        if !wanted(&id, &image) {
            continue;
        }
        let status = statuses[row].clone().unwrap_or_else(|| "ok".to_owned());
        let is_valid = valid[row] != Some(0.0) && !status.starts_with("not_applicable");
        let drawn = shape.filter(|_| is_valid).and_then(|shape| maps_of(batch, row, shape));
        let (maps, strip) = drawn.unwrap_or_default();
        explanations.entry(id).or_default().push(Explanation {
            image,
            question: questions[row].clone(),
            target: targets[row].clone(),
            score: scores[row],
            completeness_gap: gaps[row],
            status,
            maps,
            strip,
        });
    }
}

/// What is drawn of a row: its map, or slices of it and a strip.
fn maps_of(batch: &RecordBatch, row: usize, shape: [usize; 3]) -> Option<(Vec<Map>, Vec<Map>)> {
    let column = batch.column_by_name("saliency")?.as_fixed_size_list_opt()?;
    if column.is_null(row) || column.value_length() as usize != shape.iter().product::<usize>() {
        return None;
    }
    let values = column.value(row);
    let values = values.as_primitive_opt::<Float32Type>()?;
    let finite = |value: Option<f32>| value.filter(|value| value.is_finite()).unwrap_or(0.0);
    let values: Vec<f32> = values.iter().map(finite).collect();
    let [slices, height, width] = shape;
    if slices == 1 {
        return Some((vec![Map { slice: None, height, width, values }], Vec::new()));
    }
    let map = |plane: Plane, index: usize| {
        let [height, width] = plane.size(shape);
        let values = plane.cut(&values, shape, index);
        Map { slice: Some(Slice { plane, index, of: shape }), height, width, values }
    };
    let maps = Plane::ALL.map(|plane| map(plane, most_salient(plane, &values, shape)));
    let strip = strip_of(slices).into_iter().map(|index| map(Plane::Axial, index));
    Some((maps.to_vec(), strip.collect()))
}

/// The slices of a strip: the middles of equal parts.
fn strip_of(slices: usize) -> Vec<usize> {
    let count = slices.min(STRIP);
    (0..count).map(|part| (2 * part + 1) * slices / (2 * count)).collect()
}

/// The slice of the greatest sum of absolute values; the first of equal ones.
fn most_salient(plane: Plane, values: &[f32], shape: [usize; 3]) -> usize {
    let [_, rows, columns] = shape;
    let mut sums = vec![0.0f64; plane.count(shape)];
    for (place, value) in values.iter().enumerate() {
        let index = match plane {
            Plane::Axial => place / (rows * columns),
            Plane::Coronal => place / columns % rows,
            Plane::Sagittal => place % columns,
        };
        sums[index] += f64::from(value.abs());
    }
    let mut best = 0;
    for (index, sum) in sums.iter().enumerate() {
        if *sum > sums[best] {
            best = index;
        }
    }
    best
}

/// Slices, height and width from the tensor's metadata; of flat images there is one slice.
fn shape_of(schema: &Schema) -> Option<[usize; 3]> {
    let field: &Field = schema.field_with_name("saliency").ok()?;
    let text = field.metadata().get("ARROW:extension:metadata")?;
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let shape: Option<Vec<usize>> =
        json.get("shape")?.as_array()?.iter().map(|side| Some(side.as_u64()? as usize)).collect();
    let shape = shape.filter(|shape| shape.iter().all(|side| (1..=LONGEST_SIDE).contains(side)))?;
    match shape.as_slice() {
        [height, width] => Some([1, *height, *width]),
        [slices, height, width] => Some([*slices, *height, *width]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strip_has_slices_at_equal_distances() {
        assert_eq!(strip_of(240), [15, 45, 75, 105, 135, 165, 195, 225]);
        assert_eq!(strip_of(5), [0, 1, 2, 3, 4]);
        assert_eq!(strip_of(9).last(), Some(&8));
    }

    #[test]
    fn slices_run_along_each_axis() {
        // Two slices of three rows of four columns, numbered.
        let (shape, volume) = ([2, 3, 4], (0..24).collect::<Vec<i32>>());
        assert_eq!(Plane::Axial.cut(&volume, shape, 1), (12..24).collect::<Vec<i32>>());
        assert_eq!(Plane::Coronal.cut(&volume, shape, 2), [8, 9, 10, 11, 20, 21, 22, 23]);
        assert_eq!(Plane::Sagittal.cut(&volume, shape, 3), [3, 7, 11, 15, 19, 23]);
        let mut map = vec![0.0f32; 24];
        (map[17], map[1]) = (-5.0, 1.0);
        let of = |plane: Plane| most_salient(plane, &map, shape);
        // Voxel 17 is slice 1, row 1, column 1.
        assert_eq!(Plane::ALL.map(of), [1, 1, 1]);
        assert_eq!(Plane::ALL.map(|plane| plane.count(shape)), [2, 3, 4]);
    }
}
