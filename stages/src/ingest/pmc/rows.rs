//! The lines of a file of pairs or articles.

use std::sync::Arc;

use pipe_engine::StageError;

use super::Params;
use crate::ingest::csv::CsvFile;
use crate::ingest::json::{Record, record};
use crate::ingest::lines::Lines;
use crate::ingest::source::{SourceFile, SourceFiles};

/// A figure with a caption.
pub(super) struct Row {
    /// The published id: the name of the image, or article and figure.
    pub(super) id: String,
    /// The path of the image, as written.
    pub(super) image: String,
    pub(super) caption: String,
    /// `PMC9100000`.
    pub(super) article: Option<String>,
    /// Whether a whole figure or a part of one was aligned with its caption, and how well.
    pub(super) alignment: Option<String>,
    pub(super) alignment_score: Option<f64>,
    /// Whether the path is of the machine where the pipeline ran, and its end alone is known.
    foreign: bool,
}

impl Row {
    /// The file of the image. Only what lies in the source is found.
    pub(super) fn file(&self, files: &SourceFiles) -> Result<Option<Arc<SourceFile>>, StageError> {
        let path = self.image.trim_start_matches("./");
        if !self.foreign {
            return files.ending(path);
        }
        // The longest end that is there; the folder of the article belongs to it.
        let mut end = path;
        loop {
            if let Some(file) = files.ending(end)? {
                return Ok(Some(file));
            }
            match end.split_once('/') {
                Some((_, rest)) if rest.contains('/') => end = rest,
                _ => return Ok(None),
            }
        }
    }
}

/// What a line holds.
pub(super) enum Found {
    /// A pair.
    Pair(Row),
    /// A figure of an article that lacks something that figures may lack.
    Without(&'static str),
    /// What cannot be used, and why.
    Bad(String),
}

/// An open file.
pub(super) enum Rows<'a> {
    Json(Lines<'a>),
    /// With the places of image and caption.
    Csv(Box<CsvFile<'a>>, usize, usize),
}

impl<'a> Rows<'a> {
    /// Opens a file.
    pub(super) fn open(file: &'a SourceFile, params: &Params) -> Result<Self, StageError> {
        if file.path.trim_end_matches(".gz").ends_with(".jsonl") {
            return Ok(Self::Json(Lines::open(file)?));
        }
        let csv = CsvFile::open(file, params.delimiter.bytes().next().unwrap_or(b','))?;
        let (image, caption) = (csv.column(&params.columns.image)?, csv.column(&params.columns.caption)?);
        Ok(Self::Csv(Box::new(csv), image, caption))
    }

    /// The number of the next line, and what it holds.
    pub(super) fn next(&mut self) -> Result<Option<(usize, Vec<Found>)>, StageError> {
        match self {
            Self::Json(lines) => Ok(lines.next()?.map(|(number, line)| (number, read(&line)))),
            Self::Csv(csv, image, caption) => Ok(csv.next_row()?.map(|row| match row {
                Ok(row) => {
                    let found = pair(row.field(*image), row.field(*caption), None, None);
                    (row.number, vec![found])
                }
                Err(bad) => (bad.number, vec![Found::Bad(bad.reason)]),
            })),
        }
    }

    /// How many bytes were read, as far as that is known.
    pub(super) fn bytes_read(&self) -> u64 {
        match self {
            Self::Json(lines) => lines.bytes_read(),
            Self::Csv(csv, ..) => csv.bytes_read(),
        }
    }
}

fn read(line: &[u8]) -> Vec<Found> {
    match record(line) {
        Ok(record) if record.has("figures") => article(&record),
        Ok(record) => {
            let (image, caption) = (record.some_text("image"), record.some_text("caption"));
            let kind = record.some_text("alignment_type");
            vec![pair(image.as_deref(), caption.as_deref(), kind, record.number("alignment_score"))]
        }
        Err(reason) => vec![Found::Bad(reason)],
    }
}

/// A line of PMC-OA.
fn pair(
    image: Option<&str>,
    caption: Option<&str>,
    alignment: Option<String>,
    alignment_score: Option<f64>,
) -> Found {
    let (image, caption) = match (image, caption) {
        (None, _) => return Found::Bad("it names no image".to_owned()),
        (Some(image), None) => return Found::Bad(format!("the image `{image}` has no caption")),
        (Some(image), Some(caption)) => (image.to_owned(), caption.to_owned()),
    };
    let article = article_of(&image);
    Found::Pair(Row {
        id: image.clone(),
        image,
        caption,
        article,
        alignment,
        alignment_score,
        foreign: false,
    })
}

/// The article that a file name begins with: `PMC9000000` of `PMC9000000_Fig1_0.jpg`.
fn article_of(image: &str) -> Option<String> {
    let name = image.rsplit('/').next().unwrap_or(image);
    let digits = name.strip_prefix("PMC")?;
    let length = digits.bytes().take_while(u8::is_ascii_digit).count();
    (length > 0).then(|| format!("PMC{}", &digits[..length]))
}

/// The figures of an article, as the pipeline of PMC-15M writes them.
fn article(article: &Record) -> Vec<Found> {
    let number = article.some_text("pmc").map(|number| format!("PMC{}", number.trim_start_matches("PMC")));
    let figure = |figure: &Record| {
        let Some(caption) = figure.some_text("fig_caption") else {
            return Found::Without("figure without a caption");
        };
        let Some(image) = figure.some_text("graphic_ref") else {
            return Found::Without("figure without a graphic");
        };
        let id = figure
            .some_text("pair_id")
            .or_else(|| Some(format!("{}_{}", article.some_text("pmid")?, figure.some_text("fig_id")?)));
        match id {
            Some(id) => Found::Pair(Row {
                id,
                image,
                caption,
                article: number.clone(),
                alignment: None,
                alignment_score: None,
                foreign: true,
            }),
            None => Found::Bad("a figure has neither `pair_id` nor `pmid` and `fig_id`".to_owned()),
        }
    };
    article.records("figures").iter().map(figure).collect()
}
