use std::path::Path;

use pipe_engine::StageError;
use serde_json::json;
use tempfile::TempDir;

use super::IngestImages;
use crate::png;
use crate::table::{Column, Table, read};
use crate::testing::{Made, run, source, tree};

/// A folder with the given files, each a grey picture of its own number.
fn folder(paths: &[&str]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (number, path) in paths.iter().enumerate() {
        picture(&folder.path().join(path), number as u8);
    }
    folder
}

fn picture(path: &Path, number: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixels: Vec<u8> = (0..12u8).map(|pixel| pixel.wrapping_mul(20).wrapping_add(number)).collect();
    std::fs::write(path, png::encode(&pixels, 4, 3, 1).unwrap()).unwrap();
}

fn ingest(folder: &TempDir, params: serde_json::Value) -> Result<Made, StageError> {
    run(&IngestImages, &params, &[("source", &tree(folder.path(), "file"))])
}

fn ingest_csv(folder: &TempDir, csv: &[u8], params: serde_json::Value) -> Result<Made, StageError> {
    let table = TempDir::new().unwrap();
    let path = table.path().join("rows.csv");
    std::fs::write(&path, csv).unwrap();
    run(&IngestImages, &params, &[("source", &tree(folder.path(), "file")), ("table", &source(&path))])
}

fn strings(table: &Table, column: &str) -> Vec<String> {
    table.strings(column).unwrap().into_iter().map(str::to_owned).collect()
}

fn labels(made: &Made) -> Vec<Vec<i64>> {
    read(&made["labels"]).unwrap().list_int64("label").unwrap().iter().flatten().cloned().collect()
}

#[test]
fn folders_name_split_and_class() {
    let folder = folder(&[
        "test/benign/a.png",
        "train/benign/b.png",
        "train/malignant/c.png",
        "validation/malignant/d.PNG",
        "train/malignant/.e.png",
        "README.txt",
    ]);
    let made = ingest(&folder, json!({ "folders": ["split", "label"] })).unwrap();
    let images = read(&made["images"]).unwrap();
    assert_eq!(
        strings(&images, "image_id"),
        ["train/benign/b.png", "train/malignant/c.png", "validation/malignant/d.PNG", "test/benign/a.png"]
    );
    assert_eq!(strings(&images, "split"), ["train", "train", "val", "test"]);
    assert_eq!(labels(&made), [[0], [1], [1], [0]]);
    let table = read(&made["labels"]).unwrap();
    assert_eq!(table.metadata["task"], "binary-class");
    assert_eq!(table.metadata["label_names"], r#"["benign","malignant"]"#);
    let Some(Column::Int32(widths)) = images.column("width") else { panic!() };
    let Some(Column::Int32(heights)) = images.column("height") else { panic!() };
    assert_eq!((widths[0], heights[0]), (Some(4), Some(3)));
    // Stored as found.
    let (bytes, path) = images.images("image").unwrap()[0].clone().unwrap();
    assert_eq!(bytes, std::fs::read(folder.path().join("train/benign/b.png")).unwrap());
    assert_eq!(path, "train/benign/b.png");
}

#[test]
fn a_csv_file_names_everything_and_keeps_its_order() {
    let folder = folder(&["x/a.png", "x/b.png", "c.png"]);
    let csv = "\u{feff}file,who,set,finding,text,kind\n\
               c.png,p2,train,\"mass, nodule\",\"two, \"\"round\"\" ones\",ct\n\
               x/b.png,p1,test,,none,ct\n\
               x/a.png,p1,train,nodule,one,ct\n";
    let params = json!({
        "columns": { "image": "file", "group": "who", "split": "set", "label": "finding", "caption": "text", "modality": "kind" },
        "label_separator": ",", "licence": "CC-BY-4.0", "dataset": "mine",
    });
    let made = ingest_csv(&folder, csv.as_bytes(), params).unwrap();
    let images = read(&made["images"]).unwrap();
    assert_eq!(strings(&images, "image_id"), ["c.png", "x/a.png", "x/b.png"]);
    assert_eq!(strings(&images, "group_id"), ["p2", "p1", "p1"]);
    assert_eq!(strings(&images, "licence"), ["CC-BY-4.0"; 3]);
    assert_eq!(labels(&made), [[1, 1], [0, 1], [0, 0]]);
    assert_eq!(read(&made["labels"]).unwrap().metadata["task"], "multi-label, binary-class");
    let captions = read(&made["captions"]).unwrap();
    assert_eq!(strings(&captions, "caption"), ["two, \"round\" ones", "one", "none"]);
    // The patient of a test image is in training.
    let checks = read(&made["checks"]).unwrap();
    let shared = (0..checks.rows()).find(|row| {
        strings(&checks, "check")[*row] == "same group"
            && strings(&checks, "split")[*row] == "test"
            && strings(&checks, "other")[*row] == "train"
    });
    assert_eq!(checks.int64("count").unwrap()[shared.unwrap()], Some(1));
}

#[test]
fn groups_stay_together_where_splits_are_drawn() {
    let paths: Vec<String> = (0..60).map(|number| format!("p{:02}/{number}.png", number / 3)).collect();
    let folder = folder(&paths.iter().map(String::as_str).collect::<Vec<_>>());
    let made = ingest(&folder, json!({ "folders": ["group"], "val": 0.2, "test": 0.3, "seed": 4 })).unwrap();
    let images = read(&made["images"]).unwrap();
    let mut split_of = std::collections::BTreeMap::new();
    for (group, split) in strings(&images, "group_id").into_iter().zip(strings(&images, "split")) {
        assert_eq!(split_of.entry(group).or_insert_with(|| split.clone()), &split);
    }
    let splits: std::collections::BTreeSet<&String> = split_of.values().collect();
    assert_eq!(splits.len(), 3);
}

#[test]
fn what_cannot_be_used_is_refused_or_listed() {
    let folder = folder(&["a.png", "b.png"]);
    std::fs::write(folder.path().join("broken.jpg"), b"\xff\xd8\xff\xe0 no picture").unwrap();
    std::fs::write(folder.path().join("empty.png"), b"").unwrap();
    std::fs::write(folder.path().join("cut.png"), &std::fs::read(folder.path().join("a.png")).unwrap()[..40])
        .unwrap();
    let csv = b"image,split,label\n\
        a.png,train,x\n\
        ../secret.png,train,x\n\
        /etc/passwd,train,x\n\
        b.png,somewhere,x\n\
        a.png,train,y\n\
        b.png,train\n\
        \xff\xfe.png,train,x\n\
        ,train,x\n\
        broken.jpg,train,x\n\
        empty.png,train,x\n\
        cut.png,train,x\n\
        b.png,test,x\n";
    let params =
        |most: i64| json!({ "columns": { "split": "split", "label": "label" }, "max_rejects": most });
    let error = ingest_csv(&folder, csv, params(9)).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("row 3: the folder has no file `../secret.png`"), "{text}");
    assert!(text.contains("`max_rejects = 10`"), "{text}");
    let made = ingest_csv(&folder, csv, params(10)).unwrap();
    assert_eq!(strings(&read(&made["images"]).unwrap(), "image_id"), ["a.png", "b.png"]);
    let rejects = read(&made["rejects"]).unwrap();
    let rows: Vec<i64> = rejects.int64("row").unwrap().iter().flatten().copied().collect();
    let mut sorted = rows.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let reason =
        |row: i64| strings(&rejects, "reason")[rows.iter().position(|known| *known == row).unwrap()].clone();
    for (row, part) in [
        (4, "no file"),
        (5, "`somewhere` is no split"),
        (6, "stands twice, first in row 2"),
        (7, "it has 2 fields, the header 3"),
        (8, "no UTF-8"),
        (9, "names no image"),
        (10, "`broken.jpg`: it cannot be decoded"),
        (11, "`empty.png`: it cannot be decoded"),
        (12, "`cut.png`: it cannot be decoded"),
    ] {
        assert!(reason(row).contains(part), "row {row}: {}", reason(row));
    }
}

