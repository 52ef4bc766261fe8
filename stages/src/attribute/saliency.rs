//! Saliency maps as they are stored: one row per image and target.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BooleanArray, Float32Array, Int32Array, StringArray};
use arrow_schema::{DataType, Field};
use pipe_attribution::{Attribution, Interpolation, relative_gap, resize};
use pipe_engine::{OutputWriter, StageError};

use super::Reduction;
use crate::ipc::{BatchWriter, nullable_tensor_column};

/// Rows of a record batch at most.
const BATCH_ROWS: usize = 64;
/// Values of a record batch at most, unless one map has more: maps of volumes are large.
const BATCH_VALUES: usize = 1 << 24;

/// The map of one sample, channels reduced.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct SaliencyMap {
    /// Row-major.
    values: Vec<f32>,
    /// What was explained; nothing where the map stands for no score of a model.
    score: Option<f32>,
    baseline_score: Option<f32>,
    completeness_gap: Option<f32>,
}

impl SaliencyMap {
    /// Row-major values that explain no score.
    pub(crate) fn of_values(values: Vec<f32>) -> Self {
        Self { values, score: None, baseline_score: None, completeness_gap: None }
    }

    /// Row-major.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    pub(crate) fn is_all_zero(&self) -> bool {
        self.values.iter().all(|value| *value == 0.0)
    }

    /// The gap as a share of the difference of scores; none where that is nearly 0.
    pub(crate) fn relative_gap(&self) -> Option<f32> {
        relative_gap(self.score?, self.baseline_score?, self.completeness_gap?)
    }
}

/// One map of `shape` (height and width; of volumes slices, height and width) per row of an attribution
/// `[rows, channels, ...]`, or why there is none.
pub(crate) fn maps(
    attribution: &Attribution,
    reduction: Reduction,
    shape: &[usize],
) -> candle_core::Result<Vec<Result<SaliencyMap, String>>> {
    let [rows, channels, places @ ..] = attribution.values.dims() else {
        candle_core::bail!("an attribution has rows and channels, not {:?}", attribution.values.dims());
    };
    let (rows, channels) = (*rows, *channels);
    if places.len() != shape.len() {
        candle_core::bail!("maps of {shape:?} were to be made of {places:?} places");
    }
    let plane: usize = places.iter().product();
    let values = attribution.values.flatten_all()?.to_vec1::<f32>()?;
    let map = |row: usize| {
        let values = &values[row * channels * plane..(row + 1) * channels * plane];
        let reduced: Vec<f32> = (0..plane)
            .map(|pixel| {
                let channels = values[pixel..].iter().step_by(plane);
                match reduction {
                    Reduction::GreatestAbsolute => channels.fold(0.0, |most, value| value.abs().max(most)),
                    _ => channels.map(|value| f64::from(*value)).sum::<f64>() as f32,
                }
            })
            .map(|value| if reduction == Reduction::PositiveGrid { value.max(0.0) } else { value })
            .collect();
        let reduced = match places == shape {
            true => reduced,
            false => resize(&reduced, places, shape, Interpolation::Centres),
        };
        if !values.iter().all(|value| value.is_finite()) {
            return Err("the attribution has values that are not finite".to_owned());
        }
        Ok(SaliencyMap {
            values: reduced,
            score: Some(attribution.scores[row]),
            baseline_score: attribution.baseline_scores.as_ref().map(|scores| scores[row]),
            completeness_gap: attribution.completeness_gaps.as_ref().map(|gaps| gaps[row]),
        })
    };
    Ok((0..rows).map(map).collect())
}

/// A table of maps, written in batches.
pub(crate) struct SaliencyFile<'a> {
    writer: BatchWriter,
    shape: Vec<usize>,
    target_kind: &'static str,
    classes: &'a [String],
    rows: Vec<Row>,
    is_begun: bool,
    subjects: Subjects,
}

/// What a row of a table of maps explains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Subjects {
    /// An image.
    Images,
    /// A question about an image.
    Questions,
    /// An image with a text.
    Pairs,
}

/// What a map explains beside its image.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// The id of its image: several questions or texts may be about one.
    pub(crate) image: String,
    /// The question whose answer is explained, if it is one.
    pub(crate) question: Option<String>,
}

struct Row {
    id: String,
    about: About,
    class: Option<usize>,
    correct: Option<bool>,
    outcome: Result<SaliencyMap, String>,
}

impl<'a> SaliencyFile<'a> {
    /// A table of maps of `shape` (height and width; of volumes slices, height and width) for targets among
    /// `classes`.
    pub(crate) fn new(
        output: &OutputWriter,
        shape: &[usize],
        target_kind: &'static str,
        classes: &'a [String],
        metadata: HashMap<String, String>,
    ) -> Result<Self, StageError> {
        let writer = BatchWriter::new(output, metadata)?;
        let shape = shape.to_vec();
        Ok(Self {
            writer,
            shape,
            target_kind,
            classes,
            rows: Vec::new(),
            is_begun: false,
            subjects: Subjects::Images,
        })
    }

