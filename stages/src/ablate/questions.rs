//! Questions about images: floors of the training answers, models of one modality, permuted and replaced inputs, and
//! what no additive model of image and question explains.

use std::collections::BTreeMap;

use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;

use super::condition::{Condition, Refused};
use super::figures::{Answer, Draw, FULL, Figure, Measured, Table as Figures, compare, method};
use super::strata::Strata;
use super::{Params, Results, TRAIN};
use crate::finite::check_finite;
use crate::images::batches;
use crate::metrics::Metric;
use crate::png;
use crate::statistics::{Estimate, Groups, MostFrequent, additive_projection, bootstrap_all, mean};
use crate::table::{Column, Table};
use crate::vqa::{Answerer, Asked, Examples, MATCHING, Readings, Sights, given, preprocessing};

/// The conditions of questions.
const FAMILY: [Condition; 11] = [
    Condition::Majority,
    Condition::AnswerTypePrior,
    Condition::QuestionTypePrior,
    Condition::QuestionLookup,
    Condition::QuestionOnly,
    Condition::ImageOnly,
    Condition::ImageMean,
    Condition::BlankImage,
    Condition::ShuffledImage,
    Condition::ShuffledWithinStratum,
    Condition::ShuffledQuestion,
];

/// The answers of one pass, as text: of a model or of a rule.
type Answers = Vec<String>;

/// What one condition gave.
struct Asking {
    condition: Option<Condition>,
    modality: &'static str,
    /// Each a pass over the tested questions.
    draws: Result<Vec<Answers>, Refused>,
}

struct Study<'a, 'c> {
    params: &'a Params,
    context: &'a StageContext<'c>,
    model: Answerer,
    train: Examples,
    /// The tested questions; behind their images stand a mean and a black one.
    test: Examples,
    /// The places of those two.
    mean: usize,
    black: usize,
    sights: Sights,
    readings: Readings,
}

/// Asks the model again under every wanted condition.
pub(super) fn ablate(params: &Params, context: &StageContext<'_>) -> Result<Results, StageError> {
    for port in ["images", "model"] {
        if context.optional_input(port).is_none() {
            return Err(StageError::failed(format!("questions need the input `{port}`")));
        }
    }
    let study = Study::new(params, context)?;
    let wanted = params.wanted(&FAMILY);
    let full = study.answers(&study.own_images(), &study.rows())?;
    let mut asked = vec![Asking { condition: None, modality: "both", draws: Ok(vec![full]) }];
    for (done, condition) in wanted.iter().enumerate() {
        context.check_cancelled()?;
        context.progress(done as u64, wanted.len() as u64, "conditions", &[]);
        let draws = study.draws(*condition)?;
        if draws.is_ok() || params.is_named(*condition) {
            asked.push(Asking { condition: Some(*condition), modality: modality(*condition), draws });
        }
    }
    let mut metrics = study.metrics(&asked);
    metrics.extend(study.prior_distances(&asked)?);
    metrics.extend(study.additive()?);
    Ok(Results { metrics, predictions: study.predictions(&asked)? })
}

/// What of a sample a condition leaves to see.
fn modality(condition: Condition) -> &'static str {
    match condition {
        Condition::ImageOnly | Condition::ShuffledQuestion => "image",
        Condition::QuestionOnly
        | Condition::QuestionLookup
        | Condition::ImageMean
        | Condition::BlankImage
        | Condition::ShuffledImage
        | Condition::ShuffledWithinStratum => "text",
        _ => "none",
    }
}

impl<'a, 'c> Study<'a, 'c> {
    fn new(params: &'a Params, context: &'a StageContext<'c>) -> Result<Self, StageError> {
        let model = Answerer::load(context.input("model")?, params.compute())?;
        let (questions, images) = (context.input("questions")?, context.input("images")?);
        let train = Examples::read(questions, images, &[TRAIN])?;
        let mut test = Examples::read(questions, images, &[&params.split])?;
        if test.asked.is_empty() {
            return Err(StageError::failed(format!("there are no questions of split `{}`", params.split)));
        }
        let mean = test.add("the mean training image", mean_image(&model, &train)?);
        let black = test.add("a black image", png::encode(&[0; 3], 1, 1, 3)?);
        let (sights, readings) = model.prepare(&test, false, context)?;
        Ok(Self { params, context, model, train, test, mean, black, sights, readings })
    }

