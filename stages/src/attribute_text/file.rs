//! Words with their values as they are stored: one row per caption.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, Int32Builder, ListBuilder, StringBuilder};
use arrow_array::{Array, ArrayRef, BooleanArray, Float32Array, Int32Array, StringArray};
use arrow_schema::{DataType, Field};
use pipe_engine::{OutputWriter, StageError};

use crate::ipc::BatchWriter;

/// Rows of a record batch.
const BATCH_ROWS: usize = 256;

/// The words of one caption, explained.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct WordValues {
    /// The words as they stand in the caption.
    pub(super) words: Vec<String>,
    /// First byte of each and the byte behind its last.
    pub(super) offsets: Vec<[usize; 2]>,
    pub(super) values: Vec<f32>,
    pub(super) score: f32,
    pub(super) baseline_score: Option<f32>,
    pub(super) completeness_gap: Option<f32>,
}

/// A caption, and its words or why there are none.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) image: String,
    pub(super) caption: String,
    pub(super) outcome: Result<WordValues, String>,
}

/// A table of captions, written in batches.
pub(super) struct WordFile {
    writer: BatchWriter,
    rows: Vec<Row>,
    is_begun: bool,
}

impl WordFile {
    pub(super) fn new(output: &OutputWriter, metadata: HashMap<String, String>) -> Result<Self, StageError> {
        Ok(Self { writer: BatchWriter::new(output, metadata)?, rows: Vec::new(), is_begun: false })
    }

    pub(super) fn add(&mut self, row: Row) -> Result<(), StageError> {
        self.rows.push(row);
        if self.rows.len() == BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes what is left and declares the table to the engine. One without rows has its columns all the
    /// same.
    pub(super) fn finish(mut self, output: &mut OutputWriter) -> Result<(), StageError> {
        if !self.rows.is_empty() || !self.is_begun {
            self.flush()?;
        }
        self.writer.finish(output, "word_saliency")
    }

    fn flush(&mut self) -> Result<(), StageError> {
        self.is_begun = true;
        let rows = std::mem::take(&mut self.rows);
        self.writer.write(columns(&rows))
    }
}

fn columns(rows: &[Row]) -> Vec<(Field, ArrayRef)> {
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
        text("target_kind", &|_| Some("similarity".to_owned())),
        text("target", &|row| Some(row.image.clone())),
        (
            Field::new("target_index", DataType::Int32, true),
            Arc::new(Int32Array::new_null(rows.len())) as ArrayRef,
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
