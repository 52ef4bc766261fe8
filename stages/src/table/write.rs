//! Writing a table: parts cut by content, rows named by the digest of their values.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use pipe_engine::cache::{Digest, Value, part_digest, part_ends, row_digest};
use pipe_engine::{OutputWriter, StageContext, StageError, TablePart};

use super::arrow::record_batch;
use super::column::{Column, Table};
use super::schema::{Kind, TableSchema};

/// How a table is written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions<'a> {
    /// Rows of a part, on average: a power of two. Parts have a quarter to four times as many.
    pub shard_rows: usize,
    /// The `pipe` metadata: what the engine knows of the table's origin.
    pub provenance: &'a str,
}

impl WriteOptions<'_> {
    /// Parts of the size for tables of text.
    pub fn text(provenance: &str) -> WriteOptions<'_> {
        WriteOptions { shard_rows: 4096, provenance }
    }

    /// The rows of a row-wise stage: those of one part stay one part, whatever their number, so that parts
    /// do not get smaller from stage to stage.
    pub fn row_wise<'p>(context: &StageContext<'_>, provenance: &'p str) -> WriteOptions<'p> {
        match context.is_part() {
            true => WriteOptions { shard_rows: usize::MAX, provenance },
            false => WriteOptions::text(provenance),
        }
    }
}

/// Writes `table`, whose columns are those of `schema` and perhaps further ones, as parts into the
/// output, and declares it to the engine.
///
/// # Errors
/// If a column is missing, misplaced or lacks a required value, or a file cannot be written.
pub fn write(
    output: &mut OutputWriter,
    schema: &TableSchema,
    table: &Table,
    options: WriteOptions<'_>,
) -> Result<(), StageError> {
    let mut writer = TableWriter::new(output, schema, options);
    writer.push(table.clone())?;
    writer.finish(output)
}

/// Writes a table piece by piece: a part is written as soon as it is cut, so that no more than four
/// times `shard_rows` rows wait in memory. The pieces do not show in the result.
pub struct TableWriter<'a> {
    schema: &'a TableSchema,
    options: WriteOptions<'a>,
    folder: PathBuf,
    /// Rows of the part that is not cut yet, with their digests.
    waiting: Option<Table>,
    digests: Vec<Digest>,
    parts: Vec<TablePart>,
}

impl<'a> TableWriter<'a> {
    /// A writer of parts into the folder of `output`.
    pub fn new(output: &OutputWriter, schema: &'a TableSchema, options: WriteOptions<'a>) -> Self {
        let folder = output.folder().to_owned();
        Self { schema, options, folder, waiting: None, digests: Vec::new(), parts: Vec::new() }
    }

    /// Adds rows. Every piece has the same columns; the metadata are those of the first one. Rows are moved, not copied.
    ///
    /// # Errors
    /// As [`write()`].
    pub fn push(&mut self, rows: Table) -> Result<(), StageError> {
        let rows = ordered(self.schema, rows)?;
        self.digests.extend(row_digests(&rows));
        let mut table = match self.waiting.take() {
            None => rows,
            Some(waiting) => waiting.append(rows)?,
        };
        let mut start = 0;
        for end in part_ends(&self.digests, self.options.shard_rows) {
            let rest = table.split_off(end - start);
            self.write_part(std::mem::replace(&mut table, rest), start)?;
            start = end;
        }
        self.digests.drain(..start);
        self.waiting = Some(table);
        Ok(())
    }

    /// Writes the rest and declares the table to the engine.
    ///
    /// # Errors
    /// As [`write()`], or if nothing was ever pushed.
    pub fn finish(mut self, output: &mut OutputWriter) -> Result<(), StageError> {
        let table = self.waiting.take().ok_or_else(|| {
            StageError::failed(format!("table `{}` was given no columns", self.schema.name))
        })?;
        // A table without rows still has one part: its schema has to be somewhere.
        if table.rows() > 0 || self.parts.is_empty() {
            self.write_part(table, 0)?;
        }
        output.set_table(self.parts);
        Ok(())
    }

