//! The stage kind `ingest.ct_rate`: CT-RATE (Hamamci et al. 2024), chest CT with reports and labels, from
//! its folder as published; or the labelled reports of its text classifier, which have no volumes.

mod excluded;
mod scans;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use pipe_models::preprocess::volume::ClipOrder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::excluded::Excluded;
use self::scans::{Scan, prepare};
pub(crate) use self::tables::LABELS;
use self::tables::{Report, Volume};
use super::checks::Checks;
use super::origin::source_md5;
use super::rejects::Rejects;
use super::seen::{Seen, key, text_key};
use super::sheets::{Sheets, tile};
use super::source::{SourceFile, SourceFiles};
use super::splits::{SPLITS, drawn, place};
use crate::artifact;
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions, write};

/// What the published validation split is to a study.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ValidAs {
    /// For choosing.
    #[default]
    Val,
    /// For testing: no other test split is published, and CT-CLIP's figures are of this one.
    Test,
}

/// Which reconstructions of a scan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reconstructions {
    /// Every one.
    #[default]
    All,
    /// The first of each scan.
    First,
}

/// When Hounsfield units are clipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Before resampling, as CT-CLIP's inference does.
    #[default]
    BeforeResampling,
    /// After it, as CT-CLIP's training does: what lies beyond the window takes part in the mixing.
    AfterResampling,
}

impl From<Clip> for ClipOrder {
    fn from(clip: Clip) -> Self {
        match clip {
            Clip::BeforeResampling => Self::BeforeResampling,
            Clip::AfterResampling => Self::AfterResampling,
        }
    }
}

/// Which parts of a report its caption is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CaptionText {
    /// Findings and impressions, one behind the other, as CT-CLIP's inference reads them.
    #[default]
    FindingsAndImpressions,
    /// The findings alone, as CT-CLIP was trained.
    Findings,
}

/// Parameters of `ingest.ct_rate`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// What the published validation split is.
    pub valid_as: ValidAs,
    /// The share of training patients who are moved to `val`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub val: f64,
    /// Decides which patients these are.
    pub seed: i64,
    /// Which reconstructions of a scan.
    pub reconstructions: Reconstructions,
    /// Millimetres between slices, rows and columns after resampling; an empty list keeps the scan's own.
    pub spacing: Vec<f64>,
    /// Hounsfield units beyond these are clipped.
    pub window: [i64; 2],
    /// When they are.
    pub clip: Clip,
    /// Which parts of a report its caption is. Quotation marks and round brackets are left out of captions, as
    /// CT-CLIP's code does; the columns `findings` and `impression` keep them.
    pub caption: CaptionText,
    /// Whether volumes of the tables may be missing, as where a part was downloaded, or rows of the tables.
    pub allow_partial: bool,
    /// Whether to leave out what the publisher's lists `no_chest_train.txt` and `no_chest_valid.txt` name.
    pub chest_only: bool,
    /// How many rows may be left out before the stage fails.
    #[schemars(range(min = 0))]
    pub max_rejects: i64,
    /// Rows of a part of the table of volumes, on average. A volume has up to 100 MB.
    #[schemars(range(min = 1, max = 65536))]
    pub shard_rows: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            valid_as: ValidAs::default(),
            val: 0.0,
            seed: 0,
            reconstructions: Reconstructions::default(),
            spacing: vec![1.5, 0.75, 0.75],
            window: [-1000, 1000],
            clip: Clip::default(),
            caption: CaptionText::default(),
            allow_partial: false,
            chest_only: true,
            max_rejects: 0,
            shard_rows: 1,
        }
    }
}

/// Reads CT-RATE.
pub struct IngestCtRate;

const LICENCE: &str = "CC-BY-NC-SA-4.0";

