//! The stage kind `ingest.phantom`.

use pipe_engine::cache::Digest;
use pipe_engine::{
    DefaultCpu, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError, StageKind,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::acquisition::{Acquisition, Picture, acquire};
use super::captions::{Caption, Fact, caption, facts, scene_caption, scene_facts};
use super::expected::{Expected, label_noise, marker_only, retrieval};
use super::factors::{Factors, Knobs};
use super::general::{COLOURS, SHAPES, Scene};
use super::sites::{CHEST, FINDINGS, SITES, XRAY_CHEST};
use super::stream::{Stream, key};
use crate::artifact;
use crate::png;
use crate::table::{Column, Table, TableSchema, WriteOptions, write};

/// Which world is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// X-ray, CT, ultrasound and histology.
    Medical,
    /// Coloured shapes.
    General,
}

/// Which medical sites are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// All seven.
    All,
    /// The five of the study.
    Thesis,
    /// Chest x-rays only.
    Chest,
}

/// What the labels say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The finding, among all.
    Finding,
    /// The finding of a chest x-ray, among five.
    FindingChest,
    /// Whether there is one.
    Abnormal,
    /// The modality.
    Modality,
    /// General: the shape of the largest object.
    Shape,
    /// General: its colour.
    Colour,
    /// General: how many objects there are.
    Count,
}

/// A counterfactual of a test row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Twin {
    /// The same row without its lesion.
    Lesion,
    /// With its marker toggled.
    Marker,
    /// On the other device.
    Device,
}

/// What happens to a drawing until it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Exposure {
    /// Brightness varies, then noise is added.
    Full,
    /// Noise is all that varies: for figures of detectability in closed form.
    NoiseOnly,
}

/// Parameters of `ingest.phantom`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Which world is drawn.
    pub domain: Domain,
    /// Decides every row.
    pub seed: i64,
    /// Side of the images in pixels.
    #[schemars(range(min = 28, max = 224))]
    pub size: i64,
    /// Rows to train on; their patients are numbered from 0.
    #[schemars(range(min = 0, max = 100_000))]
    pub train: i64,
    /// Rows to validate on; patients from 100,000.
    #[schemars(range(min = 0, max = 100_000))]
    pub val: i64,
    /// Rows to test on; patients from 200,000.
    #[schemars(range(min = 0, max = 100_000))]
    pub test: i64,
    /// Another range of test patients: from 200,000 + 100,000 times this.
    #[schemars(range(min = 0, max = 1000))]
    pub test_offset: i64,
    /// Which medical sites are drawn.
    pub weights: Weights,
    /// What the labels say.
    pub task: Task,
    /// Share of patients without a finding.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub p_normal: f64,
    /// Lesion contrast; 1 is plain to see, .01 to .05 is at the limit of detection.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub contrast: f64,
    /// Share of training labels that are replaced by another one.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub label_noise: f64,
    /// The same of validation and test labels.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub label_noise_test: f64,
    /// Correlation of the corner marker with abnormality in training: 0 is a fair coin.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub shortcut_train: f64,
    /// The same in validation and test.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub shortcut_test: f64,
    /// Share of patients on device B, which is noisier and weaker.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub device_b: f64,
    /// Factor on the contrast of device B.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub contrast_b: f64,
    /// Factor on the noise of device B.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub noise_b: f64,
    /// Whether device B blurs.
    pub blur_b: bool,
    /// What happens to a drawing until it is stored.
    pub acquisition: Exposure,
    /// Counterfactuals of the test rows, as a table of their own.
    pub twins: Vec<Twin>,
    /// Rows of a part of the tables of images, on average.
    #[schemars(range(min = 4, max = 65536))]
    pub shard_rows: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            domain: Domain::Medical,
            seed: 2026,
            size: 48,
            train: 1000,
            val: 0,
            test: 250,
            test_offset: 0,
            weights: Weights::Thesis,
            task: Task::Finding,
            p_normal: 0.2,
            contrast: 1.0,
            label_noise: 0.0,
            label_noise_test: 0.0,
            shortcut_train: 0.0,
            shortcut_test: 0.0,
            device_b: 0.25,
            contrast_b: 0.5,
            noise_b: 2.0,
            blur_b: true,
            acquisition: Exposure::Full,
            twins: Vec::new(),
            shard_rows: 256,
        }
    }
}

