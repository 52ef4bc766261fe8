//! The stage kind `ingest.vqa_rad`: VQA-RAD (Lau et al. 2018), from its public JSON file, from the two
//! files of the MEVF code, or from the Parquet files of its Hugging Face variant.

mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pipe_engine::cache::Digest;
use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::record::question;
use super::asked::check_questions;
use super::checks::Checks;
use super::json::{Record, records};
use super::origin::source_md5;
use super::parquet::ParquetRows;
use super::pictures::{Content, MissingImages, Picture, write_images};
use super::questions::{Question, Records, exact, retain_with_image, table};
use super::rejects::Rejects;
use super::source::{SourceFile, SourceFiles};
use super::splits::{drawn, named_in, place};
use crate::artifact;
use crate::table::{TableSchema, WriteOptions, write};

/// Which records are for training. All test on the same 451.
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
    /// The published ones without repetitions, as in the Parquet files on Hugging Face, which know no
    /// types, organs and links.
    #[serde(rename = "huggingface-1793")]
    HuggingFace,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Published => "published-1797",
            Self::Mevf => "mevf-3064",
            Self::Clean => "clean-2773",
            Self::HuggingFace => "huggingface-1793",
        }
    }

    /// Training records of the whole data set.
    fn training(self) -> usize {
        match self {
            Self::Published => 1797,
            Self::Mevf => 3064,
            Self::Clean => 2773,
            Self::HuggingFace => 1793,
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
    /// Takes a type with a space behind it, `CLOSED `, for open, as the code of QCR does: of two training records.
    pub untrimmed_types: bool,
    /// Whether there may be other numbers of records than the published ones.
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
            protocol: Protocol::Published,
            val: 0.0,
            seed: 0,
            untrimmed_types: false,
            allow_partial: false,
            missing_images: MissingImages::default(),
            max_rejects: 0,
            shard_rows: 256,
        }
    }
}

/// Reads VQA-RAD.
pub struct IngestVqaRad;

const LICENCE: &str = "CC0-1.0";
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
            implementation: 7,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE, ArtifactType::TREE],
                "the folder with the JSON file (or trainset.json and testset.json, or Parquet files) and the images",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("images", artifact::IMAGES, "the images that are asked about"),
            OutputPort::new("questions", artifact::QUESTIONS, "questions with answers as published"),
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
        let images = by_name(&files)?;
        let asked: BTreeSet<&str> = read.questions.iter().map(|one| one.image.as_str()).collect();
        let silent = images.keys().filter(|name| !asked.contains(name.as_str())).count();
        let pictures = pictures(&read, &images);
        let needs_images = params.missing_images == MissingImages::Reject;
        // What is missing shows before the work begins.
        if needs_images {
            let there = vec![true; pictures.len()];
            retain_with_image(&mut read.questions, &read.records, &pictures, &there, &mut rejects);
            rejects.check(params.max_rejects)?;
        }
        let metadata = [
            ("dataset", "vqa-rad".to_owned()),
            ("task", "vqa".to_owned()),
            ("dataset_version", read.version.to_owned()),
            ("source_md5", source_md5(&[&files], |_| true, context)?),
            ("protocol", params.protocol.name().to_owned()),
            ("licence", LICENCE.to_owned()),
        ];
        let (kept, stored) = write_images(&pictures, &metadata, params.shard_rows, &mut rejects, context)?;
        if needs_images {
            retain_with_image(&mut read.questions, &read.records, &pictures, &kept, &mut rejects);
        }
        rejects.check(params.max_rejects)?;
        let questions = read.questions;
        if questions.is_empty() {
            return Err(read.file.error("no question with an image is left"));
        }
        let provenance = context.provenance().to_owned();
        let table = table(&questions).with_all_metadata(&metadata);
        let options = WriteOptions { shard_rows: params.shard_rows as usize, provenance: &provenance };
        write(context.output("questions")?, &TableSchema::questions(), &table, options)?;
        let mut checks = Checks::default();
        stored.check(&mut checks)?;
        check_questions(&mut checks, &questions, context.scratch()?)?;
        if !read.tested.is_empty() {
            let training = questions.iter().filter(|one| one.split == "train");
            let known: BTreeSet<(&str, String)> =
                training.map(|one| (one.image.as_str(), exact(&one.question))).collect();
            let leaked = read.tested.iter().filter(|(_, image, text)| known.contains(&(image, text.clone())));
            let leaked = leaked.map(|(qid, ..)| qid.to_string()).collect();
            checks.shared("templated wording of a test question", "test", "train", leaked);
        }
        checks.fact("image without a question", String::new(), silent as u64);
        rejects.count_reasons(&mut checks);
        checks.write(context.output("checks")?, &provenance)?;
        stored.sheets().write(context.output("sheets")?)?;
        rejects.write(params.max_rejects, "rejects", context)
    }
}

