//! The stage on phantoms and a tiny CLIP with random weights.

mod applicability;
mod pairs;
mod refining;
mod selection;
mod study;
mod wrapping;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, RecordBatch};
use candle_core::Tensor;
use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, ArtifactFile, InputArtifact, OutputWriter, StageContext, StageError, StageHost, StageKind,
};
use pipe_models::bert::BertConfig;
use pipe_models::ct_clip::{Adaptation, CtClipConfig, CtVitConfig, QuantiserGradient};
use pipe_models::random::Key;
use pipe_models::resnet::ResNetConfig;
use pipe_models::{ClipConfig, ClipModel, FoundationModel, ModelConfig, Preprocessor, Trainable};
use tempfile::TempDir;

use super::{Attribute, Baseline, Method, Params};
use crate::compute::Compute;
use crate::ipc::{read_file, tensors, texts};
use crate::model::{DEVICE, Head, HeadDescription, HeadInput, Model};
use crate::phantom::IngestPhantom;
use crate::report::Report;
use study::*;

#[test]
fn columns_and_metadata_are_those_of_the_data_dictionary() {
    let study = Study::new();
    let maps = study.maps(&params(Method::IntegratedGradients, Baseline::Mean));
    let schema = maps.0.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let expected = [
        "id",
        "target_kind",
        "target",
        "target_index",
        "correct",
        "score",
        "score_baseline",
        "completeness_gap",
        "status",
        "valid",
        "min",
        "max",
        "sum",
        "saliency",
    ];
    assert_eq!(names, expected);
    assert!(schema.fields().iter().all(|field| field.is_nullable()));
    let tensor = schema.field_with_name("saliency").unwrap().metadata();
    assert_eq!(tensor["ARROW:extension:name"], "arrow.fixed_shape_tensor");
    let extension: serde_json::Value = serde_json::from_str(&tensor["ARROW:extension:metadata"]).unwrap();
    assert_eq!(extension, serde_json::json!({ "shape": [SIDE, SIDE], "dim_names": ["y", "x"] }));
    let metadata = schema.metadata();
    assert_eq!(metadata["method"], "integrated_gradients");
    assert_eq!(metadata["baseline"], "mean");
    assert_eq!(metadata["layer"], "input");
    assert_eq!(
        ["fit", "fit_shorter", "fit_side"].map(|key| metadata[key].as_str()),
        ["shortest", "28", "28"]
    );
    assert!(metadata["model"].contains("patches of 7 x 7") && metadata.contains_key("pipe"));
    let stored: Params = serde_json::from_str(&metadata["params"]).unwrap();
    assert_eq!(stored, params(Method::IntegratedGradients, Baseline::Mean));
    assert_eq!(maps.0.num_rows(), 14);
}

#[test]
fn maps_sum_to_the_difference_of_scores() {
    let study = Study::new();
    for baseline in [Baseline::Zero, Baseline::Black, Baseline::Blur, Baseline::Mean] {
        let maps = study.maps(&params(Method::IntegratedGradients, baseline));
        let (scores, baselines) = (maps.numbers("score"), maps.numbers("score_baseline"));
        let (gaps, sums) = (maps.numbers("completeness_gap"), maps.numbers("sum"));
        for (row, values) in maps.rows().into_iter().enumerate() {
            let way = scores[row].unwrap() - baselines[row].unwrap();
            let total: f32 = values.iter().sum();
            assert!((total - way).abs() < 1e-3, "{baseline:?} {row}: {total} {way}");
            assert!((total - sums[row].unwrap()).abs() < 1e-4);
            assert!(gaps[row].unwrap().abs() < 1e-3);
            let most = values.iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(maps.numbers("max")[row], Some(most));
            assert!(maps.numbers("min")[row].unwrap() < 0.0);
        }
        assert!(maps.text("status").iter().all(|status| status.as_deref() == Some("ok")));
    }
}

/// The methods that are rules for the layers of convolutional networks.
const CONVOLUTIONAL: [Method; 6] = [
    Method::GuidedBackpropagation,
    Method::Deconvolution,
    Method::DeepLift,
    Method::ExcitationBackpropagation,
    Method::ContrastiveExcitationBackpropagation,
    Method::FullGradient,
];

