//! What is kept of rows until all are read, and the tables that come of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use pipe_engine::cache::Digest;
use pipe_engine::{OutputWriter, StageContext, StageError};
use serde::{Deserialize, Serialize};

use super::Params;
use crate::ingest::asked::Asked;
use crate::ingest::checks::Checks;
use crate::ingest::kept::Kept;
use crate::ingest::numbered::Numbered;
use crate::ingest::pictures::{Content, Picture};
use crate::ingest::questions::{self, Question};
use crate::ingest::seen::{Seen, key, text_key};
use crate::ingest::source::{SourceFile, SourceFiles};
use crate::ingest::splits::{SPLITS, place};
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions};

/// A label as it is written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum Written {
    Number(i64),
    Name(String),
}

/// A row of a file.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) bytes: Arc<[u8]>,
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
    pub(super) fn picture(&self, split: &'static str, file: &Arc<SourceFile>) -> Picture {
        Picture {
            id: self.id.clone(),
            split,
            path: if self.path.is_empty() { self.id.clone() } else { self.path.clone() },
            content: Content::Bytes(Arc::clone(&self.bytes)),
            modality: self.modality.clone(),
            region: self.region.clone(),
            licence: self.licence.clone(),
            group: self.group.clone(),
            named_by: Some((Arc::clone(file), self.number)),
        }
    }
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

/// The images that ids name.
pub(super) struct Images {
    /// By the key of the id that of the image, whose last bit is whether it could be decoded.
    named: Numbered,
}

/// The image that an id names.
#[derive(Clone, Copy)]
pub(super) struct Named {
    image: u64,
    /// Whether it could be decoded.
    pub(super) is_stored: bool,
}

impl Named {
    /// Whether this is the image of that digest.
    pub(super) fn is(self, digest: &Digest) -> bool {
        self.image == key(digest) >> 1
    }
}

impl Images {
    /// None yet; what is too long for memory goes to a file in `scratch`.
    pub(super) fn new(scratch: &Path) -> Self {
        Self { named: Numbered::new(scratch) }
    }

    pub(super) fn get(&mut self, id: &str) -> Result<Option<Named>, StageError> {
        let number = self.named.get(text_key(id))?;
        Ok(number.map(|number| Named { image: number >> 1, is_stored: number & 1 == 1 }))
    }

    pub(super) fn set(&mut self, id: &str, digest: &Digest, is_stored: bool) -> Result<(), StageError> {
        self.named.set(text_key(id), key(digest) & !1 | u64::from(is_stored))
    }
}

/// A row of the table of labels before it is known what the classes are: id, place of the split, labels.
type Labelled = (String, usize, Vec<Written>);

const LABELS: &TableSchema = &TableSchema::labels();
const CAPTIONS: &TableSchema = &TableSchema::captions();
const QUESTIONS: &TableSchema = &TableSchema::questions();

/// Rows that are read and decoded at once when labels become a table.
const BLOCK: usize = 4096;

/// What rows say of their images. Captions and questions are written as they come.
pub(super) struct Said<'a> {
    metadata: &'a [(&'a str, String)],
    labels: Kept<Labelled>,
    /// All labels that occur.
    written: BTreeSet<Written>,
    captions: Option<TableWriter<'a>>,
    captions_seen: Seen,
    next_caption: i64,
    questions: Option<TableWriter<'a>>,
    asked: Asked,
    next_question: i64,
}

/// A caption of an image, with its concepts.
pub(super) struct Caption {
    pub(super) image: String,
    pub(super) split: &'static str,
    pub(super) caption: String,
    pub(super) cuis: Option<Vec<String>>,
}