/// The questions of a protocol, in the published order.
struct Read {
    /// The file that names the training images.
    file: Arc<SourceFile>,
    /// Whose files these are.
    version: &'static str,
    questions: Vec<Question>,
    records: Records,
    /// The case of an image, where the file tells it.
    cases: BTreeMap<String, String>,
    /// The templated wordings of test questions, where the file tells them: number, image, wording.
    tested: Vec<(i64, String, String)>,
    /// Images that are cells of a table, by id.
    cells: BTreeMap<String, Arc<[u8]>>,
}

impl Read {
    fn new(file: Arc<SourceFile>, version: &'static str) -> Self {
        Self {
            file,
            version,
            questions: Vec::new(),
            records: Records::new(),
            cases: BTreeMap::new(),
            tested: Vec::new(),
            cells: BTreeMap::new(),
        }
    }
}

/// Finds the layout and reads it.
fn read(files: &SourceFiles, params: &Params, rejects: &mut Rejects) -> Result<Read, StageError> {
    let split_files = (files.ending("trainset.json")?, files.ending("testset.json")?);
    let mut read = match (files.ending(PUBLIC)?, split_files) {
        _ if params.protocol == Protocol::HuggingFace => from_parquet(files, rejects)?,
        (Some(file), _) => from_public(&file, params, rejects)?,
        (None, (Some(train), Some(test))) => from_mevf(&train, &test, params, rejects)?,
        _ => {
            let parquet = match files.filtered(|path| path.ends_with(".parquet")).next().is_some() {
                true => "; its Parquet files are read under `protocol = \"huggingface-1793\"`",
                false => "",
            };
            let reason = format!(
                "it has neither `{PUBLIC}` (fetch it and the folder `VQA_RAD Image Folder` from https://osf.io/89kps) nor MEVF's `trainset.json` and `testset.json`{parquet}"
            );
            return Err(files.error(reason));
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
        return Err(read.file.error(reason));
    }
    for one in read.questions.iter_mut().filter(|one| one.split == "train") {
        one.split = drawn(params.seed, &one.image, params.val, 0.0);
    }
    read.questions.sort_by_key(|one| place(one.split));
    Ok(read)
}

/// The public file: 2,248 records of both splits, some with a templated wording beside the free one.
fn from_public(file: &Arc<SourceFile>, params: &Params, rejects: &mut Rejects) -> Result<Read, StageError> {
    let records = records(file, rejects)?;
    let is_test =
        |record: &Record| record.text("phrase_type").is_some_and(|phrase| phrase.starts_with("test_"));
    let frame = |record: &Record| record.some_text("question_frame");
    // What a wording must not be to be clean: the question or the templated wording of a test record.
    let mut tested: BTreeSet<(String, String)> = BTreeSet::new();
    for (_, record) in records.iter().filter(|(_, record)| is_test(record)) {
        let image = record.text("image_name").unwrap_or_default();
        let wordings = record.text("question").into_iter().chain(frame(record));
        tested.extend(wordings.map(|wording| (image.clone(), exact(&wording))));
    }
    let mut read = Read::new(Arc::clone(file), "OSF 89kps");
    let mut seen = BTreeSet::new();
    for (number, record) in &records {
        let split = if is_test(record) { "test" } else { "train" };
        let one = match question(record, split, params) {
            Ok(mut one) if seen.insert(one.qid) => {
                one.training_twin = (split == "test").then(|| frame(record).is_some());
                one
            }
            Ok(one) => {
                rejects.add(file, Some(*number), Some(&one.qid.to_string()), "its `qid` stands twice");
                continue;
            }
            Err(reason) => {
                rejects.add(file, Some(*number), record.text("qid").as_deref(), reason);
                continue;
            }
        };
        if let Some(case) = record.some_text("image_case_url") {
            read.cases.insert(one.image.clone(), case);
        }
        if let Some(wording) = frame(record).filter(|_| split == "test") {
            read.tested.push((one.qid, one.image.clone(), exact(&wording)));
        }
        // A templated wording follows its record, which is the order of the MEVF files.
        let templated =
            frame(record).filter(|_| params.protocol != Protocol::Published).map(|wording| Question {
                qid: FRAMES + one.qid,
                split: "train",
                question: wording,
                phrase_type: Some("frame".to_owned()),
                training_twin: None,
                ..one.clone()
            });
        let templated = templated.filter(|templated| {
            params.protocol != Protocol::Clean
                || !tested.contains(&(templated.image.clone(), exact(&templated.question)))
        });
        for one in std::iter::once(one).chain(templated) {
            read.records.insert(one.qid, (Arc::clone(file), *number));
            read.questions.push(one);
        }
    }
    Ok(read)
}

/// The files of the MEVF code, whose training file already has the templated wordings.
fn from_mevf(
    train: &Arc<SourceFile>,
    test: &Arc<SourceFile>,
    params: &Params,
    rejects: &mut Rejects,
) -> Result<Read, StageError> {
    let mut read = Read::new(Arc::clone(train), "MEVF");
    let mut seen = BTreeSet::new();
    for (file, split) in [(train, "train"), (test, "test")] {
        for (number, record) in records(file, rejects)? {
            match question(&record, split, params) {
                Ok(one) if !seen.insert(one.qid) => {
                    rejects.add(file, Some(number), Some(&one.qid.to_string()), "its `qid` stands twice");
                }
                Ok(one) => {
                    read.records.insert(one.qid, (Arc::clone(file), number));
                    read.questions.push(one);
                }
                Err(reason) => {
                    rejects.add(file, Some(number), record.text("qid").as_deref(), reason);
                }
            }
        }
    }
    match frames_of_tests(&read.questions) {
        Some(frames) => {
            for one in read.questions.iter_mut().filter(|one| one.split == "test") {
                one.training_twin = Some(frames.contains_key(&one.qid));
            }
            let wording = |(qid, (image, wording))| (qid, image, wording);
            read.tested = frames.into_iter().map(wording).collect();
        }
        None if params.protocol == Protocol::Clean => {
            let reason = format!(
                "its templated wordings are not numbered behind their questions, as they are in the files of the \
                 MEVF code: which of them are those of test questions can then only be told by `{PUBLIC}`; read \
                 that, or take another protocol"
            );
            return Err(train.error(reason));
        }
        None => {}
    }
    let mut tested: BTreeSet<(String, String)> =
        read.tested.iter().map(|(_, image, wording)| (image.clone(), wording.clone())).collect();
    let of_test = read.questions.iter().filter(|one| one.split == "test");
    tested.extend(of_test.map(|one| (one.image.clone(), exact(&one.question))));
    read.questions.retain(|one| match params.protocol {
        _ if !is_frame(one) => true,
        Protocol::Mevf => true,
        Protocol::Clean => !tested.contains(&(one.image.clone(), exact(&one.question))),
        Protocol::Published | Protocol::HuggingFace => false,
    });
    Ok(read)
}

/// Whether a question is the templated wording of another.
fn is_frame(one: &Question) -> bool {
    one.phrase_type.as_deref() == Some("frame")
}

/// Image and templated wording of test questions, by the number of the question. The files of the MEVF code number
/// the published records in their order, and behind each its templated wording, if it has one; that is believed
/// where image and answer are those of the question before, of every single wording, or else nothing is told.
fn frames_of_tests(questions: &[Question]) -> Option<BTreeMap<i64, (String, String)>> {
    let by_number: BTreeMap<i64, &Question> = questions.iter().map(|one| (one.qid, one)).collect();
    let mut frames = BTreeMap::new();
    for frame in questions.iter().filter(|one| is_frame(one)) {
        let own = by_number.get(&(frame.qid - 1))?;
        if is_frame(own) || own.image != frame.image || exact(&own.answer) != exact(&frame.answer) {
            return None;
        }
        if own.split == "test" {
            frames.insert(own.qid, (frame.image.clone(), exact(&frame.question)));
        }
    }
    Some(frames)
}

/// Parquet files of rows of an image, a question and an answer. An image is named by its digest, and rows
/// are numbered as they stand.
fn from_parquet(files: &SourceFiles, rejects: &mut Rejects) -> Result<Read, StageError> {
    let mut read: Option<Read> = None;
    for file in files.filtered(|path| path.ends_with(".parquet")) {
        let file = file?;
        let split = named_in(&file.path).ok_or_else(|| file.error("its name tells no split"))?;
        let read =
            read.get_or_insert_with(|| Read::new(Arc::clone(&file), "Hugging Face flaviagiammarino/vqa-rad"));
        let mut rows = ParquetRows::open(&file, &["image", "question", "answer"])?;
        while let Some((first, table)) = rows.next()? {
            let images = table.images("image").map_err(|error| file.error(error.to_string()))?;
            let questions = table.as_text("question").map_err(|error| file.error(error.to_string()))?;
            let answers = table.as_text("answer").map_err(|error| file.error(error.to_string()))?;
            for (offset, ((image, question), answer)) in images.iter().zip(questions).zip(answers).enumerate()
            {
                let row = first + offset;
                let (Some((bytes, _)), Some(question), Some(answer)) = (image, question, answer) else {
                    rejects.add(&file, Some(row), None, "it lacks an image, a question or an answer");
                    continue;
                };
                let image = format!("{}.jpg", &Digest::of(bytes).to_hex()[..16]);
                read.cells.entry(image.clone()).or_insert_with(|| bytes.as_slice().into());
                let qid = read.questions.len() as i64;
                read.records.insert(qid, (Arc::clone(&file), row));
                read.questions.push(Question {
                    qid,
                    image,
                    split,
                    question,
                    answer,
                    lang: Some("en".to_owned()),
                    ..Question::default()
                });
            }
        }
    }
    read.ok_or_else(|| files.error("it has no Parquet file, which `huggingface-1793` reads"))
}

/// The image files by name.
fn by_name(files: &SourceFiles) -> Result<BTreeMap<String, Arc<SourceFile>>, StageError> {
    let mut by_name = BTreeMap::new();
    for file in files.filtered(|path| path.ends_with(".jpg")) {
        let file = file?;
        by_name.entry(file.name().to_owned()).or_insert(file);
    }
    Ok(by_name)
}

/// One picture per image that is asked about and there, in the split where it is asked about first.
fn pictures(read: &Read, images: &BTreeMap<String, Arc<SourceFile>>) -> Vec<Picture> {
    let mut seen = BTreeSet::new();
    let mut pictures = Vec::new();
    for one in read.questions.iter().filter(|one| seen.insert(one.image.as_str())) {
        let content = match (read.cells.get(&one.image), images.get(one.image.as_str())) {
            (Some(bytes), _) => Content::Bytes(Arc::clone(bytes)),
            (None, Some(file)) => Content::File(Arc::clone(file)),
            (None, None) => continue,
        };
        pictures.push(Picture {
            id: one.image.clone(),
            split: one.split,
            path: one.image.clone(),
            content,
            modality: None,
            region: one.organ.clone(),
            licence: Some(LICENCE.to_owned()),
            group: read.cases.get(&one.image).cloned(),
            named_by: read.records.get(&one.qid).cloned(),
        });
    }
    pictures
}