impl StageKind for IngestCtRate {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.ct_rate",
            summary: "reads CT-RATE: chest CT volumes in Hounsfield units, reports and 18 abnormalities",
            implementation: 4,
            schema_version: 2,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE, ArtifactType::TREE],
                "the folder `dataset` of CT-RATE, or a part of it; or a CSV file of labelled reports",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("volumes", artifact::VOLUMES, "the volumes, in Hounsfield units"),
            OutputPort::new("labels", artifact::LABELS, "18 abnormalities, a bit each"),
            OutputPort::new("captions", artifact::CAPTIONS, "findings and impressions of the reports"),
            OutputPort::new("checks", artifact::CHECKS, "counts, and what splits share"),
            OutputPort::new("sheets", artifact::SHEETS, "the first images of each split, to look at"),
            OutputPort::new("rejects", artifact::REJECTS, "what was left out, and why"),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems = Vec::new();
        let mut wrong = |path: &str, message: &str| {
            let (path, message) = (path.to_owned(), message.to_owned());
            problems.push(ParameterProblem { path, message, help: None });
        };
        let three =
            params.spacing.len() == 3 && params.spacing.iter().all(|size| *size > 0.0 && *size < 1000.0);
        if !params.spacing.is_empty() && !three {
            wrong("spacing", "three positive numbers of millimetres are expected, or none");
        }
        let [low, high] = params.window;
        if low >= high || low < i64::from(i16::MIN) || high > i64::from(i16::MAX) {
            wrong("window", "two numbers of Hounsfield units are expected, the lower first, of 16 bits");
        }
        problems
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["clip", "caption"]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let files = SourceFiles::input(context, "source")?;
        let mut rejects = Rejects::new(context.scratch()?);
        let mut volumes = match tables::labelled_reports(&files)? {
            Some(file) => tables::read_labelled_reports(&file, &mut rejects)?,
            None => {
                let volumes = tables::read(&files, params.caption, &mut rejects)?;
                rejects.check(params.max_rejects)?;
                check_counts(&files, &volumes, params, &rejects)?;
                volumes
            }
        };
        let mut checks = Checks::default();
        if params.chest_only {
            let (excluded, before) = (Excluded::read(&files)?, volumes.len());
            volumes.retain(|volume| !excluded.has(volume));
            checks.fact("volume that is no chest", String::new(), (before - volumes.len()) as u64);
        }
        for volume in &mut volumes {
            volume.split = match volume.split {
                "val" if params.valid_as == ValidAs::Test => "test",
                "train" => drawn(params.seed, &volume.patient, params.val, 0.0),
                split => split,
            };
        }
        if params.reconstructions == Reconstructions::First {
            let mut seen = std::collections::BTreeSet::new();
            volumes.retain(|volume| volume.scan.as_ref().is_none_or(|scan| seen.insert(scan.clone())));
        }
        volumes.sort_by_key(|volume| place(volume.split));
        rejects.check(params.max_rejects)?;
        let metadata = [
            ("dataset", "ct-rate".to_owned()),
            ("dataset_version", "Hugging Face ibrahimhamamci/CT-RATE".to_owned()),
            ("source_md5", source_md5(&[&files], |_| true, context)?),
            ("licence", LICENCE.to_owned()),
            ("units", "Hounsfield units".to_owned()),
        ];
        let provenance = context.provenance().to_owned();
        let kept = write_volumes(&files, &volumes, params, &metadata, &mut rejects, &mut checks, context)?;
        rejects.check(params.max_rejects)?;
        if kept.is_empty() {
            return Err(files.error("there is no volume of those that the tables name"));
        }
        let text = WriteOptions::text(&provenance);
        let labels = label_table(&kept).with_all_metadata(&metadata);
        write(context.output("labels")?, &TableSchema::labels(), &labels, text)?;
        let reports: Vec<(&Volume, &Report)> =
            kept.iter().filter_map(|volume| Some((*volume, volume.report.as_ref()?))).collect();
        let captions = caption_table(&reports).with_all_metadata(&metadata);
        write(context.output("captions")?, &TableSchema::captions(), &captions, text)?;
        count(&mut checks, &kept, &reports, context.scratch()?)?;
        rejects.count_reasons(&mut checks);
        checks.write(context.output("checks")?, &provenance)?;
        rejects.write(params.max_rejects, "rejects", context)
    }
}

const SCHEMA: &TableSchema = &TableSchema::volumes();

/// Volumes of the published tables, by split.
const PUBLISHED: [(&str, usize); 2] = [("train", 47_149), ("val", 3_039)];

