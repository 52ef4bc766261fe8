//! Retrieval without matching: by chance, by popularity, by modality, by keywords.

use std::collections::BTreeMap;

use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;
use rayon::prelude::*;

use super::captions::{Captions, vectors};
use super::condition::{Condition, Refused};
use super::figures::{Answer, Draw, Figure, Measured, Table as Figures, compare, method};
use super::image_strata::ImageStrata;
use super::modality::Words;
use super::strata::Strata;
use super::{Params, Results, TRAIN};
use crate::linear_probe::{Labelled, LinearProbe};
use crate::metrics::Metric;
use crate::model::{HeadDescription, Model};
use crate::retrieval::{Direction, Found, Pool, TASK, Vectors};
use crate::statistics::{Estimate, Groups, hubness_skewness, mean, random_hit, recall, softmax};
use crate::table::{Column, Table};

/// The conditions of this family.
const FAMILY: [Condition; 7] = [
    Condition::Random,
    Condition::ShuffledImage,
    Condition::ShuffledWithinStratum,
    Condition::Popularity,
    Condition::Metadata,
    Condition::Keywords,
    Condition::WithinStratum,
];

/// Candidates among the first this many count as occurrences in hubness.
const OCCURRENCE: usize = 10;

/// What all conditions share.
struct Study<'a, 'c> {
    params: &'a Params,
    context: &'a StageContext<'c>,
    /// Loaded only for what needs it.
    model: Option<Model>,
    pool: Pool,
    /// Embeddings of the training split, perhaps none.
    train_images: Vectors,
    train_captions: Vectors,
    /// The texts; without them only embeddings are known.
    captions: Option<Captions>,
    strata: Result<ImageStrata, Refused>,
}

/// What every query of one direction found, once or in several draws; or why nothing.
type Outcome = Result<Vec<Vec<Found>>, Refused>;

/// Asks the pool again under every wanted condition.
pub(super) fn ablate(params: &Params, context: &StageContext<'_>) -> Result<Results, StageError> {
    let study = Study::new(params, context)?;
    let wanted = params.wanted(&FAMILY);
    let mut results = Results { metrics: Vec::new(), predictions: Table::new() };
    let keywords = match wanted.contains(&Condition::Keywords) {
        true => study.keywords()?,
        false => Err("it was not asked for".to_owned()),
    };
    let metadata = match wanted.contains(&Condition::Metadata) {
        true => study.metadata()?,
        false => Err("it was not asked for".to_owned()),
    };
    let total = (wanted.len() * Direction::BOTH.len()) as u64;
    for (place, direction) in (0u64..).zip(Direction::BOTH) {
        let mut outcomes: Vec<(Option<Condition>, Outcome)> = vec![(None, Ok(vec![study.full(direction)]))];
        for (done, condition) in (0u64..).zip(&wanted) {
            context.check_cancelled()?;
            context.progress(place * wanted.len() as u64 + done, total, "conditions", &[]);
            let outcome = match condition {
                Condition::Random => Ok(Vec::new()),
                Condition::ShuffledImage => {
                    Ok(study.shuffled(direction, *condition, &Strata::one(study.pool.images.ids.len())))
                }
                Condition::ShuffledWithinStratum => match &study.strata {
                    Ok(strata) => Ok(study.shuffled(direction, *condition, &strata.pool)),
                    Err(reason) => Err(reason.clone()),
                },
                Condition::Popularity => study.popularity(direction),
                Condition::Metadata => metadata
                    .as_ref()
                    .map(|agreement| study.by_agreement(direction, agreement))
                    .map_err(Clone::clone),
                Condition::Keywords => {
                    keywords.as_ref().map(|images| study.in_place(direction, images)).map_err(Clone::clone)
                }
                Condition::WithinStratum => study.within_stratum(direction),
                _ => Err("it is a condition of classification".to_owned()),
            };
            if outcome.is_ok() || params.is_named(*condition) {
                outcomes.push((Some(*condition), outcome));
            }
        }
        results.metrics.extend(study.metrics(direction, &outcomes));
        let predictions = study.predictions(direction, &outcomes)?;
        results.predictions = match results.predictions.rows() {
            0 => predictions,
            _ => results.predictions.append(predictions)?,
        };
    }
    Ok(results)
}

