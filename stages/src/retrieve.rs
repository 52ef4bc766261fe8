//! The stage kind `evaluate.retrieve`: recall@k between images and captions, both ways.

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::discriminability::Discriminability;
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
    /// The loss that says how well captions tell their images from others (Luo et al. 2018), against all of the pool.
    pub discriminability: Option<Discriminability>,
    /// Decides the bootstrap.
    pub seed: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { split: "test".to_owned(), pool: None, k: vec![1, 5, 10], discriminability: None, seed: 0 }
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

    fn key_neutral(&self) -> &'static [&'static str] {
        &["discriminability"]
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
        if let Some(discriminability) = &params.discriminability {
            context.check_cancelled()?;
            for (name, estimate) in discriminability.figures(&pool, params.seed) {
                let mut row = Metric::new(TASK, &params.split, name, estimate, pool.captions.ids.len());
                row.method = Some("given captions".to_owned());
                row.modality = Some("both".to_owned());
                (row.seed, row.protocol) = (Some(params.seed), Some(protocol(&pool)));
                metrics.push(row);
            }
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

/// What figures depend on beside the model: the number of images.
fn protocol(pool: &Pool) -> String {
    format!("pool-{}", pool.images.ids.len())
}

/// Recall and ranks of one direction.
fn figures(params: &Params, pool: &Pool, direction: Direction, found: &[Found]) -> Vec<Metric> {
    let ranks: Vec<usize> = found.iter().map(|row| row.rank.rank).collect();
    let row = |name: &str, k: Option<i64>, estimate: Option<Estimate>| {
        let mut row = Metric::new(TASK, &params.split, name, estimate, found.len());
        (row.k, row.method, row.modality) = (k, Some(direction.name().to_owned()), Some("both".to_owned()));
        (row.seed, row.protocol) = (Some(params.seed), Some(protocol(pool)));
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

#[cfg(test)]
mod tests {
    use pipe_engine::Artifact;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::embed::Embed;
    use crate::phantom::IngestPhantom;
    use crate::table::read;
    use crate::testing::run;
    use crate::tokenizer::TrainTokenizer;

    #[test]
    fn captions_in_few_words_are_judged_like_whole_ones() {
        let params = json!({ "weights": "all", "size": 28, "seed": 3, "train": 10, "test": 40 });
        let phantoms = run(&IngestPhantom, &params, &[]).unwrap();
        let captions = &phantoms["captions"];
        let tokenizer = run(&TrainTokenizer, &json!({ "vocab_size": 700 }), &[("text", captions)]).unwrap();
        let size = json!({ "width": 32, "layers": 1, "heads": 2 });
        let params = json!({
            "init": "random", "image_size": 28, "patch": 7, "projection": 32, "vision": size, "text": size,
        });
        let model = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
        let model = &model["checkpoint"];
        let figures = |params: Json, retrieval: Json| -> Vec<(String, String, f64)> {
            let inputs = [("images", &phantoms["images"]), ("captions", captions), ("checkpoint", model)];
            let embedded = run(&Embed, &params, &inputs).unwrap();
            let inputs: [(&str, &Artifact); 2] =
                [("images", &embedded["images"]), ("texts", &embedded["texts"])];
            let table = read(&run(&EvaluateRetrieve, &retrieval, &inputs).unwrap()["metrics"]).unwrap();
            let (metrics, methods) = (table.strings("metric").unwrap(), table.strings("method").unwrap());
            let values = table.float64("value").unwrap();
            let row = |row: usize| (metrics[row].to_owned(), methods[row].to_owned(), values[row].unwrap());
            (0..table.rows()).map(row).collect()
        };
        let plain = figures(json!({}), json!({}));
        let asked = json!({ "discriminability": { "margin": 0.1 } });
        let whole = figures(json!({}), asked.clone());
        assert_eq!(plain, whole[..plain.len()]);
        let names: Vec<&str> = whole[plain.len()..].iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["discriminability_loss", "caption_retrieval_loss", "image_retrieval_loss"]);
        let loss = |rows: &[(String, String, f64)]| rows[plain.len()].2;
        assert!(loss(&whole) > 0.0);
        // All captions begin alike, so that the first word tells no image from another.
        let short = figures(json!({ "words": 1 }), asked);
        assert_ne!(loss(&short), loss(&whole));
        let words = json!({ "words": 1, "modality": "text" });
        let tokens =
            run(&crate::tokenize::Tokenize, &json!({}), &[("text", captions), ("tokenizer", model)]).unwrap();
        let inputs = [("captions", &tokens["tokens"]), ("checkpoint", model)];
        let error = run(&Embed, &words, &inputs).err().unwrap().to_string();
        assert!(error.contains("`words` and `column`"), "{error}");
    }
}
