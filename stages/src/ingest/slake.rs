//! The stage kind `ingest.slake`: SLAKE 1.0 (Liu et al. 2021), from its folder as published.

mod annotations;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::annotations::{boxes, knowledge, masks};
use super::asked::check_questions;
use super::checks::Checks;
use super::json::{Record, records};
use super::origin::source_md5;
use super::pictures::{Content, MissingImages, Picture, write_images};
use super::questions::{Question, Records, answer_type, retain_with_image, table};
use super::rejects::Rejects;
use super::source::SourceFiles;
use crate::artifact;
use crate::table::{TableSchema, WriteOptions, write};

/// Questions in which language. The two languages were split independently: what is for training in one
/// may be for testing in the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    En,
    /// Chinese.
    Zh,
    /// Both, although test images of the one are training images of the other.
    Both,
}

impl Language {
    fn name(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Zh => "zh",
            Self::Both => "both",
        }
    }

    /// Questions for training, validation and testing in the whole data set.
    fn counts(self) -> [usize; 3] {
        match self {
            Self::En => [4919, 1053, 1061],
            Self::Zh => [4916, 1046, 1033],
            Self::Both => [9835, 2099, 2094],
        }
    }
}

/// Parameters of `ingest.slake`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Questions in which language.
    pub language: Language,
    /// Whether there may be other numbers of questions than the published ones.
    pub allow_partial: bool,
    /// What becomes of questions whose image is not there.
    pub missing_images: MissingImages,
    /// How many rows may be left out before the stage fails.
    #[schemars(range(min = 0))]
    pub max_rejects: i64,
    /// Rows of a part of the tables of images and questions, on average.
    #[schemars(range(min = 4, max = 65536))]
    pub shard_rows: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            language: Language::En,
            allow_partial: false,
            missing_images: MissingImages::default(),
            max_rejects: 0,
            shard_rows: 256,
        }
    }
}

/// Reads SLAKE.
pub struct IngestSlake;

impl StageKind for IngestSlake {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.slake",
            summary: "reads SLAKE: radiology images, questions in two languages, masks, boxes and knowledge",
            implementation: 6,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE, ArtifactType::TREE],
                "the folder Slake1.0 with train.json, validate.json, test.json and imgs",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("images", artifact::IMAGES, "the images that are asked about"),
            OutputPort::new("questions", artifact::QUESTIONS, "questions with answers as published"),
            OutputPort::new("masks", artifact::MASKS, "one mask per image and organ"),
            OutputPort::new("boxes", artifact::BOXES, "one box per image and thing detected"),
            OutputPort::new("knowledge", artifact::KNOWLEDGE, "the knowledge graph, one row per fact"),
            OutputPort::new("checks", artifact::CHECKS, "counts, and what splits share"),
            OutputPort::new("sheets", artifact::SHEETS, "the first images of each split, to look at"),
            OutputPort::new("rejects", artifact::REJECTS, "what was left out, and why"),
        ]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let files = SourceFiles::input(context, "source")?;
        let mut rejects = Rejects::new(context.scratch()?);
        let mut read = read(&files, params, &mut rejects)?;
        rejects.check(params.max_rejects)?;
        let pictures = pictures(&files, &read)?;
        let needs_images = params.missing_images == MissingImages::Reject;
        // What is missing shows before the work begins.
        if needs_images {
            let there = vec![true; pictures.len()];
            retain_with_image(&mut read.questions, &read.records, &pictures, &there, &mut rejects);
            rejects.check(params.max_rejects)?;
        }
        let metadata = [
            ("dataset", "slake".to_owned()),
            ("task", "vqa".to_owned()),
            ("dataset_version", "1.0".to_owned()),
            // What lies beside an image describes that image alone.
            (
                "source_md5",
                source_md5(&[&files], |path| !path.split('/').any(|part| part == "imgs"), context)?,
            ),
            ("language", params.language.name().to_owned()),
            ("licence", "CC-BY-4.0".to_owned()),
        ];
        let (kept, stored) = write_images(&pictures, &metadata, params.shard_rows, &mut rejects, context)?;
        if needs_images {
            retain_with_image(&mut read.questions, &read.records, &pictures, &kept, &mut rejects);
        }
        let questions = read.questions;
        let pairs = pictures.iter().zip(kept).filter(|(_, kept)| *kept);
        let kept: BTreeMap<&str, &'static str> =
            pairs.map(|(picture, _)| (picture.id.as_str(), picture.split)).collect();
        let masks = masks(&files, &kept, &mut rejects)?;
        let boxes = boxes(&files, &kept, &mut rejects)?;
        let knowledge = knowledge(&files, params.language, &mut rejects)?;
        rejects.check(params.max_rejects)?;
        if questions.is_empty() {
            return Err(files.error("no question with an image is left"));
        }
        let provenance = context.provenance().to_owned();
        let text = WriteOptions::text(&provenance);
        let images = WriteOptions { shard_rows: params.shard_rows as usize, provenance: &provenance };
        for (port, schema, table, options) in [
            ("questions", TableSchema::questions(), table(&questions), images),
            ("masks", TableSchema::masks(), masks, images),
            ("boxes", TableSchema::boxes(), boxes, text),
            ("knowledge", TableSchema::knowledge(), knowledge, text),
        ] {
            write(context.output(port)?, &schema, &table.with_all_metadata(&metadata), options)?;
        }
        let mut checks = Checks::default();
        stored.check(&mut checks)?;
        check_questions(&mut checks, &questions, context.scratch()?)?;
        rejects.count_reasons(&mut checks);
        checks.write(context.output("checks")?, &provenance)?;
        stored.sheets().write(context.output("sheets")?)?;
        rejects.write(params.max_rejects, "rejects", context)
    }
}

