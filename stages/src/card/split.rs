//! A table's rows sorted into one file per split.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use pipe_engine::{Artifact, OutputWriter, StageError};
use sha2::{Digest as _, Sha256};

use super::{CardTable, SplitFile};

/// Rows that wait in memory: a volume has a hundred megabytes.
const BATCH: usize = 64;
/// Rows of a group: what a reader loads at once.
const GROUP: usize = 100;
const ALL: &str = "all";

/// As Hugging Face names splits.
fn published(split: &str) -> &str {
    if split == "val" { "validation" } else { split }
}

/// The files that are being written, by split.
type Writers = BTreeMap<String, (ArrowWriter<File>, u64)>;

/// Writes a table; the splits come in the order of their names.
pub(super) fn write(name: &str, artifact: &Artifact, output: &OutputWriter) -> Result<CardTable, StageError> {
    let mut writers = Writers::new();
    let mut classes: BTreeMap<(String, i64), u64> = BTreeMap::new();
    let mut schema: Option<SchemaRef> = None;
    for part in artifact.files_ending(".parquet") {
        let damaged = |reason: String| StageError::input(&part.location, reason);
        let file = File::open(&part.location).map_err(|error| damaged(error.to_string()))?;
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged(error.to_string()))?;
        let schema = schema.get_or_insert_with(|| builder.schema().clone());
        let reader = builder.with_batch_size(BATCH).build().map_err(|error| damaged(error.to_string()))?;
        for batch in reader {
            let batch = batch.map_err(|error| damaged(error.to_string()))?;
            add(name, &batch, schema, output, &mut writers)?;
            count(&batch, &mut classes);
        }
    }
    let schema = schema.ok_or_else(|| StageError::input(name, "it has no Parquet part"))?;
    let files = writers.into_iter().map(|(split, (writer, rows))| finish(name, split, writer, rows, output));
    let files = files.collect::<Result<Vec<SplitFile>, StageError>>()?;
    let names: Vec<String> = schema
        .metadata()
        .get("label_names")
        .and_then(|names| serde_json::from_str(names).ok())
        .unwrap_or_default();
    let class = |class: i64| {
        let known = usize::try_from(class).ok().and_then(|class| names.get(class)).cloned();
        known.unwrap_or_else(|| format!("class {class}"))
    };
    let classes = classes.into_iter().map(|((split, value), rows)| (split, class(value), rows)).collect();
    Ok(CardTable { name: name.to_owned(), schema, files, classes })
}

fn path(name: &str, split: &str) -> String {
    format!("data/{name}/{split}-00000-of-00001.parquet")
}

fn splits(batch: &RecordBatch) -> Option<Vec<String>> {
    let column = batch.column_by_name("split")?;
    let values = column.as_string_opt::<i32>()?;
    Some((0..values.len()).map(|row| published(values.value(row)).to_owned()).collect())
}

fn add(
    name: &str,
    batch: &RecordBatch,
    schema: &SchemaRef,
    output: &OutputWriter,
    writers: &mut Writers,
) -> Result<(), StageError> {
    let fail = |error: parquet::errors::ParquetError| StageError::because(format!("writing `{name}`"), error);
    let of_row = splits(batch).unwrap_or_else(|| vec![ALL.to_owned(); batch.num_rows()]);
    let mut there: Vec<&String> = of_row.iter().collect();
    there.sort();
    there.dedup();
    for split in there {
        let chosen: BooleanArray = of_row.iter().map(|one| Some(one == split)).collect();
        let rows = filter_record_batch(batch, &chosen)
            .map_err(|error| StageError::because(format!("splitting `{name}`"), error))?;
        if !writers.contains_key(split) {
            let place = output.path(&path(name, split))?;
            let file = File::create(place)
                .map_err(|error| StageError::environment(format!("writing `{name}`"), error))?;
            let level = ZstdLevel::try_new(3).map_err(fail)?;
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(level))
                .set_max_row_group_row_count(Some(GROUP))
                .build();
            let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(fail)?;
            writers.insert(split.clone(), (writer, 0));
        }
        if let Some((writer, count)) = writers.get_mut(split) {
            writer.write(&rows).map_err(fail)?;
            *count += rows.num_rows() as u64;
        }
    }
    Ok(())
}

fn finish(
    name: &str,
    split: String,
    writer: ArrowWriter<File>,
    rows: u64,
    output: &OutputWriter,
) -> Result<SplitFile, StageError> {
    writer.close().map_err(|error| StageError::because(format!("writing `{name}`"), error))?;
    let path = path(name, &split);
    let (bytes, sha256) = digest(&output.path(&path)?)
        .map_err(|error| StageError::environment(format!("reading `{path}` back"), error))?;
    Ok(SplitFile { table: name.to_owned(), split, path, bytes, sha256, rows })
}

fn digest(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok((bytes, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Counts labels: a list of one is a class, a longer one has a bit for each.
fn count(batch: &RecordBatch, classes: &mut BTreeMap<(String, i64), u64>) {
    let (Some(column), Some(splits)) = (batch.column_by_name("label"), splits(batch)) else { return };
    let Some(lists) = column.as_list_opt::<i32>() else { return };
    for (row, split) in splits.into_iter().enumerate().filter(|(row, _)| lists.is_valid(*row)) {
        let values: ArrayRef = lists.value(row);
        let Some(values) = values.as_primitive_opt::<Int64Type>() else { return };
        let present: Vec<i64> = match values.len() {
            1 => vec![values.value(0)],
            several => (0..several).filter(|bit| values.value(*bit) == 1).map(|bit| bit as i64).collect(),
        };
        for class in present {
            *classes.entry((split.clone(), class)).or_default() += 1;
        }
    }
}
