//! A graph as SVG: columns by the longest way from a source, boxes in the order of their producers.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// A box of the picture.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Its first line.
    pub name: String,
    /// Its second line.
    pub words: Option<String>,
    /// Its colour, where it is not that of all.
    pub fill: Option<&'static str>,
}

/// The colours of a picture, as CSS has them.
#[derive(Clone, Copy, Debug)]
pub struct Colours {
    /// Behind everything.
    pub paper: &'static str,
    /// Of boxes.
    pub fill: &'static str,
    /// Of the lines around boxes.
    pub frame: &'static str,
    /// Of the lines between them.
    pub line: &'static str,
    /// Of words.
    pub ink: &'static str,
}

impl Colours {
    /// Of a picture that stands alone.
    pub const ALONE: Self =
        Self { paper: "#ffffff", fill: "#e6eef8", frame: "#334455", line: "#667788", ink: "#112233" };
}

/// The width of a character of the font, about; boxes are made for the widest.
const CHARACTER: f64 = 7.2;
const PADDING: f64 = 10.0;
const LINE: f64 = 16.0;
const GAP: f64 = 14.0;
const BETWEEN: f64 = 56.0;

/// Draws boxes, of which each comes behind those that an edge `(from, to)` leads from.
pub fn svg(boxes: &[Drawn], edges: &BTreeSet<(usize, usize)>, colours: Colours) -> String {
    let count = boxes.len();
    let mut producers: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (from, to) in edges {
        producers[*to].push(*from);
    }
    let mut column = vec![0usize; count];
    let mut columns: Vec<Vec<usize>> = Vec::new();
    for index in 0..count {
        column[index] = producers[index].iter().map(|from| column[*from] + 1).max().unwrap_or(0);
        columns.resize(columns.len().max(column[index] + 1), Vec::new());
        columns[column[index]].push(index);
    }
    let width = |index: usize| {
        let one = &boxes[index];
        let words = one.words.as_ref().map_or(0, |words| words.chars().count());
        one.name.chars().count().max(words) as f64 * CHARACTER + 2.0 * PADDING
    };
    let lines = if boxes.iter().any(|one| one.words.is_some()) { 2.0 } else { 1.0 };
    let height = lines * LINE + PADDING;
    let mut place = vec![(0.0, 0.0); count];
    let mut left = GAP;
    let mut bottom: f64 = 0.0;
    for mut members in columns {
        let mean = |index: usize| -> f64 {
            let from = &producers[index];
            let sum: f64 = from.iter().map(|from| place[*from].1).sum();
            if from.is_empty() { 0.0 } else { sum / from.len() as f64 }
        };
        members.sort_by(|a, b| mean(*a).total_cmp(&mean(*b)).then(a.cmp(b)));
        for (row, index) in members.iter().enumerate() {
            place[*index] = (left, GAP + row as f64 * (height + GAP));
            bottom = bottom.max(place[*index].1 + height);
        }
        left += members.iter().map(|index| width(*index)).fold(0.0, f64::max) + BETWEEN;
    }
    let (all_width, all_height) = ((left - BETWEEN + GAP).max(1.0), bottom + GAP);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{all_width:.0}\" height=\"{all_height:.0}\" viewBox=\"0 0 {all_width:.0} {all_height:.0}\" font-family=\"monospace\" font-size=\"12\">\n"
    );
    let Colours { paper, fill, frame, line, ink } = colours;
    let _ = writeln!(text, "<rect width=\"100%\" height=\"100%\" style=\"fill:{paper}\"/>");
    for (from, to) in edges {
        let (x1, y1) = (place[*from].0 + width(*from), place[*from].1 + height / 2.0);
        let (x2, y2) = (place[*to].0, place[*to].1 + height / 2.0);
        let middle = (x1 + x2) / 2.0;
        let _ = writeln!(
            text,
            "<path d=\"M{x1:.1} {y1:.1}C{middle:.1} {y1:.1} {middle:.1} {y2:.1} {x2:.1} {y2:.1}\" style=\"fill:none;stroke:{line}\"/>"
        );
    }
    for (index, one) in boxes.iter().enumerate() {
        let (x, y) = place[index];
        let fill = one.fill.unwrap_or(fill);
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" rx=\"4\" style=\"fill:{fill};stroke:{frame}\"/>",
            width(index)
        );
        for (row, content) in std::iter::once(&one.name).chain(&one.words).enumerate() {
            let baseline = y + PADDING / 2.0 + row as f64 * LINE + 12.0;
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{baseline:.1}\" style=\"fill:{ink}\">{}</text>",
                x + PADDING,
                escape(content)
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
