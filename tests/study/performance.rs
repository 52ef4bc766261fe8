//! What the models can do: zero-shot, with a head, fine-tuned, and in retrieval.

use crate::published;

#[test]
fn the_medical_model_classifies_without_training() {
    let metrics = published("zero_shot/metrics", &[("model", "medical")]);
    let (auroc, accuracy) = (metrics.figure("auroc"), metrics.figure("accuracy"));
    assert!(auroc >= 0.85, "macro AUROC {auroc}");
    assert!(accuracy >= 0.55, "accuracy {accuracy}");
}

/// It never saw the words.
#[test]
fn the_general_model_cannot() {
    let auroc = published("zero_shot/metrics", &[("model", "general")]).figure("auroc");
    assert!((0.35..=0.65).contains(&auroc), "macro AUROC {auroc}");
}

#[test]
fn medical_features_serve_a_linear_probe_better() {
    let auroc = |model| {
        published("classified/metrics", &[("model", model), ("mode", "linear_probe")]).figure("auroc")
    };
    let (medical, general) = (auroc("medical"), auroc("general"));
    assert!(medical - general >= 0.08, "AUROC {medical} against {general}");
}

#[test]
fn fine_tuning_does_not_close_the_gap() {
    let accuracy =
        |model| published("classified/metrics", &[("model", model), ("mode", "full")]).figure("accuracy");
    let (medical, general, random) = (accuracy("medical"), accuracy("general"), accuracy("random"));
    assert!(medical - general >= 0.08, "accuracy {medical} against {general}");
    assert!(medical - random >= 0.08, "accuracy {medical} against {random} from random weights");
}

/// A double dissociation: each model finds the pairs of its own domain, and is at chance in the other.
#[test]
fn each_model_retrieves_in_its_own_domain_only() {
    let recall = |model, domain, direction: &str| {
        let ranks = published("retrieved/ranks", &[("model", model), ("domain", domain)]);
        let (directions, ranks) = (ranks.texts("direction"), ranks.numbers("rank"));
        let own: Vec<f64> = (0..ranks.len())
            .filter(|row| directions[*row].as_deref() == Some(direction))
            .map(|row| ranks[row].expect("a rank"))
            .collect();
        assert_eq!(own.len(), 1000, "{model} on {domain}, {direction}: the pool");
        own.iter().filter(|rank| **rank < 10.0).count() as f64 / own.len() as f64
    };
    for direction in ["image_to_text", "text_to_image"] {
        let own = recall("medical", "medical", direction);
        assert!(own >= 0.14, "medical model on medical pairs, {direction}: recall@10 {own}");
        let own = recall("general", "general", direction);
        assert!(own >= 0.55, "general model on general pairs, {direction}: recall@10 {own}");
        for (model, domain) in [("medical", "general"), ("general", "medical")] {
            let other = recall(model, domain, direction);
            assert!(other <= 0.03, "{model} model on {domain} pairs, {direction}: recall@10 {other}");
        }
    }
}

/// What `metric` of a retrieval is, one value per direction.
fn recalls(stage: &str, axes: &[(&str, &str)]) -> Vec<f64> {
    let metrics = published(stage, axes);
    let (names, values) = (metrics.texts("metric"), metrics.numbers("value"));
    let wanted = (0..names.len()).filter(|row| names[*row].as_deref() == Some("recall@10"));
    wanted.map(|row| values[row].expect("a value")).collect()
}

/// A few medical pairs teach the general model something, the medical model keeps what it knows, and stays
/// far ahead.
#[test]
fn fine_tuning_for_retrieval_helps_the_general_model_most() {
    let before = |model| recalls("retrieved/metrics", &[("model", model), ("domain", "medical")]);
    let after =
        |model, objective| recalls("tuned_retrieved/metrics", &[("model", model), ("objective", objective)]);
    for objective in ["info_nce", "max_hinge"] {
        let general = before("general").into_iter().zip(after("general", objective));
        let medical = before("medical").into_iter().zip(after("medical", objective));
        let mut directions = 0;
        for ((before_general, general), (before_medical, medical)) in general.zip(medical) {
            assert!(general >= 1.5 * before_general, "{objective}: {before_general} to {general}");
            assert!(medical >= 0.85 * before_medical, "{objective}: {before_medical} to {medical}");
            assert!(medical >= 2.0 * general, "{objective}: general {general}, medical {medical}");
            directions += 1;
        }
        assert_eq!(directions, 2, "image to text and text to image");
    }
}

/// Captions are ambiguous by design, so even an ideal model misses: nothing may be better than that.
#[test]
fn no_recall_is_above_its_ceiling() {
    for domain in ["general", "medical"] {
        let expected = published("pairs/expected", &[("domain", domain)]);
        let (quantities, values) = (expected.texts("quantity"), expected.numbers("value"));
        let metrics = published("retrieved/metrics", &[("model", domain), ("domain", domain)]);
        let (names, directions) = (metrics.texts("metric"), metrics.texts("method"));
        let (figures, counts) = (metrics.numbers("value"), metrics.numbers("n"));
        let mut compared = 0;
        for row in 0..names.len() {
            let (Some(name), Some(direction), Some(value)) = (&names[row], &directions[row], figures[row])
            else {
                continue;
            };
            let quantity = format!("{direction} {name}");
            let ceiling = quantities.iter().position(|own| own.as_deref() == Some(&quantity));
            let Some(ceiling) = ceiling.and_then(|place| values[place]) else { continue };
            let error = (ceiling * (1.0 - ceiling) / counts[row].expect("n")).sqrt();
            assert!(value <= ceiling + 3.0 * error, "{domain}, {quantity}: {value} above {ceiling}");
            compared += 1;
        }
        assert_eq!(compared, 6, "{domain}: recall@1, 5 and 10 both ways have a ceiling");
    }
}
