//! Published tables, read back as a user would: every Parquet part below a folder.

use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// The rows of a table.
pub(crate) struct Table {
    folder: PathBuf,
    batches: Vec<RecordBatch>,
}

impl Table {
    /// Reads all parts directly in `folder`.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut parts: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("a folder entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "parquet"))
            .collect();
        parts.sort();
        assert!(!parts.is_empty(), "{} holds no Parquet", folder.display());
        let mut batches = Vec::new();
        for part in parts {
            let file = std::fs::File::open(&part).expect("a part opens");
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
            let reader = reader.unwrap_or_else(|error| panic!("{}: {error}", part.display()));
            batches.extend(reader.map(|batch| batch.expect("rows decode")));
        }
        Self { folder: folder.to_owned(), batches }
    }

    fn column<T>(&self, name: &str, read: impl Fn(&ArrayRef) -> Vec<T>) -> Vec<T> {
        self.batches
            .iter()
            .flat_map(|batch| {
                let column = batch.column_by_name(name);
                read(column.unwrap_or_else(|| panic!("{} has no column `{name}`", self.folder.display())))
            })
            .collect()
    }

    /// A column of texts, written plainly or with a dictionary.
    pub(crate) fn texts(&self, name: &str) -> Vec<Option<String>> {
        self.column(name, |array| match array.as_any_dictionary_opt() {
            Some(dictionary) if !dictionary.is_empty() => {
                let values = dictionary.values().as_string::<i32>();
                let keys = dictionary.normalized_keys();
                let text = |(row, key): (usize, &usize)| {
                    dictionary.is_valid(row).then(|| values.value(*key).to_owned())
                };
                keys.iter().enumerate().map(text).collect()
            }
            Some(_) => Vec::new(),
            None => array.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect(),
        })
    }

    /// A column of numbers.
    pub(crate) fn numbers(&self, name: &str) -> Vec<Option<f64>> {
        self.column(name, |array| match array.data_type() {
            arrow_schema::DataType::Int64 => array
                .as_primitive::<Int64Type>()
                .iter()
                .map(|value| value.map(|value| value as f64))
                .collect(),
            _ => array.as_primitive::<Float64Type>().iter().collect(),
        })
    }

    /// A column of truth values.
    pub(crate) fn truths(&self, name: &str) -> Vec<Option<bool>> {
        self.column(name, |array| array.as_boolean().iter().collect())
    }

    /// A column of lists of numbers.
    pub(crate) fn lists(&self, name: &str) -> Vec<Vec<f64>> {
        self.column(name, |array| {
            let lists = array.as_list::<i32>().iter();
            lists
                .map(|list| {
                    let list = list.expect("a list in every row");
                    match list.data_type() {
                        arrow_schema::DataType::Int32 => list
                            .as_primitive::<Int32Type>()
                            .values()
                            .iter()
                            .map(|value| f64::from(*value))
                            .collect(),
                        _ => list
                            .as_primitive::<Float32Type>()
                            .values()
                            .iter()
                            .map(|value| f64::from(*value))
                            .collect(),
                    }
                })
                .collect()
        })
    }
}
