//! Charts as SVG: bars with intervals and curves. Colours come from the page's style sheet, so that they
//! follow light and dark; every chart stands beside the table of its numbers.

use maud::{Markup, html};

use super::figures::{Better, Figure, Group};
use super::vega_lite;
use super::words::{metric_name, number};
use crate::statistics::Confusion;

const WIDTH: f64 = 768.0;
const LABEL: f64 = 320.0;
/// Characters that fit there.
const LABEL_LENGTH: usize = 48;
const VALUE: f64 = 150.0;
const ROW: f64 = 24.0;

/// Rows of a chart beyond this number are left to the table.
const MOST_ROWS: usize = 40;

/// A horizontal bar per row of the table, with its interval.
pub(super) fn bars(group: &Group, metric: &str) -> Markup {
    let values = group.values(metric);
    let left_out = values.len().saturating_sub(MOST_ROWS);
    let values = &values[..values.len().min(MOST_ROWS)];
    let ends = values.iter().flat_map(|(_, figure)| [figure.value, figure.low, figure.high]).flatten();
    let (lowest, highest) = ends.fold((0.0f64, 0.0f64), |(low, high), end| (low.min(end), high.max(end)));
    // Shares are drawn on the whole of their scale.
    let top = if highest <= 1.0 && group.better(metric) != Better::Neither { 1.0 } else { highest };
    let span = (top - lowest).max(f64::MIN_POSITIVE);
    let plot = WIDTH - LABEL - VALUE;
    let x = |value: f64| LABEL + (value - lowest) / span * plot;
    let height = values.len() as f64 * ROW + 26.0;
    let best = group.best(metric);
    let title = format!("{} by {}", metric_name(metric), group.key_names.join(" and "));
    let bar = |(row, figure): &(usize, &Figure)| {
        let interval = figure.low.zip(figure.high);
        (group.rows[*row].label(), figure.value.unwrap_or(0.0), interval)
    };
    let saved = vega_lite::bars(&title, &metric_name(metric), &values.iter().map(bar).collect::<Vec<_>>());
    let ticks: Vec<f64> = (0..=4).map(|tick| lowest + span * f64::from(tick) / 4.0).collect();
    html! {
        figure .chart {
            svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(title) {
                title { (title) }
                @for tick in &ticks {
                    line .grid x1=(at(x(*tick))) x2=(at(x(*tick))) y1="0" y2=(at(height - 20.0)) {}
                    text .tick x=(at(x(*tick))) y=(at(height - 6.0)) text-anchor="middle" { (tick_text(*tick)) }
                }
                @for (place, (row, figure)) in values.iter().enumerate() {
                    @let y = place as f64 * ROW;
                    @let value = figure.value.unwrap_or(0.0);
                    @let (from, to) = if value < 0.0 { (value, 0.0) } else { (0.0, value) };
                    @let is_best = best.contains(row);
                    text x=(at(LABEL - 8.0)) y=(at(y + 16.0)) text-anchor="end" {
                        (shorten(&group.rows[*row].label(), LABEL_LENGTH))
                    }
                    rect .bar .best[is_best] x=(at(x(from))) y=(at(y + 5.0)) height="14"
                        width=(at((x(to) - x(from)).max(1.0))) {}
                    @if let (Some(low), Some(high)) = (figure.low, figure.high) {
                        path .interval d=(whisker(x(low), x(high), y + 12.0)) {}
                    }
                    text .value .best[is_best] x=(at(WIDTH - VALUE + 10.0)) y=(at(y + 16.0)) {
                        (number(value))
                        @if let (Some(low), Some(high)) = (figure.low, figure.high) {
                            " [" (number(low)) ", " (number(high)) "]"
                        }
                        @if is_best { " \u{2605}" }
                    }
                }
            }
            figcaption {
                (title) ". Bars with 95 % intervals where they were computed; \u{2605} marks the best."
                @if left_out > 0 { " " (left_out) " more rows are in the table." }
                " " (vega_lite::link(&title, &saved))
            }
        }
    }
}

/// A line of a curve chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    pub(super) label: String,
    /// Points in order of x.
    pub(super) points: Vec<(f64, f64)>,
}

/// The dash patterns that tell curves apart where colours do not.
const DASHES: [&str; 4] = ["none", "7 3", "2 3", "9 3 2 3"];
const COLOURS: usize = 6;

/// What a chart's axes span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// What the points span, wide.
    Free,
    /// The same, and each curve's last value stands beside its name.
    FreeToTheEnd,
    /// 0 to 1 on both, square.
    Unit,
}

/// What a chart of curves is called and spans.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axes {
    pub(super) title: String,
    /// The name of the x axis.
    pub(super) x: &'static str,
    pub(super) scale: Scale,
}

/// Curves over a common x axis, each named with its last value.
pub(super) fn curves(title: &str, x: &'static str, curves: &[Curve]) -> Markup {
    chart(&Axes { title: title.to_owned(), x, scale: Scale::FreeToTheEnd }, curves)
}

