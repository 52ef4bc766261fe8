//! The stage on hand-made maps and a tiny CLIP with random weights.

mod again;
mod margins;
mod study;

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow_array::{ArrayRef, Int32Array, StringArray};
use arrow_schema::{DataType, Field};
use candle_core::Tensor;
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, ArtifactFile, InputArtifact, OutputWriter, StageContext, StageError, StageHost, StageKind,
};
use pipe_models::random::Key;
use pipe_models::{ClipConfig, ClipModel, Preprocessor, Trainable};
use tempfile::TempDir;

use super::metric::Needs;
use super::{Baseline, LayerOrder, Metric, Mode, Params, Preset, Score, ScoreSpace};
use crate::attribute::{self, Attribute};
use crate::compute::Compute;
use crate::images::Pixels as _;
use crate::ipc::{tensor_column, write_file};
use crate::model::{DEVICE, Head, HeadDescription, Model};
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use study::*;

#[test]
fn a_perfect_map_and_its_inverse_are_the_extremes() {
    let perfect = perfect();
    let inverted: Vec<f32> = perfect.iter().map(|value| 1.0 - value).collect();
    let study =
        Study::new().with_maps("perfect", &maps_of(&perfect)).with_maps("inverted", &maps_of(&inverted));
    let scores = study.run(&Params::default());
    for metric in
        ["pointing_game", "relevance_mass", "relevance_rank", "top_k_intersection", "localisation_auc"]
    {
        assert_eq!(scores.value("a", "perfect", metric), 1.0, "{metric}");
        assert_eq!(scores.value("b", "inverted", metric), 0.0, "{metric}");
    }
    // Eight of sixty-four pixels.
    assert_eq!(scores.value("a", "perfect", "attribution_localisation_weighted"), 8.0);
    assert_eq!(scores.value("a", "perfect", "effective_complexity"), 8.0);
    assert!((scores.value("a", "perfect", "complexity") - 8f64.ln()).abs() < 1e-9);
    assert!((scores.value("a", "perfect", "sparseness") - 0.875).abs() < 1e-4);
    // The mask begins two rows below the inverse's first maximum.
    let near = Params { tolerance: Some(2.0), ..Params::default() };
    assert_eq!(study.run(&near).value("a", "inverted", "pointing_game_tolerant"), 0.0);
    let near = Params { tolerance: Some(2.3), ..Params::default() };
    assert_eq!(study.run(&near).value("a", "inverted", "pointing_game_tolerant"), 1.0);
    let shares = scores.table.float64("mask_share").unwrap();
    let ids = scores.table.strings("id").unwrap();
    for (share, id) in shares.iter().zip(ids) {
        assert_eq!(*share, if id == "c" { None } else { Some(0.125) });
    }
    assert_eq!(scores.distinct("target"), ["nodule"]);
    assert_eq!(scores.distinct("mode"), ["reference"]);
}

#[test]
fn controls_stand_in_every_table() {
    let study = Study::new().with_maps("perfect", &maps_of(&perfect()));
    let scores = study.run(&Params::default());
    assert_eq!(scores.distinct("method"), ["center", "edge", "perfect", "random"]);
    let other = study.run(&Params { seed: 1, ..Params::default() });
    let auc = |scores: &Scores, id| scores.value(id, "random", "localisation_auc");
    assert!(auc(&scores, "a") != auc(&scores, "b") && auc(&scores, "a") != auc(&other, "a"));
    assert_eq!(
        scores.value("a", "center", "localisation_auc"),
        scores.value("b", "center", "localisation_auc")
    );
    let scores = study.with_reference().run(&Params::default());
    let methods = ["abs_difference_to_reference", "center", "edge", "perfect", "random"];
    assert_eq!(scores.distinct("method"), methods);
    // Images differ in the blue channel alone, by one value everywhere: the map is flat but for rounding.
    let mass = scores.value("a", "abs_difference_to_reference", "relevance_mass");
    assert!((mass - 0.125).abs() < 1e-6, "{mass}");
}