/// The questions of a language, and what their records say of images.
struct Read {
    questions: Vec<Question>,
    records: Records,
    images: BTreeMap<String, Named>,
}

/// What the first record of an image says of it.
struct Named {
    /// Its path below `imgs`.
    path: String,
    modality: Option<String>,
}

/// The files of a split; the middle one has two names.
const FILES: [(&str, &[&str]); 3] =
    [("train", &["train.json"]), ("val", &["validate.json", "validation.json"]), ("test", &["test.json"])];

fn read(files: &SourceFiles, params: &Params, rejects: &mut Rejects) -> Result<Read, StageError> {
    let mut read = Read { questions: Vec::new(), records: Records::new(), images: BTreeMap::new() };
    let mut seen = BTreeSet::new();
    for (index, (split, names)) in FILES.into_iter().enumerate() {
        let found = names.iter().map(|name| files.ending(name)).collect::<Result<Vec<_>, StageError>>()?;
        let missing = || files.error(format!("it has no file `{}`", names[0]));
        let file = found.into_iter().flatten().next().ok_or_else(missing)?;
        let before = read.questions.len();
        for (row, record) in records(&file, rejects)? {
            let lang = record.some_text("q_lang").unwrap_or_default();
            if params.language != Language::Both && lang != params.language.name() {
                continue;
            }
            match question(&record, split) {
                Ok((one, ..)) if !seen.insert(one.qid) => {
                    rejects.add(&file, Some(row), Some(&one.qid.to_string()), "its `qid` stands twice");
                }
                Ok((one, path)) => {
                    let modality = record.some_text("modality");
                    read.images.entry(one.image.clone()).or_insert(Named { path, modality });
                    read.records.insert(one.qid, (Arc::clone(&file), row));
                    read.questions.push(one);
                }
                Err(reason) => rejects.add(&file, Some(row), record.text("qid").as_deref(), reason),
            }
        }
        let (found, wanted) = (read.questions.len() - before, params.language.counts()[index]);
        if found != wanted && !params.allow_partial {
            let reason = format!(
                "it gives {found} questions in the language `{}`, {wanted} are published; `allow_partial = true` takes it all the same",
                params.language.name()
            );
            return Err(file.error(reason));
        }
    }
    Ok(read)
}

/// The record as a question, with the path of its image below `imgs`.
fn question(record: &Record, split: &'static str) -> Result<(Question, String), String> {
    let needed = |key: &str| {
        record.text(key).filter(|text| !text.trim().is_empty()).ok_or_else(|| format!("it has no `{key}`"))
    };
    let path = needed("img_name")?;
    let image = path.strip_suffix("/source.jpg").unwrap_or(&path).to_owned();
    let one = Question {
        qid: record.integer("qid").ok_or("its `qid` is no whole number")?,
        image,
        split,
        question: needed("question")?,
        answer: needed("answer")?,
        answer_type: record.text("answer_type").as_deref().and_then(answer_type),
        question_type: record.some_text("content_type"),
        lang: record.some_text("q_lang"),
        content_type: record.some_text("content_type"),
        base_type: record.some_text("base_type"),
        triple: record.texts("triple"),
        organ: record.some_text("location"),
        ..Question::default()
    };
    Ok((one, path))
}

/// One picture per image that is asked about and there, in the first split where it is asked about.
fn pictures(files: &SourceFiles, read: &Read) -> Result<Vec<Picture>, StageError> {
    let mut seen = BTreeSet::new();
    let mut pictures = Vec::new();
    for one in read.questions.iter().filter(|one| seen.insert(one.image.as_str())) {
        let Some(Named { path, modality }) = read.images.get(&one.image) else { continue };
        let Some(file) = files.ending(&format!("imgs/{path}"))? else { continue };
        pictures.push(Picture {
            id: one.image.clone(),
            split: one.split,
            path: path.clone(),
            content: Content::File(file),
            modality: modality.clone(),
            region: one.organ.clone(),
            licence: Some("CC-BY-4.0".to_owned()),
            group: None,
            named_by: read.records.get(&one.qid).cloned(),
        });
    }
    Ok(pictures)
}
