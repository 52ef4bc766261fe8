//! Everything that the page is made of, read from the inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use arrow_array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_engine::{Artifact, StageContext, StageError};

use super::columns::{bytes, integer_lists, numbers, texts};
use super::figures::{Figure, figures};
use super::gallery::{Samples, View};
use super::scores::{self, Cascade};
use crate::artifact;
use crate::volumes::grey_volume;

/// One artifact with the input it came by.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) input: String,
    pub(super) axes: BTreeMap<String, String>,
    pub(super) artifact: Artifact,
    /// What its files say about how they were made.
    pub(super) provenance: Option<serde_json::Value>,
}

impl Given {
    /// Whether it belongs to what has these keys.
    fn fits(&self, axes: &BTreeMap<String, String>) -> bool {
        self.axes.iter().all(|(axis, value)| axes.get(axis).is_none_or(|wanted| wanted == value))
    }
}

/// A table that was read whole.
pub(super) struct GivenTable {
    pub(super) given: usize,
    pub(super) batch: RecordBatch,
}

/// All inputs, and what was read of them.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) given: Vec<Given>,
    pub(super) metrics: Vec<Figure>,
    pub(super) scores: Vec<Figure>,
    /// What randomising layer after layer did to maps, by input.
    pub(super) cascades: Vec<(String, Cascade)>,
    /// Metrics tables, for the consolidated file.
    pub(super) metric_tables: Vec<GivenTable>,
    /// Attribution scores, for the consolidated file.
    pub(super) score_tables: Vec<GivenTable>,
    pub(super) logs: Vec<GivenTable>,
    pub(super) expected: Vec<GivenTable>,
    labels: BTreeMap<String, String>,
    masked: BTreeSet<String>,
}

impl Collected {
    /// Reads all inputs but pictures and maps.
    ///
    /// # Errors
    /// If a table cannot be read.
    pub(super) fn read(context: &StageContext<'_>) -> Result<Self, StageError> {
        let inputs = context.all_inputs().flat_map(|(input, artifacts)| {
            artifacts.iter().map(move |one| (input, &one.axes, &one.artifact))
        });
        let mut collected = Self::default();
        for one in inputs {
            context.check_cancelled()?;
            collected.add(given(one))?;
        }
        Ok(collected)
    }

    /// Reads artifacts, each with the name of its input and its axes.
    ///
    /// # Errors
    /// If a table cannot be read.
    pub(super) fn of<'a>(
        artifacts: impl Iterator<Item = (&'a str, &'a BTreeMap<String, String>, &'a Artifact)>,
    ) -> Result<Self, StageError> {
        let mut collected = Self::default();
        for one in artifacts {
            collected.add(given(one))?;
        }
        Ok(collected)
    }

    fn add(&mut self, mut given: Given) -> Result<(), StageError> {
        let place = self.given.len();
        let is = |kind: pipe_engine::ArtifactType| given.artifact.artifact_type == kind.0;
        if is(artifact::METRICS)
            || is(artifact::ATTRIBUTION_SCORES)
            || is(artifact::TRAINING_LOG)
            || is(artifact::EXPECTED)
        {
            let (metadata, batch) = read_whole(&given.artifact)?;
            given.provenance = provenance(&metadata);
            if let Some(batch) = batch {
                let tables = if is(artifact::METRICS) {
                    self.metrics.extend(figures(&given.input, &given.axes, &batch));
                    &mut self.metric_tables
                } else if is(artifact::ATTRIBUTION_SCORES) {
                    let scores = scores::read(&given.input, &given.axes, &metadata, &batch);
                    self.scores.extend(scores.figures);
                    let input = &given.input;
                    self.cascades.extend(scores.cascades.into_iter().map(|one| (input.clone(), one)));
                    &mut self.score_tables
                } else if is(artifact::TRAINING_LOG) {
                    &mut self.logs
                } else {
                    &mut self.expected
                };
                tables.push(GivenTable { given: place, batch });
            }
        } else if is(artifact::LABELS) {
            self.add_labels(&given.artifact)?;
        } else if is(artifact::MASKS) {
            for_each_batch(&given.artifact, &["image_id"], |_, batch| {
                self.masked.extend(texts(batch, "image_id").into_iter().flatten());
            })?;
        }
        self.given.push(given);
        Ok(())
    }

    fn add_labels(&mut self, artifact: &Artifact) -> Result<(), StageError> {
        for_each_batch(artifact, &["image_id", "label"], |metadata, batch| {
            let names: Vec<String> = metadata
                .get("label_names")
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default();
            let ids = texts(batch, "image_id");
            let lists = integer_lists(batch, "label");
            let single = numbers(batch, "label");
            for (row, id) in ids.into_iter().enumerate() {
                let Some(id) = id else { continue };
                let name = |class: i64| {
                    let known = usize::try_from(class).ok().and_then(|class| names.get(class)).cloned();
                    known.unwrap_or_else(|| format!("class {class}"))
                };
                let label = match (&lists[row], single[row]) {
                    (Some(list), _) if list.len() == 1 => Some(name(list[0])),
                    (Some(list), _) => {
                        let present = (0..).zip(list).filter(|(_, value)| **value == 1);
                        let present: Vec<String> = present.map(|(class, _)| name(class)).collect();
                        Some(if present.is_empty() { "none".to_owned() } else { present.join(", ") })
                    }
                    (None, Some(class)) => Some(name(class as i64)),
                    (None, None) => None,
                };
                if let Some(label) = label {
                    self.labels.entry(id).or_insert(label);
                }
            }
        })
    }

