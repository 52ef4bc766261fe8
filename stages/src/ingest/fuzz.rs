//! Damaged files of others: whatever they hold, they are read as what they are, or refused.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use flate2::{Compression, write::GzEncoder};
use parquet::arrow::ArrowWriter;
use pipe_engine::{Artifact, ArtifactFile};
use pipe_fuzz::fuzz;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::archive::Archive;
use super::csv::CsvFile;
use super::npz::Npz;
use super::parquet::ParquetRows;
use super::rejects::Rejects;
use super::testing::source_file;
use super::{json, nifti};
use crate::testing::source;

/// No file that is made here unpacks to more.
const LIMIT: u64 = 1 << 20;

/// A place for the bytes of one execution after the other.
struct Place {
    _folder: TempDir,
    path: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        Self { _folder: folder, path }
    }

    fn put(&self, bytes: &[u8]) -> &Path {
        std::fs::write(&self.path, bytes).unwrap();
        &self.path
    }
}

/// An archive of members, each packed in one of two ways.
fn packed(members: &[(&str, &[u8])]) -> Vec<Vec<u8>> {
    let pack = |method: CompressionMethod| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let mut zip = ZipWriter::new(&mut bytes);
        for (name, content) in members {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap();
        bytes.into_inner()
    };
    vec![pack(CompressionMethod::Stored), pack(CompressionMethod::Deflated)]
}

#[test]
fn fuzz_archives() {
    let seeds =
        packed(&[("a/one.txt", b"some text some text some text"), ("two.csv", b"x,y\n1,2\n"), ("b/", b"")]);
    let words: [&[u8]; 6] = [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"../", b"\x01\0"];
    let place = Place::new("set.zip");
    fuzz("archives", &seeds, &words, |bytes| {
        let Ok(archive) = Archive::open(place.put(bytes)) else { return };
        let mut members = Vec::new();
        let listed = archive.each(|name, member| {
            assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".."), "{name}");
            members.push(member);
            Ok(())
        });
        // What is listed in front of damage may be read too.
        let _ = listed;
        for member in members {
            let Ok(bytes) = archive.read(&member) else { continue };
            let _ = std::io::copy(&mut std::io::Read::take(bytes, LIMIT), &mut std::io::sink());
        }
    });
}

#[test]
fn fuzz_arrays() {
    let array = |kind: &str, shape: &str, values: &[u8]| {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:<117}\n");
        let length = (header.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), values].concat()
    };
    let images = array("|u1", "(2, 3, 3)", &[7; 18]);
    let labels = array("<i8", "(2, 1)", &[1; 16]);
    let seeds = packed(&[("train_images.npy", &images), ("train_labels.npy", &labels)]);
    let words: [&[u8]; 7] =
        [b"(2, 3, ", b"'|O'", b"True", b"99999999999999999999", b"'>i4'", b"\x93NUMPY", b"()"];
    let place = Place::new("set.npz");
    fuzz("arrays", &seeds, &words, |bytes| {
        let Ok(mut npz) = Npz::open(place.put(bytes)) else { return };
        for name in npz.names() {
            let Ok(mut array) = npz.array(&name) else { continue };
            let count = array.shape().iter().fold(1u64, |count, side| count.saturating_mul(*side));
            let _ = match array.is_u8() {
                true => array.bytes(count).map(drop),
                false => array.integers(count).map(drop),
            };
        }
    });
}

#[test]
fn fuzz_scans() {
    let plain = nifti::tests::file([2, 3, 4], &(0..24).collect::<Vec<i16>>());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&plain).unwrap();
    for (name, seed) in [("scan.nii", plain), ("scan.nii.gz", gzip.finish().unwrap())] {
        let place = Place::new(name);
        place.put(&seed);
        let file = source_file(&place.path);
        fuzz(&format!("scans {name}"), &[seed], &[b"n+1\0", b"\x40\x01\0\0", b"\x1f\x8b"], |bytes| {
            place.put(bytes);
            let Ok(scan) = nifti::read(&file) else { return };
            let count = scan.shape.iter().product::<usize>();
            assert!(count > 0);
            let _ = (scan.voxels.value(0), scan.voxels.value(count - 1));
        });
    }
}

