//! Maps of volumes, scored and compared, and masks in the geometry of what a model sees.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, StringArray};
use arrow_schema::{DataType, Field};
use pipe_engine::{Artifact, OutputWriter};
use pipe_models::Preprocessor;
use pipe_models::preprocess::Slices;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::study::{SIZE, finetuned, flat, seeing, study};
use crate::artifact;
use crate::attribute::Attribute;
use crate::compare_saliency::CompareSaliency;
use crate::compute::Compute;
use crate::images::Pixels;
use crate::ipc::{tensor_column, write_file};
use crate::model::Model;
use crate::report::Report;
use crate::score::Score;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use crate::testing::{Made, run, tree};
use crate::volumes::{MaskSet, VolumeSet};

const VOXELS: usize = SIZE[0] * SIZE[1] * SIZE[2];

/// A table of volumes, or of masks of them.
fn volumes(
    folder: &TempDir,
    name: &str,
    dtype: &str,
    shape: [usize; 3],
    rows: &[(&str, Vec<u8>)],
) -> Artifact {
    let same = |value: &str| Column::texts(rows.iter().map(|_| value.to_owned()));
    let sides = shape.map(|side| Some(side as i32));
    let sides: Vec<i32> = sides.into_iter().flatten().collect();
    let table = Table::new()
        .with("image_id", Column::texts(rows.iter().map(|(id, _)| *id)))
        .with("split", same("test"))
        .with("voxels", Column::Binary(rows.iter().map(|(_, voxels)| Some(voxels.clone())).collect()))
        .with("dtype", same(dtype))
        .with("shape", Column::ListInt32(rows.iter().map(|_| Some(sides.clone())).collect()))
        // What CT-CLIP resamples to.
        .with("spacing", Column::ListFloat32(rows.iter().map(|_| Some(vec![1.5, 0.75, 0.75])).collect()))
        .with("sha", Column::texts(rows.iter().map(|(id, _)| format!("{name}-{id}"))))
        .with_metadata("regions", json!(["nodule", "effusion"]).to_string());
    let folder = folder.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    let mut writer = OutputWriter::new(folder.clone());
    write(&mut writer, &TableSchema::volumes(), &table, WriteOptions::text("{}")).unwrap();
    let kind = if name == "masks" { artifact::VOLUME_MASKS } else { artifact::VOLUMES };
    tree(&folder, kind.0)
}

/// A block of region 1 in the second slice, and one voxel of region 2.
fn labels(shape: [usize; 3]) -> Vec<u8> {
    let [_, height, width] = shape;
    let block = |index: usize| {
        let (z, y, x) = (index / (height * width), index / width % height, index % width);
        u8::from(z == 1 && (2..6).contains(&y) && (4..8).contains(&x))
    };
    let mut labels: Vec<u8> = (0..shape.iter().product()).map(block).collect();
    labels[0] = 2;
    labels
}

#[test]
fn masks_are_seen_as_their_volumes_are() {
    let folder = TempDir::new().unwrap();
    let voxels = |bytes: usize| vec![0u8; 4 * 8 * 8 * bytes];
    let units = volumes(&folder, "units", "i16", [4, 8, 8], &[("a", voxels(2))]);
    let greys = volumes(&folder, "greys", "u8", [4, 8, 8], &[("a", voxels(1))]);
    let masks = volumes(&folder, "masks", "u8", [4, 8, 8], &[("a", labels([4, 8, 8]))]);
    let ids = BTreeSet::from(["a"]);
    let whole = |volumes: &Artifact, size: [usize; 3], regions: &[&str]| {
        let regions: Vec<String> = regions.iter().map(|name| (*name).to_owned()).collect();
        let set = MaskSet::read(&masks, volumes, &ids, size, &regions).unwrap();
        set.each(MaskSet::whole).unwrap().remove("a").unwrap()
    };
    let any: Vec<bool> = labels([4, 8, 8]).iter().map(|label| *label != 0).collect();
    let first: Vec<bool> = labels([4, 8, 8]).iter().map(|label| *label == 1).collect();
    for volumes in [&units, &greys] {
        assert_eq!(whole(volumes, [4, 8, 8], &[]), any);
        assert_eq!(whole(volumes, [4, 8, 8], &["nodule"]), first);
    }
    // Bytes are stretched, Hounsfield units cut to the middle.
    let inside = |mask: &[bool]| mask.iter().filter(|inside| **inside).count();
    let cut = whole(&units, [2, 4, 4], &["nodule"]);
    // Slice 1 is the first of two; of rows and columns 2 to 5, columns 4 and 5 are inside.
    let expected: Vec<bool> = (0..32).map(|index| index < 16 && index % 4 >= 2).collect();
    assert_eq!(cut, expected);
    let stretched = whole(&greys, [4, 16, 16], &["nodule"]);
    assert_eq!(inside(&stretched), 4 * inside(&first));
    let set = MaskSet::read(&masks, &units, &ids, [4, 8, 8], &["nodule".to_owned()]).unwrap();
    let preprocessor = Preprocessor { slices: Slices::Mean(4), ..Preprocessor::clip(8) };
    assert_eq!(set.each(|set, place| set.slices(place, &preprocessor)).unwrap()["a"], first);
    let error = MaskSet::read(&masks, &units, &ids, [4, 8, 8], &["heart".to_owned()]).err().unwrap();
    assert!(error.to_string().contains("heart"), "{error}");
}

