//! Tensors on disk: Arrow IPC files, uncompressed, so that they open by memory map. They are tables made of
//! parts like all others, named by the digests of their rows.
//!
//! A tensor column is a fixed-size list with the canonical extension `arrow.fixed_shape_tensor`, its
//! metadata written by hand: the library's own spelling is not the specification's.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow_buffer::NullBuffer;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema};
use pipe_engine::cache::{Digest, Value, part_digest, row_digest};
use pipe_engine::{OutputWriter, StageError, TablePart};

use crate::arrow_file::ArrowFile;
use crate::table::{Table, Wanted, from_batch};

/// A column of tensors of one shape.
pub(crate) fn tensor_column(
    name: &str,
    shape: &[usize],
    dimensions: &[&str],
    values: Vec<f32>,
) -> Result<(Field, ArrayRef), StageError> {
    nullable_tensor_column(name, shape, dimensions, values, None)
}

/// A column of tensors of one shape, null where `valid` says no (their values are there all the same,
/// and mean nothing).
pub(crate) fn nullable_tensor_column(
    name: &str,
    shape: &[usize],
    dimensions: &[&str],
    values: Vec<f32>,
    valid: Option<&[bool]>,
) -> Result<(Field, ArrayRef), StageError> {
    let length = shape.iter().product::<usize>();
    // A child that is not nullable comes back from Parquet without its extension.
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let array = FixedSizeListArray::try_new(
        Arc::clone(&item),
        length as i32,
        Arc::new(Float32Array::from(values)),
        valid.map(NullBuffer::from),
    )
    .map_err(|error| StageError::because(format!("building the column `{name}`"), error))?;
    let metadata = serde_json::json!({ "shape": shape, "dim_names": dimensions }).to_string();
    let field =
        Field::new(name, DataType::FixedSizeList(item, length as i32), true).with_metadata(HashMap::from([
            ("ARROW:extension:name".to_owned(), "arrow.fixed_shape_tensor".to_owned()),
            ("ARROW:extension:metadata".to_owned(), metadata),
        ]));
    Ok((field, Arc::new(array)))
}

/// The name of the only part that a stage writes.
const PART: &str = "part-00000.arrow";

/// A table of one part and one batch. `schema` names what the columns mean.
pub(crate) fn write_table(
    output: &mut OutputWriter,
    schema: &str,
    columns: Vec<(Field, ArrayRef)>,
    metadata: HashMap<String, String>,
) -> Result<(), StageError> {
    let mut writer = BatchWriter::new(output, metadata)?;
    writer.write(columns)?;
    writer.finish(output, schema)
}

/// Hands on the rows of an Arrow file batch by batch, those of its columns that are wanted and hold no tensors or
/// bytes; one at least, since rows without columns cannot be counted.
///
/// # Errors
/// If it is damaged, or what takes the rows fails.
pub(crate) fn each_without_tensors(
    path: &Path,
    wanted: Wanted<'_>,
    take: &mut dyn FnMut(&Table) -> Result<(), StageError>,
) -> Result<(), StageError> {
    let damaged = |error: arrow_schema::ArrowError| StageError::input(path, error.to_string());
    let mut file = ArrowFile::open(path)?;
    let schema = file.schema();
    let mut plain = plain_columns(&schema);
    let first = plain.first().copied();
    plain.retain(|place| wanted(schema.field(*place).name()));
    let plain = if plain.is_empty() { first.into_iter().collect() } else { plain };
    while let Some(batch) = file.next()? {
        let batch = batch.project(&plain).map_err(damaged)?;
        take(&from_batch(path, &batch)?)?;
    }
    Ok(())
}

/// The columns of an Arrow file but tensors and bytes, without rows.
///
/// # Errors
/// If it is damaged.
pub(crate) fn header_without_tensors(path: &Path) -> Result<Table, StageError> {
    let schema = ArrowFile::open(path)?.schema();
    let plain = schema.project(&plain_columns(&schema));
    let plain = plain.map_err(|error| StageError::input(path, error.to_string()))?;
    from_batch(path, &RecordBatch::new_empty(Arc::new(plain)))
}

/// Where the columns are that hold neither tensors nor bytes.
fn plain_columns(schema: &Schema) -> Vec<usize> {
    let is_plain = |field: &Field| {
        !matches!(field.data_type(), DataType::FixedSizeList(..) | DataType::Struct(_) | DataType::Binary)
    };
    (0..schema.fields().len()).filter(|place| is_plain(schema.field(*place))).collect()
}

/// A file of one batch.
#[cfg(test)]
pub(crate) fn write_file(
    path: &Path,
    columns: Vec<(Field, ArrayRef)>,
    metadata: HashMap<String, String>,
) -> Result<(), StageError> {
    let mut output = OutputWriter::new(path.parent().unwrap_or(path).to_owned());
    write_table(&mut output, "test", columns, metadata)?;
    let written = output.path(PART)?;
    std::fs::rename(written, path).map_err(|error| StageError::environment("renaming", error))
}

