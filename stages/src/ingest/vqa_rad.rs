//! The stage kind `ingest.vqa_rad`: VQA-RAD (Lau et al. 2018), from its public JSON file or from the two
//! files of the MEVF code.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pipe_engine::{
    Artifact, ArtifactFile, ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::checks::Checks;
use super::json::{Record, records};
use super::pictures::{MissingImages, Picture, check_images, write_images};
use super::questions::{Question, check_questions, exact, table};
use super::rejects::Rejects;
use super::splits::{drawn, place};
use crate::artifact;
use crate::table::{TableSchema, WriteOptions, write};

/// Which records are for training. All three test on the same 451.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// The 1,797 published training records.
    #[serde(rename = "published-1797")]
    Published,
    /// With the 1,267 templated wordings that MEVF and QCR trained on; 284 of them are those of test
    /// questions.
    #[serde(rename = "mevf-3064")]
    Mevf,
    /// The same without the wordings of test questions.
    #[serde(rename = "clean-2773")]
    Clean,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Published => "published-1797",
            Self::Mevf => "mevf-3064",
            Self::Clean => "clean-2773",
        }
    }

    /// Training records of the whole data set.
    fn training(self) -> usize {
        match self {
            Self::Published => 1797,
            Self::Mevf => 3064,
            Self::Clean => 2773,
        }
    }
}

/// Test records of the whole data set.
const TESTING: usize = 451;

/// Parameters of `ingest.vqa_rad`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Which records are for training.
    pub protocol: Protocol,
    /// The share of training images whose questions are for validation: none is published.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub val: f64,
    /// Decides which images these are.
    pub seed: i64,
    /// Whether there may be other numbers of records than the published ones.
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
            protocol: Protocol::Published,
            val: 0.0,
            seed: 0,
            allow_partial: false,
            missing_images: MissingImages::default(),
            max_rejects: 0,
            shard_rows: 256,
        }
    }
}

/// Reads VQA-RAD.
pub struct IngestVqaRad;

/// The file on OSF.
const PUBLIC: &str = "VQA_RAD Dataset Public.json";
/// Questions of templated wording are numbered from here, plus the number of their record.
const FRAMES: i64 = 10_000;

impl StageKind for IngestVqaRad {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.vqa_rad",
            summary: "reads VQA-RAD: radiology images, and questions with answers under a named protocol",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE],
                "the folder with the JSON file (or trainset.json and testset.json) and the images below it",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("images", artifact::IMAGES, "the images that are asked about"),
            OutputPort::new("questions", artifact::QUESTIONS, "questions with answers as published"),
            OutputPort::new("checks", artifact::CHECKS, "counts, and what splits share"),
            OutputPort::new("rejects", artifact::REJECTS, "what was left out, and why"),
        ]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let source = context.input("source")?.clone();
        let mut rejects = Rejects::default();
        let read = read(&source, params, &mut rejects)?;
        rejects.check(params.max_rejects, context)?;
        let images = Images::of(&source);
        let pictures = images.pictures(&read, params.missing_images, &mut rejects);
        rejects.check(params.max_rejects, context)?;
        let metadata = [
            ("dataset", "vqa-rad".to_owned()),
            ("protocol", params.protocol.name().to_owned()),
            ("licence", "CC0-1.0".to_owned()),
        ];
        let shard_rows = params.shard_rows as usize;
        let stored = write_images(&pictures, &read.file, &metadata, shard_rows, &mut rejects, context)?;
        rejects.check(params.max_rejects, context)?;
        let kept: BTreeSet<&str> = stored.iter().map(|image| image.id.as_str()).collect();
        let keep = params.missing_images == MissingImages::Keep;
        let questions: Vec<Question> =
            read.questions.iter().filter(|one| keep || kept.contains(one.image.as_str())).cloned().collect();
        let provenance = context.provenance().to_owned();
        let table = metadata
            .iter()
            .fold(table(&questions), |table, (key, value)| table.with_metadata(key, value.clone()));
        let options = WriteOptions::text(&provenance);
        write(context.output("questions")?, &TableSchema::questions(), &table, options)?;
        let mut checks = Checks::default();
        check_images(&mut checks, &stored);
        check_questions(&mut checks, &questions);
        let asked: BTreeSet<&str> = read.questions.iter().map(|one| one.image.as_str()).collect();
        let silent = images.by_name.keys().filter(|name| !asked.contains(*name)).count();
        checks.fact("image without a question", String::new(), silent as u64);
        checks.write(context.output("checks")?, &provenance)?;
        rejects.write(context.output("rejects")?, &provenance)
    }
}

