//! The sample browser: what each model said of each sample, those that the models disagree about first.

use std::collections::{BTreeMap, BTreeSet};

use image::imageops::FilterType;
use maud::{Markup, html};
use pipe_engine::StageError;

use super::collect::{Collected, Given, for_each_batch};
use super::columns::{integer_lists, texts};
use super::gallery::Samples as _;
use super::picture::decode;
use super::pictures::Pictures;
use super::predicted::labels;
use super::words::title;
use crate::artifact;

/// The longer side of a picture in the table, in pixels.
const SIDE: u32 = 64;

/// Columns that a table of predictions may have.
const COLUMNS: [&str; 10] = [
    "id",
    "split",
    "image",
    "target",
    "prediction",
    "correct",
    "answer",
    "predicted_answer",
    "question",
    "condition",
];

/// What one model said of a sample.
#[derive(Clone, Debug)]
struct Said {
    text: String,
    right: Option<bool>,
}

/// A sample, with what each model said of it, in the order of the models.
#[derive(Debug)]
struct Sample {
    image: String,
    question: Option<String>,
    target: String,
    said: Vec<Option<Said>>,
}

/// Which samples: data set, split, id.
type Key = (String, String, String);

impl Sample {
    /// Words for the filter: `right` or `wrong` if all models are, `mixed` and `disagree` if they are not of one mind.
    fn state(&self) -> &'static str {
        let known: Vec<bool> = self.said.iter().flatten().filter_map(|said| said.right).collect();
        let texts: BTreeSet<&str> = self.said.iter().flatten().map(|said| said.text.as_str()).collect();
        let right = known.iter().filter(|right| **right).count();
        match (right, texts.len() > 1) {
            _ if known.is_empty() => "unknown",
            (0, false) => "wrong",
            (0, true) => "wrong disagree",
            (count, _) if count == known.len() => "right",
            _ => "mixed disagree",
        }
    }

    /// The order of the table: what models disagree about, then what none knows, then the rest.
    fn rank(&self) -> u8 {
        match self.state() {
            "mixed disagree" => 0,
            "wrong disagree" => 1,
            "wrong" => 2,
            _ => 3,
        }
    }
}

/// A browser for each input of predictions, with at most `limit` samples.
///
/// # Errors
/// If a table cannot be read.
pub(super) fn samples(
    collected: &Collected,
    limit: usize,
    pictures: &mut Pictures,
) -> Result<Vec<Markup>, StageError> {
    let mut by_input: BTreeMap<&str, Vec<&Given>> = BTreeMap::new();
    for given in collected.of_type(artifact::PREDICTIONS) {
        by_input.entry(&given.input).or_default().push(given);
    }
    let mut parts = Vec::new();
    for (input, givens) in by_input.into_iter().filter(|_| limit > 0) {
        let models = labels(&givens, |given| &given.axes);
        let mut found: BTreeMap<Key, Sample> = BTreeMap::new();
        for (place, given) in givens.iter().enumerate() {
            read(given, (place, givens.len()), &mut found)?;
        }
        if found.is_empty() {
            continue;
        }
        let total = found.len();
        let mut chosen: Vec<(Key, Sample)> = found.into_iter().collect();
        chosen.sort_by(|left, right| (left.1.rank(), &left.0).cmp(&(right.1.rank(), &right.0)));
        chosen.truncate(limit);
        let ids: BTreeSet<String> = chosen.iter().map(|(_, sample)| sample.image.clone()).collect();
        let mut images = BTreeMap::new();
        for given in &givens {
            let missing: BTreeSet<String> =
                ids.iter().filter(|id| !images.contains_key(*id)).cloned().collect();
            if !missing.is_empty() {
                images.extend(collected.images(&given.axes, &missing)?);
            }
        }
        let mut sources: BTreeMap<String, String> = BTreeMap::new();
        for (id, bytes) in images {
            if let Some(picture) = decode(&bytes) {
                let small = picture.width().max(picture.height()) <= SIDE;
                let picture = if small { picture } else { picture.resize(SIDE, SIDE, FilterType::Triangle) };
                sources.insert(id, pictures.source(&picture.to_rgb8()));
            }
        }
        parts.push(browser(input, &models, &chosen, total, &sources));
    }
    Ok(parts)
}