/// Maps of the volumes of [`SIZE`], one each.
fn maps(folder: &TempDir, name: &str, rows: &[(&str, Vec<f32>)]) -> Artifact {
    let text = |name: &str, values: Vec<String>| -> (Field, ArrayRef) {
        (Field::new(name, DataType::Utf8, true), Arc::new(StringArray::from(values)))
    };
    let values = rows.iter().flat_map(|(_, map)| map.iter().copied()).collect();
    let classes: ArrayRef = Arc::new(Int32Array::from(vec![0; rows.len()]));
    let columns = vec![
        text("id", rows.iter().map(|(id, _)| (*id).to_owned()).collect()),
        text("target", vec!["nodule".to_owned(); rows.len()]),
        (Field::new("target_index", DataType::Int32, true), classes),
        tensor_column("saliency", &SIZE, &["z", "y", "x"], values).unwrap(),
    ];
    let folder = folder.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    let metadata = HashMap::from([("method".to_owned(), name.to_owned())]);
    write_file(&folder.join("saliency.arrow"), columns, metadata).unwrap();
    tree(&folder, artifact::SALIENCY.0)
}

/// The values of a table of scores by sample, method and metric; those without a value are left out.
fn scores(made: &Made) -> BTreeMap<(String, String, String), f64> {
    let table = read(&made["scores"]).unwrap();
    let text =
        |name: &str| -> Vec<String> { table.strings(name).unwrap().into_iter().map(str::to_owned).collect() };
    let (ids, methods, metrics) = (text("id"), text("method"), text("metric"));
    let values = table.float64("value").unwrap();
    let rows = (0..table.rows()).filter_map(|row| {
        Some(((ids[row].clone(), methods[row].clone(), metrics[row].clone()), values[row]?))
    });
    rows.collect()
}

#[test]
fn a_map_that_is_its_mask_localises_perfectly() {
    let folder = TempDir::new().unwrap();
    let grey = |step: usize| -> Vec<u8> { (0..VOXELS).map(|voxel| (voxel * step % 251) as u8).collect() };
    let images = volumes(&folder, "volumes", "u8", SIZE, &[("a", grey(7)), ("b", grey(9))]);
    let masks = volumes(&folder, "masks", "u8", SIZE, &[("a", labels(SIZE)), ("b", labels(SIZE))]);
    let perfect: Vec<f32> = labels(SIZE).iter().map(|label| f32::from(u8::from(*label == 1))).collect();
    // Two slices behind the block: beside it only for who is tolerant in depth.
    let mut behind = vec![0.0; VOXELS];
    behind[(3 * SIZE[1] + 3) * SIZE[2] + 5] = 1.0;
    let saliency = maps(&folder, "given", &[("a", perfect), ("b", behind)]);
    let inputs = [("saliency", &saliency), ("images", &images), ("masks", &masks)];
    let params = json!({ "regions": ["nodule"], "tolerance": 2.0 });
    let scores = scores(&run(&Score, &params, &inputs).unwrap());
    let of = |id: &str, metric: &str| scores[&(id.to_owned(), "given".to_owned(), metric.to_owned())];
    for metric in ["pointing_game", "relevance_mass", "relevance_rank", "localisation_auc"] {
        assert_eq!(of("a", metric), 1.0, "{metric}");
    }
    assert_eq!((of("b", "pointing_game"), of("b", "pointing_game_tolerant")), (0.0, 1.0));
    assert_eq!(of("b", "relevance_mass"), 0.0);
    let near = run(&Score, &json!({ "regions": ["nodule"], "tolerance": 1.0 }), &inputs).unwrap();
    let key = ("b".to_owned(), "given".to_owned(), "pointing_game_tolerant".to_owned());
    assert_eq!(self::scores(&near)[&key], 0.0);
    // Controls know three axes.
    assert!(scores.keys().any(|(_, method, metric)| method == "edge" && metric == "sparseness"));
    assert!(scores.keys().any(|(_, method, metric)| method == "center" && metric == "pointing_game"));
}