/// The questions of a protocol, in the published order.
struct Read {
    file: String,
    questions: Vec<Question>,
    /// The case of an image, where the file tells it.
    cases: BTreeMap<String, String>,
}

/// Finds the layout and reads it.
fn read(source: &Artifact, params: &Params, rejects: &mut Rejects) -> Result<Read, StageError> {
    let named = |wanted: &str| {
        let mut found: Vec<&ArtifactFile> =
            source.files.iter().filter(|file| file.path.rsplit('/').next() == Some(wanted)).collect();
        found.sort_by_key(|file| file.path.matches('/').count());
        found.first().copied()
    };
    let mut read = match (named(PUBLIC), named("trainset.json"), named("testset.json")) {
        (Some(file), ..) => from_public(&file.location, params, rejects)?,
        (None, Some(train), Some(test)) => from_mevf(&train.location, &test.location, params, rejects)?,
        _ => {
            let origin = source.origin.clone().unwrap_or_else(|| "source".to_owned());
            let reason = format!("it has neither `{PUBLIC}` nor `trainset.json` and `testset.json`");
            return Err(StageError::input(origin, reason));
        }
    };
    let count = |split: &str| read.questions.iter().filter(|one| one.split == split).count();
    let (training, testing) = (count("train"), count("test"));
    let wanted = (params.protocol.training(), TESTING);
    if (training, testing) != wanted && !params.allow_partial {
        let reason = format!(
            "it gives {training} training and {testing} test records under the protocol `{}`, which has {} and {}; `allow_partial = true` takes it all the same",
            params.protocol.name(),
            wanted.0,
            wanted.1
        );
        return Err(StageError::input(&read.file, reason));
    }
    for one in read.questions.iter_mut().filter(|one| one.split == "train") {
        one.split = drawn(params.seed, &one.image, params.val, 0.0);
    }
    read.questions.sort_by_key(|one| place(one.split));
    Ok(read)
}

/// The record as a question of `split`; what it lacks is the reason why it cannot be used.
fn question(record: &Record, split: &'static str) -> Result<Question, String> {
    let needed = |key: &str| {
        record.text(key).filter(|text| !text.trim().is_empty()).ok_or_else(|| format!("it has no `{key}`"))
    };
    Ok(Question {
        qid: record.integer("qid").ok_or("its `qid` is no whole number")?,
        image: needed("image_name")?,
        split,
        question: needed("question")?,
        answer: needed("answer")?,
        answer_type: record.text("answer_type"),
        question_type: record.some_text("question_type"),
        phrase_type: record.some_text("phrase_type"),
        lang: Some("en".to_owned()),
        link_id: record.some_text("qid_linked_id"),
        organ: record.some_text("image_organ"),
        ..Question::default()
    })
}

