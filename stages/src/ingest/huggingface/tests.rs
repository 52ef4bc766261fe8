use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{
    Array, ArrayRef, BinaryArray, Int64Array, LargeStringArray, RecordBatch, StringArray, StructArray,
};
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestHuggingFace;
use crate::ingest::IngestVqaRad;
use crate::ingest::testing::{checks, reasons, strings};
use crate::png;
use crate::table::{Column, read};
use crate::testing::{Made, run, tree};

fn ingest(folder: &TempDir, params: Value) -> Result<Made, StageError> {
    run(&IngestHuggingFace, &params, &[("source", &tree(folder.path(), "file"))])
}

fn picture(number: u8) -> Vec<u8> {
    let pixels: Vec<u8> = (0..12u8).map(|pixel| pixel.wrapping_mul(20).wrapping_add(number)).collect();
    png::encode(&pixels, 4, 3, 1).unwrap()
}

fn images(bytes: &[Option<Vec<u8>>]) -> ArrayRef {
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let contents: BinaryArray = bytes.iter().map(|bytes| bytes.as_deref()).collect();
    let paths: StringArray = (0..bytes.len()).map(|row| Some(format!("{row}.png"))).collect();
    Arc::new(StructArray::new(fields, vec![Arc::new(contents), Arc::new(paths)], None))
}

/// Writes columns as a data set of Hugging Face does.
fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, features: Option<Value>) {
    write_packed(path, columns, features, Compression::SNAPPY);
}

fn write_packed(
    path: &Path,
    columns: Vec<(&str, ArrayRef)>,
    features: Option<Value>,
    compression: Compression,
) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties)).unwrap();
    if let Some(features) = features {
        let value = json!({ "info": { "features": features } }).to_string();
        writer.append_key_value_metadata(KeyValue::new("huggingface".to_owned(), value));
    }
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn files_name_splits_and_metadata_classes() {
    let folder = TempDir::new().unwrap();
    let features = json!({ "label": { "names": ["benign", "malignant", "unsure"], "_type": "ClassLabel" } });
    for (file, first) in [("data/test-00000-of-00001.parquet", 10), ("data/train-00000-of-00001.parquet", 0)]
    {
        let labels: ArrayRef = Arc::new(Int64Array::from(vec![1, 0]));
        // A type that Hugging Face uses for long texts.
        let texts: ArrayRef = Arc::new(LargeStringArray::from(vec!["one", "two"]));
        let mut concepts = ListBuilder::new(StringBuilder::new());
        concepts.append_value([Some("C0040405"), Some("C0817096")]);
        concepts.append_value::<[Option<&str>; 0], &str>([]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("image", images(&[Some(picture(first)), Some(picture(first + 1))])),
            ("label", labels),
            ("text", texts),
            ("cui", Arc::new(concepts.finish())),
        ];
        write(&folder.path().join(file), columns, Some(features.clone()));
    }
    let params = json!({ "dataset": "mine", "version": "3", "columns": { "label": "label", "caption": "text", "cuis": "cui" } });
    let made = ingest(&folder, params).unwrap();
    let table = read(&made["images"]).unwrap();
    assert_eq!(strings(&table, "image_id"), ["mine/train/0", "mine/train/1", "mine/test/0", "mine/test/1"]);
    assert_eq!(table.images("image").unwrap()[0], Some((picture(0), "0.png".to_owned())));
    let labels = read(&made["labels"]).unwrap();
    assert_eq!(labels.metadata["label_names"], r#"["benign","malignant","unsure"]"#);
    assert_eq!(labels.metadata["task"], "multi-class");
    assert_eq!(labels.list_int64("label").unwrap()[..2], [Some(vec![1]), Some(vec![0])]);
    let captions = read(&made["captions"]).unwrap();
    assert_eq!(strings(&captions, "caption"), ["one", "two", "one", "two"]);
    let Some(Column::ListUtf8(cuis)) = captions.column("cuis") else { panic!() };
    assert_eq!(cuis[0].as_deref().unwrap(), ["C0040405", "C0817096"]);
    assert_eq!(cuis[1].as_deref().unwrap(), [] as [&str; 0]);
    assert_eq!(captions.metadata["dataset_version"], "3");
    assert!(captions.metadata["source_md5"].contains("data/test-00000-of-00001.parquet"));
    assert_eq!(checks(&made, "same caption")["test train"], 2);
    assert_eq!(checks(&made, "class")["train unsure"], 0);
}

/// Most libraries pack with snappy unless they are told otherwise; others are told.
#[test]
fn files_may_be_packed_in_any_usual_way() {
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(BrotliLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let folder = TempDir::new().unwrap();
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["one", "one", "one", "two"]));
        let pictures = images(&[0, 1, 2, 3].map(|number| Some(picture(number))));
        let columns = vec![("image", pictures), ("text", texts)];
        write_packed(&folder.path().join("train.parquet"), columns, None, compression);
        let made = ingest(&folder, json!({ "columns": { "caption": "text" } })).unwrap();
        assert_eq!(strings(&read(&made["captions"]).unwrap(), "caption"), ["one", "one", "one", "two"]);
    }
}

