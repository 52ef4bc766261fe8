//! Columns to and from Arrow. Every field is nullable: other readers ignore the rest otherwise.

use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, FixedSizeListBuilder, Float32Builder, Float64Builder, Int32Builder,
    Int64Builder, ListBuilder, StringBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema, SchemaRef};

use super::column::{Column, Table};

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

/// The values of a list that has as many in every row: the axes of a volume.
const AXES: i32 = 3;

fn data_type(column: &Column, is_three: bool) -> DataType {
    let list = |inner| {
        let item = Arc::new(Field::new("item", inner, true));
        if is_three { DataType::FixedSizeList(item, AXES) } else { DataType::List(item) }
    };
    match column {
        Column::Utf8(_) => DataType::Utf8,
        Column::Bool(_) => DataType::Boolean,
        Column::Int32(_) => DataType::Int32,
        Column::Int64(_) => DataType::Int64,
        Column::Float64(_) => DataType::Float64,
        Column::ListInt64(_) => list(DataType::Int64),
        Column::ListInt32(_) => list(DataType::Int32),
        Column::ListFloat32(_) => list(DataType::Float32),
        Column::ListUtf8(_) => list(DataType::Utf8),
        Column::Image(_) => DataType::Struct(image_fields()),
        Column::Binary(_) => DataType::Binary,
    }
}

/// The Arrow schema of a table, with its metadata.
fn arrow_schema(table: &Table, is_three: &dyn Fn(&str) -> bool) -> SchemaRef {
    let fields: Vec<Field> = table
        .columns()
        .iter()
        .map(|(name, column)| Field::new(name, data_type(column, is_three(name)), true))
        .collect();
    Arc::new(Schema::new_with_metadata(
        fields,
        table.metadata.clone().into_iter().collect::<std::collections::HashMap<_, _>>(),
    ))
}

/// The table as one batch. Of the columns that `is_three` names, every value is a list of three.
pub(crate) fn record_batch(
    table: &Table,
    is_three: &dyn Fn(&str) -> bool,
) -> Result<RecordBatch, ArrowError> {
    let array = |(name, column): &(String, Column)| match is_three(name) {
        true => threes(column).unwrap_or_else(|| array(column)),
        false => array(column),
    };
    let arrays: Vec<ArrayRef> = table.columns().iter().map(array).collect();
    RecordBatch::try_new(arrow_schema(table, is_three), arrays)
}

macro_rules! threes {
    ($values:expr, $builder:expr) => {{
        let mut builder = FixedSizeListBuilder::new($builder, AXES);
        for value in $values {
            // A row without a list takes the room of one.
            for axis in 0..AXES as usize {
                builder.values().append_option(value.as_ref().and_then(|items| items.get(axis).copied()));
            }
            builder.append(value.is_some());
        }
        Arc::new(builder.finish())
    }};
}

/// Lists of three; nothing of another column.
fn threes(column: &Column) -> Option<ArrayRef> {
    match column {
        Column::ListInt32(values) => Some(threes!(values, Int32Builder::new())),
        Column::ListFloat32(values) => Some(threes!(values, Float32Builder::new())),
        _ => None,
    }
}

macro_rules! lists {
    ($values:expr, $builder:expr) => {{
        let mut builder = ListBuilder::new($builder);
        for value in $values {
            match value {
                Some(items) => {
                    for item in items {
                        builder.values().append_value(item.clone());
                    }
                    builder.append(true);
                }
                None => builder.append(false),
            }
        }
        Arc::new(builder.finish())
    }};
}

macro_rules! plain {
    ($values:expr, $builder:expr) => {{
        let mut builder = $builder;
        for value in $values {
            builder.append_option(value.clone());
        }
        Arc::new(builder.finish())
    }};
}

