//! Floors of question answering: what the most frequent answers reach on the published questions.

use std::collections::BTreeSet;
use std::path::Path;

use pipe_stages::statistics::{MostFrequent, Overlap};
use serde_json::Value as Json;

use super::{EXACT, open};
use crate::harness;
use crate::json::JsonGolden;

/// A question with what the floors look at, trimmed and in lower case.
#[derive(Clone, Debug)]
struct Question {
    image: String,
    question: String,
    frame: String,
    answer: String,
    kind: String,
    answer_type: String,
    phrase: String,
}

fn questions(path: &Path, kind: &str) -> Vec<Question> {
    let text = |row: &Json, key: &str| match &row[key] {
        Json::String(text) => text.trim().to_lowercase(),
        Json::Null => String::new(),
        other => other.to_string().trim().to_lowercase(),
    };
    let question = |row: &Json| Question {
        image: text(row, "image_name"),
        question: text(row, "question"),
        frame: text(row, "question_frame"),
        answer: text(row, "answer"),
        kind: text(row, kind),
        answer_type: text(row, "answer_type"),
        phrase: text(row, "phrase_type"),
    };
    let english = |row: &&Json| row["q_lang"].is_null() || row["q_lang"] == "en";
    harness::json(path)
        .as_array()
        .expect("a list of questions")
        .iter()
        .filter(english)
        .map(question)
        .collect()
}

#[test]
fn floors_of_question_answering() {
    let Some(golden) = open("vqa_floors.json") else { return };
    golden.input("/rule");
    golden.input("/sources");
    if let (Some(rad), Some(mevf)) = (harness::data("vqa-rad"), harness::data("vqa-rad/mevf")) {
        let public = questions(&rad.join("VQA_RAD Dataset Public.json"), "question_type");
        let (test, train): (Vec<Question>, Vec<Question>) =
            public.into_iter().partition(|question| question.phrase.starts_with("test"));
        floors(&golden, "vqa_rad_published_train", &train, &test);
        let mevf_train = questions(&mevf.join("trainset.json"), "question_type");
        let mevf_test = questions(&mevf.join("testset.json"), "question_type");
        floors(&golden, "vqa_rad_mevf_train", &mevf_train, &mevf_test);
        let wordings: BTreeSet<(&str, &str)> = test
            .iter()
            .flat_map(|row| [&row.question, &row.frame].map(|text| (row.image.as_str(), text.as_str())))
            .collect();
        let is_twin = |row: &Question| {
            row.phrase == "frame" && wordings.contains(&(row.image.as_str(), row.question.as_str()))
        };
        let clean: Vec<Question> = mevf_train.iter().filter(|row| !is_twin(row)).cloned().collect();
        floors(&golden, "vqa_rad_mevf_clean_train", &clean, &mevf_test);

        let images = |rows: &[Question]| rows.iter().map(|row| row.image.clone()).collect::<Vec<_>>();
        let shared = Overlap::of(images(&train), images(&test));
        golden.compare("/leaks/vqa_rad_train_images", Some(shared.train as f64), 0.0);
        golden.compare("/leaks/vqa_rad_test_images", Some(shared.test as f64), 0.0);
        golden.compare("/leaks/vqa_rad_shared_images", Some(shared.shared as f64), 0.0);
        let asked = |rows: &[Question]| -> Vec<(String, String)> {
            rows.iter().map(|row| (row.image.clone(), row.question.clone())).collect()
        };
        let verbatim = Overlap::of(asked(&mevf_train), asked(&mevf_test)).test_rows;
        golden.compare("/leaks/mevf_test_verbatim_in_train", Some(verbatim as f64), 0.0);
        let frames = mevf_train.iter().filter(|row| row.phrase == "frame").cloned().collect::<Vec<_>>();
        let own = test.iter().map(|row| (row.image.clone(), row.frame.clone()));
        let framed = Overlap::of(asked(&frames), own).test_rows;
        golden.compare("/leaks/mevf_test_records_with_own_frame_in_train", Some(framed as f64), 0.0);
        golden.compare("/leaks/mevf_clean_train_rows", Some(clean.len() as f64), 0.0);
    }
    if let Some(slake) = harness::data("slake") {
        let [train, test] =
            ["train.json", "test.json"].map(|file| questions(&slake.join(file), "content_type"));
        floors(&golden, "slake_en", &train, &test);
    }
    golden.finish();
}

/// What the most frequent answers reach, in per cent.
fn floors(golden: &JsonGolden, set: &str, train: &[Question], test: &[Question]) {
    let answer = |row: &Question| row.answer.clone();
    let overall = MostFrequent::fit(train.iter().map(|row| ((), answer(row))));
    let by_answer_type = MostFrequent::fit(train.iter().map(|row| (row.answer_type.clone(), answer(row))));
    let by_type =
        MostFrequent::fit(train.iter().map(|row| ((row.kind.clone(), row.answer_type.clone()), answer(row))));
    let by_question = MostFrequent::fit(train.iter().map(|row| (row.question.clone(), answer(row))));
    let majority = overall.get(&()).expect("there are questions");
    let prior = |row: &Question| by_answer_type.get(&row.answer_type).unwrap_or(majority).clone();
    golden.compare(&format!("/{set}/train_rows"), Some(train.len() as f64), 0.0);
    golden.compare_text(&format!("/{set}/majority_answer"), &[majority]);
    let answers: BTreeSet<&str> = train.iter().map(|row| row.answer.as_str()).collect();
    for part in golden.keys(&format!("/{set}/parts")) {
        let rows: Vec<&Question> =
            test.iter().filter(|row| part == "all" || row.answer_type == part.to_lowercase()).collect();
        let share = |holds: &dyn Fn(&Question) -> bool| {
            let count = rows.iter().filter(|row| holds(row)).count();
            // The goldens have four decimals.
            Some((1e6 * count as f64 / rows.len() as f64).round() / 1e4)
        };
        let figures: [(&str, Option<f64>); 6] = [
            ("majority", share(&|row| row.answer == *majority)),
            ("answer_type", share(&|row| row.answer == prior(row))),
            (
                "type_x_answer_type",
                share(&|row| {
                    let known = by_type.get(&(row.kind.clone(), row.answer_type.clone()));
                    row.answer == known.cloned().unwrap_or_else(|| prior(row))
                }),
            ),
            (
                "question_lookup",
                share(&|row| {
                    row.answer == by_question.get(&row.question).cloned().unwrap_or_else(|| prior(row))
                }),
            ),
            ("question_seen", share(&|row| by_question.get(&row.question).is_some())),
            ("answer_unseen", share(&|row| !answers.contains(row.answer.as_str()))),
        ];
        golden.compare(&format!("/{set}/parts/{part}/n"), Some(rows.len() as f64), 0.0);
        for (name, figure) in figures {
            golden.compare(&format!("/{set}/parts/{part}/{name}"), figure, EXACT);
        }
    }
}
