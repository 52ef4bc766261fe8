//! What every evaluation of answers writes: predictions, and accuracies with intervals.

use std::collections::{BTreeMap, BTreeSet};

use super::examples::TRAINING_TWIN;
use super::{Description, Examples};
use crate::metrics::Metric;
use crate::statistics::{Estimate, Groups, bootstrap_all, mean};
use crate::table::{Column, Table};

/// Answers that are shown of each question, likeliest first.
const CANDIDATES: usize = 5;

/// Answered questions.
pub(crate) struct Answered<'a> {
    pub(crate) examples: &'a Examples,
    pub(crate) description: &'a Description,
    /// Which questions, in order.
    pub(crate) rows: Vec<usize>,
    /// Of each of them, the logits of all answers.
    pub(crate) logits: Vec<Vec<f32>>,
    /// Whether each took the branch of closed questions, if there are branches.
    pub(crate) routed: Option<Vec<bool>>,
}

/// What figures depend on beside answers.
#[derive(Clone, Copy)]
pub(crate) struct Scoring<'a> {
    pub(crate) split: &'a str,
    /// Decides the bootstrap.
    pub(crate) seed: i64,
    /// Which records were trained on and tested, as `mevf-3064`.
    pub(crate) protocol: Option<&'a str>,
}

/// Some of the questions, by place among those that were answered.
struct Subset {
    /// `answer_type=OPEN`; none for all.
    name: Option<String>,
    places: Vec<usize>,
}