#[test]
fn questions_about_one_image_share_it() {
    let folder = TempDir::new().unwrap();
    let texts = |values: &[&str]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    for (file, first) in [("train.parquet", 0), ("test.parquet", 1)] {
        let columns = vec![
            ("image", images(&[Some(picture(first)), Some(picture(first)), Some(picture(first + 1))])),
            ("question", texts(&["is it?", "what is it?", "where is it?"])),
            ("answer", texts(&["yes", "a mass", "left"])),
        ];
        write(&folder.path().join(file), columns, None);
    }
    let made = ingest(&folder, json!({ "columns": { "question": "question", "answer": "answer" } })).unwrap();
    assert_eq!(read(&made["images"]).unwrap().rows(), 3);
    let table = read(&made["questions"]).unwrap();
    assert_eq!(table.rows(), 6);
    let ids = strings(&table, "image_id");
    assert!(ids[0] == ids[1] && ids[2] == ids[3]);
    assert_eq!(checks(&made, "image asked about")["test train"], 1);
    // Hugging Face's variant of VQA-RAD has these very columns.
    let source = tree(folder.path(), "file");
    let params = json!({ "protocol": "huggingface-1793", "allow_partial": true });
    let made = run(&IngestVqaRad, &params, &[("source", &source)]).unwrap();
    assert_eq!(checks(&made, "questions").into_values().collect::<Vec<_>>(), [3, 3]);
    assert_eq!(read(&made["images"]).unwrap().rows(), 3);
    let types = read(&made["questions"]).unwrap();
    assert!(types.utf8("answer_type").unwrap().iter().all(Option::is_none));
}

