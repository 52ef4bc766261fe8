//! Saliency maps as they are stored: an Arrow file with one map per row.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Float32Type;
use arrow_array::{Array as _, RecordBatch};
use arrow_ipc::reader::FileReader;
use arrow_schema::{Field, Schema};
use pipe_engine::{Artifact, StageError};

use super::columns::{numbers, texts};

/// Maps with more values than this on one side are no pictures.
const LONGEST_SIDE: usize = 4096;

/// A slice of a map of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) index: usize,
    /// Slices of the whole map.
    pub(super) count: usize,
}

/// One map, row-major; of a volume its most salient slice.
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
    /// Nothing where the method gave no map.
    pub(super) map: Option<Map>,
}

/// The metadata of the file's schema: method, model, layer, baseline and parameters.
pub(super) type Metadata = BTreeMap<String, String>;

/// Calls `wanted` with the id of each sample and that of its image; where it answers yes, its row is read.
///
/// # Errors
/// If the artifact holds no Arrow file of this layout.
pub(super) fn read(
    artifact: &Artifact,
    mut wanted: impl FnMut(&str, &str) -> bool,
) -> Result<(Metadata, BTreeMap<String, Explanation>), StageError> {
    let mut metadata = Metadata::new();
    let mut explanations = BTreeMap::new();
    for file in artifact.files_ending(".arrow") {
        let fail = |error: &dyn std::fmt::Display| StageError::input(&file.path, error.to_string());
        let opened = File::open(&file.location).map_err(|error| fail(&error))?;
        let reader = FileReader::try_new(BufReader::new(opened), None).map_err(|error| fail(&error))?;
        let schema = reader.schema();
        metadata.extend(schema.metadata().clone());
        let shape = shape_of(&schema);
        for batch in reader {
            let batch = batch.map_err(|error| fail(&error))?;
            read_batch(&batch, shape, &mut wanted, &mut explanations);
        }
    }
    Ok((metadata, explanations))
}

fn read_batch(
    batch: &RecordBatch,
    shape: Option<[usize; 3]>,
    wanted: &mut impl FnMut(&str, &str) -> bool,
    explanations: &mut BTreeMap<String, Explanation>,
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
        let map = shape.filter(|_| is_valid).and_then(|shape| map_of(batch, row, shape));
        explanations.insert(
            id,
            Explanation {
                image,
                question: questions[row].clone(),
                target: targets[row].clone(),
                score: scores[row],
                completeness_gap: gaps[row],
                status,
                map,
            },
        );
    }
}

fn map_of(batch: &RecordBatch, row: usize, [slices, height, width]: [usize; 3]) -> Option<Map> {
    let column = batch.column_by_name("saliency")?.as_fixed_size_list_opt()?;
    if column.is_null(row) || column.value_length() as usize != slices * height * width {
        return None;
    }
    let values = column.value(row);
    let values = values.as_primitive_opt::<Float32Type>()?;
    let finite = |value: Option<f32>| value.filter(|value| value.is_finite()).unwrap_or(0.0);
    let values: Vec<f32> = values.iter().map(finite).collect();
    if slices == 1 {
        return Some(Map { slice: None, height, width, values });
    }
    let plane = height * width;
    let index = most_salient(&values, plane);
    let values = values[index * plane..(index + 1) * plane].to_vec();
    Some(Map { slice: Some(Slice { index, count: slices }), height, width, values })
}

/// The slice of the greatest sum of absolute values; the first of equal ones.
fn most_salient(values: &[f32], plane: usize) -> usize {
    let mut best = (0, 0.0);
    for (index, slice) in values.chunks_exact(plane).enumerate() {
        let sum: f64 = slice.iter().map(|value| f64::from(value.abs())).sum();
        if sum > best.1 {
            best = (index, sum);
        }
    }
    best.0
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