/// Compares the number of volumes with the published one, but for rows that were rejected.
fn check_counts(
    files: &SourceFiles,
    volumes: &[Volume],
    params: &Params,
    rejects: &Rejects,
) -> Result<(), StageError> {
    for (split, published) in PUBLISHED.iter().filter(|_| !params.allow_partial) {
        let found = volumes.iter().filter(|volume| volume.split == *split).count();
        if found.abs_diff(*published) > rejects.count() as usize {
            let name = if *split == "val" { "validation" } else { split };
            return Err(files.error(format!(
                "its tables name {found} volumes of the split `{name}`, {published} are published; `allow_partial = true` takes them all the same"
            )));
        }
    }
    Ok(())
}

/// Writes the volumes one after the other; those that were written, or that have none to write.
fn write_volumes<'v>(
    files: &SourceFiles,
    volumes: &'v [Volume],
    params: &Params,
    metadata: &[(&str, String)],
    rejects: &mut Rejects,
    checks: &mut Checks,
    context: &mut StageContext<'_>,
) -> Result<Vec<&'v Volume>, StageError> {
    let provenance = context.provenance().to_owned();
    let options = WriteOptions { shard_rows: params.shard_rows as usize, provenance: &provenance };
    let mut writer = TableWriter::new(context.output("volumes")?, SCHEMA, options);
    writer.push(volume_table(Vec::new()).with_all_metadata(metadata))?;
    let mut seen = Seen::new(&["same volume", "same patient"], context.scratch()?);
    let mut shapes: BTreeMap<(usize, Vec<i32>), u64> = BTreeMap::new();
    let mut kept = Vec::new();
    let mut sheets = Sheets::default();
    // What is missing shows before the work begins.
    let found = volumes.iter().map(|volume| match volume.acquisition {
        Some(_) => scans::file(files, &volume.id),
        None => Ok(None),
    });
    let found = found.collect::<Result<Vec<_>, StageError>>()?;
    let is_missing = |(volume, found): &(&Volume, &Option<Arc<SourceFile>>)| {
        volume.acquisition.is_some() && found.is_none()
    };
    let missing: Vec<&Volume> =
        volumes.iter().zip(&found).filter(is_missing).map(|(volume, _)| volume).collect();
    for volume in missing.iter().filter(|_| !params.allow_partial) {
        let (file, row) = &volume.place;
        let reason = format!(
            "there is no volume `{}.nii.gz`; `allow_partial = true` takes those that are there",
            volume.id
        );
        rejects.add(file, Some(*row), Some(&volume.id), reason);
    }
    rejects.check(params.max_rejects)?;
    let mut bytes = 0;
    for (index, (volume, found)) in volumes.iter().zip(&found).enumerate() {
        context.check_cancelled()?;
        let (Some(acquisition), Some(found)) = (&volume.acquisition, found) else {
            if volume.acquisition.is_none() {
                kept.push(volume);
            }
            continue;
        };
        bytes += found.bytes;
        match prepare(found, acquisition, params) {
            Ok(scan) => {
                seen.add(
                    &volume.id,
                    volume.split,
                    &[Some(key(&scan.digest)), Some(text_key(&volume.patient))],
                )?;
                *shapes.entry((place(volume.split), scan.shape.clone())).or_default() += 1;
                if sheets.has_room(volume.split) {
                    sheets.add(volume.split, tile(&scan.picture(params.window)));
                }
                writer.push(volume_table(vec![(volume, scan)]).with_all_metadata(metadata))?;
                kept.push(volume);
            }
            Err(reason) => rejects.add(found, None, Some(&volume.id), reason),
        }
        let figures = [("MB", bytes as f64 / 1e6)];
        context.progress(index as u64 + 1, volumes.len() as u64, "volumes", &figures);
    }
    writer.finish(context.output("volumes")?)?;
    sheets.write(context.output("sheets")?)?;
    checks.fact("volume of the tables that is not there", String::new(), missing.len() as u64);
    for split in seen.splits() {
        checks.count("volumes", split, None, seen.count(split));
    }
    for ((split, shape), count) in shapes {
        let shape: Vec<String> = shape.iter().map(i32::to_string).collect();
        checks.count("shape", SPLITS[split], Some(shape.join(" x ")), count);
    }
    seen.check(checks)?;
    Ok(kept)
}