    fn rows(&self) -> Vec<usize> {
        (0..self.test.asked.len()).collect()
    }

    fn own_images(&self) -> Vec<usize> {
        self.test.asked.iter().map(|one| one.image).collect()
    }

    /// What the model answers when it sees `images` and reads the questions at `rows`.
    fn answers(&self, images: &[usize], rows: &[usize]) -> Result<Answers, StageError> {
        let logits =
            ask(&self.model, &self.sights, &self.readings, images, rows, self.params.batch, self.context)?;
        Ok(logits.iter().map(|logits| self.model.description.answers[given(logits)].clone()).collect())
    }

    fn draws(&self, condition: Condition) -> Result<Result<Vec<Answers>, Refused>, StageError> {
        let rows = self.rows();
        let one = |answers: Answers| Ok(vec![answers]);
        Ok(match condition {
            Condition::Majority
            | Condition::AnswerTypePrior
            | Condition::QuestionTypePrior
            | Condition::QuestionLookup
                if self.train.asked.is_empty() =>
            {
                Err(format!("there are no questions of split `{TRAIN}`"))
            }
            Condition::Majority => one(self.most_frequent(|_| 0, |_| 0)),
            Condition::AnswerTypePrior => one(self.most_frequent(|one| one.closed, |_| 0)),
            Condition::QuestionTypePrior => {
                one(self.most_frequent(|one| (one.question_type.clone(), one.closed), |one| one.closed))
            }
            Condition::QuestionLookup => {
                one(self.most_frequent(|one| one.question.trim().to_lowercase(), |one| one.closed))
            }
            Condition::QuestionOnly => self.other("question_only")?,
            Condition::ImageOnly => self.other("image_only")?,
            Condition::ImageMean if self.train.asked.is_empty() => {
                Err(format!("there are no images of split `{TRAIN}`"))
            }
            Condition::ImageMean => one(self.answers(&vec![self.mean; rows.len()], &rows)?),
            Condition::BlankImage => one(self.answers(&vec![self.black; rows.len()], &rows)?),
            Condition::ShuffledImage => {
                let strata = Strata::one(rows.len());
                Ok(self.shuffled_images(condition, &strata)?)
            }
            Condition::ShuffledWithinStratum => match &self.params.stratum {
                None => Err("no column was named as `stratum`".to_owned()),
                Some(column) => {
                    let values = self.strata(column)?;
                    let strata = Strata::by_value(&values);
                    match strata.count() {
                        0 | 1 => Err(format!("the column `{column}` makes one stratum of all questions")),
                        _ => Ok(self.shuffled_images(condition, &strata)?),
                    }
                }
            },
            Condition::ShuffledQuestion => {
                let strata = Strata::one(rows.len());
                let images = self.own_images();
                let draw = |draw: u64| self.answers(&images, &strata.derangement(self.key(condition, draw)));
                Ok((0..self.params.permutations as u64).map(draw).collect::<Result<_, _>>()?)
            }
            _ => Err("it is no condition of questions".to_owned()),
        })
    }

    fn key(&self, condition: Condition, draw: u64) -> Key {
        Key::derive("pipe ablate/1", self.params.seed as u64, &[condition.name().into(), draw.into()])
    }

    /// The column of the table of questions, or of the images that they are about.
    fn strata(&self, column: &str) -> Result<Vec<Option<String>>, StageError> {
        if let Ok(values) = self.test.column(self.context.input("questions")?, column) {
            return Ok(values);
        }
        let ids: Vec<String> = self.test.images.iter().map(|image| image.id.clone()).collect();
        let values = crate::images::column_of(&ids, self.context.input("images")?, column)?;
        Ok(self.test.asked.iter().map(|one| values[one.image].clone()).collect())
    }

