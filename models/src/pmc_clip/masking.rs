//! Words behind masks, for the loss that predicts them.

use crate::random::Key;

/// A caption as the model sees it, and what it is asked for; both are tokenised in the same way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaskedCaption {
    /// The caption with some words hidden.
    pub text: String,
    /// The chosen words, and `[PAD]` for every piece of the others, so that the pieces align.
    pub labels: String,
}

/// Share of the words that are asked for.
const SHARE: f64 = 0.15;
/// Of these, the share that becomes `[MASK]`, and up to here, that becomes another word; the rest stays.
const MASKED: f64 = 0.8;
const REPLACED: f64 = 0.9;

/// Hides words of a caption, a pure function of `key`. `pieces` counts the pieces of a word; `vocabulary`,
/// words of one piece, is what replaced words are drawn from.
pub fn mask_words(
    caption: &str,
    vocabulary: &[&str],
    pieces: impl Fn(&str) -> usize,
    key: Key,
) -> MaskedCaption {
    let mut text: Vec<String> = Vec::new();
    let mut labels: Vec<String> = Vec::new();
    for (place, word) in caption.split_whitespace().enumerate() {
        let draw = key.uniform(place as u64 + 1) / SHARE;
        let count = pieces(word).max(1);
        let repeated = |mark: &str| vec![mark; count].join(" ");
        if draw >= 1.0 {
            text.push(word.to_owned());
            labels.push(repeated("[PAD]"));
            continue;
        }
        labels.push(word.to_owned());
        text.push(if draw < MASKED {
            repeated("[MASK]")
        } else if draw < REPLACED && !vocabulary.is_empty() {
            // As many words as the replaced one has pieces: what follows keeps its place.
            let drawn = key.sub(place as u64);
            let word =
                |piece: usize| vocabulary[drawn.below(piece as u64 + 1, vocabulary.len() as u64) as usize];
            (0..count).map(word).collect::<Vec<_>>().join(" ")
        } else {
            word.to_owned()
        });
    }
    MaskedCaption { text: text.join(" "), labels: labels.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixth_of_the_words_is_asked_for_and_most_of_them_masked() {
        let caption = vec!["pneumonia"; 20_000].join(" ");
        let MaskedCaption { text, labels } = mask_words(&caption, &["effusion"], |_| 3, Key(4));
        let count = |text: &str, word: &str| text.split(' ').filter(|piece| *piece == word).count() as f64;
        let asked = count(&labels, "pneumonia");
        assert!((asked / 20_000.0 - 0.15).abs() < 0.01, "{asked}");
        assert!((count(&text, "[MASK]") / 3.0 / asked - 0.8).abs() < 0.03);
        assert!((count(&text, "effusion") / 3.0 / asked - 0.1).abs() < 0.03);
        assert_eq!(count(&labels, "[PAD]"), 3.0 * (20_000.0 - asked));
    }

    #[test]
    fn masks_are_a_function_of_the_key() {
        let caption = "axial CT of the chest shows a small left pleural effusion";
        let masked = |key| mask_words(caption, &["heart"], |_| 1, Key(key));
        assert_eq!(masked(1), masked(1));
        assert!((2..20).any(|key| masked(key) != masked(1)));
        assert_eq!(mask_words("", &[], |_| 1, Key(1)).text, "");
    }
}
