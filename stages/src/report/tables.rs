//! Tables of figures, and the sentences that answer first.

use maud::{Markup, html};

use super::figures::{Better, Figure, Group, GroupRow, headline, headline_difference, names_control};
use super::scores::{RIGHT, SAMPLES};
use super::seeds::over_seeds;
use super::words::{metric_name, number, title};

/// The sentences above everything: per table the best row, its interval, and how clear the lead is; then
/// what one modality alone reaches, and what the explanations point at.
pub(super) fn answers(performance: &[Group], bias: &[Group], scores: &[Group], all: &[Figure]) -> Markup {
    let mut answers: Vec<Markup> = performance
        .iter()
        .filter_map(|group| answer(group, all).or_else(|| difference_answer(group)))
        .collect();
    answers.extend(bias.iter().filter_map(bias_answer));
    answers.extend(scores.iter().filter_map(transparency_answer));
    html! {
        @if answers.is_empty() {
            p { "No figures were given to this report." }
        } @else {
            ul .answers { @for answer in &answers { li { (answer) } } }
        }
    }
}

/// So many rows of a table are told in a sentence; the table has the others.
const TOLD: usize = 3;

/// What is said of the rows behind those that are told.
fn untold(count: usize) -> Markup {
    html! { @if count > TOLD { "; " (count - TOLD) " more in the table" } "." }
}

/// The best row and the runner-up. What `compare` found of the two on the same samples decides how clear the lead
/// is; without it there are their intervals alone.
fn answer(group: &Group, all: &[Figure]) -> Option<Markup> {
    let metric = headline(group.rows.iter().flat_map(|row| row.figures.values()))?;
    let mut values = group.values(&metric);
    let direction = group.better(&metric);
    let descending = direction != Better::Lower;
    values.sort_by(|left, right| {
        let (left, right) = (left.1.value.unwrap_or(0.0), right.1.value.unwrap_or(0.0));
        if descending { right.total_cmp(&left) } else { left.total_cmp(&right) }
    });
    let (first, figure) = *values.first()?;
    let second = values.get(1);
    Some(html! {
        b { (heading(group)) ": " }
        @if second.is_some() { "best is " }
        b { (group.rows[first].label()) }
        ", " (metric_name(&metric)) " " (cell_text(figure))
        @if let Some(n) = figure.n { " (n = " (n) ")" }
        @if let Some((row, runner_up)) = second {
            ", before " (group.rows[*row].label()) " with " (cell_text(runner_up))
            @if let Some(paired) = paired(group, &metric, [first, *row], all) {
                "; on the same samples the difference is " (difference_text(paired)) ", "
                @match lead(paired, direction) {
                    Some(true) => "whose interval leaves out 0: the lead is clear",
                    Some(false) => "whose interval holds 0: the two are not told apart",
                    None => "without an interval",
                }
            } @else {
                @match (figure.low, figure.high, runner_up.low, runner_up.high) {
                    (Some(low), Some(high), Some(other_low), Some(other_high)) => {
                        @if low > other_high || high < other_low { "; the intervals do not overlap" }
                        @else { "; the intervals overlap" }
                    },
                    _ => {},
                }
            }
        }
        "."
    })
}

/// What `compare` found, where nothing else is in the table: differences on the same samples.
fn difference_answer(group: &Group) -> Option<Markup> {
    let metric = headline_difference(group.rows.iter().flat_map(|row| row.figures.values()))?;
    let values = group.values(&metric);
    Some(html! {
        b { (heading(group)) ": " }
        @for (place, (row, figure)) in values.iter().take(TOLD).enumerate() {
            @if place > 0 { "; " }
            (metric_name(&metric)) " of " b { (compared(&group.rows[*row], figure)) } " " (cell_text(figure))
            @match figure.low.zip(figure.high) {
                Some((low, high)) if low > 0.0 || high < 0.0 => ", which leaves out 0",
                Some(_) => ", which holds 0",
                None => {},
            }
        }
        (untold(values.len()))
    })
}

