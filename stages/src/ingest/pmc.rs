//! The stage kind `ingest.pmc`: figures of PubMed Central with captions. PMC-OA (Lin et al. 2023) is
//! published as JSON Lines or CSV, a pair a line; PMC-15M (Zhang et al. 2023) was never published, but the
//! pipeline that made it is, and writes JSON Lines, an article a line.

mod licences;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::licences::Licences;
use self::rows::{Found, Rows};
use super::captions::{Pair, PairWriter};
use super::checks::Checks;
use super::numbered::Numbered;
use super::origin::{source_md5, version};
use super::pictures::{Content, ImageWriter, MissingImages, Picture};
use super::rejects::Rejects;
use super::seen::text_key;
use super::source::{SourceFile, SourceFiles};
use super::splits::{SPLITS, drawn, named_in};
use crate::artifact;
use crate::table::Column;

/// The columns of CSV files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// The file name of the image.
    pub image: String,
    /// The caption.
    pub caption: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { image: "image".to_owned(), caption: "caption".to_owned() }
    }
}

/// Parameters of `ingest.pmc`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The name of the data set.
    pub dataset: String,
    /// The version of the data set, for the metadata of the tables.
    pub version: Option<String>,
    /// The columns of CSV files.
    pub columns: Columns,
    /// The character between the fields of CSV files.
    pub delimiter: String,
    /// Whether there may be another number of pairs than the published one, of `dataset = "pmc-oa"`.
    pub allow_partial: bool,
    /// Only the first pairs of each file.
    #[schemars(range(min = 1))]
    pub limit: Option<i64>,
    /// Where no file is named after a split: the share of articles for validation.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub val: f64,
    /// The same for testing.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub test: f64,
    /// Decides which articles are drawn for validation and testing.
    pub seed: i64,
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
            dataset: "pmc".to_owned(),
            version: None,
            columns: Columns::default(),
            delimiter: ",".to_owned(),
            allow_partial: false,
            limit: None,
            val: 0.0,
            test: 0.0,
            seed: 0,
            missing_images: MissingImages::default(),
            max_rejects: 0,
            shard_rows: 256,
        }
    }
}

/// Reads PMC-OA, and what the pipeline of PMC-15M writes.
pub struct IngestPmc;