    /// Writes a part, whose digests begin at `first`.
    fn write_part(&mut self, part: Table, first: usize) -> Result<(), StageError> {
        let path = format!("part-{:05}.parquet", self.parts.len());
        let rows = part.rows();
        let digests = &self.digests[first..first + rows];
        let digest = part_digest(self.schema.name, self.schema.version, digests);
        write_part(&self.folder.join(&path), self.schema, part, self.options.provenance)?;
        self.parts.push(TablePart { path, digest, rows: rows as u64 });
        Ok(())
    }
}

/// The columns in schema order, further ones after them; required values checked.
fn ordered(schema: &TableSchema, mut table: Table) -> Result<Table, StageError> {
    let mistake = |reason: String| StageError::failed(format!("table `{}`: {reason}", schema.name));
    let rows = table.rows();
    let mut ordered = Table { metadata: std::mem::take(&mut table.metadata), ..Table::new() };
    for field in schema.fields {
        let column = match table.take(field.name) {
            Some(column) => column,
            None if field.required => return Err(mistake(format!("column `{}` is missing", field.name))),
            None => empty(field.kind, rows),
        };
        if !field.kind.fits(&column) {
            return Err(mistake(format!("column `{}` has another type than {:?}", field.name, field.kind)));
        }
        if let Some(row) = column.first_null().filter(|_| field.required) {
            return Err(mistake(format!("column `{}` has no value in row {row}", field.name)));
        }
        if let Some(row) = first_not_three(&column).filter(|_| field.kind.is_three()) {
            return Err(mistake(format!("column `{}` has no list of three in row {row}", field.name)));
        }
        ordered = ordered.with(field.name, column);
    }
    for (name, column) in table.into_columns() {
        ordered = ordered.with(&name, column);
    }
    Ok(ordered)
}

/// The first row whose list has another number of values than three.
fn first_not_three(column: &Column) -> Option<usize> {
    fn first<T>(values: &[Option<Vec<T>>]) -> Option<usize> {
        values.iter().position(|value| value.as_ref().is_some_and(|items| items.len() != 3))
    }
    match column {
        Column::ListInt32(values) => first(values),
        Column::ListFloat32(values) => first(values),
        _ => None,
    }
}

fn empty(kind: Kind, rows: usize) -> Column {
    match kind {
        Kind::Utf8 | Kind::Category => Column::Utf8(vec![None; rows]),
        Kind::Bool => Column::Bool(vec![None; rows]),
        Kind::Int32 => Column::Int32(vec![None; rows]),
        Kind::Int64 => Column::Int64(vec![None; rows]),
        Kind::Float64 => Column::Float64(vec![None; rows]),
        Kind::ListInt64 => Column::ListInt64(vec![None; rows]),
        Kind::ListInt32 | Kind::ThreeInt32 => Column::ListInt32(vec![None; rows]),
        Kind::ListFloat32 | Kind::ThreeFloat32 => Column::ListFloat32(vec![None; rows]),
        Kind::ListUtf8 => Column::ListUtf8(vec![None; rows]),
        Kind::Image => Column::Image(vec![None; rows]),
        Kind::Binary => Column::Binary(vec![None; rows]),
    }
}

/// The digest of each row of a table.
pub(crate) fn row_digests(table: &Table) -> Vec<Digest> {
    (0..table.rows()).map(|row| digest_of_row(table, row)).collect()
}

fn digest_of_row(table: &Table, row: usize) -> Digest {
    let columns: BTreeMap<String, Value> =
        table.columns().iter().map(|(name, column)| (name.clone(), value(column, row))).collect();
    row_digest(columns)
}

