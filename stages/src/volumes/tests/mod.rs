//! Invented scans in CT-RATE's layout through a small CT-CLIP, and models with one tower.

mod scored;
mod study;

use candle_core::Tensor;
use pipe_engine::Artifact;
use pipe_models::ct_clip::{PATHOLOGIES, pathology_probability, prompts};
use pipe_models::ops::linear;
use pipe_models::preprocess::Slices;
use pipe_models::{Preprocessor, normalise};
use serde_json::{Value as Json, json};

use super::{Stored, VolumeSet, prepared, squares};
use crate::checkpoint::Checkpoint;
use crate::compute::Compute;
use crate::embed::Embed;
use crate::evaluate_classify::EvaluateClassify;
use crate::images::Pixels;
use crate::ingest::IngestCtRate;
use crate::ipc::{read_file, tensors, texts};
use crate::model::Model;
use crate::phantom::IngestPhantom;
use crate::table::{Column, read};
use crate::testing::{Made, data, run, tree};
use crate::tokenizer::TrainTokenizer;

/// Ids and vectors of a table of embeddings, in its order.
fn embeddings(artifact: &Artifact) -> (Vec<String>, Vec<Vec<f32>>) {
    let (mut ids, mut vectors) = (Vec::new(), Vec::new());
    for file in artifact.files_ending(".arrow") {
        let batch = read_file(&file.location).unwrap();
        ids.extend(texts(&batch, "image_id").unwrap().into_iter().flatten());
        let (values, shape) = tensors(&batch, "embedding").unwrap();
        vectors.extend(values.chunks_exact(shape[0]).map(<[f32]>::to_vec));
    }
    (ids, vectors)
}

fn random(architecture: &str, config: Json, inputs: &[(&str, &Artifact)]) -> Made {
    let params = json!({ "init": "random", "architecture": architecture, "config": config });
    run(&Checkpoint, &params, inputs).unwrap()
}

/// Scans, and a CT-CLIP that takes four slices of 16 x 16 pixels.
fn scans() -> Option<(Made, Made)> {
    let folder = data("fixture-ct-rate/dataset")?;
    let scans = run(
        &IngestCtRate,
        &json!({ "reconstructions": "first", "allow_partial": true }),
        &[("source", &tree(&folder, "file"))],
    );
    let scans = scans.unwrap();
    let vocabulary = json!({ "vocab_size": 514 });
    let tokenizer = run(&TrainTokenizer, &vocabulary, &[("text", &scans["captions"])]).unwrap();
    let config = json!({
        "vision": {
            "width": 16, "codes": 8, "image": 16, "slices": 4, "patch": 8, "patch_slices": 2, "heads": 2,
            "spatial_layers": 1, "temporal_layers": 1, "head_width": 8, "hidden": 12,
        },
        "text": {
            "vocab_size": 520, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 32,
        },
        "context": 32, "projection": 8,
    });
    let checkpoint = random("ct-clip", config, &[("tokenizer", &tokenizer["tokenizer"])]);
    Some((scans, checkpoint))
}