impl<'a> Said<'a> {
    /// Nothing yet. Every file of a table has the entries of `metadata`.
    pub(super) fn new(
        context: &mut StageContext<'_>,
        params: &Params,
        provenance: &'a str,
        metadata: &'a [(&'a str, String)],
    ) -> Result<Self, StageError> {
        let scratch = context.scratch()?.to_owned();
        let mut said = Self {
            metadata,
            labels: Kept::new(&scratch),
            written: BTreeSet::new(),
            captions: None,
            captions_seen: Seen::new(&["same caption"], &scratch),
            next_caption: 0,
            questions: None,
            asked: Asked::new(&scratch),
            next_question: 0,
        };
        // Tables without rows have columns all the same.
        if params.columns.caption.is_some() {
            let output = context.output("captions")?;
            said.captions = Some(TableWriter::new(output, CAPTIONS, WriteOptions::text(provenance)));
            said.captions(Vec::new())?;
        }
        if params.columns.question.is_some() {
            let options = WriteOptions { shard_rows: params.shard_rows as usize, provenance };
            said.questions = Some(TableWriter::new(context.output("questions")?, QUESTIONS, options));
            said.questions(Vec::new())?;
        }
        Ok(said)
    }

    /// Keeps the labels of an image.
    pub(super) fn labels(&mut self, id: &str, split: &str, labels: Vec<Written>) -> Result<(), StageError> {
        for label in &labels {
            if !self.written.contains(label) {
                self.written.insert(label.clone());
            }
        }
        self.labels.push(&(id.to_owned(), place(split), labels))
    }

    /// How many different labels there are.
    pub(super) fn different_labels(&self) -> usize {
        self.written.len()
    }

    /// Writes captions.
    pub(super) fn captions(&mut self, captions: Vec<Caption>) -> Result<(), StageError> {
        let Some(writer) = &mut self.captions else { return Ok(()) };
        for one in &captions {
            self.captions_seen.add(&one.image, one.split, &[Some(text_key(&one.caption))])?;
        }
        let ids = self.next_caption..self.next_caption + captions.len() as i64;
        self.next_caption = ids.end;
        let table = Table::new()
            .with("caption_id", Column::Int64(ids.map(Some).collect()))
            .with("image_id", Column::texts(captions.iter().map(|one| one.image.clone())))
            .with("split", Column::texts(captions.iter().map(|one| one.split)))
            .with("caption", Column::texts(captions.iter().map(|one| one.caption.clone())))
            .with("cuis", Column::ListUtf8(captions.into_iter().map(|one| one.cuis).collect()))
            .with_metadata("task", "retrieval");
        writer.push(table.with_all_metadata(self.metadata))
    }

    /// Writes questions, which get their numbers here.
    pub(super) fn questions(&mut self, mut questions: Vec<Question>) -> Result<(), StageError> {
        let Some(writer) = &mut self.questions else { return Ok(()) };
        for (qid, one) in (self.next_question..).zip(&mut questions) {
            one.qid = qid;
            self.asked.add(one)?;
        }
        self.next_question += questions.len() as i64;
        writer.push(questions::table(&questions).with_all_metadata(self.metadata))
    }

    /// Writes the rest of captions and questions, and what splits share.
    pub(super) fn finish(
        self,
        context: &mut StageContext<'_>,
        checks: &mut Checks,
    ) -> Result<(), StageError> {
        if let Some(writer) = self.captions {
            writer.finish(context.output("captions")?)?;
            for split in self.captions_seen.splits() {
                checks.count("captions", split, None, self.captions_seen.count(split));
            }
            self.captions_seen.check(checks)?;
        }
        if let Some(writer) = self.questions {
            writer.finish(context.output("questions")?)?;
            self.asked.check(checks)?;
        }
        Ok(())
    }

    /// Writes the table of labels; counts classes. `told` are the classes that the files tell.
    pub(super) fn write_labels(
        &self,
        params: &Params,
        told: Option<&[String]>,
        files: &SourceFiles,
        provenance: &str,
        output: &mut OutputWriter,
        checks: &mut Checks,
    ) -> Result<(), StageError> {
        let classes = self.class_names(params, told);
        let mut writer = TableWriter::new(output, LABELS, WriteOptions::text(provenance));
        let mut counts = [(); SPLITS.len()].map(|()| vec![0; classes.len()]);
        let mut rows = [0; SPLITS.len()];
        let nothing = std::iter::once(Ok(Vec::new()));
        for block in nothing.chain(self.labels.blocks(BLOCK)) {
            let block: Vec<Labelled> = block?;
            let mut values = Vec::with_capacity(block.len());
            for (id, split, labels) in &block {
                let value =
                    bits_or_class(params, &classes, id, labels).map_err(|reason| files.error(reason))?;
                rows[*split] += 1;
                for (class, count) in counts[*split].iter_mut().enumerate() {
                    let has = match params.multi_label {
                        true => value[class] == 1,
                        false => value[0] == class as i64,
                    };
                    *count += u64::from(has);
                }
                values.push(Some(value));
            }
            let task = match (params.multi_label, classes.len()) {
                (true, _) => "multi-label, binary-class",
                (false, 2) => "binary-class",
                (false, _) => "multi-class",
            };
            let table = Table::new()
                .with("image_id", Column::texts(block.iter().map(|(id, ..)| id.clone())))
                .with("split", Column::texts(block.iter().map(|(_, split, _)| SPLITS[*split])))
                .with("label", Column::ListInt64(values))
                .with_metadata("task", task)
                .with_metadata("label_names", serde_json::json!(classes).to_string());
            writer.push(table.with_all_metadata(self.metadata))?;
        }
        for (place, split) in SPLITS.iter().enumerate().filter(|(place, _)| rows[*place] > 0) {
            for (name, count) in classes.iter().zip(&counts[place]) {
                checks.count("class", split, Some(name.clone()), *count);
            }
        }
        writer.finish(output)
    }

    /// The names of the classes: given, told by the files, or all that occur.
    fn class_names(&self, params: &Params, told: Option<&[String]>) -> Vec<String> {
        if !params.classes.is_empty() {
            return params.classes.clone();
        }
        if let Some(classes) = told {
            return classes.to_vec();
        }
        let greatest = self.written.iter().filter_map(|label| match label {
            Written::Number(number) => Some(*number),
            Written::Name(_) => None,
        });
        match greatest.max() {
            Some(greatest) => (0..=greatest.clamp(0, 65_535)).map(|class| class.to_string()).collect(),
            None => self
                .written
                .iter()
                .filter_map(|label| match label {
                    Written::Name(name) => Some(name.clone()),
                    Written::Number(_) => None,
                })
                .collect(),
        }
    }
}

/// The labels of an image as the table has them: its class, or with `multi_label` a bit for each; the reason if they
/// are none of the classes.
fn bits_or_class(
    params: &Params,
    classes: &[String],
    id: &str,
    labels: &[Written],
) -> Result<Vec<i64>, String> {
    let mut places = Vec::with_capacity(labels.len());
    for label in labels {
        let (place, written) = match label {
            Written::Number(number) => {
                let place = usize::try_from(*number).ok().filter(|number| *number < classes.len());
                (place, number.to_string())
            }
            Written::Name(name) => (classes.iter().position(|class| class == name), format!("`{name}`")),
        };
        let unknown = || format!("`{id}` has the label {written}; the classes are {classes:?}");
        places.push(place.ok_or_else(unknown)? as i64);
    }
    if params.multi_label {
        return Ok((0..classes.len() as i64).map(|class| i64::from(places.contains(&class))).collect());
    }
    match places.len() {
        1 => Ok(places),
        count => Err(format!("`{id}` has {count} labels; `multi_label = true` takes them as independent")),
    }
}