/// The names of all methods.
fn names() -> Vec<String> {
    let names = serde_json::to_value(schemars::schema_for!(Method)).unwrap();
    let variants = names["oneOf"].as_array().unwrap().iter();
    let names = variants.flat_map(|variant| match &variant["enum"] {
        serde_json::Value::Array(names) => names.clone(),
        _ => vec![variant["const"].clone()],
    });
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Every method gives maps of the size of the image, the same in any batch; those that the architecture has
/// no rule for say so.
#[test]
fn every_method_gives_maps_or_says_why_not() {
    let study = Study::new();
    let mut names = names();
    assert_eq!(names.len(), 29, "{names:?}");
    // Its network is trained first: it has tests of its own.
    names.retain(|name| name != "trained_saliency");
    for name in names {
        let method: Method = serde_json::from_value(name.clone().into()).unwrap();
        assert_eq!(method.name(), name);
        let of = |batch| {
            let small = Params {
                draws: 3,
                masks: 20,
                cells: 4,
                blocks: 2,
                coalitions: 12,
                descent_steps: 3,
                batch,
                ..params(method, Baseline::Zero)
            };
            study.maps(&small)
        };
        let maps = of(5);
        let defined =
            !CONVOLUTIONAL.contains(&method) && ![Method::Cam, Method::AttentionPool].contains(&method);
        for status in maps.text("status") {
            let status = status.unwrap();
            let expected = match defined {
                true => ["ok", "all_zero"].contains(&status.as_str()),
                false => status.starts_with("not_applicable: "),
            };
            assert!(expected, "{name}: {status}");
        }
        if !defined {
            continue;
        }
        let rows = maps.rows();
        assert!(!rows.is_empty() && rows.iter().all(|map| map.len() == SIDE * SIDE), "{name}");
        let single = of(1);
        for (map, again) in rows.iter().zip(single.rows()) {
            let scale = map.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
            let close = map.iter().zip(again).all(|(a, b)| (a - b).abs() <= 1e-3 * scale);
            assert!(close, "{name}: another batch, another map");
        }
    }
}

/// What a transformer has no rule for, a residual network has.
#[test]
fn residual_networks_have_every_rule_of_layers() {
    let config = ResNetConfig { width: 4, blocks: [1, 1, 1, 1], image: 64 };
    let study = Study::new().with_network(&ModelConfig::ResNet(config.into()), 64, 4 * 8 * 4);
    for method in CONVOLUTIONAL {
        let maps = study.maps(&params(method, Baseline::Black));
        let statuses = maps.text("status");
        assert!(statuses.iter().all(|status| status.as_deref() == Some("ok")), "{method:?}: {statuses:?}");
        assert!(maps.rows().iter().all(|map| map.len() == 64 * 64), "{method:?}");
        let gaps = maps.numbers("completeness_gap");
        let scores = maps.numbers("score");
        if method == Method::FullGradient {
            let complete = gaps
                .iter()
                .zip(&scores)
                .all(|(gap, score)| gap.unwrap().abs() < 1e-3 * score.unwrap().abs().max(1.0));
            assert!(complete, "{gaps:?} {scores:?}");
        }
        assert_eq!(
            gaps.iter().all(Option::is_some),
            [Method::FullGradient, Method::DeepLift].contains(&method)
        );
    }
}

/// Attention over the axes of a volume, of which a flat image is one step.
#[test]
fn factorised_attention_has_relevance() {
    let text = r#"{"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 12}"#;
    let vision = CtVitConfig {
        width: 16,
        codes: 32,
        image: 32,
        slices: 4,
        patch: 8,
        patch_slices: 2,
        spatial_layers: 2,
        temporal_layers: 1,
        heads: 2,
        head_width: 8,
        hidden: 32,
    };
    let config = CtClipConfig {
        vision,
        text: BertConfig::from_json(text).unwrap(),
        context: 8,
        projection: 8,
        adaptation: Adaptation::Flat,
        quantiser: QuantiserGradient::StraightThrough,
        classes: None,
    };
    let study = Study::new().with_network(&ModelConfig::CtClip(config), 32, 8);
    for method in [Method::AttentionRollout, Method::AttentionRelevance, Method::IntegratedGradients] {
        let maps = study.maps(&params(method, Baseline::Zero));
        let statuses = maps.text("status");
        assert!(statuses.iter().all(|status| status.as_deref() == Some("ok")), "{method:?}: {statuses:?}");
        assert!(maps.rows().iter().all(|map| map.len() == 32 * 32), "{method:?}");
    }
}

#[test]
fn the_mean_image_is_that_of_the_training_split() {
    let study = Study::new();
    let host = Host::default();
    let model = Model::load(&study.artifacts["checkpoint"], Compute::exact()).unwrap();
    let inputs = ["images", "checkpoint"].map(|name| {
        let artifact = study.artifacts[name].clone();
        (name.to_owned(), vec![InputArtifact { axes: BTreeMap::new(), stage: String::new(), artifact }])
    });
    let scratch = study.folder.path().to_owned();
    let context = StageContext::new(inputs.into(), BTreeMap::new(), &host, 1, scratch, String::new());
    let read = |split: &str| {
        crate::images::ImageSet::read(
            &study.artifacts["images"],
            &[split],
            model.preprocessor().unwrap(),
            &context,
        )
        .unwrap()
    };
    let (train, test) = (read("train"), read("test"));
    let params = params(Method::IntegratedGradients, Baseline::Mean);
    let baselines = super::Baselines::read(&params, &model, &test, &context).unwrap();
    let pipe_attribution::Baseline::Tensor(ours) = baselines.of(&params, &[3, 0]).unwrap() else {
        panic!("a mean is a tensor")
    };
    let all: Vec<usize> = (0..train.len()).collect();
    let mean = train.batch(&all).unwrap().mean_keepdim(0).unwrap();
    let worst = ours
        .broadcast_sub(&mean)
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    assert_eq!(ours.dims(), [2, 3, SIDE, SIDE]);
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn images_without_a_twin_are_not_applicable() {
    let study = Study::new();
    let maps = study.maps(&params(Method::InputXGradient, Baseline::Twin));
    let labels = crate::labels::Labels::read(&study.artifacts["labels"]).unwrap();
    let ids: Vec<String> = maps.text("id").into_iter().flatten().collect();
    let normal: Vec<bool> = labels
        .of(&ids)
        .unwrap()
        .iter()
        .map(|label| labels.description.classes[label[0] as usize] == "none")
        .collect();
    assert!(normal.contains(&true) && normal.contains(&false), "both kinds are drawn: {normal:?}");
    let valid = maps.0.column_by_name("valid").unwrap().as_boolean().clone();
    let tensor = maps.0.column_by_name("saliency").unwrap();
    for (row, normal) in normal.iter().enumerate() {
        let status = maps.text("status")[row].clone().unwrap();
        assert_eq!(valid.value(row), !normal);
        assert_eq!(tensor.is_null(row), *normal);
        assert_eq!(maps.numbers("score")[row].is_none(), *normal);
        assert_eq!(maps.numbers("sum")[row].is_none(), *normal);
        assert!(maps.text("target")[row].is_some());
        if *normal {
            assert_eq!(status, "not_applicable: the image has no lesion-free twin");
        } else {
            assert_eq!(status, "ok");
            // Attribution can only stand where the twin differs.
            let zeros = maps.rows()[row].iter().filter(|value| **value == 0.0).count();
            assert!(zeros > 100, "{zeros}");
        }
    }
}

/// Every row says whether the model is right, whatever is explained; without labels nobody knows.
#[test]
fn rows_say_whether_the_model_is_right() {
    let study = Study::new();
    let base = params(Method::InputXGradient, Baseline::Zero);
    let correct = |maps: &Maps| -> Vec<(String, Option<bool>)> {
        let ids = maps.text("id").into_iter().flatten();
        ids.zip(maps.0.column_by_name("correct").unwrap().as_boolean().iter()).collect()
    };
    let all = correct(&study.maps(&base));
    let right: Vec<String> =
        all.iter().filter(|(_, correct)| *correct == Some(true)).map(|(id, _)| id.clone()).collect();
    let only = study.maps(&Params { only_correct: true, ..base.clone() });
    assert_eq!(only.text("id").into_iter().flatten().collect::<Vec<_>>(), right);
    assert!(!right.is_empty() && all.iter().filter(|(_, correct)| *correct == Some(false)).count() > 0);
    assert_eq!(correct(&study.maps(&Params { target: "true".to_owned(), ..base.clone() })), all);
    let random = Params { random_weights: true, ..base.clone() };
    assert_eq!(correct(&study.maps(&random)), all, "it is the model as it is that is right");
    let inputs = ["images", "checkpoint"].map(|name| (name, &study.artifacts[name]));
    let artifact =
        study.run(&Attribute, &base, &inputs, &Host::default()).unwrap().remove("saliency").unwrap();
    let unknown = Maps(read_file(&artifact.single_file().unwrap().location).unwrap());
    assert!(correct(&unknown).iter().all(|(_, correct)| correct.is_none()));
}

#[test]
fn the_layer_is_the_one_whose_values_are_explained() {
    let study = Study::new();
    let layer = |method| {
        let small = Params { limit: Some(1), ..params(method, Baseline::Zero) };
        study.maps(&small).0.schema().metadata()["layer"].clone()
    };
    let model = Model::load(&study.artifacts["checkpoint"], Compute::exact()).unwrap();
    let tower = model.image_tower().unwrap();
    assert_eq!(layer(Method::GradCam), tower.cam_hook().name);
    assert_eq!(layer(Method::LayerCam), tower.cam_hook().name);
    let hooks = tower.attention_hooks();
    let ends = format!("{} to {}", hooks[0].name, hooks[1].name);
    assert_eq!(layer(Method::AttentionRollout), ends);
    assert_eq!(layer(Method::Gradient), "input");
}

/// One channel at a time: what a map costs is known before the first, so progress ends where it should.
#[test]
fn progress_of_passes_per_channel_stays_below_its_total() {
    let study = Study::new();
    for method in [Method::ScoreCam, Method::AblationCam] {
        let host = Host::default();
        study.attribute(&Params { limit: Some(3), ..params(method, Baseline::Zero) }, &host).unwrap();
        let reports = host.reports.lock().unwrap();
        assert!(reports.iter().all(|(done, total)| done <= total), "{method:?}: {reports:?}");
        assert!(reports.is_sorted() && reports.last() == Some(&(3, 3)), "{method:?}: {reports:?}");
    }
}

#[test]
fn what_rise_hides_becomes_the_baseline() {
    let study = Study::new();
    let of = |baseline| {
        let small = Params { masks: 20, cells: 4, limit: Some(2), ..params(Method::Rise, baseline) };
        study.maps(&small)
    };
    let (zero, black) = (of(Baseline::Zero), of(Baseline::Black));
    assert_eq!(zero.0.schema().metadata()["baseline"], "zero");
    assert_eq!(black.0.schema().metadata()["baseline"], "black");
    assert_ne!(zero.rows(), black.rows());
}

#[test]
fn a_margin_is_the_difference_of_two_logits() {
    let study = Study::new();
    let base = Params { target: "true".to_owned(), ..params(Method::Occlusion, Baseline::Zero) };
    let (own, none) = (study.maps(&base), study.maps(&Params { target: "none".to_owned(), ..base.clone() }));
    let margin = study.maps(&Params { against: Some("none".to_owned()), ..base });
    assert_eq!(margin.0.schema().metadata()["against"], "none");
    let mut margins = 0;
    for (row, target) in own.text("target").iter().enumerate() {
        if target.as_deref() == Some("none") {
            let status = margin.text("status")[row].clone().unwrap();
            assert!(status.starts_with("not_applicable: the class is `none`"), "{status}");
            continue;
        }
        margins += 1;
        assert_eq!(margin.text("target_kind")[row].as_deref(), Some("margin"));
        let expected = own.numbers("score")[row].unwrap() - none.numbers("score")[row].unwrap();
        assert!((margin.numbers("score")[row].unwrap() - expected).abs() < 1e-5);
        // Occlusion is linear in the score.
        for ((margin, own), none) in margin.rows()[row].iter().zip(own.rows()[row]).zip(none.rows()[row]) {
            assert!((margin - (own - none)).abs() < 1e-4);
        }
    }
    assert!(margins > 0);
}

#[test]
fn equal_runs_give_equal_bytes_and_batches_change_nothing_but_rounding() {
    let study = Study::new();
    for method in [Method::Gradient, Method::InputXGradient, Method::IntegratedGradients, Method::Occlusion] {
        let base = Params { limit: Some(6), ..params(method, Baseline::Mean) };
        let bytes = || {
            let artifact = study.attribute(&base, &Host::default()).unwrap();
            std::fs::read(&artifact.single_file().unwrap().location).unwrap()
        };
        assert_eq!(bytes(), bytes(), "{method:?}");
        let (small, large) = (study.maps(&base), study.maps(&Params { batch: 64, ..base.clone() }));
        for (small, large) in small.rows().into_iter().zip(large.rows()) {
            let scale = large.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
            for (small, large) in small.iter().zip(large) {
                assert!((small - large).abs() <= 1e-5 * scale, "{method:?}: {small} {large}");
            }
        }
        if method == Method::Gradient {
            assert!(small.rows().iter().all(|row| row.iter().all(|value| *value >= 0.0)));
            assert_eq!(small.0.schema().metadata()["baseline"], "none");
        }
    }
}

#[test]
fn random_weights_explain_the_same_images_otherwise() {
    let study = Study::new();
    let chosen = Params {
        only_correct: true,
        target: "true".to_owned(),
        ..params(Method::InputXGradient, Baseline::Zero)
    };
    let own = study.maps(&chosen);
    let control = Params { random_weights: true, seed: 3, ..chosen.clone() };
    let random = study.maps(&control);
    assert_eq!(own.text("id"), random.text("id"), "the model as it is chooses the images");
    assert_eq!(own.text("target"), random.text("target"));
    assert_ne!(own.rows(), random.rows());
    assert_eq!(random.rows(), study.maps(&control).rows(), "a function of the seed");
    assert_ne!(random.rows(), study.maps(&Params { seed: 4, ..control }).rows());
    assert_eq!(random.0.schema().metadata()["random_weights"], "3");
}

#[test]
fn passes_are_logged_and_progress_reaches_the_end() {
    let study = Study::new();
    let host = Host::default();
    let occlusion = Params { limit: Some(7), ..params(Method::Occlusion, Baseline::Zero) };
    study.attribute(&occlusion, &host).unwrap();
    let lines = host.lines.lock().unwrap().join("\n");
    // Patches of 7 in 28 pixels: 16 windows and the image itself; two batches of five to predict 7 of.
    assert!(lines.contains("occlusion: 7 maps of 7 images, 119 forward and 0 backward passes"), "{lines}");
    assert!(lines.contains("10 more forward passes to select images"), "{lines}");
    let reports = host.reports.lock().unwrap();
    assert!(reports.is_sorted() && reports.last() == Some(&(7, 7)), "{reports:?}");
}

#[test]
fn a_stage_that_is_cancelled_stops_between_batches() {
    let study = Study::new();
    let host = Host { stop_after: Some(2), ..Host::default() };
    let result = study.attribute(&params(Method::IntegratedGradients, Baseline::Zero), &host);
    assert!(matches!(result, Err(StageError::Cancelled)));
    assert_eq!(host.reports.lock().unwrap().len(), 2);
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let study = Study::new();
    let base = params(Method::InputXGradient, Baseline::Zero);
    let with = |names: &[&str], params: &Params| {
        let inputs: Vec<(&str, &Artifact)> =
            names.iter().map(|name| (*name, &study.artifacts[*name])).collect();
        study.run(&Attribute, params, &inputs, &Host::default()).err().unwrap().to_string()
    };
    let least = ["images", "checkpoint"];
    let error = with(&least, &Params { only_correct: true, ..base.clone() });
    assert!(error.contains("only_correct") && error.contains("labels"), "{error}");
    let error = with(&least, &Params { baseline: Baseline::Twin, ..base.clone() });
    assert!(error.contains("twins"), "{error}");
    let error = with(&least, &Params { target: "fracture".to_owned(), ..base.clone() });
    assert!(error.contains("fracture") && error.contains("nodule"), "{error}");
    let problems = |params: &Params| StageKind::check(&Attribute, params);
    assert!(problems(&base).is_empty());
    assert_eq!(
        problems(&Params { against: Some("none".into()), target: "none".into(), ..base.clone() }).len(),
        1
    );
    assert_eq!(problems(&Params { window: Some(4), stride: Some(5), ..base }).len(), 1);
}

#[test]
fn the_report_shows_the_maps() {
    let study = Study::new();
    let maps = study.attribute(&params(Method::InputXGradient, Baseline::Twin), &Host::default()).unwrap();
    let inputs = [
        ("images", &study.artifacts["images"]),
        ("labels", &study.artifacts["labels"]),
        ("masks", &study.artifacts["masks"]),
        ("maps", &maps),
    ];
    let report = serde_json::from_str("{}").unwrap();
    let page = study.run(&Report, &report, &inputs, &Host::default()).unwrap().remove("page").unwrap();
    let page = std::fs::read_to_string(&page.file("index.html").unwrap().location).unwrap();
    assert!(page.contains("input_x_gradient"), "the method is named");
    assert!(page.contains("map of input_x_gradient for") && page.contains("overlay of input_x_gradient on"));
}
