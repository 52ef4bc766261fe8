//! Words of a text: attributions of its token embeddings, and features that are present or absent together.
//!
//! Text is explained on token embeddings before positions are added, `[texts, tokens, width]`, with ids,
//! positions and attention mask of the original text: only word positions move.

use std::ops::Range;

/// A word with the tokens that it was cut into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Word {
    /// Where it stands in the text, in bytes.
    pub place: Range<usize>,
    /// Its tokens.
    pub tokens: Vec<usize>,
}

/// The words of a text, of whose tokens `offsets` says where each stands (first byte and the byte behind
/// the last; marks are empty). A word is what white space separates, as far as its tokens reach; tokens
/// across white space join what they touch. A token that stands nowhere in the text (marks, padding) is in
/// no word.
pub fn words(text: &str, offsets: &[[usize; 2]]) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    for (token, [start, end]) in offsets.iter().copied().enumerate() {
        // Byte pairs may claim the space in front of a word.
        let Some(piece) = text.get(start..end) else { continue };
        let start = start + (piece.len() - piece.trim_start().len());
        let end = start + piece.trim().len();
        if start >= end {
            continue;
        }
        let is_next = words.last().is_some_and(|word| {
            let between = text.get(word.place.end.min(start)..start).unwrap_or_default();
            !between.contains(char::is_whitespace)
        });
        match words.last_mut().filter(|_| is_next) {
            Some(word) => {
                word.place.end = word.place.end.max(end);
                word.tokens.push(token);
            }
            None => words.push(Word { place: start..end, tokens: vec![token] }),
        }
    }
    words
}

/// The ids of a text without its words: every token of a word becomes `absent` (padding, or BERT's mask);
/// marks and padding stay where they are, so that pooled position and attention mask are the text's own.
pub fn absent_ids(ids: &[u32], words: &[Word], absent: u32) -> Vec<u32> {
    let mut without = ids.to_vec();
    for token in words.iter().flat_map(|word| &word.tokens) {
        without[*token] = absent;
    }
    without
}

/// The sum over the width of an attribution of token embeddings `[tokens, width]`: one value per token.
pub fn token_values(attribution: &[f32], width: usize) -> Vec<f32> {
    let sum = |token: &[f32]| token.iter().map(|value| f64::from(*value)).sum::<f64>() as f32;
    attribution.chunks_exact(width.max(1)).map(sum).collect()
}

/// The sum over the tokens of each word.
pub fn word_values(tokens: &[f32], words: &[Word]) -> Vec<f32> {
    let sum = |word: &Word| word.tokens.iter().map(|token| f64::from(tokens[*token])).sum::<f64>() as f32;
    words.iter().map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(place: Range<usize>, tokens: &[usize]) -> Word {
        Word { place, tokens: tokens.to_vec() }
    }

    #[test]
    fn pieces_between_spaces_are_a_word() {
        let text = "no pneumothorax.";
        let offsets = [[0, 0], [0, 2], [3, 9], [9, 15], [15, 16], [0, 0]];
        let found = words(text, &offsets);
        assert_eq!(found, [word(0..2, &[1]), word(3..16, &[2, 3, 4])]);
        assert_eq!(&text[found[1].place.clone()], "pneumothorax.");
        // Byte pairs whose offsets begin with the space.
        assert_eq!(words(text, &[[0, 2], [2, 9], [9, 16]]), [word(0..2, &[0]), word(3..16, &[1, 2])]);
        assert!(words("", &[[0, 0], [0, 3]]).is_empty());
    }

    #[test]
    fn absent_words_keep_marks_and_padding() {
        let words = [word(0..2, &[1]), word(3..9, &[2, 3])];
        assert_eq!(absent_ids(&[98, 5, 6, 7, 99, 0], &words, 1), [98, 1, 1, 1, 99, 0]);
        let tokens = token_values(&[1.0, 2.0, 0.5, 0.5, -1.0, 3.0, 4.0, 0.0], 2);
        assert_eq!(tokens, [3.0, 1.0, 2.0, 4.0]);
        assert_eq!(word_values(&tokens, &words), [1.0, 6.0]);
    }

    /// Whatever offsets a tokeniser gives, each token is in one word at most, in order.
    #[test]
    fn words_partition_tokens() {
        use proptest::prelude::*;
        proptest!(|(text in "[a-z é.]{0,20}", offsets in prop::collection::vec([0usize..24, 0usize..24], 0..8))| {
            let offsets: Vec<[usize; 2]> = offsets;
            let tokens: Vec<usize> = words(&text, &offsets).into_iter().flat_map(|word| word.tokens).collect();
            prop_assert!(tokens.is_sorted() && tokens.windows(2).all(|pair| pair[0] < pair[1]));
        });
    }
}
