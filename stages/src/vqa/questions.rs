//! Questions as word ids (MEVF, QCR).

use std::collections::HashMap;

/// Remarks on the answer that some questions end in.
const REMARKS: [&str; 3] = ["? -yes/no", "? -open", "? - open"];

/// The words of a question, lower-cased, without punctuation; `'s` is a word of its own.
pub fn words_of(question: &str) -> Vec<String> {
    let mut text = question.to_lowercase();
    for remark in REMARKS {
        text = text.replace(remark, "");
    }
    text = text.replace([',', '?'], "").replace("'s", " 's").replace("...", "").replace("x ray", "x-ray");
    text.replace('.', "").split_whitespace().map(str::to_owned).collect()
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
    fn unknown_words_have_an_id_of_their_own_or_the_last() {
        let train = ["is it left", "is it right"];
        let reference = QuestionVocabulary::new(train, UnknownWord::LastWord);
        assert_eq!(reference.words(), ["is", "it", "left", "right"]);
        assert_eq!(reference.encode("is it central", 5), [0, 1, 3, 4, 4]);
        let own = QuestionVocabulary::new(train, UnknownWord::Own);
        assert_eq!(own.encode("is it central now", 3), [0, 1, 5]);
    }
}