    /// A table of questions about images: with [`About`] in two more columns.
    #[must_use]
    pub(crate) fn of_questions(self) -> Self {
        Self { subjects: Subjects::Questions, ..self }
    }

    /// A table of images with texts, whose targets are the texts: they have no index, and the image of [`About`] a
    /// column.
    #[must_use]
    pub(crate) fn of_pairs(self) -> Self {
        Self { subjects: Subjects::Pairs, ..self }
    }

    /// Adds a row: a map, or the reason why there is none; `correct`: whether the model is right about the sample.
    pub(crate) fn add(
        &mut self,
        id: &str,
        about: About,
        class: Option<usize>,
        correct: Option<bool>,
        outcome: Result<SaliencyMap, String>,
    ) -> Result<(), StageError> {
        self.rows.push(Row { id: id.to_owned(), about, class, correct, outcome });
        let next = (self.rows.len() + 1) * self.length();
        if self.rows.len() == BATCH_ROWS || next > BATCH_VALUES { self.flush() } else { Ok(()) }
    }

    /// Values of a map.
    fn length(&self) -> usize {
        self.shape.iter().product()
    }

    /// Writes what is left and declares the table to the engine. One without rows has its columns all the
    /// same.
    pub(crate) fn finish(mut self, output: &mut OutputWriter) -> Result<(), StageError> {
        if !self.rows.is_empty() || !self.is_begun {
            self.flush()?;
        }
        self.writer.finish(output, "saliency")
    }

    fn flush(&mut self) -> Result<(), StageError> {
        self.is_begun = true;
        let rows = std::mem::take(&mut self.rows);
        let columns = self.columns(&rows)?;
        self.writer.write(columns)
    }

    fn columns(&self, rows: &[Row]) -> Result<Vec<(Field, ArrayRef)>, StageError> {
        fn column(name: &str, data_type: DataType, array: impl Array + 'static) -> (Field, ArrayRef) {
            (Field::new(name, data_type, true), Arc::new(array))
        }
        let text = |name: &str, value: &dyn Fn(&Row) -> Option<String>| {
            column(name, DataType::Utf8, rows.iter().map(value).collect::<StringArray>())
        };
        let number = |name: &str, value: &dyn Fn(&SaliencyMap) -> Option<f32>| {
            let values = rows.iter().map(|row| row.outcome.as_ref().ok().and_then(value));
            column(name, DataType::Float32, values.collect::<Float32Array>())
        };
        let valid: Vec<bool> = rows.iter().map(|row| row.outcome.is_ok()).collect();
        let length = self.length();
        let axes = &["z", "y", "x"];
        let axes = &axes[axes.len() - self.shape.len()..];
        let mut values = Vec::with_capacity(rows.len() * length);
        for row in rows {
            match &row.outcome {
                Ok(map) => values.extend_from_slice(&map.values),
                Err(_) => values.extend(std::iter::repeat_n(0.0, length)),
            }
        }
        let is_numbered = self.subjects != Subjects::Pairs;
        let index = rows.iter().map(|row| row.class.filter(|_| is_numbered).map(|class| class as i32));
        let mut columns = vec![
            text("id", &|row| Some(row.id.clone())),
            text("target_kind", &|_| Some(self.target_kind.to_owned())),
            text("target", &|row| row.class.map(|class| self.classes[class].clone())),
            column("target_index", DataType::Int32, index.collect::<Int32Array>()),
            column(
                "correct",
                DataType::Boolean,
                rows.iter().map(|row| row.correct).collect::<BooleanArray>(),
            ),
            number("score", &|map| map.score),
            number("score_baseline", &|map| map.baseline_score),
            number("completeness_gap", &|map| map.completeness_gap),
            text("status", &|row| Some(status(&row.outcome))),
            column("valid", DataType::Boolean, BooleanArray::from(valid.clone())),
            number("min", &|map| map.values.iter().copied().reduce(f32::min)),
            number("max", &|map| map.values.iter().copied().reduce(f32::max)),
            number("sum", &|map| Some(map.values.iter().map(|value| f64::from(*value)).sum::<f64>() as f32)),
            nullable_tensor_column("saliency", &self.shape, axes, values, Some(&valid))?,
        ];
        if self.subjects != Subjects::Images {
            columns.push(text("image_id", &|row| Some(row.about.image.clone())));
        }
        if self.subjects == Subjects::Questions {
            columns.push(text("question", &|row| row.about.question.clone()));
        }
        Ok(columns)
    }
}

/// `ok`, `all_zero`, or `not_applicable` with its reason.
fn status(outcome: &Result<SaliencyMap, String>) -> String {
    match outcome {
        Ok(map) if map.is_all_zero() => "all_zero".to_owned(),
        Ok(_) => "ok".to_owned(),
        Err(reason) => format!("not_applicable: {reason}"),
    }
}
