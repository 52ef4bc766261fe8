//! Phantoms in published files: the readers of these give what was drawn.

use pipe_engine::AnyKind;
use serde_json::json;

use crate::ingest::{IngestCtRate, IngestMedmnist};
use crate::phantom::IngestPhantom;
use crate::table::{Column, Table, read};
use crate::testing::{Made, run};

fn table(made: &Made, port: &str) -> Table {
    read(&made[port]).unwrap()
}

fn voxels(table: &Table) -> Vec<&[u8]> {
    match table.column("voxels") {
        Some(Column::Binary(values)) => values.iter().map(|value| value.as_deref().unwrap()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn images_are_read_from_the_archive_as_they_were_drawn() {
    for (dataset, params) in [
        ("pneumoniamnist", json!({ "weights": "chest", "task": "abnormal" })),
        ("octmnist", json!({ "weights": "all", "task": "modality", "channels": 3 })),
        ("chestmnist", json!({ "weights": "chest", "task": "findings", "findings_per_image": 2 })),
    ] {
        let mut params = params;
        let coloured = params.as_object_mut().unwrap().remove("channels").is_some();
        let common =
            json!({ "export": "medmnist", "seed": 4, "size": 28, "train": 40, "val": 7, "test": 12 });
        params.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
        let drawn = run(&IngestPhantom, &params, &[]).unwrap();
        let again = json!({ "dataset": dataset, "allow_partial": true });
        let ingested = run(&IngestMedmnist, &again, &[("source", &drawn["export"])]);
        // Sets with other channels or classes than the phantoms are refused, with what is there.
        if coloured || dataset == "chestmnist" {
            let error = ingested.err().unwrap().to_string();
            let found = if coloured { "[40, 28, 28, 3]" } else { "[40, 4]" };
            assert!(error.contains(found), "{dataset}: {error}");
            continue;
        }
        let ingested = ingested.unwrap();
        let pixels = |made: &Made| -> Vec<Vec<u8>> {
            let table = table(made, "images");
            let images = table.images("image").unwrap();
            images
                .iter()
                .map(|image| image::load_from_memory(&image.as_ref().unwrap().0).unwrap().into_bytes())
                .collect()
        };
        assert_eq!(pixels(&ingested), pixels(&drawn), "{dataset}");
        let (one, other) = (table(&ingested, "labels"), table(&drawn, "labels"));
        assert_eq!(one.list_int64("label").unwrap(), other.list_int64("label").unwrap());
        assert_eq!(one.strings("split").unwrap(), other.strings("split").unwrap());
    }
}

/// The larger sizes of MedMNIST+. The digests are those of all pixels in the order of rows, as the arrays have them: what
/// is drawn does not depend on the machine.
#[test]
fn every_published_size_is_drawn_the_same_on_every_machine() {
    for (size, digest) in [
        (64, "94bc0e559c8785a664f59a078d44655bcd1d125e6c66cd940ce435e2b1dc1476"),
        (128, "44866d8a02f8f9deeb94c4e480a3d6d33337d8aa2394e5f886d2bdf4c496be4c"),
        (224, "652dfdfe7ee3f6fb2764e44783d6398cfc1912e42ae4586979bddea81e7f6098"),
    ] {
        let params = json!({
            "weights": "chest", "task": "abnormal", "export": "medmnist", "seed": 4, "size": size,
            "train": 3, "val": 1, "test": 2,
        });
        let drawn = run(&IngestPhantom, &params, &[]).unwrap();
        let again = json!({ "dataset": "pneumoniamnist", "size": size, "allow_partial": true });
        let ingested = run(&IngestMedmnist, &again, &[("source", &drawn["export"])]).unwrap();
        let pixels = |made: &Made| -> Vec<u8> {
            let table = table(made, "images");
            let images = table.images("image").unwrap();
            let decoded = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().into_bytes();
            images.iter().flat_map(|image| decoded(&image.as_ref().unwrap().0)).collect()
        };
        let found = pixels(&ingested);
        assert_eq!(found.len(), 6 * size * size);
        assert!(found == pixels(&drawn), "{size}");
        assert_eq!(pipe_engine::cache::Digest::of(&found).to_hex(), digest, "{size}");
    }
}

#[test]
fn cubes_are_read_from_the_archive() {
    let params =
        json!({ "domain": "volume", "export": "medmnist", "size": 28, "depth": 28, "train": 9, "test": 3 });
    let drawn = run(&IngestPhantom, &params, &[]).unwrap();
    let again = json!({ "dataset": "nodulemnist3d", "allow_partial": true });
    let ingested = run(&IngestMedmnist, &again, &[("source", &drawn["export"])]).unwrap();
    let (drawn_volumes, volumes) = (table(&drawn, "volumes"), table(&ingested, "volumes"));
    for (one, other) in voxels(&volumes).into_iter().zip(voxels(&drawn_volumes)) {
        assert_eq!(one.len(), 28 * 28 * 28);
        for (grey, units) in one.iter().zip(other.chunks_exact(2)) {
            let units = f64::from(i16::from_le_bytes([units[0], units[1]])).clamp(-1000.0, 1000.0);
            assert!(
                (f64::from(*grey) / 255.0 * 2000.0 - 1000.0 - units).abs() <= 2000.0 / 255.0 / 2.0 + 1e-9
            );
        }
    }
    let (bits, classes) = (table(&drawn, "labels"), table(&ingested, "labels"));
    for (bits, class) in bits.list_int64("label").unwrap().iter().zip(classes.list_int64("label").unwrap()) {
        assert_eq!(bits.as_ref().unwrap()[9], class.as_ref().unwrap()[0], "lung nodule");
    }
}

#[test]
fn volumes_are_read_from_the_folder_of_ct_rate() {
    let params = json!({
        "domain": "volume", "export": "ct_rate", "size": 30, "train": 6, "val": 2, "test": 0, "images_per_patient": [0, 1],
    });
    let drawn = run(&IngestPhantom, &params, &[]).unwrap();
    let again = json!({ "allow_partial": true, "spacing": [] });
    let ingested = run(&IngestCtRate, &again, &[("source", &drawn["export"])]).unwrap();
    let (one, other) = (table(&ingested, "volumes"), table(&drawn, "volumes"));
    assert_eq!(one.strings("image_id").unwrap()[5..], ["train_3_b_1", "valid_1_a_1", "valid_1_b_1"]);
    assert_eq!(one.column("shape"), other.column("shape"));
    assert_eq!(one.column("spacing"), other.column("spacing"));
    for (one, other) in voxels(&one).into_iter().zip(voxels(&other)) {
        for (one, other) in one.chunks_exact(2).zip(other.chunks_exact(2)) {
            let units = |bytes: &[u8]| i16::from_le_bytes([bytes[0], bytes[1]]);
            assert_eq!(units(one), units(other).clamp(-1000, 1000));
        }
    }
    let (one, other) = (table(&ingested, "labels"), table(&drawn, "labels"));
    assert_eq!(one.list_int64("label").unwrap(), other.list_int64("label").unwrap());
    let (one, other) = (table(&ingested, "captions"), table(&drawn, "captions"));
    for column in ["caption", "findings", "impression", "clinical_information"] {
        assert_eq!(one.utf8(column).unwrap(), other.utf8(column).unwrap(), "{column}");
    }
}

#[test]
fn the_schema_of_slake_has_boxes() {
    let params = json!({ "schema": "slake", "questions": 1, "size": 40, "train": 30, "test": 5 });
    let made = run(&IngestPhantom, &params, &[]).unwrap();
    let (images, boxes) = (table(&made, "images"), table(&made, "boxes"));
    let (ids, of) = (images.strings("image_id").unwrap(), boxes.strings("image_id").unwrap());
    let planted = images.list_int64("truth_boxes").unwrap();
    let mut rows = 0;
    for (id, planted) in ids.iter().zip(planted) {
        for sides in planted.as_ref().unwrap().chunks_exact(4) {
            assert_eq!(of[rows], *id);
            for (name, side) in ["x", "y", "width", "height"].iter().zip(sides) {
                assert_eq!(boxes.float64(name).unwrap()[rows], Some(*side as f64));
            }
            rows += 1;
        }
    }
    assert!(rows > 20 && rows == boxes.rows());
    let findings = images.strings("truth_finding").unwrap();
    let place = |id: &str| ids.iter().position(|known| *known == id).unwrap();
    for (id, region) in of.iter().zip(boxes.strings("region").unwrap()) {
        assert_eq!(region, findings[place(id)]);
    }
}

#[test]
fn an_export_that_fits_nothing_is_refused() {
    for params in
        [json!({ "export": "ct_rate" }), json!({ "export": "medmnist", "domain": "volume", "size": 28 })]
    {
        let problems = IngestPhantom.resolve(&params).err().unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].path, "export");
    }
}
