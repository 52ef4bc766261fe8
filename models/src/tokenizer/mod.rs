//! Tokenisers: CLIP's byte pairs with the cleaning of open_clip, BERT's word pieces, anything in the
//! format of `tokenizer.json`; and the training of a small one.
//!
//! No vocabulary is part of the program: each checkpoint brings its own.

mod aligned;
mod byte_pairs;
mod clean;
mod clip;
mod entities;
mod mojibake;
mod train;
mod word_piece;

use std::ops::Range;

use self::aligned::Aligned;
use self::byte_pairs::WORD_END;
use self::clip::ClipEncoder;
use crate::checkpoint::{CheckpointError, CheckpointFiles};

/// The mark of the beginning of a text.
pub const START: &str = "<|startoftext|>";
/// The mark of its end, whose hidden state is pooled.
pub const END: &str = "<|endoftext|>";
/// Characters of a text that are looked at: captions, questions and reports are shorter.
const LENGTH_LIMIT: usize = 1 << 16;

/// What happens to a text before it is cut into pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cleaning {
    /// What the tokeniser's own file says; the way of transformers.
    AsStored,
    /// OpenAI's and open_clip's: repaired characters, HTML references resolved twice, white space
    /// collapsed; for CLIP's byte pairs their own pieces and lower case.
    OpenClip,
}

impl Cleaning {
    /// All kinds with their names.
    pub const NAMES: [(&str, Self); 2] = [("as_stored", Self::AsStored), ("open_clip", Self::OpenClip)];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, cleaning)| *cleaning == self).map_or("", |(name, _)| name)
    }
}

/// A tokeniser. Marks that are spelled out in a text (`[MASK]`, `<|endoftext|>`, in open_clip's way
/// `<end_of_text>`) become marks, as in the reference implementations.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    cleaning: Cleaning,
    /// CLIP's own way of cutting, where `cleaning` asks for it and the tokeniser is CLIP's.
    clip: Option<ClipEncoder>,
    start: Option<u32>,
    end: u32,
}

/// A text as ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// The ids, begin and end marks included, padded to the context length.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub length: usize,
    /// Where each id that is not padding stands in the text: first byte and the byte behind the last;
    /// marks are empty.
    pub offsets: Vec<[usize; 2]>,
    /// Whether the text was cut.
    pub truncated: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids, {})", self.vocabulary(), self.cleaning.name())
    }
}

