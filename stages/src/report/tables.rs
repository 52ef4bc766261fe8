//! Tables of figures, and the sentences that answer first.

use maud::{Markup, html};

use super::figures::{Better, Figure, Group, better, headline, names_control};
use super::words::{metric_name, number, title};

/// The sentences above everything: per table the best row, its interval, and how clear the lead is; then
/// what one modality alone reaches, and what the explanations point at.
pub(super) fn answers(performance: &[Group], bias: &[Group], scores: &[Group]) -> Markup {
    let mut answers: Vec<Markup> = performance.iter().filter_map(answer).collect();
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

fn answer(group: &Group) -> Option<Markup> {
    let metric = headline(group.rows.iter().flat_map(|row| row.figures.values()))?;
    let mut values = group.values(&metric);
    let descending = better(&metric) != Better::Lower;
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
            @match (figure.low, figure.high, runner_up.low, runner_up.high) {
                (Some(low), Some(high), Some(other_low), Some(other_high)) => {
                    @if low > other_high || high < other_low { "; the intervals do not overlap" }
                    @else { "; the intervals overlap" }
                },
                _ => {},
            }
        }
        "."
    })
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

/// What the full model reaches, and what comes nearest to it with less to see.
fn ablation_answer(group: &Group, metric: &str, ablations: &[(usize, Vec<usize>)]) -> Markup {
    let value = |row: usize| group.rows[row].figures.get(metric).and_then(|figure| figure.value);
    let figure = |row: usize, metric: &str| group.rows[row].figures.get(metric);
    let nearest = |others: &[usize]| {
        let defined = others.iter().copied().filter(|row| value(*row).is_some());
        // Backwards, because of equal ones `max_by` takes the last.
        defined.rev().max_by(|a, b| value(*a).unwrap_or(0.0).total_cmp(&value(*b).unwrap_or(0.0)))
    };
    html! {
        b { (heading(group)) ": " }
        @for (place, (full, others)) in ablations.iter().enumerate() {
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
        "."
    }
}

/// How far the best explanation is from the best control.
fn transparency_answer(group: &Group) -> Option<Markup> {
    let known = ["pointing_game", "relevance_mass", "mass"];
    let metric = known.iter().find_map(|name| group.metrics.iter().find(|metric| metric.contains(name)))?;
    let greatest = |control: bool| {
        let rows =
            group.values(metric).into_iter().filter(|(row, _)| group.rows[*row].is_control() == control);
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
                                @match better(metric) {
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
        }
    }
}

/// A model x data set table of one metric, for groups of one input that differ in the data set.
pub(super) fn across_datasets(groups: &[&Group], metric: &str) -> Markup {
    let mut labels: Vec<String> = Vec::new();
    for row in groups.iter().flat_map(|group| &group.rows) {
        if !labels.contains(&row.label()) {
            labels.push(row.label());
        }
    }
    let best: Vec<Vec<usize>> = groups.iter().map(|group| group.best(metric)).collect();
    html! {
        div .scroll tabindex="0" role="region" aria-label=(format!("{} per data set", metric_name(metric))) {
            table {
                caption { (metric_name(metric)) " per data set. Best per column in bold and marked \u{2605}." }
                thead {
                    tr {
                        th scope="col" { "Model" }
                        @for group in groups {
                            th scope="col" .number { (group.dataset.as_deref().unwrap_or("\u{2013}")) }
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

fn cell(figure: Option<&Figure>, best: bool) -> Markup {
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