#[test]
fn an_image_that_is_too_large_is_refused_before_it_is_decoded() {
    let folder = folder(&["a.png"]);
    // A header that claims 100,000 pixels a side.
    let mut bytes = std::fs::read(folder.path().join("a.png")).unwrap();
    bytes[16..20].copy_from_slice(&100_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&100_000u32.to_be_bytes());
    std::fs::write(folder.path().join("bomb.png"), bytes).unwrap();
    let error = ingest(&folder, json!({})).err().unwrap().to_string();
    assert!(error.contains("bomb.png") && error.contains("cannot be decoded"), "{error}");
}

#[test]
fn wrong_classes_columns_and_folders_are_named() {
    let folder = folder(&["train/a.png", "b.png"]);
    let error = ingest(&folder, json!({ "folders": ["split"] })).err().unwrap().to_string();
    assert!(error.contains("b.png`: it lies in 0 folders; `folders` names 1"), "{error}");
    let csv = b"image,label\nb.png,x\n";
    let unknown = json!({ "columns": { "label": "label" }, "classes": ["y", "z"] });
    let error = ingest_csv(&folder, csv, unknown).err().unwrap().to_string();
    assert!(error.contains("row 2: `x` is no class"), "{error}");
    let error =
        ingest_csv(&folder, csv, json!({ "columns": { "label": "finding" } })).err().unwrap().to_string();
    assert!(error.contains("it has no column `finding`; its columns are image, label"), "{error}");
    let empty = TempDir::new().unwrap();
    std::fs::write(empty.path().join("notes.txt"), "nothing").unwrap();
    let error = ingest(&empty, json!({})).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
}

