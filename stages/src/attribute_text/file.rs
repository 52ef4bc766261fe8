//! Words with their values as they are stored: one row per caption, or per question.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, Int32Builder, ListBuilder, StringBuilder};
use arrow_array::{Array, ArrayRef, BooleanArray, Float32Array, Int32Array, StringArray};
use arrow_schema::Field;
use pipe_attribution::Attribution;
use pipe_engine::{OutputWriter, StageError};

use crate::ipc::BatchWriter;

/// Rows of a record batch.
const BATCH_ROWS: usize = 256;

/// The words of one text, explained.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct WordValues {
    /// The words as they stand in the text.
    words: Vec<String>,
    /// First byte of each and the byte behind its last.
    offsets: Vec<[usize; 2]>,
    values: Vec<f32>,
    score: f32,
    baseline_score: Option<f32>,
    completeness_gap: Option<f32>,
}

impl WordValues {
    /// The values of the words of `text` that stand at `places`, with what `row` of an attribution says of all of
    /// them; or why there are none.
    pub(crate) fn new(
        text: &str,
        places: impl IntoIterator<Item = Range<usize>>,
        values: Vec<f32>,
        attribution: &Attribution,
        row: usize,
    ) -> Result<Self, String> {
        let places: Vec<Range<usize>> = places.into_iter().collect();
        if places.is_empty() {
            return Err("the text has no words".to_owned());
        }
        if !values.iter().all(|value| value.is_finite()) {
            return Err("the attribution has values that are not finite".to_owned());
        }
        Ok(Self {
            words: places.iter().map(|place| text[place.clone()].to_owned()).collect(),
            offsets: places.iter().map(|place| [place.start, place.end]).collect(),
            values,
            score: attribution.scores[row],
            baseline_score: attribution.baseline_scores.as_ref().map(|scores| scores[row]),
            completeness_gap: attribution.completeness_gaps.as_ref().map(|gaps| gaps[row]),
        })
    }

    /// One for each word.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }
}

/// A text, and its words or why there are none.
pub(crate) struct Row {
    pub(crate) id: String,
    /// What the score is of: the id of the image that a caption is compared with, or the answer to a question.
    pub(crate) target: Option<String>,
    /// The label of the answer.
    pub(crate) index: Option<usize>,
    pub(crate) caption: String,
    pub(crate) outcome: Result<WordValues, String>,
}

/// A table of texts, written in batches.
pub(crate) struct WordFile {
    writer: BatchWriter,
    target_kind: &'static str,
    rows: Vec<Row>,
    is_begun: bool,
}

impl WordFile {
    /// A table of scores of one kind: `similarity`, or `logit`.
    pub(crate) fn new(
        output: &OutputWriter,
        target_kind: &'static str,
        metadata: HashMap<String, String>,
    ) -> Result<Self, StageError> {
        let writer = BatchWriter::new(output, metadata)?;
        Ok(Self { writer, target_kind, rows: Vec::new(), is_begun: false })
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, row: Row) -> Result<(), StageError> {
        self.rows.push(row);
        if self.rows.len() == BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes what is left and declares the table to the engine. One without rows has its columns all the
    /// same.
    pub(crate) fn finish(mut self, output: &mut OutputWriter) -> Result<(), StageError> {
        if !self.rows.is_empty() || !self.is_begun {
            self.flush()?;
        }
        self.writer.finish(output, "word_saliency")
    }

    fn flush(&mut self) -> Result<(), StageError> {
        self.is_begun = true;
        let rows = std::mem::take(&mut self.rows);
        self.writer.write(columns(&rows, self.target_kind))
    }
}

fn columns(rows: &[Row], target_kind: &str) -> Vec<(Field, ArrayRef)> {
    fn column(name: &str, array: impl Array + 'static) -> (Field, ArrayRef) {
        (Field::new(name, array.data_type().clone(), true), Arc::new(array))
    }
    let text = |name: &str, value: &dyn Fn(&Row) -> Option<String>| {
        column(name, rows.iter().map(value).collect::<StringArray>())
    };
    let number = |name: &str, value: &dyn Fn(&WordValues) -> Option<f32>| {
        let values = rows.iter().map(|row| row.outcome.as_ref().ok().and_then(value));
        column(name, values.collect::<Float32Array>())
    };
    let mut words = ListBuilder::new(StringBuilder::new());
    let mut offsets = ListBuilder::new(Int32Builder::new());
    let mut values = ListBuilder::new(Float32Builder::new());
    for row in rows {
        if let Ok(outcome) = &row.outcome {
            outcome.words.iter().for_each(|word| words.values().append_value(word));
            outcome.offsets.iter().flatten().for_each(|byte| offsets.values().append_value(*byte as i32));
            outcome.values.iter().for_each(|value| values.values().append_value(*value));
        }
        words.append(row.outcome.is_ok());
        offsets.append(row.outcome.is_ok());
        values.append(row.outcome.is_ok());
    }
    let valid: Vec<bool> = rows.iter().map(|row| row.outcome.is_ok()).collect();
    vec![
        text("id", &|row| Some(row.id.clone())),
        text("target_kind", &|_| Some(target_kind.to_owned())),
        text("target", &|row| row.target.clone()),
        column(
            "target_index",
            rows.iter().map(|row| row.index.map(|index| index as i32)).collect::<Int32Array>(),
        ),
        number("score", &|words| Some(words.score)),
        number("score_baseline", &|words| words.baseline_score),
        number("completeness_gap", &|words| words.completeness_gap),
        text("status", &|row| Some(status(&row.outcome))),
        column("valid", BooleanArray::from(valid)),
        number("min", &|words| words.values.iter().copied().reduce(f32::min)),
        number("max", &|words| words.values.iter().copied().reduce(f32::max)),
        number("sum", &|words| Some(words.values.iter().map(|value| f64::from(*value)).sum::<f64>() as f32)),
        text("caption", &|row| Some(row.caption.clone())),
        column("tokens", words.finish()),
        column("offsets", offsets.finish()),
        column("values", values.finish()),
    ]
}

/// `ok`, `all_zero`, or `not_applicable` with its reason.
fn status(outcome: &Result<WordValues, String>) -> String {
    match outcome {
        Ok(words) if words.values.iter().all(|value| *value == 0.0) => "all_zero".to_owned(),
        Ok(_) => "ok".to_owned(),
        Err(reason) => format!("not_applicable: {reason}"),
    }
}