/// Draws phantoms from a seed.
pub struct IngestPhantom;

/// Rows are drawn in blocks of this many, so that a run can be stopped between them.
const BLOCK: usize = 512;
const TRAIN: &str = "train";
const VAL: &str = "val";
const TEST: &str = "test";

impl StageKind for IngestPhantom {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.phantom",
            summary: "draws images, captions, labels and masks from a seed, with planted truths",
            implementation: 2,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![],
            free_inputs: None,
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let mut ports = vec![
            OutputPort::new("images", artifact::IMAGES, "the images, with planted truths as columns"),
            OutputPort::new("labels", artifact::LABELS, "one label per image"),
            OutputPort::new("captions", artifact::CAPTIONS, "one caption per image"),
            OutputPort::new("masks", artifact::MASKS, "expert outlines of lesions or objects"),
            OutputPort::new("expected", artifact::EXPECTED, "figures that the planted truths imply"),
        ];
        if !params.twins.is_empty() {
            ports.push(OutputPort::new("twins", artifact::IMAGES, "counterfactuals of the test rows"));
        }
        ports
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let general = matches!(params.task, Task::Shape | Task::Colour | Task::Count);
        let mut problems = Vec::new();
        let mut wrong = |path: &str, message: String| {
            problems.push(ParameterProblem { path: path.to_owned(), message, help: None });
        };
        if params.domain == Domain::Medical && general {
            wrong(
                "task",
                "the medical domain has no objects; use finding, finding-chest, abnormal or modality".into(),
            );
        }
        if params.domain == Domain::General && !params.twins.is_empty() {
            wrong("twins", "the general domain has no lesions, markers or devices".into());
        }
        if params.task == Task::FindingChest && params.weights != Weights::Chest {
            wrong("task", "`finding-chest` labels chest x-rays only; set `weights = \"chest\"`".into());
        }
        if params.train + params.val + params.test == 0 {
            wrong("train", "there are no rows to draw".into());
        }
        problems
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let plan: Vec<(&'static str, u64)> = [
            (TRAIN, 0, params.train),
            (VAL, 100_000, params.val),
            (TEST, 200_000 + 100_000 * params.test_offset, params.test),
        ]
        .into_iter()
        .flat_map(|(split, first, count)| (0..count).map(move |row| (split, (first + row) as u64)))
        .collect();
        let mut rows: Vec<Row> = Vec::with_capacity(plan.len());
        for block in plan.chunks(BLOCK) {
            context.check_cancelled()?;
            let drawn: Vec<Result<Row, StageError>> =
                block.par_iter().map(|(split, patient)| Row::draw(params, split, *patient)).collect();
            for row in drawn {
                rows.push(row?);
            }
            context.progress(rows.len() as u64, plan.len() as u64, "images", &[]);
        }
        let provenance = context.provenance().to_owned();
        let images = WriteOptions { shard_rows: params.shard_rows as usize, provenance: &provenance };
        let text = WriteOptions::text(&provenance);
        write(context.output("images")?, &TableSchema::images(), &image_table(params, &rows), images)?;
        write(context.output("labels")?, &TableSchema::labels(), &label_table(params, &rows), text)?;
        write(context.output("captions")?, &TableSchema::captions(), &caption_table(&rows), text)?;
        write(context.output("masks")?, &TableSchema::masks(), &mask_table(&rows)?, images)?;
        write(context.output("expected")?, &TableSchema::expected(), &expected_table(params, &rows), text)?;
        if !params.twins.is_empty() {
            let twins = twin_table(params, &rows, context)?;
            write(context.output("twins")?, &TableSchema::images(), &twins, images)?;
        }
        Ok(())
    }
}

/// One drawn row.
struct Row {
    split: &'static str,
    id: String,
    group: String,
    source: Source,
    picture: Picture,
    png: Vec<u8>,
    caption: Caption,
    facts: Vec<Fact>,
    /// The class before and after label noise.
    truth_label: usize,
    label: usize,
}

enum Source {
    Medical(Factors),
    General(Scene),
}

