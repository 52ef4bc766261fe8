//! The stage kind `ingest.roco`: ROCO (Pelka et al. 2018) from the files of its repository, and ROCOv2
//! (Rückert et al. 2024) from those on Zenodo.

mod mirror;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::sync::Arc;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::captions::{Pair, PairWriter};
use super::checks::Checks;
use super::origin::source_md5;
use super::pictures::{Content, ImageWriter, MissingImages, Picture};
use super::rejects::Rejects;
use super::source::{RowPlace, SourceFile, SourceFiles};
use super::splits::SPLITS;
use crate::artifact;
use crate::table::Column;

/// Which figures of ROCO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Subset {
    /// Radiology.
    #[default]
    Radiology,
    /// Everything else: photographs, drawings, charts.
    NonRadiology,
    /// Both, radiology first in each split.
    All,
}

impl Subset {
    fn name(self) -> &'static str {
        match self {
            Self::Radiology => "radiology",
            Self::NonRadiology => "non-radiology",
            Self::All => "all",
        }
    }
}

/// Parameters of `ingest.roco`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Which figures, of the first version; the second has radiology alone.
    pub subset: Subset,
    /// Whether there may be other numbers of captions than the published ones, or a split missing.
    pub allow_partial: bool,
    /// What becomes of captions whose image is not there.
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
            subset: Subset::Radiology,
            allow_partial: false,
            missing_images: MissingImages::default(),
            max_rejects: 0,
            shard_rows: 256,
        }
    }
}

/// Reads ROCO and ROCOv2.
pub struct IngestRoco;

impl StageKind for IngestRoco {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.roco",
            summary: "reads ROCO or ROCOv2: figures of articles with captions, concepts and licences",
            implementation: 5,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE, ArtifactType::TREE],
                "the folder `data` of the ROCO repository with the images, or the files of ROCOv2",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("images", artifact::IMAGES, "the images, as found"),
            OutputPort::new("captions", artifact::CAPTIONS, "their captions with concepts and keywords"),
            OutputPort::new("checks", artifact::CHECKS, "counts, and what splits share"),
            OutputPort::new("sheets", artifact::SHEETS, "the first images of each split, to look at"),
            OutputPort::new("rejects", artifact::REJECTS, "what was left out, and why"),
        ]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let files = SourceFiles::input(context, "source")?;
        let mut rejects = Rejects::new(context.scratch()?);
        let (dataset, version, protocol, rows) = if v2::is_there(&files)? {
            ("rocov2", "Zenodo 10821435", "rocov2", v2::read(&files, params, &mut rejects)?)
        } else if mirror::is_there(&files)? {
            let rows = mirror::read(&files, params, &mut rejects)?;
            ("roco", "a mirror of razorx89/roco-dataset", params.subset.name(), rows)
        } else {
            let rows = v1::read(&files, params, &mut rejects)?;
            ("roco", "razorx89/roco-dataset", params.subset.name(), rows)
        };
        rejects.check(params.max_rejects)?;
        let metadata = [
            ("dataset", dataset.to_owned()),
            ("task", "retrieval".to_owned()),
            ("dataset_version", version.to_owned()),
            ("source_md5", source_md5(&[&files], |_| true, context)?),
            ("protocol", protocol.to_owned()),
            ("licence", "per image".to_owned()),
        ];
        let provenance = context.provenance().to_owned();
        let mut writer = PairWriter::new(context, &provenance, params.shard_rows, &metadata)?;
        let (mut done, total) = (0, rows.len() as u64);
        for block in rows.chunks(ImageWriter::BLOCK) {
            context.check_cancelled()?;
            let (mut pairs, mut here) = (Vec::new(), Vec::new());
            for row in block {
                let file = files.ending(&row.image_name)?;
                if file.is_none() && params.missing_images == MissingImages::Reject {
                    let (named_by, line) = &row.place;
                    let mut reason = format!("there is no image `{}`", row.image_name);
                    if let Some((archive, name)) = &row.published {
                        reason = format!("{reason}; it is `{name}` of {archive}");
                    }
                    rejects.add(named_by, Some(*line), Some(&row.id), reason);
                    continue;
                }
                pairs.push(row.pair(file));
                here.push(row);
            }
            let lists = |value: &dyn Fn(&Row) -> Option<Vec<String>>| {
                Column::ListUtf8(here.iter().map(|row| value(row)).collect())
            };
            let texts = |value: &dyn Fn(&Row) -> Option<String>| {
                Column::Utf8(here.iter().map(|row| value(row)).collect())
            };
            let further = vec![
                ("subset", texts(&|row| Some(row.subset.to_owned()))),
                ("semantic_types", lists(&|row| row.semantic_types.clone())),
                ("cuis_manual", lists(&|row| row.cuis_manual.clone())),
                ("article", texts(&|row| row.article.clone())),
                ("licence", texts(&|row| row.licence.clone())),
            ];
            writer.push(pairs, further, &mut rejects)?;
            rejects.check(params.max_rejects)?;
            done += block.len() as u64;
            context.progress(done, total, "pairs", &[("MB", writer.megabytes())]);
        }
        let stored = writer.finish(context)?;
        if SPLITS.iter().all(|split| stored.count(split) == 0) {
            return Err(files.error(
                "there is no caption with an image; `missing_images = \"keep\"` takes captions alone",
            ));
        }
        let mut checks = Checks::default();
        stored.check(&mut checks)?;
        rejects.count_reasons(&mut checks);
        checks.write(context.output("checks")?, &provenance)?;
        stored.sheets().write(context.output("sheets")?)?;
        rejects.write(params.max_rejects, "rejects", context)
    }
}

/// A caption with what is said of its image.
struct Row {
    /// The published id: `ROCO_00001`, `ROCOv2_2023_test_000408`.
    id: String,
    split: &'static str,
    subset: &'static str,
    caption: String,
    image_name: String,
    /// Concepts of UMLS.
    cuis: Option<Vec<String>>,
    /// Those of modality and region, which people checked.
    cuis_manual: Option<Vec<String>>,
    keywords: Option<Vec<String>>,
    semantic_types: Option<Vec<String>>,
    article: Option<String>,
    licence: Option<String>,
    /// The archive that the image was published in, and its name there.
    published: Option<(String, String)>,
    /// Where the caption stands.
    place: RowPlace,
}

impl Row {
    /// The caption with its image, if that is there.
    fn pair(&self, file: Option<Arc<SourceFile>>) -> Pair {
        let picture = file.map(|file| Picture {
            id: self.id.clone(),
            split: self.split,
            path: file.name().to_owned(),
            content: Content::File(file),
            modality: None,
            region: None,
            licence: self.licence.clone(),
            group: self.article.clone(),
            named_by: Some(self.place.clone()),
        });
        Pair {
            id: self.id.clone(),
            split: self.split,
            group: self.article.clone(),
            caption: self.caption.clone(),
            cuis: self.cuis.clone(),
            keywords: self.keywords.clone(),
            picture,
        }
    }
}

/// Compares the number of captions that a file gives with the published one.
fn check_count(file: &SourceFile, found: usize, published: usize, params: &Params) -> Result<(), StageError> {
    if found == published || params.allow_partial {
        return Ok(());
    }
    Err(file.error(format!(
        "it has {found} captions, {published} are published; `allow_partial = true` takes it all the same"
    )))
}