#[test]
fn a_model_of_volumes_is_asked_about_them() {
    let (chests, checkpoint) = study();
    let probe = finetuned(&chests, &checkpoint, json!({ "c": 1.0 }));
    let model = Model::load(&probe["checkpoint"], Compute::exact()).unwrap();
    let target = model.head().unwrap().description.classes[2].clone();
    let explained = |method: &str| {
        let inputs = [("images", &chests["volumes"]), ("checkpoint", &probe["checkpoint"])];
        run(&Attribute, &json!({ "method": method, "target": target }), &inputs).unwrap()
    };
    let (gradient, product) = (explained("gradient"), explained("input_x_gradient"));
    let score = |maps: &Made, params: Json| {
        let inputs = [
            ("saliency", &maps["saliency"]),
            ("images", &chests["volumes"]),
            ("checkpoint", &probe["checkpoint"]),
        ];
        run(&Score, &params, &inputs)
    };
    // In one step everything is gone, whatever the map: the mean of both probabilities.
    let made = score(&product, json!({ "metrics": ["deletion"], "steps": 1, "baseline": "black" })).unwrap();
    let set = VolumeSet::read(&chests["volumes"], &["test"], SIZE).unwrap();
    let values = scores(&made);
    for (row, id) in set.ids().iter().enumerate() {
        let volume = set.batch(&[row]).unwrap();
        let air = (volume.zeros_like().unwrap() - 1.0).unwrap();
        let probability = |volume| {
            let logits = model.logits(volume, None).unwrap().to_vec2::<f32>().unwrap();
            1.0 / (1.0 + f64::from(-logits[0][2]).exp())
        };
        let expected = (probability(&volume) + probability(&air)) / 2.0;
        let ours = values[&(id.clone(), "input_x_gradient".to_owned(), "deletion".to_owned())];
        assert!((ours - expected).abs() < 1e-5, "{ours} {expected}");
    }
    let metrics = [
        "insertion",
        "region_perturbation_gap",
        "sensitivity_n",
        "irof",
        "infidelity",
        "completeness",
        "focus",
        "avg_sensitivity",
        "continuity",
        "random_logit",
        "efficient_parameter_randomisation",
        "road",
        "compactness",
    ];
    let params = json!({ "metrics": metrics[..6], "steps": 4, "subsets": 4, "patch": 8 });
    let made = score(&product, params).unwrap();
    let values = scores(&made);
    for metric in &metrics[..6] {
        assert!(values.keys().any(|(_, _, own)| own == metric), "{metric}");
    }
    let parameters = read(&made["scores"]).unwrap().strings("parameters").unwrap().join(" ");
    assert!(parameters.contains("\"patch\":[3,8,8]"), "{parameters}");
    let params = json!({ "metrics": metrics[7..], "draws": 2, "limit": 1 });
    let made = score(&gradient, params).unwrap();
    let table = read(&made["scores"]).unwrap();
    let (names, values) = (table.strings("metric").unwrap(), table.float64("value").unwrap());
    for metric in &metrics[7..] {
        let has_value = (0..table.rows()).any(|row| names[row] == *metric && values[row].is_some());
        assert_eq!(has_value, !["road", "compactness"].contains(metric), "{metric}");
    }
    let refused = |params: Json| score(&product, params).err().unwrap().to_string();
    assert!(refused(json!({ "mode": "quantus", "metrics": ["pixel_flipping"] })).contains("flat images"));
    assert!(refused(json!({ "baseline": "mean" })).contains("flat images"));

    // Two methods, compared voxel by voxel.
    let inputs =
        [("first", &gradient["saliency"]), ("second", &product["saliency"]), ("images", &chests["volumes"])];
    let made = run(&CompareSaliency, &json!({ "absolute": true }), &inputs).unwrap();
    let table = read(&made["similarities"]).unwrap();
    let (names, values) = (table.strings("metric").unwrap(), table.float64("value").unwrap());
    for metric in ["spearman", "top_10_percent_iou", "ssim"] {
        let has_value = (0..table.rows()).any(|row| names[row] == metric && values[row].is_some());
        assert!(has_value, "{metric}");
    }
    let same = [("first", &product["saliency"]), ("second", &product["saliency"])];
    let same = read(&run(&CompareSaliency, &json!({}), &same).unwrap()["similarities"]).unwrap();
    assert!(same.float64("value").unwrap().iter().flatten().all(|value| (value - 1.0).abs() < 1e-9));
    let inputs = [("saliency", &made["differences"]), ("images", &chests["volumes"])];
    let page = run(&Report, &json!({}), &inputs).unwrap();
    let page = std::fs::read_to_string(&page["page"].file("index.html").unwrap().location).unwrap();
    assert!(page.contains("most salient"), "differences have slices");
}

#[test]
fn a_model_that_sees_slices_is_scored_on_them() {
    let (chests, _) = study();
    let flat = flat();
    let slices = seeing(&flat, json!({ "slices": "mean", "count": 3 }));
    let probe = finetuned(&chests, &slices, json!({ "c": 1.0 }));
    let inputs = [("images", &chests["volumes"]), ("checkpoint", &probe["checkpoint"])];
    let maps = run(&Attribute, &json!({ "method": "gradient" }), &inputs).unwrap();
    let inputs = [
        ("saliency", &maps["saliency"]),
        ("images", &chests["volumes"]),
        ("masks", &chests["masks"]),
        ("checkpoint", &probe["checkpoint"]),
    ];
    let values = scores(&run(&Score, &json!({ "steps": 5 }), &inputs).unwrap());
    for metric in ["relevance_mass", "deletion", "insertion"] {
        assert!(values.keys().any(|(_, method, own)| method == "gradient" && own == metric), "{metric}");
    }
    // Without the model the file says how it saw the volumes.
    let values = scores(&run(&Score, &json!({}), &inputs[..3]).unwrap());
    assert!(values.keys().any(|(_, method, own)| method == "gradient" && own == "relevance_mass"));
}
