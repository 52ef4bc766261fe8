//! Saliency inputs as maps.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, RecordBatch};
use pipe_engine::{InputArtifact, StageError};

use crate::framing::Framing;
use crate::ipc::{read_file, tensors, texts};

/// What is explained: an image and a class of it, or a question about an image and an answer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Subject {
    pub(crate) id: String,
    /// The id of the image; without a question the same.
    pub(crate) image: String,
    /// The question, if there is one.
    pub(crate) question: Option<String>,
    /// The name of the class.
    pub(crate) target: Option<String>,
    /// Its index in the head.
    pub(crate) class: Option<usize>,
}

/// The maps of one method.
pub(crate) struct Maps {
    pub(crate) method: String,
    /// What the method compared images with, if it did.
    pub(crate) baseline: Option<String>,
    /// Axes of the study, which may tell these maps from others of the method.
    pub(crate) axes: BTreeMap<String, String>,
    /// Slices, height and width; flat images are one slice.
    pub(crate) shape: [usize; 3],
    /// Whether they are maps of volumes.
    pub(crate) of_volumes: bool,
    /// What a model of flat images saw of volumes slice by slice, if the file says so.
    pub(crate) slices: Option<String>,
    /// Each subject with its map, row by row, or why there is none.
    pub(crate) rows: Vec<(Subject, Result<Vec<f64>, String>)>,
    /// Of each row whether the model is right about the sample, if the file says so.
    pub(crate) correct: Vec<Option<bool>>,
    /// The class whose logit is subtracted from that of what they explain, if one is.
    pub(crate) against: Option<String>,
    /// Where the maps lie on their images, if the file says so.
    pub(crate) framing: Option<Framing>,
    /// Whether they explain answers to questions, or the likeness of images and texts: no classes.
    pub(crate) of_answers: bool,
    /// The digest of the checkpoint that was explained, if the file says so.
    pub(crate) checkpoint: Option<String>,
    /// The parameters of the method, if the file says so.
    pub(crate) params: Option<String>,
}

/// Maps with more values than this on one side are no maps of images.
const LONGEST_SIDE: usize = 8192;

impl Maps {
    /// Reads the maps of one input.
    ///
    /// # Errors
    /// If it holds no Arrow file of the layout of saliency maps.
    pub(crate) fn read(input: &InputArtifact) -> Result<Self, StageError> {
        let mut all: Option<Self> = None;
        for file in input.artifact.files_ending(".arrow") {
            let batch = read_file(&file.location)?;
            let part =
                Self::of_batch(&batch, input).map_err(|reason| StageError::input(&file.path, reason))?;
            all = Some(match all {
                None => part,
                Some(mut all) if all.shape == part.shape && all.method == part.method => {
                    all.rows.extend(part.rows);
                    all.correct.extend(part.correct);
                    all
                }
                Some(all) => {
                    let reason = format!(
                        "its maps are {} of {:?}, those of the first file {} of {:?}",
                        part.method, part.shape, all.method, all.shape
                    );
                    return Err(StageError::input(&file.path, reason));
                }
            });
        }
        all.ok_or_else(|| StageError::input("saliency", "it holds no Arrow file"))
    }

