//! Questions as word ids (MEVF, QCR).

use std::collections::HashMap;
use std::ops::Range;

/// Remarks on the answer that some questions end in.
const REMARKS: [&str; 3] = ["? -yes/no", "? -open", "? - open"];

/// What becomes of a lower-cased question, in this order.
const REPLACEMENTS: [(&str, &str); 6] =
    [(",", ""), ("?", ""), ("'s", " 's"), ("...", ""), ("x ray", "x-ray"), (".", "")];

/// The words of a question, lower-cased, without punctuation; `'s` is a word of its own.
pub fn words_of(question: &str) -> Vec<String> {
    placed_words(question).into_iter().map(|(word, _)| word).collect()
}

/// The words of a question, each with the bytes that it stands at: the first, and the one behind its last.
pub fn placed_words(question: &str) -> Vec<(String, Range<usize>)> {
    // A letter may become several; only which sigma a word ends in depends on more than the letter.
    let places = question
        .char_indices()
        .flat_map(|(start, letter)| letter.to_lowercase().map(move |_| start..start + letter.len_utf8()));
    let mut letters: Vec<(char, Range<usize>)> = question.to_lowercase().chars().zip(places).collect();
    for (found, by) in REMARKS.map(|remark| (remark, "")).into_iter().chain(REPLACEMENTS) {
        letters = replaced(&letters, found, by);
    }
    let words = letters.split(|(letter, _)| letter.is_whitespace()).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let text = word.iter().map(|(letter, _)| letter).collect();
            (text, word[0].1.start..word[word.len() - 1].1.end)
        })
        .collect()
}

/// As [`str::replace`]. What is put in stands where the letters stood that it replaces, counted from the end; more
/// letters than those stand nowhere.
fn replaced(letters: &[(char, Range<usize>)], found: &str, by: &str) -> Vec<(char, Range<usize>)> {
    let length = found.chars().count();
    let is_at =
        |place: usize| found.chars().eq(letters[place..].iter().take(length).map(|(letter, _)| *letter));
    let mut result = Vec::with_capacity(letters.len());
    let mut place = 0;
    while place < letters.len() {
        if !is_at(place) {
            result.push(letters[place].clone());
            place += 1;
            continue;
        }
        let old = &letters[place..place + length];
        let new: Vec<char> = by.chars().collect();
        for (index, letter) in new.iter().enumerate() {
            let from_end = new.len() - index;
            let start = old[0].1.start;
            let place = if from_end <= length { old[length - from_end].1.clone() } else { start..start };
            result.push((*letter, place));
        }
        place += length;
    }
    result
}

/// What a word becomes that no training question has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnknownWord {
    /// The last word of the vocabulary, as in the authors' code.
    LastWord,
    /// An id of its own behind the padding.
    Own,
}

/// The words of the training questions by id, in the order of their first occurrence.
#[derive(Clone, Debug)]
pub struct QuestionVocabulary {
    words: Vec<String>,
    places: HashMap<String, u32>,
    unknown: UnknownWord,
}

impl QuestionVocabulary {
    /// Of training questions in file order.
    pub fn new<'a>(train: impl IntoIterator<Item = &'a str>, unknown: UnknownWord) -> Self {
        let (mut words, mut places) = (Vec::new(), HashMap::new());
        for word in train.into_iter().flat_map(words_of) {
            if !places.contains_key(&word) {
                places.insert(word.clone(), words.len() as u32);
                words.push(word);
            }
        }
        Self { words, places, unknown }
    }

    /// Of words by id.
    pub(crate) fn of_words(words: Vec<String>, unknown: UnknownWord) -> Self {
        let places = words.iter().enumerate().map(|(id, word)| (word.clone(), id as u32)).collect();
        Self { words, places, unknown }
    }

    /// Whether a word that no training question has is a word of its own.
    pub(crate) fn has_own_unknown(&self) -> bool {
        self.unknown == UnknownWord::Own
    }

    /// The words by id.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The id that fills a question up.
    pub fn padding(&self) -> u32 {
        self.words.len() as u32
    }

    /// The id of a word, if it is in the vocabulary.
    pub fn id(&self, word: &str) -> Option<u32> {
        self.places.get(word).copied()
    }

    /// The id of a word that is not in the vocabulary.
    pub fn unknown(&self) -> u32 {
        match self.unknown {
            UnknownWord::LastWord => self.padding().saturating_sub(1),
            UnknownWord::Own => self.padding() + 1,
        }
    }

    /// Exactly `length` ids: what is longer is cut, what is shorter padded at its end.
    pub fn encode(&self, question: &str, length: usize) -> Vec<u32> {
        let id = |word: &String| self.places.get(word).copied().unwrap_or_else(|| self.unknown());
        let mut ids: Vec<u32> = words_of(question).iter().take(length).map(id).collect();
        ids.resize(length, self.padding());
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_and_punctuation_are_no_words() {
        let words = words_of("What's the patient's X ray, e.g. view? -Yes/No");
        assert_eq!(words, ["what", "'s", "the", "patient", "'s", "x-ray", "eg", "view"]);
        assert_eq!(words_of("..."), Vec::<String>::new());
    }

    #[test]
    fn words_know_where_they_stand() {
        let question = "Is it  the patient's X ray, e.g. l\u{e4}ngs? -Open";
        let at = |place: &Range<usize>| &question[place.clone()];
        let placed = placed_words(question);
        let found: Vec<&str> = placed.iter().map(|(_, place)| at(place)).collect();
        assert_eq!(found, ["Is", "it", "the", "patient", "'s", "X ray", "e.g", "l\u{e4}ngs"]);
    }

    /// Whatever is asked, the words are those that editing the whole text gives, and their places are in order.
    #[test]
    fn placed_words_are_those_of_the_edited_text() {
        fn edited(question: &str) -> Vec<String> {
            let mut text = question.to_lowercase();
            for remark in REMARKS {
                text = text.replace(remark, "");
            }
            text = text.replace([',', '?'], "").replace("'s", " 's");
            text = text.replace("...", "").replace("x ray", "x-ray").replace('.', "");
            text.split_whitespace().map(str::to_owned).collect()
        }
        use proptest::prelude::*;
        proptest!(|(question in r"([A-Za-z.,?'\u{130}\u{3a3}\u{e4} -]|x ray|'s|\? -Open|\? - open|\.\.\.){0,30}")| {
            let placed = placed_words(&question);
            let words: Vec<String> = placed.iter().map(|(word, _)| word.clone()).collect();
            prop_assert_eq!(words, edited(&question));
            let mut end = 0;
            for (_, place) in placed {
                prop_assert!(place.start >= end && place.end > place.start && question.get(place.clone()).is_some());
                end = place.end;
            }
        });
    }

    #[test]
    fn unknown_words_have_an_id_of_their_own_or_the_last() {
        let train = ["is it left", "is it right"];
        let reference = QuestionVocabulary::new(train, UnknownWord::LastWord);
        assert_eq!(reference.words(), ["is", "it", "left", "right"]);
        assert_eq!(reference.encode("is it central", 5), [0, 1, 3, 4, 4]);
        let own = QuestionVocabulary::new(train, UnknownWord::Own);
        assert_eq!(own.encode("is it central now", 3), [0, 1, 5]);
    }
}
