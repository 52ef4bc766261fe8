//! The stage kind `ingest.images`: a folder of one's own, sorted into folders or described by a CSV file.

mod described;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::described::{Described, from_csv, from_folders};
use super::checks::Checks;
use super::origin::{source_md5, version};
use super::pictures::{Picture, StoredImages, write_images};
use super::rejects::Rejects;
use super::source::SourceFiles;
use super::splits;
use crate::table::{Column, Table, TableSchema, WriteOptions, write};
use crate::{artifact, truth};

/// What the name of a folder says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FolderMeaning {
    /// The split.
    Split,
    /// The class.
    Label,
    /// What is not independent: a patient, a lesion.
    Group,
    /// Nothing.
    Ignore,
}

/// The columns of the CSV file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// The path of the image inside the folder.
    pub image: String,
    /// The id; by default the path.
    pub id: Option<String>,
    /// The split.
    pub split: Option<String>,
    /// The class, or several (see `label_separator`).
    pub label: Option<String>,
    /// A caption.
    pub caption: Option<String>,
    /// What is not independent: a patient, a lesion.
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
            group: None,
            modality: None,
            region: None,
            licence: None,
        }
    }
}

/// Parameters of `ingest.images`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The name of the data set.
    pub dataset: String,
    /// The version of the data set, for the metadata of the tables.
    pub version: Option<String>,
    /// Without a CSV file: what the folders say, from the outermost.
    pub folders: Vec<FolderMeaning>,
    /// With a CSV file: which column says what.
    pub columns: Columns,
    /// With a CSV file: the character between fields.
    pub delimiter: String,
    /// The classes in index order; by default all that occur, sorted.
    pub classes: Vec<String>,
    /// What stands between the labels of one image. With it labels are independent bits.
    pub label_separator: Option<String>,
    /// Where no split is given: the share of groups (of images, where there are no groups) for validation.
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
            dataset: "images".to_owned(),
            version: None,
            folders: Vec::new(),
            columns: Columns::default(),
            delimiter: ",".to_owned(),
            classes: Vec::new(),
            label_separator: None,
            val: 0.0,
            test: 0.0,
            seed: 0,
            licence: None,
            max_rejects: 0,
            shard_rows: 256,
        }
    }
}

impl Params {
    fn has_labels(&self) -> bool {
        self.columns.label.is_some() || self.folders.contains(&FolderMeaning::Label)
    }
}

/// Reads images of one's own.
pub struct IngestImages;

impl StageKind for IngestImages {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.images",
            summary: "reads a folder of PNG and JPEG files, sorted into folders or described by a CSV file",
            implementation: 2,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("source", &[ArtifactType::FILE], "the folder of images"),
                InputPort::optional("table", &[ArtifactType::FILE], "a CSV file with a row per image"),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let mut ports = vec![OutputPort::new("images", artifact::IMAGES, "the images, as found")];
        if params.has_labels() {
            ports.push(OutputPort::new("labels", artifact::LABELS, "their classes"));
        }
        if params.columns.caption.is_some() {
            ports.push(OutputPort::new("captions", artifact::CAPTIONS, "their captions"));
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
        if params.delimiter.len() != 1 {
            wrong("delimiter", "one ASCII character is expected");
        }
        if params.label_separator.as_deref() == Some("") {
            wrong("label_separator", "it is empty");
        }
        for (index, meaning) in params.folders.iter().enumerate() {
            if *meaning != FolderMeaning::Ignore && params.folders[..index].contains(meaning) {
                wrong(&format!("folders[{index}]"), "another folder says this already");
            }
        }
        let shown = [("label", &params.columns.label), ("caption", &params.columns.caption)];
        problems.extend(
            shown
                .iter()
                .filter_map(|(name, column)| truth::refused(&format!("columns.{name}"), column.as_deref()?)),
        );
        problems
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut rejects = Rejects::default();
        let files = SourceFiles::of(context.input("source")?)?;
        let table = match context.optional_input("table") {
            Some(table) => Some(SourceFiles::of(table)?),
            None => None,
        };
        let rows = match &table {
            Some(table) => {
                let mut tables = table.iter();
                let (Some(file), None) = (tables.next(), tables.next()) else {
                    return Err(table.error("one CSV file is expected"));
                };
                from_csv(file, &files, params, &mut rejects)?
            }
            None => from_folders(&files, params, &mut rejects)?,
        };
        let rows = distinct(rows, &mut rejects);
        let (rows, labels) = Labels::read(rows, params, &mut rejects)?;
        rejects.check(params.max_rejects)?;
        let sources: Vec<&SourceFiles> = std::iter::once(&files).chain(&table).collect();
        let pictures: Vec<Picture<'_>> = rows.iter().map(|row| row.picture.clone()).collect();
        let metadata = [
            ("dataset", params.dataset.clone()),
            ("dataset_version", version(params.version.as_deref())),
            ("source_md5", source_md5(&sources, |_| true, context)?),
            ("licence", params.licence.clone().unwrap_or_else(|| "unknown".to_owned())),
        ];
        let (kept, stored) = write_images(&pictures, &metadata, params.shard_rows, &mut rejects, context)?;
        rejects.check(params.max_rejects)?;
        if !kept.contains(&true) {
            return Err(files.error("there is no image to read; PNG and JPEG files are"));
        }
        let rows: Vec<&Described<'_>> =
            rows.iter().zip(kept).filter(|(_, kept)| *kept).map(|(row, _)| row).collect();
        let provenance = context.provenance().to_owned();
        let text = WriteOptions::text(&provenance);
        if let Some(labels) = &labels {
            let table = labels.table(&rows).with_all_metadata(&metadata);
            write(context.output("labels")?, &TableSchema::labels(), &table, text)?;
        }
        if params.columns.caption.is_some() {
            let table = caption_table(&rows).with_all_metadata(&metadata);
            write(context.output("captions")?, &TableSchema::captions(), &table, text)?;
        }
        checks(&stored, &rows, labels.as_ref())?.write(context.output("checks")?, &provenance)?;
        stored.sheets().write(context.output("sheets")?)?;
        rejects.write(params.max_rejects, "rejects", context)
    }
}