impl Row {
    fn draw(params: &Params, split: &'static str, patient: u64) -> Result<Self, StageError> {
        let seed = params.seed as u64;
        let size = params.size as usize;
        let (source, picture, caption, facts) = match params.domain {
            Domain::Medical => {
                let factors = Factors::draw(&knobs(params, split), patient);
                let picture = acquire(&factors, size, acquisition(params));
                let (caption, facts) = (caption(&factors, seed), facts(&factors));
                (Source::Medical(factors), picture, caption, facts)
            }
            Domain::General => {
                let scene = Scene::draw(seed, patient);
                let (caption, facts) = (scene_caption(&scene, seed), scene_facts(&scene));
                let picture = scene.picture(size);
                (Source::General(scene), picture, caption, facts)
            }
        };
        let domain = domain_name(params.domain);
        let classes = class_names(params).len();
        let truth_label = class(params, &source);
        let mut stream = Stream::new(key(seed, domain, "label", &[patient, 0]));
        let noise = if split == TRAIN { params.label_noise } else { params.label_noise_test };
        let flipped = stream.chance(noise);
        let other = stream.below(classes as u64 - 1) as usize;
        let label = if flipped { (truth_label + 1 + other) % classes } else { truth_label };
        let png = png::encode(&picture.pixels, picture.size, picture.size, picture.channels)?;
        let id = format!("phantom-{domain}-{seed}/{split}/{patient:06}/0");
        let group = format!("phantom-{domain}-{seed}/{patient:06}");
        Ok(Self { split, id, group, source, picture, png, caption, facts, truth_label, label })
    }

    fn factors(&self) -> Option<&Factors> {
        match &self.source {
            Source::Medical(factors) => Some(factors),
            Source::General(_) => None,
        }
    }
}

fn domain_name(domain: Domain) -> &'static str {
    match domain {
        Domain::Medical => "medical",
        Domain::General => "general",
    }
}

fn knobs(params: &Params, split: &str) -> Knobs {
    let weights = SITES
        .iter()
        .enumerate()
        .map(|(index, site)| match params.weights {
            Weights::All => site.weight_all,
            Weights::Thesis => site.weight_thesis,
            Weights::Chest => f64::from(u8::from(index == XRAY_CHEST)),
        })
        .collect();
    Knobs {
        seed: params.seed as u64,
        weights,
        p_normal: params.p_normal,
        device_b: params.device_b,
        shortcut: if split == TRAIN { params.shortcut_train } else { params.shortcut_test },
    }
}

fn acquisition(params: &Params) -> Acquisition {
    Acquisition {
        contrast: params.contrast,
        contrast_b: params.contrast_b,
        noise_b: params.noise_b,
        blur_b: params.blur_b,
        gain: params.acquisition == Exposure::Full,
    }
}

const MODALITIES: [&str; 4] = ["xray", "ct", "ultrasound", "histology"];

fn class_names(params: &Params) -> Vec<&'static str> {
    match (params.domain, params.task) {
        (Domain::General, Task::Colour) => COLOURS.to_vec(),
        (Domain::General, Task::Count) => vec!["one", "two"],
        (Domain::General, _) => SHAPES.to_vec(),
        (Domain::Medical, Task::FindingChest) => CHEST.to_vec(),
        (Domain::Medical, Task::Abnormal) => vec!["normal", "abnormal"],
        (Domain::Medical, Task::Modality) => MODALITIES.to_vec(),
        (Domain::Medical, _) => FINDINGS.to_vec(),
    }
}

fn class(params: &Params, source: &Source) -> usize {
    match source {
        Source::General(scene) => match params.task {
            Task::Colour => scene.main_object().colour,
            Task::Count => scene.objects.len() - 1,
            _ => scene.main_object().shape,
        },
        Source::Medical(factors) => match params.task {
            Task::Abnormal => usize::from(factors.finding != 0),
            Task::Modality => {
                MODALITIES.iter().position(|name| *name == factors.site().modality).unwrap_or_default()
            }
            // The chest findings are the first five of all.
            _ => factors.finding,
        },
    }
}

/// The columns that images and twins share.
struct ImageColumns<'a> {
    ids: Vec<String>,
    pictures: Vec<(&'a Picture, &'a [u8])>,
    factors: Vec<Option<&'a Factors>>,
    splits: Vec<&'a str>,
    groups: Vec<&'a str>,
}