/// Curves over a common x axis, named in a legend.
pub(super) fn chart(axes: &Axes, curves: &[Curve]) -> Markup {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let range = |pick: fn(&(f64, f64)) -> f64| {
        points()
            .map(pick)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let is_unit = axes.scale == Scale::Unit;
    let ((left, right), (bottom, top)) = match is_unit {
        true => ((0.0, 1.0), (0.0, 1.0)),
        false => (range(|point| point.0), range(|point| point.1)),
    };
    if !(left.is_finite() && bottom.is_finite()) {
        return html! {};
    }
    let (width, plot_height) = if is_unit { (SQUARE, SQUARE - 60.0) } else { (WIDTH, 200.0) };
    let (plot_width, margin, title) = (width - 60.0, 50.0, &axes.title);
    let height = plot_height + 50.0;
    let x = |value: f64| margin + (value - left) / (right - left).max(f64::MIN_POSITIVE) * plot_width;
    let y = |value: f64| 8.0 + (top - value) / (top - bottom).max(f64::MIN_POSITIVE) * plot_height;
    html! {
        figure .chart .square[is_unit] {
            svg viewBox=(format!("0 0 {width} {height}")) role="img" aria-label=(title) {
                title { (title) }
                @for share in [0.0, 0.5, 1.0] {
                    @let value = bottom + (top - bottom) * share;
                    line .grid x1=(at(margin)) x2=(at(margin + plot_width)) y1=(at(y(value))) y2=(at(y(value))) {}
                    text .tick x=(at(margin - 6.0)) y=(at(y(value) + 4.0)) text-anchor="end" { (number(value)) }
                }
                @for share in [0.0, 0.5, 1.0] {
                    @let value = left + (right - left) * share;
                    text .tick x=(at(x(value))) y=(at(plot_height + 26.0))
                        text-anchor=(if share == 1.0 { "end" } else { "middle" }) { (tick_text(value)) }
                }
                text .tick x=(at(margin + plot_width / 2.0)) y=(at(plot_height + 44.0)) text-anchor="middle" { (axes.x) }
                @for (index, curve) in curves.iter().enumerate() {
                    @let path: Vec<String> =
                        curve.points.iter().map(|point| format!("{},{}", at(x(point.0)), at(y(point.1)))).collect();
                    polyline class=(format!("curve c{}", index % COLOURS)) points=(path.join(" "))
                        stroke-dasharray=(DASHES[index / COLOURS % DASHES.len()]) {}
                }
            }
            figcaption { (title) " " (vega_lite::link(title, &vega_lite::curves(axes, curves))) }
            ul .legend {
                @for (index, curve) in curves.iter().enumerate() {
                    li {
                        svg viewBox="0 0 30 8" class="swatch" aria-hidden="true" {
                            line class=(format!("curve c{}", index % COLOURS)) x1="0" x2="30" y1="4" y2="4"
                                stroke-dasharray=(DASHES[index / COLOURS % DASHES.len()]) {}
                        }
                        " " (curve.label)
                        @if axes.scale == Scale::FreeToTheEnd && let Some((_, last)) = curve.points.last() {
                            ": " (number(*last)) " at the end"
                        }
                    }
                }
            }
        }
    }
}

/// The side of a square chart.
const SQUARE: f64 = 380.0;

/// Characters of a class's name in a matrix.
const CLASS_LENGTH: usize = 16;

/// Counts of true classes (rows) and predicted ones (columns): the darker, the greater the share of the row.
pub(super) fn matrix(label: &str, names: &[String], confusion: &Confusion) -> Markup {
    let classes = names.len();
    let (left, top) = (110.0, 26.0);
    let cell = (SQUARE - left) / classes.max(1) as f64;
    let total = |truth: usize| (0..classes).map(|class| confusion.count(truth, class)).sum::<f64>();
    let title = format!("{label}: confusion");
    let height = top + cell * classes as f64 + 4.0;
    // Numbers that would not fit are left to the titles of the cells.
    let has_numbers = cell >= 22.0;
    html! {
        figure .chart .square {
            svg viewBox=(format!("0 0 {SQUARE} {}", at(height))) role="img" aria-label=(title) {
                title { (title) }
                @for truth in 0..classes {
                    @let y = top + cell * truth as f64;
                    text .tick x=(at(left - 6.0)) y=(at(y + cell / 2.0 + 4.0)) text-anchor="end" {
                        (shorten(&names[truth], CLASS_LENGTH))
                    }
                    text .tick x=(at(left + cell * (truth as f64 + 0.5))) y="18" text-anchor="middle" {
                        (shorten(&names[truth], ((cell / 7.0) as usize).max(1)))
                    }
                    @for class in 0..classes {
                        @let count = confusion.count(truth, class);
                        @let share = if total(truth) > 0.0 { count / total(truth) } else { 0.0 };
                        @let x = left + cell * class as f64;
                        rect .cell x=(at(x)) y=(at(y)) width=(at(cell)) height=(at(cell))
                            fill-opacity=(format!("{share:.2}")) {
                            title { (names[truth]) " taken for " (names[class]) ": " (count) }
                        }
                        @if has_numbers {
                            text .count .dark[share > 0.5] x=(at(x + cell / 2.0)) y=(at(y + cell / 2.0 + 4.0))
                                text-anchor="middle" { (count) }
                        }
                    }
                }
            }
            figcaption { (title) " " (vega_lite::link(&title, &vega_lite::matrix(&title, names, confusion))) }
        }
    }
}

/// A place on an axis: whole numbers without decimals, others without noughts at their end.
fn tick_text(value: f64) -> String {
    match number(value) {
        text if text.contains('.') && !text.contains('e') => {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        text => text,
    }
}

fn whisker(from: f64, to: f64, y: f64) -> String {
    let [from, to, y, above, below] = [from, to, y, y - 4.0, y + 4.0].map(at);
    format!("M{from} {y}H{to}M{from} {above}V{below}M{to} {above}V{below}")
}

/// A coordinate, with one decimal.
fn at(value: f64) -> String {
    format!("{value:.1}")
}

fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most - 1).collect();
    short.push('\u{2026}');
    short
}
