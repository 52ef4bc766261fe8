//! The stage kind `ingest.medmnist`: MedMNIST v2 and MedMNIST+, from the `.npz` files as published.
//!
//! Every set is an archive of six arrays, images and labels of three splits. What a label means, how
//! many samples there are and what the classes are called follows from the set's name alone
//! ([`catalogue`]); an array of another shape is an error, never another task.

mod catalogue;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::PathBuf;

use image::{DynamicImage, GrayImage, RgbImage};
use pipe_engine::cache::Digest;
use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::catalogue::{Dataset, Kind, Published, Task, identify};
use super::checks::Checks;
use super::checksum::{Checksum, md5_of};
use super::npz::{Array, Npz};
use super::rejects::Rejects;
use super::sheets::{Sheets, middle_slice, tile};
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions, write};
use crate::{artifact, png};

/// A part of the data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For training.
    Train,
    /// For validation.
    Val,
    /// For testing.
    Test,
}

impl Split {
    const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

/// Parameters of `ingest.medmnist`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The set: it decides the task, the classes and the shape of a sample.
    pub dataset: Dataset,
    /// The splits that are read. Rows stand in the order train, val, test.
    #[serde(default = "all_splits")]
    pub splits: Vec<Split>,
    /// Only the first samples of each split.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub limit: Option<i64>,
    /// The side in pixels of the images of the file, 28, 64, 128 or 224: a file of another size is refused. The
    /// size is a part of the experiment; by default it is the file's.
    #[serde(default)]
    #[schemars(range(min = 28, max = 224))]
    pub size: Option<i64>,
    /// The side in pixels to which images are enlarged, by the nearest pixel: published figures of size 224 are
    /// of files of size 28, enlarged so. By default images stay as they are.
    #[serde(default)]
    #[schemars(range(min = 28, max = 1024))]
    pub resize_to: Option<i64>,
    /// Whether a split may have another number of samples than the published one.
    #[serde(default)]
    pub allow_partial: bool,
    /// What happens when the file's MD5 is not the published one.
    #[serde(default)]
    pub md5: Checksum,
    /// Rows of a part, on average; by default 256 images or 8 volumes.
    #[serde(default)]
    #[schemars(range(min = 4, max = 65536))]
    pub shard_rows: Option<i64>,
}

fn all_splits() -> Vec<Split> {
    Split::ALL.to_vec()
}

/// Reads a set of MedMNIST.
pub struct IngestMedmnist;

/// Samples that are read and encoded at once take at most this many bytes in the file.
const BLOCK_BYTES: u64 = 16 << 20;
const BLOCK_ROWS: u64 = 512;
/// What counts, tasks and checksums are those of.
const VERSION: &str = "medmnist 3.0.2, Zenodo 10519652";

impl StageKind for IngestMedmnist {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.medmnist",
            summary: "reads a MedMNIST file: images or volumes with labels, in the official splits",
            implementation: 3,
            schema_version: 2,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE, ArtifactType::TREE],
                "the .npz file, as published",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let samples = if params.dataset.published().kind == Kind::Volume {
            OutputPort::new("volumes", artifact::VOLUMES, "the volumes")
        } else {
            OutputPort::new("images", artifact::IMAGES, "the images, as PNG")
        };
        vec![
            samples,
            OutputPort::new("labels", artifact::LABELS, "their classes"),
            OutputPort::new("checks", artifact::CHECKS, "counts, and images that stand in two splits"),
            OutputPort::new("sheets", artifact::SHEETS, "the first samples of each split, to look at"),
            OutputPort::new(
                "rejects",
                artifact::REJECTS,
                "what was left out: nothing, a file is taken whole",
            ),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut sorted = params.splits.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let mut problems = Vec::new();
        let mut wrong = |path: &str, message: String| {
            problems.push(ParameterProblem { path: path.to_owned(), message, help: None });
        };
        match params.splits.len() {
            0 => wrong("splits", "there is no split to read".to_owned()),
            count if count > sorted.len() => wrong("splits", "a split stands twice".to_owned()),
            _ => {}
        }
        let kind = params.dataset.published().kind;
        let sides = kind.sides();
        if let Some(size) = params.size
            && !sides.iter().any(|side| i64::try_from(*side) == Ok(size))
        {
            wrong(
                "size",
                format!("`{}` is published in the sizes {sides:?}", params.dataset.published().flag),
            );
        }
        if params.resize_to.is_some() && kind == Kind::Volume {
            wrong("resize_to", "volumes are not enlarged".to_owned());
        }
        problems
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let file = context.input("source")?.single_file()?.location.clone();
        let mut npz = Npz::open(&file)?;
        let source = Source::read(file, &mut npz, params, context)?;
        source.ingest(&mut npz, params, context)
    }
}