#[test]
fn splits_are_drawn_where_none_is_named_and_labels_may_be_names() {
    let folder = TempDir::new().unwrap();
    let names: ArrayRef = Arc::new((0..100).map(|row| Some(["b", "a"][row % 2])).collect::<StringArray>());
    let pictures: Vec<Option<Vec<u8>>> = (0..100).map(|row| Some(picture(row))).collect();
    write(&folder.path().join("rows.parquet"), vec![("image", images(&pictures)), ("kind", names)], None);
    let params = json!({ "columns": { "label": "kind" }, "val": 0.2, "test": 0.2, "seed": 3 });
    let made = ingest(&folder, params).unwrap();
    let labels = read(&made["labels"]).unwrap();
    assert_eq!(labels.rows(), 100);
    assert_eq!(labels.metadata["label_names"], r#"["a","b"]"#);
    let splits = strings(&labels, "split");
    let mut sorted = splits.clone();
    sorted.sort_by_key(|split| crate::ingest::splits::place(split));
    assert_eq!(splits, sorted);
    assert!(["train", "val", "test"].iter().all(|split| splits.iter().any(|of| of == split)));
}

#[test]
fn an_id_names_one_image_in_all_splits() {
    let folder = TempDir::new().unwrap();
    let texts = |values: &[&str]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    let write = |file: &str, pictures: [Vec<u8>; 3], words: &[&str]| {
        let columns = vec![
            ("image", images(&pictures.map(Some))),
            ("id", texts(&["a", "a", "b"])),
            ("text", texts(words)),
            ("answer", texts(&["yes", "no", "yes"])),
        ];
        self::write(&folder.path().join(file), columns, None);
    };
    write("train.parquet", [picture(0), picture(0), picture(1)], &["one", "the same again", "two"]);
    // An image of the same id that is another, in the block of the first one and in another split.
    write("test.parquet", [picture(0), picture(2), picture(3)], &["as in training", "another", "a third"]);
    for (text, table) in [("caption", "captions"), ("question", "questions")] {
        let mut columns = json!({ "id": "id", text: "text" });
        if text == "question" {
            columns["answer"] = json!("answer");
        }
        let params = |most: i64| json!({ "columns": columns, "max_rejects": most });
        let error = ingest(&folder, params(1)).err().unwrap().to_string();
        assert!(error.contains("row 2: the id `a` names another image"), "{error}");
        let made = ingest(&folder, params(2)).unwrap();
        let stored = read(&made["images"]).unwrap();
        assert_eq!(strings(&stored, "image_id"), ["a", "b"]);
        assert_eq!(stored.images("image").unwrap()[0].as_ref().unwrap().0, picture(0));
        let said = read(&made[table]).unwrap();
        assert_eq!(strings(&said, text), ["one", "the same again", "two", "as in training"]);
        let rejects = read(&made["rejects"]).unwrap();
        assert_eq!(rejects.int64("row").unwrap(), [Some(2), Some(3)]);
        assert_eq!(strings(&rejects, "file"), ["test.parquet", "test.parquet"]);
    }
    // Every row of an image that cannot be decoded is counted.
    write("test.parquet", [b"none".to_vec(), b"none".to_vec(), picture(1)], &["one", "two", "three"]);
    std::fs::remove_file(folder.path().join("train.parquet")).unwrap();
    let made =
        ingest(&folder, json!({ "columns": { "id": "id", "caption": "text" }, "max_rejects": 2 })).unwrap();
    assert_eq!(read(&made["rejects"]).unwrap().int64("row").unwrap(), [Some(1), Some(2)]);
    assert!(reasons(&made).iter().all(|reason| reason.contains("cannot be decoded")));
}

#[test]
fn what_cannot_be_used_is_listed_or_refused() {
    let folder = TempDir::new().unwrap();
    let labels: ArrayRef = Arc::new(Int64Array::from(vec![Some(0), Some(1), None, Some(1), Some(0)]));
    let bytes = [Some(picture(0)), None, Some(picture(2)), Some(b"no image".to_vec()), Some(Vec::new())];
    write(&folder.path().join("train.parquet"), vec![("image", images(&bytes)), ("label", labels)], None);
    let params = |most: i64| json!({ "columns": { "label": "label" }, "max_rejects": most });
    let error = ingest(&folder, params(3)).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    let made = ingest(&folder, params(4)).unwrap();
    assert_eq!(read(&made["images"]).unwrap().rows(), 1);
    let rejects = read(&made["rejects"]).unwrap();
    let rows: Vec<i64> = rejects.int64("row").unwrap().iter().flatten().copied().collect();
    assert_eq!(rows, [2, 3, 5, 4]);
    let reasons = reasons(&made).join("; ");
    for part in ["it has no image", "it has no label", "cannot be decoded"] {
        assert!(reasons.contains(part), "{reasons}");
    }
    let error = ingest(&folder, json!({ "columns": { "label": "class" } })).err().unwrap().to_string();
    assert!(error.contains("it has no column `class`; its columns are image, label"), "{error}");
    let error = ingest(&folder, json!({ "columns": { "image": "label" } })).err().unwrap().to_string();
    assert!(error.contains("column `label` does not hold images"), "{error}");
    let whole = std::fs::read(folder.path().join("train.parquet")).unwrap();
    std::fs::write(folder.path().join("train.parquet"), &whole[..whole.len() / 2]).unwrap();
    let error = ingest(&folder, json!({})).err().unwrap().to_string();
    assert!(error.contains("it is no Parquet file"), "{error}");
}