    fn shuffled_images(&self, condition: Condition, strata: &Strata) -> Result<Vec<Answers>, StageError> {
        let (own, rows) = (self.own_images(), self.rows());
        let draw = |draw: u64| {
            let other = strata.derangement(self.key(condition, draw));
            let images: Vec<usize> = other.into_iter().map(|row| own[row]).collect();
            self.answers(&images, &rows)
        };
        (0..self.params.permutations as u64).map(draw).collect()
    }

    /// The most frequent training answer of each question's key; of its wider key, where no training question has
    /// the first, and of all where none has that.
    fn most_frequent<K: Ord, W: Ord>(
        &self,
        key: impl Fn(&Asked) -> K,
        wider: impl Fn(&Asked) -> W,
    ) -> Answers {
        let form = |one: &Asked| self.model.description.form(one);
        let train = || self.train.asked.iter();
        let own = MostFrequent::fit(train().map(|one| (key(one), form(one))));
        let wide = MostFrequent::fit(train().map(|one| (wider(one), form(one))));
        let all = MostFrequent::fit(train().map(|one| ((), form(one))));
        let answer = |one: &Asked| {
            let found = own.get(&key(one)).or_else(|| wide.get(&wider(one))).or_else(|| all.get(&()));
            found.cloned().unwrap_or_default()
        };
        self.test.asked.iter().map(answer).collect()
    }

    /// The answers of a model that was trained on one modality.
    fn other(&self, port: &str) -> Result<Result<Vec<Answers>, Refused>, StageError> {
        let Some(artifact) = self.context.optional_input(port) else {
            return Ok(Err(format!("the input `{port}` was left out")));
        };
        let model = Answerer::load(artifact, self.params.compute())?;
        // Or the gap would be that of another list of answers, another vocabulary or another head.
        if let Some(difference) = self.model.description.difference(&model.description) {
            return Err(StageError::failed(format!(
                "the input `{port}` is no counterpart of the input `model`: {difference}; train it with the same \
                 parameters but `modality`"
            )));
        }
        let (sights, readings) = model.prepare(&self.test, false, self.context)?;
        let (images, rows) = (self.own_images(), self.rows());
        let logits = ask(&model, &sights, &readings, &images, &rows, self.params.batch, self.context)?;
        let answer = |logits: &Vec<f32>| model.description.answers[given(logits)].clone();
        Ok(Ok(vec![logits.iter().map(answer).collect()]))
    }

    fn right(&self, answers: &Answers) -> Vec<bool> {
        let form = |one: &Asked| self.model.description.form(one);
        self.test.asked.iter().zip(answers).map(|(one, answer)| form(one) == *answer).collect()
    }

    fn groups(&self) -> Groups {
        let image = |one: &Asked| Some(self.test.images[one.image].id.clone());
        Groups::new(&self.test.asked.iter().map(image).collect::<Vec<_>>())
    }

    fn metrics(&self, asked: &[Asking]) -> Vec<Metric> {
        let names = ["accuracy", "accuracy_open", "accuracy_closed"].map(str::to_owned);
        // Answers by number: what is compared is whether they are equal.
        let mut numbers = BTreeMap::new();
        for answers in asked.iter().flat_map(|asking| asking.draws.iter().flatten()) {
            for answer in answers {
                let next = numbers.len() as i32;
                numbers.entry(answer.as_str()).or_insert(next);
            }
        }
        let measured: Vec<Measured<'_>> = asked
            .iter()
            .map(|asking| {
                let draw = |answers: &Answers| {
                    let right = self.right(answers);
                    let answers = answers.iter().zip(&right).map(|(answer, right)| Answer {
                        prediction: vec![numbers[answer.as_str()]],
                        right: *right,
                    });
                    Draw { answers: answers.collect(), figures: self.figures(&right) }
                };
                let draws = asking.draws.as_ref().map_err(Clone::clone);
                Measured {
                    condition: asking.condition,
                    modality: asking.modality,
                    variant: None,
                    draws: draws.map(|draws| draws.iter().map(draw).collect()),
                }
            })
            .collect();
        let groups = self.groups();
        let table = Figures {
            task: crate::vqa::TASK,
            split: &self.params.split,
            names: &names,
            prefix: "",
            groups: &groups,
            samples: self.test.asked.len(),
            parts: &self.parts(),
            margin: self.params.margin,
            seed: self.params.seed,
        };
        self.labelled(compare(table, &measured))
    }