/// What is known of a file before its images are read.
struct Source {
    file: PathBuf,
    published: &'static Published,
    splits: Vec<SplitLabels>,
    side: u64,
    /// The side of the images in the table.
    stored: u64,
    md5: String,
    /// Whether the MD5 is the published one.
    genuine: bool,
}

/// The labels of a split, as many as samples of it are taken.
struct SplitLabels {
    split: Split,
    labels: Vec<Vec<i64>>,
}

impl Source {
    /// Reads everything but the images: what is wrong shows before any work.
    fn read(
        file: PathBuf,
        npz: &mut Npz,
        params: &Params,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let published = params.dataset.published();
        let mut splits = Vec::new();
        let mut sides = Vec::new();
        for split in Split::ALL.into_iter().filter(|split| params.splits.contains(split)) {
            let images = npz.array(&format!("{}_images", split.name()))?;
            let (samples, side) = image_shape(published, &images)?;
            sides.push(side);
            if sides[0] != side {
                let reason =
                    format!("its images have a side of {side}, those of the first split {}", sides[0]);
                return Err(images.error(reason));
            }
            if let Some(size) = params.size.filter(|size| i64::try_from(side) != Ok(*size)) {
                return Err(images.error(format!("its images have a side of {side}, and `size` is {size}")));
            }
            let wanted = published.counts[split as usize];
            if samples != wanted && !params.allow_partial {
                return Err(images.error(format!(
                    "it has {samples} samples, {wanted} are published; `allow_partial = true` takes it all the same"
                )));
            }
            drop(images);
            let mut array = npz.array(&format!("{}_labels", split.name()))?;
            let mut labels = read_labels(published, &mut array, samples)?;
            labels.truncate(params.limit.map_or(usize::MAX, |limit| limit as usize));
            splits.push(SplitLabels { split, labels });
        }
        let side = sides.first().copied().unwrap_or_default();
        let md5 = md5_of(&file)?;
        let genuine = match identify(&md5) {
            Some((known, known_side)) if (known.flag, known_side) == (published.flag, side) => true,
            Some((known, known_side)) => {
                let reason = format!(
                    "it is the published `{}`, but `dataset` is `{}`",
                    known.file_name(known_side),
                    published.flag
                );
                return Err(StageError::input(file, reason));
            }
            None => false,
        };
        if !genuine {
            let reason = format!(
                "its MD5 is {md5}, which is not that of the published `{}`",
                published.file_name(side)
            );
            if params.md5 == Checksum::Require {
                return Err(StageError::input(file, reason));
            }
            context.warn(&format!("`{}`: {reason}", file.display()));
        }
        let stored = params.resize_to.map_or(side, |side| side as u64);
        Ok(Self { file, published, splits, side, stored, md5, genuine })
    }

    /// Reads the images and writes the tables.
    fn ingest(
        &self,
        npz: &mut Npz,
        params: &Params,
        context: &mut StageContext<'_>,
    ) -> Result<(), StageError> {
        // The name of the port is the unit of progress too.
        let (port, schema, shard_rows) = match self.published.kind {
            Kind::Volume => ("volumes", TableSchema::volumes(), 8),
            Kind::Grey | Kind::Colour => ("images", TableSchema::images(), 256),
        };
        let total: usize = self.splits.iter().map(|split| split.labels.len()).sum();
        if total == 0 {
            return Err(StageError::input(&self.file, "the splits that are read have no samples"));
        }
        let provenance = context.provenance().to_owned();
        let shard_rows = params.shard_rows.unwrap_or(shard_rows) as usize;
        let options = WriteOptions { shard_rows, provenance: &provenance };
        let mut writer = TableWriter::new(context.output(port)?, &schema, options);
        let sample_bytes: u64 = self.published.kind.shape(self.side).iter().product();
        let block = (BLOCK_BYTES / sample_bytes).clamp(1, BLOCK_ROWS);
        let mut digests: Vec<(Split, String, Digest)> = Vec::with_capacity(total);
        let mut sheets = Sheets::default();
        for SplitLabels { split, labels } in &self.splits {
            let (split, samples) = (*split, labels.len() as u64);
            let mut array = npz.array(&format!("{}_images", split.name()))?;
            let mut first = 0;
            while first < samples {
                context.check_cancelled()?;
                let count = block.min(samples - first);
                let bytes = array.bytes(count * sample_bytes)?;
                for pixels in bytes.chunks_exact(sample_bytes as usize) {
                    if !sheets.has_room(split.name()) {
                        break;
                    }
                    sheets.add(split.name(), tile(&self.picture(pixels)));
                }
                let samples: Vec<Result<Sample, StageError>> = bytes
                    .par_chunks_exact(sample_bytes as usize)
                    .enumerate()
                    .map(|(offset, pixels)| {
                        let id =
                            format!("{}/{}/{}", self.published.flag, split.name(), first + offset as u64);
                        Sample::new(id, pixels, self.published.kind, self.side, self.stored)
                    })
                    .collect();
                let samples = samples.into_iter().collect::<Result<Vec<_>, _>>()?;
                digests.extend(samples.iter().map(|sample| (split, sample.id.clone(), sample.digest)));
                let table = sample_table(self.published, self.stored, split, samples);
                writer.push(self.with_metadata(table))?;
                first += count;
                let read = digests.len() as f64 * sample_bytes as f64;
                context.progress(digests.len() as u64, total as u64, port, &[("MB", read / 1e6)]);
            }
        }
        writer.finish(context.output(port)?)?;
        let labels = self.with_metadata(self.label_table());
        write(context.output("labels")?, &TableSchema::labels(), &labels, WriteOptions::text(&provenance))?;
        self.checks(&digests).write(context.output("checks")?, &provenance)?;
        sheets.write(context.output("sheets")?)?;
        Rejects::new(context.scratch()?).write(0, "rejects", context)
    }

