//! A record of VQA-RAD's files as a question.

use super::super::json::Record;
use super::super::questions::{Question, answer_type, untrimmed_type};
use super::Params;

/// The record as a question of `split`; what it lacks is the reason why it cannot be used.
pub(super) fn question(record: &Record, split: &'static str, params: &Params) -> Result<Question, String> {
    let needed = |key: &str| {
        record.text(key).filter(|text| !text.trim().is_empty()).ok_or_else(|| format!("it has no `{key}`"))
    };
    let kind = if params.untrimmed_types { untrimmed_type } else { answer_type };
    Ok(Question {
        qid: record.integer("qid").ok_or("its `qid` is no whole number")?,
        image: needed("image_name")?,
        split,
        question: needed("question")?,
        answer: needed("answer")?,
        answer_type: record.text("answer_type").as_deref().and_then(kind),
        question_type: record.some_text("question_type"),
        phrase_type: record.some_text("phrase_type"),
        lang: Some("en".to_owned()),
        link_id: record.some_text("qid_linked_id"),
        organ: record.some_text("image_organ"),
        ..Question::default()
    })
}
