//! A pool of images and captions in which each looks for its own.

use std::collections::BTreeMap;

use pipe_engine::cache::Digest;
use pipe_engine::{Artifact, StageError};
use rayon::prelude::*;

use crate::finite::check_finite;
use crate::ipc::{read_file, tensors, texts};
use crate::statistics::{Groups, Rank};

/// The task of the figures here.
pub(crate) const TASK: &str = "retrieval";

/// Which side asks and which is searched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    ImageToText,
    TextToImage,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::ImageToText, Self::TextToImage];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ImageToText => "image_to_text",
            Self::TextToImage => "text_to_image",
        }
    }
}

/// What a query found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The image or caption that asks.
    pub(crate) query: usize,
    pub(crate) rank: Rank,
    /// The candidate of the greatest score, the first of equals.
    pub(crate) best: usize,
}

/// Images and their captions. Captions of images outside the pool are no candidates.
pub(crate) struct Pool {
    pub(crate) images: Vectors,
    pub(crate) captions: Vectors,
    /// Which rows of the given captions they are.
    pub(crate) caption_rows: Vec<usize>,
    /// The image of each caption.
    pub(crate) owner: Vec<usize>,
    /// The captions of each image.
    pub(crate) own: Vec<Vec<usize>>,
}

impl Pool {
    /// The pool of the first `limit` images of a split and their captions.
    ///
    /// # Errors
    /// If that leaves no pair.
    pub(crate) fn new(
        mut images: Vectors,
        captions: Vectors,
        limit: Option<usize>,
    ) -> Result<Self, StageError> {
        if let Some(limit) = limit {
            images.truncate(limit);
        }
        let places: BTreeMap<&str, usize> =
            images.ids.iter().enumerate().map(|(row, id)| (id.as_str(), row)).collect();
        let (kept, owner): (Vec<usize>, Vec<usize>) = captions
            .ids
            .iter()
            .enumerate()
            .filter_map(|(row, id)| Some((row, *places.get(id.as_str())?)))
            .unzip();
        let captions = captions.select(&kept);
        if images.ids.is_empty() || captions.ids.is_empty() {
            return Err(StageError::failed("the split has no pairs of images and captions"));
        }
        let mut own: Vec<Vec<usize>> = vec![Vec::new(); images.ids.len()];
        owner.iter().enumerate().for_each(|(caption, image)| own[*image].push(caption));
        Ok(Self { images, captions, caption_rows: kept, owner, own })
    }

    /// The pool's name: a short digest of its image ids, whatever their order.
    pub(crate) fn hash(&self) -> String {
        let mut names: Vec<&str> = self.images.ids.iter().map(String::as_str).collect();
        names.sort_unstable();
        Digest::of(names.join("\n").as_bytes()).to_short()
    }

    /// Number of queries of a direction.
    pub(crate) fn queries(&self, direction: Direction) -> usize {
        match direction {
            Direction::ImageToText => self.images.ids.len(),
            Direction::TextToImage => self.captions.ids.len(),
        }
    }

    /// Number of candidates of a direction.
    pub(crate) fn candidates(&self, direction: Direction) -> usize {
        match direction {
            Direction::ImageToText => self.captions.ids.len(),
            Direction::TextToImage => self.images.ids.len(),
        }
    }

    /// The image id of a query.
    pub(crate) fn image_id(&self, direction: Direction, query: usize) -> &str {
        match direction {
            Direction::ImageToText => &self.images.ids[query],
            Direction::TextToImage => &self.captions.ids[query],
        }
    }

    /// The name of a query, whatever the pool: of a caption its image and its number there.
    pub(crate) fn query_id(&self, direction: Direction, query: usize) -> String {
        let image = self.image_id(direction, query);
        match direction {
            Direction::ImageToText => image.to_owned(),
            Direction::TextToImage => {
                let own = &self.own[self.owner[query]];
                let number = own.iter().position(|caption| *caption == query).unwrap_or_default();
                format!("{image}#{number}")
            }
        }
    }

    /// The right candidates of a query.
    pub(crate) fn right(&self, direction: Direction, query: usize) -> &[usize] {
        match direction {
            Direction::ImageToText => &self.own[query],
            Direction::TextToImage => std::slice::from_ref(&self.owner[query]),
        }
    }

    /// The cosine of a query with all candidates.
    pub(crate) fn cosines(&self, direction: Direction, query: usize) -> Vec<f32> {
        match direction {
            Direction::ImageToText => self.captions.similarities(self.images.row(query)),
            Direction::TextToImage => self.images.similarities(self.captions.row(query)),
        }
    }