    /// A sample to look at; of a volume, its middle slice.
    fn picture(&self, pixels: &[u8]) -> DynamicImage {
        let side = self.side as u32;
        let buffer = pixels.to_vec();
        let picture = match self.published.kind {
            Kind::Grey => GrayImage::from_raw(side, side, buffer).map(DynamicImage::ImageLuma8),
            Kind::Colour => RgbImage::from_raw(side, side, buffer).map(DynamicImage::ImageRgb8),
            Kind::Volume => {
                let side = self.side as usize;
                Some(middle_slice([side; 3], |place| f64::from(pixels[place]), 0.0, 255.0))
            }
        };
        picture.expect("a sample has the bytes of its shape")
    }

    /// What both tables say of where they come from.
    fn with_metadata(&self, table: Table) -> Table {
        let published = self.published;
        let file = serde_json::json!({ published.file_name(self.side): self.md5 });
        table
            .with_metadata("dataset", published.flag)
            .with_metadata("dataset_version", VERSION)
            .with_metadata("size", self.side.to_string())
            .with_metadata("resized_to", self.stored.to_string())
            .with_metadata("task", published.task.name())
            .with_metadata("label_names", serde_json::json!(published.classes).to_string())
            .with_metadata("licence", published.licence)
            .with_metadata("source_md5", file.to_string())
            .with_metadata("source_is_published", self.genuine.to_string())
    }

    fn label_table(&self) -> Table {
        let rows = || {
            self.splits
                .iter()
                .flat_map(|split| split.labels.iter().enumerate().map(move |row| (split.split, row)))
        };
        let id = |(split, (row, _)): (Split, (usize, _))| {
            format!("{}/{}/{row}", self.published.flag, split.name())
        };
        Table::new()
            .with("image_id", Column::texts(rows().map(id)))
            .with("split", Column::texts(rows().map(|(split, _)| split.name())))
            .with("label", Column::ListInt64(rows().map(|(_, (_, label))| Some(label.clone())).collect()))
    }

    fn checks(&self, digests: &[(Split, String, Digest)]) -> Checks {
        let mut checks = Checks::default();
        checks.fact("published MD5", self.md5.clone(), u64::from(self.genuine));
        let mut shape: Vec<String> =
            self.published.kind.shape(self.stored).iter().map(u64::to_string).collect();
        if self.published.kind == Kind::Grey {
            shape.push("1".to_owned());
        }
        for split in &self.splits {
            let name = split.split.name();
            let samples = split.labels.len() as u64;
            checks.count("samples", name, None, samples);
            checks.count("published samples", name, None, self.published.counts[split.split as usize]);
            checks.count("shape", name, Some(shape.join(" x ")), samples);
            for (class, class_name) in self.published.classes.iter().enumerate() {
                let labels = split.labels.iter();
                let count = match self.published.task {
                    Task::MultiLabel => labels.filter(|label| label[class] == 1).count(),
                    _ => labels.filter(|label| label[0] == class as i64).count(),
                };
                checks.count("class", name, Some((*class_name).to_owned()), count as u64);
            }
            if self.published.task == Task::MultiLabel {
                let none = split.labels.iter().filter(|label| label.iter().all(|bit| *bit == 0));
                checks.count("no class", name, None, none.count() as u64);
            }
        }
        let splits: Vec<&str> = self.splits.iter().map(|split| split.split.name()).collect();
        let rows: Vec<(&str, &str, Digest)> =
            digests.iter().map(|(split, id, digest)| (split.name(), id.as_str(), *digest)).collect();
        checks.duplicates("same image", &splits, &rows);
        checks
    }
}