#[test]
fn other_formats_are_stored_as_found_and_damaged_ones_listed() {
    let folder = TempDir::new().unwrap();
    let pixels = image::RgbaImage::from_fn(5, 4, |x, y| image::Rgba([x as u8, y as u8, 90, 255]));
    for (name, format) in [
        ("a.bmp", image::ImageFormat::Bmp),
        ("b.GIF", image::ImageFormat::Gif),
        ("c.tif", image::ImageFormat::Tiff),
        ("d.webp", image::ImageFormat::WebP),
    ] {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::DynamicImage::from(pixels.clone()).write_to(&mut bytes, format).unwrap();
        let bytes = bytes.into_inner();
        std::fs::write(folder.path().join(name), &bytes).unwrap();
        std::fs::write(folder.path().join(format!("x {name}")), &bytes[..bytes.len() / 2]).unwrap();
    }
    let error = ingest(&folder, json!({})).err().unwrap().to_string();
    assert!(error.contains("x a.bmp") && error.contains("cannot be decoded"), "{error}");
    let made = ingest(&folder, json!({ "max_rejects": 4 })).unwrap();
    let images = read(&made["images"]).unwrap();
    assert_eq!(strings(&images, "image_id"), ["a.bmp", "b.GIF", "c.tif", "d.webp"]);
    let stored = images.images("image").unwrap()[2].clone().unwrap().0;
    assert_eq!(stored, std::fs::read(folder.path().join("c.tif")).unwrap());
    let Some(Column::Int32(widths)) = images.column("width") else { panic!() };
    assert_eq!(*widths, [Some(5); 4]);
    assert_eq!(
        strings(&read(&made["rejects"]).unwrap(), "id"),
        ["x a.bmp", "x b.GIF", "x c.tif", "x d.webp"]
    );
}

/// Rows are read again for every split: what is rejected, and what is first, is so in each pass.
#[test]
fn rows_of_several_splits_may_stand_in_any_order() {
    let folder = folder(&["a.png", "b.png", "c.png", "d.png"]);
    let csv = b"image,split,label,caption\n\
        a.png,test,x,one\n\
        none.png,train,x,one\n\
        b.png,val,y,\n\
        c.png,train,y,one\n\
        a.png,train,x,two\n\
        d.png,train,z,two\n";
    let params = json!({
        "columns": { "split": "split", "label": "label", "caption": "caption" }, "classes": ["x", "y"], "max_rejects": 3,
    });
    let made = ingest_csv(&folder, csv, params).unwrap();
    let images = read(&made["images"]).unwrap();
    assert_eq!(strings(&images, "image_id"), ["c.png", "b.png", "a.png"]);
    assert_eq!(strings(&images, "split"), ["train", "val", "test"]);
    assert_eq!(labels(&made), [[1], [1], [0]]);
    assert_eq!(strings(&read(&made["captions"]).unwrap(), "image_id"), ["c.png", "a.png"]);
    let rejects = read(&made["rejects"]).unwrap();
    assert_eq!(rejects.int64("row").unwrap(), [Some(3), Some(6), Some(7)]);
    let checks = |check: &str| crate::ingest::testing::checks(&made, check);
    assert_eq!(checks("class")["test x"], 1);
    assert_eq!(checks("same caption")["test train"], 1);
    assert_eq!(checks("same caption")["val train"], 0);
}

#[test]
fn a_column_of_ids_is_no_label() {
    let folder = folder(&["a.png"]);
    let rows = (0..=65_536).map(|row| format!("a.png,{row},case {row}\n"));
    let csv: String = std::iter::once("image,id,finding\n".to_owned()).chain(rows).collect();
    let params = json!({ "columns": { "id": "id", "label": "finding" } });
    let error = ingest_csv(&folder, csv.as_bytes(), params).err().unwrap().to_string();
    assert!(error.contains("more than 65536 different labels"), "{error}");
}

/// More than what waits in memory: ids, and rows that are left out.
#[test]
fn hundreds_of_thousands_of_rows_that_are_left_out_are_listed() {
    let folder = folder(&["a.png"]);
    let reason = "x".repeat(60);
    let rows = (0..200_000).map(|row| format!("missing {reason} {row}.png,{row}\n"));
    let csv: String = ["image,id\n".to_owned(), "a.png,a\n".to_owned()].into_iter().chain(rows).collect();
    let params = |most| json!({ "columns": { "id": "id" }, "max_rejects": most });
    let error = ingest_csv(&folder, csv.as_bytes(), params(199_999)).err().unwrap().to_string();
    assert!(error.contains("(and 199999 more); `max_rejects = 200000`"), "{error}");
    let made = ingest_csv(&folder, csv.as_bytes(), params(200_000)).unwrap();
    let rejects = read(&made["rejects"]).unwrap();
    assert_eq!(rejects.rows(), 200_000);
    let rows = rejects.int64("row").unwrap();
    assert!(rows.is_sorted() && rows.first().is_some_and(|row| *row == Some(3)), "{:?}", &rows[..3]);
}
