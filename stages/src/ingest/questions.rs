//! Questions about images, in the columns that all data sets of them share.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pictures::Picture;
use super::rejects::Rejects;
use super::source::RowPlace;
use crate::table::{Column, Table};
use crate::vqa::TRAINING_TWIN;

/// A question with its answer as published.
#[derive(Clone, Debug, Default)]
pub(crate) struct Question {
    pub(crate) qid: i64,
    pub(crate) image: String,
    pub(crate) split: &'static str,
    pub(crate) question: String,
    pub(crate) answer: String,
    pub(crate) answer_type: Option<&'static str>,
    pub(crate) question_type: Option<String>,
    pub(crate) phrase_type: Option<String>,
    pub(crate) lang: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) base_type: Option<String>,
    pub(crate) triple: Option<Vec<String>>,
    pub(crate) link_id: Option<String>,
    pub(crate) organ: Option<String>,
    /// Of a test question, whether its templated wording is among the records that MEVF trained on.
    pub(crate) training_twin: Option<bool>,
}

/// The file and the row in it, from 1, that ask a question, by its number.
pub(crate) type Records = BTreeMap<i64, RowPlace>;

/// Leaves out the questions whose image is not among the pictures, or is there and was not kept. Each is rejected where it
/// is asked, but for the one that names its picture, which is rejected with it.
pub(crate) fn retain_with_image(
    questions: &mut Vec<Question>,
    records: &Records,
    pictures: &[Picture],
    kept: &[bool],
    rejects: &mut Rejects,
) {
    let found: BTreeMap<&str, (&Picture, bool)> =
        pictures.iter().zip(kept).map(|(picture, kept)| (picture.id.as_str(), (picture, *kept))).collect();
    questions.retain(|one| {
        let place = records.get(&one.qid);
        let (reason, told) = match found.get(one.image.as_str()) {
            Some((_, true)) => return true,
            Some((picture, false)) => {
                (format!("its image `{}` cannot be decoded", one.image), picture.named_by.as_ref())
            }
            None => (format!("there is no image `{}`", one.image), None),
        };
        if let Some((file, row)) = place
            && told.is_none_or(|(other, line)| !Arc::ptr_eq(file, other) || row != line)
        {
            rejects.add(file, Some(*row), Some(&one.qid.to_string()), reason);
        }
        false
    });
}

/// An answer as it is compared: trimmed, lower case.
pub(crate) fn exact(answer: &str) -> String {
    answer.trim().to_lowercase()
}

/// `OPEN` or `CLOSED`, whatever is around it; nothing else is guessed from the answer.
pub(crate) fn answer_type(written: &str) -> Option<&'static str> {
    match written.trim().to_uppercase().as_str() {
        "OPEN" => Some("OPEN"),
        "CLOSED" => Some("CLOSED"),
        _ => None,
    }
}

/// As [`answer_type`], but closed ones with something around it are open, as in the code of QCR.
pub(crate) fn untrimmed_type(written: &str) -> Option<&'static str> {
    answer_type(written).map(|kind| if written == "CLOSED" { kind } else { "OPEN" })
}

/// The types of a question: parts between commas, upper case, known typing errors mended.
fn types(written: &str) -> Vec<String> {
    let mended = |part: &str| match part.trim().to_uppercase().as_str() {
        "ATRIB" => "ATTRIB".to_owned(),
        "PRSE" => "PRES".to_owned(),
        part => part.to_owned(),
    };
    written.split(',').map(mended).filter(|part| !part.is_empty()).collect()
}

/// The table of questions.
pub(crate) fn table(questions: &[Question]) -> Table {
    let text =
        |value: &dyn Fn(&Question) -> Option<String>| Column::Utf8(questions.iter().map(value).collect());
    let table = Table::new()
        .with("qid", Column::Int64(questions.iter().map(|one| Some(one.qid)).collect()))
        .with("image_id", text(&|one| Some(one.image.clone())))
        .with("split", text(&|one| Some(one.split.to_owned())))
        .with("question", text(&|one| Some(one.question.clone())))
        .with("answer", text(&|one| Some(one.answer.clone())))
        .with("answer_norm", text(&|one| Some(exact(&one.answer))))
        .with("answer_type", text(&|one| one.answer_type.map(str::to_owned)))
        .with("question_type", text(&|one| one.question_type.clone()))
        .with(
            "question_types",
            Column::ListUtf8(questions.iter().map(|one| one.question_type.as_deref().map(types)).collect()),
        )
        .with("phrase_type", text(&|one| one.phrase_type.clone()))
        .with("lang", text(&|one| one.lang.clone()))
        .with("content_type", text(&|one| one.content_type.clone()))
        .with("base_type", text(&|one| one.base_type.clone()))
        .with("triple", Column::ListUtf8(questions.iter().map(|one| one.triple.clone()).collect()))
        .with("link_id", text(&|one| one.link_id.clone()))
        .with("organ", text(&|one| one.organ.clone()))
        .with_metadata("task", "vqa");
    // Only one data set has twins.
    match questions.iter().any(|one| one.training_twin.is_some()) {
        true => {
            let twins = questions.iter().map(|one| one.training_twin).collect();
            table.with(TRAINING_TWIN, Column::Bool(twins))
        }
        false => table,
    }
}
