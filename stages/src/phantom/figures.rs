//! The table of what must be found.

use std::collections::BTreeMap;

use super::captions::{Caption, Fact};
use super::expected::{Expected, label_noise, marker_only, random_map, retrieval};
use super::factors::Subject;
use super::labels;
use super::language_prior::{LanguagePrior, image_only, lookup};
use super::params::{Domain, Params, Task};
use super::places::{TEST, TRAIN, VAL};
use super::questions::Question;
use super::rows::{Area, Row, World, knobs};
use super::sites::FINDINGS;
use crate::table::{Column, Table};

/// The figures that the planted truths of these rows imply.
pub(super) fn table(world: &World<'_>, rows: &[Row]) -> Table {
    let mut all: Vec<Expected> = Vec::new();
    for split in [TRAIN, VAL, TEST] {
        let of_split: Vec<&Row> = rows.iter().filter(|row| row.place.split == split).collect();
        if of_split.is_empty() {
            continue;
        }
        all.extend(copies(split, &of_split));
        if split == TRAIN {
            continue;
        }
        let pool: Vec<(Vec<Fact>, Caption)> =
            of_split.iter().map(|row| (row.facts.clone(), row.caption.clone())).collect();
        all.extend(retrieval(split, &pool));
        all.extend(classification(world.params, split, &of_split));
        all.extend(localisation(split, &of_split));
        if world.params.has_questions() {
            all.extend(answers(world, split, rows, &of_split));
        }
    }
    expected_table(&all)
}

/// Figures as a table.
pub(super) fn expected_table(all: &[Expected]) -> Table {
    let number =
        |value: &dyn Fn(&Expected) -> f64| Column::Float64(all.iter().map(|one| Some(value(one))).collect());
    Table::new()
        .with("quantity", Column::texts(all.iter().map(|one| one.quantity.clone())))
        .with("split", Column::texts(all.iter().map(|one| one.split)))
        .with("subset", Column::texts(all.iter().map(|one| one.subset.clone())))
        .with("value", number(&|one| one.value))
        .with("lower", number(&|one| one.value - 3.0 * one.error))
        .with("upper", number(&|one| one.value + 3.0 * one.error))
        .with("formula", Column::texts(all.iter().map(|one| one.formula)))
}

/// How many copies were planted: what `checks` has to find.
fn copies(split: &'static str, rows: &[&Row]) -> Vec<Expected> {
    let count = |quantity: &str, planted: &dyn Fn(&Row) -> bool, formula| {
        let rows = rows.iter().filter(|row| planted(row)).count();
        Expected::exact(quantity, split, rows as f64, formula)
    };
    let repeats = |row: &Row| row.place.duplicate_of.is_some();
    let mut all = vec![count("repeated images", &repeats, "rows with `truth_duplicate_of`")];
    if split == TEST {
        let copy = |row: &Row| row.place.leak_of.is_some() && !row.place.near;
        let near = |row: &Row| row.place.near;
        all.push(count("copies of training images", &copy, "rows with `truth_leak_of` and the same `sha`"));
        all.push(count(
            "other images of training patients",
            &near,
            "rows with `truth_leak_of` and the same `group_id`",
        ));
    }
    all
}

