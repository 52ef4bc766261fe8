//! Questions with their images, as models of visual question answering learn from them and are asked.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{Artifact, StageError};
use pipe_models::Preprocessor;
use pipe_models::preprocess::{Picture, grey_square};
use rayon::prelude::*;

use super::{is_closed, normalise};
use crate::table::{Column, Table, read, read_columns};

/// A question.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) id: String,
    pub(crate) split: String,
    pub(crate) question: String,
    /// The published answer.
    pub(crate) answer: String,
    /// Whether it is annotated as closed; without an annotation, whether its answer is yes or no.
    pub(crate) closed: bool,
    /// Its type as published: of VQA-RAD perhaps several in one text.
    pub(crate) question_type: Option<String>,
    /// All its types, each by itself, typing errors mended.
    pub(crate) question_types: Vec<String>,
    /// Of a test question, whether the templated wording of the same question is among the records that MEVF
    /// trained on; nothing where the data set does not tell.
    pub(crate) training_twin: Option<bool>,
    pub(crate) phrase_type: Option<String>,
    /// The place of its image.
    pub(crate) image: usize,
}

impl Asked {
    /// `CLOSED` or `OPEN`.
    pub(crate) fn answer_type(&self) -> &'static str {
        if self.closed { "CLOSED" } else { "OPEN" }
    }
}

/// An image that is asked about.
#[derive(Clone, Debug)]
pub(crate) struct AskedImage {
    pub(crate) id: String,
    /// The patient, where one is known.
    pub(crate) group: Option<String>,
    bytes: Vec<u8>,
    path: String,
}

/// The column of tables that [`Asked::training_twin`] stands in.
pub(crate) const TRAINING_TWIN: &str = "training_twin";

/// Questions in table order, and their images, each once.
#[derive(Clone, Debug)]
pub(crate) struct Examples {
    pub(crate) asked: Vec<Asked>,
    pub(crate) images: Vec<AskedImage>,
    /// The protocol that the table of questions names, as `mevf-3064`.
    pub(crate) protocol: Option<String>,
}

impl Examples {
    /// The questions of some splits (all if empty).
    ///
    /// # Errors
    /// If a table is damaged, or a question is about an image that is not there.
    pub(crate) fn read(questions: &Artifact, images: &Artifact, splits: &[&str]) -> Result<Self, StageError> {
        Self::of(&asked(questions, splits)?, images)
    }

