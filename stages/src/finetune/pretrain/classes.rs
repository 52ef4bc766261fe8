//! Classes of images for meta-learning, of what tables say of them.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{Artifact, StageError};

use crate::labels::Labels;
use crate::table::read_columns;
use crate::vqa::{normalise, question_types};

/// The class of each image that has one, in words, from parts that stand side by side.
#[derive(Default)]
pub(super) struct Classes {
    /// Of each image, the parts of its class so far.
    parts: BTreeMap<String, Vec<String>>,
    begun: bool,
}

impl Classes {
    /// Adds a part. An image without it has no class.
    fn refine(&mut self, mut values: BTreeMap<String, String>) {
        if !self.begun {
            self.begun = true;
            self.parts = values.into_iter().map(|(id, value)| (id, vec![value])).collect();
            return;
        }
        self.parts.retain(|id, _| values.contains_key(id));
        for (id, parts) in &mut self.parts {
            parts.extend(values.remove(id));
        }
    }

    /// By the values of a column of the table of images.
    ///
    /// # Errors
    /// If there is no such column.
    pub(super) fn by_column(&mut self, images: &Artifact, name: &str) -> Result<(), StageError> {
        let table = read_columns(images, &["image_id", name])?;
        if table.column(name).is_none() {
            let reason = format!("the images have no column `{name}`, which `classes` names");
            return Err(StageError::input("images", reason));
        }
        let values = table.strings("image_id")?.into_iter().zip(table.as_text(name)?);
        self.refine(values.filter_map(|(id, value)| Some((id.to_owned(), value?))).collect());
        Ok(())
    }

    /// By their labels: of several that are independent, by which of them are given.
    ///
    /// # Errors
    /// If the table is damaged.
    pub(super) fn by_label(&mut self, labels: &Artifact) -> Result<(), StageError> {
        let text = |label: Vec<i64>| label.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
        let rows = Labels::read(labels)?.rows;
        self.refine(rows.into_iter().map(|(id, _, label)| (id, text(label))).collect());
        Ok(())
    }

    /// By what the answers to the questions of some splits say of abnormality, in the place of the sorting by hand of
    /// MEVF's authors: an abnormality that a question has named, one that was found, or none. Images without
    /// questions have no class.
    ///
    /// # Errors
    /// If the table is damaged.
    pub(super) fn by_answers(&mut self, questions: &Artifact, splits: &[&str]) -> Result<(), StageError> {
        let table =
            read_columns(questions, &["image_id", "split", "answer", "question_type", "question_types"])?;
        let table = table.select(&table.rows_of_splits(splits));
        let types = question_types(&table)?;
        let mut states: BTreeMap<String, State> = BTreeMap::new();
        for (row, (id, answer)) in table.strings("image_id")?.iter().zip(table.strings("answer")?).enumerate()
        {
            let state = states.entry((*id).to_owned()).or_insert(State::Normal);
            if !types[row].iter().any(|one| ABNORMALITY.iter().any(|name| one.eq_ignore_ascii_case(name))) {
                continue;
            }
            *state = (*state).max(match normalise(answer).as_str() {
                "no" => State::Normal,
                "yes" => State::Found,
                _ => State::Named,
            });
        }
        self.refine(states.into_iter().map(|(id, state)| (id, state.name().to_owned())).collect());
        Ok(())
    }

    /// The places of images by class, classes in the order of their names; what each is called.
    pub(super) fn of(&self, ids: &[String]) -> (Vec<Vec<usize>>, Vec<String>) {
        let mut classes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (place, id) in ids.iter().enumerate() {
            if let Some(parts) = self.parts.get(id).filter(|_| seen.insert(id)) {
                classes.entry(parts.join(", ")).or_default().push(place);
            }
        }
        classes.into_iter().map(|(name, places)| (places, name)).unzip()
    }
}

/// The types of VQA-RAD's questions after something abnormal.
const ABNORMALITY: [&str; 2] = ["ABN", "PRES"];

/// What answers say of an image, from the least to the most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Normal,
    Found,
    Named,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "nothing abnormal",
            Self::Found => "something abnormal",
            Self::Named => "a named abnormality",
        }
    }
}
