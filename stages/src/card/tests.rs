//! The folder: files by split, described as they are.

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use pipe_engine::AnyKind;
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::Card;
use crate::phantom::IngestPhantom;
use crate::testing::{Made, run};

fn made() -> (Made, Made) {
    let data = json!({ "weights": "chest", "task": "finding-chest", "size": 28, "train": 150, "val": 20, "test": 30 });
    let data = run(&IngestPhantom, &data, &[]).unwrap();
    let params =
        json!({ "name": "Chest | phantoms", "licence": "CC0-1.0", "description": "Drawn from a seed." });
    let inputs = [
        ("images", &data["images"]),
        ("labels", &data["labels"]),
        ("captions", &data["captions"]),
        ("masks", &data["masks"]),
    ];
    let card = run(&Card, &params, &inputs).unwrap();
    (data, card)
}

fn text(made: &Made, name: &str) -> String {
    let file = made["folder"].file(name).unwrap_or_else(|| panic!("no {name}"));
    std::fs::read_to_string(&file.location).unwrap()
}

#[test]
fn every_file_is_described_as_it_is() {
    let (_data, card) = made();
    let document: Json = serde_json::from_str(&text(&card, "croissant.json")).unwrap();
    let files = document["distribution"].as_array().unwrap();
    assert_eq!(files.len(), 12);
    let mut rows = 0;
    for file in files {
        let path = &card["folder"].file(file["contentUrl"].as_str().unwrap()).unwrap().location;
        let bytes = std::fs::read(path).unwrap();
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(file["sha256"], digest);
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        rows += reader.metadata().file_metadata().num_rows();
    }
    assert!(rows > 600, "{rows}");
    let sets = document["recordSet"].as_array().unwrap();
    let field = |set: &str, name: &str| -> Json {
        let set = sets.iter().find(|one| one["@id"] == set).unwrap();
        let id = format!("{}/{name}", set["@id"].as_str().unwrap());
        set["field"].as_array().unwrap().iter().find(|one| one["@id"] == id).unwrap().clone()
    };
    assert_eq!(field("images-validation", "image")["dataType"], "sc:ImageObject");
    assert_eq!(field("labels-train", "label")["repeated"], true);
    assert_eq!(field("images-test", "width")["dataType"], "sc:Integer");
}

#[test]
fn the_page_counts_rows_and_classes() {
    let (_data, card) = made();
    let page = text(&card, "README.md");
    assert!(page.contains("| `images` | 30 | 150 | 20 |"), "{page}");
    assert!(page.contains("# Chest \\| phantoms"));
    assert!(
        page.contains("- split: \"validation\"\n    path: \"data/labels/validation-00000-of-00001.parquet\"")
    );
    let normal = page.lines().find(|line| line.starts_with("| none |")).unwrap();
    let counts: Vec<u64> = normal.split('|').filter_map(|cell| cell.trim().parse().ok()).collect();
    assert!(counts.len() == 3 && counts[1] > 10, "{normal}");
}

#[test]
fn what_cannot_be_right_is_refused() {
    let problems = AnyKind::resolve(&Card, &json!({ "name": " ", "url": "medmnist.com" })).err().unwrap();
    assert_eq!(problems.len(), 2);
}