fn volume_table(rows: Vec<(&Volume, Scan)>) -> Table {
    let text = |value: &dyn Fn(&Volume) -> Option<String>| {
        Column::Utf8(rows.iter().map(|(volume, _)| value(volume)).collect())
    };
    let table = Table::new()
        .with("image_id", text(&|volume| Some(volume.id.clone())))
        .with("split", text(&|volume| Some(volume.split.to_owned())))
        .with("dtype", text(&|_| Some("i16".to_owned())))
        .with("shape", Column::ListInt32(rows.iter().map(|(_, scan)| Some(scan.shape.clone())).collect()))
        .with(
            "spacing",
            Column::ListFloat32(rows.iter().map(|(_, scan)| Some(scan.spacing.clone())).collect()),
        )
        .with("sha", Column::texts(rows.iter().map(|(_, scan)| scan.digest.to_hex())))
        .with("modality", text(&|_| Some("CT".to_owned())))
        .with("region", text(&|_| Some("chest".to_owned())))
        .with("licence", text(&|_| Some(LICENCE.to_owned())))
        .with("group_id", text(&|volume| Some(volume.patient.clone())))
        .with("scan", text(&|volume| volume.scan.clone()));
    // Voxels are moved: a scan has hundreds of megabytes.
    table.with("voxels", Column::Binary(rows.into_iter().map(|(_, scan)| Some(scan.voxels)).collect()))
}

fn label_table(volumes: &[&Volume]) -> Table {
    let labelled: Vec<&&Volume> = volumes.iter().filter(|volume| volume.labels.is_some()).collect();
    Table::new()
        .with("image_id", Column::texts(labelled.iter().map(|volume| volume.id.clone())))
        .with("split", Column::texts(labelled.iter().map(|volume| volume.split)))
        .with("label", Column::ListInt64(labelled.iter().map(|volume| volume.labels.clone()).collect()))
        .with_metadata("task", "multi-label, binary-class")
        .with_metadata("label_names", serde_json::json!(LABELS).to_string())
}

fn caption_table(reports: &[(&Volume, &Report)]) -> Table {
    let text = |value: &dyn Fn(&Report) -> Option<String>| {
        Column::Utf8(reports.iter().map(|(_, report)| value(report)).collect())
    };
    Table::new()
        .with("caption_id", Column::Int64((0..reports.len() as i64).map(Some).collect()))
        .with("image_id", Column::texts(reports.iter().map(|(volume, _)| volume.id.clone())))
        .with("split", Column::texts(reports.iter().map(|(volume, _)| volume.split)))
        .with("caption", text(&|report| Some(report.text.clone())))
        .with("clinical_information", text(&|report| report.clinical_information.clone()))
        .with("technique", text(&|report| report.technique.clone()))
        .with("findings", text(&|report| report.findings.clone()))
        .with("impression", text(&|report| report.impression.clone()))
        .with_metadata("task", "retrieval")
}

fn count(
    checks: &mut Checks,
    volumes: &[&Volume],
    reports: &[(&Volume, &Report)],
    scratch: &Path,
) -> Result<(), StageError> {
    let mut seen = Seen::new(&["same caption"], scratch);
    for (volume, report) in reports {
        seen.add(&volume.id, volume.split, &[Some(text_key(&report.text))])?;
    }
    for split in SPLITS.into_iter().filter(|split| volumes.iter().any(|volume| volume.split == *split)) {
        let of_split: Vec<&&Volume> = volumes.iter().filter(|volume| volume.split == split).collect();
        let patients: std::collections::BTreeSet<&str> =
            of_split.iter().map(|volume| volume.patient.as_str()).collect();
        checks.count("patients", split, None, patients.len() as u64);
        checks.count("reports", split, None, seen.count(split));
        let labelled: Vec<&Vec<i64>> = of_split.iter().filter_map(|volume| volume.labels.as_ref()).collect();
        checks.count("labelled", split, None, labelled.len() as u64);
        for (class, name) in LABELS.into_iter().enumerate() {
            let count = labelled.iter().filter(|labels| labels[class] == 1).count();
            checks.count("class", split, Some(name.to_owned()), count as u64);
        }
    }
    seen.check(checks)
}
