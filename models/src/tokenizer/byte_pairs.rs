//! Training a byte-pair encoding (Sennrich, Haddow and Birch 2016) over bytes, in CLIP's format.
//!
//! The library's own trainer gives ids in the order of a hash map; here equal words give equal ids.

use std::collections::{BTreeMap, BTreeSet};

/// What ends a word's last piece.
pub(super) const WORD_END: &str = "</w>";

/// The printable character that stands for each byte (Radford et al. 2019): the printable ones
/// themselves, the others from U+0100 on.
pub(super) fn byte_characters() -> [char; 256] {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut characters = ['\0'; 256];
    let mut shifted = 256;
    for byte in 0..256u32 {
        let code = if printable(byte) {
            byte
        } else {
            shifted += 1;
            shifted - 1
        };
        characters[byte as usize] = char::from_u32(code).expect("codes below 512 are characters");
    }
    characters
}

/// A vocabulary in id order and the merges in order of rank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BytePairs {
    pub(super) vocabulary: Vec<String>,
    pub(super) merges: Vec<(String, String)>,
}

/// Merges the most frequent pair of neighbours, the smallest of equals, until there are `limit` pieces
/// or every word is one. Each word counts once.
pub(super) fn train(words: &BTreeSet<String>, limit: usize) -> BytePairs {
    let characters = byte_characters();
    let mut vocabulary: Vec<String> = characters.iter().map(char::to_string).collect();
    vocabulary.extend(characters.iter().map(|character| format!("{character}{WORD_END}")));
    let mut split: Vec<Vec<String>> = words
        .iter()
        .map(|word| {
            let mut pieces: Vec<String> =
                word.bytes().map(|byte| characters[usize::from(byte)].to_string()).collect();
            if let Some(last) = pieces.last_mut() {
                last.push_str(WORD_END);
            }
            pieces
        })
        .collect();
    let mut merges = Vec::new();
    while vocabulary.len() < limit {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for pieces in &split {
            for pair in pieces.windows(2) {
                *counts.entry((&pair[0], &pair[1])).or_default() += 1;
            }
        }
        let greatest = counts.values().max().copied().unwrap_or(0);
        let Some(((left, right), _)) = counts.into_iter().find(|(_, count)| *count == greatest) else {
            break;
        };
        let (left, right) = (left.to_owned(), right.to_owned());
        let merged = format!("{left}{right}");
        for pieces in &mut split {
            let mut place = 0;
            while place + 1 < pieces.len() {
                if pieces[place] == left && pieces[place + 1] == right {
                    pieces[place].clone_from(&merged);
                    pieces.remove(place + 1);
                }
                place += 1;
            }
        }
        // Two ways may lead to one piece; it has one id.
        if !vocabulary.contains(&merged) {
            vocabulary.push(merged);
        }
        merges.push((left, right));
    }
    BytePairs { vocabulary, merges }
}