#[test]
fn scans_are_embedded_as_the_model_takes_them() {
    let Some((scans, checkpoint)) = scans() else { return };
    let inputs = [("images", &scans["volumes"]), ("checkpoint", &checkpoint["checkpoint"])];
    let made = run(&Embed, &json!({ "modality": "image" }), &inputs).unwrap();
    assert_eq!(made.artifacts.keys().collect::<Vec<_>>(), ["images"]);
    let (ids, vectors) = embeddings(&made["images"]);
    let table = read(&scans["volumes"]).unwrap();
    assert_eq!(ids, table.strings("image_id").unwrap());
    let set = VolumeSet::read(&scans["volumes"], &[], [4, 16, 16]).unwrap();
    let model = Model::load(&checkpoint["checkpoint"], Compute::exact()).unwrap();
    // The last first: parts are read as they are wanted.
    for row in (0..ids.len()).rev() {
        let volume = set.batch(&[row]).unwrap();
        assert_eq!(volume.dims(), [1, 1, 4, 16, 16]);
        let expected = model.image_tower().unwrap().embed_images(&volume, None).unwrap();
        assert_eq!(expected.to_vec2::<f32>().unwrap()[0], vectors[row], "{}", ids[row]);
    }
    // The centre of the scan: 42 x 38 pixels of 40 slices, all of the model's spacing.
    let Some(Column::Binary(voxels)) = table.column("voxels") else { panic!() };
    let stored = voxels[0].as_deref().unwrap();
    let at = |slice: usize, row: usize, column: usize| {
        let place = 2 * ((slice * 42 + row) * 38 + column);
        f32::from(i16::from_le_bytes([stored[place], stored[place + 1]])) / 1000.0
    };
    let first = set.batch(&[0]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!((first[0], first[(3 * 16 + 15) * 16 + 15]), (at(18, 13, 11), at(21, 28, 26)));
}

#[test]
fn a_finding_is_asked_for_with_its_opposite() {
    let Some((scans, checkpoint)) = scans() else { return };
    let texts = |place: usize| -> Json {
        PATHOLOGIES.iter().map(|name| ((*name).to_owned(), json!([prompts(name)[place]]))).collect()
    };
    let params = json!({ "splits": ["val"], "prompts": texts(0), "absent": texts(1) });
    let inputs = [
        ("images", &scans["volumes"]),
        ("labels", &scans["labels"]),
        ("checkpoint", &checkpoint["checkpoint"]),
    ];
    let made = run(&EvaluateClassify, &params, &inputs).unwrap();
    let predictions = read(&made["predictions"]).unwrap();
    let Some(Column::ListFloat32(scores)) = predictions.column("scores") else { panic!() };
    let model = Model::load(&checkpoint["checkpoint"], Compute::exact()).unwrap();
    let set = VolumeSet::read(&scans["volumes"], &["val"], [4, 16, 16]).unwrap();
    assert_eq!(set.ids(), predictions.strings("id").unwrap());
    let tower = model.text_tower().unwrap();
    for (class, name) in PATHOLOGIES.iter().enumerate() {
        let ids: Vec<u32> = prompts(name).iter().flat_map(|text| model.encode(text).unwrap()).collect();
        let ids = Tensor::from_vec(ids, (2, tower.context_length()), &crate::model::DEVICE).unwrap();
        let text = normalise(&tower.embed_texts(&ids, None).unwrap()).unwrap();
        for (row, scores) in scores.iter().enumerate() {
            let volume = set.batch(&[row]).unwrap();
            let image = model.image_tower().unwrap().embed_images(&volume, None).unwrap();
            // The temperature of random weights is 1, as the original's at first.
            let cosines = linear(&normalise(&image).unwrap(), &text, None).unwrap();
            let expected = pathology_probability(&(cosines * 1f64.exp()).unwrap()).unwrap();
            let expected = expected.to_vec1::<f32>().unwrap()[0];
            let found = scores.as_ref().unwrap()[class];
            assert!((found - expected).abs() < 1e-5, "{name}: {found} and {expected}");
        }
    }
    // Texts of a class that excludes others have no opposite.
    let problems = |params: Json| pipe_engine::AnyKind::resolve(&EvaluateClassify, &params).unwrap_err();
    assert_eq!(problems(json!({ "absent": texts(1) }))[0].path, "absent");
    let empty = json!({ "prompts": { "a": ["a"] }, "absent": { "a": [] } });
    assert_eq!(problems(empty)[0].path, "absent.a");
}

#[test]
fn flat_images_are_not_mistaken_for_volumes() {
    let Some((_, ct)) = scans() else { return };
    let config = json!({ "image": 64, "width": 8, "blocks": [1, 1, 1, 1] });
    let flat = random("resnet50", config, &[]);
    let images = run(&IngestPhantom, &json!({ "size": 28, "train": 4, "val": 0, "test": 0 }), &[]).unwrap();
    let embed = |images: &Artifact, checkpoint: &Made| {
        let inputs = [("images", images), ("checkpoint", &checkpoint["checkpoint"])];
        run(&Embed, &json!({ "modality": "image" }), &inputs)
    };
    let error = embed(&images["images"], &ct).err().unwrap().to_string();
    assert!(error.contains("takes volumes") && error.contains("ct-2d"), "{error}");
    // A model without a text tower embeds images, and says that it has no text tower.
    assert_eq!(embeddings(&embed(&images["images"], &flat).unwrap()["images"]).0.len(), 4);
    let captions = [("captions", &images["captions"]), ("checkpoint", &flat["checkpoint"])];
    let error = run(&Embed, &json!({ "modality": "text" }), &captions).err().unwrap().to_string();
    assert!(error.contains("no text tower"), "{error}");
}

#[test]
fn what_is_not_wanted_is_not_given() {
    let images = run(&IngestPhantom, &json!({ "size": 28, "train": 4, "val": 0, "test": 0 }), &[]).unwrap();
    let config = json!({ "image": 64, "width": 8, "blocks": [1, 1, 1, 1] });
    let flat = random("resnet50", config, &[]);
    let (pictures, captions) = (("images", &images["images"]), ("captions", &images["captions"]));
    let checkpoint = ("checkpoint", &flat["checkpoint"]);
    for (modality, inputs, part) in [
        ("both", vec![pictures, checkpoint], "`modality = \"image\"` does without"),
        ("both", vec![captions, checkpoint], "`modality = \"text\"` does without"),
        ("image", vec![pictures, captions, checkpoint], "leaves out"),
        ("image", vec![checkpoint], "`images` is missing"),
        ("text", vec![pictures, checkpoint], "leaves out"),
    ] {
        let error = run(&Embed, &json!({ "modality": modality }), &inputs).err().unwrap().to_string();
        assert!(error.contains(part), "{modality}: {error}");
    }
}

fn stored<'a>(voxels: &'a [u8], dtype: &'a str, shape: &'a [i32], spacing: Option<&'a [f32]>) -> Stored<'a> {
    Stored { voxels, dtype, shape, spacing }
}

fn bytes(units: &[i16]) -> Vec<u8> {
    units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
}

#[test]
fn hounsfield_units_are_cut_padded_and_divided() {
    // Slices 3, rows 1, columns 2: 10 per slice, 100 per column.
    let voxels = bytes(&[0, 100, 10, 110, 20, 120]);
    let spacing = [1.5, 0.75, 0.75];
    let values = prepared(&stored(&voxels, "i16", &[3, 1, 2], Some(&spacing)), [1, 2, 4]).unwrap();
    let thousandths: Vec<i32> = values.iter().map(|value| (value * 1000.0).round() as i32).collect();
    assert_eq!(thousandths, [-1000, 10, 110, -1000, -1000, -1000, -1000, -1000]);
    // Slices twice as far apart become twice as many.
    let apart = prepared(&stored(&voxels, "i16", &[3, 1, 2], Some(&[3.0, 0.75, 0.75])), [6, 1, 2]).unwrap();
    assert!((apart[2] - 0.0025).abs() < 1e-6, "{apart:?}");
}

#[test]
fn bytes_fill_the_volume() {
    assert_eq!(
        prepared(&stored(&[0, 255], "u8", &[2, 1, 1], None), [2, 1, 2]).unwrap(),
        [-1.0, -1.0, 1.0, 1.0]
    );
}

#[test]
fn slices_are_seen_as_flat_images() {
    let seen = |stored: &Stored<'_>, slices: Slices, hounsfield: [f64; 2]| {
        let preprocessor = Preprocessor { slices, hounsfield, ..Preprocessor::clip(2) };
        squares(stored, &preprocessor).unwrap()
    };
    // Four slices of 2 x 2 pixels: 10 per slice, 1 per pixel.
    let voxels: Vec<u8> = (0..16).map(|place| place / 4 * 10 + place % 4).collect();
    let volume = stored(&voxels, "u8", &[4, 2, 2], None);
    let whole = [-1000.0, 1000.0];
    let grey = |slice: u8| -> Vec<u8> { (0..4).flat_map(|pixel| [slice * 10 + pixel; 3]).collect() };
    assert_eq!(seen(&volume, Slices::Central, whole), grey(2));
    assert_eq!(seen(&volume, Slices::Mean(2), whole), [grey(1), grey(3)].concat());
    let colours: Vec<u8> = (0..4).flat_map(|pixel| [10 + pixel, 20 + pixel, 30 + pixel]).collect();
    assert_eq!(seen(&volume, Slices::Triplet, whole), colours);
    // Hounsfield units through a window.
    let units = bytes(&[-2000, -100, 0, 100, -100, -50, 50, 3000]);
    let scan = stored(&units, "i16", &[2, 2, 2], Some(&[1.5, 0.75, 0.75]));
    let values = |window| seen(&scan, Slices::Central, window).iter().step_by(3).copied().collect::<Vec<_>>();
    assert_eq!(values([-100.0, 100.0]), [0, 64, 191, 255]);
    assert_eq!(values([-1000.0, 1000.0]), [115, 121, 134, 255]);
    for (dtype, shape, part) in
        [("i16", [2, 2, 3], "16 bytes"), ("f32", [2, 2, 2], "`f32`"), ("i16", [0, 2, 2], "16 bytes")]
    {
        let reason = squares(&stored(&units, dtype, &shape, None), &Preprocessor::clip(2)).unwrap_err();
        assert!(reason.contains(part), "{reason}");
    }
    let none = squares(&stored(&[], "u8", &[0, 2, 2], None), &Preprocessor::clip(2)).unwrap_err();
    assert!(none.contains("no slice"), "{none}");
}

#[test]
fn what_is_no_volume_is_refused() {
    let voxels = bytes(&[0; 6]);
    let spacing: &[f32] = &[1.5, 0.75, 0.75];
    for (dtype, shape, spacing, part) in [
        ("i16", &[3, 1][..], Some(spacing), "slices, rows and columns"),
        ("i16", &[3, 1, 3][..], Some(spacing), "12 bytes"),
        ("i16", &[-3, 1, 2][..], Some(spacing), "slices, rows and columns"),
        ("i16", &[i32::MAX, i32::MAX, i32::MAX][..], Some(spacing), "12 bytes"),
        ("i16", &[3, 1, 2][..], None, "no spacing"),
        ("i16", &[3, 1, 2][..], Some(&[1.5, 0.75, 0.5][..]), "squares"),
        ("i16", &[3, 1, 2][..], Some(&[0.0, 0.75, 0.75][..]), "spacing"),
        ("f64", &[3, 1, 2][..], Some(spacing), "`f64`"),
        ("u8", &[3, 1, 2][..], None, "12 voxels"),
    ] {
        let reason = prepared(&stored(&voxels, dtype, shape, spacing), [2, 2, 2]).unwrap_err();
        assert!(reason.contains(part), "{part} in {reason}");
    }
}
