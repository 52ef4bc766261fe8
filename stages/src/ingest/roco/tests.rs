use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestRoco;
use crate::ingest::testing::{checks, reasons, strings, zip_folder};
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
    let made = ingest(folder, keep("all")).unwrap();
    assert_eq!(checks(&made, "captions")["test"], 912);
    let table = read(&made["captions"]).unwrap();
    assert_eq!(strings(&table, "image_id")[0], "ROCO_00001");
    assert_eq!(strings(&table, "caption")[0], "Axial MRI (coronal view).");
    assert_eq!(strings(&table, "article")[..2], ["PMC4608653", "PMC4840839"]);
    assert_eq!(strings(&table, "licence")[0], "CC BY-NC");
    let Some(Column::ListUtf8(cuis)) = table.column("cuis") else { panic!() };
    assert_eq!(cuis[0].as_deref().unwrap(), [] as [&str; 0]);
    assert_eq!(cuis[1].as_ref().unwrap().len(), 11);
    assert_eq!(cuis[1].as_ref().unwrap()[0], "C0040395");
    let Some(Column::ListUtf8(keywords)) = table.column("keywords") else { panic!() };
    assert_eq!(keywords[0].as_deref().unwrap(), ["axial", "coronal", "mri", "view"]);
    let Some(Column::ListUtf8(types)) = table.column("semantic_types") else { panic!() };
    assert_eq!(types[1].as_ref().unwrap()[..2], ["T060", "Diagnostic Procedure"]);
    assert!(
        strings(&table, "caption").iter().all(|caption| caption.trim() == caption && !caption.is_empty())
    );
    // The second half of a table is the other subset.
    assert_eq!(strings(&table, "subset")[299..301], ["radiology", "non-radiology"]);
    // This subset is whole: 612 are published, and 612 are there.
    let made = ingest(folder, keep("non-radiology")).unwrap();
    assert_eq!(checks(&made, "captions")["test"], 612);
    assert_eq!(read(&made["images"]).unwrap().rows(), 0);

    let error = ingest(folder, json!({ "allow_partial": true })).err().unwrap().to_string();
    assert!(error.contains("row 1: there is no image `images/ROCO_00001.jpg`"), "{error}");
    let error = ingest(folder, json!({})).err().unwrap().to_string();
    assert!(error.contains("it has no file `train/radiology/captions.txt`"), "{error}");
}

/// Real texts and images, 14, 5 and 8.
#[test]
fn the_second_version_reads_as_published() {
    let Some(folder) = data("rocov2/train_captions.csv") else { return };
    let folder = folder.parent().unwrap();
    let made = ingest(folder, json!({ "allow_partial": true })).unwrap();
    let captions = checks(&made, "captions");
    assert_eq!((captions["train"], captions["val"], captions["test"]), (14, 5, 8));
    let images = read(&made["images"]).unwrap();
    assert_eq!(images.rows(), 27);
    assert_eq!(images.metadata["dataset"], "rocov2");
    let table = read(&made["captions"]).unwrap();
    assert_eq!(strings(&table, "image_id"), strings(&images, "image_id"));
    assert_eq!(strings(&table, "image_id")[0], "ROCOv2_2023_train_056459");
    let Some(Column::ListUtf8(manual)) = table.column("cuis_manual") else { panic!() };
    assert_eq!(manual[0].as_deref().unwrap(), ["C1306645", "C0817096", "C1996865"]);
    // Images are stored as found, grey and coloured.
    let path = folder.join("train_images/ROCOv2_2023_train_056459.jpg");
    assert_eq!(images.images("image").unwrap()[0].as_ref().unwrap().0, std::fs::read(path).unwrap());
    let error = ingest(folder, json!({})).err().unwrap().to_string();
    assert!(error.contains("it has 14 captions, 59958 are published"), "{error}");

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
