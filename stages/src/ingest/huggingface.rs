//! The stage kind `ingest.huggingface`: Parquet files with a column of images, as data sets on Hugging Face
//! have them.

mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use pipe_engine::cache::Digest;
use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::rows::{Caption, Images, Row, Said, labels, texts};
use super::MOST_CLASSES;
use super::checks::Checks;
use super::origin::{source_md5, version};
use super::parquet::ParquetRows;
use super::pictures::ImageWriter;
use super::questions::{Question, answer_type};
use super::rejects::Rejects;
use super::source::{SourceFile, SourceFiles};
use super::splits::{SPLITS, canonical, drawn, named_in, place};
use crate::table::{Table, WriteOptions};
use crate::{artifact, truth};

/// Which column says what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// The image: `struct<bytes, path>`, or bytes.
    pub image: String,
    /// The id; by default split and position, or with questions the digest of the image.
    pub id: Option<String>,
    /// The split; by default what the files are named after.
    pub split: Option<String>,
    /// The class, by number or by name, or a list of them.
    pub label: Option<String>,
    /// A caption, or a list of them.
    pub caption: Option<String>,
    /// Concepts of the captions (UMLS), a list of them.
    pub cuis: Option<String>,
    /// A question.
    pub question: Option<String>,
    /// The answer to the question.
    pub answer: Option<String>,
    /// `OPEN` or `CLOSED`.
    pub answer_type: Option<String>,
    /// What is not independent: a patient, an article.
    pub group: Option<String>,
    /// The modality.
    pub modality: Option<String>,
    /// The region of the body.
    pub region: Option<String>,
    /// The licence of the image.
    pub licence: Option<String>,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            image: "image".to_owned(),
            id: None,
            split: None,
            label: None,
            caption: None,
            cuis: None,
            question: None,
            answer: None,
            answer_type: None,
            group: None,
            modality: None,
            region: None,
            licence: None,
        }
    }
}

impl Columns {
    /// The columns that are read.
    fn names(&self) -> Vec<&str> {
        let optional = [
            &self.id,
            &self.split,
            &self.label,
            &self.caption,
            &self.cuis,
            &self.question,
            &self.answer,
            &self.answer_type,
            &self.group,
            &self.modality,
            &self.region,
            &self.licence,
        ];
        let mut names = vec![self.image.as_str()];
        for name in optional.into_iter().flatten() {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

/// Parameters of `ingest.huggingface`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The name of the data set.
    pub dataset: String,
    /// The version of the data set, for the metadata of the tables.
    pub version: Option<String>,
    /// Which column says what.
    pub columns: Columns,
    /// The classes in index order; by default those of the files' metadata, else all that occur, sorted.
    pub classes: Vec<String>,
    /// Whether labels are lists of independent classes.
    pub multi_label: bool,
    /// Where no split is given: the share of groups (of rows, where there are no groups) for validation.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub val: f64,
    /// The same for testing.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub test: f64,
    /// Decides who is drawn for validation and testing.
    pub seed: i64,
    /// The licence of images that have none of their own.
    pub licence: Option<String>,
    /// How many rows may be left out before the stage fails.
    #[schemars(range(min = 0))]
    pub max_rejects: i64,
    /// Rows of a part of the table of images, on average.
    #[schemars(range(min = 4, max = 65536))]
    pub shard_rows: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            dataset: "huggingface".to_owned(),
            version: None,
            columns: Columns::default(),
            classes: Vec::new(),
            multi_label: false,
            val: 0.0,
            test: 0.0,
            seed: 0,
            licence: None,
            max_rejects: 0,
            shard_rows: 256,
        }
    }
}

/// Reads Parquet files of images.
pub struct IngestHuggingFace;

