//! Metrics that explain again, and what every row says of how it was made.

use super::*;

/// Metrics that explain again.
fn again() -> Vec<Metric> {
    Metric::ALL.iter().copied().filter(|metric| metric.needs() == Needs::Method).collect()
}

#[test]
fn every_metric_has_a_value_of_maps_that_can_be_made_again() {
    let study = Study::new()
        .with_checkpoint()
        .with_explained(serde_json::json!({ "method": "input_x_gradient" }))
        .with_explained(serde_json::json!({ "method": "gradient" }))
        .with_explained(serde_json::json!({ "method": "occlusion" }));
    let params = Params { preset: Preset::All, steps: 8, patch: Some(4), draws: 3, ..Params::default() };
    let scores = study.run(&params);
    for metric in Metric::ALL {
        let (value, reason) = scores.row("a", "input_x_gradient", metric.name());
        match metric {
            // The masks are rectangles, and of three images none may have a like map.
            Metric::Focus => assert!(reason.unwrap().contains("mosaic")),
            Metric::Consistency | Metric::Sufficiency => assert!(value.is_some() || reason.is_some()),
            _ => assert!(value.is_some(), "{}: {reason:?}", metric.name()),
        }
    }
    // A gradient does not know where zero is; its product with the input does.
    assert_eq!(scores.value("a", "gradient", "input_invariance"), 1.0);
    assert_eq!(scores.value("a", "input_x_gradient", "input_invariance"), 0.0);
    let (value, reason) = scores.row("a", "gradient", "completeness");
    assert!(value.is_none() && reason.unwrap().contains("compares the image with nothing"));
    let (value, reason) = scores.row("a", "occlusion", "completeness");
    assert!(value.is_none() && reason.unwrap().contains("the value of the whole"));
    for metric in ["max_sensitivity", "parameter_randomisation", "random_logit"] {
        assert!(
            scores.row("a", "random", metric).1.unwrap().contains("a control explains nothing"),
            "{metric}"
        );
    }
    let (most, mean) =
        (scores.value("b", "gradient", "max_sensitivity"), scores.value("b", "gradient", "avg_sensitivity"));
    assert!(most >= mean && mean > 0.0);
    for metric in
        ["parameter_randomisation", "smooth_parameter_randomisation", "random_logit", "entropy_correlation"]
    {
        assert!(scores.value("b", "gradient", metric).abs() <= 1.0, "{metric}");
    }
    assert!(scores.value("b", "gradient", "parameter_randomisation") < 0.99);
    // Neither batches nor a second run matter.
    let one_by_one = study.run(&Params { batch: 1, ..params });
    for metric in Metric::ALL {
        for method in ["gradient", "random"] {
            let (first, second) =
                (scores.row("b", method, metric.name()), one_by_one.row("b", method, metric.name()));
            match (first.0, second.0) {
                (Some(first), Some(second)) => {
                    let size = 1.0 + first.abs();
                    assert!((first - second).abs() < 2e-2 * size, "{}: {first} {second}", metric.name());
                }
                (first, second) => assert_eq!(first, second, "{}", metric.name()),
            }
        }
    }
}

