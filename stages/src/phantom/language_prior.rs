//! What questions give away: accuracies that follow from the generator's probabilities.

use std::collections::BTreeMap;

use super::expected::Expected;
use super::factors::{Knobs, Subject, subjects};
use super::questions::{Language, Question};
use super::topics::{Topic, topics};

/// What a neutral wording shows: the type, the finding and the side that it asks about.
type Wording = (Topic, Option<usize>, Option<bool>);

/// Knows how likely each answer is, given the words alone.
pub(super) struct LanguagePrior<'a> {
    training: &'a Language,
    test: &'a Language,
    /// The largest probability of an answer under each neutral wording.
    best: BTreeMap<Wording, f64>,
}

impl<'a> LanguagePrior<'a> {
    /// Of a generator and its languages in training and in validation and test.
    pub(super) fn new(knobs: &Knobs, training: &'a Language, test: &'a Language) -> Self {
        let mut answers: BTreeMap<Wording, BTreeMap<usize, f64>> = BTreeMap::new();
        for (subject, probability) in subjects(knobs) {
            for (topic, weight) in topics(&subject) {
                for case in topic.cases(&subject) {
                    let wording = answers.entry((topic, case.finding, case.left)).or_default();
                    *wording.entry(case.answer).or_default() += probability * weight * case.probability;
                }
            }
        }
        let best = |answers: BTreeMap<usize, f64>| {
            answers.values().copied().fold(0.0, f64::max) / answers.values().sum::<f64>()
        };
        Self { training, test, best: answers.into_iter().map(|(key, value)| (key, best(value))).collect() }
    }

    /// The largest probability of an answer given neutral words.
    fn neutral(&self, question: &Question) -> f64 {
        let case = &question.case;
        self.best.get(&(question.topic, case.finding, case.left)).copied().unwrap_or_default()
    }

    /// The accuracy given telling words: those that training never used are as good as neutral ones.
    fn telling(&self, question: &Question) -> f64 {
        if self.training.leaky(question.topic) == 0.0 {
            return self.neutral(question);
        }
        f64::from(u8::from(self.test.is_honest(question.topic, question.case.answer)))
    }

    /// The best accuracy of an answer from the words alone, before a tell is drawn for them.
    fn of_type(&self, question: &Question) -> f64 {
        let leaky = self.test.leaky(question.topic);
        leaky * self.telling(question) + (1.0 - leaky) * self.neutral(question)
    }

    /// The same of the words as they are.
    fn of_wording(&self, question: &Question) -> f64 {
        if question.leaky { self.telling(question) } else { self.neutral(question) }
    }

    /// The figures of the questions of a split.
    pub(super) fn question_only(&self, split: &'static str, questions: &[&Question]) -> Vec<Expected> {
        let figure = |subset: String, shares: Vec<f64>| {
            let formula =
                "mean of lambda + (1 - lambda) m, m the largest probability of an answer given neutral words";
            mean("question-only accuracy", split, subset, &shares, formula)
        };
        let mut all = Vec::new();
        all.extend(figure("all".to_owned(), questions.iter().map(|one| self.of_type(one)).collect()));
        for topic in Topic::ALL {
            let of_topic = questions.iter().filter(|one| one.topic == topic);
            let subset = format!("type={}", topic.grammar().name);
            all.extend(figure(subset, of_topic.map(|one| self.of_type(one)).collect()));
        }
        for needs in ["question", "both", "image"] {
            let needing = questions.iter().filter(|one| one.needs() == needs);
            all.extend(figure(format!("needs={needs}"), needing.map(|one| self.of_wording(one)).collect()));
        }
        all
    }
}

fn mean(
    quantity: &str,
    split: &'static str,
    subset: String,
    shares: &[f64],
    formula: &'static str,
) -> Option<Expected> {
    let count = shares.len() as f64;
    let variance = shares.iter().map(|share| share * (1.0 - share)).sum::<f64>();
    (!shares.is_empty()).then(|| Expected {
        subset,
        error: variance.sqrt() / count,
        ..Expected::exact(quantity, split, shares.iter().sum::<f64>() / count, formula)
    })
}

/// The ceiling of a model that sees the image and not the question: it gives the answer that fits the
/// questions of the image most often. Also among the questions in neutral words that need both, by
/// `language`.
pub(super) fn image_only(
    split: &'static str,
    language: &Language,
    subjects: &[(&Subject, &[Question])],
) -> Vec<Expected> {
    let best = |subject: &Subject, weight: &dyn Fn(Topic) -> f64| {
        let mut answers: BTreeMap<&str, f64> = BTreeMap::new();
        for (topic, share) in topics(subject) {
            for case in topic.cases(subject) {
                let answer = topic.grammar().answers[case.answer];
                *answers.entry(answer).or_default() += weight(topic) * share * case.probability;
            }
        }
        answers.values().copied().fold(0.0, f64::max) / answers.values().sum::<f64>()
    };
    let formula = "mean over images of the largest probability of an answer over its questions";
    let (mut all, mut both) = (Vec::new(), Vec::new());
    for (subject, questions) in subjects {
        all.extend(questions.iter().map(|_| best(subject, &|_| 1.0)));
        let neutral = |topic: Topic| f64::from(u8::from(topic.needs_both())) * (1.0 - language.leaky(topic));
        let needing = questions.iter().filter(|one| one.needs() == "both");
        both.extend(needing.map(|_| best(subject, &neutral)));
    }
    [("all", all), ("needs=both", both)]
        .into_iter()
        .filter_map(|(subset, shares)| {
            mean("image-only accuracy", split, subset.to_owned(), &shares, formula)
        })
        .collect()
}

/// What a table of the training questions knows: the most frequent answer to the same words, or the most
/// frequent of all for new ones; and that answer alone.
pub(super) fn lookup(
    split: &'static str,
    training: &[(&str, &'static str)],
    questions: &[(&str, &'static str)],
) -> Vec<Expected> {
    let mut answers: BTreeMap<&str, BTreeMap<&'static str, usize>> = BTreeMap::new();
    let mut overall: BTreeMap<&'static str, usize> = BTreeMap::new();
    for (text, answer) in training {
        *answers.entry(*text).or_default().entry(*answer).or_default() += 1;
        *overall.entry(*answer).or_default() += 1;
    }
    let Some(majority) = most_frequent(&overall) else { return Vec::new() };
    let known: BTreeMap<&str, &'static str> =
        answers.iter().filter_map(|(text, counts)| Some((*text, most_frequent(counts)?))).collect();
    let right = |guess: &dyn Fn(&str) -> &'static str| {
        let right = questions.iter().filter(|(text, answer)| guess(text) == *answer).count();
        right as f64 / questions.len() as f64
    };
    vec![
        Expected::exact(
            "question-only accuracy of a lookup",
            split,
            right(&|text| known.get(text).copied().unwrap_or(majority)),
            "most frequent training answer to the same words, else the most frequent of all",
        ),
        Expected::exact(
            "accuracy of the most frequent answer",
            split,
            right(&|_| majority),
            "share of the most frequent training answer",
        ),
    ]
}

/// Of equally frequent answers the first by name.
fn most_frequent(counts: &BTreeMap<&'static str, usize>) -> Option<&'static str> {
    let greatest = *counts.values().max()?;
    counts.iter().find(|(_, count)| **count == greatest).map(|(answer, _)| *answer)
}
