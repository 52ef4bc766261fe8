//! How far the values of two files are apart, column by column and tensor by tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_engine::ValueDifference;
use pipe_models::CheckpointFiles;
use pipe_models::checkpoint::read_tensors;

use crate::model::DEVICE;

/// The columns or tensors in which two files of a table, of maps or of weights differ; none if the files are something
/// else, or one of them cannot be read.
pub(crate) fn differences(name: &str, old: &Path, new: &Path) -> Option<Vec<ValueDifference>> {
    match Path::new(name).extension()?.to_str()? {
        "parquet" => Some(of_columns(&parquet(old)?, &parquet(new)?)),
        "arrow" => Some(of_columns(
            &columns(&[crate::ipc::read_file(old).ok()?])?,
            &columns(&[crate::ipc::read_file(new).ok()?])?,
        )),
        "safetensors" => Some(of_columns(&tensors(name, old)?, &tensors(name, new)?)),
        _ => None,
    }
}

/// The values of a column.
#[derive(Debug)]
enum Values {
    /// Compared as numbers, of 32 bits or of 64.
    Floats { values: Vec<Option<f64>>, single: bool },
    /// Compared row by row.
    Rows(ArrayRef),
}

impl Values {
    fn single(values: impl Iterator<Item = Option<f32>>) -> Self {
        Self::Floats { values: values.map(|value| value.map(f64::from)).collect(), single: true }
    }

    fn of(array: &ArrayRef) -> Self {
        let of_list = |values: &ArrayRef| match Self::of(values) {
            Self::Rows(_) => Self::Rows(array.clone()),
            floats => floats,
        };
        match array.data_type() {
            DataType::Float32 => Self::single(array.as_primitive::<Float32Type>().iter()),
            DataType::Float64 => {
                Self::Floats { values: array.as_primitive::<Float64Type>().iter().collect(), single: false }
            }
            DataType::FixedSizeList(..) => of_list(array.as_fixed_size_list().values()),
            DataType::List(_) => of_list(array.as_list::<i32>().values()),
            _ => Self::Rows(array.clone()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Floats { values, .. } => values.len(),
            Self::Rows(rows) => rows.len(),
        }
    }
}

type Columns = BTreeMap<String, Values>;

fn columns(batches: &[RecordBatch]) -> Option<Columns> {
    let schema = batches.first().map_or_else(|| Schema::empty().into(), RecordBatch::schema);
    let all = arrow_select::concat::concat_batches(&schema, batches).ok()?;
    let names = schema.fields().iter().map(|field| field.name().clone());
    Some(names.zip(all.columns().iter().map(Values::of)).collect())
}

fn parquet(path: &Path) -> Option<Columns> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).ok()?).ok()?.build().ok()?;
    columns(&reader.collect::<Result<Vec<_>, _>>().ok()?)
}

fn tensors(name: &str, path: &Path) -> Option<Columns> {
    let files = CheckpointFiles::new([(name.to_owned(), path.to_owned())]);
    let tensors = read_tensors(&files, name, &DEVICE).ok()?;
    let values = |tensor: candle_core::Tensor| -> Option<Values> {
        let values =
            tensor.flatten_all().ok()?.to_dtype(candle_core::DType::F32).ok()?.to_vec1::<f32>().ok()?;
        Some(Values::single(values.into_iter().map(Some)))
    };
    tensors.into_iter().map(|(name, tensor)| Some((name, values(tensor)?))).collect()
}

fn of_columns(old: &Columns, new: &Columns) -> Vec<ValueDifference> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differences = names.into_iter().map(|name| {
        let (differing, of, apart) = match (old.get(name), new.get(name)) {
            (
                Some(Values::Floats { values: old, single }),
                Some(Values::Floats { values: new, single: also }),
            ) if old.len() == new.len() && single == also => of_floats(old, new, *single),
            (Some(Values::Rows(old)), Some(Values::Rows(new)))
                if old.len() == new.len() && old.data_type() == new.data_type() =>
            {
                let differs = |row: &usize| *old.slice(*row, 1) != *new.slice(*row, 1);
                ((0..old.len()).filter(differs).count() as u64, old.len() as u64, None)
            }
            // Of another length or type: all values are others.
            (old, new) => {
                let length = |values: Option<&Values>| values.map_or(0, Values::len);
                let most = length(old).max(length(new)) as u64;
                (most, most, None)
            }
        };
        ValueDifference {
            name: name.clone(),
            differing,
            of,
            greatest: apart.map(|apart| apart.absolute),
            relative: apart.map(|apart| apart.relative),
            ulps: apart.map(|apart| apart.ulps),
        }
    });
    differences.filter(|one| one.differing > 0).collect()
}