fn classification(params: &Params, split: &'static str, rows: &[&Row]) -> Vec<Expected> {
    let mut all = Vec::new();
    let probabilities = labels::probabilities(params, &knobs(params, false));
    let eta = params.label_noise_test;
    let binary = params.domain == Domain::Medical && params.task == Task::Abnormal;
    let multi_label = labels::is_multi_label(params);
    let leak = if split == TEST { params.leak } else { 0.0 };
    let rho = (1.0 - leak) * params.shortcut_test + leak * params.shortcut_train;
    match params.shortcut_target.finding() {
        None if binary => {
            let noise = (eta > 0.0).then_some((eta, 1.0 - params.p_normal));
            all.extend(marker_only(split, "all", rho, noise));
        }
        Some(finding) if !binary && eta == 0.0 => {
            all.extend(marker_only(split, FINDINGS[finding], rho, None));
        }
        _ => {}
    }
    if eta > 0.0 {
        let positive = match &probabilities {
            Some(shares) if multi_label => shares.clone(),
            Some(shares) if binary => shares[1..].to_vec(),
            _ => Vec::new(),
        };
        all.extend(label_noise(split, eta, &positive));
    }
    let majority = if multi_label { most_frequent_bits(rows) } else { most_frequent_class(rows) };
    let formula = "largest share of a class; of bits, their mean";
    all.push(Expected::exact("majority accuracy", split, majority, formula));
    if let Some(shares) = probabilities {
        let others = if multi_label { 1.0 } else { shares.len() as f64 - 1.0 };
        let noisy = |p: f64| (1.0 - eta) * p + eta * (1.0 - p) / others;
        let value = if multi_label {
            shares.iter().map(|p| noisy(*p).max(1.0 - noisy(*p))).sum::<f64>() / shares.len() as f64
        } else {
            shares.iter().map(|p| noisy(*p)).fold(0.0, f64::max)
        };
        let count = rows.len() as f64;
        all.push(Expected {
            error: (value * (1.0 - value) / count).sqrt(),
            ..Expected::exact(
                "majority accuracy of the generator",
                split,
                value,
                "largest probability of a class",
            )
        });
    }
    all
}

fn most_frequent_class(rows: &[&Row]) -> f64 {
    let mut counts = BTreeMap::new();
    rows.iter().for_each(|row| *counts.entry(&row.label).or_insert(0usize) += 1);
    counts.values().max().copied().unwrap_or_default() as f64 / rows.len() as f64
}

fn most_frequent_bits(rows: &[&Row]) -> f64 {
    let bits = rows[0].label.len();
    let share = |bit: usize| rows.iter().filter(|row| row.label[bit] == 1).count() as f64 / rows.len() as f64;
    (0..bits).map(|bit| share(bit).max(1.0 - share(bit))).sum::<f64>() / bits as f64
}

fn localisation(split: &'static str, rows: &[&Row]) -> Vec<Expected> {
    let masked = |wanted: &dyn Fn(&Subject) -> bool| -> Vec<Area> {
        let wanted = |row: &&&Row| row.area.inside > 0 && row.source.subject().is_none_or(wanted);
        rows.iter().filter(wanted).map(|row| row.area).collect()
    };
    let focal = |subject: &Subject| subject.findings.iter().all(|one| one.name() != "cardiomegaly");
    let subsets = [("all", masked(&|_| true)), ("focal", masked(&focal))];
    subsets
        .iter()
        .filter(|(_, areas)| !areas.is_empty())
        .flat_map(|(subset, areas)| random_map(split, subset, areas))
        .collect()
}

fn answers<'a>(
    world: &World<'_>,
    split: &'static str,
    rows: &'a [Row],
    of_split: &[&'a Row],
) -> Vec<Expected> {
    let (training, test) = (world.language(true), world.language(false));
    let here = asked(of_split.iter().copied());
    if here.is_empty() {
        return Vec::new();
    }
    let questions: Vec<&Question> = here.iter().map(|(question, _)| *question).collect();
    let prior = LanguagePrior::new(&knobs(world.params, false), training, test);
    let mut all = prior.question_only(split, &questions);
    let words = |asked: Vec<(&'a Question, &'a str)>| -> Vec<(&'a str, &'static str)> {
        asked.into_iter().map(|(question, text)| (text, question.answer())).collect()
    };
    let train = words(asked(rows.iter().filter(|row| row.place.is_training())));
    all.extend(lookup(split, &train, &words(here)));
    let subjects: Vec<(&Subject, &[Question])> =
        of_split.iter().filter_map(|row| Some((row.source.subject()?, row.questions.as_slice()))).collect();
    all.extend(image_only(split, test, &subjects));
    all.push(Expected::exact("multimodal accuracy", split, 1.0, "image and question decide the answer"));
    all
}

/// The questions about rows, with their texts: a paraphrase is a question of its own.
fn asked<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<(&'a Question, &'a str)> {
    let texts = |question: &'a Question| {
        let texts = [Some(question.text.as_str()), question.paraphrase.as_deref()];
        texts.into_iter().flatten().map(move |text| (question, text))
    };
    rows.flat_map(|row| &row.questions).flat_map(texts).collect()
}
