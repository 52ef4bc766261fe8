//! Maps that explain by how much one class leads over another.

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;

use super::*;

/// Scores of the first image: the map's own, and that of the image without anything.
fn ends(study: &Study) -> [f64; 2] {
    let file = study.inputs["saliency"][0].artifact.single_file().unwrap().location.clone();
    let batch = crate::ipc::read_file(&file).unwrap();
    ["score", "score_baseline"]
        .map(|name| f64::from(batch.column_by_name(name).unwrap().as_primitive::<Float32Type>().value(0)))
}

#[test]
fn a_margin_is_followed_where_it_is_explained() {
    let explained = |against: Option<&str>| {
        let params = serde_json::json!({
            "method": "integrated_gradients", "steps": 2, "target": "nodule", "against": against,
        });
        Study::new().with_checkpoint().with_explained(params)
    };
    // The only patch is the whole image: the mean fall over both points of the curve is half of the way.
    let metrics = vec![Metric::RegionPerturbation, Metric::Deletion];
    let params = Params { metrics, patch: Some(SIDE as i64), steps: 1, ..Params::default() };
    let mut falls = Vec::new();
    for (against, name) in [(None, "logit"), (Some("none"), "margin")] {
        let study = explained(against);
        let [score, baseline] = ends(&study);
        let scores = study.run(&params);
        for method in ["integrated_gradients", "random"] {
            let fall = scores.value("a", method, "region_perturbation");
            assert!((fall - (score - baseline) / 2.0).abs() < 1e-4, "{name} {method}: {fall}");
            falls.push(fall);
        }
        assert_eq!(scores.distinct("score"), [name, "probability"]);
    }
    assert!((falls[0] - falls[2]).abs() > 1e-3, "{falls:?}");
}

#[test]
fn a_class_has_no_margin_over_itself() {
    let study = |against| {
        let map = noise(1);
        Study::new().with_checkpoint().with_maps_of("ig", &[], &[("against", against)], &maps_of(&map))
    };
    let metrics = vec![Metric::RegionPerturbation, Metric::Deletion];
    let params = Params { metrics, steps: 2, ..Params::default() };
    // These maps are of nodules.
    let scores = study("nodule").run(&params);
    let (value, reason) = scores.row("a", "ig", "region_perturbation");
    assert!(value.is_none() && reason.unwrap().contains("is subtracted"));
    assert!(scores.row("a", "ig", "deletion").0.is_some(), "the probability of a class is its own");
    assert!(study("none").run(&params).row("a", "ig", "region_perturbation").0.is_some());
    assert!(study("gout").error(&params).contains("`gout`"));
}
