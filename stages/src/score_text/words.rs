//! Files of words as explanations.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{Array, RecordBatch};
use pipe_engine::{InputArtifact, StageError};

use crate::ipc::{read_file, texts};

/// A caption that is explained.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Subject {
    pub(super) id: String,
    /// The id of its image.
    pub(super) image: String,
    pub(super) caption: String,
}

/// The words of a caption with their values.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Valued {
    /// First byte of each word and the byte behind its last.
    pub(super) places: Vec<[usize; 2]>,
    pub(super) values: Vec<f64>,
    /// What was explained.
    pub(super) score: Option<f32>,
}

/// The words of one method.
pub(super) struct Words {
    pub(super) method: String,
    /// What stood for an absent word.
    pub(super) absent: Option<String>,
    /// Axes of the study, which may tell these words from others of the method.
    pub(super) axes: BTreeMap<String, String>,
    /// Each caption with its words, or why there are none.
    pub(super) rows: Vec<(Subject, Result<Valued, String>)>,
}

impl Words {
    /// Reads the words of one input.
    ///
    /// # Errors
    /// If it holds no Arrow file of words of captions.
    pub(super) fn read(input: &InputArtifact) -> Result<Self, StageError> {
        let mut all: Option<Self> = None;
        for file in input.artifact.files_ending(".arrow") {
            let batch = read_file(&file.location)?;
            let part =
                Self::of_batch(&batch, input).map_err(|reason| StageError::input(&file.path, reason))?;
            match &mut all {
                None => all = Some(part),
                Some(all) if all.method == part.method => all.rows.extend(part.rows),
                Some(all) => {
                    let reason = format!(
                        "its words are by {}, those of the first file by {}",
                        part.method, all.method
                    );
                    return Err(StageError::input(&file.path, reason));
                }
            }
        }
        all.ok_or_else(|| StageError::input("words", "it holds no Arrow file"))
    }

    fn of_batch(batch: &RecordBatch, input: &InputArtifact) -> Result<Self, String> {
        let schema = batch.schema();
        let metadata = schema.metadata();
        let method = metadata.get("method").cloned().ok_or("it does not say its method")?;
        let column =
            |name: &str| texts(batch, name).ok_or_else(|| format!("it has no column `{name}` of texts"));
        let [ids, kinds, targets, captions, statuses] =
            ["id", "target_kind", "target", "caption", "status"].map(column);
        let (ids, kinds, targets, captions, statuses) = (ids?, kinds?, targets?, captions?, statuses?);
        if let Some(kind) = kinds.iter().flatten().find(|kind| *kind != "similarity") {
            return Err(format!(
                "its words explain a {kind}, and not the similarity of captions with images"
            ));
        }
        let list = |name: &str| {
            let lists = batch.column_by_name(name).and_then(|column| column.as_list_opt::<i32>());
            lists.ok_or_else(|| format!("it has no column `{name}` of lists"))
        };
        let (offsets, values) = (list("offsets")?, list("values")?);
        let scores =
            batch.column_by_name("score").and_then(|column| column.as_primitive_opt::<Float32Type>());
        let row = |row: usize| -> Result<(Subject, Result<Valued, String>), String> {
            let subject = Subject {
                id: ids[row].clone().unwrap_or_default(),
                image: targets[row].clone().unwrap_or_default(),
                caption: captions[row].clone().unwrap_or_default(),
            };
            let status = statuses[row].clone().unwrap_or_default();
            if values.is_null(row) || offsets.is_null(row) {
                return Ok((subject, Err(status)));
            }
            let (offsets, values) = (offsets.value(row), values.value(row));
            let offsets = offsets.as_primitive_opt::<Int32Type>().ok_or("`offsets` are whole numbers")?;
            let values = values.as_primitive_opt::<Float32Type>().ok_or("`values` are numbers")?;
            let places: Vec<[usize; 2]> = offsets
                .values()
                .chunks_exact(2)
                .map(|place| [place[0].max(0) as usize, place[1].max(0) as usize])
                .collect();
            if places.len() != values.len() {
                return Err(format!(
                    "`{}` has {} words and {} values",
                    subject.id,
                    places.len(),
                    values.len()
                ));
            }
            let values = values.values().iter().map(|value| f64::from(*value)).collect();
            let score = scores.filter(|scores| scores.is_valid(row)).map(|scores| scores.value(row));
            Ok((subject, Ok(Valued { places, values, score })))
        };
        Ok(Self {
            method,
            absent: metadata.get("baseline").cloned(),
            axes: input.axes.clone(),
            rows: (0..batch.num_rows()).map(row).collect::<Result<_, String>>()?,
        })
    }
}
