//! The tables behind the page, each one Parquet file: rows of all artifacts of a type, with the axes of
//! the study as columns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow_array::{Array as _, ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow_schema::{DataType, Field, Schema};
use arrow_select::concat::concat_batches;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use pipe_engine::StageError;

/// One table with where it came from.
pub(super) struct Piece<'a> {
    pub(super) input: &'a str,
    pub(super) axes: &'a BTreeMap<String, String>,
    pub(super) batch: &'a RecordBatch,
}

/// All pieces in one table; columns that a piece lacks, or has with another type, are null there. An
/// axis replaces the column of its name.
///
/// # Errors
/// If Arrow refuses to join them.
pub(super) fn consolidate(pieces: &[Piece<'_>]) -> Result<Option<RecordBatch>, StageError> {
    let Some(first) = pieces.first() else { return Ok(None) };
    let axes: BTreeSet<&str> =
        pieces.iter().flat_map(|piece| piece.axes.keys().map(String::as_str)).collect();
    let mut fields = vec![Field::new("input", DataType::Utf8, true)];
    fields.extend(
        axes.iter().filter(|axis| **axis != "input").map(|axis| Field::new(*axis, DataType::Utf8, true)),
    );
    let mut known: BTreeSet<String> = fields.iter().map(|field| field.name().clone()).collect();
    for field in pieces.iter().flat_map(|piece| piece.batch.schema_ref().fields()) {
        if known.insert(field.name().clone()) {
            fields.push(field.as_ref().clone().with_nullable(true));
        }
    }
    let schema = Arc::new(Schema::new(fields));
    let join = |error| StageError::because("joining the tables behind the report", error);
    let batches: Result<Vec<RecordBatch>, StageError> = pieces
        .iter()
        .map(|piece| {
            let columns = schema.fields().iter().map(|field| column(piece, field)).collect();
            RecordBatch::try_new(Arc::clone(&schema), columns).map_err(join)
        })
        .collect();
    debug_assert!(first.batch.num_columns() > 0);
    concat_batches(&schema, &batches?).map(Some).map_err(join)
}

fn column(piece: &Piece<'_>, field: &Field) -> ArrayRef {
    let rows = piece.batch.num_rows();
    let constant = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; rows])) };
    if field.name() == "input" {
        return constant(piece.input);
    }
    if let Some(value) = piece.axes.get(field.name()) {
        return constant(value);
    }
    match piece.batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Arc::clone(column),
        _ => new_null_array(field.data_type(), rows),
    }
}

/// The bytes of a Parquet file of `batch`; equal tables give equal bytes.
///
/// # Errors
/// If the table has a type that Parquet lacks.
pub(super) fn parquet(batch: &RecordBatch, provenance: &str) -> Result<Vec<u8>, StageError> {
    let level = ZstdLevel::try_new(3).map_err(|error| StageError::because("setting up zstd", error))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_key_value_metadata(Some(vec![KeyValue::new("pipe".to_owned(), provenance.to_owned())]))
        .build();
    // Some readers see only the Arrow schema's metadata, some only Parquet's.
    let nullable: Vec<Field> =
        batch.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let metadata = HashMap::from([("pipe".to_owned(), provenance.to_owned())]);
    let schema = Arc::new(Schema::new_with_metadata(nullable, metadata));
    let fail = |error| StageError::because("writing a table behind the report", error);
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, Arc::clone(&schema), Some(properties)).map_err(fail)?;
    let batch = RecordBatch::try_new(schema, batch.columns().to_vec())
        .map_err(|error| StageError::because("writing a table behind the report", error))?;
    writer.write(&batch).map_err(fail)?;
    writer.close().map_err(fail)?;
    Ok(bytes)
}
