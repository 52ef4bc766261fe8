use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestRoco;
use crate::ingest::testing::{checks, csv_rows, lines, reasons, strings, zip_folder};
use crate::png;
use crate::table::{Column, read};
use crate::testing::{Made, data, run, tree};

fn ingest(folder: &Path, params: Value) -> Result<Made, StageError> {
    run(&IngestRoco, &params, &[("source", &tree(folder, "file"))])
}

/// Real texts of the test split; the images are not there.
#[test]
fn the_first_version_reads_as_published() {
    let Some(folder) = data("roco/test/radiology/captions.txt") else { return };
    let folder = folder.ancestors().nth(3).unwrap();
    let keep = |subset: &str| json!({ "subset": subset, "allow_partial": true, "missing_images": "keep" });
    let test = |subset: &str, name: &str| lines(&folder.join("test").join(subset).join(name));
    let (radiology, others) = (test("radiology", "captions.txt"), test("non-radiology", "captions.txt"));
    let made = ingest(folder, keep("all")).unwrap();
    assert_eq!(checks(&made, "captions")["test"], (radiology.len() + others.len()) as i64);
    let table = read(&made["captions"]).unwrap();
    let first = strings(&table, "split").iter().position(|split| split == "test").unwrap();
    let (id, caption) = radiology[0].split_once('\t').unwrap();
    assert_eq!(strings(&table, "image_id")[first], id);
    assert_eq!(strings(&table, "caption")[first], caption.trim());
    for line in &test("radiology", "licences.txt")[1..] {
        let fields: Vec<&str> = line.split(',').collect();
        let Some(row) = strings(&table, "image_id").iter().position(|known| known == fields[0]) else {
            continue;
        };
        assert_eq!(Some(strings(&table, "article")[row].as_str()), fields[1].split('_').next());
        assert_eq!(strings(&table, "licence")[row], fields[2].trim());
    }
    // Lists have an empty field behind the id.
    for (column, file) in
        [("cuis", "cuis.txt"), ("keywords", "keywords.txt"), ("semantic_types", "semtypes.txt")]
    {
        let Some(Column::ListUtf8(values)) = table.column(column) else { panic!() };
        for (row, line) in test("radiology", file).iter().enumerate().take(20) {
            let expected: Vec<&str> = line.split('\t').skip(2).filter(|item| !item.is_empty()).collect();
            let id = line.split('\t').next().unwrap();
            let place = strings(&table, "image_id").iter().position(|known| known == id);
            assert_eq!(values[place.unwrap()].as_deref().unwrap(), expected, "{column} {row}");
        }
    }
    assert!(
        strings(&table, "caption").iter().all(|caption| caption.trim() == caption && !caption.is_empty())
    );
    // The second half of a table is the other subset.
    let border = first + radiology.len();
    assert_eq!(strings(&table, "subset")[border - 1..=border], ["radiology", "non-radiology"]);
    let made = ingest(folder, keep("non-radiology")).unwrap();
    assert_eq!(checks(&made, "captions")["test"], others.len() as i64);
    if folder.join("test/radiology/images").exists() || folder.join("train/radiology/captions.txt").exists() {
        println!("SKIPPED missing images and splits of ROCO: `{}` has them", folder.display());
        return;
    }
    assert_eq!(read(&made["images"]).unwrap().rows(), 0);

    let error = ingest(folder, json!({ "allow_partial": true })).err().unwrap().to_string();
    assert!(error.contains("row 1: there is no image `images/"), "{error}");
    // What is to be fetched is named as the publisher names it.
    assert!(error.contains("` of ftp://") && error.contains(".tar.gz"), "{error}");
    let error = ingest(folder, json!({})).err().unwrap().to_string();
    assert!(error.contains("it has no file `train/radiology/captions.txt`"), "{error}");
}

