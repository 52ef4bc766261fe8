//! The stage on phantoms.

use pipe_engine::OutputWriter;
use pipe_models::preprocess::{Picture, Samples};
use serde_json::json;
use tempfile::TempDir;

use super::Mosaic;
use crate::artifact;
use crate::phantom::IngestPhantom;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use crate::testing::{Made, run, tree};

fn chest() -> Made {
    let params = json!({
        "domain": "medical", "weights": "chest", "task": "finding-chest", "size": 28, "seed": 4,
        "train": 0, "val": 0, "test": 40,
    });
    run(&IngestPhantom, &params, &[]).unwrap()
}

fn file(table: &Table, column: &str, row: usize) -> Picture {
    Picture::decode(&table.images(column).unwrap()[row].as_ref().unwrap().0).unwrap()
}

#[test]
fn each_cell_shows_its_image_and_its_mask_covers_it() {
    let data = chest();
    let inputs = [("images", &data["images"]), ("labels", &data["labels"])];
    let made = run(&Mosaic, &json!({ "count": 3, "seed": 2 }), &inputs).unwrap();
    let [images, labels, masks] = ["images", "labels", "masks"].map(|port| read(&made[port]).unwrap());
    assert_eq!([images.rows(), labels.rows(), masks.rows()], [12; 3]);
    let (before, known) = (read(&data["images"]).unwrap(), read(&data["labels"]).unwrap());
    assert_eq!(labels.metadata["label_names"], known.metadata["label_names"]);
    assert_eq!(images.strings("image_id").unwrap(), labels.strings("image_id").unwrap());
    for row in 0..12 {
        let shown = images.strings("cell_image_id").unwrap()[row];
        let from = before.strings("image_id").unwrap().iter().position(|id| *id == shown).unwrap();
        assert_eq!(labels.list_int64("label").unwrap()[row], known.list_int64("label").unwrap()[from]);
        let cell = file(&before, "image", from).to_rgb([0.0, 255.0]);
        let mosaic = file(&images, "image", row);
        assert_eq!([mosaic.width(), mosaic.height()], [56, 56]);
        let pixels = mosaic.to_rgb([0.0, 255.0]);
        let Samples::Grey(mask) = file(&masks, "mask", row).samples().clone() else { panic!("a grey mask") };
        assert_eq!(mask.iter().filter(|value| **value == 255).count(), 28 * 28);
        let inside: Vec<u8> = (0..56 * 56)
            .filter(|at| mask[*at] == 255)
            .flat_map(|at| pixels[3 * at..3 * at + 3].to_vec())
            .collect();
        assert_eq!(inside, cell, "{shown}");
    }
    // Another cell size changes the size alone.
    let larger = run(&Mosaic, &json!({ "count": 3, "seed": 2, "cell": 40 }), &inputs).unwrap();
    let larger = read(&larger["images"]).unwrap();
    assert_eq!(larger.column("cell_image_id"), images.column("cell_image_id"));
    assert_eq!(file(&larger, "image", 0).width(), 80);
}

#[test]
fn doubtful_images_do_not_stand_in_mosaics() {
    let data = chest();
    let labels = read(&data["labels"]).unwrap();
    let ids = labels.strings("image_id").unwrap();
    let classes: Vec<i32> =
        labels.list_int64("label").unwrap().iter().map(|label| label.as_ref().unwrap()[0] as i32).collect();
    let is_sure = |row: usize| !row.is_multiple_of(3);
    let scores = |row: usize| {
        let mut scores = vec![0.0f32; 5];
        scores[classes[row] as usize] = if is_sure(row) { 0.995 } else { 0.6 };
        Some(scores)
    };
    let rows = || 0..ids.len();
    let predictions = Table::new()
        .with("id", Column::texts(ids.iter().copied()))
        .with("split", Column::texts(rows().map(|_| "test")))
        .with("target", Column::ListInt32(rows().map(|row| Some(vec![classes[row]])).collect()))
        .with("prediction", Column::ListInt32(rows().map(|row| Some(vec![classes[row]])).collect()))
        .with("scores", Column::ListFloat32(rows().map(scores).collect()))
        .with("correct", Column::Bool(rows().map(|_| Some(true)).collect()));
    let folder = TempDir::new().unwrap();
    let mut output = OutputWriter::new(folder.path().to_owned());
    write(&mut output, &TableSchema::predictions(), &predictions, WriteOptions::text("{}")).unwrap();
    let predictions = tree(folder.path(), artifact::PREDICTIONS.0);
    let inputs = [("images", &data["images"]), ("labels", &data["labels"]), ("predictions", &predictions)];
    let made = run(&Mosaic, &json!({ "count": 100 }), &inputs).unwrap();
    let images = read(&made["images"]).unwrap();
    assert!(images.rows() >= 4 && made.warnings.len() == 1, "{:?}", made.warnings);
    for shown in images.strings("cell_image_id").unwrap() {
        assert!(is_sure(ids.iter().position(|id| *id == shown).unwrap()), "{shown}");
    }
    let error = run(&Mosaic, &json!({ "confidence": 0.999 }), &inputs).err().unwrap().to_string();
    assert!(error.contains("may be used of 0: take a smaller"), "{error}");
}
