//! Answers to questions whose language prior is planted: what the question alone gives is known in closed form.

use std::collections::BTreeMap;

use crate::published;
use crate::table::Table;

/// Whether each question was answered right, by its id.
fn right(stage: &str, axes: &[(&str, &str)]) -> BTreeMap<String, bool> {
    let predictions = published(&format!("{stage}/predictions"), axes);
    let ids = predictions.texts("id").into_iter().flatten();
    ids.zip(predictions.truths("correct").into_iter().flatten()).collect()
}

fn of(modality: &'static str) -> BTreeMap<String, bool> {
    right("answered", &[("model", "medical"), ("modality", modality)])
}

/// The ids of the tested questions whose column has this value (all without one).
fn tested(questions: &str, wanted: Option<(&str, &str)>) -> Vec<String> {
    let table = published(questions, &[]);
    let ids = table.numbers("qid").into_iter().flatten().map(|id| format!("{id:.0}"));
    let splits = table.texts("split");
    let values = wanted.map(|(column, value)| (texts_or_truths(&table, column), value));
    ids.enumerate()
        .filter(|(row, _)| splits[*row].as_deref() == Some("test"))
        .filter(|(row, _)| values.as_ref().is_none_or(|(values, value)| values[*row] == *value))
        .map(|(_, id)| id)
        .collect()
}

fn texts_or_truths(table: &Table, column: &str) -> Vec<String> {
    if column == "truth_leaky" {
        return table.truths(column).into_iter().map(|truth| (truth == Some(true)).to_string()).collect();
    }
    table.texts(column).into_iter().map(Option::unwrap_or_default).collect()
}

fn share(right: &BTreeMap<String, bool>, ids: &[String]) -> f64 {
    assert!(!ids.is_empty());
    ids.iter().filter(|id| right[*id]).count() as f64 / ids.len() as f64
}

/// What the planted truths imply, by the subset of the tested questions.
fn expected(stage: &str, quantity: &str) -> BTreeMap<String, f64> {
    let table = published(stage, &[]);
    let (quantities, splits, subsets) =
        (table.texts("quantity"), table.texts("split"), table.texts("subset"));
    let values = table.numbers("value");
    (0..values.len())
        .filter(|row| {
            quantities[*row].as_deref() == Some(quantity) && splits[*row].as_deref() == Some("test")
        })
        .filter_map(|row| Some((subsets[row].clone().unwrap_or_default(), values[row]?)))
        .collect()
}

#[test]
fn the_question_alone_gives_what_was_planted_and_no_more() {
    let (own, expected) = (of("question"), expected("asked/expected", "question-only accuracy"));
    let all = share(&own, &tested("asked/questions", None));
    assert!((all - expected["all"]).abs() <= 0.04, "accuracy {all}, planted {}", expected["all"]);
    for (subset, planted) in &expected {
        let Some(kind) = subset.strip_prefix("type=") else { continue };
        let ids = tested("asked/questions", Some(("truth_type", kind)));
        if ids.len() >= 300 {
            let found = share(&own, &ids);
            assert!((found - planted).abs() <= 0.08, "{kind}: accuracy {found}, planted {planted}");
        }
    }
    let leaky = share(&own, &tested("asked/questions", Some(("truth_leaky", "true"))));
    assert!(leaky >= 0.97, "questions whose wording gives the answer away: {leaky}");
}

#[test]
fn the_image_adds_what_the_question_cannot_tell() {
    let (both, question) = (of("both"), of("question"));
    let gap = |ids: &[String]| share(&both, ids) - share(&question, ids);
    let all = gap(&tested("asked/questions", None));
    assert!(all >= 0.20, "image and question are only {all} above the question alone");
    let needing = gap(&tested("asked/questions", Some(("truth_needs", "both"))));
    assert!(needing >= 0.25, "on questions that need both, only {needing} above the question alone");
}

#[test]
fn the_image_alone_is_not_above_its_ceiling() {
    let ceiling = expected("asked/expected", "image-only accuracy")["all"];
    let found = share(&of("image"), &tested("asked/questions", None));
    assert!(found <= ceiling + 0.03, "accuracy {found}, ceiling {ceiling}");
}

/// The accuracy of a condition of the ablation, its mean over draws.
fn ablated(condition: &str) -> f64 {
    let table = published("answers_ablated/metrics", &[]);
    let (metrics, methods, values) = (table.texts("metric"), table.texts("method"), table.numbers("value"));
    (0..values.len())
        .find(|row| {
            metrics[*row].as_deref() == Some("accuracy") && methods[*row].as_deref() == Some(condition)
        })
        .and_then(|row| values[row])
        .unwrap_or_else(|| panic!("no accuracy of {condition}"))
}

#[test]
fn images_of_other_samples_mislead() {
    let (full, shuffled) = (ablated("full"), ablated("shuffled_image"));
    assert!(full - shuffled >= 0.30, "accuracy {full}, with images of other samples {shuffled}");
}

/// Where the wordings that gave answers away now go with other answers, a model that learned them falls.
#[test]
fn a_changed_prior_shows_who_followed_it() {
    let all = tested("asked_anti/questions", None);
    let anti = |modality: &str| {
        share(&right("anti_answered", &[("model", "medical"), ("modality", modality)]), &all)
    };
    let before = |modality: &'static str| share(&of(modality), &tested("asked/questions", None));
    let planted = expected("asked_anti/expected", "question-only accuracy")["all"];
    let (question, both) = (anti("question"), anti("both"));
    assert!((question - planted).abs() <= 0.05, "the question alone: {question}, planted {planted}");
    assert!(before("both") - both < before("question") - question, "image and question fall by less");
    assert!(both - question >= 0.25, "{both} with the image, {question} without");
}