/// What was compared: the pair, and in what this row differs from others beside that.
fn compared(row: &GroupRow, figure: &Figure) -> String {
    let mut parts: Vec<&str> = row.keys.iter().flatten().map(String::as_str).collect();
    if let Some(pair) = figure.keys.get("method") {
        parts.retain(|part| part != pair);
        parts.insert(0, pair);
    }
    parts.join(" \u{b7} ")
}

/// A difference with its interval, the best minus the runner-up.
type Paired = (f64, Option<[f64; 2]>);

/// What `compare` found of two rows in this metric.
fn paired(group: &Group, metric: &str, rows: [usize; 2], all: &[Figure]) -> Option<Paired> {
    let [first, second] = rows.map(|row| &group.rows[row]);
    let own = first.figures.get(metric)?;
    // Directions of retrieval are methods there, and part of the metric's name here.
    let method = group.key_of(first, "method");
    let names =
        [Some(format!("{metric}_difference")), method.map(|method| format!("{method}_{metric}_difference"))];
    let agree = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
    all.iter().find_map(|figure| {
        let is_same = names.iter().flatten().any(|name| *name == figure.metric)
            && agree(&figure.task, &group.task)
            && agree(&figure.split, &group.split)
            && (figure.dataset.is_none() || figure.dataset == group.dataset)
            && figure.n == own.n;
        let value = figure.value.filter(|_| is_same)?;
        let (minuend, subtrahend) = figure.keys.get("method")?.split_once(" - ")?;
        let means = |label: &str, row: &GroupRow, other: &GroupRow| means(group, label, row, other);
        let interval = figure.low.zip(figure.high);
        if means(minuend, first, second) && means(subtrahend, second, first) {
            return Some((value, interval.map(|(low, high)| [low, high])));
        }
        let is_reversed = means(minuend, second, first) && means(subtrahend, first, second);
        is_reversed.then(|| (-value, interval.map(|(low, high)| [-high, -low])))
    })
}

/// Whether what `compare` calls a model, its axis values joined, is this row: all in which it differs from the other
/// is in the name, and nothing is in the name that is not the row's, but the name of an input before the values.
fn means(group: &Group, label: &str, row: &GroupRow, other: &GroupRow) -> bool {
    let words: Vec<&str> = label.split('/').collect();
    let own: Vec<&str> =
        row.keys.iter().flatten().chain(group.constant.values()).map(String::as_str).collect();
    let mut differing =
        row.keys.iter().zip(&other.keys).filter(|(own, other)| own != other).map(|(own, _)| own);
    let unknown: Vec<usize> = (0..words.len()).filter(|place| !own.contains(&words[*place])).collect();
    let has_all = differing.all(|value| value.as_deref().is_some_and(|value| words.contains(&value)));
    has_all && (unknown.is_empty() || (unknown == [0] && words.len() > 1))
}

/// Whether the interval leaves out 0 on the side of the best; nothing without one.
fn lead((_, interval): Paired, direction: Better) -> Option<bool> {
    let [low, high] = interval?;
    Some(if direction == Better::Lower { high < 0.0 } else { low > 0.0 })
}

fn difference_text((value, interval): Paired) -> String {
    match interval {
        Some([low, high]) => format!("{} [{}, {}]", number(value), number(low), number(high)),
        None => number(value),
    }
}

/// What one modality alone reaches, in one sentence per table.
fn bias_answer(group: &Group) -> Option<Markup> {
    let metric = headline(group.rows.iter().flat_map(|row| row.figures.values()))?;
    let values = group.values(&metric);
    let ablations = group.ablations();
    if !ablations.is_empty() {
        return Some(ablation_answer(group, &metric, &ablations));
    }
    if values.is_empty() || values.len() > 8 {
        return None;
    }
    Some(html! {
        b { (heading(group)) ": " }
        (metric_name(&metric)) " of "
        @for (place, (row, figure)) in values.iter().enumerate() {
            @if place > 0 { "; " }
            (group.rows[*row].label()) " " (cell_text(figure))
        }
        "."
    })
}

