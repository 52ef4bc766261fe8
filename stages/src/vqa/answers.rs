//! The normal form of an answer, in which answers are compared.

use super::words::WORDS;

/// In the order in which they are looked for.
const PUNCTUATION: [char; 21] = [
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!',
];

/// No answer loses more full stops than this.
const FULL_STOPS: usize = 32;

/// The normal form of MEVF's and QCR's label files, which is that of the VQA challenge's scorer:
/// punctuation, articles, number words and contractions no longer tell answers apart.
pub fn normalise(answer: &str) -> String {
    let plain = without_full_stops(&without_punctuation(answer)).to_lowercase();
    let words: Vec<&str> = plain
        .split_whitespace()
        .map(|word| {
            WORDS.binary_search_by(|(known, _)| (*known).cmp(word)).map_or(word, |place| WORDS[place].1)
        })
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ").replace(',', "").replace("x ray", "xray")
}

/// A mark beside a space is deleted, another becomes a space. With a comma between digits anywhere in the
/// answer all marks are deleted: `3,4 a-b` becomes `34 ab`.
fn without_punctuation(answer: &str) -> String {
    let chars: Vec<char> = answer.chars().collect();
    let number = chars
        .windows(3)
        .any(|three| three[0].is_ascii_digit() && three[1] == ',' && three[2].is_ascii_digit());
    let beside_space = |mark: char| chars.windows(2).any(|two| two == [mark, ' '] || two == [' ', mark]);
    PUNCTUATION.iter().fold(answer.to_owned(), |text, mark| match number || beside_space(*mark) {
        true => text.replace(*mark, ""),
        false => text.replace(*mark, " "),
    })
}

/// Deletes full stops that no digit follows.
fn without_full_stops(text: &str) -> String {
    let mut left = FULL_STOPS;
    let mut chars = text.chars().peekable();
    let mut kept = String::with_capacity(text.len());
    while let Some(char) = chars.next() {
        let ends = char == '.' && left > 0 && !chars.peek().is_some_and(char::is_ascii_digit);
        if ends {
            left -= 1;
        } else {
            kept.push(char);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::normalise;

    #[test]
    fn the_quirks_of_the_scorer_are_kept() {
        for (answer, expected) in [
            ("Chest X-ray.", "chest xray"),
            ("3,4 a-b", "34 ab"),
            ("3.4 cm", "3.4 cm"),
            (".5", ".5"),
            ("The left lung", "left lung"),
            ("None", "0"),
            ("can't, cant", "can't can't"),
            ("", ""),
        ] {
            assert_eq!(normalise(answer), expected, "{answer:?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_has_a_normal_form(answer in any::<String>()) {
            let normal = normalise(&answer);
            prop_assert!(!normal.contains("  ") && normal.trim() == normal);
        }
    }
}