#[test]
fn what_has_no_value_says_why() {
    let study =
        Study::new().with_maps("partial", &maps_of(&perfect())).with_maps("zero", &maps_of(&[0.0; PIXELS]));
    let scores = study.run(&Params::default());
    let reason = |id, method, metric| {
        let (value, reason) = scores.row(id, method, metric);
        assert_eq!(value, None);
        reason.unwrap()
    };
    assert_eq!(reason("c", "partial", "pointing_game"), "the image has no mask");
    assert_eq!(reason("b", "partial", "pointing_game"), "not_applicable: why");
    assert_eq!(reason("b", "partial", "sparseness"), "not_applicable: why");
    assert_eq!(reason("a", "zero", "relevance_mass"), "the map has no mass");
    assert_eq!(scores.row("a", "partial", "pointing_game").1, None);
}

#[test]
fn regions_splits_and_limits_choose() {
    let study = Study::new().with_maps("perfect", &maps_of(&perfect()));
    let hearts = study.run(&Params { regions: vec!["heart".to_owned()], ..Params::default() });
    assert_eq!(hearts.row("a", "perfect", "pointing_game").1.unwrap(), "the image has no mask");
    assert_eq!(hearts.value("b", "perfect", "pointing_game"), 1.0);
    let two = study.run(&Params { limit: Some(2), ..Params::default() });
    assert_eq!(two.distinct("id"), ["a", "b"]);
    let host = Host::default();
    let train = Params { splits: vec!["train".to_owned()], ..Params::default() };
    assert_eq!(study.run_with(&train, &host).unwrap().table.rows(), 0);
    assert!(host.warnings.into_inner().unwrap()[0].contains("no scores"));
}

/// Deletion and insertion in a few naive lines.
fn naive(study: &Study, id: &str, map: &[f32], deletion: bool, removed: &[f32], per_step: usize) -> f64 {
    let artifact = &study.inputs["checkpoint"][0].artifact;
    let model = Model::load(artifact, Compute::exact()).unwrap();
    let host = Host::default();
    let scratch = study.folder.path().to_owned();
    let context = StageContext::new(study.inputs.clone(), BTreeMap::new(), &host, 1, scratch, String::new());
    let images = &study.inputs["images"][0].artifact;
    let set = crate::images::ImageSet::read(images, &[], model.preprocessor().unwrap(), &context).unwrap();
    let image: Vec<f32> = set.batch(&[set.places()[id]]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let shape = pipe_attribution::metrics::Shape::flat(3, SIDE, SIDE);
    let blurred = pipe_attribution::metrics::blurred(&image, shape);
    let (mut current, end) = if deletion { (image, removed.to_vec()) } else { (blurred, image) };
    let mut order: Vec<usize> = (0..PIXELS).collect();
    order.sort_by(|a, b| map[*b].total_cmp(&map[*a]).then(a.cmp(b)));
    let probability = |pixels: &[f32]| {
        let pixels = Tensor::from_slice(pixels, (1, 3, SIDE, SIDE), &DEVICE).unwrap();
        let logits = model.logits(&pixels, None).unwrap().to_vec2::<f32>().unwrap().remove(0);
        let exponentials: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        exponentials[1] / exponentials.iter().sum::<f64>()
    };
    let mut curve = vec![probability(&current)];
    for pixels in order.chunks(per_step) {
        for pixel in pixels {
            (0..3).for_each(|channel| current[channel * PIXELS + pixel] = end[channel * PIXELS + pixel]);
        }
        curve.push(probability(&current));
    }
    let steps = curve.len() - 1;
    curve.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).sum::<f64>() / steps as f64
}

