//! What is written of the images that could be read: labels, captions, and what splits share of them.

use std::collections::BTreeSet;

use pipe_engine::{StageContext, StageError};

use super::Params;
use super::described::Described;
use crate::ingest::checks::Checks;
use crate::ingest::seen::{Seen, text_key};
use crate::ingest::splits::{SPLITS, place};
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions};

/// What the classes are called.
pub(super) struct Classes {
    names: Vec<String>,
    multi_label: bool,
}

impl Classes {
    /// Those that are given, or all that were found, in their order.
    pub(super) fn new(params: &Params, found: BTreeSet<String>) -> Self {
        let names = match params.classes.is_empty() {
            true => found.into_iter().collect(),
            false => params.classes.clone(),
        };
        Self { names, multi_label: params.label_separator.is_some() }
    }

    fn task(&self) -> &'static str {
        match (self.multi_label, self.names.len()) {
            (true, _) => "multi-label, binary-class",
            (false, 2) => "binary-class",
            (false, _) => "multi-class",
        }
    }

    /// The class of a row, or a bit for each.
    fn of(&self, row: &Described) -> Vec<i64> {
        let index = |label: &String| self.names.iter().position(|class| class == label);
        if self.multi_label {
            self.names.iter().map(|class| i64::from(row.labels.contains(class))).collect()
        } else {
            row.labels.first().and_then(index).map(|class| class as i64).into_iter().collect()
        }
    }
}

const LABELS: &TableSchema = &TableSchema::labels();
const CAPTIONS: &TableSchema = &TableSchema::captions();

/// Writes the outputs `labels` and `captions`, as far as there are such.
pub(super) struct Tables<'a> {
    metadata: &'a [(&'a str, String)],
    labels: Option<(Classes, TableWriter<'a>)>,
    captions: Option<TableWriter<'a>>,
    next_caption: i64,
    seen: Seen,
    /// By split: how many rows there are, and of each class how many have it.
    rows: [u64; SPLITS.len()],
    of_class: [Vec<u64>; SPLITS.len()],
}

impl<'a> Tables<'a> {
    /// Tables without rows. Their files have the entries of `metadata`.
    pub(super) fn new(
        context: &mut StageContext<'_>,
        params: &Params,
        classes: Option<Classes>,
        provenance: &'a str,
        metadata: &'a [(&'a str, String)],
    ) -> Result<Self, StageError> {
        let text = WriteOptions::text(provenance);
        let count = classes.as_ref().map_or(0, |classes| classes.names.len());
        let mut tables = Self {
            metadata,
            labels: None,
            captions: None,
            next_caption: 0,
            seen: Seen::new(&["same caption"], context.scratch()?),
            rows: [0; SPLITS.len()],
            of_class: [(); SPLITS.len()].map(|()| vec![0; count]),
        };
        if let Some(classes) = classes {
            tables.labels = Some((classes, TableWriter::new(context.output("labels")?, LABELS, text)));
        }
        if params.columns.caption.is_some() {
            tables.captions = Some(TableWriter::new(context.output("captions")?, CAPTIONS, text));
        }
        // Tables without rows have columns all the same.
        tables.push(&[])?;
        Ok(tables)
    }

    /// Whether nothing was pushed.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.iter().all(|rows| *rows == 0)
    }

    /// Writes what is said of images that are stored.
    pub(super) fn push(&mut self, rows: &[&Described]) -> Result<(), StageError> {
        for row in rows {
            let picture = &row.picture;
            self.rows[place(picture.split)] += 1;
            // A row without a caption counts its split, whose zeros say that somebody looked.
            self.seen.add(&picture.id, picture.split, &[row.caption.as_deref().map(text_key)])?;
        }
        if let Some((classes, writer)) = &mut self.labels {
            for row in rows {
                let counts = &mut self.of_class[place(row.picture.split)];
                for (class, count) in classes.names.iter().zip(counts) {
                    *count += u64::from(row.labels.contains(class));
                }
            }
            let table = Table::new()
                .with("image_id", Column::texts(rows.iter().map(|row| row.picture.id.clone())))
                .with("split", Column::texts(rows.iter().map(|row| row.picture.split)))
                .with("label", Column::ListInt64(rows.iter().map(|row| Some(classes.of(row))).collect()))
                .with_metadata("task", classes.task())
                .with_metadata("label_names", serde_json::json!(classes.names).to_string());
            writer.push(table.with_all_metadata(self.metadata))?;
        }
        if let Some(writer) = &mut self.captions {
            let captions: Vec<(&Described, &str)> =
                rows.iter().filter_map(|row| Some((*row, row.caption.as_deref()?))).collect();
            let ids = self.next_caption..self.next_caption + captions.len() as i64;
            self.next_caption = ids.end;
            let table = Table::new()
                .with("caption_id", Column::Int64(ids.map(Some).collect()))
                .with("image_id", Column::texts(captions.iter().map(|(row, _)| row.picture.id.clone())))
                .with("split", Column::texts(captions.iter().map(|(row, _)| row.picture.split)))
                .with("caption", Column::texts(captions.iter().map(|(_, caption)| *caption)))
                .with_metadata("task", "retrieval");
            writer.push(table.with_all_metadata(self.metadata))?;
        }
        Ok(())
    }

    /// Writes the rest; counts classes, and finds captions that stand twice.
    pub(super) fn finish(
        self,
        context: &mut StageContext<'_>,
        checks: &mut Checks,
    ) -> Result<(), StageError> {
        if let Some((classes, writer)) = self.labels {
            writer.finish(context.output("labels")?)?;
            for (place, split) in SPLITS.iter().enumerate().filter(|(place, _)| self.rows[*place] > 0) {
                for (name, count) in classes.names.iter().zip(&self.of_class[place]) {
                    checks.count("class", split, Some(name.clone()), *count);
                }
            }
        }
        if let Some(writer) = self.captions {
            writer.finish(context.output("captions")?)?;
        }
        self.seen.check(checks)
    }
}
