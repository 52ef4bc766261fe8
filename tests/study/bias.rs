//! What the models rely on: a planted shortcut, planted label noise, and a planted gap between devices.

use std::collections::BTreeMap;

use crate::figures::paired;
use crate::published;

/// Share of right answers of a model that was trained where a marker follows the label.
fn accuracy(model: &str, training: &str, test: &str) -> f64 {
    published("shortcut_found/predictions", &[("model", model), ("training", training), ("test", test)])
        .share_correct()
}

/// With the correlation of training, with none, and with the contrary one: the model *is* the marker.
#[test]
fn a_general_model_falls_for_the_marker_entirely() {
    for (test, marker_only) in [("same", 0.95), ("none", 0.5), ("reversed", 0.05)] {
        let accuracy = accuracy("general", "faint", test);
        assert!((accuracy - marker_only).abs() <= 0.06, "{test}: accuracy {accuracy}, not {marker_only}");
    }
}

#[test]
fn medical_training_protects_in_part() {
    let (medical, general) = (accuracy("medical", "plain", "none"), accuracy("general", "plain", "none"));
    assert!(medical - general >= 0.08, "accuracy {medical} against {general} where the marker says nothing");
}

/// Mean rise of the probability of `abnormal` by the marker, over images that differ in nothing else.
fn rise_by_the_marker(training: &str) -> f64 {
    let axes = [("model", "general"), ("training", training)];
    let probabilities = |table: &crate::table::Table| -> BTreeMap<String, f64> {
        let ids = table.texts("id").into_iter().flatten();
        ids.zip(table.lists("scores").into_iter().map(|scores| scores[1])).collect()
    };
    let twins = probabilities(&published("shortcut_twins/predictions", &axes));
    let originals =
        probabilities(&published("shortcut_found/predictions", &[axes[0], axes[1], ("test", "none")]));
    let images = published("shortcut_test/images", &[("training", training), ("test", "none")]);
    let mut rises = Vec::new();
    for (id, marked) in images.texts("image_id").into_iter().zip(images.truths("truth_marker")) {
        let id = id.expect("an id");
        let (own, twin) = (originals[&id], twins[&format!("{id}/marker-twin")]);
        rises.push(if marked == Some(true) { own - twin } else { twin - own });
    }
    assert_eq!(rises.len(), 400);
    paired(&rises).0
}

#[test]
fn the_marker_alone_raises_the_probability() {
    let rise = rise_by_the_marker("faint");
    assert!(rise >= 0.4, "the marker raises P(abnormal) by {rise}");
    let rise = rise_by_the_marker("fair");
    assert!(rise.abs() < 0.06, "trained where the marker is a fair coin, it moves P(abnormal) by {rise}");
}

/// Accuracy on noisy labels follows from that on clean ones.
#[test]
fn noisy_labels_hide_what_a_model_knows() {
    let predictions = published("noisy_classified/predictions", &[]);
    let labels = published("noisy/labels", &[]);
    let truths: BTreeMap<String, f64> = labels
        .texts("image_id")
        .into_iter()
        .flatten()
        .zip(labels.numbers("truth_label").into_iter().map(|label| label.expect("a label")))
        .collect();
    let (ids, answers) = (predictions.texts("id"), predictions.lists("prediction"));
    let right = ids.iter().flatten().zip(&answers).filter(|(id, answer)| truths[*id] == answer[0]).count();
    let (clean, noisy) = (right as f64 / ids.len() as f64, predictions.share_correct());
    let eta = 0.2;
    let expected = clean * (1.0 - 2.0 * eta) + eta;
    assert!(
        (noisy - expected).abs() <= 0.04,
        "accuracy {noisy} on noisy labels, {expected} expected from {clean}"
    );
}

/// The same patients, drawn on either device.
#[test]
fn the_weaker_device_costs_accuracy() {
    let correct = |table: &crate::table::Table| -> BTreeMap<String, f64> {
        let ids = table.texts("id").into_iter().flatten();
        ids.zip(table.truths("correct").into_iter().map(|right| f64::from(u8::from(right == Some(true)))))
            .collect()
    };
    let originals = correct(&published("classified/predictions", &[("model", "medical"), ("mode", "full")]));
    let twins = correct(&published("twins_classified/predictions", &[]));
    let images = published("chest/images", &[]);
    let mut differences = Vec::new();
    for (id, device) in images.texts("image_id").into_iter().zip(images.texts("truth_device")) {
        let id = id.expect("an id");
        let (Some(own), Some(twin)) = (originals.get(&id), twins.get(&format!("{id}/device-twin"))) else {
            continue;
        };
        differences.push(if device.as_deref() == Some("A") { own - twin } else { twin - own });
    }
    assert_eq!(differences.len(), 500, "every test image has its twin");
    let (mean, error) = paired(&differences);
    assert!(mean >= 0.03, "accuracy on device A is {mean} above that on B");
    assert!(mean - 1.96 * error > 0.0, "difference {mean}, standard error {error}");
}