#[test]
fn rows_say_how_they_were_made() {
    let study = Study::new().with_checkpoint().with_maps("noise", &maps_of(&noise(3)));
    let metrics = vec![Metric::PixelFlipping, Metric::RoadGap, Metric::Insertion, Metric::Sparseness];
    let facts = |scores: &Scores, metric: &str, column: &str| {
        let row = scores.table.strings("metric").unwrap().iter().position(|name| *name == metric).unwrap();
        scores.table.utf8(column).unwrap()[row].clone()
    };
    let params = Params { metrics, steps: 4, seed: 7, ..Params::default() };
    let scores = study.run(&params);
    assert_eq!(facts(&scores, "pixel_flipping", "score").unwrap(), "logit");
    assert_eq!(facts(&scores, "pixel_flipping", "better").unwrap(), "lower");
    assert_eq!(facts(&scores, "pixel_flipping", "parameters").unwrap(), r#"{"steps":4}"#);
    assert_eq!(facts(&scores, "pixel_flipping", "baseline").unwrap(), "zero");
    assert_eq!(facts(&scores, "road_gap", "score").unwrap(), "probability");
    assert_eq!(facts(&scores, "road_gap", "baseline").unwrap(), "neighbours");
    assert_eq!(
        facts(&scores, "road_gap", "parameters").unwrap(),
        r#"{"noise":0.01,"percentages":[10.0,20.0,30.0,40.0,50.0,60.0,70.0,80.0,90.0],"seed":7}"#
    );
    assert_eq!(facts(&scores, "sparseness", "better").unwrap(), "none");
    assert_eq!(facts(&scores, "sparseness", "score"), None);
    let scores = study.run(&Params { score: Some(ScoreSpace::Probability), ..params });
    assert_eq!(facts(&scores, "pixel_flipping", "score").unwrap(), "probability");
}

/// Defaults are said like what was given.
#[test]
fn rows_say_the_parameters_in_effect() {
    let study = Study::new()
        .with_checkpoint()
        .with_explained(serde_json::json!({ "method": "gradient" }))
        .with_explained(serde_json::json!({ "method": "input_x_gradient" }));
    let metrics = vec![
        Metric::PointingGameTolerant,
        Metric::Infidelity,
        Metric::ParameterRandomisation,
        Metric::MaxSensitivity,
        Metric::Deletion,
    ];
    let params = Params { metrics, steps: 60, draws: 2, ..Params::default() };
    let of = |params: &Params, method: &str, metric: &str| -> serde_json::Value {
        let scores = study.run(params);
        let (names, methods) =
            (scores.table.strings("metric").unwrap(), scores.table.strings("method").unwrap());
        let row = (0..names.len()).find(|row| names[*row] == metric && methods[*row] == method).unwrap();
        serde_json::from_str(scores.table.utf8("parameters").unwrap()[row].as_ref().unwrap()).unwrap()
    };
    let reference = |method: &str, metric: &str| of(&params, method, metric);
    assert_eq!(reference("gradient", "pointing_game_tolerant")["tolerance"], 15.0 * 8.0 / 224.0);
    assert_eq!(reference("gradient", "parameter_randomisation")["layer_order"], "bottom_up");
    // Of 64 pixels two change at each of 32 steps.
    assert_eq!(reference("gradient", "deletion")["steps"], 32);
    assert_eq!(
        reference("gradient", "max_sensitivity")["noise"],
        serde_json::json!({ "uniform": [-0.1, 0.1] })
    );
    // A gradient says what a change costs per unit, its product with the input what the pixel does.
    assert_eq!(reference("gradient", "infidelity")["prediction"], "local");
    assert_eq!(reference("input_x_gradient", "infidelity")["prediction"], "global");
    assert_eq!(reference("random", "infidelity")["prediction"], "global");
    let metrics = vec![Metric::ParameterRandomisation, Metric::MaxSensitivity];
    let quantus = Params { metrics, mode: Mode::Quantus, draws: 2, ..Params::default() };
    assert_eq!(of(&quantus, "gradient", "parameter_randomisation")["layer_order"], "top_down");
    assert_eq!(
        of(&quantus, "gradient", "max_sensitivity")["noise"],
        serde_json::json!({ "uniform": [-0.2, 0.2] })
    );
}

#[test]
fn quantus_mode_has_a_value_or_says_what_fails() {
    let study =
        Study::new().with_checkpoint().with_explained(serde_json::json!({ "method": "input_x_gradient" }));
    let mode = Mode::Quantus;
    let params =
        Params { preset: Preset::All, steps: 8, patch: Some(4), draws: 3, mode, ..Params::default() };
    let scores = study.run(&params);
    for metric in Metric::ALL.iter().filter(|metric| metric.is_in_quantus()) {
        let (value, reason) = scores.row("a", "input_x_gradient", metric.name());
        match metric {
            Metric::Focus => assert!(reason.unwrap().contains("mosaic")),
            Metric::PointingGameWeighted
            | Metric::FaithfulnessCorrelation
            | Metric::SensitivityN
            | Metric::Irof
            | Metric::Road
            | Metric::InputInvariance => {
                assert!(value.is_none() && reason.unwrap().starts_with("Quantus 0.6.0"), "{}", metric.name());
            }
            Metric::RelativeInputStability
            | Metric::RelativeOutputStability
            | Metric::RelativeRepresentationStability
                if value.is_none() =>
            {
                assert!(reason.unwrap().contains("another class"), "{}", metric.name());
            }
            _ => assert!(value.is_some(), "{}: {reason:?}", metric.name()),
        }
    }
}

/// What Quantus takes where nothing is said: the least value of the image, and uniform draws.
#[test]
fn quantus_removes_to_black_unless_told_otherwise() {
    let study = Study::new().with_checkpoint().with_maps("noise", &maps_of(&noise(3)));
    let metrics = vec![Metric::PixelFlipping, Metric::MonotonicityCorrelation];
    let params = Params { metrics, steps: 4, draws: 2, mode: Mode::Quantus, ..Params::default() };
    let baselines = |params: &Params| {
        let scores = study.run(params);
        ["pixel_flipping", "monotonicity_correlation"].map(|metric| {
            let names = scores.table.strings("metric").unwrap();
            let row = names.iter().position(|name| *name == metric).unwrap();
            scores.table.utf8("baseline").unwrap()[row].clone().unwrap()
        })
    };
    assert_eq!(baselines(&params), ["black", "uniform"]);
    assert_eq!(baselines(&Params { baseline: Some(Baseline::Zero), ..params }), ["zero", "uniform"]);
}

/// Of draws that change the predicted class none counts, and each row says how many did.
#[test]
fn rows_of_robustness_say_how_many_draws_count() {
    let study = Study::new().with_checkpoint().with_explained(serde_json::json!({ "method": "gradient" }));
    let metrics = vec![
        Metric::MaxSensitivity,
        Metric::AvgSensitivity,
        Metric::RelativeInputStability,
        Metric::RandomLogit,
    ];
    // Noise beyond the range of the image changes what is seen.
    let params = Params { metrics, draws: 8, noise: 5.0, ..Params::default() };
    let kept = |params: &Params, metric: &str| -> Vec<Option<f64>> {
        let scores = study.run(params);
        let names = ["metric", "method"].map(|name| scores.table.as_text(name).unwrap());
        let kept = scores.table.float64("kept_share").unwrap();
        let own = |row: &usize| {
            names[0][*row].as_deref() == Some(metric) && names[1][*row].as_deref() == Some("gradient")
        };
        (0..scores.table.rows()).filter(own).map(|row| kept[row]).collect()
    };
    let shares = kept(&params, "max_sensitivity");
    assert_eq!(shares, kept(&params, "avg_sensitivity"));
    assert!(shares.iter().any(|share| share.unwrap() < 1.0), "{shares:?}");
    assert!(shares.iter().all(|share| (share.unwrap() * 8.0).fract() == 0.0), "{shares:?}");
    assert!(kept(&params, "random_logit").iter().all(Option::is_none));
    let quantus = Params { mode: Mode::Quantus, ..params };
    // Quantus minds changed predictions of relative stabilities alone.
    assert!(kept(&quantus, "max_sensitivity").iter().all(Option::is_none));
    assert!(kept(&quantus, "relative_input_stability").iter().all(Option::is_some));
}

/// The same values are a better prediction of costs as what they are: a gradient times the change.
#[test]
fn infidelity_takes_a_gradient_as_a_gradient() {
    let map: Vec<f32> = noise(3).iter().map(|value| value.abs()).collect();
    let study = Study::new()
        .with_checkpoint()
        .with_maps("gradient", &maps_of(&map))
        .with_maps("occlusion", &maps_of(&map));
    let params = Params { metrics: vec![Metric::Infidelity], patch: Some(4), ..Params::default() };
    let scores = study.run(&params);
    let [local, global] = ["gradient", "occlusion"].map(|method| scores.value("a", method, "infidelity"));
    assert!((local - global).abs() > 1e-9, "{local} {global}");
}

/// The mean over layers has its parts beside it.
#[test]
fn every_layer_of_parameter_randomisation_has_its_row() {
    let study = Study::new().with_checkpoint().with_explained(serde_json::json!({ "method": "gradient" }));
    for order in [LayerOrder::BottomUp, LayerOrder::TopDown, LayerOrder::Independent] {
        let metrics = vec![Metric::ParameterRandomisation, Metric::SmoothParameterRandomisation];
        let params = Params { metrics, draws: 2, layer_order: Some(order), ..Params::default() };
        let scores = study.run(&params);
        let steps = scores.table.int64("step").unwrap();
        let (ids, names) = (scores.table.strings("id").unwrap(), scores.table.strings("metric").unwrap());
        let values = scores.table.float64("value").unwrap();
        for metric in ["parameter_randomisation", "smooth_parameter_randomisation"] {
            let own: Vec<(i64, f64)> = (0..ids.len())
                .filter(|row| ids[*row] == "b" && names[*row] == format!("{metric}_step"))
                .map(|row| (steps[row].unwrap(), values[row].unwrap()))
                .collect();
            // Embeddings, one block, and the last norm with the head.
            assert_eq!(own.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3]);
            let mean = own.iter().map(|(_, value)| value).sum::<f64>() / 3.0;
            assert!((scores.value("b", "gradient", metric) - mean).abs() < 1e-12);
        }
        let plain = (0..ids.len()).filter(|row| !names[*row].ends_with("_step"));
        assert!(plain.into_iter().all(|row| steps[row].is_none()));
        let facts: serde_json::Value = serde_json::from_str(&scores.table.metadata["metrics"]).unwrap();
        assert_eq!(facts["parameter_randomisation_step"]["direction"], "lower");
    }
}

