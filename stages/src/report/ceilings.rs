//! What is possible at best: recall beside the ceiling that a generator's ambiguous captions leave.

use std::collections::BTreeMap;

use super::collect::Collected;
use super::columns::{numbers, texts};
use super::figures::Figure;

/// Which side asks and which is searched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    TextToImage,
    ImageToText,
}

/// A ceiling of recall at k.
struct Ceiling<'a> {
    axes: &'a BTreeMap<String, String>,
    direction: Option<Direction>,
    k: u64,
    split: Option<String>,
    value: f64,
}

/// Sets the ceiling of each recall for which the given tables of planted truths hold exactly one.
pub(super) fn set_ceilings(collected: &mut Collected) {
    let mut figures = std::mem::take(&mut collected.metrics);
    let ceilings: Vec<Ceiling<'_>> = collected
        .expected
        .iter()
        .flat_map(|table| {
            let axes = &collected.given[table.given].axes;
            let columns = ["quantity", "subset", "split"].map(|name| texts(&table.batch, name));
            let values = numbers(&table.batch, "value");
            (0..table.batch.num_rows()).filter_map(move |row| {
                let words =
                    [&columns[0][row], &columns[1][row]].map(|text| text.as_deref().unwrap_or_default());
                let text = words.join(" ");
                let k = recall_at(&text)?;
                let split = columns[2][row].clone();
                Some(Ceiling { axes, direction: direction(&text), k, split, value: values[row]? })
            })
        })
        .collect();
    for figure in &mut figures {
        figure.ceiling = ceiling(figure, &ceilings);
    }
    collected.metrics = figures;
}

fn ceiling(figure: &Figure, ceilings: &[Ceiling<'_>]) -> Option<f64> {
    let k = recall_at(&figure.metric)?;
    let words: Vec<&str> = figure.keys.values().map(String::as_str).chain([figure.metric.as_str()]).collect();
    let direction = direction(&words.join(" "));
    let agree = |ceiling: &&Ceiling<'_>| {
        ceiling.k == k
            && ceiling.direction == direction
            && ceiling.axes.iter().all(|(axis, value)| figure.keys.get(axis).is_none_or(|own| own == value))
            && (figure.split.is_none() || ceiling.split.is_none() || figure.split == ceiling.split)
    };
    let mut values = ceilings.iter().filter(agree).map(|ceiling| ceiling.value);
    let first = values.next()?;
    // Several different ones: which is meant cannot be told.
    values.all(|value| value == first).then_some(first)
}

/// The k of "recall@10", "recall_at_10" or "R@10".
fn recall_at(text: &str) -> Option<u64> {
    let text = text.to_lowercase().replace("_at_", "@");
    let (before, after) = text.split_once('@')?;
    let named = ["recall", "r", "hit"].iter().any(|name| before.ends_with(name));
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|_| named)
}

fn direction(text: &str) -> Option<Direction> {
    let text = text.to_lowercase().replace(['-', ' '], "_");
    let says = |names: &[&str]| names.iter().any(|name| text.contains(name));
    if says(&["text_to_image", "t2i", "text2image", "caption_to_image"]) {
        Some(Direction::TextToImage)
    } else if says(&["image_to_text", "i2t", "image2text", "image_to_caption"]) {
        Some(Direction::ImageToText)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_recall_are_understood() {
        for (text, k) in [
            ("recall@10", Some(10)),
            ("t2i_recall_at_5", Some(5)),
            ("retrieval R@1 image-to-text", Some(1)),
            ("precision@10", None),
            ("recall", None),
        ] {
            assert_eq!(recall_at(text), k, "{text}");
        }
        assert_eq!(direction("retrieval R@1 image-to-text"), Some(Direction::ImageToText));
        assert_eq!(direction("t2i_recall@5"), Some(Direction::TextToImage));
    }
}