/// The greatest distance of two numbers: as a number, as a share of the greater one, in units in the last place.
#[derive(Clone, Copy, Default, Debug)]
struct Distance {
    absolute: f64,
    relative: f64,
    ulps: u64,
}

/// The count of values that differ and of all, and their greatest distance; none where on one side only a value is
/// missing or is no number.
fn of_floats(old: &[Option<f64>], new: &[Option<f64>], single: bool) -> (u64, u64, Option<Distance>) {
    let (mut differing, mut apart) = (0, Some(Distance::default()));
    for pair in old.iter().zip(new) {
        match pair {
            (None, None) => {}
            (Some(a), Some(b)) if a == b || (a.is_nan() && b.is_nan()) => {}
            (Some(a), Some(b)) if a.is_finite() && b.is_finite() => {
                differing += 1;
                let absolute = (a - b).abs();
                apart = apart.map(|most| Distance {
                    absolute: most.absolute.max(absolute),
                    relative: most.relative.max(absolute / a.abs().max(b.abs())),
                    ulps: most.ulps.max(place(*a, single).abs_diff(place(*b, single))),
                });
            }
            _ => {
                differing += 1;
                apart = None;
            }
        }
    }
    (differing, old.len() as u64, apart)
}

/// The place of a number among all floats of its type: neighbours differ by one.
fn place(value: f64, single: bool) -> i64 {
    let magnitude =
        if single { i64::from((value.abs() as f32).to_bits()) } else { value.abs().to_bits() as i64 };
    if value < 0.0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Float32Array, Int64Array, StringArray};

    use super::*;

    fn table(floats: &[Option<f32>], numbers: &[i64], texts: &[&str]) -> Columns {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("floats", Arc::new(Float32Array::from(floats.to_vec()))),
            ("numbers", Arc::new(Int64Array::from(numbers.to_vec()))),
            ("texts", Arc::new(StringArray::from(texts.to_vec()))),
        ];
        super::columns(&[RecordBatch::try_from_iter(columns).unwrap()]).unwrap()
    }

    #[test]
    fn values_are_counted_and_their_distance_is_told() {
        let old = table(&[Some(1.0), Some(-2.0), None, Some(f32::NAN)], &[1, 2, 3, 4], &["a", "b", "c", "d"]);
        assert_eq!(of_columns(&old, &old), []);
        let up = f32::from_bits(1.0f32.to_bits() + 3);
        let new = table(&[Some(up), Some(-2.0), None, Some(f32::NAN)], &[1, 2, 3, 5], &["a", "x", "c", "y"]);
        let found = of_columns(&old, &new);
        let (floats, numbers, texts) = (&found[0], &found[1], &found[2]);
        assert_eq!(
            (floats.name.as_str(), floats.differing, floats.of, floats.ulps),
            ("floats", 1, 4, Some(3))
        );
        assert_eq!(floats.greatest, Some(f64::from(up) - 1.0));
        assert_eq!(floats.relative, Some((f64::from(up) - 1.0) / f64::from(up)));
        assert_eq!((numbers.differing, numbers.of, numbers.greatest), (1, 4, None));
        assert_eq!((texts.differing, texts.of), (2, 4));
        // Across zero, and where nothing can be said of the distance.
        assert_eq!(
            place(f64::from(f32::from_bits(1)), true).abs_diff(place(-f64::from(f32::from_bits(2)), true)),
            3
        );
        let gone = table(&[None, Some(-2.0), None, Some(f32::NAN)], &[1, 2, 3, 4], &["a", "b", "c", "d"]);
        assert_eq!((of_columns(&old, &gone)[0].differing, of_columns(&old, &gone)[0].ulps), (1, None));
        let short = table(&[Some(1.0)], &[1], &["a"]);
        assert_eq!(of_columns(&old, &short).iter().map(|one| one.differing).collect::<Vec<_>>(), [4, 4, 4]);
    }
}
