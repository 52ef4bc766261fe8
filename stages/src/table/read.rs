//! Reading a table back, whatever number of parts it has.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchReader as _};
use arrow_schema::{DataType, FieldRef, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_engine::{Artifact, StageError};

use super::arrow::columns;
use super::column::Table;
use crate::guard::{guarded, next_batch};

/// All columns of a table.
///
/// # Errors
/// If a part is damaged.
pub fn read(artifact: &Artifact) -> Result<Table, StageError> {
    read_parts(artifact, &|_| true)
}

/// All columns of a table but some.
///
/// # Errors
/// If a part is damaged.
pub fn read_without(artifact: &Artifact, names: &[&str]) -> Result<Table, StageError> {
    read_parts(artifact, &|name| !names.contains(&name))
}

/// Some columns of a table; those that it does not have are left out.
///
/// # Errors
/// If a part is damaged.
pub fn read_columns(artifact: &Artifact, names: &[&str]) -> Result<Table, StageError> {
    read_parts(artifact, &|name| names.contains(&name))
}

/// What a table says of its making: kind, parameters and digests of the inputs; none if it says nothing.
///
/// # Errors
/// If its first part is damaged.
pub fn provenance(artifact: &Artifact) -> Result<Option<serde_json::Value>, StageError> {
    let Some(file) = artifact.files_ending(".parquet").next() else { return Ok(None) };
    let builder = open(&file.location)?;
    Ok(builder.schema().metadata().get("pipe").and_then(|text| serde_json::from_str(text).ok()))
}

/// The metadata of a table, without its rows.
///
/// # Errors
/// If a part is damaged.
pub fn metadata(artifact: &Artifact) -> Result<BTreeMap<String, String>, StageError> {
    Ok(read_parts(artifact, &|_| false)?.metadata)
}

/// Whether a column is read.
pub(crate) type Wanted<'a> = &'a dyn Fn(&str) -> bool;

fn read_parts(artifact: &Artifact, wanted: Wanted<'_>) -> Result<Table, StageError> {
    let mut table: Option<Table> = None;
    for file in artifact.files_ending(".parquet") {
        let part = read_file(&file.location, wanted)?;
        table = Some(match table {
            None => part,
            Some(table) => table.append(part)?,
        });
    }
    table.ok_or_else(|| StageError::input("table", "it has no Parquet part"))
}

/// The columns of a Parquet file but files and bytes, without rows.
///
/// # Errors
/// If it is damaged.
pub(crate) fn header(path: &Path) -> Result<Table, StageError> {
    let plain: Vec<FieldRef> =
        open(path)?.schema().fields().iter().filter(|field| is_plain(field.data_type())).cloned().collect();
    from_batch(path, &RecordBatch::new_empty(Arc::new(Schema::new(plain))))
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, StageError> {
    let refuse = |error: &dyn std::fmt::Display| StageError::input(path, error.to_string());
    let file = File::open(path).map_err(|error| refuse(&error))?;
    guarded(path, || ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| refuse(&error)))
}

/// Whether a column holds neither files nor bytes.
fn is_plain(data_type: &DataType) -> bool {
    !matches!(data_type, DataType::Struct(_) | DataType::Binary | DataType::LargeBinary)
}

/// Hands on the rows of a Parquet file piece by piece, those of its columns that are wanted and hold no files
/// or bytes; one at least, since rows without columns cannot be counted.
///
/// # Errors
/// If it is damaged, or what takes the rows fails.
pub(crate) fn read_each(
    path: &Path,
    wanted: Wanted<'_>,
    take: &mut dyn FnMut(&Table) -> Result<(), StageError>,
) -> Result<(), StageError> {
    let damaged = |error: parquet::errors::ParquetError| StageError::input(path, error.to_string());
    let builder = open(path)?;
    let fields = builder.schema().fields();
    let mut plain: Vec<usize> =
        (0..fields.len()).filter(|place| is_plain(fields[*place].data_type())).collect();
    let first = plain.first().copied();
    plain.retain(|place| wanted(fields[*place].name()));
    let plain = if plain.is_empty() { first.into_iter().collect() } else { plain };
    let mask = ProjectionMask::roots(builder.parquet_schema(), plain);
    let mut reader = builder.with_projection(mask).with_batch_size(8192).build().map_err(damaged)?;
    let mut empty = true;
    let schema = reader.schema();
    while let Some(batch) = next_batch(path, &mut reader)? {
        take(&from_batch(path, &batch)?)?;
        empty = false;
    }
    if empty {
        take(&from_batch(path, &RecordBatch::new_empty(schema))?)?;
    }
    Ok(())
}

/// The columns of a batch of a file.
pub(crate) fn from_batch(path: &Path, batch: &RecordBatch) -> Result<Table, StageError> {
    let columns = columns(batch).map_err(|reason| StageError::input(path, reason))?;
    Ok(columns.into_iter().fold(Table::new(), |table, (name, column)| table.with(&name, column)))
}

/// One Parquet file as a table.
pub(super) fn read_file(path: &Path, wanted: Wanted<'_>) -> Result<Table, StageError> {
    let damaged = |error: parquet::errors::ParquetError| StageError::input(path, error.to_string());
    let builder = open(path)?;
    let metadata: BTreeMap<String, String> = builder
        .schema()
        .metadata()
        .iter()
        .filter(|(key, _)| !["pipe", "huggingface", "schema"].contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let fields = builder.schema().fields().iter().enumerate();
    let wanted: Vec<usize> =
        fields.filter(|(_, field)| wanted(field.name())).map(|(index, _)| index).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
    let builder = builder.with_projection(mask);
    let mut table: Option<Table> = None;
    let mut reader = builder.with_batch_size(8192).build().map_err(damaged)?;
    let schema = reader.schema();
    while let Some(batch) = next_batch(path, &mut reader)? {
        let part = from_batch(path, &batch)?;
        table = Some(match table {
            None => part,
            Some(table) => table.append(part)?,
        });
    }
    let mut table = match table {
        Some(table) => table,
        None => from_batch(path, &RecordBatch::new_empty(schema))?,
    };
    table.metadata = metadata;
    Ok(table)
}
