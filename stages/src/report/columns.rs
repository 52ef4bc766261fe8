//! Reading columns by name without insisting on them: a report shows what it finds.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;

/// The column as texts: strings as they are, numbers and truth values as Rust prints them. Nothing where
/// it is null, missing or of another type.
pub(super) fn texts(batch: &RecordBatch, name: &str) -> Vec<Option<String>> {
    let rows = batch.num_rows();
    let Some(column) = batch.column_by_name(name) else { return vec![None; rows] };
    (0..rows).map(|row| text(column, row)).collect()
}

/// The column as numbers; nothing where it is null, not finite, missing or of another type.
pub(super) fn numbers(batch: &RecordBatch, name: &str) -> Vec<Option<f64>> {
    let rows = batch.num_rows();
    let Some(column) = batch.column_by_name(name) else { return vec![None; rows] };
    (0..rows).map(|row| number(column, row).filter(|value| value.is_finite())).collect()
}

/// The column as bytes: binary, or the member `bytes` of the struct that stands for an image.
pub(super) fn bytes(batch: &RecordBatch, name: &str) -> Vec<Option<Vec<u8>>> {
    let rows = batch.num_rows();
    let Some(column) = batch.column_by_name(name) else { return vec![None; rows] };
    let inner = match column.data_type() {
        DataType::Struct(_) => column.as_struct().column_by_name("bytes").cloned(),
        _ => Some(column.clone()),
    };
    let read = |row: usize| -> Option<Vec<u8>> {
        let inner = inner.as_ref().filter(|inner| inner.is_valid(row) && column.is_valid(row))?;
        match inner.data_type() {
            DataType::Binary => Some(inner.as_binary::<i32>().value(row).to_vec()),
            DataType::LargeBinary => Some(inner.as_binary::<i64>().value(row).to_vec()),
            _ => None,
        }
    };
    (0..rows).map(read).collect()
}

/// The column of lists of whole numbers.
pub(super) fn integer_lists(batch: &RecordBatch, name: &str) -> Vec<Option<Vec<i64>>> {
    let rows = batch.num_rows();
    let Some(column) = batch.column_by_name(name) else { return vec![None; rows] };
    let read = |row: usize| -> Option<Vec<i64>> {
        let list = column.as_list_opt::<i32>().filter(|list| list.is_valid(row))?.value(row);
        (0..list.len()).map(|index| number(&list, index).map(|value| value as i64)).collect()
    };
    (0..rows).map(read).collect()
}

/// The column of lists of numbers; nothing where one of them is null or not finite.
pub(super) fn number_lists(batch: &RecordBatch, name: &str) -> Vec<Option<Vec<f64>>> {
    let rows = batch.num_rows();
    let Some(column) = batch.column_by_name(name) else { return vec![None; rows] };
    let read = |row: usize| -> Option<Vec<f64>> {
        let list = column.as_list_opt::<i32>().filter(|list| list.is_valid(row))?.value(row);
        (0..list.len()).map(|index| number(&list, index).filter(|value| value.is_finite())).collect()
    };
    (0..rows).map(read).collect()
}

fn text(column: &ArrayRef, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).to_owned(),
        DataType::Utf8View => column.as_string_view().value(row).to_owned(),
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            return text(dictionary.values(), dictionary.normalized_keys()[row]);
        }
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        _ => number(column, row)?.to_string(),
    })
}

fn number(column: &ArrayRef, row: usize) -> Option<f64> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row),
        DataType::Float32 => f64::from(column.as_primitive::<Float32Type>().value(row)),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row) as f64,
        DataType::Int32 => f64::from(column.as_primitive::<Int32Type>().value(row)),
        DataType::Int16 => f64::from(column.as_primitive::<Int16Type>().value(row)),
        DataType::Int8 => f64::from(column.as_primitive::<Int8Type>().value(row)),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row) as f64,
        DataType::UInt32 => f64::from(column.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt8 => f64::from(column.as_primitive::<UInt8Type>().value(row)),
        DataType::Boolean => f64::from(u8::from(column.as_boolean().value(row))),
        _ => return None,
    })
}