    /// Open and closed questions.
    fn parts(&self) -> [(&'static str, Vec<usize>); 2] {
        let of = |closed: bool| {
            self.rows().into_iter().filter(|row| self.test.asked[*row].closed == closed).collect::<Vec<_>>()
        };
        [("open", of(false)), ("closed", of(true))]
    }

    /// The figures that every condition is compared by, in the order of their names.
    fn figures(&self, right: &[bool]) -> Vec<Figure<'static>> {
        let figure = |wanted: &dyn Fn(&Asked) -> bool| -> Figure<'static> {
            let rows: Vec<usize> =
                self.rows().into_iter().filter(|row| wanted(&self.test.asked[*row])).collect();
            let values: Vec<f64> = rows.iter().map(|row| f64::from(u8::from(right[*row]))).collect();
            Box::new(move |weights: &[f64]| {
                mean(&values, &rows.iter().map(|row| weights[*row]).collect::<Vec<_>>())
            })
        };
        vec![figure(&|_| true), figure(&|one| !one.closed), figure(&|one| one.closed)]
    }

    fn labelled(&self, mut metrics: Vec<Metric>) -> Vec<Metric> {
        for metric in &mut metrics {
            metric.protocol.clone_from(&self.test.protocol);
            metric.matching = Some(self.model.description.matching.name().to_owned());
        }
        metrics
    }

    /// How far the answers of the full and of the question-only model are from the training answers of each type
    /// of question: the Kullback-Leibler divergence of their distributions, in nats. A model that follows priors
    /// has none. An answer that training does not give counts as half a training answer; a question of several types
    /// counts in each.
    fn prior_distances(&self, asked: &[Asking]) -> Result<Vec<Metric>, StageError> {
        if self.train.asked.is_empty() {
            return Ok(Vec::new());
        }
        // Where no question has a type, all are of one.
        let types = |one: &Asked| match one.question_types.is_empty() {
            true => vec![None],
            false => one.question_types.iter().cloned().map(Some).collect::<Vec<_>>(),
        };
        let mut train: BTreeMap<Option<String>, BTreeMap<String, f64>> = BTreeMap::new();
        for one in &self.train.asked {
            let answer = self.model.description.form(one);
            for kind in types(one) {
                *train.entry(kind).or_default().entry(answer.clone()).or_default() += 1.0;
            }
        }
        let mut of_type: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
        for (row, one) in self.test.asked.iter().enumerate() {
            for kind in types(one) {
                of_type.entry(kind).or_default().push(row);
            }
        }
        let empty = BTreeMap::new();
        let groups = self.groups();
        let mut metrics = Vec::new();
        let wanted = |asking: &&Asking| matches!(asking.condition, None | Some(Condition::QuestionOnly));
        for asking in asked.iter().filter(wanted) {
            let Some(answers) = asking.draws.as_ref().ok().and_then(|draws| draws.first()) else { continue };
            let estimates = bootstrap_all(&groups, self.params.seed as u64, |weights| {
                let distance = |(kind, rows): (&Option<String>, &Vec<usize>)| {
                    let given = rows.iter().map(|row| (answers[*row].as_str(), weights[*row]));
                    prior_distance(given, train.get(kind).unwrap_or(&empty))
                };
                of_type.iter().map(distance).collect()
            });
            for ((kind, rows), estimate) in of_type.iter().zip(estimates) {
                let split = &self.params.split;
                let mut metric = Metric::new(crate::vqa::TASK, split, "prior_distance", estimate, rows.len());
                metric.method = Some(method(asking.condition, None));
                metric.modality = Some(asking.modality.to_owned());
                metric.subgroup = kind.as_ref().map(|kind| format!("question_type={kind}"));
                metric.seed = Some(self.params.seed);
                metrics.push(metric);
            }
        }
        Ok(self.labelled(metrics))
    }

    /// Hessel and Lee's 2020 projection: the accuracy of the additive model of image and question that is closest to
    /// the full one, and the full one's on the same questions. What lies between is owed to interaction.
    fn additive(&self) -> Result<Vec<Metric>, StageError> {
        let count = (self.params.additive as usize).min(self.test.asked.len());
        if count < 2 {
            return Ok(Vec::new());
        }
        let key = Key::derive("pipe additive projection/1", self.params.seed as u64, &[]);
        let mut rows: Vec<usize> = key.permutation(self.test.asked.len()).into_iter().take(count).collect();
        rows.sort_unstable();
        let own = self.own_images();
        let mut cube = Vec::with_capacity(count);
        for row in &rows {
            let images = vec![own[*row]; count];
            let logits = ask(
                &self.model,
                &self.sights,
                &self.readings,
                &images,
                &rows,
                self.params.batch,
                self.context,
            )?;
            // A branch that is not taken has no logit; far below all others in its place.
            let finite = |logit: &f32| f64::from(logit.max(-1e4));
            cube.push(
                logits.iter().map(|logits| logits.iter().map(finite).collect()).collect::<Vec<Vec<f64>>>(),
            );
        }
        let additive = additive_projection(&cube);
        let description = &self.model.description;
        let labels: Vec<Option<usize>> = rows
            .iter()
            .map(|row| description.label(&self.test.asked[*row].answer, self.test.asked[*row].closed))
            .collect();
        let right = |cube: &[Vec<Vec<f64>>]| -> Vec<f64> {
            let is_right =
                |place: usize| labels[place] == Some(crate::statistics::argmax(&cube[place][place]));
            (0..count).map(|place| f64::from(u8::from(is_right(place)))).collect()
        };
        let (full, additive) = (right(&cube), right(&additive));
        // The projection is that of these questions; what is drawn again is which of them are scored.
        let image = |row: &usize| Some(self.test.images[self.test.asked[*row].image].id.clone());
        let groups = Groups::new(&rows.iter().map(image).collect::<Vec<_>>());
        let estimates = bootstrap_all(&groups, self.params.seed as u64, |weights| {
            let (full, additive) = (mean(&full, weights), mean(&additive, weights));
            vec![full, additive, full.zip(additive).map(|(full, additive)| full - additive)]
        });
        let metric = |(name, condition): (&str, &str), estimate: Option<Estimate>| {
            let mut metric = Metric::new(crate::vqa::TASK, &self.params.split, name, estimate, count);
            metric.method = Some(condition.to_owned());
            metric.modality = Some("both".to_owned());
            metric.seed = Some(self.params.seed);
            metric
        };
        let names =
            [("emap_accuracy", FULL), ("emap_accuracy", "additive"), ("emap_accuracy_gap", "additive")];
        Ok(self.labelled(
            names.into_iter().zip(estimates).map(|(name, estimate)| metric(name, estimate)).collect(),
        ))
    }

    fn predictions(&self, asked: &[Asking]) -> Result<Table, StageError> {
        let description = &self.model.description;
        let mut all = Table::new();
        for asking in asked {
            let draws = asking.draws.as_deref().unwrap_or_default();
            for (draw, answers) in draws.iter().enumerate() {
                let label = |one: &Asked, answer: &str| description.label(answer, one.closed);
                let list = |label: Option<usize>| Some(label.map(|label| label as i32).into_iter().collect());
                let own = self.test.asked.iter();
                let text = |value: &dyn Fn(&Asked) -> Option<String>| {
                    Column::Utf8(self.test.asked.iter().map(value).collect())
                };
                let number = (draws.len() > 1).then_some(draw as i64);
                let table = Table::new()
                    .with("id", text(&|one| Some(one.id.clone())))
                    .with("split", text(&|one| Some(one.split.clone())))
                    .with("protocol", text(&|_| self.test.protocol.clone()))
                    .with("patient", text(&|one| self.test.images[one.image].group.clone()))
                    .with("image", text(&|one| Some(self.test.images[one.image].id.clone())))
                    .with(
                        "target",
                        Column::ListInt32(own.clone().map(|one| list(label(one, &one.answer))).collect()),
                    )
                    .with(
                        "prediction",
                        Column::ListInt32(
                            own.zip(answers).map(|(one, answer)| list(label(one, answer))).collect(),
                        ),
                    )
                    .with("scores", Column::ListFloat32(vec![Some(Vec::new()); answers.len()]))
                    .with("correct", Column::Bool(self.right(answers).into_iter().map(Some).collect()))
                    .with("answer", text(&|one| Some(one.answer.clone())))
                    .with("answer_type", text(&|one| Some(one.answer_type().to_owned())))
                    .with("question_type", text(&|one| one.question_type.clone()))
                    .with("predicted_answer", Column::texts(answers))
                    .with("condition", Column::texts(vec![method(asking.condition, None); answers.len()]))
                    .with("draw", Column::Int64(vec![number; answers.len()]))
                    .with_metadata("task", crate::vqa::TASK)
                    .with_metadata(MATCHING, description.matching.name());
                all = if all.rows() == 0 { table } else { all.append(table)? };
            }
        }
        Ok(all)
    }
}