#[test]
fn maps_are_compared_by_what_is_asked_for() {
    let study = Study::new().with_checkpoint().with_explained(serde_json::json!({ "method": "gradient" }));
    let names = ["spearman", "pearson", "kendall", "cosine", "ssim"];
    let of = |name: &str| -> [f64; 2] {
        let likeness = serde_json::from_value(name.into()).unwrap();
        let metrics = vec![Metric::ParameterRandomisation, Metric::RandomLogit];
        let scores = study.run(&Params { metrics, likeness, ..Params::default() });
        let parameters = scores.table.strings("parameters").unwrap();
        assert!(parameters.iter().all(|text| text.contains(&format!(r#""likeness":"{name}""#))));
        ["parameter_randomisation", "random_logit"].map(|metric| scores.value("a", "gradient", metric))
    };
    let all = names.map(of);
    assert!(all.iter().flatten().all(|value| (-1.0..=1.0).contains(value)), "{all:?}");
    for (place, values) in all.iter().enumerate() {
        assert!(all[..place].iter().all(|other| other[0] != values[0]), "{all:?}");
    }
    let plain = study.run(&Params { metrics: vec![Metric::RandomLogit], ..Params::default() });
    assert_eq!(plain.value("a", "gradient", "random_logit"), all[0][1]);
}

#[test]
fn gaps_are_differences_of_what_they_compare() {
    let study = Study::new().with_checkpoint().with_maps("noise", &maps_of(&noise(3)));
    let params = Params { preset: Preset::All, steps: 4, patch: Some(2), ..Params::default() };
    let scores = study.run(&params);
    let value = |metric| scores.value("a", "noise", metric);
    for (gap, more, less) in [
        ("pixel_flipping_gap", "pixel_flipping_least_first", "pixel_flipping"),
        ("region_perturbation_gap", "region_perturbation", "region_perturbation_least_first"),
        ("road_gap", "road_least_first", "road"),
    ] {
        assert!((value(gap) - (value(more) - value(less))).abs() < 1e-9, "{gap}");
    }
    let ninths = 9.0 * value("road_agreement_gap");
    assert!((ninths - ninths.round()).abs() < 1e-9 && ninths.abs() <= 9.0, "{ninths}");
    // Deletion is pixel flipping by the probability.
    let by_probability = study.run(&Params { score: Some(ScoreSpace::Probability), ..params });
    assert_eq!(by_probability.value("a", "noise", "pixel_flipping"), value("deletion"));
}

#[test]
fn maps_that_cannot_be_made_again_say_why() {
    let study = Study::new().with_checkpoint().with_explained(serde_json::json!({ "method": "gradient" }));
    // The parameters of one method beside the map of another.
    let params = serde_json::json!({ "method": "gradient" }).to_string();
    let map = noise(3);
    let unknown = serde_json::json!({ "method": "tea leaves" }).to_string();
    let random = serde_json::json!({ "method": "gradient", "random_weights": true }).to_string();
    let study = study
        .with_maps("plain", &maps_of(&map))
        .with_maps_of("forged", &[], &[("params", &params)], &maps_of(&map))
        .with_maps_of("unknown", &[], &[("params", &unknown)], &maps_of(&map))
        .with_maps_of("weights", &[], &[("params", &random)], &maps_of(&map));
    let params = Params { metrics: again(), draws: 1, ..Params::default() };
    let scores = study.run(&params);
    for (method, reason) in [
        ("plain", "does not say by which parameters"),
        ("forged", "gives another map"),
        ("unknown", "not known here"),
        ("weights", "random weights"),
    ] {
        for metric in ["max_sensitivity", "parameter_randomisation", "completeness"] {
            let (value, ours) = scores.row("a", method, metric);
            assert!(
                value.is_none() && ours.as_ref().unwrap().contains(reason),
                "{method} {metric}: {ours:?}"
            );
        }
    }
    assert!(scores.row("a", "gradient", "max_sensitivity").0.is_some());
}

#[test]
fn costly_metrics_are_of_a_random_subset() {
    let study = Study::new().with_checkpoint().with_explained(serde_json::json!({ "method": "gradient" }));
    let params = Params {
        metrics: vec![Metric::AvgSensitivity, Metric::Deletion],
        explain_limit: Some(1),
        draws: 1,
        steps: 4,
        ..Params::default()
    };
    let chosen = |seed| {
        let scores = study.run(&Params { seed, ..params.clone() });
        let explained: Vec<&str> = ["a", "b", "c"]
            .into_iter()
            .filter(|id| scores.row(id, "gradient", "avg_sensitivity").0.is_some())
            .collect();
        assert!(["a", "b", "c"].iter().all(|id| scores.row(id, "gradient", "deletion").0.is_some()));
        let other = ["a", "b", "c"].into_iter().find(|id| !explained.contains(id)).unwrap();
        let reason = scores.row(other, "gradient", "avg_sensitivity").1.unwrap();
        assert!(reason.contains("a random subset of 1 images"), "{reason}");
        assert_eq!(explained.len(), 1);
        explained[0]
    };
    let by_seed: std::collections::BTreeSet<&str> = (0..12).map(chosen).collect();
    assert_eq!(by_seed.len(), 3);
    let row_wise = |params: &Params| StageKind::is_row_wise(&Score, params, &|_| true);
    assert!(row_wise(&Params::default()) && !row_wise(&params));
    assert!(!row_wise(&Params { preset: Preset::Thesis, ..Params::default() }));
    assert!(!row_wise(&Params { metrics: vec![Metric::Consistency], ..Params::default() }));
}

#[test]
fn quantus_mode_refuses_what_quantus_cannot_compute() {
    let study =
        Study::new().with_checkpoint().with_explained(serde_json::json!({ "method": "input_x_gradient" }));
    let params = Params {
        preset: Preset::All,
        mode: Mode::Quantus,
        steps: 8,
        patch: Some(4),
        draws: 2,
        ..Params::default()
    };
    let scores = study.run(&params);
    // The images have fewer features than a subset of the faithfulness correlation.
    for metric in [
        "irof",
        "road",
        "sensitivity_n",
        "faithfulness_correlation",
        "pointing_game_weighted",
        "input_invariance",
    ] {
        let (value, reason) = scores.row("a", "input_x_gradient", metric);
        assert!(
            value.is_none() && reason.as_ref().unwrap().contains("Quantus 0.6.0"),
            "{metric}: {reason:?}"
        );
    }
    for metric in [
        "pixel_flipping",
        "region_perturbation",
        "selectivity",
        "faithfulness_estimate",
        "infidelity",
        "monotonicity",
        "monotonicity_correlation",
        "non_sensitivity",
        "completeness",
        "max_sensitivity",
        "local_lipschitz_estimate",
        "continuity",
        "parameter_randomisation",
        "smooth_parameter_randomisation",
        "efficient_parameter_randomisation",
        "random_logit",
    ] {
        scores.value("a", "input_x_gradient", metric);
    }
    assert_eq!(scores.value("b", "input_x_gradient", "monotonicity"), 1.0);
    assert_eq!(scores.value("b", "input_x_gradient", "completeness"), 0.0);
    assert!(!scores.distinct("metric").contains(&"compactness".to_owned()));
    // Infidelity takes patches that divide the image.
    let odd = study.run(&Params { metrics: vec![Metric::Infidelity], patch: Some(3), ..params });
    assert!(odd.row("a", "random", "infidelity").1.unwrap().contains("divide"));
}

#[test]
fn a_mosaic_has_its_focus() {
    let mut study = Study::new();
    study.inputs.remove("masks");
    let quarter = |pixel: usize| pixel / SIDE < SIDE / 2 && pixel % SIDE >= SIDE / 2;
    let mask = GrayImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
        Luma([u8::from(quarter(y as usize * SIDE + x as usize)) * 255])
    });
    let table = Table::new()
        .with("image_id", Column::texts(["a"]))
        .with("split", Column::texts(["test"]))
        .with("region", Column::texts(["quarter"]))
        .with("mask", Column::Image(vec![Some((png(&mask.into()), "mosaic.png".to_owned()))]))
        .with("pixels", Column::Int64(vec![Some(16)]));
    std::fs::remove_dir_all(study.folder.path().join("masks")).unwrap();
    study.table("masks", &TableSchema::masks(), &table);
    let half: Vec<f32> = (0..PIXELS).map(|pixel| f32::from(u8::from(pixel / SIDE < SIDE / 2))).collect();
    let scores = study
        .with_maps("half", &maps_of(&half))
        .run(&Params { metrics: vec![Metric::Focus], ..Params::default() });
    assert_eq!(scores.value("a", "half", "focus"), 0.5);
    assert_eq!(scores.row("b", "half", "focus").1.unwrap(), "the image has no mask");
}
