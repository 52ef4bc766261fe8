use std::collections::BTreeMap;
use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestSlake;
use crate::ingest::testing::{checks, copy, zip_folder};
use crate::table::{Column, Table, read};
use crate::testing::{Made, data, run, tree};

fn ingest(folder: &Path, params: Value) -> Result<Made, StageError> {
    run(&IngestSlake, &params, &[("source", &tree(folder, "file"))])
}

fn strings<'a>(table: &'a Table, column: &str) -> Vec<&'a str> {
    table.strings(column).unwrap()
}

/// Real questions of 64 images in both languages; the images themselves are not there.
#[test]
fn languages_are_kept_apart_and_the_leak_between_them_is_counted() {
    let Some(folder) = data("slake/train.json") else { return };
    let folder = folder.parent().unwrap();
    let keep =
        |language: &str| json!({ "language": language, "allow_partial": true, "missing_images": "keep" });
    let english = ingest(folder, keep("en")).unwrap();
    let counts = |entries: [(&str, i64); 3]| -> BTreeMap<String, i64> {
        entries.into_iter().map(|(split, count)| (split.to_owned(), count)).collect()
    };
    assert_eq!(checks(&english, "questions"), counts([("train", 426), ("val", 111), ("test", 155)]));
    assert_eq!(checks(&english, "images asked about"), counts([("train", 40), ("val", 10), ("test", 14)]));
    let types = checks(&english, "answer type");
    assert_eq!((types["train OPEN"], types["train CLOSED"]), (274, 152));
    assert_eq!((types["test OPEN"], types["test CLOSED"]), (84, 71));
    // Within one language no image is in two splits.
    assert!(checks(&english, "image asked about").values().all(|count| *count == 0));
    let both = ingest(folder, keep("both")).unwrap();
    assert_eq!(checks(&both, "questions"), counts([("train", 924), ("val", 177), ("test", 288)]));
    assert!(checks(&both, "image asked about")["test train"] > 0);
    let table = read(&english["questions"]).unwrap();
    assert!(strings(&table, "lang").iter().all(|lang| *lang == "en"));
    let knowledge = read(&english["knowledge"]).unwrap();
    assert_eq!(knowledge.rows(), 103);
    assert_eq!(strings(&knowledge, "head")[0], "Skeleton");
    assert_eq!(strings(&knowledge, "graph")[0], "organ_rel");

    let error = ingest(
        folder,
        keep("en")
            .as_object()
            .map(|params| {
                let mut params = params.clone();
                params.remove("allow_partial");
                Value::Object(params)
            })
            .unwrap(),
    )
    .err()
    .unwrap()
    .to_string();
    assert!(error.contains("426 questions in the language `en`, 4919 are published"), "{error}");
    let error = ingest(folder, json!({ "allow_partial": true })).err().unwrap().to_string();
    assert!(error.contains("there is no image `xmlab"), "{error}");
}

/// Invented images with masks, boxes and facts, in the published layout.
#[test]
fn masks_boxes_and_facts_belong_to_their_images() {
    let Some(folder) = data("fixture-slake") else { return };
    let made = ingest(&folder, json!({ "allow_partial": true })).unwrap();
    let images = read(&made["images"]).unwrap();
    assert_eq!(images.rows(), 8);
    assert_eq!(checks(&made, "questions")["train"], 16);
    let masks = read(&made["masks"]).unwrap();
    let ids = strings(&images, "image_id");
    assert!(strings(&masks, "image_id").iter().all(|id| ids.contains(id)));
    assert!(strings(&masks, "region").iter().all(|region| ["Liver", "Lung"].contains(region)));
    let size = |row: usize| match (images.column("width"), images.column("height")) {
        (Some(Column::Int32(widths)), Some(Column::Int32(heights))) => {
            Some((widths[row]? as u32, heights[row]? as u32))
        }
        _ => None,
    };
    for (row, mask) in masks.images("mask").unwrap().iter().enumerate() {
        let decoded = image::load_from_memory(&mask.as_ref().unwrap().0).unwrap().into_luma8();
        let row_of = ids.iter().position(|id| *id == strings(&masks, "image_id")[row]).unwrap();
        assert_eq!(Some(decoded.dimensions()), size(row_of));
        let inside = decoded.pixels().filter(|pixel| pixel.0[0] == 255).count() as i64;
        assert_eq!(Some(inside), masks.int64("pixels").unwrap()[row]);
    }
    let boxes = read(&made["boxes"]).unwrap();
    let row = (0..boxes.rows())
        .find(|row| {
            strings(&boxes, "image_id")[*row] == "xmlab1" && strings(&boxes, "region")[*row] == "Kidney"
        })
        .unwrap();
    let side = |name: &str| boxes.float64(name).unwrap()[row].unwrap();
    assert_eq!((side("x"), side("y"), side("width"), side("height")), (56.0, 18.0, 16.0, 16.0));
    let knowledge = read(&made["knowledge"]).unwrap();
    assert!(strings(&knowledge, "tail").contains(&"(invented, with comma)"));
}

#[test]
fn damaged_annotations_are_listed() {
    let Some(published) = data("fixture-slake") else { return };
    let folder = TempDir::new().unwrap();
    copy(&published, folder.path());
    std::fs::write(folder.path().join("imgs/xmlab1/mask.png"), b"nothing").unwrap();
    std::fs::write(folder.path().join("imgs/xmlab2/detection.json"), br#"[{"Liver": [1, 2]}]"#).unwrap();
    std::fs::write(folder.path().join("KG/._en_organ.csv"), b"\x00\x01\xff").unwrap();
    std::fs::write(folder.path().join("KG/en_organ.csv"), "organ#attribute#value\nLiver#function\n").unwrap();
    let error = ingest(folder.path(), json!({ "allow_partial": true })).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    let made = ingest(folder.path(), json!({ "allow_partial": true, "max_rejects": 3 })).unwrap();
    let rejects = read(&made["rejects"]).unwrap();
    let reasons = strings(&rejects, "reason").join("; ");
    for part in ["cannot be decoded", "`Liver` has no four numbers", "no `head#relation#tail`"] {
        assert!(reasons.contains(part), "{reasons}");
    }
    std::fs::remove_file(folder.path().join("validate.json")).unwrap();
    let error = ingest(folder.path(), json!({ "allow_partial": true })).err().unwrap().to_string();
    assert!(error.contains("it has no file `validate.json`"), "{error}");
}

/// The images in an archive of their own, as Hugging Face has them, give the same tables.
#[test]
fn archives_give_what_folders_give() {
    let Some(published) = data("fixture-slake") else { return };
    let folder = TempDir::new().unwrap();
    for name in ["train.json", "test.json", "mask.txt"] {
        std::fs::copy(published.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::copy(published.join("validate.json"), folder.path().join("validation.json")).unwrap();
    zip_folder(&published, &folder.path().join("imgs.zip"), |path| path.starts_with("imgs/"));
    zip_folder(&published, &folder.path().join("KG.zip"), |path| path.starts_with("KG/"));
    let (whole, packed) = (
        ingest(&published, json!({ "allow_partial": true })).unwrap(),
        ingest(folder.path(), json!({ "allow_partial": true })).unwrap(),
    );
    for (port, artifact) in &whole.artifacts {
        assert_eq!(artifact.digest, packed[port].digest, "{port}");
    }
}
