//! The stage kind `ingest.images`: a folder of one's own, sorted into folders or described by a CSV file.

mod described;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::described::{Described, Rows};
use self::tables::{Classes, Tables};
use super::MOST_CLASSES;
use super::checks::Checks;
use super::numbered::Numbered;
use super::origin::{source_md5, version};
use super::pictures::{ImageWriter, Picture, READ};
use super::rejects::Rejects;
use super::seen::text_key;
use super::source::SourceFiles;
use super::splits::{SPLITS, place};
use crate::table::WriteOptions;
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
            summary: "reads a folder of images (PNG, JPEG, TIFF, BMP, GIF, WebP), sorted into folders or described by a CSV file",
            implementation: 4,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required(
                    "source",
                    &[ArtifactType::FILE, ArtifactType::TREE],
                    "the folder of images",
                ),
                InputPort::optional(
                    "table",
                    &[ArtifactType::FILE, ArtifactType::TREE],
                    "a CSV file with a row per image",
                ),
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
        let files = SourceFiles::input(context, "source")?;
        let table = match context.optional_input("table") {
            Some(table) => Some(SourceFiles::of(table, context.scratch()?)?),
            None => None,
        };
        let csv = match &table {
            Some(table) => {
                let mut tables = table.iter();
                let (Some(file), None) = (tables.next(), tables.next()) else {
                    return Err(table.error("one CSV file is expected"));
                };
                Some(file?)
            }
            None => None,
        };
        let rows = match &csv {
            Some(file) => Rows::InCsv(file, &files),
            None => Rows::InFolders(&files),
        };
        let scratch = context.scratch()?.to_owned();
        let mut rejects = Rejects::new(&scratch);
        let Survey { first, classes, count } = Survey::of(rows, params, &scratch, &mut rejects)?;
        rejects.check(params.max_rejects)?;
        let sources: Vec<&SourceFiles> = std::iter::once(&files).chain(&table).collect();
        let metadata = [
            ("dataset", params.dataset.clone()),
            ("dataset_version", version(params.version.as_deref())),
            ("source_md5", source_md5(&sources, |_| true, context)?),
            ("licence", params.licence.clone().unwrap_or_else(|| "unknown".to_owned())),
        ];
        let provenance = context.provenance().to_owned();
        let options = WriteOptions { shard_rows: params.shard_rows as usize, provenance: &provenance };
        let images = ImageWriter::new(context, options, &metadata)?;
        let tables = Tables::new(context, params, classes, &provenance, &metadata)?;
        let mut ingest = Ingest { images, tables, rejects, waiting: Vec::new(), done: 0, count };
        // Rows stand in the order of splits: they are read once for each, so that none has to be kept.
        for split in SPLITS {
            // What is wrong with rows was said in the survey.
            let mut said = Rejects::new(&scratch);
            rows.each(params, &mut said, &mut |row| {
                let is_wanted = row.picture.split == split
                    && first.get(text_key(&row.picture.id))? == Some(row.number())
                    && row.without_class(params).is_none();
                if is_wanted {
                    ingest.waiting.push(row);
                }
                match ingest.waiting.len() < ImageWriter::BLOCK {
                    true => Ok(()),
                    false => ingest.write(context),
                }
            })?;
        }
        ingest.write(context)?;
        let Ingest { images, tables, mut rejects, .. } = ingest;
        rejects.check(params.max_rejects)?;
        let stored = images.finish(context.output("images")?)?;
        if tables.is_empty() {
            return Err(files.error(format!("there is no image to read; {READ} files are")));
        }
        let mut checks = Checks::default();
        stored.check(&mut checks)?;
        tables.finish(context, &mut checks)?;
        rejects.count_reasons(&mut checks);
        checks.write(context.output("checks")?, &provenance)?;
        stored.sheets().write(context.output("sheets")?)?;
        rejects.write(params.max_rejects, "rejects", context)
    }
}

/// What is known of all rows before the first image is read.
struct Survey {
    /// By the key of an id the row in which it stands first.
    first: Numbered,
    classes: Option<Classes>,
    /// How many rows name an image to read.
    count: u64,
}

impl Survey {
    /// Reads all rows once. Rejected are those that cannot be read, then those whose id stands twice, then those
    /// whose label is no class.
    fn of(
        rows: Rows<'_>,
        params: &Params,
        scratch: &Path,
        rejects: &mut Rejects,
    ) -> Result<Self, StageError> {
        let (mut first, mut count, mut found) = (Numbered::new(scratch), 0, BTreeSet::new());
        let mut repeated = Rejects::new(scratch);
        let mut without_class = SPLITS.map(|_| Rejects::new(scratch));
        rows.each(params, rejects, &mut |row| {
            let key = text_key(&row.picture.id);
            if let Some(line) = first.get(key)? {
                let reason = format!("the id `{}` stands twice, first in row {line}", row.picture.id);
                row.reject(&mut repeated, reason);
                return Ok(());
            }
            first.set(key, row.number())?;
            match row.without_class(params) {
                Some(reason) => row.reject(&mut without_class[place(row.picture.split)], reason),
                None => count += 1,
            }
            for label in row.labels.iter().filter(|_| params.classes.is_empty()) {
                found.insert(label.clone());
            }
            if found.len() > MOST_CLASSES {
                let reason = format!("there are more than {MOST_CLASSES} different labels: are they ids?");
                return Err(row.place.0.error(reason));
            }
            Ok(())
        })?;
        rejects.append(repeated)?;
        for lost in without_class {
            rejects.append(lost)?;
        }
        let classes = params.has_labels().then(|| Classes::new(params, found));
        Ok(Self { first, classes, count })
    }
}

/// What is known while images are read.
struct Ingest<'a> {
    images: ImageWriter<'a>,
    tables: Tables<'a>,
    rejects: Rejects,
    /// Rows whose images are read next.
    waiting: Vec<Described>,
    done: u64,
    count: u64,
}

impl Ingest<'_> {
    /// Writes what waits.
    fn write(&mut self, context: &StageContext<'_>) -> Result<(), StageError> {
        context.check_cancelled()?;
        let rows = std::mem::take(&mut self.waiting);
        let pictures: Vec<Picture> = rows.iter().map(|row| row.picture.clone()).collect();
        let kept = self.images.push(&pictures, &mut self.rejects)?;
        let kept: Vec<&Described> =
            rows.iter().zip(kept).filter(|(_, kept)| *kept).map(|(row, _)| row).collect();
        self.tables.push(&kept)?;
        self.done += rows.len() as u64;
        context.progress(self.done, self.count, "images", &[("MB", self.images.megabytes())]);
        Ok(())
    }
}