impl<'a, 'c> Study<'a, 'c> {
    fn new(params: &'a Params, context: &'a StageContext<'c>) -> Result<Self, StageError> {
        let captions = Captions::read(params, context)?;
        let model = match context.optional_input("checkpoint") {
            Some(checkpoint) => Some(Model::load(checkpoint, params.compute())?),
            None => None,
        };
        let vectors = |split: &str| -> Result<(Vectors, Vectors), StageError> {
            let given =
                (context.optional_input("image_embeddings"), context.optional_input("text_embeddings"));
            let (images, texts) = match (given, &model, &captions) {
                ((Some(images), Some(texts)), _, _) => {
                    (Vectors::read(images, split)?, Vectors::read(texts, split)?)
                }
                ((None, None), Some(model), Some(captions)) => {
                    captions.embed(model, split, params, context)?
                }
                ((None, None), _, _) => {
                    return Err(StageError::failed(
                        "retrieval needs the inputs `image_embeddings` and `text_embeddings`, or `images`, \
                         `captions` and `checkpoint`",
                    ));
                }
                _ => {
                    return Err(StageError::failed(
                        "the inputs `image_embeddings` and `text_embeddings` belong together; one is missing",
                    ));
                }
            };
            if let Some(captions) = &captions {
                captions.check(split, params, &texts)?;
            }
            Ok((images, texts))
        };
        let (train_images, train_captions) =
            if params.split == TRAIN { (Vectors::empty(0), Vectors::empty(0)) } else { vectors(TRAIN)? };
        let (images, texts) = vectors(&params.split)?;
        let pool = Pool::new(images, texts, params.pool.map(|pool| pool as usize))?;
        let strata = ImageStrata::read(params, context, &pool)?;
        Ok(Self { params, context, model, pool, train_images, train_captions, captions, strata })
    }

    fn full(&self, direction: Direction) -> Vec<Found> {
        self.pool.search(direction, |query| self.pool.cosines(direction, query), |_, _| true)
    }

    /// The pool's search with other vectors in the place of its images, in their order.
    fn in_place(&self, direction: Direction, images: &Vectors) -> Vec<Vec<Found>> {
        let scores = |query: usize| match direction {
            Direction::ImageToText => self.pool.captions.similarities(images.row(query)),
            Direction::TextToImage => images.similarities(self.pool.captions.row(query)),
        };
        vec![self.pool.search(direction, scores, |_, _| true)]
    }

    fn shuffled(&self, direction: Direction, condition: Condition, strata: &Strata) -> Vec<Vec<Found>> {
        let seed = self.params.seed as u64;
        let draws = (0..self.params.permutations as u64).map(|draw| {
            let parts = [condition.name().into(), draw.into()];
            let other = strata.derangement(Key::derive("pipe ablate/1", seed, &parts));
            self.in_place(direction, &self.pool.images.select(&other))
        });
        draws.flatten().collect()
    }

