//! What is kept of rows until all are read, and the tables that come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pipe_engine::StageError;
use pipe_engine::cache::Digest;

use super::Params;
use crate::ingest::checks::Checks;
use crate::ingest::pictures::{Content, Picture};
use crate::ingest::questions::Question;
use crate::ingest::seen::{Seen, text_key};
use crate::ingest::source::{SourceFile, SourceFiles};
use crate::ingest::splits::SPLITS;
use crate::table::{Column, Table};

/// A label as it is written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Written {
    Number(i64),
    Name(String),
}

/// A row of a file.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) bytes: Vec<u8>,
    pub(super) path: String,
    pub(super) number: usize,
    pub(super) group: Option<String>,
    pub(super) modality: Option<String>,
    pub(super) region: Option<String>,
    pub(super) licence: Option<String>,
    pub(super) labels: Vec<Written>,
    pub(super) captions: Vec<String>,
    pub(super) cuis: Option<Vec<String>>,
    pub(super) question: Option<(String, String)>,
    pub(super) answer_type: Option<String>,
}

impl Row {
    /// Its image, which the row names.
    pub(super) fn picture<'a>(&self, split: &'static str, file: &'a SourceFile) -> Picture<'a> {
        Picture {
            id: self.id.clone(),
            split,
            path: if self.path.is_empty() { self.id.clone() } else { self.path.clone() },
            content: Content::Bytes(self.bytes.clone()),
            modality: self.modality.clone(),
            region: self.region.clone(),
            licence: self.licence.clone(),
            group: self.group.clone(),
            named_by: Some((file, self.number)),
        }
    }
}

/// The image that an id names.
pub(super) struct Named {
    /// The digest of its bytes.
    pub(super) digest: Digest,
    /// Whether it could be decoded.
    pub(super) is_stored: bool,
}