fn image_columns(columns: ImageColumns<'_>) -> Table {
    let ImageColumns { ids, pictures, factors, splits, groups } = columns;
    let of = |value: &dyn Fn(&Factors) -> Option<String>| {
        Column::Utf8(factors.iter().map(|factors| factors.and_then(value)).collect())
    };
    let size = |value: &dyn Fn(&Picture) -> usize| {
        Column::Int32(pictures.iter().map(|(picture, _)| Some(value(picture) as i32)).collect())
    };
    let image = ids
        .iter()
        .zip(&pictures)
        .map(|(id, (_, png))| Some((png.to_vec(), format!("{}.png", id.replace('/', "-")))));
    let modality = factors
        .iter()
        .map(|factors| Some(factors.map_or("picture", |factors| factors.site().modality).to_owned()));
    Table::new()
        .with("image_id", Column::texts(ids.clone()))
        .with("split", Column::texts(splits))
        .with("image", Column::Image(image.collect()))
        .with("width", size(&|picture| picture.size))
        .with("height", size(&|picture| picture.size))
        .with("channels", size(&|picture| picture.channels))
        .with("sha", Column::texts(pictures.iter().map(|(_, png)| Digest::of(png).to_hex())))
        .with("modality", Column::Utf8(modality.collect()))
        .with("region", of(&|factors| Some(factors.site().region.to_owned())))
        .with("licence", Column::texts(pictures.iter().map(|_| "CC0-1.0")))
        .with("group_id", Column::texts(groups))
        .with("truth_finding", of(&|factors| Some(factors.finding_name().to_owned())))
        .with("truth_plane", of(&|factors| factors.site().plane.map(str::to_owned)))
        .with(
            "truth_side",
            of(&|factors| factors.left.map(|left| if left { "left" } else { "right" }.to_owned())),
        )
        .with(
            "truth_size",
            of(&|factors| factors.large.map(|large| if large { "large" } else { "small" }.to_owned())),
        )
        .with(
            "truth_count",
            Column::Int64(
                factors.iter().map(|factors| factors.map(|factors| factors.count as i64)).collect(),
            ),
        )
        .with("truth_device", of(&|factors| Some(if factors.device_b { "B" } else { "A" }.to_owned())))
        .with(
            "truth_marker",
            Column::Bool(factors.iter().map(|factors| factors.map(|factors| factors.marker)).collect()),
        )
        .with(
            "truth_marker_corner",
            of(&|factors| Some(if factors.marker_right { "right" } else { "left" }.to_owned())),
        )
        .with("truth_dprime", Column::Float64(pictures.iter().map(|(picture, _)| picture.dprime).collect()))
        .with(
            "truth_mask_pixels",
            Column::Int64(pictures.iter().map(|(picture, _)| Some(mask_pixels(picture))).collect()),
        )
        .with(
            "truth_boxes",
            Column::ListInt64(pictures.iter().map(|(picture, _)| Some(picture.boxes.concat())).collect()),
        )
}

fn mask_pixels(picture: &Picture) -> i64 {
    picture.mask.iter().filter(|inside| **inside).count() as i64
}

fn image_table(params: &Params, rows: &[Row]) -> Table {
    let table = image_columns(ImageColumns {
        ids: rows.iter().map(|row| row.id.clone()).collect(),
        pictures: rows.iter().map(|row| (&row.picture, row.png.as_slice())).collect(),
        factors: rows.iter().map(Row::factors).collect(),
        splits: rows.iter().map(|row| row.split).collect(),
        groups: rows.iter().map(|row| row.group.as_str()).collect(),
    });
    let facts = rows.iter().map(|row| {
        let facts: serde_json::Map<String, serde_json::Value> =
            row.facts.iter().map(|fact| (fact.name.to_owned(), fact.value.clone().into())).collect();
        Some(serde_json::Value::Object(facts).to_string())
    });
    table
        .with("truth_facts", Column::Utf8(facts.collect()))
        .with_metadata("dataset", format!("phantom-{}", domain_name(params.domain)))
        .with_metadata("licence", "CC0-1.0")
}