/// The public file: 2,248 records of both splits, some with a templated wording beside the free one.
fn from_public(path: &Path, params: &Params, rejects: &mut Rejects) -> Result<Read, StageError> {
    let file = path.display().to_string();
    let records = records(path)?;
    let is_test =
        |record: &Record| record.text("phrase_type").is_some_and(|phrase| phrase.starts_with("test_"));
    let frame = |record: &Record| record.some_text("question_frame");
    // What a wording must not be to be clean: the question or the templated wording of a test record.
    let mut tested: BTreeSet<(String, String)> = BTreeSet::new();
    for record in records.iter().filter(|record| is_test(record)) {
        let image = record.text("image_name").unwrap_or_default();
        let wordings = record.text("question").into_iter().chain(frame(record));
        tested.extend(wordings.map(|wording| (image.clone(), exact(&wording))));
    }
    let mut read = Read { file: file.clone(), questions: Vec::new(), cases: BTreeMap::new() };
    let mut seen = BTreeSet::new();
    for (index, record) in records.iter().enumerate() {
        let split = if is_test(record) { "test" } else { "train" };
        let one = match question(record, split) {
            Ok(one) if seen.insert(one.qid) => one,
            Ok(one) => {
                rejects.add(&file, Some(index + 1), Some(&one.qid.to_string()), "its `qid` stands twice");
                continue;
            }
            Err(reason) => {
                rejects.add(&file, Some(index + 1), record.text("qid").as_deref(), reason);
                continue;
            }
        };
        if let Some(case) = record.some_text("image_case_url") {
            read.cases.insert(one.image.clone(), case);
        }
        // A templated wording follows its record, which is the order of the MEVF files.
        let templated =
            frame(record).filter(|_| params.protocol != Protocol::Published).map(|wording| Question {
                qid: FRAMES + one.qid,
                split: "train",
                question: wording,
                phrase_type: Some("frame".to_owned()),
                ..one.clone()
            });
        let templated = templated.filter(|templated| {
            params.protocol != Protocol::Clean
                || !tested.contains(&(templated.image.clone(), exact(&templated.question)))
        });
        read.questions.push(one);
        read.questions.extend(templated);
    }
    Ok(read)
}

/// The files of the MEVF code, whose training file already has the templated wordings.
fn from_mevf(train: &Path, test: &Path, params: &Params, rejects: &mut Rejects) -> Result<Read, StageError> {
    if params.protocol == Protocol::Clean {
        let reason = format!(
            "the wordings of test questions can only be told by `{PUBLIC}`: read that, or take another protocol"
        );
        return Err(StageError::input(train, reason));
    }
    let file = train.display().to_string();
    let mut read = Read { file, questions: Vec::new(), cases: BTreeMap::new() };
    let mut seen = BTreeSet::new();
    for (path, split) in [(train, "train"), (test, "test")] {
        let name = path.display().to_string();
        for (index, record) in records(path)?.iter().enumerate() {
            match question(record, split) {
                Ok(one) if !seen.insert(one.qid) => {
                    rejects.add(&name, Some(index + 1), Some(&one.qid.to_string()), "its `qid` stands twice");
                }
                Ok(one) => {
                    let templated = one.phrase_type.as_deref() == Some("frame");
                    if params.protocol == Protocol::Mevf || !templated {
                        read.questions.push(one);
                    }
                }
                Err(reason) => {
                    rejects.add(&name, Some(index + 1), record.text("qid").as_deref(), reason);
                }
            }
        }
    }
    Ok(read)
}

/// The image files of a folder by name.
struct Images<'a> {
    by_name: BTreeMap<&'a str, &'a ArtifactFile>,
}

impl<'a> Images<'a> {
    fn of(source: &'a Artifact) -> Self {
        let mut by_name = BTreeMap::new();
        for file in source.files_ending(".jpg") {
            let name = file.path.rsplit('/').next().unwrap_or(&file.path);
            if !name.starts_with('.') {
                by_name.entry(name).or_insert(file);
            }
        }
        Self { by_name }
    }

    /// One picture per image that is asked about, in the split where it is asked about first. An image
    /// that is not there is rejected once, and its questions with it.
    fn pictures(&self, read: &Read, missing: MissingImages, rejects: &mut Rejects) -> Vec<Picture> {
        let mut seen = BTreeSet::new();
        let mut pictures = Vec::new();
        for one in read.questions.iter().filter(|one| seen.insert(one.image.as_str())) {
            let Some(file) = self.by_name.get(one.image.as_str()) else {
                if missing == MissingImages::Reject {
                    let reason = format!("there is no image `{}`", one.image);
                    rejects.add(&read.file, None, Some(&one.image), reason);
                }
                continue;
            };
            pictures.push(Picture {
                id: one.image.clone(),
                split: one.split,
                path: one.image.clone(),
                location: file.location.clone(),
                modality: None,
                region: one.organ.clone(),
                licence: Some("CC0-1.0".to_owned()),
                group: read.cases.get(&one.image).cloned(),
                row: None,
            });
        }
        pictures
    }
}