/// What is kept of rows until all are read.
#[derive(Default)]
pub(super) struct Rows {
    /// The images that were met, by id.
    pub(super) images: BTreeMap<String, Named>,
    pub(super) labels: Vec<(String, &'static str, Vec<Written>)>,
    /// Id, split, caption and concepts.
    pub(super) captions: Vec<(String, &'static str, String, Option<Vec<String>>)>,
    pub(super) questions: Vec<Question>,
    /// How many rows of each split were read.
    pub(super) positions: [usize; 3],
    /// The names of the classes that the files tell.
    pub(super) classes: Option<Vec<String>>,
}

/// The labels of a row.
pub(super) fn labels(table: &Table, column: Option<&str>, row: usize) -> Result<Vec<Written>, StageError> {
    let Some(name) = column else { return Ok(Vec::new()) };
    Ok(match table.column(name) {
        Some(Column::Int64(values)) => values[row].into_iter().map(Written::Number).collect(),
        Some(Column::Bool(values)) => {
            values[row].into_iter().map(|value| Written::Number(i64::from(value))).collect()
        }
        Some(Column::ListInt64(values)) => {
            values[row].iter().flatten().map(|value| Written::Number(*value)).collect()
        }
        Some(Column::ListUtf8(values)) => values[row].iter().flatten().cloned().map(Written::Name).collect(),
        _ => table.as_text(name)?[row].clone().into_iter().map(Written::Name).collect(),
    })
}

/// The texts of a row in a column of texts or of lists of them, without empty ones.
pub(super) fn texts(table: &Table, column: Option<&str>, row: usize) -> Result<Vec<String>, StageError> {
    let Some(name) = column else { return Ok(Vec::new()) };
    let all = match table.column(name) {
        Some(Column::ListUtf8(values)) => values[row].clone().unwrap_or_default(),
        _ => table.as_text(name)?[row].clone().into_iter().collect(),
    };
    Ok(all.into_iter().filter(|caption| !caption.trim().is_empty()).collect())
}

impl Rows {
    /// The table of labels; counts classes.
    pub(super) fn label_table(
        &self,
        params: &Params,
        files: &SourceFiles,
        checks: &mut Checks,
    ) -> Result<Table, StageError> {
        let classes = self.class_names(params);
        let class_of = |label: &Written| match label {
            Written::Number(number) => usize::try_from(*number).ok().filter(|number| *number < classes.len()),
            Written::Name(name) => classes.iter().position(|class| class == name),
        };
        let mut values = Vec::with_capacity(self.labels.len());
        for (id, _, labels) in &self.labels {
            let mut places = Vec::with_capacity(labels.len());
            for label in labels {
                let written = match label {
                    Written::Number(number) => number.to_string(),
                    Written::Name(name) => format!("`{name}`"),
                };
                let unknown =
                    || files.error(format!("`{id}` has the label {written}; the classes are {classes:?}"));
                places.push(class_of(label).ok_or_else(unknown)? as i64);
            }
            if params.multi_label {
                places = (0..classes.len() as i64).map(|class| i64::from(places.contains(&class))).collect();
            } else if places.len() != 1 {
                return Err(files.error(format!(
                    "`{id}` has {} labels; `multi_label = true` takes them as independent",
                    places.len()
                )));
            }
            values.push(Some(places));
        }
        for split in SPLITS.into_iter().filter(|split| self.labels.iter().any(|(_, of, _)| of == split)) {
            for (class, name) in classes.iter().enumerate() {
                let has = |value: &[i64]| match params.multi_label {
                    true => value[class] == 1,
                    false => value[0] == class as i64,
                };
                let of_split = self.labels.iter().zip(&values).filter(|((_, of, _), _)| *of == split);
                let count = of_split.filter(|(_, value)| value.as_deref().is_some_and(has)).count();
                checks.count("class", split, Some(name.clone()), count as u64);
            }
        }
        let task = match (params.multi_label, classes.len()) {
            (true, _) => "multi-label, binary-class",
            (false, 2) => "binary-class",
            (false, _) => "multi-class",
        };
        Ok(Table::new()
            .with("image_id", Column::texts(self.labels.iter().map(|(id, ..)| id.clone())))
            .with("split", Column::texts(self.labels.iter().map(|(_, split, _)| *split)))
            .with("label", Column::ListInt64(values))
            .with_metadata("task", task)
            .with_metadata("label_names", serde_json::json!(classes).to_string()))
    }

    /// The names of the classes: given, told by the files, or all that occur.
    fn class_names(&self, params: &Params) -> Vec<String> {
        if !params.classes.is_empty() {
            return params.classes.clone();
        }
        if let Some(classes) = &self.classes {
            return classes.clone();
        }
        let written: BTreeSet<&Written> = self.labels.iter().flat_map(|(_, _, labels)| labels).collect();
        let greatest = written.iter().filter_map(|label| match label {
            Written::Number(number) => Some(*number),
            Written::Name(_) => None,
        });
        match greatest.max() {
            Some(greatest) => (0..=greatest.clamp(0, 65_535)).map(|class| class.to_string()).collect(),
            None => written
                .into_iter()
                .filter_map(|label| match label {
                    Written::Name(name) => Some(name.clone()),
                    Written::Number(_) => None,
                })
                .collect(),
        }
    }

    /// The table of captions; finds those that stand twice.
    pub(super) fn caption_table(&self, scratch: &Path, checks: &mut Checks) -> Result<Table, StageError> {
        let mut seen = Seen::new(&["same caption"], scratch);
        for (id, split, caption, _) in &self.captions {
            seen.add(id, split, &[Some(text_key(caption))])?;
        }
        for split in seen.splits() {
            checks.count("captions", split, None, seen.count(split));
        }
        seen.check(checks)?;
        Ok(Table::new()
            .with("caption_id", Column::Int64((0..self.captions.len() as i64).map(Some).collect()))
            .with("image_id", Column::texts(self.captions.iter().map(|(id, ..)| id.clone())))
            .with("split", Column::texts(self.captions.iter().map(|(_, split, ..)| *split)))
            .with("caption", Column::texts(self.captions.iter().map(|(_, _, caption, _)| caption.clone())))
            .with("cuis", Column::ListUtf8(self.captions.iter().map(|(.., cuis)| cuis.clone()).collect()))
            .with_metadata("task", "retrieval"))
    }
}
