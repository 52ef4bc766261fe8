//! The stage kind `evaluate.retrieve`: recall@k between images and captions, both ways.

use std::collections::BTreeMap;

use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError,
    StageKind,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::classification::{Metric, write_metrics};
use crate::ipc::{read_file, tensors, texts};
use crate::statistics::{Estimate, Groups, bootstrap, mean};
use crate::table::{Column, Table, TableSchema, WriteOptions, write};

/// Parameters of `evaluate.retrieve`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The split whose images and captions are the pool.
    pub split: String,
    /// The first images of the split that make the pool; all by default. Recall depends on it.
    #[schemars(range(min = 2, max = 1_000_000))]
    pub pool: Option<i64>,
    /// The k of recall@k.
    pub k: Vec<i64>,
    /// Decides the bootstrap.
    pub seed: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { split: "test".to_owned(), pool: None, k: vec![1, 5, 10], seed: 0 }
    }
}

/// Evaluates image-text retrieval.
pub struct EvaluateRetrieve;

impl StageKind for EvaluateRetrieve {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "evaluate.retrieve",
            summary: "recall@k of captions by images and of images by captions",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("images", &[artifact::EMBEDDINGS], "embeddings of images"),
                InputPort::required("texts", &[artifact::EMBEDDINGS], "embeddings of captions"),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("ranks", artifact::RANKS, "one row per query"),
            OutputPort::new("metrics", artifact::METRICS, "recall@k with intervals"),
        ]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut images = Vectors::read(context.input("images")?, &params.split)?;
        if let Some(pool) = params.pool {
            images.truncate(pool as usize);
        }
        let places: BTreeMap<&str, usize> =
            images.ids.iter().enumerate().map(|(row, id)| (id.as_str(), row)).collect();
        let captions = Vectors::read(context.input("texts")?, &params.split)?;
        // Captions of images outside the pool are no candidates.
        let (kept, owner): (Vec<usize>, Vec<usize>) = captions
            .ids
            .iter()
            .enumerate()
            .filter_map(|(row, id)| Some((row, *places.get(id.as_str())?)))
            .unzip();
        let captions = captions.select(&kept);
        if images.ids.is_empty() || captions.ids.is_empty() {
            return Err(StageError::failed(format!(
                "split `{}` has no pairs of images and captions",
                params.split
            )));
        }
        context.check_cancelled()?;
        let mut names: Vec<&str> = images.ids.iter().map(String::as_str).collect();
        names.sort_unstable();
        let pool_hash = Digest::of(names.join("\n").as_bytes()).to_short();
        let mut own: Vec<Vec<usize>> = vec![Vec::new(); images.ids.len()];
        owner.iter().enumerate().for_each(|(caption, image)| own[*image].push(caption));

        let mut ranks: Vec<(String, &'static str, Rank, usize)> = Vec::new();
        let by_image: Vec<Option<Rank>> = (0..images.ids.len())
            .into_par_iter()
            .map(|image| {
                let scores = captions.similarities(images.row(image));
                // The best of an image's own captions counts, the first of equals.
                let best =
                    own[image].iter().copied().reduce(|a, b| if scores[b] > scores[a] { b } else { a })?;
                Some(Rank::of(&scores, best, |other| other == best || !own[image].contains(&other)))
            })
            .collect();
        for (id, rank) in images.ids.iter().zip(by_image) {
            if let Some(rank) = rank {
                ranks.push((id.clone(), "image_to_text", rank, captions.ids.len()));
            }
        }
        let by_text: Vec<Rank> = (0..captions.ids.len())
            .into_par_iter()
            .map(|caption| Rank::of(&images.similarities(captions.row(caption)), owner[caption], |_| true))
            .collect();
        for (id, rank) in captions.ids.iter().zip(by_text) {
            ranks.push((id.clone(), "text_to_image", rank, images.ids.len()));
        }

        let mut metrics = Vec::new();
        for direction in ["image_to_text", "text_to_image"] {
            let of: Vec<&(String, &str, Rank, usize)> =
                ranks.iter().filter(|row| row.1 == direction).collect();
            let groups = Groups::new(&of.iter().map(|row| Some(row.0.clone())).collect::<Vec<_>>());
            let mut add = |metric: String, k: Option<i64>, estimate: Option<Estimate>| {
                let mut row = Metric::new("retrieval", &params.split, &metric, estimate, of.len());
                (row.k, row.method, row.modality) = (k, Some(direction.to_owned()), Some("both".to_owned()));
                (row.seed, row.protocol) = (Some(params.seed), Some(format!("pool-{}", images.ids.len())));
                metrics.push(row);
            };
            for k in &params.k {
                let hits: Vec<f64> =
                    of.iter().map(|row| f64::from(u8::from((row.2.rank as i64) < *k))).collect();
                let estimate = bootstrap(&groups, params.seed as u64, |weight| mean(&hits, weight));
                add(format!("recall@{k}"), Some(*k), estimate);
            }
            let mut sorted: Vec<usize> = of.iter().map(|row| row.2.rank).collect();
            sorted.sort_unstable();
            let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2 + 1;
            add(
                "median_rank".to_owned(),
                None,
                Some(Estimate { value: median as f64, low: None, high: None }),
            );
        }
        let provenance = context.provenance().to_owned();
        let integers = |value: &dyn Fn(&(String, &str, Rank, usize)) -> usize| {
            Column::Int64(ranks.iter().map(|row| Some(value(row) as i64)).collect())
        };
        let table = Table::new()
            .with("id", Column::texts(ranks.iter().map(|row| row.0.clone())))
            .with("direction", Column::texts(ranks.iter().map(|row| row.1)))
            .with("rank", integers(&|row| row.2.rank))
            .with("rank_optimistic", integers(&|row| row.2.greater))
            .with("rank_pessimistic", integers(&|row| row.2.greater + row.2.equal))
            .with("pool_size", integers(&|row| row.3))
            .with("pool_hash", Column::texts(ranks.iter().map(|_| pool_hash.clone())));
        write(context.output("ranks")?, &TableSchema::ranks(), &table, WriteOptions::text(&provenance))?;
        write_metrics(context.output("metrics")?, &metrics, &provenance)
    }
}