    /// The order of mean similarity to the training queries: that of the similarity to their mean.
    fn popularity(&self, direction: Direction) -> Outcome {
        let (queries, candidates) = match direction {
            Direction::ImageToText => (&self.train_images, &self.pool.captions),
            Direction::TextToImage => (&self.train_captions, &self.pool.images),
        };
        if queries.ids.is_empty() {
            return Err(format!("there are no embeddings of split `{TRAIN}`"));
        }
        let mut sums = vec![0.0f64; queries.width];
        for query in queries.values().chunks_exact(queries.width) {
            sums.iter_mut().zip(query).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let count = queries.ids.len() as f64;
        let mean: Vec<f32> = sums.iter().map(|sum| (sum / count) as f32).collect();
        let scores = candidates.similarities(&mean);
        Ok(vec![self.pool.search(direction, |_| scores.clone(), |_, _| true)])
    }

    fn within_stratum(&self, direction: Direction) -> Outcome {
        let strata = &self.strata.as_ref().map_err(Clone::clone)?.pool.of;
        let image = |side: Direction, place: usize| match side {
            Direction::ImageToText => place,
            Direction::TextToImage => self.pool.owner[place],
        };
        let other = match direction {
            Direction::ImageToText => Direction::TextToImage,
            Direction::TextToImage => Direction::ImageToText,
        };
        let counts = |query: usize, candidate: usize| {
            strata[image(direction, query)] == strata[image(other, candidate)]
        };
        Ok(vec![self.pool.search(direction, |query| self.pool.cosines(direction, query), counts)])
    }

    /// For each image and each caption of the pool, the probability of every stratum.
    fn metadata(&self) -> Result<Result<[Vec<Vec<f32>>; 2], Refused>, StageError> {
        let strata = match &self.strata {
            Ok(strata) => strata,
            Err(reason) => return Ok(Err(reason.clone())),
        };
        let Some(captions) = &self.captions else {
            return Ok(Err("the input `captions`, whose words are read, was left out".to_owned()));
        };
        if self.train_images.ids.is_empty() {
            return Ok(Err(format!("there are no embeddings of split `{TRAIN}`")));
        }
        let known = |id: &str| strata.by_id.get(id).copied();
        let images = &self.train_images;
        let rows: Vec<(usize, usize)> =
            images.ids.iter().enumerate().filter_map(|(row, id)| Some((row, known(id)?))).collect();
        let targets: Vec<Vec<i64>> = rows.iter().map(|(_, stratum)| vec![*stratum as i64]).collect();
        let targets: Vec<&Vec<i64>> = targets.iter().collect();
        let features = images.select(&rows.iter().map(|(row, _)| *row).collect::<Vec<_>>());
        let width = images.width;
        let description = HeadDescription {
            classes: (0..strata.count).map(|stratum| stratum.to_string()).collect(),
            task: "multi-class".to_owned(),
        };
        let probe = LinearProbe::train(
            Labelled { features: features.values(), width, targets: &targets },
            Labelled { features: &[], width, targets: &[] },
            &description,
            self.params.c,
        )?;
        let to_f32 = |shares: Vec<f64>| shares.into_iter().map(|share| share as f32).collect::<Vec<f32>>();
        let of_images = probe
            .logits(self.pool.images.values(), width)
            .iter()
            .map(|logits| to_f32(softmax(logits)))
            .collect();
        let texts = captions.train.iter().filter_map(|(id, text)| Some((text.as_str(), known(id)?)));
        let words = Words::learn(strata.count, texts);
        let caption = |row: &usize| to_f32(words.probabilities(&captions.test[*row].1));
        let of_captions = self.pool.caption_rows.iter().map(caption).collect();
        Ok(Ok([of_images, of_captions]))
    }

    fn by_agreement(&self, direction: Direction, [images, captions]: &[Vec<Vec<f32>>; 2]) -> Vec<Vec<Found>> {
        let (queries, candidates) = match direction {
            Direction::ImageToText => (images, captions),
            Direction::TextToImage => (captions, images),
        };
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let scores = |query: usize| {
            candidates.iter().map(|candidate| product(&queries[query], candidate)).collect::<Vec<f32>>()
        };
        vec![self.pool.search(direction, scores, |_, _| true)]
    }

    /// The keywords of each image of the pool through the text tower.
    fn keywords(&self) -> Result<Result<Vectors, Refused>, StageError> {
        let Some(captions) = &self.captions else {
            return Ok(Err("the input `captions`, which has keywords, was left out".to_owned()));
        };
        let Some(model) = &self.model else {
            return Ok(Err("the input `checkpoint`, which reads keywords, was left out".to_owned()));
        };
        let mut texts: BTreeMap<&str, String> = BTreeMap::new();
        for (id, _, keywords) in &captions.test {
            if !keywords.is_empty() {
                texts.entry(id).or_insert_with(|| keywords.join(", "));
            }
        }
        let of_pool: Option<Vec<&str>> =
            self.pool.images.ids.iter().map(|id| texts.get(id.as_str()).map(String::as_str)).collect();
        let Some(of_pool) = of_pool else {
            return Ok(Err("the captions table has no `keywords` for every image of the pool".to_owned()));
        };
        let values = model.embed_texts(&of_pool, self.params.batch, self.context)?;
        Ok(Ok(vectors(&self.pool.images.ids, &values)?))
    }

    /// What of a sample a condition leaves to see.
    fn modality(&self, direction: Direction, condition: Option<Condition>) -> &'static str {
        match (condition, direction) {
            (Some(Condition::Random), _) => "none",
            (Some(Condition::Popularity), Direction::ImageToText) => "text",
            (Some(Condition::Popularity), Direction::TextToImage) => "image",
            (Some(Condition::ShuffledImage | Condition::ShuffledWithinStratum | Condition::Keywords), _) => {
                "text"
            }
            _ => "both",
        }
    }