fn array(column: &Column) -> ArrayRef {
    match column {
        Column::Utf8(values) => plain!(values, StringBuilder::new()),
        Column::Bool(values) => plain!(values, BooleanBuilder::new()),
        Column::Int32(values) => plain!(values, Int32Builder::new()),
        Column::Int64(values) => plain!(values, Int64Builder::new()),
        Column::Float64(values) => plain!(values, Float64Builder::new()),
        Column::Binary(values) => plain!(values, BinaryBuilder::new()),
        Column::ListInt64(values) => lists!(values, Int64Builder::new()),
        Column::ListInt32(values) => lists!(values, Int32Builder::new()),
        Column::ListFloat32(values) => lists!(values, Float32Builder::new()),
        Column::ListUtf8(values) => lists!(values, StringBuilder::new()),
        Column::Image(values) => {
            let mut bytes = BinaryBuilder::new();
            let mut paths = StringBuilder::new();
            for value in values {
                bytes.append_option(value.as_ref().map(|(bytes, _)| bytes));
                paths.append_option(value.as_ref().map(|(_, path)| path));
            }
            let nulls =
                arrow_buffer::NullBuffer::from(values.iter().map(Option::is_some).collect::<Vec<_>>());
            let arrays: Vec<ArrayRef> = vec![Arc::new(bytes.finish()), Arc::new(paths.finish())];
            Arc::new(StructArray::new(image_fields(), arrays, Some(nulls)))
        }
    }
}

/// The columns of a batch. The message of an error names the column.
pub(crate) fn columns(batch: &RecordBatch) -> Result<Vec<(String, Column)>, String> {
    batch
        .schema()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, array)| {
            let column = column(array).ok_or_else(|| {
                format!(
                    "column `{}` has the type {}, which no table of a study has",
                    field.name(),
                    field.data_type()
                )
            })?;
            Ok((field.name().clone(), column))
        })
        .collect()
}

macro_rules! from_plain {
    ($array:expr, $convert:expr) => {
        (0..$array.len()).map(|row| $array.is_valid(row).then(|| $convert($array.value(row)))).collect()
    };
}

/// The numbers of a list.
fn values_of<T: ArrowPrimitiveType>(list: ArrayRef) -> Vec<T::Native> {
    list.as_primitive::<T>().values().to_vec()
}

fn column(array: &ArrayRef) -> Option<Column> {
    Some(match array.data_type() {
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            Column::Utf8(from_plain!(array, str::to_owned))
        }
        DataType::LargeUtf8 => {
            let array = array.as_string::<i64>();
            Column::Utf8(from_plain!(array, str::to_owned))
        }
        DataType::Boolean => {
            let array = array.as_boolean();
            Column::Bool(from_plain!(array, |value| value))
        }
        DataType::Int32 => {
            let array = array.as_primitive::<Int32Type>();
            Column::Int32(from_plain!(array, |value| value))
        }
        DataType::Int64 => {
            let array = array.as_primitive::<Int64Type>();
            Column::Int64(from_plain!(array, |value| value))
        }
        DataType::Float64 => {
            let array = array.as_primitive::<Float64Type>();
            Column::Float64(from_plain!(array, |value| value))
        }
        DataType::Float32 => {
            let array = array.as_primitive::<Float32Type>();
            Column::Float64(from_plain!(array, f64::from))
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            Column::Binary(from_plain!(array, <[u8]>::to_vec))
        }
        DataType::List(inner) => {
            let lists = array.as_list::<i32>();
            match inner.data_type() {
                DataType::Int64 => Column::ListInt64(from_plain!(lists, values_of::<Int64Type>)),
                DataType::Int32 => Column::ListInt32(from_plain!(lists, values_of::<Int32Type>)),
                DataType::Float32 => Column::ListFloat32(from_plain!(lists, values_of::<Float32Type>)),
                DataType::Utf8 => Column::ListUtf8(from_plain!(lists, |list: ArrayRef| list
                    .as_string::<i32>()
                    .iter()
                    .map(|text| text.unwrap_or_default().to_owned())
                    .collect())),
                _ => return None,
            }
        }
        DataType::FixedSizeList(inner, _) => {
            let lists = array.as_fixed_size_list();
            match inner.data_type() {
                DataType::Int32 => Column::ListInt32(from_plain!(lists, values_of::<Int32Type>)),
                DataType::Float32 => Column::ListFloat32(from_plain!(lists, values_of::<Float32Type>)),
                _ => return None,
            }
        }
        DataType::Struct(fields) if fields.len() == 2 && fields[0].name() == "bytes" => {
            let array = array.as_struct();
            let bytes = array.column(0).as_binary_opt::<i32>()?;
            let paths = array.column(1).as_string_opt::<i32>()?;
            let value = |row: usize| {
                let path = if paths.is_valid(row) { paths.value(row).to_owned() } else { String::new() };
                (array.is_valid(row) && bytes.is_valid(row)).then(|| (bytes.value(row).to_vec(), path))
            };
            Column::Image((0..array.len()).map(value).collect())
        }
        _ => return None,
    })
}