fn label_table(params: &Params, rows: &[Row]) -> Table {
    let names = class_names(params);
    let task = if names.len() == 2 { "binary-class" } else { "multi-class" };
    Table::new()
        .with("image_id", Column::texts(rows.iter().map(|row| row.id.clone())))
        .with("split", Column::texts(rows.iter().map(|row| row.split)))
        .with("label", Column::ListInt64(rows.iter().map(|row| Some(vec![row.label as i64])).collect()))
        .with("truth_label", Column::Int64(rows.iter().map(|row| Some(row.truth_label as i64)).collect()))
        .with(
            "truth_flipped",
            Column::Bool(rows.iter().map(|row| Some(row.label != row.truth_label)).collect()),
        )
        .with_metadata("dataset", format!("phantom-{}", domain_name(params.domain)))
        .with_metadata("task", task)
        .with_metadata("label_names", serde_json::json!(names).to_string())
}

fn caption_table(rows: &[Row]) -> Table {
    let keywords = rows.iter().map(|row| {
        let wanted = |fact: &&Fact| ["finding", "modality", "region", "shape", "colour"].contains(&fact.name);
        Some(row.facts.iter().filter(wanted).map(|fact| fact.value.clone()).collect())
    });
    Table::new()
        .with("caption_id", Column::Int64((0..rows.len() as i64).map(Some).collect()))
        .with("image_id", Column::texts(rows.iter().map(|row| row.id.clone())))
        .with("split", Column::texts(rows.iter().map(|row| row.split)))
        .with("caption", Column::texts(rows.iter().map(|row| row.caption.text.clone())))
        .with("keywords", Column::ListUtf8(keywords.collect()))
        .with_metadata("task", "retrieval")
}

fn mask_table(rows: &[Row]) -> Result<Table, StageError> {
    let masked: Vec<&Row> = rows.iter().filter(|row| mask_pixels(&row.picture) > 0).collect();
    let files = |what: &str, pixels: &(dyn Fn(&Picture) -> Vec<u8> + Sync)| {
        let files: Vec<Result<_, StageError>> = masked
            .par_iter()
            .map(|row| {
                let pixels = pixels(&row.picture);
                if pixels.is_empty() {
                    return Ok(None);
                }
                let png = png::encode(&pixels, row.picture.size, row.picture.size, 1)?;
                Ok(Some((png, format!("{}-{what}.png", row.id.replace('/', "-")))))
            })
            .collect();
        files.into_iter().collect::<Result<Vec<_>, _>>()
    };
    let masks =
        files("mask", &|picture| picture.mask.iter().map(|inside| u8::from(*inside) * 255).collect())?;
    let effects = files("effect", &|picture| picture.effect.clone())?;
    let region = |row: &&Row| Some(row.factors().map_or("object", Factors::finding_name).to_owned());
    Ok(Table::new()
        .with("image_id", Column::texts(masked.iter().map(|row| row.id.clone())))
        .with("split", Column::texts(masked.iter().map(|row| row.split)))
        .with("region", Column::Utf8(masked.iter().map(region).collect()))
        .with("mask", Column::Image(masks))
        .with("pixels", Column::Int64(masked.iter().map(|row| Some(mask_pixels(&row.picture))).collect()))
        .with("truth_effect", Column::Image(effects)))
}

