//! The stage kind `evaluate.retrieve`: recall@k between images and captions, both ways.

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::metrics::{Metric, write_metrics};
use crate::retrieval::{Direction, Found, Pool, TASK, Vectors};
use crate::statistics::{Estimate, bootstrap_all, mean_rank, median_rank, recall};
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
    #[schemars(inner(range(min = 1)))]
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
            implementation: 3,
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
        let pool = Pool::new(
            Vectors::read(context.input("images")?, &params.split)?,
            Vectors::read(context.input("texts")?, &params.split)?,
            params.pool.map(|pool| pool as usize),
        )
        .map_err(|error| StageError::because(format!("pairing split `{}`", params.split), error))?;
        context.check_cancelled()?;
        let mut metrics = Vec::new();
        let mut found: Vec<(Direction, Found)> = Vec::new();
        for direction in Direction::BOTH {
            let results = pool.search(direction, |query| pool.cosines(direction, query), |_, _| true);
            metrics.extend(figures(params, &pool, direction, &results));
            found.extend(results.into_iter().map(|result| (direction, result)));
        }
        let provenance = context.provenance().to_owned();
        let integers = |value: &dyn Fn(&(Direction, Found)) -> usize| {
            Column::Int64(found.iter().map(|row| Some(value(row) as i64)).collect())
        };
        let pool_hash = pool.hash();
        let table = Table::new()
            .with(
                "id",
                Column::texts(found.iter().map(|(direction, row)| pool.image_id(*direction, row.query))),
            )
            .with("direction", Column::texts(found.iter().map(|(direction, _)| direction.name())))
            .with("rank", integers(&|(_, row)| row.rank.rank))
            .with("rank_optimistic", integers(&|(_, row)| row.rank.greater))
            .with("rank_pessimistic", integers(&|(_, row)| row.rank.greater + row.rank.equal))
            .with("pool_size", integers(&|(direction, _)| pool.candidates(*direction)))
            .with("pool_hash", Column::texts(found.iter().map(|_| pool_hash.clone())));
        write(context.output("ranks")?, &TableSchema::ranks(), &table, WriteOptions::text(&provenance))?;
        write_metrics(context.output("metrics")?, &metrics, &provenance)
    }
}

/// Recall and ranks of one direction.
fn figures(params: &Params, pool: &Pool, direction: Direction, found: &[Found]) -> Vec<Metric> {
    let ranks: Vec<usize> = found.iter().map(|row| row.rank.rank).collect();
    let row = |name: &str, k: Option<i64>, estimate: Option<Estimate>| {
        let mut row = Metric::new(TASK, &params.split, name, estimate, found.len());
        (row.k, row.method, row.modality) = (k, Some(direction.name().to_owned()), Some("both".to_owned()));
        (row.seed, row.protocol) = (Some(params.seed), Some(format!("pool-{}", pool.images.ids.len())));
        row
    };
    let recalls = bootstrap_all(&pool.groups(direction, found), params.seed as u64, |weights| {
        params.k.iter().map(|k| recall(&ranks, *k as usize, weights)).collect()
    });
    let named = params.k.iter().zip(recalls);
    let mut metrics: Vec<Metric> =
        named.map(|(k, estimate)| row(&format!("recall@{k}"), Some(*k), estimate)).collect();
    metrics.push(row("median_rank", None, median_rank(&ranks).map(Estimate::exact)));
    metrics.push(row("mean_rank", None, mean_rank(&ranks).map(Estimate::exact)));
    metrics
}