/// Real texts and images.
#[test]
fn the_second_version_reads_as_published() {
    let Some(folder) = data("rocov2/train_captions.csv") else { return };
    let folder = folder.parent().unwrap();
    let made = ingest(folder, json!({ "allow_partial": true })).unwrap();
    let captions = checks(&made, "captions");
    let published =
        ["train", "valid", "test"].map(|name| csv_rows(&folder.join(format!("{name}_captions.csv"))));
    assert_eq!([captions["train"], captions["val"], captions["test"]], published);
    let images = read(&made["images"]).unwrap();
    assert_eq!(images.rows() as i64, published.iter().sum::<i64>());
    assert_eq!(images.metadata["dataset"], "rocov2");
    let table = read(&made["captions"]).unwrap();
    assert_eq!(strings(&table, "image_id"), strings(&images, "image_id"));
    let id = strings(&table, "image_id")[0].clone();
    assert!(lines(&folder.join("train_captions.csv"))[1].starts_with(&id));
    let Some(Column::ListUtf8(manual)) = table.column("cuis_manual") else { panic!() };
    let concepts = lines(&folder.join("train_concepts_manual.csv"));
    let concepts = concepts.iter().find_map(|line| line.strip_prefix(&format!("{id},"))).unwrap();
    let concepts: Vec<&str> = concepts.trim_matches('"').split(';').collect();
    assert_eq!(manual[0].as_deref().unwrap(), concepts);
    // Images are stored as found, grey and coloured.
    let path = folder.join(format!("train_images/{id}.jpg"));
    assert_eq!(images.images("image").unwrap()[0].as_ref().unwrap().0, std::fs::read(path).unwrap());
    let error = ingest(folder, json!({})).err().unwrap().to_string();
    assert!(error.contains(&format!("it has {} captions, 59958 are published", published[0])), "{error}");

    // The archives of the publisher give the same.
    let packed = TempDir::new().unwrap();
    for split in ["train", "valid", "test"] {
        let folder_name = format!("{split}_images/");
        let archive = packed.path().join(format!("{split}_images.zip"));
        zip_folder(folder, &archive, |path| path.starts_with(&folder_name));
        for name in ["captions", "concepts", "concepts_manual"] {
            let name = format!("{split}_{name}.csv");
            std::fs::copy(folder.join(&name), packed.path().join(&name)).unwrap();
        }
    }
    let again = ingest(packed.path(), json!({ "allow_partial": true })).unwrap();
    for port in ["images", "captions", "checks"] {
        assert_eq!(made[port].digest, again[port].digest, "{port}");
    }
}

/// A folder of two captions that are there and some that cannot be used.
fn small() -> TempDir {
    let folder = TempDir::new().unwrap();
    let radiology = folder.path().join("data/test/radiology");
    std::fs::create_dir_all(radiology.join("images")).unwrap();
    let lines: &[&[u8]] = &[
        b"ROCO_1\t one",
        b"ROCO_2\t two",
        b"ROCO_2\t again",
        b"ROCO_3 no tab",
        b"ROCO_4\t  ",
        b"ROCO_5\t \xff\xfe",
        b"../../ROCO_6\t away",
        b"ROCO_7\t not there",
        b"ROCO_8\t damaged",
    ];
    std::fs::write(radiology.join("captions.txt"), lines.join(&b'\n')).unwrap();
    std::fs::write(
        radiology.join("licences.txt"),
        "ROCO_ID,PMC_ID,CC\nROCO_1,PMC5_a_b.jpg,CC BY\nROCO_2,PMC5_c.jpg,\n",
    )
    .unwrap();
    for (name, value) in [("ROCO_1", 1), ("ROCO_2", 2)] {
        let bytes = png::encode(&[value; 12], 4, 3, 1).unwrap();
        std::fs::write(radiology.join(format!("images/{name}.jpg")), bytes).unwrap();
    }
    std::fs::write(radiology.join("images/ROCO_8.jpg"), b"\xff\xd8\xff\xe0\x00\x10JFIF").unwrap();
    folder
}

