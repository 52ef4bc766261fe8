//! What answers owe to the question and to the image, a table for each model: what it reaches with both, with either, with
//! neither, and how far these are apart, for all questions and for each type of answer.

use maud::{Markup, html};

use super::figures::{Figure, Group};
use super::tables::{cell, heading};

/// The rows: a name, and what the names of their figures begin with.
const ROWS: [(&str, &str); 3] =
    [("overall", "accuracy"), ("open", "accuracy_open"), ("closed", "accuracy_closed")];

/// The columns: a title, the condition, and what its figure is called behind the accuracy's name.
const COLUMNS: [(&str, &str, &str); 14] = [
    ("multimodal", "full", ""),
    ("question only", "question_only", ""),
    ("image only", "image_only", ""),
    ("mean image", "image_mean", ""),
    ("shuffled image", "shuffled_image", ""),
    ("shuffled within stratum", "shuffled_within_stratum", ""),
    ("majority", "majority", ""),
    ("prior of answer type", "answer_type_prior", ""),
    ("prior of question type", "question_type_prior", ""),
    ("\u{394} question", "question_only", "_gap"),
    ("\u{394} image", "image_only", "_gap"),
    ("\u{3c1}", "question_only", "_relative_share"),
    ("perceptual score, image", "shuffled_image", "_perceptual_score"),
    ("perceptual score, question", "shuffled_question", "_perceptual_score"),
];

/// McNemar's test of the model against that of the question alone, by row.
const TESTS: [&str; 3] = ["mcnemar_p_holm", "mcnemar_open_p", "mcnemar_closed_p"];

/// A table for each full model of a group; none if it is not about answers to questions.
pub(super) fn answers_by_modality(group: &Group) -> Vec<Markup> {
    if !ROWS.iter().all(|(_, metric)| group.metrics.iter().any(|known| known == metric)) {
        return Vec::new();
    }
    group.ablations().iter().map(|(full, others)| table(group, *full, others)).collect()
}

fn table(group: &Group, full: usize, others: &[usize]) -> Markup {
    let row_of = |condition: &str| {
        let rows = std::iter::once(&full).chain(others);
        rows.map(|row| &group.rows[*row]).find(|row| group.key_of(row, "method") == Some(condition))
    };
    let figure =
        |condition: &str, metric: &str| -> Option<&Figure> { row_of(condition)?.figures.get(metric) };
    let columns: Vec<_> = COLUMNS
        .iter()
        .filter(|(_, condition, behind)| {
            ROWS.iter().any(|(_, metric)| figure(condition, &format!("{metric}{behind}")).is_some())
        })
        .collect();
    let tested = TESTS.iter().any(|test| figure("question_only", test).is_some());
    let names = group.key_names.iter().zip(&group.rows[full].keys);
    let own = names.filter(|(name, _)| !["method", "modality"].contains(&name.as_str()));
    let label: Vec<&str> = own.filter_map(|(_, key)| key.as_deref()).collect();
    let caption = std::iter::once(heading(group)).chain([label.join(" \u{b7} ")]);
    let caption: Vec<String> = caption.filter(|part| !part.is_empty()).collect();
    let caption = format!("{}: what the answers owe to question and image", caption.join(", "));
    html! {
        div .scroll tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead {
                    tr {
                        th scope="col" { "questions" }
                        @for (title, _, _) in &columns { th scope="col" .number { (title) } }
                        @if tested { th scope="col" .number { "p (McNemar)" } }
                    }
                }
                tbody {
                    @for ((name, metric), test) in ROWS.iter().zip(TESTS) {
                        tr {
                            th scope="row" { (name) }
                            @for (_, condition, behind) in &columns {
                                (cell(figure(condition, &format!("{metric}{behind}")), false))
                            }
                            @if tested { (cell(figure("question_only", test), false)) }
                        }
                    }
                }
            }
        }
        p .note {
            "\u{394}: accuracy lost with the question or the image alone. \u{3c1}: the share of what the model gains over the majority \
             that the question alone gains too. Perceptual score: the share of the accuracy that goes when the image or the \
             question is that of another sample. p: against the question alone, that of all questions after Holm\u{2019}s correction."
        }
    }
}
