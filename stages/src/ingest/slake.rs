//! The stage kind `ingest.slake`: SLAKE 1.0 (Liu et al. 2021), from its folder as published.

mod annotations;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{
    Artifact, ArtifactFile, ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::annotations::{boxes, knowledge, masks};
use super::checks::Checks;
use super::json::{Record, records};
use super::pictures::{MissingImages, Picture, check_images, write_images};
use super::questions::{Question, check_questions, table};
use super::rejects::Rejects;
use super::splits::place;
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
    /// Rows of a part of the table of images, on average.
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
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE],
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
            OutputPort::new("rejects", artifact::REJECTS, "what was left out, and why"),
        ]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let folder = Folder { source: context.input("source")?.clone() };
        let mut rejects = Rejects::default();
        let read = read(&folder, params, &mut rejects)?;
        rejects.check(params.max_rejects, context)?;
        let pictures = pictures(&folder, &read, params.missing_images, &mut rejects);
        let metadata = [
            ("dataset", "slake".to_owned()),
            ("dataset_version", "1.0".to_owned()),
            ("language", params.language.name().to_owned()),
            ("licence", "CC-BY-4.0".to_owned()),
        ];
        let stored =
            write_images(&pictures, "imgs", &metadata, params.shard_rows as usize, &mut rejects, context)?;
        let kept: BTreeMap<&str, &'static str> =
            stored.iter().map(|image| (image.id.as_str(), image.split)).collect();
        let masks = masks(&folder, &kept, &mut rejects)?;
        let boxes = boxes(&folder, &kept, &mut rejects)?;
        let knowledge = knowledge(&folder, params.language, &mut rejects)?;
        rejects.check(params.max_rejects, context)?;
        let questions: Vec<Question> = read
            .questions
            .iter()
            .filter(|one| {
                params.missing_images == MissingImages::Keep || kept.contains_key(one.image.as_str())
            })
            .cloned()
            .collect();
        let provenance = context.provenance().to_owned();
        let text = WriteOptions::text(&provenance);
        let images = WriteOptions { shard_rows: params.shard_rows as usize, provenance: &provenance };
        for (port, schema, table, options) in [
            ("questions", TableSchema::questions(), table(&questions), text),
            ("masks", TableSchema::masks(), masks, images),
            ("boxes", TableSchema::boxes(), boxes, text),
            ("knowledge", TableSchema::knowledge(), knowledge, text),
        ] {
            let table =
                metadata.iter().fold(table, |table, (key, value)| table.with_metadata(key, value.clone()));
            write(context.output(port)?, &schema, &table, options)?;
        }
        let mut checks = Checks::default();
        check_images(&mut checks, &stored);
        check_questions(&mut checks, &questions);
        checks.write(context.output("checks")?, &provenance)?;
        rejects.write(context.output("rejects")?, &provenance)
    }
}

/// The published folder, wherever below the source it lies.
struct Folder {
    source: Artifact,
}

impl Folder {
    /// The file at the end of a path; the one that lies highest, if there are several. Hidden files, which
    /// some archives are full of, are none.
    fn file(&self, path: &str) -> Option<&ArtifactFile> {
        self.ending(path).min_by_key(|file| file.path.matches('/').count())
    }

    fn ending<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a ArtifactFile> {
        self.source.files.iter().filter(move |file| {
            let whole =
                file.path.strip_suffix(path).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
            whole && !file.path.split('/').any(|part| part.starts_with('.'))
        })
    }

    /// The files of a folder of this name.
    fn within<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a ArtifactFile> {
        self.source.files.iter().filter(move |file| {
            let mut parts = file.path.rsplit('/');
            let name = parts.next().unwrap_or_default();
            parts.next() == Some(folder) && !name.starts_with('.')
        })
    }
}

/// The questions of a language, and what their records say of images.
struct Read {
    questions: Vec<Question>,
    /// By image: its path below `imgs`, its modality.
    images: BTreeMap<String, (String, Option<String>)>,
}

/// The files of a split; the middle one has two names.
const FILES: [(&str, &[&str]); 3] =
    [("train", &["train.json"]), ("val", &["validate.json", "validation.json"]), ("test", &["test.json"])];

fn read(folder: &Folder, params: &Params, rejects: &mut Rejects) -> Result<Read, StageError> {
    let mut read = Read { questions: Vec::new(), images: BTreeMap::new() };
    let mut seen = BTreeSet::new();
    for (index, (split, names)) in FILES.into_iter().enumerate() {
        let Some(file) = names.iter().find_map(|name| folder.file(name)) else {
            let origin = folder.source.origin.clone().unwrap_or_else(|| "source".to_owned());
            return Err(StageError::input(origin, format!("it has no file `{}`", names[0])));
        };
        let name = file.location.display().to_string();
        let before = read.questions.len();
        for (row, record) in records(&file.location)?.iter().enumerate() {
            let lang = record.some_text("q_lang").unwrap_or_default();
            if params.language != Language::Both && lang != params.language.name() {
                continue;
            }
            match question(record, split) {
                Ok((one, ..)) if !seen.insert(one.qid) => {
                    rejects.add(&name, Some(row + 1), Some(&one.qid.to_string()), "its `qid` stands twice");
                }
                Ok((one, path)) => {
                    read.images.entry(one.image.clone()).or_insert((path, record.some_text("modality")));
                    read.questions.push(one);
                }
                Err(reason) => rejects.add(&name, Some(row + 1), record.text("qid").as_deref(), reason),
            }
        }
        let (found, wanted) = (read.questions.len() - before, params.language.counts()[index]);
        if found != wanted && !params.allow_partial {
            let reason = format!(
                "it gives {found} questions in the language `{}`, {wanted} are published; `allow_partial = true` takes it all the same",
                params.language.name()
            );
            return Err(StageError::input(&file.location, reason));
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
        answer_type: record.text("answer_type"),
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

/// One picture per image that is asked about, in the first split where it is.
fn pictures(folder: &Folder, read: &Read, missing: MissingImages, rejects: &mut Rejects) -> Vec<Picture> {
    let mut seen = BTreeSet::new();
    let mut pictures = Vec::new();
    for one in read.questions.iter().filter(|one| seen.insert(one.image.as_str())) {
        let Some((path, modality)) = read.images.get(&one.image) else { continue };
        let Some(file) = folder.file(&format!("imgs/{path}")) else {
            if missing == MissingImages::Reject {
                rejects.add("imgs", None, Some(&one.image), format!("there is no image `{path}`"));
            }
            continue;
        };
        pictures.push(Picture {
            id: one.image.clone(),
            split: one.split,
            path: path.clone(),
            location: file.location.clone(),
            modality: modality.clone(),
            region: one.organ.clone(),
            licence: Some("CC-BY-4.0".to_owned()),
            group: None,
            row: None,
        });
    }
    pictures.sort_by_key(|picture| place(picture.split));
    pictures
}