/// What the full models reach, the best ones first, and what comes nearest to each with less to see.
fn ablation_answer(group: &Group, metric: &str, ablations: &[(usize, Vec<usize>)]) -> Markup {
    let value = |row: usize| group.rows[row].figures.get(metric).and_then(|figure| figure.value);
    let figure = |row: usize, metric: &str| group.rows[row].figures.get(metric);
    let nearest = |others: &[usize]| {
        let defined = others.iter().copied().filter(|row| value(*row).is_some());
        // Backwards, because of equal ones `max_by` takes the last.
        defined.rev().max_by(|a, b| value(*a).unwrap_or(0.0).total_cmp(&value(*b).unwrap_or(0.0)))
    };
    let mut best: Vec<_> = ablations.iter().collect();
    best.sort_by(|(a, _), (b, _)| value(*b).unwrap_or(0.0).total_cmp(&value(*a).unwrap_or(0.0)));
    html! {
        b { (heading(group)) ": " }
        @for (place, (full, others)) in best.iter().take(TOLD).enumerate() {
            @if place > 0 { "; " }
            (metric_name(metric)) " of " b { (group.rows[*full].label()) } " "
            (figure(*full, metric).map_or_else(|| "\u{2013}".to_owned(), cell_text))
            @if let Some(row) = nearest(others) {
                ", of what is given less to see at most " (group.rows[row].label()) " "
                (figure(row, metric).map_or_else(String::new, cell_text))
                @if let Some(gap) = figure(row, &format!("{metric}_gap")) {
                    " (gap " (cell_text(gap)) ")"
                }
            }
        }
        (untold(best.len()))
    }
}

/// How far the best explanation is from the best control.
fn transparency_answer(group: &Group) -> Option<Markup> {
    let known = ["pointing_game", "relevance_mass", "mass"];
    let metric = known.iter().find_map(|name| group.metrics.iter().find(|metric| metric.contains(name)))?;
    // Headlines are of samples that the model is right about, where these are known.
    let is_right = |(row, _): &(usize, &Figure)| group.key_of(&group.rows[*row], SAMPLES) == Some(RIGHT);
    let mut values = group.values(metric);
    if values.iter().any(is_right) {
        values.retain(is_right);
    }
    let greatest = |control: bool| {
        let rows = values.iter().copied().filter(|(row, _)| group.rows[*row].is_control() == control);
        // Backwards, because of equal ones `max_by` takes the last.
        rows.rev().max_by(|left, right| left.1.value.unwrap_or(0.0).total_cmp(&right.1.value.unwrap_or(0.0)))
    };
    let (row, figure) = greatest(false)?;
    Some(html! {
        b { (heading(group)) ": " }
        (metric_name(metric)) " is greatest for " b { (group.rows[row].label()) } ", " (cell_text(figure))
        @match greatest(true) {
            Some((control, other)) => {
                "; the greatest of the controls is " (group.rows[control].label()) " with " (cell_text(other))
            },
            None => "; no control was given beside it",
        }
        "."
    })
}

/// What a table is called: its input, task, data set and split.
pub(super) fn heading(group: &Group) -> String {
    let mut heading = title(&group.input);
    for part in [&group.task, &group.dataset, &group.split].into_iter().flatten() {
        if !heading.to_lowercase().contains(&part.to_lowercase()) {
            heading.push_str(", ");
            heading.push_str(part);
        }
    }
    heading
}

/// One table: a row per combination of keys, a column per metric.
pub(super) fn table(group: &Group, ranked: bool) -> Markup {
    let best: Vec<Vec<usize>> =
        group.metrics.iter().map(|metric| if ranked { group.best(metric) } else { Vec::new() }).collect();
    let constants = group.constants();
    html! {
        div .scroll tabindex="0" role="region" aria-label=(heading(group)) {
            table {
                caption {
                    (heading(group))
                    @if !constants.is_empty() { " (" (constants) ")" }
                    @if ranked && group.rows.len() > 1 { ". Best per column in bold and marked \u{2605}." }
                }
                thead {
                    tr {
                        @if group.key_names.is_empty() { th scope="col" { "of" } }
                        @for name in &group.key_names { th scope="col" { (title(name)) } }
                        @for metric in &group.metrics {
                            th scope="col" .number {
                                (metric_name(metric))
                                @match group.better(metric) {
                                    Better::Higher => {},
                                    Better::Lower => { " " span .arrow title="lower is better" { "\u{2193}" } },
                                    Better::Neither => {},
                                }
                            }
                        }
                        th scope="col" .number { "n" }
                    }
                }
                tbody {
                    @for (index, row) in group.rows.iter().enumerate() {
                        tr {
                            @if group.key_names.is_empty() { th scope="row" { (row.label()) } }
                            @for (place, (name, key)) in group.key_names.iter().zip(&row.keys).enumerate() {
                                @let text = key.as_deref().unwrap_or("\u{2013}");
                                @if place == 0 {
                                    th scope="row" { (text) (control_mark(name, text)) }
                                } @else {
                                    td { (text) (control_mark(name, text)) }
                                }
                            }
                            @for (metric, best) in group.metrics.iter().zip(&best) {
                                (cell(row.figures.get(metric), best.contains(&index)))
                            }
                            td .number { (counts(row.figures.values())) }
                        }
                    }
                }
            }
            (over_seeds(group, &heading(group)))
        }
    }
}