    /// As [`Self::read`], the questions of a table that is read.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn of(table: &Table, images: &Artifact) -> Result<Self, StageError> {
        let optional = |name: &str| -> Result<Vec<Option<String>>, StageError> {
            match table.column(name) {
                Some(_) => table.as_text(name),
                None => Ok(vec![None; table.rows()]),
            }
        };
        let about = table.strings("image_id")?;
        let images = read_images(images, &about.iter().copied().collect())?;
        let places: BTreeMap<&str, usize> =
            images.iter().enumerate().map(|(place, image)| (image.id.as_str(), place)).collect();
        let (split, question, answer) =
            (table.strings("split")?, table.strings("question")?, table.strings("answer")?);
        let (ids, answer_type) = (table.int64("qid")?, optional("answer_type")?);
        let (question_type, content_type) = (optional("question_type")?, optional("content_type")?);
        let question_types = question_types(table)?;
        let training_twin = match table.column(TRAINING_TWIN) {
            Some(_) => table.bools(TRAINING_TWIN)?.to_vec(),
            None => vec![None; table.rows()],
        };
        let phrase_type = optional("phrase_type")?;
        let asked = (0..table.rows()).map(|row| {
            let image = places.get(about[row]).copied().ok_or_else(|| {
                let reason = format!("a question is about `{}`, which the images do not have", about[row]);
                StageError::input(about[row], reason)
            })?;
            let closed = match &answer_type[row] {
                Some(written) => is_closed(written),
                None => matches!(normalise(answer[row]).as_str(), "yes" | "no"),
            };
            let published = question_type[row].clone().or_else(|| content_type[row].clone());
            Ok(Asked {
                id: ids[row].map_or_else(String::new, |id| id.to_string()),
                split: split[row].to_owned(),
                question: question[row].to_owned(),
                answer: answer[row].to_owned(),
                closed,
                question_types: question_types[row].clone(),
                question_type: published,
                training_twin: training_twin[row],
                phrase_type: phrase_type[row].clone(),
                image,
            })
        });
        let asked = asked.collect::<Result<_, StageError>>()?;
        Ok(Self { asked, images, protocol: table.metadata.get("protocol").cloned() })
    }

    /// Adds an image that no question is about, and gives its place.
    pub(crate) fn add(&mut self, id: &str, bytes: Vec<u8>) -> usize {
        self.images.push(AskedImage { id: id.to_owned(), group: None, bytes, path: id.to_owned() });
        self.images.len() - 1
    }

    /// The questions of a split.
    pub(crate) fn rows(&self, split: &str) -> Vec<usize> {
        (0..self.asked.len()).filter(|row| self.asked[*row].split == split).collect()
    }

    /// A column of the table of questions that `asked` were read from, as text, in their order.
    pub(crate) fn column(&self, questions: &Artifact, name: &str) -> Result<Vec<Option<String>>, StageError> {
        let table = read_columns(questions, &["qid", name])?;
        let ids = table.as_text("qid")?;
        let by_id: BTreeMap<String, Option<String>> =
            ids.into_iter().flatten().zip(table.as_text(name)?).collect();
        Ok(self.asked.iter().map(|one| by_id.get(&one.id).cloned().flatten()).collect())
    }

    /// All images as a model's preprocessing makes them, `images * side * side * 3` eight-bit values.
    ///
    /// # Errors
    /// If an image cannot be decoded.
    pub(crate) fn squares(&self, preprocessor: &Preprocessor) -> Result<Vec<u8>, StageError> {
        self.each(|picture| preprocessor.square(picture).map_err(|error| error.to_string()))
    }

    /// All images as grey squares, `images * side * side` eight-bit values.
    ///
    /// # Errors
    /// If an image cannot be decoded.
    pub(crate) fn grey(&self, side: usize) -> Result<Vec<u8>, StageError> {
        let window = Preprocessor::clip(side).window;
        self.each(|picture| Ok(grey_square(picture, side, window)))
    }

    fn each(&self, make: impl Fn(&Picture) -> Result<Vec<u8>, String> + Sync) -> Result<Vec<u8>, StageError> {
        let made: Vec<Result<Vec<u8>, StageError>> = self
            .images
            .par_iter()
            .map(|image| {
                let error =
                    |error: String| StageError::input(&image.path, format!("{error} (image {})", image.id));
                let picture = Picture::decode(&image.bytes).map_err(|problem| error(problem.to_string()))?;
                make(&picture).map_err(error)
            })
            .collect();
        let mut all = Vec::new();
        for made in made {
            all.extend(made?);
        }
        Ok(all)
    }
}

/// All types of each question: those that were told apart, else the one that is published, as one of content if need be.
///
/// # Errors
/// If the table is damaged.
pub(crate) fn question_types(table: &Table) -> Result<Vec<Vec<String>>, StageError> {
    let optional = |name: &str| match table.column(name) {
        Some(_) => table.as_text(name),
        None => Ok(vec![None; table.rows()]),
    };
    let apart = match table.column("question_types") {
        Some(Column::ListUtf8(lists)) => lists.clone(),
        _ => vec![None; table.rows()],
    };
    let published = optional("question_type")?.into_iter().zip(optional("content_type")?);
    let types = apart.into_iter().zip(published).map(|(apart, (question, content))| {
        apart.filter(|types| !types.is_empty()).unwrap_or_else(|| question.or(content).into_iter().collect())
    });
    Ok(types.collect())
}

/// The questions of some splits (all if empty) with all that their table says of them.
///
/// # Errors
/// If the table is damaged.
pub(crate) fn asked(questions: &Artifact, splits: &[&str]) -> Result<Table, StageError> {
    let table = read(questions)?;
    Ok(table.select(&table.rows_of_splits(splits)))
}

/// The wanted images, in table order.
fn read_images(artifact: &Artifact, wanted: &BTreeSet<&str>) -> Result<Vec<AskedImage>, StageError> {
    let table = read_columns(artifact, &["image_id", "group_id", "image"])?;
    let groups = match table.column("group_id") {
        Some(_) => table.as_text("group_id")?,
        None => vec![None; table.rows()],
    };
    let mut found = Vec::with_capacity(wanted.len());
    let mut seen = BTreeSet::new();
    for ((id, image), group) in table.strings("image_id")?.into_iter().zip(table.images("image")?).zip(groups)
    {
        if !wanted.contains(id) || !seen.insert(id) {
            continue;
        }
        let (bytes, path) = image.as_ref().ok_or_else(|| StageError::input(id, "the row has no image"))?;
        found.push(AskedImage { id: id.to_owned(), group, bytes: bytes.clone(), path: path.clone() });
    }
    Ok(found)
}