fn error(reason: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::new("tokenizer.json", reason.to_string())
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// If it is no tokeniser, or has no end mark.
    pub fn from_json(text: &str) -> Result<Self, CheckpointError> {
        // The library gives up with a panic on some of what no tokeniser holds, such as a decoder that is none.
        let parsed = std::panic::catch_unwind(|| text.parse::<tokenizers::Tokenizer>());
        let parsed = parsed.map_err(|_| error("it holds what no tokeniser does"))?;
        Self::new(parsed.map_err(error)?)
    }

    /// BERT's word pieces from `vocab.txt`: one piece a line, its id the number of the line.
    ///
    /// # Errors
    /// If the vocabulary lacks `[UNK]`, `[CLS]` or `[SEP]`.
    pub fn from_vocabulary(text: &str, lower_case: bool) -> Result<Self, CheckpointError> {
        let inner = word_piece::tokenizer(text, lower_case)
            .map_err(|reason| CheckpointError::new("vocab.txt", reason))?;
        Self::new(inner)
    }

    /// CLIP's byte pairs from `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// If a file has another form, or a merge makes a piece that is not in the vocabulary.
    pub fn from_byte_pairs(vocabulary: &str, merges: &str) -> Result<Self, CheckpointError> {
        let ids: std::collections::HashMap<String, u32> = serde_json::from_str(vocabulary)
            .map_err(|problem| CheckpointError::new("vocab.json", problem.to_string()))?;
        let merges = merges
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("#version"))
            .map(|line| {
                line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())).ok_or_else(
                    || CheckpointError::new("merges.txt", format!("line `{line}` is no pair of pieces")),
                )
            })
            .collect::<Result<_, _>>()?;
        let inner = train::assemble(ids.into_iter().collect(), merges)
            .map_err(|problem| CheckpointError::new("merges.txt", problem.to_string()))?;
        Self::new(inner)
    }

    /// The tokeniser of a checkpoint: `tokenizer.json`, else `vocab.txt` (lower case unless
    /// `tokenizer_config.json` says otherwise), else `vocab.json` with `merges.txt`; `None` if there is
    /// none.
    ///
    /// # Errors
    /// If its files cannot be read.
    pub fn of_checkpoint(files: &CheckpointFiles) -> Result<Option<Self>, CheckpointError> {
        let has = |name: &str| files.get(name).is_some();
        let tokenizer = if has("tokenizer.json") {
            Self::from_json(&files.text("tokenizer.json")?)?
        } else if has("vocab.txt") {
            let config = files.json_if_any("tokenizer_config.json")?;
            Self::from_vocabulary(&files.text("vocab.txt")?, config["do_lower_case"] != false)?
        } else if has("vocab.json") && has("merges.txt") {
            Self::from_byte_pairs(&files.text("vocab.json")?, &files.text("merges.txt")?)?
        } else {
            return Ok(None);
        };
        // What our own checkpoints note about the cleaning.
        let config = files.json_if_any("tokenizer_config.json")?;
        let Some(name) = config["pipe"]["cleaning"].as_str() else { return Ok(Some(tokenizer)) };
        let known = Cleaning::NAMES.iter().find(|(known, _)| *known == name);
        let (_, cleaning) = known.ok_or_else(|| {
            let reason = format!("`pipe.cleaning` is `{name}`; it is not known here");
            CheckpointError::new("tokenizer_config.json", reason)
        })?;
        tokenizer.with_cleaning(*cleaning).map(Some)
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, CheckpointError> {
        inner.with_truncation(None).map_err(error)?;
        inner.with_padding(None);
        let id = |marks: [&str; 2]| marks.iter().find_map(|mark| inner.token_to_id(mark));
        let start = id([START, "[CLS]"]);
        let end =
            id([END, "[SEP]"]).ok_or_else(|| error(format!("it has no end mark (`{END}` or `[SEP]`)")))?;
        Ok(Self { inner, cleaning: Cleaning::AsStored, clip: None, start, end })
    }

    /// The same tokeniser with another cleaning.
    ///
    /// # Errors
    /// If CLIP's vocabulary or merges are incomplete.
    pub fn with_cleaning(mut self, cleaning: Cleaning) -> Result<Self, CheckpointError> {
        self.clip = match (cleaning, self.start) {
            (Cleaning::OpenClip, Some(start)) => {
                let json = self.inner.to_string(false).map_err(error)?;
                let json: serde_json::Value = serde_json::from_str(&json).map_err(error)?;
                ClipEncoder::from_model(&json["model"], [start, self.end]).map_err(error)?
            }
            _ => None,
        };
        self.cleaning = cleaning;
        Ok(self)
    }

    /// What happens to a text first.
    pub fn cleaning(&self) -> Cleaning {
        self.cleaning
    }

    /// Number of ids.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of the end mark.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The id of the begin mark, if there is one.
    pub fn start(&self) -> Option<u32> {
        self.start
    }

    /// Encodes `text` to exactly `context` ids: begin mark, pieces, end mark, then `pad`. A text that is
    /// too long is cut and keeps its end mark.
    ///
    /// # Errors
    /// If the tokeniser refuses the text.
    pub fn encode(&self, text: &str, context: usize, pad: u32) -> Result<Encoded, CheckpointError> {
        let text = text.char_indices().nth(LENGTH_LIMIT).map_or(text, |(end, _)| &text[..end]);
        let (mut ids, mut offsets): (Vec<u32>, Vec<Range<usize>>) = match &self.clip {
            Some(clip) => {
                let pieces = clip.encode(&mut Aligned::new(text)).map_err(error)?;
                let mark = |id: Option<u32>| id.map(|id| (id, 0..0));
                mark(self.start).into_iter().chain(pieces).chain(mark(Some(self.end))).unzip()
            }
            None => self.encode_as_stored(text)?.into_iter().unzip(),
        };
        let truncated = ids.len() > context;
        if truncated {
            ids.truncate(context);
            offsets.truncate(context);
            if let (Some(last), Some(offset)) = (ids.last_mut(), offsets.last_mut()) {
                (*last, *offset) = (self.end, 0..0);
            }
        }
        let length = ids.len();
        ids.resize(context, pad);
        let offsets = offsets.into_iter().map(|place| [place.start, place.end]).collect();
        Ok(Encoded { ids, length, offsets, truncated })
    }

    /// The ids of the library's tokeniser, marks included.
    fn encode_as_stored(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, CheckpointError> {
        let pieces = |encoding: tokenizers::Encoding, origin: &dyn Fn(Range<usize>) -> Range<usize>| {
            let places = encoding.get_offsets().iter();
            let pieces = encoding.get_ids().iter().zip(places);
            // Marks that are added stand nowhere.
            pieces
                .map(|(id, &(start, end))| (*id, if start < end { origin(start..end) } else { 0..0 }))
                .collect()
        };
        if self.cleaning == Cleaning::AsStored {
            let encoding = self.inner.encode(text, true).map_err(error)?;
            return Ok(pieces(encoding, &|place| place));
        }
        let mut cleaned = Aligned::new(text);
        clean::basic(&mut cleaned);
        let encoding = self.inner.encode_char_offsets(cleaned.text(), true).map_err(error)?;
        Ok(pieces(encoding, &|place| cleaned.origin(place)))
    }

    /// `tokenizer_config.json`, which keeps what `tokenizer.json` does not say.
    pub fn config_json(&self) -> String {
        let class = if self.inner.token_to_id("[CLS]").is_some() { "BertTokenizer" } else { "CLIPTokenizer" };
        let json =
            serde_json::json!({ "tokenizer_class": class, "pipe": { "cleaning": self.cleaning.name() } });
        format!("{json:#}\n")
    }

    /// The text of an id, for tables and figures.
    pub fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default().replace("</w>", "")
    }

    /// The ids of the tokens that are whole words of at least three letters, ascending.
    pub fn words(&self) -> Vec<u32> {
        let vocabulary = self.inner.get_vocab(false);
        // CLIP's words end in a mark, and so do their last pieces; the pieces of BERT's that do not start
        // a word begin with one.
        let marked = vocabulary.keys().any(|token| token.ends_with(WORD_END));
        let mut words: Vec<(String, u32)> = vocabulary
            .iter()
            .filter_map(|(token, id)| {
                let word = if marked { token.strip_suffix(WORD_END)? } else { token.as_str() };
                let is_word = word.chars().count() >= 3 && word.chars().all(char::is_alphabetic);
                is_word.then(|| (word.chars().rev().collect(), *id))
            })
            .collect();
        // Backwards, what another word ends in stands right before it.
        words.sort_unstable();
        let is_ending = |place: usize| {
            marked && words.get(place + 1).is_some_and(|next| next.0.starts_with(words[place].0.as_str()))
        };
        let mut ids: Vec<u32> =
            (0..words.len()).filter(|place| !is_ending(*place)).map(|place| words[place].1).collect();
        ids.sort_unstable();
        ids
    }

    /// `tokenizer.json`.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, CheckpointError> {
        self.inner.to_string(true).map_err(error)
    }

    /// Trains a byte-level BPE of at most `vocabulary` ids on `texts`, in CLIP's format: lower case,
    /// words end in `</w>`, the two marks last. Each different word counts once, so that the result
    /// depends on the language and not on how often a caption stands in a table; training is
    /// deterministic.
    ///
    /// # Errors
    /// If the texts hold no word.
    pub fn train<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        vocabulary: usize,
    ) -> Result<Self, CheckpointError> {
        Self::new(train::train(texts, vocabulary).map_err(error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_whole_words_and_survives_a_round_trip() {
        let texts = ["frontal x-ray of the chest with a nodule", "ct slice of the abdomen with two cysts"];
        let tokenizer = Tokenizer::train(texts, 1024).unwrap();
        assert!(tokenizer.vocabulary() <= 1024 + 2);
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        let encoded = tokenizer.encode("CT  slice of the chest", 8, 0).unwrap();
        assert_eq!(encoded, again.encode("CT  slice of the chest", 8, 0).unwrap());
        // Case and space make no other ids, but words stand where they stand.
        assert_eq!(encoded.ids, again.encode("ct slice of the chest", 8, 0).unwrap().ids);
        assert_eq!(encoded.offsets[1..3], [[0, 2], [4, 9]]);
        // start, five words of one piece each, end.
        assert_eq!(encoded.length, 7);
        assert_eq!(encoded.ids[0], tokenizer.start().unwrap());
        assert_eq!(encoded.ids[6], tokenizer.end());
        assert_eq!(encoded.ids[7], 0);
        assert_eq!(tokenizer.to_json().unwrap(), Tokenizer::train(texts, 1024).unwrap().to_json().unwrap());
    }

    #[test]
    fn a_torn_decoder_is_an_error() {
        let mut json = Tokenizer::train(["a nodule"], 512).unwrap().to_json().unwrap();
        let decoder = json.find("\"decoder\"").unwrap();
        let colon = decoder + json[decoder..].find("\"type\":").unwrap() + "\"type\"".len();
        json.remove(colon);
        let error = Tokenizer::from_json(&json).err().unwrap().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("no tokeniser"), "{error}");
    }

    /// Files of tokenisers from anywhere, and texts of any sort: an error or ids, and offsets that lie in the text.
    #[test]
    fn fuzz_tokenizers() {
        let trained = Tokenizer::train(["a nodule of the chest", "x-ray"], 512).unwrap();
        let vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nno\n##dule\nchest\n";
        let seeds = [trained.to_json().unwrap().into_bytes(), vocabulary.as_bytes().to_vec()];
        let words: [&[u8]; 6] =
            [b"\"merges\":", b"\"vocab\":", b"##", b"[UNK]", b"\\u0000", b"\"added_tokens\":"];
        pipe_fuzz::fuzz("tokenizers", &seeds, &words, |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            for tokenizer in
                [Tokenizer::from_json(text), Tokenizer::from_vocabulary(text, true)].into_iter().flatten()
            {
                if let Ok(encoded) = tokenizer.encode("A nodule\u{301} of the chest", 16, 0) {
                    assert!(encoded.ids.len() <= 16);
                }
            }
        });
        pipe_fuzz::fuzz(
            "texts",
            &[b"A caf\xc3\xa9 &amp; a nodule &lt;b&gt; [MASK]".to_vec()],
            &[b"&#x", b"\xe2\x80\x8b"],
            |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let encoded = trained.encode(&text, 32, 0).unwrap();
                for [from, to] in &encoded.offsets {
                    assert!(text.get(*from..*to).is_some(), "{from}..{to} of {text:?}");
                }
            },
        );
    }

    #[test]
    fn offsets_are_bytes_of_the_text_as_it_came() {
        let texts = ["a nodule of 5 µm & a café"];
        let trained = Tokenizer::train(texts, 1024).unwrap();
        let cleaned = trained.clone().with_cleaning(Cleaning::OpenClip).unwrap();
        let vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nno\n##dule\n5\ncafe\n&\n";
        let words = Tokenizer::from_vocabulary(vocabulary, true).unwrap();
        let cleaned_words = words.clone().with_cleaning(Cleaning::OpenClip).unwrap();
        let places = |tokenizer: &Tokenizer, text: &str| -> Vec<String> {
            let encoded = tokenizer.encode(text, 12, 0).unwrap();
            assert_eq!((encoded.offsets[0], encoded.offsets[encoded.length - 1]), ([0, 0], [0, 0]));
            assert_eq!(encoded.offsets.len(), encoded.length);
            let places = &encoded.offsets[1..encoded.length - 1];
            places.iter().map(|[start, end]| text[*start..*end].to_owned()).collect()
        };
        assert_eq!(places(&trained, "A nodule  café"), ["A", "nodule", "café"]);
        assert_eq!(places(&cleaned, " A\u{a0}nodule &amp;amp; cafÃ©"), ["A", "nodule", "&amp;amp;", "cafÃ©"]);
        assert_eq!(places(&words, "A  nodule, Café"), ["A", "no", "dule", ",", "Café"]);
        assert_eq!(places(&cleaned_words, "A  nodule &amp; cafÃ©"), ["A", "no", "dule", "&amp;", "cafÃ©"]);
    }

    #[test]
    fn byte_pairs_from_two_files_are_those_of_one() {
        let trained = Tokenizer::train(["a nodule of the left lung"], 600).unwrap();
        let json: serde_json::Value = serde_json::from_str(&trained.to_json().unwrap()).unwrap();
        let merges: Vec<String> = json["model"]["merges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
            .collect();
        let mut vocabulary = json["model"]["vocab"].clone();
        for mark in json["added_tokens"].as_array().unwrap() {
            vocabulary[mark["content"].as_str().unwrap()] = mark["id"].clone();
        }
        let again = Tokenizer::from_byte_pairs(
            &vocabulary.to_string(),
            &format!("#version: 0.2\n{}\n", merges.join("\n")),
        )
        .unwrap();
        let text = "the nodule left";
        assert_eq!(again.encode(text, 9, 0).unwrap(), trained.encode(text, 9, 0).unwrap());
        assert_eq!((again.start(), again.end()), (trained.start(), trained.end()));
        assert!(Tokenizer::from_byte_pairs("{}", "a b").is_err());
        assert!(Tokenizer::from_byte_pairs(&vocabulary.to_string(), "onlyone").is_err());
    }

    #[test]
    fn a_vocabulary_without_its_marks_is_refused() {
        let message = Tokenizer::from_vocabulary("[UNK]\na\n", true).err().unwrap().to_string();
        assert!(message.contains("vocab.txt") && message.contains("[SEP]"), "{message}");
    }

    #[test]
    fn words_are_whole() {
        let tokenizer = Tokenizer::train(["a small nodule on the left"], 1024).unwrap();
        let words: Vec<String> = tokenizer.words().iter().map(|id| tokenizer.token(*id)).collect();
        for word in ["small", "nodule", "the", "left"] {
            assert!(words.iter().any(|known| known == word), "{word}: {words:?}");
        }
        assert!(!words.contains(&"odule".to_owned()), "{words:?}");
    }

    #[test]
    fn a_long_text_is_cut_and_keeps_its_end() {
        let tokenizer = Tokenizer::train(["a nodule"], 600).unwrap();
        let encoded = tokenizer.encode(&"a nodule ".repeat(50), 6, 0).unwrap();
        assert!(encoded.truncated);
        assert_eq!(encoded.ids.len(), 6);
        assert_eq!(encoded.ids[5], tokenizer.end());
    }
}