#[test]
fn fuzz_lists() {
    let text = "image,label,\"a, text\"\nx.png,1,\"two\nlines\"\n\u{e4}.png,2,\"quoted \"\"twice\"\"\"\n";
    let seeds = [text.as_bytes().to_vec(), format!("\u{feff}{}", text.replace(',', "\t")).into_bytes()];
    let place = Place::new("list.csv");
    place.put(&seeds[0]);
    let file = source_file(&place.path);
    fuzz("lists", &seeds, &[b"\"", b"\"\"", b"\r\n", b",", b"\xff\xfe", b"\0"], |bytes| {
        place.put(bytes);
        for delimiter in [b',', b'\t'] {
            let Ok(mut list) = CsvFile::open(&file, delimiter) else { continue };
            let columns = list.header().len();
            while let Ok(Some(row)) = list.next_row() {
                if let Ok(row) = row {
                    let _ = row.field(columns.saturating_sub(1));
                    assert_eq!(row.field(usize::MAX), None);
                }
            }
        }
    });
}

#[test]
fn fuzz_questions() {
    let record = r#"{"qid": 1, "image_name": "a.jpg", "question": "Is it?", "answer": 2, "answer_type": "CLOSED ",
        "triple": ["a", "b", null], "location": [1.5, "x"], "parts": [{"x": 1}]}"#;
    let seeds = [format!("[{record}, {record}]").into_bytes(), record.as_bytes().to_vec()];
    let words: [&[u8]; 7] = [b"[[[[[[[[", b"1e999", b"\"qid\":", b"\\ud800", b"{}", b"null", b"\xef\xbb\xbf"];
    let place = Place::new("questions.json");
    place.put(&seeds[0]);
    let file = source_file(&place.path);
    fuzz("questions", &seeds, &words, |bytes| {
        place.put(bytes);
        let mut found: Vec<json::Record> = json::record(bytes).into_iter().collect();
        let records = json::records(&file, &mut Rejects::new(&std::env::temp_dir()));
        found.extend(records.into_iter().flatten().map(|(_, record)| record));
        for record in found {
            for key in ["qid", "answer", "question", "triple", "location", "none"] {
                let _ = (record.has(key), record.number(key), record.integer(key), record.text(key));
                let _ = (record.some_text(key), record.texts(key), record.records(key));
            }
        }
    });
}

/// A table of two columns.
fn table() -> RecordBatch {
    let texts: Vec<Option<&str>> = vec![Some("one"), None, Some("three")];
    let columns: [(&str, ArrayRef); 2] =
        [("text", Arc::new(StringArray::from(texts))), ("number", Arc::new(Int64Array::from(vec![1, 2, 3])))];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[test]
fn fuzz_tables() {
    let table = table();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, table.schema(), None).unwrap();
    writer.write(&table).unwrap();
    writer.close().unwrap();
    let place = Place::new("part-00000.parquet");
    place.put(&bytes);
    let file = source_file(&place.path);
    let mut own = source(&place.path);
    own.files =
        ArtifactFile { path: "part-00000.parquet".to_owned(), bytes: 0, location: place.path.clone() }.into();
    fuzz("tables", &[bytes], &[b"PAR1", b"text", b"\x15\x02", b"\xff\xff\xff\x7f"], |bytes| {
        place.put(bytes);
        rows(&file);
        read_own(&own);
    });
}

fn rows(file: &super::source::SourceFile) {
    let Ok(mut rows) = ParquetRows::open(file, &["text", "number"]) else { return };
    let _ = (rows.rows(), rows.class_names("number"));
    while let Ok(Some(_)) = rows.next() {}
}

fn read_own(artifact: &Artifact) {
    let _ = crate::table::read(artifact);
    let _ = crate::table::provenance(artifact);
}

#[test]
fn fuzz_tensors() {
    let table = table();
    let mut bytes = Vec::new();
    let mut writer = arrow_ipc::writer::FileWriter::try_new(&mut bytes, &table.schema()).unwrap();
    writer.write(&table).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let place = Place::new("saliency.arrow");
    fuzz("tensors", &[bytes], &[b"ARROW1", b"\xff\xff\xff\xff", b"text", b"\0\0\0\x80"], |bytes| {
        let _ = crate::ipc::read_file(place.put(bytes));
    });
}