    fn of_batch(batch: &RecordBatch, input: &InputArtifact) -> Result<Self, String> {
        let schema = batch.schema();
        let metadata = schema.metadata();
        let method = metadata.get("method").cloned().or_else(|| input.axes.get("method").cloned());
        let method = method.ok_or("its metadata has no `method`")?;
        let (values, shape) = tensors(batch, "saliency").ok_or("it has no column `saliency` of tensors")?;
        let shape = match shape.as_slice() {
            sides if sides.iter().any(|side| !(1..=LONGEST_SIDE).contains(side)) => None,
            [height, width] => Some([1, *height, *width]),
            [slices, height, width] => Some([*slices, *height, *width]),
            _ => None,
        };
        let shape =
            shape.ok_or("its maps are neither of height and width nor of slices, height and width")?;
        let of_volumes = shape[0] > 1;
        let ids = texts(batch, "id").ok_or("it has no text column `id`")?;
        let images = texts(batch, "image_id");
        let questions = texts(batch, "question");
        let of_answers = images.is_some();
        let targets = texts(batch, "target").unwrap_or_else(|| vec![None; ids.len()]);
        let statuses = texts(batch, "status").unwrap_or_else(|| vec![None; ids.len()]);
        let classes = batch.column_by_name("target_index").and_then(|column| {
            column.as_primitive_opt::<Int32Type>().map(|column| column.iter().collect::<Vec<_>>())
        });
        let correct = batch.column_by_name("correct").and_then(|column| column.as_boolean_opt());
        let correct = (0..ids.len()).map(|row| {
            let correct = correct.filter(|correct| correct.is_valid(row))?;
            Some(correct.value(row))
        });
        let correct = correct.collect();
        let column = batch.column_by_name("saliency").ok_or("it has no column `saliency`")?;
        let length = shape.iter().product::<usize>();
        let mut rows = Vec::with_capacity(ids.len());
        for (row, id) in ids.into_iter().enumerate() {
            let id = id.ok_or_else(|| format!("row {row} has no id"))?;
            let class = classes.as_ref().and_then(|classes| classes[row]);
            let image = images.as_ref().and_then(|images| images[row].clone());
            let subject = Subject {
                image: image.unwrap_or_else(|| id.clone()),
                question: questions.as_ref().and_then(|questions| questions[row].clone()),
                id,
                target: targets[row].clone(),
                class: class.and_then(|class| usize::try_from(class).ok()),
            };
            let map = match statuses[row].as_deref() {
                Some(status) if status.starts_with("not_applicable") => Err(status.to_owned()),
                _ if column.is_null(row) => Err("there is no map".to_owned()),
                _ => {
                    let map = &values[row * length..(row + 1) * length];
                    match map.iter().all(|value| value.is_finite()) {
                        true => Ok(map.iter().map(|value| f64::from(*value)).collect()),
                        false => Err("the map has values that are not finite".to_owned()),
                    }
                }
            };
            rows.push((subject, map));
        }
        let checkpoint = metadata.get("pipe").and_then(|text| checkpoint_of(text));
        let baseline = metadata.get("baseline").filter(|name| *name != "none").cloned();
        let against = metadata.get("against").cloned();
        let params = metadata.get("params").cloned();
        let framing = Framing::read(|key| metadata.get(key));
        let axes = axes(input);
        let slices = metadata.get("volumes").cloned();
        Ok(Self {
            method,
            baseline,
            axes,
            shape,
            of_volumes,
            slices,
            rows,
            correct,
            against,
            framing,
            of_answers,
            checkpoint,
            params,
        })
    }
}

/// Columns of the table of scores, whose names an axis cannot have.
const COLUMNS: [&str; 17] = [
    "id",
    "method",
    "metric",
    "baseline",
    "value",
    "mask_share",
    "mode",
    "reason",
    "target",
    "map_baseline",
    "score",
    "better",
    "parameters",
    "correct",
    "group_id",
    "step",
    "kept_share",
];

/// The axes of the study, by the names of their columns. The method has a column of its own.
fn axes(input: &InputArtifact) -> BTreeMap<String, String> {
    let name = |axis: &str| match COLUMNS.contains(&axis) {
        true => format!("axis_{axis}"),
        false => axis.to_owned(),
    };
    let axes = input.axes.iter().filter(|(axis, _)| axis.as_str() != "method");
    axes.map(|(axis, value)| (name(axis), value.clone())).collect()
}

/// The digest of the input `checkpoint` in a file's provenance.
fn checkpoint_of(provenance: &str) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(provenance).ok()?;
    Some(json["inputs"]["checkpoint"][0].as_str()?.to_owned())
}

/// All subjects of several inputs, each once, in the order of their first appearance.
pub(crate) fn subjects<'a>(inputs: impl IntoIterator<Item = &'a Maps>) -> Vec<Subject> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (subject, _) in inputs.into_iter().flat_map(|maps| &maps.rows) {
        if seen.insert(subject) {
            all.push(subject.clone());
        }
    }
    all
}