fn value(column: &Column, row: usize) -> Value {
    fn some<T>(value: &Option<T>, convert: impl Fn(&T) -> Value) -> Value {
        value.as_ref().map_or(Value::None, convert)
    }
    match column {
        Column::Utf8(values) => some(&values[row], |text| Value::String(text.clone())),
        Column::Bool(values) => some(&values[row], |value| Value::Bool(*value)),
        Column::Int32(values) => some(&values[row], |value| Value::Integer(i64::from(*value))),
        Column::Int64(values) => some(&values[row], |value| Value::Integer(*value)),
        Column::Float64(values) => some(&values[row], |value| Value::Float(*value)),
        Column::ListInt64(values) => {
            some(&values[row], |items| Value::List(items.iter().map(|item| Value::Integer(*item)).collect()))
        }
        Column::ListInt32(values) => some(&values[row], |items| {
            Value::List(items.iter().map(|item| Value::Integer(i64::from(*item))).collect())
        }),
        Column::ListFloat32(values) => some(&values[row], |items| {
            Value::Bytes(items.iter().flat_map(|item| item.to_le_bytes()).collect())
        }),
        Column::ListUtf8(values) => some(&values[row], |items| {
            Value::List(items.iter().map(|item| Value::String(item.clone())).collect())
        }),
        Column::Image(values) => some(&values[row], |(bytes, path)| {
            let fields = [
                ("bytes".to_owned(), Value::Digest(Digest::of(bytes))),
                ("path".to_owned(), Value::String(path.clone())),
            ];
            Value::Table(fields.into())
        }),
        Column::Binary(values) => some(&values[row], |bytes| Value::Digest(Digest::of(bytes))),
    }
}

/// Writes a table that is no result of a stage as one file.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write_file(path: &std::path::Path, name: &'static str, table: Table) -> Result<(), StageError> {
    let schema = TableSchema { name, version: 1, fields: &[], ..TableSchema::metrics() };
    write_part(path, &schema, table, "{}")
}

fn write_part(
    path: &std::path::Path,
    schema: &TableSchema,
    mut rows: Table,
    provenance: &str,
) -> Result<(), StageError> {
    let doing = || format!("writing `{}`", path.display());
    rows.metadata.insert("pipe".to_owned(), provenance.to_owned());
    rows.metadata.insert("schema".to_owned(), format!("{} {}", schema.name, schema.version));
    let images: Vec<&str> = rows
        .columns()
        .iter()
        .filter(|(_, column)| matches!(column, Column::Image(_)))
        .map(|(name, _)| name.as_str())
        .collect();
    if !images.is_empty() {
        let features: serde_json::Map<String, serde_json::Value> =
            images.iter().map(|name| ((*name).to_owned(), serde_json::json!({ "_type": "Image" }))).collect();
        let huggingface = serde_json::json!({ "info": { "features": features } }).to_string();
        rows.metadata.insert("huggingface".to_owned(), huggingface);
    }
    let is_three = |name: &str| schema.fields.iter().any(|field| field.name == name && field.kind.is_three());
    let batch = record_batch(&rows, &is_three).map_err(|error| StageError::because(doing(), error))?;
    let properties = properties(schema, &rows);
    drop(rows);
    let file = File::create(path).map_err(|error| StageError::environment(doing(), error))?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))
        .map_err(|error| StageError::because(doing(), error))?;
    writer.write(&batch).and_then(|()| writer.close().map(|_| ())).map_err(|error| match error {
        // The writer wraps what the disk says.
        parquet::errors::ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => StageError::environment(doing(), *source),
            Err(source) => StageError::because(doing(), source),
        },
        error => StageError::because(doing(), error),
    })
}

/// Images of more bytes than this on average are written in small row groups: who wants one row reads a
/// whole group.
const LARGE_IMAGE: usize = 20_000;

/// Rows of a row group.
fn row_group(schema: &TableSchema, rows: &Table) -> usize {
    let bytes = rows.columns().iter().map(|(_, column)| match column {
        Column::Image(values) => values.iter().flatten().map(|(bytes, _)| bytes.len()).sum(),
        _ => 0,
    });
    if bytes.sum::<usize>() > LARGE_IMAGE * rows.rows() {
        schema.row_group.min(100)
    } else {
        schema.row_group
    }
}