/// The tables of mirrors: id, published name and caption. Images are called by either of the first two.
#[test]
fn mirrors_read_with_their_tables() {
    let folder = TempDir::new().unwrap();
    let image = |path: &str, value: u8| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, png::encode(&[value; 12], 4, 3, 1).unwrap()).unwrap();
    };
    image("all_data/train/radiology/images/PMC1_a.jpg", 1);
    image("all_data/train/radiology/images/ROCO_00003.jpg", 3);
    image("all_data/train/non-radiology/images/PMC2_b.jpg", 2);
    image("all_data/test/radiology/images/PMC3_c.jpg", 4);
    let table = |path: &str, rows: &str| {
        let text = format!("id,name,caption\n{rows}");
        std::fs::write(folder.path().join("all_data").join(path), text).unwrap();
    };
    table(
        "train/radiology/traindata.csv",
        "ROCO_00001,PMC1_a.jpg,\" one, and two \"\nROCO_00003,PMC9_x.jpg,three\n",
    );
    table("train/non-radiology/traindata.csv", "ROCO_00002,PMC2_b.jpg,two\n");
    table(
        "test/radiology/testdata.csv",
        "ROCO_00004,PMC3_c.jpg,four\nROCO_00001,PMC1_a.jpg,again\nROCO_00005,,none\n",
    );
    let params = |subset: &str| json!({ "subset": subset, "allow_partial": true, "max_rejects": 2 });
    let made = ingest(folder.path(), params("radiology")).unwrap();
    let captions = read(&made["captions"]).unwrap();
    assert_eq!(strings(&captions, "image_id"), ["ROCO_00001", "ROCO_00003", "ROCO_00004"]);
    assert_eq!(strings(&captions, "caption")[0], "one, and two");
    assert_eq!(strings(&captions, "article"), ["PMC1", "PMC9", "PMC3"]);
    assert_eq!(captions.metadata["dataset_version"], "a mirror of razorx89/roco-dataset");
    assert_eq!(reasons(&made).len(), 2, "{:?}", reasons(&made));
    let sums: serde_json::Map<String, Value> =
        serde_json::from_str(&captions.metadata["source_md5"]).unwrap();
    assert_eq!(sums.len(), 3, "{sums:?}");
    let all = ingest(folder.path(), params("all")).unwrap();
    assert_eq!(strings(&read(&all["captions"]).unwrap(), "subset")[1..3], ["radiology", "non-radiology"]);
    let error = ingest(folder.path(), json!({})).err().unwrap().to_string();
    assert!(error.contains("it has 2 captions, 65448 are published"), "{error}");
}

#[test]
fn what_cannot_be_used_is_listed_with_its_line() {
    let folder = small();
    let error = ingest(folder.path(), json!({ "allow_partial": true })).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    assert!(error.to_string().contains("row 3: the id `ROCO_2` stands twice"), "{error}");
    let made = ingest(folder.path(), json!({ "allow_partial": true, "max_rejects": 7 })).unwrap();
    assert_eq!(strings(&read(&made["images"]).unwrap(), "image_id"), ["ROCO_1", "ROCO_2"]);
    assert_eq!(strings(&read(&made["images"]).unwrap(), "group_id"), ["PMC5", "PMC5"]);
    let rejects = read(&made["rejects"]).unwrap();
    let mut rows: Vec<i64> = rejects.int64("row").unwrap().iter().flatten().copied().collect();
    rows.sort_unstable();
    assert_eq!(rows, [3, 4, 5, 6, 7, 8, 9]);
    assert!(strings(&rejects, "file").iter().all(|file| file == "data/test/radiology/captions.txt"));
    let reasons = reasons(&made).join("; ");
    for part in [
        "stands twice",
        "no tab",
        "no caption",
        "no UTF-8",
        "no id",
        "there is no image",
        "the file ends in the middle",
    ] {
        assert!(reasons.contains(part), "{reasons}");
    }
    assert_eq!(made.warnings.len(), 1);
}