/// Number of samples and side of an array of images, compared with the set's.
fn image_shape(published: &Published, images: &Array<'_>) -> Result<(u64, u64), StageError> {
    if !images.is_u8() {
        return Err(images.error("its elements are no unsigned bytes (`|u1`), which pixels are"));
    }
    let sides = published.kind.sides();
    if let [samples, sample @ ..] = images.shape()
        && let Some(side) = sides.iter().find(|side| published.kind.shape(**side) == sample)
    {
        return Ok((*samples, *side));
    }
    let rest = match published.kind {
        Kind::Grey => "S, S",
        Kind::Colour => "S, S, 3",
        Kind::Volume => "S, S, S",
    };
    Err(images.error(format!(
        "its shape is {:?}; `{}` has [samples, {rest}] with S one of {sides:?}",
        images.shape(),
        published.flag
    )))
}

/// One label per sample, each a list; single labels are `[samples, 1]` or `[samples]`.
fn read_labels(
    published: &Published,
    array: &mut Array<'_>,
    samples: u64,
) -> Result<Vec<Vec<i64>>, StageError> {
    let width = if published.task == Task::MultiLabel { published.classes.len() as u64 } else { 1 };
    let shape = array.shape().to_vec();
    if shape != [samples, width] && (width > 1 || shape != [samples]) {
        return Err(array.error(format!(
            "its shape is {shape:?}; [{samples}, {width}] is expected: there are {samples} images, and the task of `{}` is {}",
            published.flag,
            published.task.name()
        )));
    }
    let values = array.integers(samples * width)?;
    let greatest = if published.task == Task::MultiLabel { 1 } else { published.classes.len() as i64 - 1 };
    let labels: Vec<Vec<i64>> = values.chunks_exact(width as usize).map(<[i64]>::to_vec).collect();
    match labels.iter().position(|label| label.iter().any(|value| !(0..=greatest).contains(value))) {
        Some(row) => Err(array.error(format!(
            "row {row} has the label {:?}; values from 0 to {greatest} are known",
            labels[row]
        ))),
        None => Ok(labels),
    }
}

/// A sample on its way into the table.
struct Sample {
    id: String,
    /// A PNG, or voxels as they stand in the file.
    bytes: Vec<u8>,
    digest: Digest,
}

impl Sample {
    /// A sample of `side`, stored with the side `stored`.
    fn new(id: String, pixels: &[u8], kind: Kind, side: u64, stored: u64) -> Result<Self, StageError> {
        let (side, stored) = (side as usize, stored as usize);
        let encode = |channels: usize| {
            let resized = nearest(pixels, side, stored, channels);
            png::encode(&resized, stored, stored, channels)
        };
        let bytes = match kind {
            Kind::Grey => encode(1)?,
            Kind::Colour => encode(3)?,
            Kind::Volume => pixels.to_vec(),
        };
        let digest = Digest::of(&bytes);
        Ok(Self { id, bytes, digest })
    }
}

/// A square image brought to another side: each pixel is that of the source in which its centre lies.
fn nearest(pixels: &[u8], side: usize, wanted: usize, channels: usize) -> Cow<'_, [u8]> {
    if side == wanted {
        return Cow::Borrowed(pixels);
    }
    let source = |place: usize| (2 * place + 1) * side / (2 * wanted);
    let mut resized = Vec::with_capacity(wanted * wanted * channels);
    for row in 0..wanted {
        for column in 0..wanted {
            let first = (source(row) * side + source(column)) * channels;
            resized.extend_from_slice(&pixels[first..first + channels]);
        }
    }
    Cow::Owned(resized)
}

fn sample_table(published: &Published, side: u64, split: Split, samples: Vec<Sample>) -> Table {
    let rows = samples.len();
    let same = |value: &str| Column::Utf8(vec![Some(value.to_owned()); rows]);
    let number = |value: u64| Column::Int32(vec![Some(value as i32); rows]);
    let sha = Column::texts(samples.iter().map(|sample| sample.digest.to_hex()));
    let table = Table::new()
        .with("image_id", Column::texts(samples.iter().map(|sample| sample.id.clone())))
        .with("split", same(split.name()));
    let table = match published.kind {
        Kind::Volume => table
            .with("voxels", Column::Binary(samples.into_iter().map(|sample| Some(sample.bytes)).collect()))
            .with("dtype", same("u8"))
            .with("shape", Column::ListInt32(vec![Some(vec![side as i32; 3]); rows])),
        kind => table
            .with(
                "image",
                Column::Image(
                    samples
                        .into_iter()
                        .map(|sample| Some((sample.bytes, format!("{}.png", sample.id.replace('/', "-")))))
                        .collect(),
                ),
            )
            .with("width", number(side))
            .with("height", number(side))
            .with("channels", number(if kind == Kind::Colour { 3 } else { 1 })),
    };
    table.with("sha", sha).with("modality", same(published.modality)).with("licence", same(published.licence))
}