impl StageKind for IngestHuggingFace {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.huggingface",
            summary: "reads Parquet files with a column of images, as on Hugging Face",
            implementation: 5,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE, ArtifactType::TREE],
                "a Parquet file, or a folder of them named after their splits",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let mut ports = vec![OutputPort::new("images", artifact::IMAGES, "the images, as found")];
        if params.columns.label.is_some() {
            ports.push(OutputPort::new("labels", artifact::LABELS, "their classes"));
        }
        if params.columns.caption.is_some() {
            ports.push(OutputPort::new("captions", artifact::CAPTIONS, "their captions"));
        }
        if params.columns.question.is_some() {
            ports.push(OutputPort::new("questions", artifact::QUESTIONS, "questions with answers"));
        }
        ports.push(OutputPort::new("checks", artifact::CHECKS, "counts, and what splits share"));
        ports.push(OutputPort::new("sheets", artifact::SHEETS, "the first images of each split, to look at"));
        ports.push(OutputPort::new("rejects", artifact::REJECTS, "what was left out, and why"));
        ports
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems = Vec::new();
        let mut wrong = |path: &str, message: &str| {
            let (path, message) = (path.to_owned(), message.to_owned());
            problems.push(ParameterProblem { path, message, help: None });
        };
        if params.val + params.test > 1.0 {
            wrong("test", "validation and test take more than everything");
        }
        let columns = &params.columns;
        if columns.cuis.is_some() && columns.caption.is_none() {
            wrong("columns.cuis", "concepts are those of captions: name their column too");
        }
        if params.columns.question.is_some() != params.columns.answer.is_some() {
            wrong("columns.question", "a question needs an answer, and the other way round");
        }
        let shown = [
            ("label", &columns.label),
            ("caption", &columns.caption),
            ("cuis", &columns.cuis),
            ("question", &columns.question),
            ("answer", &columns.answer),
        ];
        problems.extend(
            shown
                .iter()
                .filter_map(|(name, column)| truth::refused(&format!("columns.{name}"), column.as_deref()?)),
        );
        problems
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let files = SourceFiles::input(context, "source")?;
        let metadata = [
            ("dataset", params.dataset.clone()),
            ("dataset_version", version(params.version.as_deref())),
            ("source_md5", source_md5(&[&files], |_| true, context)?),
            ("licence", params.licence.clone().unwrap_or_else(|| "unknown".to_owned())),
        ];
        let provenance = context.provenance().to_owned();
        let options = WriteOptions { shard_rows: params.shard_rows as usize, provenance: &provenance };
        let images = ImageWriter::new(context, options, &metadata)?;
        let said = Said::new(context, params, &provenance, &metadata)?;
        let mut ingest = Ingest {
            params,
            images,
            said,
            rejects: Rejects::new(context.scratch()?),
            named: Images::new(context.scratch()?),
            positions: [0; SPLITS.len()],
            classes: None,
            is_empty: true,
        };
        let parquet = files.filtered(|path| path.ends_with(".parquet"));
        let parquet = parquet.collect::<Result<Vec<Arc<SourceFile>>, StageError>>()?;
        if parquet.is_empty() {
            return Err(files.error("it has no .parquet file"));
        }
        // Rows stand in the order of splits: a file that may hold several is read once for each.
        for split in SPLITS {
            for file in &parquet {
                let of = named_in(&file.path).filter(|_| params.columns.split.is_none());
                if of.is_none_or(|of| of == split) {
                    ingest.read(file, split, of.is_some(), context)?;
                }
            }
        }
        let Ingest { images, said, rejects, classes, is_empty, .. } = ingest;
        let stored = images.finish(context.output("images")?)?;
        if is_empty {
            return Err(files.error("there is no image to read"));
        }
        let mut checks = Checks::default();
        stored.check(&mut checks)?;
        if params.columns.label.is_some() {
            let output = context.output("labels")?;
            said.write_labels(params, classes.as_deref(), &files, &provenance, output, &mut checks)?;
        }
        said.finish(context, &mut checks)?;
        rejects.count_reasons(&mut checks);
        checks.write(context.output("checks")?, &provenance)?;
        stored.sheets().write(context.output("sheets")?)?;
        rejects.write(params.max_rejects, "rejects", context)
    }
}

