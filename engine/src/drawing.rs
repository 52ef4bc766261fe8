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

/// What stands in a column: a box, or the edges of one box on their way past.
#[derive(Clone, Copy)]
enum Slot {
    Box(usize),
    Pass(usize),
}

/// Room for edges that pass.
const PASS: f64 = 4.0;

/// Draws boxes, of which each comes behind those that an edge `(from, to)` leads from. Edges lead around boxes, those of one box
/// together.
pub fn svg(boxes: &[Drawn], edges: &BTreeSet<(usize, usize)>, colours: Colours) -> String {
    let columns = columns(boxes.len(), edges);
    let width = |index: usize| {
        let one = &boxes[index];
        let words = one.words.as_ref().map_or(0, |words| words.chars().count());
        one.name.chars().count().max(words) as f64 * CHARACTER + 2.0 * PADDING
    };
    let lines = if boxes.iter().any(|one| one.words.is_some()) { 2.0 } else { 1.0 };
    let height = lines * LINE + PADDING;
    // Where boxes stand, and where the edges of each go past: the column behind them, from where to where, and how high.
    let mut place = vec![(0.0, 0.0); boxes.len()];
    let mut ways: Vec<Vec<(usize, [f64; 2], f64)>> = vec![Vec::new(); boxes.len()];
    let mut column_of = vec![0; boxes.len()];
    let mut left = GAP;
    let mut bottom: f64 = 0.0;
    for (column, slots) in columns.into_iter().enumerate() {
        let comes_from = |from: usize| ways[from].last().map_or(place[from].1 + height / 2.0, |(_, _, y)| *y);
        let mean = |slot: &Slot| -> f64 {
            let heights: Vec<f64> = match slot {
                Slot::Pass(from) => vec![comes_from(*from)],
                Slot::Box(index) => {
                    let into = edges.iter().filter(|(_, to)| to == index);
                    into.map(|(from, _)| comes_from(*from)).collect()
                }
            };
            heights.iter().sum::<f64>() / heights.len().max(1) as f64
        };
        let mut slots: Vec<(f64, Slot)> = slots.iter().map(|slot| (mean(slot), *slot)).collect();
        slots.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let boxes_here = slots.iter().filter_map(|(_, slot)| match slot {
            Slot::Box(index) => Some(width(*index)),
            Slot::Pass(_) => None,
        });
        let right = left + boxes_here.fold(0.0, f64::max);
        let mut top = GAP;
        for (_, slot) in slots {
            match slot {
                Slot::Box(index) => {
                    (place[index], column_of[index]) = ((left, top), column);
                    top += height + GAP;
                }
                Slot::Pass(from) => {
                    ways[from].push((column, [left, right], top));
                    top += PASS + GAP;
                }
            }
        }
        bottom = bottom.max(top);
        left = right + BETWEEN;
    }
    let (all_width, all_height) = ((left - BETWEEN + GAP).max(1.0), bottom.max(GAP));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{all_width:.0}\" height=\"{all_height:.0}\" viewBox=\"0 0 {all_width:.0} {all_height:.0}\" font-family=\"monospace\" font-size=\"12\">\n"
    );
    let Colours { paper, fill, frame, line, ink } = colours;
    let _ = writeln!(text, "<rect width=\"100%\" height=\"100%\" style=\"fill:{paper}\"/>");
    for (from, to) in edges {
        let (mut x, mut y) = (place[*from].0 + width(*from), place[*from].1 + height / 2.0);
        let mut path = format!("M{x:.1} {y:.1}");
        let past = ways[*from].iter().filter(|(column, ..)| *column < column_of[*to]);
        let past = past.flat_map(|(_, [left, right], y)| [(*left, *y), (*right, *y)]);
        for (next_x, next_y) in past.chain([(place[*to].0, place[*to].1 + height / 2.0)]) {
            let middle = (x + next_x) / 2.0;
            let _ = write!(path, "C{middle:.1} {y:.1} {middle:.1} {next_y:.1} {next_x:.1} {next_y:.1}");
            (x, y) = (next_x, next_y);
        }
        let _ = writeln!(text, "<path d=\"{path}\" style=\"fill:none;stroke:{line}\"/>");
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

/// The columns by the longest way from a source, with what stands and passes in each.
fn columns(count: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<Vec<Slot>> {
    let mut into: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (from, to) in edges {
        into[*to].push(*from);
    }
    let mut column = vec![0usize; count];
    let mut columns: Vec<Vec<Slot>> = Vec::new();
    for index in 0..count {
        column[index] = into[index].iter().map(|from| column[*from] + 1).max().unwrap_or(0);
        columns.resize_with(columns.len().max(column[index] + 1), Vec::new);
        columns[column[index]].push(Slot::Box(index));
    }
    for from in 0..count {
        let targets = edges.iter().filter(|(source, _)| *source == from).map(|(_, to)| column[*to]);
        let last = targets.max().unwrap_or(0).max(column[from]);
        for passed in columns[column[from]..last].iter_mut().skip(1) {
            passed.push(Slot::Pass(from));
        }
    }
    columns
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of an attribute, or of a path.
    fn numbers(text: &str) -> Vec<f64> {
        text.split(|c: char| !(c.is_ascii_digit() || c == '.')).filter_map(|part| part.parse().ok()).collect()
    }

    #[test]
    fn edges_lead_around_boxes() {
        let drawn = |name: &str| Drawn { name: name.to_owned(), words: None, fill: None };
        let boxes: Vec<Drawn> = ["first", "second", "third", "fourth"].map(drawn).into();
        let edges = BTreeSet::from([(0, 1), (1, 2), (2, 3), (0, 3), (0, 2)]);
        let picture = svg(&boxes, &edges, Colours::ALONE);
        let rects: Vec<Vec<f64>> = picture
            .lines()
            .filter(|line| line.starts_with("<rect x"))
            .map(|line| numbers(line.split("rx=").next().unwrap()))
            .collect();
        assert_eq!(rects.len(), 4);
        let paths: Vec<&str> = picture.lines().filter(|line| line.starts_with("<path")).collect();
        assert_eq!(paths.len(), edges.len());
        for path in paths {
            // Where a path bends it is at the edge of a column: never inside of a box.
            let points = numbers(path.split("style").next().unwrap());
            for point in points.chunks_exact(2) {
                for rect in &rects {
                    let inside = point[0] > rect[0] + 0.1
                        && point[0] < rect[0] + rect[2] - 0.1
                        && point[1] > rect[1]
                        && point[1] < rect[1] + rect[3];
                    assert!(!inside, "{path} in {rect:?}");
                }
            }
        }
        // No box lies on another.
        assert!(rects.windows(2).all(|pair| pair[0][0] + pair[0][2] < pair[1][0]));
    }

    #[test]
    fn nothing_is_a_picture_too() {
        assert!(svg(&[], &BTreeSet::new(), Colours::ALONE).ends_with("</svg>\n"));
    }
}
