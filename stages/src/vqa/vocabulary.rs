//! The answers that a model can give: label spaces built from the training answers.

use std::collections::HashMap;

use super::normalise;

/// The place of an answer in its label space; `None` for an answer that is not in it, which has an empty
/// target and is always scored wrong.
pub type Label = Option<usize>;

/// Whether an `answer_type` says closed. Two records of VQA-RAD have a space behind it.
pub fn is_closed(answer_type: &str) -> bool {
    answer_type.trim().eq_ignore_ascii_case("closed")
}

/// Answers in the order of their first occurrence.
#[derive(Clone, Default, Debug)]
struct Answers {
    list: Vec<String>,
    places: HashMap<String, usize>,
}

impl Answers {
    fn add(&mut self, answer: String) {
        if !self.places.contains_key(&answer) {
            self.places.insert(answer.clone(), self.list.len());
            self.list.push(answer);
        }
    }

    fn label(&self, answer: &str) -> Label {
        self.places.get(answer).copied()
    }
}

/// One label space for all answers (MEVF).
#[derive(Clone, Debug)]
pub struct SharedVocabulary {
    answers: Answers,
}

impl SharedVocabulary {
    /// Of training answers in file order; those that occur less often than `min_occurrence` are left out.
    pub fn new<'a>(train: impl IntoIterator<Item = &'a str>, min_occurrence: usize) -> Self {
        let normal: Vec<String> = train.into_iter().map(normalise).collect();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for answer in &normal {
            *counts.entry(answer).or_default() += 1;
        }
        let mut answers = Answers::default();
        for answer in normal.iter().filter(|answer| counts[answer.as_str()] >= min_occurrence) {
            answers.add(answer.clone());
        }
        Self { answers }
    }

    /// The answers by label, in normal form.
    pub fn answers(&self) -> &[String] {
        &self.answers.list
    }

    /// The label of an answer.
    pub fn label(&self, answer: &str) -> Label {
        self.answers.label(&normalise(answer))
    }
}

/// Which of two label spaces an answer belongs to (QCR).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Branch {
    /// Yes, no, or one of the alternatives that the question names.
    Closed,
    /// Anything else.
    Open,
}

/// A label space for closed and one for open answers (QCR).
#[derive(Clone, Debug)]
pub struct BranchVocabulary {
    closed: Answers,
    open: Answers,
    untrimmed: bool,
}

impl BranchVocabulary {
    /// Of training answers with their types, in file order. `untrimmed` takes a type with a space behind
    /// it for open, as the authors' code does.
    pub fn new<'a>(train: impl IntoIterator<Item = (&'a str, &'a str)>, untrimmed: bool) -> Self {
        let mut made = Self { closed: Answers::default(), open: Answers::default(), untrimmed };
        for (answer, answer_type) in train {
            let branch = made.branch(answer_type);
            let answers = if branch == Branch::Closed { &mut made.closed } else { &mut made.open };
            answers.add(normalise(answer));
        }
        made
    }

    /// The branch of an `answer_type`.
    pub fn branch(&self, answer_type: &str) -> Branch {
        let closed = if self.untrimmed { answer_type == "CLOSED" } else { is_closed(answer_type) };
        if closed { Branch::Closed } else { Branch::Open }
    }

    /// The answers of a branch by label, in normal form.
    pub fn answers(&self, branch: Branch) -> &[String] {
        match branch {
            Branch::Closed => &self.closed.list,
            Branch::Open => &self.open.list,
        }
    }

    /// The branch of an answer's type, and the label of the answer in it.
    pub fn label(&self, answer: &str, answer_type: &str) -> (Branch, Label) {
        let branch = self.branch(answer_type);
        let answers = if branch == Branch::Closed { &self.closed } else { &self.open };
        (branch, answers.label(&normalise(answer)))
    }
}

/// PubMedCLIP's label space, of training *and* test answers, lower-cased only: kept to reproduce
/// published figures, since it tells the model which answers the test has.
#[derive(Clone, Debug)]
pub struct TrainAndTestVocabulary {
    answers: Answers,
    closed: usize,
}

impl TrainAndTestVocabulary {
    /// Of answers with their types, training before test, each in file order.
    pub fn new<'a>(records: impl IntoIterator<Item = (&'a str, &'a str)> + Clone) -> Self {
        let mut answers = Answers::default();
        let of = |closed: bool| {
            records
                .clone()
                .into_iter()
                .filter(move |(_, kind)| is_closed(kind) == closed)
                .map(|(answer, _)| answer)
        };
        of(true).for_each(|answer| answers.add(answer.to_lowercase()));
        let closed = answers.list.len();
        for answer in of(false) {
            let answer = answer.to_lowercase();
            match answers.label(&answer) {
                Some(label) if label < closed => answers.add(format!("{answer}#")),
                _ => answers.add(answer),
            }
        }
        Self { answers, closed }
    }

    /// The answers by label, closed ones first; an open answer that is also a closed one ends in `#`.
    pub fn answers(&self) -> &[String] {
        &self.answers.list
    }

    /// How many of them are closed.
    pub fn closed(&self) -> usize {
        self.closed
    }

    /// The label of an answer of this type. Runs of white space become one space here and not in the
    /// list, as in the authors' code: such answers have no label.
    pub fn label(&self, answer: &str, answer_type: &str) -> Label {
        let lower = answer.to_lowercase();
        let answer = lower.split_whitespace().collect::<Vec<_>>().join(" ");
        if is_closed(answer_type) {
            return self.answers.label(&answer);
        }
        self.answers.label(&format!("{answer}#")).or_else(|| self.answers.label(&answer))
    }
}