fn expected_table(params: &Params, rows: &[Row]) -> Table {
    let mut all: Vec<Expected> = Vec::new();
    for split in [VAL, TEST] {
        let pool: Vec<(Vec<Fact>, Caption)> = rows
            .iter()
            .filter(|row| row.split == split)
            .map(|row| (row.facts.clone(), row.caption.clone()))
            .collect();
        if pool.is_empty() {
            continue;
        }
        all.extend(retrieval(split, &pool));
        let binary = params.domain == Domain::Medical && params.task == Task::Abnormal;
        if binary {
            all.extend(marker_only(split, params.shortcut_test));
        }
        if params.label_noise_test > 0.0 {
            let positive = binary.then_some(1.0 - params.p_normal);
            all.extend(label_noise(split, params.label_noise_test, positive));
        }
        let mut counts = std::collections::BTreeMap::new();
        let labels: Vec<usize> = rows.iter().filter(|row| row.split == split).map(|row| row.label).collect();
        labels.iter().for_each(|label| *counts.entry(label).or_insert(0usize) += 1);
        let greatest = counts.values().max().copied().unwrap_or_default() as f64 / labels.len() as f64;
        all.push(Expected {
            quantity: "majority accuracy".to_owned(),
            split,
            value: greatest,
            error: 0.0,
            formula: "largest share of a class",
        });
        let masked: Vec<f64> = rows
            .iter()
            .filter(|row| row.split == split && mask_pixels(&row.picture) > 0)
            .map(|row| mask_pixels(&row.picture) as f64 / row.picture.mask.len() as f64)
            .collect();
        if !masked.is_empty() {
            let share = masked.iter().sum::<f64>() / masked.len() as f64;
            all.push(Expected {
                quantity: "pointing game of a random map".to_owned(),
                split,
                value: share,
                error: (share * (1.0 - share) / masked.len() as f64).sqrt(),
                formula: "mean share of the mask in the image",
            });
        }
    }
    let number =
        |value: &dyn Fn(&Expected) -> f64| Column::Float64(all.iter().map(|one| Some(value(one))).collect());
    Table::new()
        .with("quantity", Column::texts(all.iter().map(|one| one.quantity.clone())))
        .with("split", Column::texts(all.iter().map(|one| one.split)))
        .with("subset", Column::Utf8(vec![Some("all".to_owned()); all.len()]))
        .with("value", number(&|one| one.value))
        .with("lower", number(&|one| one.value - 3.0 * one.error))
        .with("upper", number(&|one| one.value + 3.0 * one.error))
        .with("formula", Column::texts(all.iter().map(|one| one.formula)))
}

fn twin_table(params: &Params, rows: &[Row], context: &StageContext<'_>) -> Result<Table, StageError> {
    let mut wanted: Vec<(&Row, Twin, Factors)> = Vec::new();
    for twin in &params.twins {
        for row in rows.iter().filter(|row| row.split == TEST) {
            let Some(factors) = row.factors() else { continue };
            let changed = match twin {
                Twin::Lesion if factors.finding == 0 => continue,
                Twin::Lesion => Factors { lesion: false, ..factors.clone() },
                Twin::Marker => Factors { marker: !factors.marker, ..factors.clone() },
                Twin::Device => Factors { device_b: !factors.device_b, ..factors.clone() },
            };
            wanted.push((row, *twin, changed));
        }
    }
    context.check_cancelled()?;
    let drawn: Vec<Result<(Picture, Vec<u8>), StageError>> = wanted
        .par_iter()
        .map(|(_, _, factors)| {
            let picture = acquire(factors, params.size as usize, acquisition(params));
            let png = png::encode(&picture.pixels, picture.size, picture.size, picture.channels)?;
            Ok((picture, png))
        })
        .collect();
    let drawn = drawn.into_iter().collect::<Result<Vec<_>, _>>()?;
    let name = |twin: Twin| match twin {
        Twin::Lesion => "lesion",
        Twin::Marker => "marker",
        Twin::Device => "device",
    };
    let table = image_columns(ImageColumns {
        ids: wanted.iter().map(|(row, twin, _)| format!("{}/{}-twin", row.id, name(*twin))).collect(),
        pictures: drawn.iter().map(|(picture, png)| (picture, png.as_slice())).collect(),
        factors: wanted.iter().map(|(_, _, factors)| Some(factors)).collect(),
        splits: wanted.iter().map(|(row, ..)| row.split).collect(),
        groups: wanted.iter().map(|(row, ..)| row.group.as_str()).collect(),
    });
    Ok(table
        .with("twin_of", Column::texts(wanted.iter().map(|(row, ..)| row.id.clone())))
        .with("truth_twin", Column::texts(wanted.iter().map(|(_, twin, _)| name(*twin)))))
}

#[cfg(test)]
pub(super) fn picture_of(
    params: &Params,
    split: &'static str,
    patient: u64,
) -> (Picture, pipe_models::random::Key) {
    let row = Row::draw(params, split, patient).expect("a phantom is drawn");
    let key = match &row.source {
        Source::Medical(factors) => factors.image,
        Source::General(scene) => key(params.seed as u64, "general", "image", &[scene.patient, 0]),
    };
    (row.picture, key)
}

#[cfg(test)]
pub(super) fn flipped(params: &Params, split: &'static str, patient: u64) -> bool {
    let row = Row::draw(params, split, patient).expect("a phantom is drawn");
    row.label != row.truth_label
}
