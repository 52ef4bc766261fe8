//! Rows of somebody else's Parquet files, as Hugging Face keeps data sets.

use std::fs::File;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use pipe_engine::StageError;

use super::source::SourceFile;
use crate::guard::{guarded, next_batch};
use crate::table::{Column, Table};

/// Rows that are read at once: images wait in memory.
const BATCH: usize = 64;

/// An open file.
pub(crate) struct ParquetRows<'a> {
    file: &'a SourceFile,
    reader: ParquetRecordBatchReader,
    rows: u64,
    /// What the `huggingface` metadata say of the columns.
    features: serde_json::Value,
    next: usize,
}

impl<'a> ParquetRows<'a> {
    /// Opens a file to read some of its columns.
    ///
    /// # Errors
    /// If it is no Parquet file, or lacks one of the columns.
    pub(crate) fn open(file: &'a SourceFile, columns: &[&str]) -> Result<Self, StageError> {
        let damaged =
            |error: parquet::errors::ParquetError| file.error(format!("it is no Parquet file: {error}"));
        let path = file.on_disk().ok_or_else(|| file.error("a Parquet file in an archive is not read"))?;
        let opened = File::open(path).map_err(|error| file.error(error.to_string()))?;
        // Types as Parquet knows them: dictionaries and views are plain values then.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = guarded(path, || {
            ParquetRecordBatchReaderBuilder::try_new_with_options(opened, options).map_err(damaged)
        })?;
        let names: Vec<&str> = builder.schema().fields().iter().map(|field| field.name().as_str()).collect();
        let mut roots = Vec::with_capacity(columns.len());
        for column in columns {
            let place = names.iter().position(|name| name == column).ok_or_else(|| {
                file.error(format!("it has no column `{column}`; its columns are {}", names.join(", ")))
            })?;
            roots.push(place);
        }
        let metadata = builder.metadata().file_metadata();
        let features = metadata.key_value_metadata().into_iter().flatten();
        let features = features
            .filter(|entry| entry.key == "huggingface")
            .filter_map(|entry| serde_json::from_str::<serde_json::Value>(entry.value.as_deref()?).ok())
            .map(|value| value["info"]["features"].clone())
            .next()
            .unwrap_or_default();
        let rows = metadata.num_rows().max(0) as u64;
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reader = builder.with_projection(mask).with_batch_size(BATCH).build().map_err(damaged)?;
        Ok(Self { file, reader, rows, features, next: 1 })
    }

    /// How many rows it says that it has.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The names of the classes of a column, if the metadata tell them.
    pub(crate) fn class_names(&self, column: &str) -> Option<Vec<String>> {
        let feature = &self.features[column];
        let names = [&feature["names"], &feature["feature"]["names"]];
        let names = names.into_iter().find_map(serde_json::Value::as_array)?;
        names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// The next rows, and the number of the first of them, from 1; `None` behind the last.
    ///
    /// # Errors
    /// If the file is damaged, or a column holds what no reader takes.
    pub(crate) fn next(&mut self) -> Result<Option<(usize, Table)>, StageError> {
        let Some(batch) = next_batch(&self.file.shown(), &mut self.reader)? else { return Ok(None) };
        let mut table = Table::new();
        for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
            let column = column(array).ok_or_else(|| {
                let (name, kind) = (field.name(), field.data_type());
                self.file.error(format!("column `{name}` has the type {kind}, which is not read"))
            })?;
            table = table.with(field.name(), column);
        }
        let first = self.next;
        self.next += batch.num_rows();
        Ok(Some((first, table)))
    }
}

/// Values of any integer type as i64.
fn integers(array: &ArrayRef) -> Option<Vec<Option<i64>>> {
    macro_rules! widened {
        ($($data_type:pat => $kind:ty),*) => {
            match array.data_type() {
                $($data_type => {
                    Some(array.as_primitive::<$kind>().iter().map(|value| value.map(i64::from)).collect())
                })*
                _ => None,
            }
        };
    }
    widened!(
        DataType::Int8 => Int8Type, DataType::Int16 => Int16Type, DataType::Int32 => Int32Type,
        DataType::Int64 => Int64Type, DataType::UInt8 => UInt8Type, DataType::UInt16 => UInt16Type,
        DataType::UInt32 => UInt32Type
    )
}

fn texts(array: &ArrayRef) -> Option<Vec<Option<String>>> {
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()),
        DataType::LargeUtf8 => {
            Some(array.as_string::<i64>().iter().map(|text| text.map(str::to_owned)).collect())
        }
        _ => None,
    }
}

fn bytes(array: &ArrayRef) -> Option<Vec<Option<Vec<u8>>>> {
    match array.data_type() {
        DataType::Binary => {
            Some(array.as_binary::<i32>().iter().map(|value| value.map(<[u8]>::to_vec)).collect())
        }
        DataType::LargeBinary => {
            Some(array.as_binary::<i64>().iter().map(|value| value.map(<[u8]>::to_vec)).collect())
        }
        _ => None,
    }
}

fn column(array: &ArrayRef) -> Option<Column> {
    if let Some(values) = integers(array) {
        return Some(Column::Int64(values));
    }
    if let Some(values) = texts(array) {
        return Some(Column::Utf8(values));
    }
    if let Some(values) = bytes(array) {
        return Some(Column::Image(
            values.into_iter().map(|bytes| bytes.map(|bytes| (bytes, String::new()))).collect(),
        ));
    }
    Some(match array.data_type() {
        DataType::Boolean => Column::Bool(array.as_boolean().iter().collect()),
        DataType::Float32 => Column::Float64(
            array.as_primitive::<Float32Type>().iter().map(|value| value.map(f64::from)).collect(),
        ),
        DataType::Float64 => Column::Float64(array.as_primitive::<Float64Type>().iter().collect()),
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let lists: Vec<Option<ArrayRef>> = lists.iter().collect();
            if let Some(values) = each(&lists, integers) {
                Column::ListInt64(values)
            } else {
                Column::ListUtf8(each(&lists, texts)?)
            }
        }
        DataType::Struct(_) => {
            let array = array.as_struct();
            let contents = bytes(array.column_by_name("bytes")?)?;
            let paths = match array.column_by_name("path") {
                Some(paths) => texts(paths)?,
                None => vec![None; contents.len()],
            };
            let images = contents.into_iter().zip(paths);
            Column::Image(
                images.map(|(bytes, path)| bytes.map(|bytes| (bytes, path.unwrap_or_default()))).collect(),
            )
        }
        _ => return None,
    })
}

/// Lists of values; an item without a value takes the list with it.
fn each<T>(
    lists: &[Option<ArrayRef>],
    read: impl Fn(&ArrayRef) -> Option<Vec<Option<T>>>,
) -> Option<Vec<Option<Vec<T>>>> {
    let mut values = Vec::with_capacity(lists.len());
    for list in lists {
        values.push(match list {
            Some(list) => read(list)?.into_iter().collect(),
            None => None,
        });
    }
    Some(values)
}