impl StageKind for IngestPmc {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.pmc",
            summary: "reads figures of PubMed Central with captions: PMC-OA, or the output of PMC-15M's pipeline",
            implementation: 6,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![InputPort::required(
                "source",
                &[ArtifactType::FILE, ArtifactType::TREE],
                "the folder with the .jsonl (or .csv) files and the images, as files or in ZIP archives",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("images", artifact::IMAGES, "the images, as found"),
            OutputPort::new("captions", artifact::CAPTIONS, "their captions"),
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
        if params.val + params.test > 1.0 {
            wrong("test", "validation and test take more than everything");
        }
        if params.delimiter.len() != 1 {
            wrong("delimiter", "one ASCII character is expected");
        }
        problems
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let files = SourceFiles::input(context, "source")?;
        let lists = lists(&files)?;
        check_count(&files, &lists, params, context)?;
        let licences = Licences::read(&files, context.scratch()?)?;
        let metadata = [
            ("dataset", params.dataset.clone()),
            ("task", "retrieval".to_owned()),
            ("dataset_version", version(params.version.as_deref())),
            ("source_md5", source_md5(&[&files], |_| true, context)?),
            ("licence", "per article".to_owned()),
        ];
        let provenance = context.provenance().to_owned();
        let writer = PairWriter::new(context, &provenance, params.shard_rows, &metadata)?;
        let mut ingest = Ingest {
            files: &files,
            licences,
            params,
            writer,
            rejects: Rejects::new(context.scratch()?),
            images: Numbered::new(context.scratch()?),
            pairs: Vec::new(),
            scores: Vec::new(),
            written: 0,
            without: BTreeMap::new(),
        };
        // Rows stand in the order of splits. A file of no split is read once for each that it may give.
        for split in SPLITS {
            for (file, of) in &lists {
                let wanted = match of {
                    Some(of) => *of == split,
                    None => split == "train" || share(params, split) > 0.0,
                };
                if wanted {
                    ingest.read(file, split, of.is_none(), context)?;
                }
            }
        }
        ingest.flush()?;
        let Ingest { writer, rejects, without, .. } = ingest;
        let stored = writer.finish(context)?;
        if SPLITS.iter().all(|split| stored.count(split) == 0) {
            return Err(files.error("there is no pair to read"));
        }
        let mut checks = Checks::default();
        for (what, count) in without {
            checks.fact(what, String::new(), count);
        }
        stored.check(&mut checks)?;
        rejects.count_reasons(&mut checks);
        checks.write(context.output("checks")?, &provenance)?;
        stored.sheets().write(context.output("sheets")?)?;
        rejects.write(params.max_rejects, "rejects", context)
    }
}

/// PMC-OA has 1.65 million pairs, which is all that is published of their number.
const PMC_OA_PAIRS: std::ops::RangeInclusive<u64> = 1_640_000..=1_660_000;

/// Compares the number of pairs of PMC-OA with the published one, before any image is read.
fn check_count(
    files: &SourceFiles,
    lists: &[(Arc<SourceFile>, Option<&'static str>)],
    params: &Params,
    context: &StageContext<'_>,
) -> Result<(), StageError> {
    if params.dataset != "pmc-oa" || params.allow_partial || params.limit.is_some() {
        return Ok(());
    }
    let mut found = 0;
    for (file, _) in lists {
        context.check_cancelled()?;
        let mut rows = Rows::open(file, params)?;
        while let Some((_, pairs)) = rows.next()? {
            found += pairs.len() as u64;
        }
    }
    if PMC_OA_PAIRS.contains(&found) {
        return Ok(());
    }
    Err(files.error(format!(
        "it has {found} pairs, 1.65 million are published; `allow_partial = true` takes it all the same"
    )))
}

fn share(params: &Params, split: &str) -> f64 {
    match split {
        "val" => params.val,
        "test" => params.test,
        _ => 1.0 - params.val - params.test,
    }
}

/// The files of pairs with their splits, in the order of paths. Of two that differ in `.jsonl` and `.csv`
/// alone, the first says more.
fn lists(files: &SourceFiles) -> Result<Vec<(Arc<SourceFile>, Option<&'static str>)>, StageError> {
    let stem = |path: &str| path.trim_end_matches(".gz").rsplit_once('.').map(|(stem, _)| stem.to_owned());
    let ends = |path: &str, ending: &str| path.trim_end_matches(".gz").ends_with(ending);
    let lines = files.filtered(|path| ends(path, ".jsonl"));
    let mut lists = lines.collect::<Result<Vec<_>, StageError>>()?;
    let stems: Vec<Option<String>> = lists.iter().map(|file| stem(&file.path)).collect();
    for table in files.filtered(|path| ends(path, ".csv") && !stems.contains(&stem(path))) {
        lists.push(table?);
    }
    if lists.is_empty() {
        return Err(files.error("it has no .jsonl or .csv file"));
    }
    let split = |file: &SourceFile| named_in(file.name());
    Ok(lists.into_iter().map(|file| (Arc::clone(&file), split(&file))).collect())
}

/// What is known while pairs are read.
struct Ingest<'a> {
    files: &'a SourceFiles,
    licences: Licences,
    params: &'a Params,
    writer: PairWriter<'a>,
    rejects: Rejects,
    /// Images that were written or rejected, by a key of their id: 1 if they were kept.
    images: Numbered,
    /// Pairs that wait for their block to be full, and what a pair's line says beyond them.
    pairs: Vec<Pair>,
    scores: Vec<(Option<String>, Option<f64>)>,
    written: u64,
    /// Figures that have nothing to pair, by what they lack.
    without: BTreeMap<&'static str, u64>,
}

impl Ingest<'_> {
    /// Reads the pairs of one split from a file; where splits are drawn, those whose article was drawn for
    /// it. What is wrong with a line is said once, for the first split.
    fn read(
        &mut self,
        file: &Arc<SourceFile>,
        split: &'static str,
        is_drawn: bool,
        context: &mut StageContext<'_>,
    ) -> Result<(), StageError> {
        let params = self.params;
        let first_time = !is_drawn || split == "train";
        let mut rows = Rows::open(file, params)?;
        let mut left = params.limit.unwrap_or(i64::MAX);
        while let Some((line, found)) = rows.next()? {
            for found in found {
                if left == 0 {
                    return Ok(());
                }
                let row = match found {
                    Found::Pair(row) => row,
                    Found::Without(what) => {
                        *self.without.entry(what).or_default() += u64::from(first_time);
                        continue;
                    }
                    Found::Bad(reason) => {
                        if first_time {
                            self.rejects.add(file, Some(line), None, reason);
                        }
                        continue;
                    }
                };
                left -= 1;
                let article = row.article.as_deref().unwrap_or(&row.id);
                if is_drawn && drawn(params.seed, article, params.val, params.test) != split {
                    continue;
                }
                self.take(row, file, line, split)?;
            }
            if self.pairs.len() >= ImageWriter::BLOCK {
                self.flush()?;
                context.check_cancelled()?;
                let figures = [("pairs", self.written as f64), ("MB", self.writer.megabytes())];
                context.progress(rows.bytes_read().min(file.bytes), file.bytes, "bytes", &figures);
            }
        }
        Ok(())
    }

    /// Puts a pair among those that wait.
    fn take(
        &mut self,
        row: rows::Row,
        file: &Arc<SourceFile>,
        line: usize,
        split: &'static str,
    ) -> Result<(), StageError> {
        let key = text_key(&row.id);
        if self.pairs.iter().any(|pair| pair.id == row.id) {
            self.flush()?;
        }
        let picture = match self.images.get(key)? {
            Some(0) => {
                let reason = format!("its image `{}` cannot be decoded", row.image);
                self.rejects.add(file, Some(line), Some(&row.id), reason);
                return self.rejects.check(self.params.max_rejects);
            }
            Some(_) => None,
            None => match row.file(self.files)? {
                Some(image) => Some(Picture {
                    id: row.id.clone(),
                    split,
                    path: image.name().to_owned(),
                    content: Content::File(image),
                    modality: None,
                    region: None,
                    licence: self.licences.of(row.article.as_deref())?,
                    group: row.article.clone(),
                    named_by: Some((Arc::clone(file), line)),
                }),
                None if self.params.missing_images == MissingImages::Keep => None,
                None => {
                    let reason = format!("there is no image `{}`", row.image);
                    self.rejects.add(file, Some(line), Some(&row.id), reason);
                    return self.rejects.check(self.params.max_rejects);
                }
            },
        };
        self.scores.push((row.alignment, row.alignment_score));
        self.pairs.push(Pair {
            id: row.id,
            split,
            group: row.article,
            caption: row.caption,
            cuis: None,
            keywords: None,
            picture,
        });
        Ok(())
    }

    /// Writes what waits.
    fn flush(&mut self) -> Result<(), StageError> {
        let pairs = std::mem::take(&mut self.pairs);
        let (kinds, scores): (Vec<_>, Vec<_>) = std::mem::take(&mut self.scores).into_iter().unzip();
        let keys: Vec<u64> = pairs.iter().map(|pair| text_key(&pair.id)).collect();
        let articles = pairs.iter().map(|pair| pair.group.clone()).collect();
        let further = vec![
            ("article", Column::Utf8(articles)),
            ("alignment_type", Column::Utf8(kinds)),
            ("alignment_score", Column::Float64(scores)),
        ];
        self.written += pairs.len() as u64;
        let kept = self.writer.push(pairs, further, &mut self.rejects)?;
        for (key, kept) in keys.into_iter().zip(kept) {
            if self.images.get(key)?.is_none() {
                self.images.set(key, u64::from(kept))?;
            }
        }
        self.rejects.check(self.params.max_rejects)
    }
}