/// Rows in the order of splits; an id that stands twice is rejected where it stands again.
fn distinct<'a>(rows: Vec<Described<'a>>, rejects: &mut Rejects) -> Vec<Described<'a>> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept: Vec<Described<'a>> = Vec::with_capacity(rows.len());
    for row in rows {
        let id = &row.picture.id;
        match seen.get(id) {
            Some(first) => {
                row.reject(rejects, format!("the id `{id}` stands twice, first in row {first}"));
            }
            None => {
                seen.insert(id.clone(), row.place.1.unwrap_or_default());
                kept.push(row);
            }
        }
    }
    kept.sort_by_key(|row| splits::place(row.picture.split));
    kept
}

/// What the classes are called, and which each row has.
struct Labels {
    classes: Vec<String>,
    multi_label: bool,
}

impl Labels {
    /// The classes, and the rows whose labels are among them.
    fn read<'a>(
        rows: Vec<Described<'a>>,
        params: &Params,
        rejects: &mut Rejects,
    ) -> Result<(Vec<Described<'a>>, Option<Self>), StageError> {
        if !params.has_labels() {
            return Ok((rows, None));
        }
        let multi_label = params.label_separator.is_some();
        let found: BTreeSet<&String> = rows.iter().flat_map(|row| &row.labels).collect();
        let classes = match params.classes.is_empty() {
            true => found.into_iter().cloned().collect(),
            false => params.classes.clone(),
        };
        let labels = Self { classes, multi_label };
        let mut kept = Vec::with_capacity(rows.len());
        for row in rows {
            let unknown = row.labels.iter().find(|label| !labels.classes.contains(label));
            let reason = match unknown {
                Some(label) => format!("`{label}` is no class; those are {:?}", labels.classes),
                None if !multi_label && row.labels.is_empty() => "it has no label".to_owned(),
                None => {
                    kept.push(row);
                    continue;
                }
            };
            row.reject(rejects, reason);
        }
        Ok((kept, Some(labels)))
    }

    fn task(&self) -> &'static str {
        match (self.multi_label, self.classes.len()) {
            (true, _) => "multi-label, binary-class",
            (false, 2) => "binary-class",
            (false, _) => "multi-class",
        }
    }

    fn of(&self, row: &Described<'_>) -> Vec<i64> {
        let index = |label: &String| self.classes.iter().position(|class| class == label);
        if self.multi_label {
            self.classes.iter().map(|class| i64::from(row.labels.contains(class))).collect()
        } else {
            row.labels.first().and_then(index).map(|class| class as i64).into_iter().collect()
        }
    }

    fn table(&self, rows: &[&Described<'_>]) -> Table {
        Table::new()
            .with("image_id", Column::texts(rows.iter().map(|row| row.picture.id.clone())))
            .with("split", Column::texts(rows.iter().map(|row| row.picture.split)))
            .with("label", Column::ListInt64(rows.iter().map(|row| Some(self.of(row))).collect()))
            .with_metadata("task", self.task())
            .with_metadata("label_names", serde_json::json!(self.classes).to_string())
    }
}

fn caption_table(rows: &[&Described<'_>]) -> Table {
    let captions: Vec<(&Described<'_>, &str)> =
        rows.iter().filter_map(|row| Some((*row, row.caption.as_deref()?))).collect();
    Table::new()
        .with("caption_id", Column::Int64((0..captions.len() as i64).map(Some).collect()))
        .with("image_id", Column::texts(captions.iter().map(|(row, _)| row.picture.id.clone())))
        .with("split", Column::texts(captions.iter().map(|(row, _)| row.picture.split)))
        .with("caption", Column::texts(captions.iter().map(|(_, caption)| *caption)))
        .with_metadata("task", "retrieval")
}

fn checks(
    stored: &StoredImages,
    rows: &[&Described<'_>],
    labels: Option<&Labels>,
) -> Result<Checks, StageError> {
    let mut checks = Checks::default();
    stored.check(&mut checks)?;
    let splits: Vec<&str> = splits::SPLITS
        .into_iter()
        .filter(|split| rows.iter().any(|row| row.picture.split == *split))
        .collect();
    if let Some(labels) = labels {
        for split in &splits {
            for class in &labels.classes {
                let of_split = rows.iter().filter(|row| row.picture.split == *split);
                let count = of_split.filter(|row| row.labels.contains(class)).count();
                checks.count("class", split, Some(class.clone()), count as u64);
            }
        }
    }
    let captions: Vec<(&str, &str, &str)> = rows
        .iter()
        .filter_map(|row| Some((row.picture.split, row.picture.id.as_str(), row.caption.as_deref()?)))
        .collect();
    if !captions.is_empty() {
        checks.duplicates("same caption", &splits, &captions);
    }
    Ok(checks)
}