    /// What every query finds by `scores` of its candidates among those that `counts`; an image
    /// without a caption asks nothing.
    pub(crate) fn search(
        &self,
        direction: Direction,
        scores: impl Fn(usize) -> Vec<f32> + Sync,
        counts: impl Fn(usize, usize) -> bool + Sync,
    ) -> Vec<Found> {
        let found = |query: usize| {
            let scores = scores(query);
            let rank = Rank::of_best(&scores, self.right(direction, query), |other| counts(query, other))?;
            let candidates = (0..scores.len()).filter(|candidate| counts(query, *candidate));
            let best = candidates.reduce(|a, b| if scores[b] > scores[a] { b } else { a })?;
            Some(Found { query, rank, best })
        };
        (0..self.queries(direction)).into_par_iter().filter_map(found).collect()
    }

    /// Images are resampled: with their captions where these ask.
    pub(crate) fn groups(&self, direction: Direction, found: &[Found]) -> Groups {
        let id = |found: &Found| Some(self.image_id(direction, found.query).to_owned());
        Groups::new(&found.iter().map(id).collect::<Vec<_>>())
    }
}

/// Unit vectors with their image ids.
#[derive(Clone, Debug)]
pub(crate) struct Vectors {
    pub(crate) ids: Vec<String>,
    pub(crate) width: usize,
    values: Vec<f32>,
}

impl Vectors {
    /// The rows of a split of a table of embeddings.
    ///
    /// # Errors
    /// If a part is damaged or lacks a column.
    pub(crate) fn read(artifact: &Artifact, split: &str) -> Result<Self, StageError> {
        let mut all: Option<Self> = None;
        for file in artifact.files_ending(".arrow") {
            let batch = read_file(&file.location)?;
            let damaged = |reason: String| StageError::input(&file.path, reason);
            let missing = |name: &str| damaged(format!("it has no column `{name}`"));
            let ids = texts(&batch, "image_id").ok_or_else(|| missing("image_id"))?;
            let splits = texts(&batch, "split").ok_or_else(|| missing("split"))?;
            let (values, shape) = tensors(&batch, "embedding").ok_or_else(|| missing("embedding"))?;
            let width: usize = shape.iter().product();
            let vectors = all.get_or_insert_with(|| Self::empty(width));
            if vectors.width != width {
                let reason = format!("its vectors have {width} values, those before {}", vectors.width);
                return Err(damaged(reason));
            }
            for (row, (id, row_split)) in ids.into_iter().zip(splits).enumerate() {
                if row_split.as_deref() == Some(split) {
                    vectors.push(id.unwrap_or_default(), &values[row * width..(row + 1) * width])?;
                }
            }
        }
        all.ok_or_else(|| StageError::input("embeddings", "there is no Arrow file"))
    }

    /// No vectors of a width.
    pub(crate) fn empty(width: usize) -> Self {
        Self { ids: Vec::new(), width, values: Vec::new() }
    }

    /// Adds a vector, divided by its length.
    ///
    /// # Errors
    /// If a value is not finite.
    pub(crate) fn push(&mut self, id: String, vector: &[f32]) -> Result<(), StageError> {
        check_finite("values of the embedding", &id, vector)?;
        let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        self.values.extend(vector.iter().map(|value| value / norm));
        self.ids.push(id);
        Ok(())
    }

    fn truncate(&mut self, rows: usize) {
        self.ids.truncate(rows);
        self.values.truncate(rows * self.width);
    }

    /// The rows at `rows`, in that order.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        Self {
            ids: rows.iter().map(|row| self.ids[*row].clone()).collect(),
            width: self.width,
            values: rows.iter().flat_map(|row| self.row(*row).to_vec()).collect(),
        }
    }

    /// One vector.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    /// All values, row by row.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The products of `query` with all vectors: cosines if it has length 1.
    pub(crate) fn similarities(&self, query: &[f32]) -> Vec<f32> {
        self.values
            .chunks_exact(self.width)
            .map(|vector| vector.iter().zip(query).map(|(a, b)| a * b).sum())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_without_numbers_are_refused() {
        let mut vectors = Vectors::empty(2);
        vectors.push("a".to_owned(), &[3.0, 4.0]).unwrap();
        let error = vectors.push("b".to_owned(), &[1.0, f32::NAN]).unwrap_err().to_string();
        assert!(error.contains("`b`") && error.contains("NaN"), "{error}");
        assert_eq!((vectors.ids.len(), vectors.values()), (1, &[0.6, 0.8][..]));
    }
}