/// A part that is written batch by batch, so that its rows need not all be in memory. Every batch has
/// the columns of the first.
pub(crate) struct BatchWriter {
    path: PathBuf,
    metadata: HashMap<String, String>,
    writer: Option<FileWriter<File>>,
    rows: Vec<Digest>,
}

impl BatchWriter {
    /// A writer of the only part of `output`, whose file exists once a batch was written.
    pub(crate) fn new(output: &OutputWriter, metadata: HashMap<String, String>) -> Result<Self, StageError> {
        Ok(Self { path: output.path(PART)?, metadata, writer: None, rows: Vec::new() })
    }

    fn failed(&self, error: arrow_schema::ArrowError) -> StageError {
        StageError::because(format!("writing `{}`", self.path.display()), error)
    }

    /// Writes a batch of rows.
    pub(crate) fn write(&mut self, columns: Vec<(Field, ArrayRef)>) -> Result<(), StageError> {
        let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
        let schema = Arc::new(Schema::new_with_metadata(fields, self.metadata.clone()));
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(|error| self.failed(error))?;
        self.rows.extend((0..batch.num_rows()).map(|row| digest_of_row(&batch, row)));
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => {
                let file = File::create(&self.path).map_err(|error| {
                    StageError::environment(format!("writing `{}`", self.path.display()), error)
                })?;
                FileWriter::try_new(file, &schema).map_err(|error| self.failed(error))?
            }
        };
        writer.write(&batch).map_err(|error| self.failed(error))?;
        self.writer = Some(writer);
        Ok(())
    }

    /// Ends the part and declares it to the engine. What its metadata say of the rows (the method, the
    /// modality) is named by the digest with them; where they come from is not.
    pub(crate) fn finish(mut self, output: &mut OutputWriter, schema: &str) -> Result<(), StageError> {
        if let Some(mut writer) = self.writer.take() {
            writer.finish().map_err(|error| self.failed(error))?;
        }
        let said: BTreeMap<&String, &String> =
            self.metadata.iter().filter(|(key, _)| key.as_str() != "pipe").collect();
        let schema = format!("{schema} {said:?}");
        let digest = part_digest(&schema, 1, &self.rows);
        output.set_table(vec![TablePart { path: PART.to_owned(), digest, rows: self.rows.len() as u64 }]);
        Ok(())
    }
}

/// The digest of a row: tensors and numbers as the bytes of their values.
fn digest_of_row(batch: &RecordBatch, row: usize) -> Digest {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    row_digest(columns.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
}

fn value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::None;
    }
    let bytes = |values: &[f32]| Value::Bytes(values.iter().flat_map(|value| value.to_le_bytes()).collect());
    match column.data_type() {
        DataType::Utf8 => Value::string(column.as_string::<i32>().value(row)),
        DataType::Boolean => Value::Bool(column.as_boolean().value(row)),
        DataType::Int32 => Value::Integer(i64::from(column.as_primitive::<Int32Type>().value(row))),
        DataType::Float32 => bytes(&[column.as_primitive::<Float32Type>().value(row)]),
        DataType::FixedSizeList(..) => {
            bytes(column.as_fixed_size_list().value(row).as_primitive::<Float32Type>().values())
        }
        DataType::List(_) => list(&column.as_list::<i32>().value(row)),
        other => unreachable!("no table of tensors has a column of {other}"),
    }
}

/// A list of values: numbers as their bytes, texts one by one.
fn list(values: &ArrayRef) -> Value {
    match values.data_type() {
        DataType::Float32 => Value::Bytes(
            values
                .as_primitive::<Float32Type>()
                .values()
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        ),
        _ => Value::List((0..values.len()).map(|index| value(values, index)).collect()),
    }
}

/// All rows of a file as one batch.
pub(crate) fn read_file(path: &Path) -> Result<RecordBatch, StageError> {
    ArrowFile::open(path)?.all()
}

/// The values of a tensor column and the shape of one row.
pub(crate) fn tensors<'a>(batch: &'a RecordBatch, name: &str) -> Option<(&'a [f32], Vec<usize>)> {
    let index = batch.schema().index_of(name).ok()?;
    let list = batch.column(index).as_fixed_size_list_opt()?;
    let values = list.values().as_primitive_opt::<Float32Type>()?.values();
    let schema = batch.schema();
    let metadata =
        schema.field(index).metadata().get("ARROW:extension:metadata").cloned().unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&metadata).unwrap_or_default();
    let shape: Vec<usize> = json["shape"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|size| Some(size.as_u64()? as usize))
        .collect();
    let length = list.value_length() as usize;
    let shape =
        if shape.iter().product::<usize>() == length && !shape.is_empty() { shape } else { vec![length] };
    Some((&values[list.offset() * length..(list.offset() + list.len()) * length], shape))
}

/// A text column.
pub(crate) fn texts(batch: &RecordBatch, name: &str) -> Option<Vec<Option<String>>> {
    let array = batch.column_by_name(name)?.as_string_opt::<i32>()?;
    Some(array.iter().map(|value| value.map(str::to_owned)).collect())
}