/// Metadata stands in the Arrow schema and again as Parquet key-values: some readers see only the one,
/// some only the other.
fn properties(schema: &TableSchema, rows: &Table) -> WriterProperties {
    let zstd = Compression::ZSTD(ZstdLevel::try_new(3).expect("3 is a level of zstd"));
    let key_values =
        rows.metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    let mut builder = WriterProperties::builder()
        .set_compression(zstd)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(row_group(schema, rows)))
        .set_key_value_metadata(Some(key_values));
    for (name, column) in rows.columns() {
        let path = |parts: &[&str]| {
            let mut all = vec![name.clone()];
            all.extend(parts.iter().map(|part| (*part).to_owned()));
            ColumnPath::new(all)
        };
        let category = schema.fields.iter().any(|field| field.name == name && field.kind == Kind::Category);
        match column {
            Column::Utf8(_) if category => builder = builder.set_column_dictionary_enabled(path(&[]), true),
            Column::Image(_) => {
                builder = builder
                    .set_column_compression(path(&["bytes"]), Compression::UNCOMPRESSED)
                    .set_column_statistics_enabled(path(&["bytes"]), EnabledStatistics::None);
            }
            Column::Binary(_) => {
                builder = builder.set_column_statistics_enabled(path(&[]), EnabledStatistics::None);
            }
            Column::ListFloat32(_) => {
                builder = builder
                    .set_column_encoding(path(&["list", "item"]), Encoding::BYTE_STREAM_SPLIT)
                    .set_column_statistics_enabled(path(&["list", "item"]), EnabledStatistics::None);
            }
            _ => {}
        }
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captions(rows: impl IntoIterator<Item = i64>) -> Table {
        let rows: Vec<i64> = rows.into_iter().collect();
        Table::new()
            .with("caption_id", Column::Int64(rows.iter().map(|row| Some(*row)).collect()))
            .with("image_id", Column::texts(rows.iter().map(|row| format!("image {row}"))))
            .with("split", Column::texts(rows.iter().map(|_| "train")))
            .with("caption", Column::texts(rows.iter().map(|row| format!("caption {row}"))))
    }

    fn parts(table: &Table) -> Vec<(Digest, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let mut output = OutputWriter::new(folder.path().to_owned());
        write(
            &mut output,
            &TableSchema::captions(),
            table,
            WriteOptions { shard_rows: 64, provenance: "{}" },
        )
        .unwrap();
        output.table().unwrap().iter().map(|part| (part.digest, part.rows)).collect()
    }

    #[test]
    fn an_inserted_row_disturbs_one_or_two_parts() {
        let before = parts(&captions(0..5000));
        let after = parts(&captions((0..2500).chain([9999]).chain(2500..5000)));
        assert!(before.len() > 30, "{} parts", before.len());
        assert!(before.iter().all(|(_, rows)| *rows <= 256));
        let new = after.iter().filter(|part| !before.contains(part)).count();
        assert!((1..=2).contains(&new), "{new} parts changed");
    }

    #[test]
    fn appended_rows_keep_the_old_parts() {
        let before = parts(&captions(0..5000));
        let after = parts(&captions(0..6000));
        assert_eq!(before[..before.len() - 1], after[..before.len() - 1]);
    }

    #[test]
    fn a_table_written_in_pieces_is_the_table_written_at_once() {
        let rows: Vec<i64> = (0..3000).collect();
        let whole = parts(&captions(rows.iter().copied()));
        let folder = tempfile::tempdir().unwrap();
        let mut output = OutputWriter::new(folder.path().to_owned());
        let schema = TableSchema::captions();
        let mut writer =
            TableWriter::new(&output, &schema, WriteOptions { shard_rows: 64, provenance: "{}" });
        for piece in rows.chunks(37) {
            writer.push(captions(piece.iter().copied())).unwrap();
            assert!(writer.digests.len() < 4 * 64);
        }
        writer.push(captions([])).unwrap();
        writer.finish(&mut output).unwrap();
        let pieces: Vec<_> = output.table().unwrap().iter().map(|part| (part.digest, part.rows)).collect();
        assert_eq!(pieces, whole);
    }

    #[test]
    fn a_table_without_rows_has_one_part() {
        assert_eq!(parts(&captions([])).iter().map(|(_, rows)| *rows).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn what_is_written_is_read_back_and_the_metadata_stands_twice() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = OutputWriter::new(folder.path().to_owned());
        let table = Table::new()
            .with("id", Column::texts(["a", "b"]))
            .with("split", Column::texts(["test", "test"]))
            .with("target", Column::ListInt32(vec![Some(vec![1]), Some(vec![0])]))
            .with("prediction", Column::ListInt32(vec![Some(vec![1]), Some(vec![1])]))
            .with("scores", Column::ListFloat32(vec![Some(vec![0.25, 0.75]), Some(vec![0.5, 0.5])]))
            .with("correct", Column::Bool(vec![Some(true), Some(false)]))
            .with("truth_device", Column::Utf8(vec![Some("A".to_owned()), None]))
            .with_metadata("task", "binary-class");
        write(&mut output, &TableSchema::predictions(), &table, WriteOptions::text("{\"version\":1}"))
            .unwrap();
        let path = folder.path().join("part-00000.parquet");
        let file = File::open(&path).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        assert!(reader.schema().fields().iter().all(|field| field.is_nullable()));
        assert_eq!(reader.schema().metadata()["task"], "binary-class");
        let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
        assert!(
            metadata
                .iter()
                .any(|entry| entry.key == "pipe" && entry.value.as_deref() == Some("{\"version\":1}"))
        );
        let scores = reader
            .metadata()
            .row_group(0)
            .columns()
            .iter()
            .find(|column| column.column_path().string().starts_with("scores"))
            .unwrap();
        assert!(scores.encodings().any(|encoding| encoding == Encoding::BYTE_STREAM_SPLIT));
        let read = super::super::read::read_file(&path, &|_| true).unwrap();
        assert_eq!(read.list_float32("scores").unwrap(), table.list_float32("scores").unwrap());
        assert_eq!(read.utf8("truth_device").unwrap(), table.utf8("truth_device").unwrap());
    }

    #[test]
    fn large_images_stand_in_small_row_groups() {
        let groups = |bytes: usize| {
            let folder = tempfile::tempdir().unwrap();
            let mut output = OutputWriter::new(folder.path().to_owned());
            let rows = 0..150;
            let text = |value: &str| Column::Utf8(vec![Some(value.to_owned()); 150]);
            let table = Table::new()
                .with("image_id", Column::texts(rows.clone().map(|row| row.to_string())))
                .with("split", text("test"))
                .with("mask", Column::Image(vec![Some((vec![7; bytes], String::new())); 150]))
                .with("pixels", Column::Int64(rows.map(Some).collect()));
            let options = WriteOptions { shard_rows: 4096, provenance: "{}" };
            write(&mut output, &TableSchema::masks(), &table, options).unwrap();
            let file = File::open(folder.path().join("part-00000.parquet")).unwrap();
            let reader =
                parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            reader.metadata().num_row_groups()
        };
        assert_eq!((groups(100), groups(30_000)), (1, 2));
    }

    #[test]
    fn a_missing_required_value_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = OutputWriter::new(folder.path().to_owned());
        let table = captions(0..1).select(&[0]);
        let table = Table::new().with("caption_id", table.column("caption_id").unwrap().clone());
        let error =
            write(&mut output, &TableSchema::captions(), &table, WriteOptions::text("{}")).unwrap_err();
        assert!(error.to_string().contains("column `image_id` is missing"), "{error}");
    }
}