/// The Kullback-Leibler divergence of weighted answers from the counts of training answers, in nats.
fn prior_distance<'a>(
    given: impl Iterator<Item = (&'a str, f64)>,
    prior: &BTreeMap<String, f64>,
) -> Option<f64> {
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for (answer, weight) in given.filter(|(_, weight)| *weight > 0.0) {
        *counts.entry(answer).or_default() += weight;
    }
    let unseen = counts.keys().filter(|answer| !prior.contains_key(**answer)).count() as f64;
    let (all, total) = (prior.values().sum::<f64>() + 0.5 * unseen, counts.values().sum::<f64>());
    let part = |(answer, count): (&&str, &f64)| {
        let (own, before) = (count / total, prior.get(*answer).copied().unwrap_or(0.5) / all);
        own * libm::log(own / before)
    };
    (total > 0.0).then(|| counts.iter().map(part).sum())
}

/// The logits of questions at `rows` about the images at `images`.
fn ask(
    model: &Answerer,
    sights: &Sights,
    readings: &Readings,
    images: &[usize],
    rows: &[usize],
    batch: i64,
    context: &StageContext<'_>,
) -> Result<Vec<Vec<f32>>, StageError> {
    let places: Vec<usize> = (0..rows.len()).collect();
    let mut logits = Vec::with_capacity(rows.len());
    for part in batches(&places, batch) {
        context.check_cancelled()?;
        let pick = |list: &[usize]| part.iter().map(|place| list[*place]).collect::<Vec<_>>();
        let (own, closed) = model.logits_of(sights, readings, &pick(images), &pick(rows))?;
        for (place, logits) in own.iter().enumerate() {
            let taken = model.description.branch(closed.as_ref().map(|closed| closed[place]));
            check_finite("logits of a question", &format!("row {}", rows[part[place]]), &logits[taken])?;
        }
        logits.extend(own);
    }
    Ok(logits)
}

/// The mean of the training images as the encoder sees them, as a PNG file; mid-grey without any.
fn mean_image(model: &Answerer, train: &Examples) -> Result<Vec<u8>, StageError> {
    let Some(encoder) = &model.encoder else { return png::encode(&[128; 3], 1, 1, 3) };
    let preprocessor = preprocessing(encoder)?;
    let squares = train.squares(&preprocessor)?;
    let length = preprocessor.side * preprocessor.side * 3;
    let count = (squares.len() / length) as u64;
    if count == 0 {
        return png::encode(&[128; 3], 1, 1, 3);
    }
    let mut sums = vec![0u64; length];
    for square in squares.chunks_exact(length) {
        sums.iter_mut().zip(square).for_each(|(sum, value)| *sum += u64::from(*value));
    }
    let mean: Vec<u8> = sums.into_iter().map(|sum| ((sum + count / 2) / count) as u8).collect();
    png::encode(&mean, preprocessor.side, preprocessor.side, 3)
}
