//! Reading a table back, whatever number of parts it has.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_engine::{Artifact, StageError};

use super::arrow::columns;
use super::column::Table;

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

/// The metadata of a table, without its rows.
///
/// # Errors
/// If a part is damaged.
pub fn metadata(artifact: &Artifact) -> Result<BTreeMap<String, String>, StageError> {
    Ok(read_parts(artifact, &|_| false)?.metadata)
}

/// Whether a column is read.
type Wanted<'a> = &'a dyn Fn(&str) -> bool;

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

/// One Parquet file as a table.
pub(super) fn read_file(path: &Path, wanted: Wanted<'_>) -> Result<Table, StageError> {
    let damaged = |error: parquet::errors::ParquetError| StageError::input(path, error.to_string());
    let file = File::open(path).map_err(|error| StageError::input(path, error.to_string()))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
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
    for batch in builder.with_batch_size(8192).build().map_err(damaged)? {
        let batch = batch.map_err(|error| StageError::input(path, error.to_string()))?;
        let mut part = Table::new();
        for (name, column) in columns(&batch).map_err(|reason| StageError::input(path, reason))? {
            part = part.with(&name, column);
        }
        table = Some(match table {
            None => part,
            Some(table) => table.append(part)?,
        });
    }
    let mut table = table.unwrap_or_default();
    table.metadata = metadata;
    Ok(table)
}