#[test]
fn deletion_and_insertion_follow_the_probability() {
    let map = noise(3);
    let study = Study::new().with_checkpoint().with_maps("noise", &maps_of(&map));
    let metrics = vec![Metric::Deletion, Metric::Insertion];
    for (batch, steps, per_step) in [(64, 16, 4), (3, 9, 8), (1, 1000, 1)] {
        let params = Params { metrics: metrics.clone(), steps, batch, ..Params::default() };
        let scores = study.run(&params);
        for id in ["a", "c"] {
            let expected = naive(&study, id, &map, true, &[0.0; PIXELS * 3], per_step);
            assert!((scores.value(id, "noise", "deletion") - expected).abs() < 1e-5);
            let expected = naive(&study, id, &map, false, &[], per_step);
            assert!((scores.value(id, "noise", "insertion") - expected).abs() < 1e-5);
        }
    }
    let baselines = |scores: &Scores| scores.distinct("baseline");
    let black: Vec<f32> =
        Preprocessor::clip(SIDE).black().iter().flat_map(|value| [*value; PIXELS]).collect();
    let params = Params { metrics, steps: 16, baseline: Some(Baseline::Black), ..Params::default() };
    let scores = study.run(&params);
    assert_eq!(baselines(&scores), ["black", "blur"]);
    let expected = naive(&study, "b", &map, true, &black, 4);
    assert!((scores.value("b", "noise", "deletion") - expected).abs() < 1e-5);
    // The mean of the training images is that of the one in their middle.
    let scores = study.run(&Params { baseline: Some(Baseline::Mean), ..params });
    assert_eq!(baselines(&scores), ["blur", "mean"]);
    let artifact = &study.inputs["images"][0].artifact;
    let host = Host::default();
    let context = StageContext::new(
        study.inputs.clone(),
        BTreeMap::new(),
        &host,
        1,
        study.folder.path().to_owned(),
        String::new(),
    );
    let images = crate::images::ImageSet::read(artifact, &[], &Preprocessor::clip(SIDE), &context).unwrap();
    let mean: Vec<f32> = images.batch(&[1]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let expected = naive(&study, "b", &map, true, &mean, 4);
    assert!((scores.value("b", "noise", "deletion") - expected).abs() < 1e-5);
}

/// Blurred images, noise and neighbourhoods take the place of pixels as `References` makes them.
#[test]
fn pixels_become_what_the_baseline_says() {
    let map = noise(3);
    let study = Study::new().with_checkpoint().with_maps("noise", &maps_of(&map));
    let model = Model::load(&study.inputs["checkpoint"][0].artifact, Compute::exact()).unwrap();
    let host = Host::default();
    let scratch = study.folder.path().to_owned();
    let context = StageContext::new(study.inputs.clone(), BTreeMap::new(), &host, 1, scratch, String::new());
    let images = &study.inputs["images"][0].artifact;
    let set = crate::images::ImageSet::read(images, &[], model.preprocessor().unwrap(), &context).unwrap();
    let image: Vec<f32> = set.batch(&[set.places()["b"]]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let shape = pipe_attribution::metrics::Shape::flat(3, SIDE, SIDE);
    let params = Params { metrics: vec![Metric::Deletion], steps: 16, patch: Some(4), ..Params::default() };
    use super::references::References;
    for (baseline, references) in [
        (Baseline::Blur, References::Blur(shape)),
        (Baseline::Uniform, References::Uniform { seed: 0 }),
        (Baseline::Neighbourhood, References::Neighbourhood { shape, patch: 4 }),
    ] {
        let scores = study.run(&Params { baseline: Some(baseline), ..params.clone() });
        assert_eq!(scores.distinct("baseline"), [baseline.name()]);
        let removed = references.image(0, "b", &image).unwrap();
        let expected = naive(&study, "b", &map, true, &removed, 4);
        assert!((scores.value("b", "noise", "deletion") - expected).abs() < 1e-5, "{baseline:?}");
        let quantus = Params { baseline: Some(baseline), mode: Mode::Quantus, ..Params::default() };
        let problems = StageKind::check(&Score, &quantus);
        assert_eq!(problems.iter().map(|problem| problem.path.as_str()).collect::<Vec<_>>(), ["baseline"]);
    }
}

/// A photograph twice as wide as high: the mask of its right end is seen by a model that squeezes the whole, and
/// lies outside of what one sees that cuts out the middle.
#[test]
fn masks_lie_where_the_maps_do() {
    let mut study = Study::new();
    study.inputs.remove("masks");
    std::fs::remove_dir_all(study.folder.path().join("masks")).unwrap();
    let (width, height) = (2 * SIDE as u32, SIDE as u32);
    let mask = GrayImage::from_fn(width, height, |x, _| Luma([u8::from(x >= width - 4) * 255]));
    let table = Table::new()
        .with("image_id", Column::texts(["a"]))
        .with("split", Column::texts(["test"]))
        .with("region", Column::texts(["end"]))
        .with("mask", Column::Image(vec![Some((png(&mask.into()), "mask.png".to_owned()))]))
        .with("pixels", Column::Int64(vec![Some(32)]));
    study.table("masks", &TableSchema::masks(), &table);
    let right: Vec<f32> = (0..PIXELS).map(|pixel| f32::from(u8::from(pixel % SIDE >= SIDE - 2))).collect();
    let whole = [("fit", "stretch")];
    let centre = [("fit", "shortest"), ("fit_shorter", "8"), ("fit_side", "8")];
    let params = Params { metrics: vec![Metric::PointingGame, Metric::RelevanceMass], ..Params::default() };
    let scores = |metadata: &[(&str, &str)]| {
        let study = Study { folder: TempDir::new().unwrap(), inputs: study.inputs.clone() };
        study.with_maps_of("right", &[], metadata, &maps_of(&right)).run(&params)
    };
    let squeezed = scores(&whole);
    assert_eq!(squeezed.value("a", "right", "pointing_game"), 1.0);
    assert_eq!(squeezed.value("a", "right", "relevance_mass"), 1.0);
    assert!(scores(&centre).row("a", "right", "pointing_game").0.is_none_or(|hit| hit == 0.0));
    let both = Study { folder: TempDir::new().unwrap(), inputs: study.inputs.clone() }
        .with_maps_of("one", &[], &whole, &maps_of(&right))
        .with_maps_of("two", &[], &centre, &maps_of(&right));
    assert!(both.error(&params).contains("lie elsewhere on their images"));
}

#[test]
fn rows_say_whether_the_model_is_right() {
    let map = perfect();
    let correct: ArrayRef = Arc::new(arrow_array::BooleanArray::from(vec![Some(true), Some(false), None]));
    let column = (Field::new("correct", DataType::Boolean, true), correct);
    let study = Study::new()
        .with_columns("told", &[], &[], &maps_of(&map), vec![column])
        .with_maps("untold", &maps_of(&map));
    let scores = study.run(&Params { metrics: vec![Metric::PointingGame], ..Params::default() });
    let column = scores.table.bools("correct").unwrap().to_vec();
    let (ids, methods) = (scores.table.strings("id").unwrap(), scores.table.strings("method").unwrap());
    for (row, correct) in column.into_iter().enumerate() {
        // A control is of the same images as the maps.
        let expected = match (methods[row], ids[row]) {
            ("untold", _) => None,
            (_, "a") => Some(true),
            (_, "b") => Some(false),
            _ => None,
        };
        assert_eq!(correct, expected, "{} {}", methods[row], ids[row]);
    }
}

#[test]
fn maps_of_another_model_are_not_asked_about() {
    let other = r#"{"inputs": {"checkpoint": ["0123"]}}"#;
    let study = Study::new().with_checkpoint();
    let own = study.inputs["checkpoint"][0].artifact.digest.to_hex();
    let own = format!(r#"{{"inputs": {{"checkpoint": ["{own}"]}}}}"#);
    let map = noise(3);
    let study = study.with_maps_of("own", &[], &[("pipe", &own)], &maps_of(&map)).with_maps_of(
        "other",
        &[],
        &[("pipe", other)],
        &maps_of(&map),
    );
    let scores = study.run(&Params { steps: 4, ..Params::default() });
    assert!(scores.value("a", "own", "deletion") > 0.0);
    let (value, reason) = scores.row("a", "other", "deletion");
    assert!(value.is_none() && reason.unwrap().contains("another model"));
    assert_eq!(scores.value("a", "other", "sparseness"), scores.value("a", "own", "sparseness"));
}

#[test]
fn axes_and_references_tell_maps_apart() {
    let map = perfect();
    let axes = |value| [("method", "ig"), ("model", "m"), ("baseline", value)];
    let study = Study::new()
        .with_maps_of("ig", &axes("grey"), &[("baseline", "zero")], &maps_of(&map))
        .with_maps_of("ig", &axes("average"), &[("baseline", "mean")], &maps_of(&map));
    let params = Params { metrics: vec![Metric::PointingGame], limit: Some(1), ..Params::default() };
    let scores = study.run(&params);
    let columns: Vec<&str> = scores.table.columns().iter().map(|(name, _)| name.as_str()).collect();
    // `model` is the same for all maps: it stands in the folder's name.
    let last = [
        "target",
        "map_baseline",
        "score",
        "better",
        "parameters",
        "correct",
        "group_id",
        "step",
        "kept_share",
        "axis_baseline",
    ];
    assert_eq!(columns[8..], last);
    assert_eq!(scores.table.metadata["axes"], r#"["map_baseline","axis_baseline"]"#);
    let column = |name| scores.table.utf8(name).unwrap().iter().map(Option::as_deref).collect::<Vec<_>>();
    assert_eq!(column("map_baseline")[..3], [Some("zero"), Some("mean"), None]);
    assert_eq!(column("axis_baseline")[..3], [Some("grey"), Some("average"), None]);
    let again = study.with_maps_of("ig", &axes("grey"), &[("baseline", "zero")], &maps_of(&map));
    assert!(again.error(&params).contains("no axis tells them apart"));
    let alone = Study::new().with_maps_of("ig", &axes("grey"), &[], &maps_of(&map)).run(&params);
    assert_eq!(alone.table.columns().len(), 17);
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let study = Study::new().with_maps("perfect", &maps_of(&perfect()));
    let needs = Params { metrics: vec![Metric::Deletion], ..Params::default() };
    assert!(study.error(&needs).contains("`deletion` needs the input `checkpoint`"));
    let unknown = Study::new().with_maps("perfect", &[("nobody", &perfect())]);
    assert!(unknown.error(&Params::default()).contains("`nobody`"));
    let mut damaged = Study::new().with_maps("perfect", &maps_of(&perfect()));
    let location = damaged.inputs["saliency"][0].artifact.single_file().unwrap().location.clone();
    std::fs::write(&location, &std::fs::read(&location).unwrap()[..200]).unwrap();
    assert!(damaged.error(&Params::default()).contains("saliency.arrow"));
    damaged.inputs.get_mut("saliency").unwrap()[0].artifact.files = [].into_iter().collect();
    assert!(damaged.error(&Params::default()).contains("no Arrow file"));
}

#[test]
fn parameters_are_checked_before_anything_runs() {
    let problems = |metrics: &[Metric], mode| {
        let params = Params { metrics: metrics.to_vec(), mode, ..Params::default() };
        StageKind::check(&Score, &params).into_iter().map(|problem| problem.path).collect::<Vec<_>>()
    };
    assert!(problems(&[Metric::Deletion, Metric::Sparseness], Mode::Reference).is_empty());
    assert_eq!(problems(&[Metric::Sparseness, Metric::Deletion], Mode::Quantus), ["metrics[1]"]);
    assert_eq!(problems(&[Metric::Sparseness, Metric::Sparseness], Mode::Reference), ["metrics[1]"]);
}

#[test]
fn quantus_mode_takes_all_maps_of_a_call_together() {
    let great: Vec<f32> = perfect().iter().map(|value| value * 1e6).collect();
    let small = perfect();
    let maps: [(&str, &[f32]); 3] = [("a", &great), ("b", &small), ("c", &small)];
    let study = Study::new().with_checkpoint().with_maps("perfect", &maps);
    let scores = study.run(&Params { mode: Mode::Quantus, ..Params::default() });
    assert_eq!(scores.distinct("mode"), ["quantus"]);
    assert!(!scores.distinct("metric").contains(&"deletion".to_owned()), "Quantus has none");
    assert_eq!(scores.value("a", "perfect", "effective_complexity"), 8.0);
    // A millionth of the greatest magnitude is below the threshold.
    assert_eq!(scores.value("b", "perfect", "effective_complexity"), 0.0);
}

#[test]
fn progress_reaches_its_total_and_a_stop_is_obeyed() {
    let study = Study::new().with_checkpoint().with_maps("noise", &maps_of(&noise(3)));
    let params = Params { steps: 10, batch: 16, ..Params::default() };
    let host = Host::default();
    study.run_with(&params, &host).unwrap();
    let reports = host.reports.into_inner().unwrap();
    // Three images, one method and three controls, two metrics, eleven images per curve.
    assert_eq!(reports.last(), Some(&(3 * 4 * 2 * 11, 3 * 4 * 2 * 11)));
    assert!(reports.is_sorted());
    let host = Host { stop_after: Some(2), ..Host::default() };
    assert!(matches!(study.run_with(&params, &host), Err(StageError::Cancelled)));
}

#[test]
fn few_images_may_be_asked_about() {
    let study = Study::new().with_checkpoint().with_maps("noise", &maps_of(&noise(3)));
    let all = Params { steps: 4, ..Params::default() };
    let few = Params { model_limit: Some(2), ..all.clone() };
    let host = Host::default();
    let scores = study.run_with(&few, &host).unwrap();
    assert_eq!(host.reports.into_inner().unwrap().last(), Some(&(2 * 4 * 2 * 5, 2 * 4 * 2 * 5)));
    assert_eq!(scores.value("b", "noise", "deletion"), study.run(&all).value("b", "noise", "deletion"));
    let (value, reason) = scores.row("c", "center", "insertion");
    assert!(value.is_none() && reason.unwrap().contains("first 2 images"));
    assert!(scores.row("c", "noise", "sparseness").0.is_some());
}

#[test]
fn the_report_reads_the_table() {
    let map = perfect();
    let study = Study::new()
        .with_checkpoint()
        .with_maps_of("ig", &[], &[("baseline", "zero")], &maps_of(&map))
        .with_maps_of("ig", &[], &[("baseline", "mean")], &maps_of(&noise(1)));
    let scores = study.run(&Params { steps: 4, ..Params::default() });
    let out = TempDir::new().unwrap();
    let outputs = [("page".to_owned(), OutputWriter::new(out.path().to_owned()))].into();
    let input = InputArtifact {
        axes: BTreeMap::new(),
        stage: "scored".to_owned(),
        artifact: Artifact {
            artifact_type: crate::artifact::ATTRIBUTION_SCORES.0.to_owned(),
            ..scores.artifact.clone()
        },
    };
    let host = Host::default();
    let scratch = study.folder.path().to_owned();
    let inputs = [("scores".to_owned(), vec![input])].into();
    let mut context = StageContext::new(inputs, outputs, &host, 1, scratch, "{}".to_owned());
    let params = serde_json::from_value(serde_json::json!({})).unwrap();
    StageKind::run(&crate::report::Report, &params, &mut context).unwrap();
    let page = std::fs::read_to_string(out.path().join("index.html")).unwrap();
    for word in ["pointing game", "deletion, zero", "insertion, blur", "random", "center"] {
        assert!(page.contains(word), "{word}");
    }
}