struct Ingest<'a> {
    params: &'a Params,
    images: ImageWriter<'a>,
    said: Said<'a>,
    rejects: Rejects,
    /// The images that were met, by id.
    named: Images,
    /// How many rows of each split were read.
    positions: [usize; SPLITS.len()],
    /// The names of the classes that the files tell.
    classes: Option<Vec<String>>,
    /// Whether no image could be decoded yet.
    is_empty: bool,
}

impl Ingest<'_> {
    /// Reads the rows of one split from a file. What is wrong with a row that is of no split is said once.
    fn read(
        &mut self,
        file: &Arc<SourceFile>,
        split: &'static str,
        is_named: bool,
        context: &mut StageContext<'_>,
    ) -> Result<(), StageError> {
        let columns = &self.params.columns;
        let mut rows = ParquetRows::open(file, &columns.names())?;
        if let Some(label) = &columns.label {
            let names = rows.class_names(label);
            if self.classes.is_some() && names.is_some() && self.classes != names {
                return Err(file.error("its classes are others than those of the files before it"));
            }
            self.classes = self.classes.take().or(names);
        }
        let total = rows.rows();
        while let Some((first, table)) = rows.next()? {
            context.check_cancelled()?;
            let taken = self.take(file, split, is_named, first, &table)?;
            self.write(file, split, taken)?;
            let figures = [("MB", self.images.megabytes())];
            context.progress((first + table.rows()) as u64 - 1, total, "rows", &figures);
        }
        Ok(())
    }

    /// The rows of a block that are of this split.
    fn take(
        &mut self,
        file: &Arc<SourceFile>,
        split: &'static str,
        is_named: bool,
        first: usize,
        table: &Table,
    ) -> Result<Vec<Row>, StageError> {
        let (params, columns) = (self.params, &self.params.columns);
        let wrong = |error: StageError| match error {
            StageError::InputData { reason, .. } => file.error(reason),
            error => error,
        };
        let optional = |name: &Option<String>| -> Result<Vec<Option<String>>, StageError> {
            match name {
                Some(name) => table.as_text(name).map_err(wrong),
                None => Ok(vec![None; table.rows()]),
            }
        };
        let images = table.images(&columns.image).map_err(wrong)?;
        let (ids, splits) = (optional(&columns.id)?, optional(&columns.split)?);
        let (groups, modalities) = (optional(&columns.group)?, optional(&columns.modality)?);
        let (regions, licences) = (optional(&columns.region)?, optional(&columns.licence)?);
        let (questions, answers) = (optional(&columns.question)?, optional(&columns.answer)?);
        let types = optional(&columns.answer_type)?;
        let mut taken = Vec::new();
        for row in 0..table.rows() {
            let number = first + row;
            let mut reject = |id: Option<&str>, reason: String, told: bool| {
                if told {
                    self.rejects.add(file, Some(number), id, reason);
                }
            };
            let id = ids[row].clone();
            // What no pass would take is told of in the first.
            let first_pass = is_named || split == "train";
            let Some((bytes, path)) = images[row].as_ref().filter(|(bytes, _)| !bytes.is_empty()) else {
                reject(id.as_deref(), "it has no image".to_owned(), first_pass);
                continue;
            };
            let drawn_by = groups[row]
                .clone()
                .or_else(|| id.clone())
                .unwrap_or_else(|| format!("{} {number}", file.path));
            let of = match (&splits[row], is_named) {
                (_, true) => split,
                (Some(written), _) => match canonical(written) {
                    Some(of) => of,
                    None => {
                        reject(id.as_deref(), format!("`{written}` is no split"), first_pass);
                        continue;
                    }
                },
                (None, _) if columns.split.is_some() => {
                    reject(id.as_deref(), "it has no split".to_owned(), first_pass);
                    continue;
                }
                (None, _) => drawn(params.seed, &drawn_by, params.val, params.test),
            };
            if of != split {
                continue;
            }
            self.positions[place(split)] += 1;
            let asks = columns.question.is_some();
            let id = id.unwrap_or_else(|| match asks {
                true => Digest::of(bytes).to_hex()[..16].to_owned(),
                false => format!("{}/{split}/{}", params.dataset, self.positions[place(split)] - 1),
            });
            let question = match (&questions[row], &answers[row]) {
                (Some(question), Some(answer)) => Some((question.clone(), answer.clone())),
                _ if asks => {
                    reject(Some(&id), "it lacks a question or an answer".to_owned(), true);
                    continue;
                }
                _ => None,
            };
            let labels = labels(table, columns.label.as_deref(), row).map_err(wrong)?;
            if columns.label.is_some() && labels.is_empty() && !params.multi_label {
                reject(Some(&id), "it has no label".to_owned(), true);
                continue;
            }
            taken.push(Row {
                id,
                bytes: bytes.as_slice().into(),
                path: path.clone(),
                number,
                group: groups[row].clone(),
                modality: modalities[row].clone(),
                region: regions[row].clone(),
                licence: licences[row].clone().or_else(|| params.licence.clone()),
                labels,
                captions: texts(table, columns.caption.as_deref(), row).map_err(wrong)?,
                cuis: match columns.cuis.as_deref() {
                    Some(cuis) => Some(texts(table, Some(cuis), row).map_err(wrong)?),
                    None => None,
                },
                question,
                answer_type: types[row].clone(),
            });
        }
        Ok(taken)
    }

    /// Writes the images of a block, and keeps what is said of them. The first row of an id says which image it
    /// names; a later row of the same id adds to it if its image is the same one.
    fn write(
        &mut self,
        file: &Arc<SourceFile>,
        split: &'static str,
        rows: Vec<Row>,
    ) -> Result<(), StageError> {
        let asks = self.params.columns.question.is_some();
        let digests: Vec<Digest> = rows.par_iter().map(|row| Digest::of(&row.bytes)).collect();
        let mut firsts = BTreeSet::new();
        let mut pictures = Vec::new();
        let mut of_pictures = Vec::new();
        for (row, digest) in rows.iter().zip(&digests) {
            if self.named.get(&row.id)?.is_none() {
                self.named.set(&row.id, digest, false)?;
                firsts.insert(row.number);
                pictures.push(row.picture(split, file));
                of_pictures.push(digest);
            }
        }
        let kept = self.images.push(&pictures, &mut self.rejects)?;
        for ((picture, digest), _) in pictures.iter().zip(of_pictures).zip(kept).filter(|(_, kept)| *kept) {
            self.named.set(&picture.id, digest, true)?;
            self.is_empty = false;
        }
        let (mut captions, mut questions) = (Vec::new(), Vec::new());
        for (row, digest) in rows.into_iter().zip(&digests) {
            let is_first = firsts.contains(&row.number);
            let lost = match self.named.get(&row.id)? {
                // Its own image was rejected as it was read.
                Some(named) if is_first && !named.is_stored => continue,
                Some(named) if !named.is(digest) => Some(format!(
                    "the id `{}` names another image in an earlier row; without `columns.id`, rows are named by split and position",
                    row.id
                )),
                Some(named) if !named.is_stored => Some(format!("its image `{}` cannot be decoded", row.id)),
                _ if !is_first && !asks && row.captions.is_empty() => {
                    Some(format!("the id `{}` stands twice", row.id))
                }
                _ => None,
            };
            if let Some(reason) = lost {
                self.rejects.add(file, Some(row.number), Some(&row.id), reason);
                continue;
            }
            if is_first && self.params.columns.label.is_some() {
                self.said.labels(&row.id, split, row.labels)?;
                if self.said.different_labels() > MOST_CLASSES {
                    let reason =
                        format!("there are more than {MOST_CLASSES} different labels: are they ids?");
                    return Err(file.error(reason));
                }
            }
            for caption in row.captions {
                captions.push(Caption { image: row.id.clone(), split, caption, cuis: row.cuis.clone() });
            }
            if let Some((question, answer)) = row.question {
                let answer_type = row.answer_type.as_deref().and_then(answer_type);
                let image = row.id;
                questions.push(Question {
                    image,
                    split,
                    question,
                    answer,
                    answer_type,
                    ..Question::default()
                });
            }
        }
        self.said.captions(captions)?;
        self.said.questions(questions)?;
        self.rejects.check(self.params.max_rejects)
    }
}
