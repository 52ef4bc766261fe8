//! Pairs of an image and a caption, written block by block.

use pipe_engine::{StageContext, StageError};

use super::checks::Checks;
use super::pictures::{ImageWriter, Picture, StoredImages};
use super::rejects::Rejects;
use super::seen::{Seen, text_key};
use super::sheets::Sheets;
use super::splits::place;
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions};

/// An image with a caption.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// The id of the image.
    pub(crate) id: String,
    pub(crate) split: &'static str,
    /// What is not independent: an article, a patient.
    pub(crate) group: Option<String>,
    pub(crate) caption: String,
    pub(crate) cuis: Option<Vec<String>>,
    pub(crate) keywords: Option<Vec<String>>,
    /// Nothing where the image is stored already, or is not there and need not be.
    pub(crate) picture: Option<Picture>,
}

const SCHEMA: &TableSchema = &TableSchema::captions();

/// Writes the outputs `images` and `captions`.
pub(crate) struct PairWriter<'a> {
    images: ImageWriter<'a>,
    captions: TableWriter<'a>,
    metadata: &'a [(&'a str, String)],
    next: i64,
    seen: Seen,
    /// By split, how many captions have that many words.
    words: [Vec<u64>; 3],
}

/// What was written.
pub(crate) struct StoredPairs {
    images: StoredImages,
    seen: Seen,
    words: [Vec<u64>; 3],
}

impl<'a> PairWriter<'a> {
    /// A writer of tables whose files have the entries of `metadata`.
    pub(crate) fn new(
        context: &mut StageContext<'_>,
        provenance: &'a str,
        shard_rows: i64,
        metadata: &'a [(&'a str, String)],
    ) -> Result<Self, StageError> {
        let options = WriteOptions { shard_rows: shard_rows as usize, provenance };
        Ok(Self {
            images: ImageWriter::new(context, options, metadata)?,
            captions: TableWriter::new(context.output("captions")?, SCHEMA, WriteOptions::text(provenance)),
            metadata,
            next: 0,
            seen: Seen::new(&["same caption", "group of a caption"], context.scratch()?),
            words: Default::default(),
        })
    }

    /// Writes pairs whose image can be decoded, and says of each whether it could; the others are rejected.
    /// `further` are columns of the table of captions beyond the schema's, a value for each pair.
    pub(crate) fn push(
        &mut self,
        pairs: Vec<Pair>,
        further: Vec<(&str, Column)>,
        rejects: &mut Rejects,
    ) -> Result<Vec<bool>, StageError> {
        let mut kept = vec![true; pairs.len()];
        let pictures: (Vec<usize>, Vec<Picture>) =
            pairs.iter().enumerate().filter_map(|(index, pair)| Some((index, pair.picture.clone()?))).unzip();
        for (index, stored) in pictures.0.iter().zip(self.images.push(&pictures.1, rejects)?) {
            kept[*index] = stored;
        }
        let rows: Vec<usize> = (0..pairs.len()).filter(|index| kept[*index]).collect();
        let stored: Vec<&Pair> = rows.iter().map(|row| &pairs[*row]).collect();
        for pair in &stored {
            let keys = [Some(text_key(&pair.caption)), pair.group.as_deref().map(text_key)];
            self.seen.add(&pair.id, pair.split, &keys)?;
            let words = pair.caption.split_whitespace().count();
            let counts = &mut self.words[place(pair.split)];
            counts.resize(counts.len().max(words + 1), 0);
            counts[words] += 1;
        }
        let ids = self.next..self.next + stored.len() as i64;
        self.next = ids.end;
        let mut table = Table::new()
            .with("caption_id", Column::Int64(ids.map(Some).collect()))
            .with("image_id", Column::texts(stored.iter().map(|pair| pair.id.clone())))
            .with("split", Column::texts(stored.iter().map(|pair| pair.split)))
            .with("caption", Column::texts(stored.iter().map(|pair| pair.caption.clone())))
            .with("cuis", Column::ListUtf8(stored.iter().map(|pair| pair.cuis.clone()).collect()))
            .with("keywords", Column::ListUtf8(stored.iter().map(|pair| pair.keywords.clone()).collect()));
        for (name, column) in further {
            table = table.with(name, column.select(&rows));
        }
        let table = table.with_all_metadata(self.metadata);
        self.captions.push(table)?;
        Ok(kept)
    }

    /// How many megabytes of images were read, for the progress.
    pub(crate) fn megabytes(&self) -> f64 {
        self.images.megabytes()
    }

    /// Writes the rest.
    pub(crate) fn finish(self, context: &mut StageContext<'_>) -> Result<StoredPairs, StageError> {
        let images = self.images.finish(context.output("images")?)?;
        self.captions.finish(context.output("captions")?)?;
        Ok(StoredPairs { images, seen: self.seen, words: self.words })
    }
}

impl StoredPairs {
    /// How many pairs there are.
    pub(crate) fn count(&self, split: &str) -> u64 {
        self.seen.count(split)
    }

    /// The first images of each split.
    pub(crate) fn sheets(&self) -> &Sheets {
        self.images.sheets()
    }

    /// Counts pairs, and finds images, captions and groups that stand twice.
    pub(crate) fn check(&self, checks: &mut Checks) -> Result<(), StageError> {
        for split in self.seen.splits() {
            checks.count("captions", split, None, self.seen.count(split));
            let words = &self.words[place(split)];
            let half = words.iter().sum::<u64>().div_ceil(2);
            let mut before = 0;
            let median = words.iter().position(|count| {
                before += count;
                before >= half
            });
            checks.count("words of a caption", split, Some("median".to_owned()), median.unwrap_or(0) as u64);
            let most = words.len().saturating_sub(1) as u64;
            checks.count("words of a caption", split, Some("most".to_owned()), most);
        }
        self.seen.check(checks)?;
        self.images.check(checks)
    }
}