    fn metrics(&self, direction: Direction, outcomes: &[(Option<Condition>, Outcome)]) -> Vec<Metric> {
        let params = self.params;
        let names: Vec<String> =
            params.k.iter().map(|k| format!("{}_recall@{k}", direction.name())).collect();
        let Ok(full) = &outcomes[0].1 else { return Vec::new() };
        let queries: Vec<usize> = full[0].iter().map(|found| found.query).collect();
        let measured: Vec<Measured<'_>> = outcomes
            .iter()
            .map(|(condition, outcome)| Measured {
                condition: *condition,
                modality: self.modality(direction, *condition),
                variant: None,
                draws: match outcome {
                    Err(reason) => Err(reason.clone()),
                    Ok(_) if *condition == Some(Condition::Random) => {
                        Ok(vec![self.random(direction, &queries)])
                    }
                    Ok(draws) => Ok(draws.iter().map(|found| self.draw(found)).collect()),
                },
            })
            .collect();
        let groups: Groups = self.pool.groups(direction, &full[0]);
        let prefix = format!("{}_", direction.name());
        let table = Figures {
            task: TASK,
            split: &params.split,
            names: &names,
            prefix: &prefix,
            groups: &groups,
            samples: queries.len(),
            parts: &[],
            margin: params.margin,
            seed: params.seed,
        };
        let mut metrics = compare(table, &measured);
        for metric in &mut metrics {
            // "recall@5_gap" has the k of its recall.
            let digits: String = metric
                .metric
                .split_once('@')
                .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect())
                .unwrap_or_default();
            metric.k = digits.parse().ok();
        }
        let mut hubness = Metric::new(
            TASK,
            &params.split,
            &format!("{prefix}hubness_skewness"),
            self.hubness(direction).map(Estimate::exact),
            queries.len(),
        );
        hubness.method = Some(method(None, None));
        hubness.modality = Some(self.modality(direction, None).to_owned());
        (hubness.seed, hubness.k) = (Some(params.seed), Some(OCCURRENCE as i64));
        metrics.push(hubness);
        for metric in &mut metrics {
            metric.protocol = Some(format!("pool-{}", self.pool.images.ids.len()));
        }
        metrics
    }

    fn draw<'f>(&self, found: &[Found]) -> Draw<'f> {
        let ranks: Vec<usize> = found.iter().map(|found| found.rank.rank).collect();
        let figure = |k: &i64| -> Figure<'f> {
            let (ranks, k) = (ranks.clone(), *k as usize);
            Box::new(move |weights: &[f64]| recall(&ranks, k, weights))
        };
        let answer =
            |found: &Found| Answer { prediction: vec![found.best as i32], right: found.rank.rank == 0 };
        Draw {
            figures: self.params.k.iter().map(figure).collect(),
            answers: found.iter().map(answer).collect(),
        }
    }

    /// Chance in closed form: it answers nothing.
    fn random<'f>(&self, direction: Direction, queries: &[usize]) -> Draw<'f> {
        let candidates = self.pool.candidates(direction);
        let figure = |k: &i64| -> Figure<'f> {
            let hit = |query: &usize| {
                let own = self.pool.right(direction, *query).len();
                random_hit(own, candidates - own, *k as usize)
            };
            let hits: Vec<f64> = queries.iter().map(hit).collect();
            Box::new(move |weights: &[f64]| mean(&hits, weights))
        };
        Draw { figures: self.params.k.iter().map(figure).collect(), answers: Vec::new() }
    }

    /// Whether few candidates are near to many queries.
    fn hubness(&self, direction: Direction) -> Option<f64> {
        let candidates = self.pool.candidates(direction);
        let nearest = |query: usize| {
            let scores = self.pool.cosines(direction, query);
            let mut order: Vec<usize> = (0..candidates).collect();
            let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
            if candidates > OCCURRENCE {
                order.select_nth_unstable_by(OCCURRENCE - 1, by_score);
                order.truncate(OCCURRENCE);
            }
            order
        };
        let found: Vec<usize> =
            (0..self.pool.queries(direction)).into_par_iter().flat_map_iter(nearest).collect();
        let mut occurrences = vec![0.0; candidates];
        found.into_iter().for_each(|candidate| occurrences[candidate] += 1.0);
        hubness_skewness(&occurrences)
    }

    /// A row per query, condition and draw: the right candidates, the best one and the rank.
    fn predictions(
        &self,
        direction: Direction,
        outcomes: &[(Option<Condition>, Outcome)],
    ) -> Result<Table, StageError> {
        let mut all = Table::new();
        for (condition, outcome) in outcomes {
            let draws = outcome.as_deref().unwrap_or_default();
            for (draw, found) in draws.iter().enumerate() {
                let count = found.len();
                let id = |found: &Found| self.pool.image_id(direction, found.query).to_owned();
                let ids: Vec<String> = found.iter().map(id).collect();
                let target = |found: &Found| {
                    let right = self.pool.right(direction, found.query);
                    Some(right.iter().map(|candidate| *candidate as i32).collect())
                };
                let rank = |found: &Found| Some(found.rank.rank as i64);
                let table = Table::new()
                    .with(
                        "id",
                        Column::texts(found.iter().map(|found| self.pool.query_id(direction, found.query))),
                    )
                    .with("split", Column::texts(vec![self.params.split.clone(); count]))
                    .with(
                        "protocol",
                        Column::texts(vec![format!("{}/pool-{}", direction.name(), self.pool.hash()); count]),
                    )
                    .with("image", Column::texts(ids))
                    .with("target", Column::ListInt32(found.iter().map(target).collect()))
                    .with(
                        "prediction",
                        Column::ListInt32(found.iter().map(|found| Some(vec![found.best as i32])).collect()),
                    )
                    .with("scores", Column::ListFloat32(vec![Some(Vec::new()); count]))
                    .with(
                        "correct",
                        Column::Bool(found.iter().map(|found| Some(found.rank.rank == 0)).collect()),
                    )
                    .with("condition", Column::Utf8(vec![Some(method(*condition, None)); count]))
                    .with("draw", Column::Int64(vec![(draws.len() > 1).then_some(draw as i64); count]))
                    .with("rank", Column::Int64(found.iter().map(rank).collect()))
                    .with_metadata("task", TASK);
                all = if all.rows() == 0 { table } else { all.append(table)? };
            }
        }
        Ok(all)
    }
}