    /// The artifacts of a type, in the order of the inputs.
    pub(super) fn of_type(&self, kind: pipe_engine::ArtifactType) -> impl Iterator<Item = &Given> {
        self.given.iter().filter(move |given| given.artifact.artifact_type == kind.0)
    }

    fn pictures(
        &self,
        kind: pipe_engine::ArtifactType,
        axes: &BTreeMap<String, String>,
        columns: &[&str],
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Vec<u8>>, StageError> {
        let mut found = BTreeMap::new();
        for given in self.of_type(kind).filter(|given| given.fits(axes)) {
            let wanted: Vec<&str> = ["image_id", "id"].iter().chain(columns).copied().collect();
            for_each_batch(&given.artifact, &wanted, |_, batch| {
                let names = texts(batch, "image_id").into_iter().zip(texts(batch, "id"));
                let column = columns.iter().find(|name| batch.column_by_name(name).is_some());
                let Some(column) = column else { return };
                for (name, content) in names.zip(bytes(batch, column)) {
                    let Some(name) = name.0.or(name.1).filter(|name| ids.contains(name)) else { continue };
                    if let Some(content) = content {
                        found.entry(name).or_insert(content);
                    }
                }
            })?;
            if found.len() == ids.len() {
                break;
            }
        }
        Ok(found)
    }
}

impl Samples for Collected {
    fn images(
        &self,
        axes: &BTreeMap<String, String>,
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Vec<u8>>, StageError> {
        self.pictures(artifact::IMAGES, axes, &["image"], ids)
    }

    fn volume(
        &self,
        axes: &BTreeMap<String, String>,
        id: &str,
        View { shape, by_slices }: View,
    ) -> Result<Option<Vec<u8>>, StageError> {
        for given in self.of_type(artifact::VOLUMES).filter(|given| given.fits(axes)) {
            if let Some(grey) = grey_volume(&given.artifact, id, shape, by_slices)? {
                return Ok(Some(grey));
            }
        }
        Ok(None)
    }

    fn masks(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Vec<u8>>, StageError> {
        self.pictures(artifact::MASKS, &BTreeMap::new(), &["mask", "image"], ids)
    }

    fn label(&self, id: &str) -> Option<&str> {
        self.labels.get(id).map(String::as_str)
    }

    fn has_mask(&self, id: &str) -> bool {
        self.masked.contains(id)
    }
}

fn given((input, axes, artifact): (&str, &BTreeMap<String, String>, &Artifact)) -> Given {
    Given { input: input.to_owned(), axes: axes.clone(), artifact: artifact.clone(), provenance: None }
}

/// The `pipe` metadata of a file.
fn provenance(metadata: &BTreeMap<String, String>) -> Option<serde_json::Value> {
    serde_json::from_str(metadata.get("pipe")?).ok()
}

fn read_whole(artifact: &Artifact) -> Result<(BTreeMap<String, String>, Option<RecordBatch>), StageError> {
    let mut metadata = BTreeMap::new();
    let mut batches = Vec::new();
    for_each_batch(artifact, &[], |found, batch| {
        metadata.extend(found.clone());
        batches.push(batch.clone());
    })?;
    let Some(first) = batches.first() else { return Ok((metadata, None)) };
    let joined = arrow_select::concat::concat_batches(&first.schema(), &batches)
        .map_err(|error| StageError::because("joining the parts of a table", error))?;
    Ok((metadata, Some(joined)))
}

/// Reads the named columns (all, if none is named) of all Parquet parts, a batch at a time.
pub(super) fn for_each_batch(
    artifact: &Artifact,
    columns: &[&str],
    mut visit: impl FnMut(&BTreeMap<String, String>, &RecordBatch),
) -> Result<(), StageError> {
    for file in artifact.files_ending(".parquet") {
        let fail = |error: &dyn std::fmt::Display| StageError::input(&file.path, error.to_string());
        let opened = File::open(&file.location).map_err(|error| fail(&error))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(opened).map_err(|error| fail(&error))?;
        let metadata = builder.schema().metadata().clone().into_iter().collect();
        let mask = if columns.is_empty() {
            ProjectionMask::all()
        } else {
            let fields = builder.schema().fields().iter().enumerate();
            let wanted = fields.filter(|(_, field)| columns.contains(&field.name().as_str()));
            ProjectionMask::roots(
                builder.parquet_schema(),
                wanted.map(|(index, _)| index).collect::<Vec<_>>(),
            )
        };
        let reader = builder.with_projection(mask).build().map_err(|error| fail(&error))?;
        for batch in reader {
            visit(&metadata, &batch.map_err(|error| fail(&error))?);
        }
    }
    Ok(())
}