impl Answered<'_> {
    fn asked(&self) -> impl Iterator<Item = &super::Asked> {
        self.rows.iter().map(|row| &self.examples.asked[*row])
    }

    /// The label of each question's answer.
    fn labels(&self) -> Vec<Option<usize>> {
        self.asked().map(|one| self.description.label(&one.answer, one.closed)).collect()
    }

    /// Whether each is answered right: an answer that is not in the list never is, nor one in the branch of the
    /// other type.
    pub(crate) fn correct(&self) -> Vec<bool> {
        let predictions = self.logits.iter().map(|logits| given(logits));
        predictions.zip(self.labels()).map(|(prediction, label)| label == Some(prediction)).collect()
    }

    /// The table of predictions.
    pub(crate) fn table(&self, protocol: Option<&str>) -> Table {
        let asked: Vec<&super::Asked> = self.asked().collect();
        let labels = self.labels();
        let image = |one: &super::Asked| &self.examples.images[one.image];
        let text = |value: &dyn Fn(&super::Asked) -> Option<String>| {
            Column::Utf8(asked.iter().map(|one| value(one)).collect())
        };
        let one = |label: Option<usize>| Some(label.map(|label| label as i32).into_iter().collect());
        let ranked: Vec<Vec<usize>> = self.logits.iter().map(|logits| likeliest(logits)).collect();
        let answer = |label: usize| self.description.answers[label].clone();
        let scores = |logits: &Vec<f32>| logits.iter().map(|logit| sigmoid(*logit)).collect::<Vec<f32>>();
        let table = Table::new()
            .with("id", text(&|one| Some(one.id.clone())))
            .with("split", text(&|one| Some(one.split.clone())))
            .with("protocol", text(&|_| protocol.map(str::to_owned)))
            .with("patient", text(&|one| image(one).group.clone()))
            .with("image", text(&|one| Some(image(one).id.clone())))
            .with("target", Column::ListInt32(labels.iter().map(|label| one(*label)).collect()))
            .with(
                "prediction",
                Column::ListInt32(self.logits.iter().map(|logits| one(Some(given(logits)))).collect()),
            )
            .with(
                "scores",
                Column::ListFloat32(self.logits.iter().map(|logits| Some(scores(logits))).collect()),
            )
            .with("correct", Column::Bool(self.correct().into_iter().map(Some).collect()))
            .with("answer", text(&|one| Some(one.answer.clone())))
            .with("answer_type", text(&|one| Some(one.answer_type().to_owned())))
            .with("question_type", text(&|one| one.question_type.clone()))
            .with("question", text(&|one| Some(one.question.clone())))
            .with("predicted_answer", Column::texts(ranked.iter().map(|labels| answer(labels[0]))))
            .with(
                "candidates",
                Column::ListUtf8(
                    ranked
                        .iter()
                        .map(|labels| Some(labels.iter().map(|label| answer(*label)).collect()))
                        .collect(),
                ),
            )
            .with("phrase_type", text(&|one| one.phrase_type.clone()))
            .with_metadata("task", TASK)
            .with_metadata(MATCHING, self.description.matching.name());
        let table = match asked.iter().any(|one| one.training_twin.is_some()) {
            true => {
                table.with(TRAINING_TWIN, Column::Bool(asked.iter().map(|one| one.training_twin).collect()))
            }
            false => table,
        };
        match &self.routed {
            None => table,
            Some(routed) => {
                table.with("routed_type", Column::texts(routed.iter().map(|closed| type_name(*closed))))
            }
        }
    }

    /// Accuracies of all questions and of those of each type, and what the list of answers allows.
    pub(crate) fn metrics(&self, scoring: Scoring<'_>) -> Vec<Metric> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let mut metrics = self.metrics_of(scoring, &(0..self.rows.len()).collect::<Vec<_>>(), "all");
        // Papers before 2021 score the free-form questions of VQA-RAD alone; never in one column with all.
        let is_free = |one: &super::Asked| one.phrase_type.as_deref() == Some("freeform");
        let free: Vec<usize> =
            self.asked().enumerate().filter(|(_, one)| is_free(one)).map(|(place, _)| place).collect();
        if !free.is_empty() && free.len() < self.rows.len() {
            metrics.extend(self.metrics_of(scoring, &free, "free-form"));
        }
        metrics
    }

    /// Whether the answer of each of these questions is of the tail of its type: given at most 1.2 times as often as the
    /// mean answer (Kervadec et al., GQA-OOD, 2021). A model that leans on how often answers are given fails there.
    fn is_of_tail(&self, places: &[usize]) -> BTreeMap<usize, bool> {
        let asked: Vec<&super::Asked> = self.asked().collect();
        let kind = |place: usize| -> (String, String) {
            let one = asked[place];
            let own = one.question_types.first().cloned();
            let answer = self.description.form(one);
            (own.unwrap_or_else(|| one.answer_type().to_owned()), answer)
        };
        let mut counts: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
        for place in places {
            let (kind, answer) = kind(*place);
            *counts.entry(kind).or_default().entry(answer).or_default() += 1.0;
        }
        let is_of_tail = |place: &usize| {
            let (kind, answer) = kind(*place);
            let counts = &counts[&kind];
            let mean = counts.values().sum::<f64>() / counts.len() as f64;
            (*place, counts[&answer] <= 1.2 * mean)
        };
        places.iter().map(is_of_tail).collect()
    }

    fn metrics_of(&self, scoring: Scoring<'_>, places: &[usize], scored: &str) -> Vec<Metric> {
        let asked: Vec<&super::Asked> = self.asked().collect();
        let subset = |name: String, wanted: &dyn Fn(usize) -> bool| Subset {
            name: Some(name),
            places: places.iter().copied().filter(|place| wanted(*place)).collect(),
        };
        let mut subsets = vec![Subset { name: None, places: places.to_vec() }];
        for closed in [true, false] {
            let name = format!("answer_type={}", type_name(closed));
            subsets.push(subset(name, &|place| asked[place].closed == closed));
        }
        if let Some(routed) = &self.routed {
            for closed in [true, false] {
                let name = format!("routed_type={}", type_name(closed));
                subsets.push(subset(name, &|place| routed[place] == closed));
            }
        }
        // A question of several types counts in each of them.
        let types: BTreeSet<&String> =
            places.iter().flat_map(|place| &asked[*place].question_types).collect();
        for one in types {
            let name = format!("question_type={one}");
            subsets.push(subset(name, &|place| asked[place].question_types.contains(one)));
        }
        let tail = self.is_of_tail(places);
        for (name, is_tail) in [("head", false), ("tail", true)] {
            subsets.push(subset(format!("answer_frequency={name}"), &|place| {
                tail.get(&place) == Some(&is_tail)
            }));
        }
        for has_twin in [true, false] {
            let is_so = |place: usize| asked[place].training_twin == Some(has_twin);
            subsets.push(subset(format!("{TRAINING_TWIN}={has_twin}"), &is_so));
            for closed in [true, false] {
                let name = format!("{TRAINING_TWIN}={has_twin},answer_type={}", type_name(closed));
                subsets.push(subset(name, &|place| is_so(place) && asked[place].closed == closed));
            }
        }
        subsets.retain(|subset| !subset.places.is_empty());
        let correct: Vec<f64> =
            self.correct().into_iter().map(|correct| f64::from(u8::from(correct))).collect();
        let possible: Vec<f64> =
            self.labels().iter().map(|label| f64::from(u8::from(label.is_some()))).collect();
        // Questions about one image are drawn together.
        let groups: Vec<Option<String>> =
            asked.iter().map(|one| Some(self.examples.images[one.image].id.clone())).collect();
        let accuracy = |subset: &Subset, weights: &[f64]| {
            let pick = |values: &[f64]| subset.places.iter().map(|place| values[*place]).collect::<Vec<_>>();
            mean(&pick(&correct), &pick(weights))
        };
        let estimates = bootstrap_all(&Groups::new(&groups), scoring.seed as u64, |weights| {
            subsets.iter().map(|subset| accuracy(subset, weights)).collect()
        });
        let protocol = match scoring.protocol {
            Some(protocol) => format!("{protocol}/{scored}-{}", places.len()),
            None => format!("{scored}-{}", places.len()),
        };
        let metric = |name: &str, subset: &Subset, estimate: Option<Estimate>| {
            let mut metric = Metric::new(TASK, scoring.split, name, estimate, subset.places.len());
            metric.seed = Some(scoring.seed);
            metric.protocol = Some(protocol.clone());
            metric.matching = Some(self.description.matching.name().to_owned());
            metric.modality = Some(self.description.modality.name().to_owned());
            metric.method = Some(self.description.architecture.name().to_owned());
            metric.subgroup.clone_from(&subset.name);
            metric
        };
        let mut metrics = Vec::new();
        for (subset, estimate) in subsets.iter().zip(estimates) {
            metrics.push(metric("accuracy", subset, estimate));
            let allowed = subset.places.iter().map(|place| possible[*place]).sum::<f64>();
            let ceiling = Estimate::exact(allowed / subset.places.len() as f64);
            metrics.push(metric("ceiling", subset, Some(ceiling)));
        }
        if let Some(routed) = &self.routed {
            let right = places.iter().filter(|place| routed[**place] == asked[**place].closed).count();
            let share = Estimate::exact(right as f64 / places.len() as f64);
            metrics.push(metric("type_accuracy", &subsets[0], Some(share)));
        }
        metrics
    }
}

/// What the metadata of a table of predictions calls how answers were compared.
pub(crate) const MATCHING: &str = "matching";

/// The task of the figures.
pub(crate) const TASK: &str = "vqa";

fn type_name(closed: bool) -> &'static str {
    if closed { "CLOSED" } else { "OPEN" }
}

/// The label that a model gives: the first of the greatest logits.
pub(crate) fn given(logits: &[f32]) -> usize {
    let mut best = 0;
    for (label, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = label;
        }
    }
    best
}

/// Labels by falling logit; of equals the first.
fn likeliest(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.truncate(CANDIDATES);
    order
}

fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + libm::exp(-f64::from(logit)))) as f32
}