/// A model x data set table of one metric, for groups of one input that differ in the data set, and perhaps in the split.
pub(super) fn across_datasets(groups: &[&Group], metric: &str) -> Markup {
    let mut labels: Vec<String> = Vec::new();
    for row in groups.iter().flat_map(|group| &group.rows) {
        if !labels.contains(&row.label()) {
            labels.push(row.label());
        }
    }
    let best: Vec<Vec<usize>> = groups.iter().map(|group| group.best(metric)).collect();
    let has_splits = groups.iter().any(|group| group.split != groups[0].split);
    html! {
        div .scroll tabindex="0" role="region" aria-label=(format!("{} per data set", metric_name(metric))) {
            table {
                caption { (metric_name(metric)) " per data set. Best per column in bold and marked \u{2605}." }
                thead {
                    tr {
                        th scope="col" { "Model" }
                        @for group in groups {
                            th scope="col" .number {
                                (group.dataset.as_deref().unwrap_or("\u{2013}"))
                                @if has_splits { ", " (group.split.as_deref().unwrap_or("all")) }
                            }
                        }
                    }
                }
                tbody {
                    @for label in &labels {
                        tr {
                            th scope="row" { (label) }
                            @for (group, best) in groups.iter().zip(&best) {
                                @let row = group.rows.iter().position(|row| row.label() == *label);
                                @let figure = row.and_then(|row| group.rows[row].figures.get(metric));
                                (cell(figure, row.is_some_and(|row| best.contains(&row))))
                            }
                        }
                    }
                }
            }
        }
    }
}

fn control_mark(key: &str, value: &str) -> Markup {
    html! { @if names_control(key, value) { span .note { " (control)" } } }
}

pub(super) fn cell(figure: Option<&Figure>, best: bool) -> Markup {
    html! {
        td .number .best[best] {
            @match figure {
                None => { "\u{2013}" },
                Some(Figure { value: None, reason, .. }) => {
                    span .reason { (reason.as_deref().unwrap_or("not defined")) }
                },
                Some(figure) => {
                    @if best { b { (cell_text(figure)) } " \u{2605}" } @else { (cell_text(figure)) }
                    @if let Some(ceiling) = figure.ceiling {
                        br; span .note { "at most " (number(ceiling)) " possible" }
                    }
                },
            }
        }
    }
}

/// A value with its interval.
pub(super) fn cell_text(figure: &Figure) -> String {
    match (figure.value, figure.low, figure.high) {
        (Some(value), Some(low), Some(high)) => {
            format!("{} [{}, {}]", number(value), number(low), number(high))
        }
        (Some(value), _, _) => number(value),
        (None, _, _) => "\u{2013}".to_owned(),
    }
}

/// The sample counts of a row: one number, or the range.
fn counts<'a>(figures: impl Iterator<Item = &'a Figure>) -> String {
    let counts: Vec<i64> = figures.filter_map(|figure| figure.n).collect();
    match (counts.iter().min(), counts.iter().max()) {
        (Some(least), Some(most)) if least == most => least.to_string(),
        (Some(least), Some(most)) => format!("{least}\u{2013}{most}"),
        _ => "\u{2013}".to_owned(),
    }
}