/// Adds what one model said. Of an ablation only the model with all its inputs is asked.
fn read(
    given: &Given,
    (place, models): (usize, usize),
    found: &mut BTreeMap<Key, Sample>,
) -> Result<(), StageError> {
    let dataset = given.axes.get("dataset").cloned().unwrap_or_default();
    for_each_batch(&given.artifact, &COLUMNS, |metadata, batch| {
        let names: Vec<String> =
            metadata.get("label_names").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let [ids, splits, images, answers, given_answers, questions, conditions] =
            ["id", "split", "image", "answer", "predicted_answer", "question", "condition"]
                .map(|name| texts(batch, name));
        let [targets, predictions] = ["target", "prediction"].map(|name| integer_lists(batch, name));
        let correct = texts(batch, "correct");
        for (row, id) in ids.into_iter().enumerate() {
            let is_whole = conditions[row].as_deref().is_none_or(|condition| condition == "full");
            let (Some(id), true) = (id, is_whole) else { continue };
            let classes = |classes: &Option<Vec<i64>>| Some(class_names(classes.as_ref()?, &names));
            // Of a classifier `answer` is what it says, of a question what is right.
            let is_question = given_answers[row].is_some();
            let truth = if is_question { answers[row].clone() } else { classes(&targets[row]) };
            let Some(said) = given_answers[row].clone().or_else(|| classes(&predictions[row])) else {
                continue;
            };
            let key = (dataset.clone(), splits[row].clone().unwrap_or_default(), id.clone());
            let sample = found.entry(key).or_insert_with(|| Sample {
                image: images[row].clone().unwrap_or(id),
                question: questions[row].clone(),
                target: truth.unwrap_or_else(|| "\u{2013}".to_owned()),
                said: vec![None; models],
            });
            sample.said[place] =
                Some(Said { text: said, right: correct[row].as_ref().map(|correct| correct == "true") });
        }
    })
}

/// The names of the classes of a list: one class, or those whose bit is set.
fn class_names(classes: &[i64], names: &[String]) -> String {
    let name = |class: usize| names.get(class).cloned().unwrap_or_else(|| format!("class {class}"));
    if let [class] = classes {
        return usize::try_from(*class).map_or_else(|_| "\u{2013}".to_owned(), name);
    }
    let present = classes.iter().enumerate().filter(|(_, bit)| **bit == 1).map(|(class, _)| name(class));
    let present: Vec<String> = present.collect();
    if present.is_empty() { "none".to_owned() } else { present.join(", ") }
}

fn browser(
    input: &str,
    models: &[String],
    chosen: &[(Key, Sample)],
    total: usize,
    sources: &BTreeMap<String, String>,
) -> Markup {
    let id = format!("samples-of-{}", input.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    let kinds: BTreeSet<&str> = chosen.iter().map(|(_, sample)| sample.target.as_str()).collect();
    let has_questions = chosen.iter().any(|(_, sample)| sample.question.is_some());
    let several = |part: fn(&Key) -> &String| {
        chosen.iter().map(|(key, _)| part(key)).collect::<BTreeSet<_>>().len() > 1
    };
    let (datasets, splits) = (several(|key| &key.0), several(|key| &key.1));
    let states = [
        ("", "all"),
        ("disagree", "models disagree"),
        ("mixed", "some models are right, some wrong"),
        ("wrong", "all models are wrong"),
        ("right", "all models are right"),
    ];
    html! {
        h3 { (title(input)) ", sample by sample" }
        p .note {
            @if chosen.len() < total {
                "The first " (chosen.len()) " of " (total) " samples: what models disagree about, then what all are wrong about, \
                 then the rest, by id."
            } @else {
                "All " (total) " samples: what models disagree about first, then what all are wrong about, then the rest, by id."
            }
        }
        form .filter hidden data-of=(id) aria-label="Filter of samples" {
            label { "truth " select name="kind" {
                option value="" { "all" }
                @for kind in &kinds { option value=(kind) { (kind) } }
            } }
            label { "models " select name="state" {
                @for (value, words) in states { option value=(value) { (words) } }
            } }
            label { "text " input type="search" name="text" size="16"; }
            output {}
        }
        div .scroll .tall tabindex="0" role="region" aria-label=(format!("Samples of {}", title(input))) {
            table id=(id) {
                caption { "\u{2713} right, \u{2717} wrong" }
                thead {
                    tr {
                        @if !sources.is_empty() { th scope="col" { "picture" } }
                        th scope="col" { "sample" }
                        @if datasets { th scope="col" { "data set" } }
                        @if splits { th scope="col" { "split" } }
                        @if has_questions { th scope="col" { "question" } }
                        th scope="col" { "truth" }
                        @for model in models {
                            th scope="col" { @if model.is_empty() { "model" } @else { (model) } }
                        }
                    }
                }
                tbody {
                    @for ((dataset, split, id), sample) in chosen.iter().map(|(key, sample)| ((&key.0, &key.1, &key.2), sample)) {
                        tr data-kind=(sample.target) data-state=(sample.state()) {
                            @if !sources.is_empty() {
                                td {
                                    @if let Some(source) = sources.get(&sample.image) {
                                        img .thumbnail src=(source) alt=(format!("sample {id}")) loading="lazy";
                                    }
                                }
                            }
                            th scope="row" { (id) }
                            @if datasets { td { (dataset) } }
                            @if splits { td { (split) } }
                            @if has_questions { td { (sample.question.as_deref().unwrap_or("\u{2013}")) } }
                            td { (sample.target) }
                            @for said in &sample.said {
                                td {
                                    @match said {
                                        None => { "\u{2013}" },
                                        Some(said) => {
                                            (said.text)
                                            @match said.right {
                                                Some(true) => { " \u{2713}" },
                                                Some(false) => { " \u{2717}" },
                                                None => {},
                                            }
                                        },
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