/// Where the right candidate stands, from 0.
#[derive(Clone, Copy, Debug)]
struct Rank {
    /// Strictly better candidates, and equal ones of lower index.
    rank: usize,
    greater: usize,
    equal: usize,
}

impl Rank {
    fn of(scores: &[f32], own: usize, counts: impl Fn(usize) -> bool) -> Self {
        let (mut greater, mut equal, mut before) = (0, 0, 0);
        for (index, score) in scores.iter().enumerate() {
            if index == own || !counts(index) {
                continue;
            }
            if *score > scores[own] {
                greater += 1;
            } else if *score == scores[own] {
                equal += 1;
                before += usize::from(index < own);
            }
        }
        Self { rank: greater + before, greater, equal }
    }
}

/// Unit vectors with their image ids.
struct Vectors {
    ids: Vec<String>,
    width: usize,
    values: Vec<f32>,
}

impl Vectors {
    fn read(artifact: &Artifact, split: &str) -> Result<Self, StageError> {
        let file = artifact.single_file()?;
        let batch = read_file(&file.location)?;
        let missing = |name: &str| StageError::input(&file.path, format!("it has no column `{name}`"));
        let ids = texts(&batch, "image_id").ok_or_else(|| missing("image_id"))?;
        let splits = texts(&batch, "split").ok_or_else(|| missing("split"))?;
        let (values, shape) = tensors(&batch, "embedding").ok_or_else(|| missing("embedding"))?;
        let width: usize = shape.iter().product();
        let mut vectors = Self { ids: Vec::new(), width, values: Vec::new() };
        for (row, (id, row_split)) in ids.into_iter().zip(splits).enumerate() {
            if row_split.as_deref() != Some(split) {
                continue;
            }
            let vector = &values[row * width..(row + 1) * width];
            let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            vectors.values.extend(vector.iter().map(|value| value / norm));
            vectors.ids.push(id.unwrap_or_default());
        }
        Ok(vectors)
    }

    fn truncate(&mut self, rows: usize) {
        self.ids.truncate(rows);
        self.values.truncate(rows * self.width);
    }

    fn select(&self, rows: &[usize]) -> Self {
        Self {
            ids: rows.iter().map(|row| self.ids[*row].clone()).collect(),
            width: self.width,
            values: rows.iter().flat_map(|row| self.row(*row).to_vec()).collect(),
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    fn similarities(&self, query: &[f32]) -> Vec<f32> {
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
    fn a_constant_model_does_not_win() {
        let rank = Rank::of(&[0.5; 10], 7, |_| true);
        assert_eq!((rank.rank, rank.greater, rank.greater + rank.equal), (7, 0, 9));
    }

    #[test]
    fn other_captions_of_the_same_image_are_no_rivals() {
        let rank = Rank::of(&[0.9, 0.8, 0.7], 1, |other| other != 0);
        assert_eq!(rank.rank, 0);
    }
}
