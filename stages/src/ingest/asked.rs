//! What the splits of a data set of questions share, counted while questions go by: their texts are not kept.

use std::collections::BTreeSet;
use std::path::Path;

use pipe_engine::StageError;

use super::checks::Checks;
use super::numbered::Numbered;
use super::questions::{Question, exact};
use super::seen::{Seen, key, text_key};
use super::splits::{SPLITS, place};
use super::tally::Tally;
use pipe_engine::cache::Digest;

/// Counts of a value by split.
type Counts = [Tally<String>; SPLITS.len()];

/// What is remembered of questions, which come in the order of splits.
#[derive(Debug)]
pub(crate) struct Asked {
    seen: Seen,
    answer_types: Counts,
    phrase_types: Counts,
    languages: Counts,
    /// Of each image, in which splits it is asked about: a bit each.
    images: Numbered,
    images_of: [u64; SPLITS.len()],
    /// By split and earlier split, how many images are asked about in both, and the first of them by name.
    shared: [[(u64, BTreeSet<String>); SPLITS.len()]; SPLITS.len()],
    /// Answers and questions of training.
    answers: Numbered,
    wordings: Numbered,
    /// By split: how many there are whose answer (whose question) training does not (does) know; of all types,
    /// open, closed.
    unknown_answers: [[u64; 3]; SPLITS.len()],
    known_questions: [[u64; 3]; SPLITS.len()],
    examples: usize,
}

/// The types of answers that are counted by themselves, behind all of them.
const KINDS: [Option<&str>; 3] = [None, Some("OPEN"), Some("CLOSED")];

/// The key of several texts, each with its end.
fn key_of(texts: &[&str]) -> u64 {
    let lengths: Vec<[u8; 8]> = texts.iter().map(|text| (text.len() as u64).to_le_bytes()).collect();
    key(&Digest::of_parts(
        lengths.iter().zip(texts).flat_map(|(length, text)| [&length[..], text.as_bytes()]),
    ))
}

impl Asked {
    /// Nothing yet. What is too long for memory goes to a file in `scratch`.
    pub(crate) fn new(scratch: &Path) -> Self {
        Self {
            seen: Seen::new(&["same image and question", "same image, question and answer"], scratch),
            answer_types: Counts::default(),
            phrase_types: Counts::default(),
            languages: Counts::default(),
            images: Numbered::new(scratch),
            images_of: Default::default(),
            shared: Default::default(),
            answers: Numbered::new(scratch),
            wordings: Numbered::new(scratch),
            unknown_answers: Default::default(),
            known_questions: Default::default(),
            examples: Checks::default().examples(),
        }
    }

    /// Remembers a question. All of a split come before those of the next one.
    pub(crate) fn add(&mut self, one: &Question) -> Result<(), StageError> {
        let split = place(one.split);
        let (question, answer) = (exact(&one.question), exact(&one.answer));
        let keys = [key_of(&[&one.image, &question]), key_of(&[&one.image, &question, &answer])];
        self.seen.add(&one.qid.to_string(), one.split, &keys.map(Some))?;
        for (counts, value) in [
            (&mut self.answer_types, one.answer_type),
            (&mut self.phrase_types, one.phrase_type.as_deref()),
            (&mut self.languages, one.lang.as_deref()),
        ] {
            if let Some(value) = value {
                counts[split].add(value.to_owned(), 1);
            }
        }
        self.image(&one.image, split)?;
        let (question, answer) = (text_key(&question), text_key(&answer));
        if one.split == "train" {
            self.answers.set(answer, 1)?;
            self.wordings.set(question, 1)?;
            return Ok(());
        }
        let (is_unknown, is_known) =
            (self.answers.get(answer)?.is_none(), self.wordings.get(question)?.is_some());
        for (place, kind) in KINDS.iter().enumerate() {
            if kind.is_none() || *kind == one.answer_type {
                self.unknown_answers[split][place] += u64::from(is_unknown);
                self.known_questions[split][place] += u64::from(is_known);
            }
        }
        Ok(())
    }

    /// Remembers that an image is asked about in a split.
    fn image(&mut self, image: &str, split: usize) -> Result<(), StageError> {
        let key = text_key(image);
        let known = self.images.get(key)?.unwrap_or(0);
        if known >> split & 1 == 1 {
            return Ok(());
        }
        self.images.set(key, known | 1 << split)?;
        self.images_of[split] += 1;
        for (other, (count, first)) in self.shared[split].iter_mut().enumerate() {
            if known >> other & 1 == 1 {
                *count += 1;
                first.insert(image.to_owned());
                if first.len() > self.examples {
                    first.pop_last();
                }
            }
        }
        Ok(())
    }

    /// Writes down the counts of questions by type, and what splits share: images, questions about one image, these
    /// with their answers, and answers that training does not know.
    pub(crate) fn check(&self, checks: &mut Checks) -> Result<(), StageError> {
        let splits = self.seen.splits();
        for split in &splits {
            checks.count("questions", split, None, self.seen.count(split));
            for (check, counts) in [
                ("answer type", &self.answer_types),
                ("phrase type", &self.phrase_types),
                ("language", &self.languages),
            ] {
                let counts = &counts[place(split)];
                for (value, number) in counts.iter() {
                    checks.count(check, split, Some(value.clone()), number);
                }
                if counts.others() > 0 {
                    checks.count(check, split, Some("others".to_owned()), counts.others());
                }
            }
            checks.count("images asked about", split, None, self.images_of[place(split)]);
        }
        for (later, split) in splits.iter().enumerate() {
            for other in &splits[..later] {
                let (count, first) = &self.shared[place(split)][place(other)];
                checks.counted("image asked about", split, other, *count, first.iter().cloned().collect());
            }
        }
        self.seen.check(checks)?;
        for split in splits.iter().filter(|split| **split != "train") {
            for (check, counts) in [
                ("answer not in training", &self.unknown_answers),
                ("question in training", &self.known_questions),
            ] {
                for (kind, number) in KINDS.iter().zip(counts[place(split)]) {
                    checks.count(check, split, kind.map(str::to_owned), number);
                }
            }
        }
        Ok(())
    }
}

/// As [`Asked::check`], of questions that are all there, in any order of splits.
pub(crate) fn check_questions(
    checks: &mut Checks,
    questions: &[Question],
    scratch: &Path,
) -> Result<(), StageError> {
    let mut asked = Asked::new(scratch);
    for split in SPLITS {
        for one in questions.iter().filter(|one| one.split == split) {
            asked.add(one)?;
        }
    }
    asked.check(checks)
}
