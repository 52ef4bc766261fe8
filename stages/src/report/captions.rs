//! Captions and questions with their words tinted by what each adds to the score.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{Array as _, RecordBatch};
use image::Rgb;
use maud::{Markup, html};
use pipe_attribution::{OUTLIERS, drawing_scale};
use pipe_engine::StageError;

use super::collect::Given;
use super::columns::{numbers, texts};
use super::picture::colour;
use super::words::{number, title};
use crate::arrow_file::ArrowFile;

/// The share of full colour that the strongest word has, so that black letters stay readable.
const STRONGEST: f64 = 0.6;

/// A text with the places of its words and their values, or why it has none.
struct Tinted {
    id: String,
    caption: String,
    target: Option<String>,
    score: Option<f64>,
    status: String,
    words: Vec<(std::ops::Range<usize>, f32)>,
}

/// The first `most` captions of an artifact.
///
/// # Errors
/// If the artifact holds no Arrow file of this layout.
pub(super) fn captions(given: &Given, most: usize) -> Result<Markup, StageError> {
    let (mut method, mut all, mut total) = (None, Vec::new(), 0);
    let mut answered = false;
    for file in given.artifact.files_ending(".arrow") {
        let mut rows = ArrowFile::open(&file.location)?;
        method = method.or_else(|| rows.schema().metadata().get("method").cloned());
        while let Some(batch) = rows.next()? {
            total += batch.num_rows();
            answered |= texts(&batch, "target_kind").iter().flatten().any(|kind| kind != "similarity");
            read_batch(&batch, most, &mut all);
        }
    }
    let (what, score) = match answered {
        true => ("questions", "score of the answer"),
        false => ("captions", "similarity with the image"),
    };
    let axes: Vec<String> = given.axes.values().cloned().chain(method).collect();
    Ok(html! {
        h3 { (title(&given.input)) }
        p .note {
            "Shown are the first " (all.len()) " of " (total) " " (what) ", " (axes.join(" \u{b7} ")) ". Red words add \
             to the " (score) ", blue ones take from it; within a text the strongest has full colour."
        }
        @for one in &all {
            p {
                b { (one.id) } " "
                @if one.words.is_empty() { (one.caption) " " span .reason { (one.status) } } @else { (tinted(one)) }
                @match (one.score, answered) {
                    (Some(score), true) => {
                        " (" (one.target.as_deref().unwrap_or("no answer")) ", score " (number(score)) ")"
                    },
                    (Some(score), false) => { " (similarity " (number(score)) ")" },
                    (None, _) => {},
                }
            }
        }
    })
}

fn read_batch(batch: &RecordBatch, most: usize, all: &mut Vec<Tinted>) {
    let [ids, captions, targets, statuses] =
        ["id", "caption", "target", "status"].map(|name| texts(batch, name));
    let scores = numbers(batch, "score");
    let list = |name: &str| batch.column_by_name(name).and_then(|column| column.as_list_opt::<i32>());
    let (offsets, values) = (list("offsets"), list("values"));
    for row in 0..batch.num_rows().min(most - all.len()) {
        let valid = |list: Option<&arrow_array::ListArray>| {
            list.filter(|list| list.is_valid(row)).map(|list| list.value(row))
        };
        let (offsets, values) = (valid(offsets), valid(values));
        let offsets = offsets.as_ref().and_then(|list| list.as_primitive_opt::<Int32Type>());
        let values = values.as_ref().and_then(|list| list.as_primitive_opt::<Float32Type>());
        let words = match (offsets, values) {
            (Some(offsets), Some(values)) => offsets
                .values()
                .chunks_exact(2)
                .zip(values.values())
                .map(|(place, value)| (place[0].max(0) as usize..place[1].max(0) as usize, *value))
                .collect(),
            _ => Vec::new(),
        };
        all.push(Tinted {
            id: ids[row].clone().unwrap_or_default(),
            caption: captions[row].clone().unwrap_or_default(),
            target: targets[row].clone(),
            score: scores[row],
            status: statuses[row].clone().unwrap_or_default(),
            words,
        });
    }
}

/// The caption, its words on the colours of their values. What does not fit the text is left out.
fn tinted(one: &Tinted) -> Markup {
    let values: Vec<f32> = one.words.iter().map(|(_, value)| *value).collect();
    let scale = drawing_scale(&values, OUTLIERS);
    let mut pieces = Vec::with_capacity(one.words.len());
    let mut end = 0;
    for (place, value) in &one.words {
        let (Some(between), Some(word)) = (one.caption.get(end..place.start), one.caption.get(place.clone()))
        else {
            continue;
        };
        let share = if scale > 0.0 { f64::from(value / scale).clamp(-1.0, 1.0) } else { 0.0 };
        let Rgb([red, green, blue]) = colour(STRONGEST * share, true);
        pieces.push((between, word, format!("background:rgb({red},{green},{blue});color:#000"), *value));
        end = place.end;
    }
    html! {
        @for (between, word, style, value) in &pieces {
            (between)
            span style=(style) title=(number(f64::from(*value))) { (word) }
        }
        (one.caption.get(end..).unwrap_or_default())
    }
}
